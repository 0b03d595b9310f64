"""What is particular to SQLite: whose file it is, and what goes wrong with files."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
from contextlib import closing
from pathlib import Path
from stat import S_IMODE

import pytest

from spinal.dispatcher.jobs.job import Job, mint
from spinal.dispatcher.store import sqlite, store_for
from spinal.dispatcher.store.contract import New, NotAStore, Save, Store, StoreError
from spinal.dispatcher.store.schema import VERSIONS

HERE = "one@home.test/d"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def at(path: Path) -> Store:
    return store_for(f"sqlite:///{path}")


def a_job(**members: object) -> Job:
    return Job(id=mint(), caller="a@home.test", op="/a", created=1, args=members)


async def refused(path: Path) -> str:
    """Give why a file is no store, having seen that nobody touched it."""
    before, beside = path.read_bytes(), sorted(path.parent.iterdir())
    with pytest.raises(NotAStore) as caught:
        await at(path).open(HERE, 10.0)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == beside
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


async def test_files_are_for_their_owner_only(path: Path) -> None:
    umask = os.umask(0)
    try:
        store = at(path)
        await store.open(HERE, 10.0)
        modes = {file.name: S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        await store.close()
    finally:
        os.umask(umask)
    assert modes == dict.fromkeys(("jobs.db", "jobs.db-wal", "jobs.db-shm"), 0o600)


@pytest.mark.parametrize("text", [b"hello\n", b"SQLite format 2", b"\0" * 4096])
async def test_a_file_that_is_no_database_is_refused_untouched(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    assert "not an SQLite file" in await refused(path)


async def test_a_database_of_another_program_is_refused_untouched(path: Path) -> None:
    with closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE jobs (id TEXT)")
        theirs.commit()
    assert "another program" in await refused(path)


async def test_a_store_of_a_newer_version_is_refused_untouched(path: Path) -> None:
    store = at(path)
    await store.open(HERE, 10.0)
    await store.close()
    with closing(sqlite3.connect(path)) as file:
        file.execute("UPDATE alembic_version SET version_num = '9999'")
        file.commit()
    assert "newer" in await refused(path)


async def test_an_older_version_is_brought_up_to_date(path: Path) -> None:
    # Only the sign, as after a crash in the first start.
    with closing(sqlite3.connect(path)) as file:
        file.execute(f"PRAGMA application_id = {sqlite.APPLICATION_ID}")
    store = at(path)
    await store.open(HERE, 10.0)
    await store.close()
    with closing(sqlite3.connect(path)) as file:
        (found,) = file.execute("SELECT version_num FROM alembic_version").fetchone()
        (journal,) = file.execute("PRAGMA journal_mode").fetchone()
    assert (found, journal) == (VERSIONS[-1], "wal")


async def test_an_sqlite_that_is_too_old_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "OLDEST", (99, 0, 0))
    with pytest.raises(NotAStore, match="older than 99"):
        await at(path).open(HERE, 10.0)
    assert not path.exists()


async def test_a_folder_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="check that its folder is there"):
        await at(tmp_path / "none" / "jobs.db").open(HERE, 10.0)


async def test_a_full_disk_is_an_error_that_ends_with_the_room(path: Path) -> None:
    store = at(path)
    life = await store.open(HERE, 10.0)
    job = a_job()
    job.owner = life
    await store.write(New(job))
    assert await store.get(job.id) is not None

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
    big = a_job(text="x" * 20_000)
    try:
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                await store.write(New(big))
            assert "\n" not in str(caught.value)
        assert await store.get(job.id) is not None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert await store.get(big.id) is None
    assert await store.write(New(big)) == [big.id]
    assert await store.write(Save(job)) == [True]
    await store.close()


async def test_a_file_that_another_program_holds_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY", 0.01)
    store = at(path)
    await store.open(HERE, 10.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program holds it"):
            await store.write(New(a_job()))
        # Readers are not in its way.
        assert await store.get("none") is None
        other.execute("ROLLBACK")
    assert await store.write(New(a_job()))
    await store.close()


async def test_a_store_that_is_closed_says_so(path: Path) -> None:
    store = at(path)
    with pytest.raises(StoreError, match="not open"):
        await store.write(New(a_job()))
    await store.open(HERE, 10.0)
    await store.close()
    with pytest.raises(StoreError, match="not open"):
        await store.get("x")


async def test_a_new_file_waits_for_whoever_writes_it_just_then(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute(f"PRAGMA application_id = {sqlite.APPLICATION_ID}")
        other.execute("BEGIN IMMEDIATE")
        asyncio.get_running_loop().call_later(0.3, other.execute, "COMMIT")
        store = at(path)
        await store.open(HERE, 60.0)
        await store.close()

    # Bytes 18 and 19 of the header are 2 in a file with a log.
    assert path.read_bytes()[18:20] == b"\x02\x02"
