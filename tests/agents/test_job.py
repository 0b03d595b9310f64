from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from spinal.agents import Blob, Job, PlainJob
from spinal.agents.errors import CommandFailed
from spinal.agents.job import Facts
from spinal.bus.errors import CallError

from .conftest import Recorder, Shelf

FACTS = Facts("id-1", "/x", "me@x/y", 2)


def test_a_job_tells_what_it_is(recorder: Callable[[], Recorder]) -> None:
    job = Job(FACTS, recorder())

    assert (job.id, job.op, job.caller, job.attempt) == ("id-1", "/x", "me@x/y", 2)
    assert job.remaining == 30.0
    assert not job.cancelled
    assert repr(job) == "<Job /x id-1 attempt 2>"


async def test_news_go_to_the_caller(recorder: Callable[[], Recorder], shelf: Shelf) -> None:
    channel = recorder()
    job = Job(FACTS, channel, shelf)
    job.progress(1, 3, "a third")
    job.log("line")
    await job.data({"blob": [Blob.of(b"x")]})

    reference = shelf.put(b"x", "application/octet-stream").to_json()
    assert channel.said == [(1, 3, "a third"), "line", {"data": {"blob": [reference]}}]


async def test_a_piece_of_data_that_is_too_large_is_refused(
    recorder: Callable[[], Recorder],
) -> None:
    with pytest.raises(CallError, match="piece of data takes 40002 bytes"):
        await Job(FACTS, recorder()).data("x" * 40_000)


async def test_a_stored_blob_can_be_fetched_again(
    recorder: Callable[[], Recorder], shelf: Shelf, tmp_path: Path
) -> None:
    job = Job(FACTS, recorder(), shelf)
    blob = await job.store(b"bytes", "text/x")

    assert blob.ref is not None and shelf.kept[blob.ref.url] == b"bytes"
    assert await job.fetch(blob) == b"bytes"
    assert (await blob.save(tmp_path / "b")).read_bytes() == b"bytes"
    assert (blob.size, blob.media_type) == (5, "text/x")


async def test_without_a_bus_a_blob_stays_here(recorder: Callable[[], Recorder]) -> None:
    blob = await Job(FACTS, recorder()).store(b"bytes")

    assert blob.ref is None
    assert blob.data == b"bytes"


async def test_a_program_runs_and_its_lines_are_logged_on_request(
    recorder: Callable[[], Recorder],
) -> None:
    channel = recorder()
    job = Job(FACTS, channel)
    done = await job.run(["sh", "-c", "echo one; echo two >&2"], log=True)
    await job.run(["echo", "quiet"])

    assert (done.code, done.text) == (0, "one")
    assert sorted(map(str, channel.said)) == ["one", "two"]


BURN = "import sys; sum(range(10**7)); sys.exit(3)"


async def test_what_programs_cost_is_counted_however_they_end(
    recorder: Callable[[], Recorder],
) -> None:
    channel = recorder()
    job = Job(FACTS, channel)
    done = await job.run([sys.executable, "-c", BURN])
    with pytest.raises(CommandFailed):
        await job.run([sys.executable, "-c", BURN], check=True)
    with pytest.raises(TimeoutError):
        await job.run(["sleep", "100"], timeout=0.01)

    assert done.cpu > 0.01 and done.memory > 1024 * 1024
    assert channel.costs[0] == (done.cpu, done.memory)
    assert channel.costs[1][0] > 0.01
    assert len(channel.costs) == 3


async def test_a_program_that_must_end_well_raises(recorder: Callable[[], Recorder]) -> None:
    with pytest.raises(CommandFailed):
        await Job(FACTS, recorder()).run(["false"], check=True)


@pytest.mark.parametrize("name", ["data", "fetch", "store", "run"])
def test_a_plain_job_says_what_to_use_instead_of_a_coroutine(
    recorder: Callable[[], Recorder], name: str
) -> None:
    job = PlainJob(FACTS, recorder(), lambda value: None)
    with pytest.raises(TypeError, match=f"job.{name}\\(\\) is for async operations"):
        getattr(job, name)(b"x")


def test_a_plain_job_sends_data(recorder: Callable[[], Recorder]) -> None:
    sent: list[object] = []
    PlainJob(FACTS, recorder(), sent.append).send(3)

    assert sent == [3]
