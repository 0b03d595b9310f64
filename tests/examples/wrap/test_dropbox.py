"""The example of a folder that is watched, and one that is written into."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from spinal.agents.wrap import load
from spinal.bus.blob import Blob
from spinal.bus.errors import BadCall, CallError
from spinal.testing import Platform, Process, eventually

from .conftest import EXAMPLES

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in a folder of its own, as its README says."""
    found = tmp_path_factory.mktemp("dropbox")
    shutil.copy(EXAMPLES / "dropbox" / "dropbox.yaml", found)
    for name in ("in", "out", "answers"):
        (found / name).mkdir()
    return found


async def start(running: Platform, folder: Path) -> Process:
    """Run it, and wait until it says that it is on the bus."""
    process = await running.spinal("wrap", "run", str(folder / "dropbox.yaml"), "--json")
    await process.line(lambda line: '"ready"' in line)
    return process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def dropbox(running: Platform, folder: Path) -> AsyncIterator[Platform]:
    await start(running, folder)
    yield running


async def rows(running: Platform) -> list[dict[str, Any]]:
    return [row async for row in running.client.jobs(label="inbox")]


async def test_the_example_has_no_mistakes_once_its_folders_are_there(folder: Path) -> None:
    assert list(load(folder / "dropbox.yaml").missing()) == []
    missing = list(load(EXAMPLES / "dropbox" / "dropbox.yaml").missing())
    assert missing and all("make it" in one.text for one in missing)


async def test_without_a_bus_the_folder_is_only_looked_at(running: Platform, folder: Path) -> None:
    (folder / "in" / "a.txt").write_text("one")
    trial = await running.spinal(
        *("wrap", "test", str(folder / "dropbox.yaml"), "--op", "/inbox/look", "--json")
    )
    assert await trial.wait() == 0, trial.errors
    assert '"waiting":["a.txt"]' in "".join("".join(trial.lines).split())
    (folder / "in" / "a.txt").unlink()


async def test_every_file_becomes_one_job_although_the_agent_is_killed_again_and_again(
    running: Platform, folder: Path
) -> None:
    inside, done = folder / "in", folder / "in" / "done"
    count = 80

    def arrived() -> int:
        return len(list(done.iterdir())) if done.exists() else 0

    for number in range(count):
        (inside / f"{number}.txt").write_text("word " * (number + 1))
    for part in (0.2, 0.5, 0.8):
        process = await start(running, folder)
        await eventually(lambda: arrived() >= count * part, 60)  # noqa: B023 - awaited here
        process.kill()
        await process.wait()
    process = await start(running, folder)
    await eventually(lambda: arrived() == count, 60)

    async def ended() -> list[dict[str, Any]] | None:
        found = await rows(running)
        return found if all(row["state"] in ("done", "error") for row in found) else None

    found = await eventually(ended, 60)
    assert len(found) == count
    values = [(await running.client.job(row["id"]).info()) for row in found]
    # Killed while it counted, it starts again: counting only reads.
    assert sorted(row["value"]["words"] for row in values) == list(range(1, count + 1))
    assert [path.name for path in inside.iterdir()] == ["done"]
    process.kill()
    await process.wait()


async def test_a_look_tells_what_became_of_the_files(dropbox: Platform, folder: Path) -> None:
    (folder / "in" / "new.txt").write_text("a b c")

    async def submitted() -> Any:
        seen = await dropbox.client.call("/inbox/look")
        assert seen["failed"] == []
        return seen["submitted"] or (folder / "in" / "done" / "new.txt").exists()

    await eventually(submitted, 20)
    newest = (await rows(dropbox))[0]
    assert (await dropbox.client.job(newest["id"]).result())["words"] == 3


async def test_a_call_becomes_a_file(dropbox: Platform, folder: Path) -> None:
    found = await dropbox.client.call("/outbox/put", name="a", document=Blob.of(b"\x00\xff"))
    assert found == {"file": "a.doc", "size": 2}
    assert (folder / "out" / "a.doc").read_bytes() == b"\x00\xff"
    with pytest.raises(CallError, match=r"there is a file a\.doc already"):
        await dropbox.client.call("/outbox/put", name="a", document=Blob.of(b"x"))
    for name in ("../a", "/etc/passwd", "a/b", "", "a\0"):
        with pytest.raises(BadCall, match="'name'"):
            await dropbox.client.call("/outbox/put", name=name, document=Blob.of(b"x"))


async def test_a_file_that_answers_is_the_result(dropbox: Platform, folder: Path) -> None:
    asked = asyncio.create_task(
        dropbox.client.call("/outbox/ask", name="q", question="How are you?")
    )
    question = folder / "out" / "q.ask"
    await eventually(question.exists)
    assert question.read_text() == "How are you?\n"
    (folder / "answers" / "q.txt").write_text("Well.\n")
    assert await asked == "Well."
    assert not (folder / "answers" / "q.txt").exists()
