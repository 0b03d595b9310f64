"""The stories of the scenarios that make sense with separate processes, on each server.

One platform a server plays them all, in order; the last ones restart its parts and end it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.processes import alive, below

from spinal.bus.errors import CallError
from spinal.bus.registration import tell_server
from spinal.bus.session import GRACE
from spinal.dispatcher.agent import LEASE
from spinal.testing import READY, Platform, eventually

from .conftest import (
    HERE,
    READ,
    SOON,
    WRITE,
    Stage,
    on_a_cable,
    parts,
    reason,
    restarted,
    stage,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_hundred_calls_spread_evenly_over_five_workers_and_more_than_slots_wait(
    running: Platform, tmp_path: Path
) -> None:
    async with stage(running, tmp_path / "five") as scene:
        await scene.start(5, STORY_SLOTS="25")

        calls = [scene.ask(READ, n=n, gate="first") for n in range(100)]
        await scene.begun(100)
        shares = scene.shares()
        assert min(shares) >= 18 and max(shares) <= 22, shares
        scene.open("first")
        answers = await asyncio.gather(*calls)
        assert [n for _, n in answers] == list(range(100))

        calls = [scene.ask(WRITE, n=n, gate="second") for n in range(1000, 1300)]
        await scene.begun(100 + 125)
        status = await running.client.ask_dispatcher("/spinal/status")
        assert (status["in_flight"], status["waiting"]) == (125, 175)
        scene.open("second")
        answers = await asyncio.gather(*calls)
        assert [n for _, n in answers] == list(range(1000, 1300))
        assert Counter(note.n for note in scene.ledger() if note.op == WRITE) == dict.fromkeys(
            range(1000, 1300), 1
        )


async def test_an_operation_is_its_exact_path_and_withdrawing_one_leaves_the_others(
    running: Platform, tmp_path: Path
) -> None:
    async with stage(running, tmp_path / "slices") as scene:
        (one,) = await scene.start(STORY_OPS="/slice/1 /slice/2")
        (fifteen,) = await scene.start(STORY_OPS="/slice/15")
        for _ in range(3):
            assert await scene.ask("/slice/1") == [one.pid, 0]
            assert await scene.ask("/slice/15") == [fifteen.pid, 0]
        for near in ("/slice", "/slice/1/disk", "/slice/5", "/slice/150"):
            assert reason(await scene.ask(near)) == "no-agent"

        one.kill(signal.SIGTERM)
        assert await one.wait() == 0, one.errors
        (two,) = await scene.start(STORY_OPS="/slice/2")

        assert reason(await scene.ask("/slice/1")) == "no-agent"
        assert await scene.ask("/slice/2", n=5) == [two.pid, 5]
        assert await scene.ask("/slice/15", n=6) == [fifteen.pid, 6]


async def test_what_those_leave_behind_who_die_or_are_cut_off(
    running: Platform, tmp_path: Path
) -> None:
    # At the same time, because leases and graces take theirs.
    async with asyncio.TaskGroup() as stories:
        stories.create_task(_a_worker_is_killed(running, tmp_path / "killed"))
        stories.create_task(_a_caller_disappears(running, tmp_path / "vanished"))
        stories.create_task(_a_final_waits_for_an_absent_caller(running, tmp_path / "absent"))


async def _a_worker_is_killed(running: Platform, folder: Path) -> None:
    async with stage(running, folder) as scene:
        (victim,) = await scene.start()
        safe, unsafe = scene.ask(READ, n=1, gate="safe"), scene.ask(WRITE, n=2, gate="never")
        await scene.begun(2)
        (other,) = await scene.start()
        victim.kill(signal.SIGSTOP)  # So that it does not end what it holds.
        scene.open("safe")
        victim.kill(signal.SIGKILL)
        killed = time.monotonic()

        assert await safe == [other.pid, 1]
        # Two seconds is the promise; the others are for a machine that is busy with other things.
        assert time.monotonic() - killed < 2.0 + 4.0
        problem = await unsafe
        took = time.monotonic() - killed
        assert reason(problem) == "lost"
        assert "may have been done" in problem.text
        # The lease began with the last heartbeat before the end.
        assert LEASE - 6 <= took <= LEASE + SOON
        assert [note.pid for note in scene.ledger() if note.op == WRITE] == [victim.pid]


async def _a_caller_disappears(running: Platform, folder: Path) -> None:
    async with stage(running, folder) as scene:
        (worker,) = await scene.start()
        caller = await running.spinal(
            "call", WRITE, "n=7", "gate=never", "--place", scene.place, "--timeout", "2m"
        )
        await scene.begun(1)
        caller.kill()
        killed = time.monotonic()
        await eventually(lambda: scene.ledger("cancelled"), GRACE + SOON, "it is cancelled")
        assert time.monotonic() - killed >= GRACE - 1
        assert await scene.ask(READ, n=8) == [worker.pid, 8]


async def _a_final_waits_for_an_absent_caller(running: Platform, folder: Path) -> None:
    async with stage(running, folder) as scene, on_a_cable(running) as (caller, cable):
        (worker,) = await scene.start()
        brokered = scene.ask(WRITE, scene.at(caller), n=1, gate="open")
        (known,) = await scene.known()
        direct = scene.ask(WRITE, caller.options(to=known["agent"], timeout=120), n=2, gate="open")
        await scene.begun(2)

        cable.cut()
        scene.open("open")
        await eventually(lambda: len(scene.ledger("ended")) == 2, SOON, "both have ended")
        assert not brokered.done() and not direct.done()
        cable.mend()

        async with asyncio.timeout(SOON):
            assert [await brokered, await direct] == [[worker.pid, 1], [worker.pid, 2]]
        assert len(scene.ledger()) == 2


async def test_a_server_restarts_under_fifty_agents_and_all_work_again_by_themselves(
    running: Platform,
) -> None:
    running.home.add_account("crowd", "agent")
    await tell_server(running.home, "crowd")
    crowd = [
        await running.start(sys.executable, str(HERE / "crowd.py"), str(first), "25")
        for first in (0, 25)
    ]

    async def all_answer() -> bool:
        try:
            asked = running.client.options(policy="all", timeout=10)
            rows = await asked.call("/crowd/number")
        except CallError:
            return False
        return sorted(row.get("value", -1) for row in rows) == list(range(50))

    await eventually(all_answer, READY, "fifty agents work")
    since = len(running.up.lines)
    before = parts(running)
    for part in before["server"] or before["dispatcher"]:
        # A helper of the server ends with it.
        with suppress(psutil.NoSuchProcess):
            part.kill()
    await restarted(running, since, _server_part(running))

    await eventually(all_answer, READY, "fifty agents work again")

    assert all(process.process.returncode is None for process in crowd)
    for process in crowd:
        process.kill(signal.SIGTERM)
    for process in crowd:
        assert await process.wait() == 0, process.errors[-5:]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_dispatcher_that_dies_or_hangs_is_started_again_and_nothing_runs_twice(
    running: Platform, tmp_path: Path, how: signal.Signals
) -> None:
    async with stage(running, tmp_path / how.name.lower()) as scene:
        (worker,) = await scene.start()
        held = [scene.ask(op, n=1, gate="open") for op in (READ, WRITE)]
        await scene.begun(2)
        since = len(running.up.lines)

        (dispatcher,) = parts(running)["dispatcher"]
        dispatcher.send_signal(how)
        await restarted(running, since, "dispatcher")
        scene.open("open")

        # What it carried may be lost, but is not begun again.
        for answer in await asyncio.gather(*held):
            assert answer == [worker.pid, 1] or reason(answer) == "lost"
        await eventually(lambda: _answers(scene, worker.pid), READY, "calls work again")
        assert [note.n for note in scene.ledger() if note.op == WRITE] == [1]


async def _answers(scene: Stage, pid: int) -> bool:
    answer: Any = await scene.ask(READ, n=2)
    return bool(answer == [pid, 2])


async def test_up_is_killed_started_again_and_ended(running: Platform, tmp_path: Path) -> None:
    async with stage(running, tmp_path / "again") as scene:
        (worker,) = await scene.start()
        family = below(running.up.pid)
        running.up.kill()
        await running.up.wait()
        await eventually(lambda: not any(map(alive, family)), SOON, "its children end with it")

        # The lock that it left is no obstacle, and everybody comes back.
        running.up = await running.spinal("up", "--no-providers", "--json")
        ready = json.loads(await running.up.line(lambda line: '"ready"' in line))
        assert ready["home"] == str(running.home.path)
        await eventually(lambda: _answers(scene, worker.pid), READY, "calls work again")

        second = await running.spinal("up")
        assert await second.wait() == 2
        (line,) = await _lines(second)
        assert f"is up already (pid {running.up.pid})" in line

    family = below(running.up.pid)
    running.up.kill(signal.SIGTERM)
    assert await running.up.wait() == 0, running.up.errors[-5:]
    assert not any(map(alive, family))
    after = await running.spinal("agents")
    assert await after.wait() == 4
    (line,) = await _lines(after)
    assert "`spinal up`" in line


def _server_part(running: Platform) -> str:
    kind = running.home.server
    return "dispatcher" if kind == "embedded" else kind


async def _lines(process: Any) -> list[str]:
    """What a command said on stderr, once all of it was read."""
    await eventually(lambda: process.errors, SOON)
    lines: list[str] = process.errors
    return lines
