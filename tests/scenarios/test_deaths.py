"""What becomes of calls when somebody dies, hangs, leaves or is cut off."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spinal.bus.calls import PATIENCE
from spinal.bus.session import GRACE
from spinal.dispatcher.agent import LEASE, SUSPECT_AFTER
from spinal.protocols import Problem, Ran
from spinal.testing import Faults, eventually, virtual_time

from .conftest import READ, WRITE, Worker, World, counted, ends, problem_of, world


async def _two_calls_at_one(
    home: World,
) -> tuple[Worker, asyncio.Task[Any], asyncio.Task[Any]]:
    """A worker that holds a safe and an unsafe call."""
    first = await home.worker("agent1")
    safe, unsafe = home.ask(READ)(n=1), home.ask(WRITE)(n=2)
    await eventually(lambda: len(first.running) == 2)
    return first, safe, unsafe


@virtual_time
async def test_a_safe_call_of_a_worker_that_dies_ends_on_another_one_within_two_seconds() -> None:
    async with world() as home:
        first, safe, _ = await _two_calls_at_one(home)
        second = await home.worker("agent2", free=True)

        home.bus.kill(first.address)
        died = home.now

        assert await safe == [second.name, 1]
        assert home.now - died <= 2.0


@virtual_time
async def test_an_unsafe_call_of_a_worker_that_dies_is_lost_after_the_lease_and_never_repeated() -> (
    None
):
    async with world() as home:
        first, _, unsafe = await _two_calls_at_one(home)
        await home.worker("agent2", free=True)
        known = home.dispatcher.registry.get(first.address)
        assert known is not None

        home.bus.kill(first.address)
        problem = await problem_of(unsafe)

        assert problem.reason == "lost" and problem.meaning.ran is Ran.MAYBE
        assert "may have been done" in problem.text and first.address in problem.text
        assert LEASE <= home.now - known.last_seen <= LEASE + 2
        await asyncio.sleep(120)
        assert counted(home.ledger, lambda e: e.op)[WRITE] == 1


@virtual_time
async def test_an_unsafe_call_goes_on_when_its_worker_was_only_cut_off() -> None:
    async with world() as home:
        first, safe, unsafe = await _two_calls_at_one(home)

        home.bus.cut(first.address)
        await eventually(lambda: home.knows(first))
        first.free.set()

        assert await unsafe == [first.name, 2]
        assert await safe == [first.name, 1]
        assert counted(home.ledger, lambda e: e.op)[WRITE] == 1


@virtual_time
async def test_an_unsafe_call_of_a_worker_that_restarts_is_lost_at_once() -> None:
    async with world() as home:
        first, safe, unsafe = await _two_calls_at_one(home)
        home.bus.kill(first.address)
        died = home.now

        again = await home.worker("agent1", free=True)

        problem = await problem_of(unsafe)
        assert problem.reason == "lost" and "was restarted" in problem.text
        assert home.now - died < 2.0
        assert await safe == [again.name, 1]
        assert counted(home.ledger, lambda e: e.op) == {READ: 2, WRITE: 1}


@virtual_time
@pytest.mark.parametrize("op", [READ, WRITE])
async def test_an_op_that_the_wire_loses_is_said_again_to_the_same_worker(op: str) -> None:
    async with world() as home:
        first = await home.worker("agent1", free=True)
        home.bus.faults = Faults(
            drop=1.0, applies=lambda stanza: stanza.kind == "iq" and stanza.to == first.address
        )
        call = home.ask(op)(n=1)
        await asyncio.sleep(4.0)
        second = await home.worker("agent2", free=True)
        await asyncio.sleep(4.0)
        home.bus.faults = Faults()

        assert await call == [first.name, 1]
        assert home.dispatcher.broker.counts.lost_attempts == 0
        assert second.begun() == []


@virtual_time
async def test_a_final_is_taken_in_the_end_although_the_wire_lost_all_that_was_said_of_it() -> None:
    async with world() as home:
        worker = await home.worker(free=True)
        home.bus.faults = Faults(
            drop=1.0,
            applies=lambda stanza: (
                stanza.to == worker.address
                and (stanza.kind == "presence" or (stanza.body is not None and _acks(stanza.body)))
            ),
        )
        assert await home.ask(WRITE)(n=1) == [worker.name, 1]
        home.bus.cut(worker.address)
        await asyncio.sleep(70)
        assert worker.life.session.kept == 1
        home.bus.faults = Faults()

        await eventually(lambda: worker.life.session.kept == 0, 60)


def _acks(body: bytes) -> bool:
    return b'"ack"' in body


@virtual_time
async def test_a_call_that_kills_three_workers_is_not_given_to_a_fourth() -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}") for n in range(4)]
        call = home.ask(READ)()
        for _ in range(3):
            await eventually(lambda: any(worker.running for worker in workers))
            (victim,) = (worker for worker in workers if worker.running)
            workers.remove(victim)
            home.bus.kill(victim.address)

        problem = await problem_of(call)

        assert problem.reason == "lost" and problem.text.startswith("3 agents were lost")
        assert workers[0].begun() == []


@virtual_time
async def test_a_worker_that_hangs_gets_no_new_work_and_its_safe_call_moves() -> None:
    async with world() as home:
        first, safe, unsafe = await _two_calls_at_one(home)
        second = await home.worker("agent2", free=True)

        home.bus.hang(first.address)
        hung = home.now
        await asyncio.sleep(SUSPECT_AFTER)
        answers = [await home.ask(READ)(n=n) for n in range(10)]

        assert answers == [[second.name, n] for n in range(10)]
        assert await safe == [second.name, 1]
        assert home.now - hung <= LEASE + 2
        assert (await problem_of(unsafe)).reason == "lost"
        assert first.begun(READ) == [1]
        # What it does when it wakes is nobody's any more.
        home.bus.resume(first.address)
        first.free.set()
        await eventually(lambda: home.knows(first))
        assert (await home.ask(READ, policy="all")(n=11)) == [
            {"agent": worker.address, "state": "done", "value": [worker.name, 11]}
            for worker in (first, second)
        ]


@virtual_time
async def test_a_worker_that_drains_ends_what_it_has_and_gets_nothing_new() -> None:
    async with world() as home:
        first, safe, unsafe = await _two_calls_at_one(home)
        second = await home.worker("agent2", free=True)

        drained = asyncio.create_task(first.life.drain())
        await asyncio.sleep(0)
        answers = [await home.ask(READ)(n=n) for n in range(10)]
        first.free.set()

        assert await drained
        assert answers == [[second.name, n] for n in range(10)]
        assert [await safe, await unsafe] == [[first.name, 1], [first.name, 2]]


@virtual_time
@pytest.mark.parametrize("direct", [False, True], ids=["brokered", "direct"])
async def test_a_caller_that_disappears_has_its_call_cancelled_after_the_grace(
    direct: bool,
) -> None:
    async with world() as home:
        worker = await home.worker()
        caller = await home.caller("caller2")
        call = home.ask(WRITE, caller, to=worker.address if direct else None)(n=7)
        await eventually(worker.is_running)

        home.bus.kill(caller.address)
        gone = home.now
        await asyncio.sleep(GRACE - 1)
        assert worker.running == [7]
        await eventually(lambda: worker.stopped == [7])

        assert GRACE <= home.now - gone <= GRACE + 1
        assert home.dispatcher.broker.in_flight == 0
        call.cancel()


@virtual_time
async def test_a_caller_that_disappears_while_its_call_waits_leaves_nothing_behind() -> None:
    async with world() as home:
        worker = await home.worker(slots=1)
        running = home.ask(READ)(n=1)
        await eventually(worker.is_running)
        caller = await home.caller("caller2")
        home.ask(READ, caller)(n=2)
        await eventually(lambda: home.dispatcher.broker.waiting == 1)

        home.bus.kill(caller.address)
        await eventually(lambda: home.dispatcher.broker.waiting == 0, GRACE + 1)
        worker.free.set()

        assert await running == [worker.name, 1]
        await asyncio.sleep(10)
        assert worker.begun() == [1]


@virtual_time
@pytest.mark.parametrize("away", [3.0, 60.0])
@pytest.mark.parametrize("direct", [False, True], ids=["brokered", "direct"])
async def test_a_final_to_an_absent_caller_is_sent_again_when_it_returns(
    direct: bool, away: float
) -> None:
    async with world() as home:
        worker = await home.worker()
        call = home.ask(WRITE, to=worker.address if direct else None)(n=1)
        await eventually(worker.is_running)

        home.bus.up = False
        home.bus.cut(home.client.address)
        worker.free.set()
        await asyncio.sleep(away)
        assert not call.done()
        home.bus.up = True

        async with asyncio.timeout(35):
            assert await call == [worker.name, 1]
        await eventually(lambda: worker.life.session.kept == 0)
        assert worker.begun() == [1]


@virtual_time
async def test_calls_go_on_when_the_dispatcher_was_only_cut_off() -> None:
    async with world() as home:
        first, safe, unsafe = await _two_calls_at_one(home)

        home.bus.up = False
        home.bus.cut(home.dispatcher.address)
        await asyncio.sleep(PATIENCE - 4)
        first.free.set()
        home.bus.up = True

        assert [await safe, await unsafe] == [[first.name, 1], [first.name, 2]]
        assert counted(home.ledger, lambda e: e.op) == {READ: 1, WRITE: 1}


@virtual_time
async def test_calls_of_a_dispatcher_that_dies_end_soon_and_it_is_told_that_they_may_be_done() -> (
    None
):
    async with world() as home:
        _, safe, unsafe = await _two_calls_at_one(home)

        home.bus.kill(home.dispatcher.address)
        died = home.now

        for call in (safe, unsafe):
            problem = await problem_of(call)
            assert problem.reason == "lost" and "may have been done" in problem.text
        assert home.now - died <= PATIENCE + 1
        assert counted(home.ledger, lambda e: e.op) == {READ: 1, WRITE: 1}


@virtual_time
async def test_a_call_is_not_begun_again_by_the_next_life_of_its_dispatcher() -> None:
    async with world() as home:
        first, safe, unsafe = await _two_calls_at_one(home)

        # As with the embedded server, which goes with its dispatcher.
        home.bus.kill(home.dispatcher.address)
        home.bus.restart()
        await home.dispatch()
        await eventually(lambda: home.knows(first), 30)
        problems = [await problem_of(unsafe), await problem_of(safe)]

        assert {problem.reason for problem in problems} == {"lost"}
        assert counted(home.ledger, lambda e: e.op) == {READ: 1, WRITE: 1}
        first.free.set()
        assert await home.ask(WRITE)(n=3) == [first.name, 3]
        await eventually(lambda: first.life.session.kept == 0)


@virtual_time
@pytest.mark.parametrize("down", [0.0, 20.0])
async def test_a_server_restarts_under_fifty_agents_and_all_work_again_by_themselves(
    down: float,
) -> None:
    async with world() as home:
        workers = [await home.worker(f"agent{n}") for n in range(50)]
        calls = [home.ask(op)(n=n) for n in range(50) for op in (READ, WRITE)]
        await eventually(lambda: len(home.ledger) == 100)

        home.bus.up = False
        home.bus.restart()
        await asyncio.sleep(down)
        home.bus.up = True

        await eventually(lambda: all(home.knows(worker) for worker in workers), 30)
        for worker in workers:
            worker.free.set()
        answers = await asyncio.gather(*(ends(call) for call in calls))
        assert not [answer for answer in answers if isinstance(answer, Problem)]
        assert sorted(n for _, n in answers) == sorted([*range(50), *range(50)])
        # What is safe may have moved before its worker was back.
        assert (
            counted(home.ledger, lambda e: (e.op, e.n)).items()
            >= {(WRITE, n): 1 for n in range(50)}.items()
        )
        rows = await home.ask(READ, policy="all")(n=1)
        assert [row["state"] for row in rows] == ["done"] * 50
