"""The migrations lead to the tables, and the daily round does not look at ended jobs."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event
from tests.postgres import available, server

from spinal.dispatcher.jobs.job import Happening, Job, JobState, mint
from spinal.dispatcher.store import store_for
from spinal.dispatcher.store.contract import Filter, Limit, New, Record, Save, Store
from spinal.dispatcher.store.tables import metadata

HERE = "one@home.test/d"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
        return
    reason = available()
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    with server() as running:
        yield running.url()


async def test_the_migrations_lead_to_the_tables(url: str) -> None:
    store = store_for(url)
    await store.open(HERE, 10.0)
    await store.close()
    made = sa.make_url(url)
    if made.drivername == "postgresql":
        made = made.set(drivername="postgresql+psycopg", query={"options": "-csearch_path=spinal"})
    engine = sa.create_engine(made)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        expected, found = _indexes(metadata), _indexes(_reflected(connection))
        assert found.keys() == expected.keys()
    engine.dispose()


def _reflected(connection: sa.Connection) -> sa.MetaData:
    found = sa.MetaData()
    found.reflect(connection)
    return found


def _indexes(found: sa.MetaData) -> dict[str, Any]:
    return {str(i.name): i for table in found.tables.values() for i in table.indexes}


async def test_a_store_from_before_there_were_services_keeps_its_jobs(tmp_path: Path) -> None:
    url, job = f"sqlite:///{tmp_path}/jobs.db", Job(id=mint(), caller="a", op="/a", created=1)
    store = store_for(url)
    await store.open(HERE, 10.0)
    await store.write(New(job))
    await store.close()
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as file:
        file.execute("DROP TABLE records")
        file.execute("UPDATE alembic_version SET version_num = '0001'")

    store = store_for(url)
    await store.open(HERE, 10.0)
    try:
        assert await store.versions("service") == {} and await store.get(job.id) is not None
    finally:
        await store.close()


async def test_services_from_before_there_were_other_records_are_still_there(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    store = store_for(url)
    await store.open(HERE, 10.0)
    await store.close()
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as file:
        file.execute("DROP TABLE records")
        file.execute("CREATE TABLE services (name TEXT PRIMARY KEY, version INT, service TEXT)")
        file.execute("""INSERT INTO services VALUES ('shop', 3, '{"state": "placed"}')""")
        file.execute("UPDATE alembic_version SET version_num = '0002'")

    store = store_for(url)
    await store.open(HERE, 10.0)
    try:
        assert await store.records("service") == [Record("service", "shop", 3, {"state": "placed"})]
    finally:
        await store.close()


#: What runs all day, and an index that it must use.
DAILY = {
    "jobs_queued": "state = 'queued'",
    "jobs_waiting": "state = 'waiting'",
    "jobs_bound": "ends <=",
    "jobs_held": "held = 1 AND jobs.id = edges.job",
    "jobs_dead": "state = 'error'",
    "jobs_parent": "parent = ",
    "jobs_live": "jobs.ended IS NULL AND jobs.state IN ('",
    "jobs_running": "state IN ('processing'",
    "jobs_owner": "owner IN (SELECT value",
    "jobs_ended": "sum(jobs.size)",
    "jobs_key": "json_extract(pair.value",
    "sqlite_autoindex_jobs_1": "ORDER BY jobs.id",
}

#: Going through all jobs, but for those that an index of few is made of; and counting.
WALKS = re.compile(
    r"SCAN jobs(?! USING (COVERING )?INDEX jobs_(queued|waiting|live|held|dead|ended))"
)


async def test_partial_indexes_are_used(tmp_path: Path) -> None:
    #: Everything that was run, with the values in it.
    seen: set[str] = set()

    def connected(driver: sqlite3.Connection, record: object) -> None:
        driver.set_trace_callback(seen.add)

    event.listen(sa.Engine, "connect", connected)
    path = tmp_path / "jobs.db"
    store = store_for(f"sqlite:///{path}")
    life = await store.open(HERE, 10.0)
    try:
        await _a_day(store, life, path)
    finally:
        event.remove(sa.Engine, "connect", connected)
        await store.close()

    with closing(sqlite3.connect(path)) as file:
        for index, part in DAILY.items():
            texts = [text for text in seen if part in text and "CREATE" not in text]
            assert texts, part
            plans = [str(file.execute(f"EXPLAIN QUERY PLAN {text}").fetchall()) for text in texts]
            assert any(index in plan for plan in plans), (index, texts, plans)
        for text in seen:
            if text.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
                plan = str(file.execute(f"EXPLAIN QUERY PLAN {text}").fetchall())
                assert not WALKS.search(plan), (text, plan)


async def _a_day(store: Store, life: int, path: Path) -> None:
    for _ in range(2):
        await store.set_limit(Limit("/a", concurrent=9))
        job = Job(id=mint(), caller="a", op="/a", created=1, key=mint(), owner=life)
        await store.write(New(job))
        job.move(Happening.BEGUN)
        await store.write(Save(job, begins=True))
        job.ended = 5
        job.move(Happening.FAILED)
        await store.write(Save(job))
    await store.claim(1, 1, 10)
    await store.next_due()
    await store.dependents([])
    await store.dependents(["x"])
    await store.find(Filter(dead=True), 10)
    await store.find(Filter(parent="x"), 10)
    await store.find(Filter(states=frozenset({JobState.QUEUED, JobState.STALLED})), 10)
    await store.children("x", 0, 10)
    await store.count_children("x")
    await store.prune(1)
    other = store_for(f"sqlite:///{path}")
    await other.open("two@home.test/d", 10.0)
    await other.close()
    await store.take_over()
    assert (await store.overview()).states == {JobState.ERROR: 2}
