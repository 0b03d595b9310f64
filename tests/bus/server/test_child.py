from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import psutil
import pytest

from spinal.bus.server.child import KEEP_OUTPUT, Child, Owner, Process, descendants, end_leftover
from spinal.bus.server.errors import ServerError, ServerMissing

SLEEP = ("sleep", "60")
#: Says that it has started, and does not care about SIGTERM.
STUBBORN = ("sh", "-c", "trap '' TERM; sleep 60 & echo here; while :; do wait; done")


async def start(folder: Path, *argv: str, owner: Owner | None = None) -> Child:
    return await Child.start(
        "thing", argv, folder=folder, cwd=folder, env={"PATH": os.environ["PATH"]}, owner=owner
    )


async def said(folder: Path, word: str) -> None:
    async with asyncio.timeout(10):
        while word not in (folder / "thing.log").read_text():
            await asyncio.sleep(0.01)


@pytest.fixture
async def sleeper(tmp_path: Path) -> AsyncGenerator[Child]:
    child = await start(tmp_path, *SLEEP)
    yield child
    await child.stop(grace=5)


async def test_it_runs_and_is_noted(sleeper: Child, tmp_path: Path) -> None:
    record = json.loads((tmp_path / "thing.json").read_bytes())
    assert record["child"][0] == sleeper.pid
    assert record["parent"][0] == os.getpid()
    assert not sleeper.ended


async def test_a_stopped_child_is_gone_and_so_is_its_record(tmp_path: Path) -> None:
    child = await start(tmp_path, *SLEEP)
    await child.stop(grace=5)
    assert await child.wait() == -signal.SIGTERM
    assert Process.find(child.pid) is None
    assert not (tmp_path / "thing.json").exists()
    await child.stop(grace=5)


async def test_a_stubborn_child_is_killed_with_all_it_started(tmp_path: Path) -> None:
    child = await start(tmp_path, *STUBBORN)
    await said(tmp_path, "here")
    family = descendants(child.pid)
    assert family
    await child.stop(grace=0.1)
    assert await child.wait() == -signal.SIGKILL
    assert not any(one.alive for one in family)


async def test_a_cancelled_stop_kills(tmp_path: Path) -> None:
    child = await start(tmp_path, *STUBBORN)
    await said(tmp_path, "here")
    family = descendants(child.pid)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await child.stop(grace=60)
    async with asyncio.timeout(5):
        assert await child.wait() == -signal.SIGKILL
    await child.stop(grace=0)
    for one in family:
        one.kill()


async def test_a_child_cannot_gain_rights_and_may_open_many_files(sleeper: Child) -> None:
    process = psutil.Process(sleeper.pid)
    async with asyncio.timeout(5):
        while process.name() != "sleep":
            await asyncio.sleep(0.01)
    status = Path(f"/proc/{sleeper.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    limit = process.rlimit(psutil.RLIMIT_NOFILE)
    assert limit[0] == limit[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
async def test_root_runs_a_child_as_somebody_without_rights(tmp_path: Path) -> None:
    owner = Owner.choose()
    assert owner is not None and owner.uid != 0
    child = await start(tmp_path, "sh", "-c", "id -u; id -G", owner=owner)
    assert await child.wait() == 0
    await child.stop(grace=0)
    assert (tmp_path / "thing.log").read_text().split() == [str(owner.uid), str(owner.gid)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_is_given_away_with_its_content_but_not_what_links_lead_to(
    tmp_path: Path,
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.touch()
    folder.mkdir()
    (folder / "file").touch()
    (folder / "link").symlink_to(outside)
    Owner(65534, 65534).give(folder)
    assert folder.stat().st_uid == (folder / "file").stat().st_uid == 65534
    assert outside.stat().st_uid == 0


async def test_a_missing_program_is_reported(tmp_path: Path) -> None:
    child = await start(tmp_path, "there-is-no-such-program")
    assert await child.wait() == 127
    assert "there-is-no-such-program" in child.last_words()
    await child.stop(grace=0)


async def test_missing_tools_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerMissing, match="util-linux"):
        await start(tmp_path, *SLEEP)


async def test_the_last_telling_line_is_given(tmp_path: Path) -> None:
    child = await start(
        tmp_path, "sh", "-c", "echo starting; echo 'Error: no luck'; echo; echo goodbye; exit 3"
    )
    assert await child.wait() == 3
    assert child.last_words() == "Error: no luck"
    await child.stop(grace=0)


async def test_the_output_does_not_grow_from_start_to_start(tmp_path: Path) -> None:
    (tmp_path / "thing.log").write_bytes(b"x" * (KEEP_OUTPUT + 1))
    child = await start(tmp_path, "echo", "new")
    await child.wait()
    await child.stop(grace=0)
    assert (tmp_path / "thing.log").read_text() == "new\n"
    assert (tmp_path / "thing.log.1").stat().st_size == KEEP_OUTPUT + 1


async def test_a_running_child_of_a_living_parent_is_left_alone(
    sleeper: Child, tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match=str(sleeper.pid)):
        await end_leftover("thing", tmp_path)
    assert not sleeper.ended


async def test_what_a_dead_parent_left_is_ended(sleeper: Child, tmp_path: Path) -> None:
    path = tmp_path / "thing.json"
    record = json.loads(path.read_bytes())
    record["parent"] = [os.getpid(), "long ago"]
    path.write_text(json.dumps(record))
    await end_leftover("thing", tmp_path)
    assert await sleeper.wait() == -signal.SIGKILL
    assert not path.exists()


async def test_a_process_that_only_has_the_same_number_is_left_alone(
    sleeper: Child, tmp_path: Path
) -> None:
    record = {"parent": [1, "long ago"], "child": [sleeper.pid, "long ago"]}
    (tmp_path / "thing.json").write_text(json.dumps(record))
    await end_leftover("thing", tmp_path)
    assert not sleeper.ended


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"parent": [], "child": []}', "\xff"])
async def test_an_unreadable_record_ends_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "thing.json"
    path.write_text(text)
    await end_leftover("thing", tmp_path)
    assert not path.exists()


async def test_no_record_is_fine(tmp_path: Path) -> None:
    await end_leftover("thing", tmp_path)
