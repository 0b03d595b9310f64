"""What was said to be written is on disk by then: shown by system calls, and by SIGKILL."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.syscalls import SENDS, available, first, on_disk, read, traced

from spinal.dispatcher.jobs.job import JobState
from spinal.dispatcher.store import store_for

WRITER = [sys.executable, str(Path(__file__).with_name("writer.py"))]


def test_a_write_returns_after_the_log_was_synced(tmp_path: Path) -> None:
    reason = available()
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    trace, count = tmp_path / "trace", 3
    command = [*WRITER, f"sqlite:///{tmp_path}/jobs.db", str(count)]
    subprocess.run(traced(command, trace), check=True, capture_output=True, timeout=60)

    calls = read(trace)
    for n in range(count):
        for kept, said in (
            (f"job-{n:05}", f"accepted job-{n:05}."),
            (f"agent-{n:05}", f"sent agent-{n:05}."),
            (f"result-{n:05}", f"acknowledged result-{n:05}."),
        ):
            told = first(calls, SENDS, data=said)
            assert on_disk(calls, kept, "/jobs.db-wal").ended < told.began, said


def _killed(url: str) -> str:
    """Give what a writer said until it was killed."""
    with subprocess.Popen([*WRITER, url, "100000"], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(200)]
        writer.kill()
        return "".join([*said, *writer.stdout.readlines()])


async def test_nothing_that_was_said_to_be_written_is_lost_by_a_kill(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    text = await asyncio.to_thread(_killed, url)

    store = store_for(url)
    await store.open("reader@home.test/d", 10.0)
    accepted = {f"job-{n}" for n in re.findall(r"accepted job-(\d+)\.", text)}
    done = {f"job-{n}" for n in re.findall(r"acknowledged result-(\d+)\.", text)}
    states = await store.states(sorted(accepted))
    assert len(done) > 10 and states.keys() == accepted
    assert {states[id] for id in done} == {JobState.DONE}
    await store.close()
