from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from spinal.bus.call import Call
from spinal.bus.errors import CallError, OperationFailed
from spinal.bus.session import Handler, Request, Session
from spinal.protocols import Error, Final, Json, Message, Problem, Ran, Stanza
from spinal.testing import Faults, ManualClock, MemoryBus, eventually, virtual_time

ANN, THUMBS = "ann@memory.test/desk", "thumbs@memory.test/agent"


@asynccontextmanager
async def agent_on(bus: MemoryBus, handler: Handler, epoch: int = 1) -> AsyncGenerator[Session]:
    async with Session(bus.connection(THUMBS), handler, role="agent", epoch=epoch) as agent:
        yield agent


@asynccontextmanager
async def pair(handler: Handler) -> AsyncGenerator[tuple[MemoryBus, Session, Session]]:
    bus = MemoryBus()
    async with agent_on(bus, handler) as agent, Session(bus.connection(ANN)) as caller:
        caller.send_presence(THUMBS, caller.hello())
        await eventually(lambda: THUMBS in caller.peers and caller.peers[THUMBS].present)
        yield bus, caller, agent


class Work:
    """Counts how often each call ran."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.runs: Counter[str] = Counter()
        self.stopped: list[str] = []

    async def __call__(self, request: Request) -> Json:
        self.runs[request.op.id] += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.stopped.append(request.op.id)
            raise
        return request.op.args.get("n")


def drop_first(kind: str, type: str) -> Faults:
    """Lose the first stanza of this kind and type."""
    numbers = count()
    return Faults(
        drop=1.0,
        applies=lambda s: s.kind == kind and s.type == type and next(numbers) == 0,
    )


def now() -> float:
    return asyncio.get_running_loop().time()


async def reason(call: Call) -> str:
    with pytest.raises(CallError) as ended:
        await call.result()
    return ended.value.reason


@pytest.mark.parametrize("lost", ["set", "result"])
@virtual_time
async def test_a_call_survives_the_loss_of_its_op_or_its_answer(lost: str) -> None:
    work = Work()
    async with pair(work) as (bus, caller, agent):
        bus.faults = drop_first("iq", lost)
        call = caller.call(THUMBS, "/n", {"n": 5})
        assert await call.result() == 5
        assert work.runs == {call.id: 1}
        await eventually(lambda: agent.kept == 0)


@virtual_time
async def test_the_answer_to_an_op_that_was_sent_again_says_so() -> None:
    work = Work()
    async with pair(work) as (bus, caller, _):
        end = now() + 4.9
        bus.faults = Faults(drop=1.0, applies=lambda s: s.sender == THUMBS and now() < end)
        call = caller.call(THUMBS, "/n", {"n": 5})
        assert await call.result() == 5
        assert call.final is not None and call.final.again
        assert work.runs == {call.id: 1}


@virtual_time
async def test_an_answer_that_comes_after_its_stanza_was_given_up_still_counts() -> None:
    work = Work()
    async with pair(work) as (bus, caller, _):
        bus.faults = Faults(delay=(6, 6), applies=lambda s: s.type == "result")
        began = now()
        call = caller.call(THUMBS, "/n", {"n": 5})
        assert await call.result() == 5
        assert now() - began < 7
        assert work.runs == {call.id: 1}


@virtual_time
async def test_everything_that_comes_twice_is_done_once() -> None:
    work = Work(0.1)
    async with pair(work) as (bus, caller, agent):
        bus.faults = Faults(duplicate=1.0)
        calls = [caller.call(THUMBS, "/n", {"n": n}) for n in range(50)]
        assert [await call.result() for call in calls] == list(range(50))
        assert set(work.runs.values()) == {1}
        await eventually(lambda: agent.kept == 0)


def test_over_a_bad_network_each_call_ends_and_runs_once() -> None:
    async def story(seed: int) -> None:
        work = Work(seed % 5 / 5)
        bus = MemoryBus(seed=seed)
        async with agent_on(bus, work), Session(bus.connection(ANN)) as caller:
            bus.faults = Faults(
                delay=(0.0, 0.05 * (seed % 3)),
                drop=(0.0, 0.05, 0.2)[seed % 3],
                duplicate=0.3 * (seed % 2),
                reorder=0.3,
                late=0.5,
            )
            calls = [caller.call(THUMBS, "/n", {"n": n}, timeout=30) for n in range(8)]
            if seed % 4 == 3:
                await asyncio.sleep(0.3)
                bus.cut((ANN, THUMBS)[seed % 8 == 7])
            for number, call in enumerate(calls):
                final = await call.wait()
                assert (final.problem is None and final.value == number) or (
                    final.problem is not None
                    and final.problem.reason in ("no-answer", "deadline", "lost", "unreachable")
                ), (seed, final)
        assert max(work.runs.values(), default=0) <= 1, seed

    for seed in range(200):
        ManualClock().run(story(seed))


@virtual_time
async def test_a_caller_that_was_cut_gets_its_result_when_it_is_back() -> None:
    work = Work(3)
    async with pair(work) as (bus, caller, agent):
        call = caller.call(THUMBS, "/n", {"n": 5})
        await eventually(lambda: call.heard)
        bus.cut(ANN)
        assert not caller.connected
        assert await call.result() == 5
        assert work.runs == {call.id: 1}
        await eventually(lambda: agent.kept == 0)


@virtual_time
async def test_a_call_that_is_made_while_there_is_no_stream_waits_for_one() -> None:
    work = Work()
    async with pair(work) as (bus, caller, _):
        bus.cut(ANN)
        call = caller.call(THUMBS, "/n", {"n": 5})
        assert await call.result() == 5
        assert call.sends == 1


@virtual_time
async def test_an_agent_that_is_gone_loses_its_calls_after_their_patience() -> None:
    async with pair(Work(60)) as (bus, caller, _):
        call = caller.call(THUMBS, "/n", patience=4)
        await eventually(lambda: call.heard)
        began = now()
        bus.kill(THUMBS)
        assert await reason(call) == "lost"
        assert now() - began == pytest.approx(4, abs=0.1)


@virtual_time
async def test_an_agent_that_returns_in_time_keeps_its_calls() -> None:
    work = Work(20)
    async with pair(work) as (bus, caller, _):
        call = caller.call(THUMBS, "/n", {"n": 1}, patience=4)
        await eventually(lambda: call.heard)
        bus.cut(THUMBS)
        assert await call.result() == 1
        assert work.runs == {call.id: 1}


@virtual_time
async def test_an_agent_that_began_a_new_life_loses_its_calls_at_once() -> None:
    bus = MemoryBus()
    async with Session(bus.connection(ANN)) as caller:
        async with agent_on(bus, Work(60), epoch=1):
            call = caller.call(THUMBS, "/n", patience=30)
            await eventually(lambda: call.heard)
            bus.kill(THUMBS)
        work = Work()
        async with agent_on(bus, work, epoch=2) as agent:
            began = now()
            agent.send_presence(ANN, agent.hello())
            assert await reason(call) == "lost"
            assert now() - began < 0.1
            assert not work.runs


@virtual_time
async def test_a_new_life_refuses_what_was_sent_to_the_old_one() -> None:
    bus = MemoryBus()
    old, new = Work(), Work()
    async with Session(bus.connection(ANN)) as caller:
        async with agent_on(bus, old, epoch=1):
            await caller.call(THUMBS, "/n").result()
            # The op arrives and runs, the answer is lost, and the agent dies.
            bus.faults = Faults(drop=1.0, applies=lambda s: s.sender == THUMBS)
            call = caller.call(THUMBS, "/n", patience=30)
            await eventually(lambda: old.runs[call.id])
            bus.kill(THUMBS)
        async with agent_on(bus, new, epoch=2):
            bus.faults = Faults()
            assert await reason(call) == "lost"
            assert not new.runs
            assert await caller.call(THUMBS, "/n", {"n": 3}).result() == 3


@virtual_time
async def test_an_agent_that_restarted_while_we_were_away_does_not_run_it_again() -> None:
    bus = MemoryBus()
    new = Work()
    async with Session(bus.connection(ANN)) as caller:
        async with agent_on(bus, Work(60), epoch=1):
            call = caller.call(THUMBS, "/n", patience=30)
            await eventually(lambda: call.heard)
            bus.up = False
            bus.restart()
        bus.up = True
        async with agent_on(bus, new, epoch=2):
            assert await reason(call) == "lost"
            assert not new.runs


@virtual_time
async def test_an_idle_caller_does_not_lose_the_call_that_shows_it_a_restart() -> None:
    bus = MemoryBus()
    async with Session(bus.connection(ANN)) as caller:
        async with agent_on(bus, Work(), epoch=1):
            await caller.call(THUMBS, "/n").result()
        async with agent_on(bus, Work(1), epoch=2):
            assert await caller.call(THUMBS, "/n", {"n": 3}).result() == 3
            assert caller.peers[THUMBS].epoch == 2


@virtual_time
async def test_a_call_for_another_life_is_refused() -> None:
    async with pair(Work()) as (_, caller, _):
        assert await reason(caller.call(THUMBS, "/n", epoch=7)) == "stale-epoch"
        assert await caller.call(THUMBS, "/n", {"n": 2}, epoch=1).result() == 2


@virtual_time
async def test_a_bounce_after_an_earlier_sending_means_lost_once_patience_is_over() -> None:
    async with pair(Work(60)) as (bus, caller, agent):
        call = caller.call(THUMBS, "/n", patience=5)
        await eventually(lambda: call.heard)
        bus.up = False
        bus.restart()
        await agent.close()
        bus.up = True
        await eventually(lambda: caller.connected)
        began = now()
        assert await reason(call) == "lost"
        assert 4 <= now() - began <= 6


@virtual_time
async def test_after_a_restart_of_the_server_calls_wait_for_their_agents() -> None:
    work = Work(8)
    bus = MemoryBus()
    async with agent_on(bus, work), Session(bus.connection(ANN)) as caller:
        calls = [caller.call(THUMBS, "/n", {"n": n}) for n in range(5)]
        await eventually(lambda: all(call.heard for call in calls))
        bus.up = False
        bus.restart()
        await asyncio.sleep(2)
        bus.up = True
        assert [await call.result() for call in calls] == list(range(5))
        assert set(work.runs.values()) == {1}


@virtual_time
async def test_a_long_absence_of_our_own_does_not_lose_calls() -> None:
    work = Work(40)
    bus = MemoryBus()
    async with agent_on(bus, work), Session(bus.connection(ANN)) as caller:
        call = caller.call(THUMBS, "/n", {"n": 1}, patience=3)
        await eventually(lambda: call.heard)
        bus.cut(THUMBS)
        bus.up = False
        bus.restart()
        agent_is_away = now()
        await asyncio.sleep(7)
        bus.up = True
        await eventually(lambda: caller.connected, 20)
        assert now() - agent_is_away > 3
        assert not call.done


@virtual_time
async def test_the_deadline_ends_a_call_at_both_ends() -> None:
    work = Work(60)
    async with pair(work) as (_, caller, agent):
        began = now()
        call = caller.call(THUMBS, "/n", timeout=2)
        assert await reason(call) == "deadline"
        assert now() - began == pytest.approx(2, abs=0.01)
        await eventually(lambda: work.stopped == [call.id])
        assert now() - began == pytest.approx(2, abs=0.1)
        await eventually(lambda: agent.kept == agent.running == 0)


@virtual_time
async def test_a_call_without_any_time_left_is_not_started() -> None:
    work = Work()
    async with pair(work) as (_, caller, _):
        assert await reason(caller.call(THUMBS, "/n", timeout=0)) in ("expired", "no-answer")
        await asyncio.sleep(1)
        assert not work.runs


@virtual_time
async def test_a_longer_time_than_can_be_told_is_the_longest_that_can() -> None:
    async with pair(Work()) as (_, caller, _):
        assert await caller.call(THUMBS, "/n", {"n": 1}, timeout=float("inf")).result() == 1


@virtual_time
async def test_a_cancel_in_time_stops_the_handler() -> None:
    work = Work(60)
    async with pair(work) as (_, caller, agent):
        call = caller.call(THUMBS, "/n")
        await eventually(lambda: agent.running == 1)
        assert await call.cancel() == "cancelled"
        assert await reason(call) == "cancelled"
        assert work.stopped == [call.id]
        assert await call.cancel() == "late"


@virtual_time
async def test_a_cancel_that_comes_too_late_changes_nothing() -> None:
    work = Work()
    async with pair(work) as (bus, caller, _):
        bus.faults = Faults(delay=(1, 1), applies=lambda s: s.sender == THUMBS)
        call = caller.call(THUMBS, "/n", {"n": 4})
        await eventually(lambda: work.runs[call.id])
        assert await call.cancel() == "late"
        assert await call.result() == 4


@virtual_time
async def test_a_cancel_that_overtakes_its_op_leaves_a_tombstone() -> None:
    work = Work()
    async with pair(work) as (bus, caller, _):
        first = drop_first("iq", "set")
        bus.faults = first
        call = caller.call(THUMBS, "/n", {"n": 4})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await call.cancel() == "unknown"
        bus.faults = Faults(duplicate=1.0)
        assert await reason(call) == "cancelled"
        assert not work.runs


@virtual_time
async def test_giving_up_the_wait_cancels_the_call() -> None:
    work = Work(60)
    async with pair(work) as (_, caller, agent):
        call = caller.call(THUMBS, "/n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await call.result()
        await eventually(lambda: work.stopped == [call.id])
        await eventually(lambda: agent.kept == 0)
        assert not caller.peers[THUMBS].calls


@virtual_time
async def test_a_cancel_given_while_there_is_no_stream_is_said_later() -> None:
    work = Work(60)
    async with pair(work) as (bus, caller, _):
        call = caller.call(THUMBS, "/n")
        await eventually(lambda: call.heard)
        bus.cut(ANN)
        caller.abandon(call)
        await eventually(lambda: work.stopped == [call.id], 5)


@virtual_time
async def test_an_ack_that_was_lost_is_said_again() -> None:
    async with pair(Work()) as (bus, caller, agent):
        await caller.call(THUMBS, "/n").result()
        bus.cut(ANN)
        await eventually(lambda: caller.connected)
        await eventually(lambda: agent.kept == 0)
        await caller.call(THUMBS, "/n").result()
        bus.faults = drop_first("iq", "set")
        await eventually(lambda: agent.kept == 0, 6)


@virtual_time
async def test_a_final_is_acknowledged_when_told_and_not_before() -> None:
    async with pair(Work()) as (_, caller, agent):
        call = caller.call(THUMBS, "/n", {"n": 1}, acknowledge=False)
        assert await call.result() == 1
        await asyncio.sleep(30)
        assert agent.kept == 1
        caller.acknowledge(call)
        await eventually(lambda: agent.kept == 0)


@virtual_time
async def test_a_final_of_an_earlier_life_is_kept_until_somebody_knows_it() -> None:
    async with pair(Work(1)) as (bus, caller, agent):
        call = caller.call(THUMBS, "/n", {"n": 1})
        await eventually(lambda: call.heard)
        bus.kill(ANN)
        told: list[tuple[str, Final]] = []
        known = False

        def on_final(sender: str, final: Final) -> bool:
            told.append((sender, final))
            return known

        async with Session(bus.connection(ANN)) as restarted:
            restarted.on_final = on_final
            restarted.send_presence(THUMBS, restarted.hello())
            await eventually(lambda: len(told) >= 2, 20)
            assert told[0][0] == THUMBS and told[0][1].value == 1
            assert agent.kept == 1
            known = True
            await eventually(lambda: agent.kept == 0, 40)


@virtual_time
async def test_one_id_cannot_be_open_twice() -> None:
    async with pair(Work(1)) as (_, caller, _):
        call = caller.call(THUMBS, "/n", {"n": 1}, id="mine")
        with pytest.raises(ValueError, match="mine"):
            caller.call(THUMBS, "/n", {"n": 1}, id="mine")
        second = caller.call(THUMBS, "/n", {"n": 2}, id="mine", attempt=2)
        assert await call.result() == 1
        assert await second.result() == 2


@virtual_time
async def test_nonsense_in_an_answer_ends_the_calls_of_its_stanza() -> None:
    bus = MemoryBus()
    async with Session(bus.connection(ANN)) as caller:

        class Liar:
            def opened(self) -> None: ...
            def closed(self, reason: str) -> None: ...
            def received(self, stanza: Stanza) -> None:
                if stanza.type == "set":
                    liar.send(Stanza("iq", "result", ANN, id=stanza.id, body=b'[{"type":1}]'))

            def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
                return False

            def said(self, message: Message) -> None: ...

        liar = bus.connection(THUMBS)
        await liar.open(Liar())
        with pytest.raises(OperationFailed, match="nonsense"):
            await caller.call(THUMBS, "/n").result()
        await liar.close()


@virtual_time
async def test_a_refusal_is_the_same_when_the_op_is_sent_again() -> None:
    busy = True
    runs: list[str] = []

    async def handler(request: Request) -> Json:
        if busy:
            raise CallError.of(Problem("busy"))
        runs.append(request.op.id)
        return None

    async with pair(handler) as (bus, caller, _):
        bus.faults = drop_first("iq", "result")
        call = caller.call(THUMBS, "/n")
        await asyncio.sleep(1)
        busy = False
        assert await reason(call) == "busy"
        assert not runs


@virtual_time
async def test_hundreds_of_absences_leave_no_timers_behind() -> None:
    async with pair(Work(300)) as (bus, caller, _):
        call = caller.call(THUMBS, "/n", timeout=600)
        await eventually(lambda: call.heard)
        for _ in range(50):
            bus.cut(THUMBS)
            await eventually(lambda: caller.peers[THUMBS].present, 15)
        loop: Any = asyncio.get_running_loop()
        scheduled: list[asyncio.TimerHandle] = loop._scheduled
        assert len([timer for timer in scheduled if not timer.cancelled()]) < 15


@virtual_time
async def test_a_call_that_is_cancelled_in_the_turn_in_which_it_was_made_ends_at_both_ends() -> (
    None
):
    work = Work()
    async with pair(work) as (_, caller, agent):
        call = caller.call(THUMBS, "/n")
        caller.abandon(call)
        assert await reason(call) == "cancelled"
        await asyncio.sleep(2)
        assert agent.running == agent.kept == 0
        assert not work.runs


@virtual_time
async def test_a_caller_that_gave_up_comes_back_for_the_final_to_be_dropped() -> None:
    async with pair(Work(3)) as (bus, caller, agent):
        bus.faults = Faults(drop=1.0, applies=lambda s: b"cancel" in (s.body or b""))
        call = caller.call(THUMBS, "/n", timeout=5)
        await eventually(lambda: call.heard)
        caller.abandon(call)
        bus.cut(ANN)
        await eventually(lambda: agent.kept == 1)
        await eventually(lambda: agent.kept == 0, 5)


@virtual_time
async def test_a_restarted_agent_that_refuses_what_the_old_one_took_has_lost_it() -> None:
    bus = MemoryBus()

    async def busy(request: Request) -> Json:
        raise CallError.of(Problem("busy"))

    async with Session(bus.connection(ANN)) as caller:
        async with Session(bus.connection(THUMBS), Work(60)):
            call = caller.call(THUMBS, "/n", patience=60)
            await eventually(lambda: call.heard)
        async with Session(bus.connection(THUMBS), busy):
            bus.cut(ANN)
            assert await reason(call) == "lost"


@virtual_time
async def test_an_agent_that_takes_back_what_it_accepted_ends_that_call_alone() -> None:
    work = Work(5)
    async with pair(work) as (_, caller, agent):
        bad, good = caller.call(THUMBS, "/n"), caller.call(THUMBS, "/n", {"n": 1})
        await eventually(lambda: bad.heard)
        agent.say(ANN, Error(bad.id, problem=Problem("busy")))
        with pytest.raises(OperationFailed, match="broke the protocol"):
            await bad.result()
        assert await good.result() == 1
        assert work.stopped == [bad.id]


@virtual_time
async def test_a_dispatcher_that_is_away_just_now_is_waited_for() -> None:
    bus = MemoryBus()
    dispatcher = "dispatcher.memory.test"

    async def answer(request: Request) -> Json:
        return request.op.op

    async with Session(bus.connection("c@memory.test/1"), dispatchers=[dispatcher]) as caller:
        call = caller.call(dispatcher, "/x")
        await asyncio.sleep(3.0)
        assert not call.done

        async with Session(bus.connection(dispatcher), answer, role="dispatcher"):
            assert await call.result() == "/x"


@virtual_time
async def test_a_dispatcher_that_stays_away_is_not_there_and_nothing_ran() -> None:
    bus = MemoryBus()
    dispatcher = "dispatcher.memory.test"

    async with Session(bus.connection("c@memory.test/1"), dispatchers=[dispatcher]) as caller:
        final = await caller.call(dispatcher, "/x", patience=10.0).wait()

    assert final.problem is not None
    assert (final.problem.reason, final.problem.meaning.ran) == ("unreachable", Ran.NO)
