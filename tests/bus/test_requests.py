from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest

from spinal.bus import inbox, requests
from spinal.bus.errors import CallError, OperationFailed, Unreached
from spinal.bus.requests import Relayed
from spinal.bus.session import Handler, Request, Session
from spinal.protocols import (
    Ack,
    Cancel,
    Cancelled,
    Data,
    Error,
    Final,
    Json,
    Op,
    Problem,
    Progress,
    Stanza,
)
from spinal.testing import Faults, MemoryBus, eventually, virtual_time

ANN, THUMBS = "ann@memory.test/desk", "thumbs@memory.test/agent"


@asynccontextmanager
async def pair(
    handler: Handler, dispatchers: tuple[str, ...] = ()
) -> AsyncGenerator[tuple[MemoryBus, Session, Session]]:
    bus = MemoryBus()
    async with (
        Session(
            bus.connection(THUMBS), handler, role="agent", epoch=1, dispatchers=dispatchers
        ) as agent,
        Session(bus.connection(ANN)) as caller,
    ):
        caller.send_presence(THUMBS, caller.hello())
        await eventually(lambda: THUMBS in caller.peers and caller.peers[THUMBS].present)
        yield bus, caller, agent


def now() -> float:
    return asyncio.get_running_loop().time()


class Waiting:
    """A handler that waits until it is stopped."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.stopped: list[float] = []

    async def __call__(self, request: Request) -> Json:
        self.began.append(request.op.id)
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.append(now())
        return None


async def quick(request: Request) -> Json:
    return 1


@virtual_time
async def test_a_final_for_a_caller_that_is_away_is_said_again_when_it_returns() -> None:
    async def slow(request: Request) -> Json:
        await asyncio.sleep(2)
        return "kept"

    async with pair(slow) as (bus, caller, agent):
        call = caller.call(THUMBS, "/slow")
        await eventually(lambda: call.heard)
        bus.up = False
        bus.cut(ANN)
        await eventually(lambda: agent.kept == 1)
        await asyncio.sleep(20)
        assert not call.done
        bus.up = True
        assert await call.result() == "kept"
        await eventually(lambda: agent.kept == 0)


@virtual_time
async def test_a_kept_final_is_not_given_to_another_program_of_the_account() -> None:
    async with pair(quick) as (bus, caller, agent):
        bus.faults = Faults(drop=1.0, applies=lambda s: s.to == ANN)
        call = caller.call(THUMBS, "/quick")
        await eventually(lambda: agent.kept == 1)
        async with Session(bus.connection("ann@memory.test/other")) as other:
            other.send_presence(THUMBS, other.hello())
            await asyncio.sleep(1)
            assert agent.kept == 1
        bus.faults = Faults()
        assert await call.result() == 1


@virtual_time
async def test_a_final_that_nobody_takes_is_dropped_in_the_end() -> None:
    async with pair(quick) as (bus, caller, agent):
        bus.faults = Faults(
            drop=1.0,
            applies=lambda s: s.sender == ANN and s.type == "set" and b"ack" in (s.body or b""),
        )
        await caller.call(THUMBS, "/quick", timeout=5).result()
        await asyncio.sleep(requests.KEEP)
        assert agent.kept == 1
        await asyncio.sleep(10)
        assert agent.kept == 0


@virtual_time
async def test_a_full_store_of_finals_takes_no_work() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "MAX_KEPT", 3)
        async with pair(quick) as (_, caller, agent):
            calls = [caller.call(THUMBS, "/quick", acknowledge=False) for _ in range(3)]
            for call in calls:
                await call.result()
            assert agent.full
            with pytest.raises(Unreached) as busy:
                await caller.call(THUMBS, "/quick").result()
            assert busy.value.reason == "busy" and busy.value.problem.after
            for call in calls:
                caller.acknowledge(call)
            await eventually(lambda: not agent.full)
            assert await caller.call(THUMBS, "/quick").result() == 1


@virtual_time
async def test_who_acknowledges_nothing_is_refused_before_the_others_are() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "MAX_KEPT", 6)
        async with pair(quick) as (bus, caller, agent):
            for call in [caller.call(THUMBS, "/quick", acknowledge=False) for _ in range(3)]:
                await call.result()
            assert not agent.full
            with pytest.raises(Unreached, match="your results wait") as busy:
                await caller.call(THUMBS, "/quick").result()
            assert busy.value.reason == "busy"
            async with Session(bus.connection("bob@memory.test/x")) as other:
                assert await other.call(THUMBS, "/quick").result() == 1


@virtual_time
async def test_waiting_for_acknowledgements_ends_when_they_came_or_in_time() -> None:
    async with pair(quick) as (_, caller, agent):
        assert await agent.acknowledged(0)
        call = caller.call(THUMBS, "/quick", acknowledge=False)
        await call.result()
        assert not await agent.acknowledged(3)
        assert agent.holds(ANN) == [(call.id, 1)]
        caller.acknowledge(call)
        assert await agent.acknowledged(3)
        assert agent.holds(ANN) == []


@virtual_time
async def test_the_calls_of_a_caller_that_is_gone_are_stopped_after_a_grace() -> None:
    handler = Waiting()
    async with pair(handler) as (bus, caller, agent):
        caller.call(THUMBS, "/wait", timeout=600)
        await eventually(lambda: handler.began)
        gone = now()
        bus.kill(ANN)
        await eventually(lambda: handler.stopped, 20)
        assert handler.stopped[0] - gone == pytest.approx(10, abs=0.1)
        assert agent.running == 0


@virtual_time
async def test_the_calls_of_a_caller_that_returns_go_on() -> None:
    handler = Waiting()
    async with pair(handler) as (bus, caller, _):
        caller.call(THUMBS, "/wait", timeout=600)
        await eventually(lambda: handler.began)
        for _ in range(3):
            bus.up = False
            bus.cut(ANN)
            await asyncio.sleep(2)
            bus.up = True
            await eventually(lambda: caller.connected)
            await asyncio.sleep(12)
        assert not handler.stopped


@virtual_time
async def test_the_calls_of_a_dispatcher_that_is_gone_go_on() -> None:
    handler = Waiting()
    async with pair(handler, dispatchers=(ANN,)) as (bus, caller, _):
        caller.call(THUMBS, "/wait", timeout=60)
        await eventually(lambda: handler.began)
        gone = now()
        bus.kill(ANN)
        await eventually(lambda: handler.stopped, 100)
        assert handler.stopped[0] - gone == pytest.approx(60, abs=1)


@virtual_time
async def test_a_caller_that_went_while_we_were_away_is_noticed() -> None:
    handler = Waiting()
    async with pair(handler) as (bus, caller, agent):
        caller.call(THUMBS, "/wait", timeout=600)
        await eventually(lambda: handler.began)
        bus.up = False
        bus.restart()
        await caller.close()
        await asyncio.sleep(30)
        assert not handler.stopped
        bus.up = True
        await eventually(lambda: agent.connected, 20)
        back = now()
        await eventually(lambda: handler.stopped, 20)
        assert handler.stopped[0] - back <= 10.1


@virtual_time
async def test_a_caller_that_stayed_while_the_server_was_restarted_keeps_its_calls() -> None:
    handler = Waiting()
    async with pair(handler) as (bus, caller, agent):
        caller.call(THUMBS, "/wait", timeout=600)
        await eventually(lambda: handler.began)
        for _ in range(10):
            bus.up = False
            bus.restart()
            await asyncio.sleep(3)
            bus.up = True
            await eventually(lambda: agent.connected and caller.connected, 20)
            await asyncio.sleep(15)
            assert not handler.stopped
            assert caller.peers[THUMBS].present and agent.peers[ANN].present


class _Unspeakable(Exception):
    def __str__(self) -> NoReturn:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        ValueError("half \udcff of a character"),
        KeyError(3),
        TimeoutError("its own"),
        SystemExit(3),
        asyncio.CancelledError(),
        RecursionError(),
        _Unspeakable(),
        BaseExceptionGroup("several", [ValueError("one")]),
        CallError.of(Problem("failed", "half \ud800")),
        CallError.of(Problem("refused", "half \ud800")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_handler_raises_the_call_ends_and_the_agent_lives(error: BaseException) -> None:
    @virtual_time
    async def story() -> None:
        async def handler(request: Request) -> Json:
            if request.op.op == "/raise":
                raise error
            return 1

        async with pair(handler) as (_, caller, agent):
            with pytest.raises(OperationFailed):
                await caller.call(THUMBS, "/raise").result()
            assert await caller.call(THUMBS, "/fine").result() == 1
            await eventually(lambda: agent.kept == 0)

    story()


@virtual_time
async def test_a_handler_that_awaits_something_cancelled_has_failed() -> None:
    async def handler(request: Request) -> Json:
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        await asyncio.sleep(1)
        return await other

    async with pair(handler) as (_, caller, agent):
        with pytest.raises(OperationFailed, match="cancelled"):
            await caller.call(THUMBS, "/x").result()
        assert agent.running == 0


@virtual_time
async def test_a_handler_that_does_not_let_itself_be_stopped_ends_with_its_value() -> None:
    async def stubborn(request: Request) -> Json:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        return "anyway"

    async with pair(stubborn) as (_, caller, agent):
        call = caller.call(THUMBS, "/x")
        await eventually(lambda: agent.running == 1)
        assert await call.cancel() == "cancelled"
        assert await call.result() == "anyway"


@virtual_time
async def test_a_relayed_value_names_who_did_it() -> None:
    async def relay(request: Request) -> Json:
        done = Final("j-1", value=5, agent="other@memory.test/agent", ran=17, cpu=11, memory=4096)
        return Relayed(done)

    async with pair(relay) as (_, caller, _):
        call = caller.call(THUMBS, "/x")
        assert await call.result() == 5
        assert call.final is not None
        assert (call.final.agent, call.final.ran) == ("other@memory.test/agent", 17)
        assert (call.final.cpu, call.final.memory) == (11, 4096)


@virtual_time
async def test_a_final_says_what_the_processes_cost_that_the_handler_counted() -> None:
    async def handler(request: Request) -> Json:
        if request.op.op == "/costs":
            request.spent(0.25, 4096)
            request.spent(0.5, 2048)
        if request.op.args.get("fails"):
            raise CallError.of(Problem("failed"))
        return None

    async with pair(handler) as (_, caller, _):
        found: list[tuple[int | None, int | None]] = []
        for op, args in (("/costs", {}), ("/costs", {"fails": True}), ("/free", {})):
            final = await caller.call(THUMBS, op, args).wait()
            found.append((final.cpu, final.memory))
        assert found == [(750, 4096), (750, 4096), (None, None)]


@virtual_time
async def test_no_operations_and_features_that_are_not_understood_are_refused() -> None:
    bus = MemoryBus()
    async with (
        Session(bus.connection(THUMBS)) as idle,
        Session(bus.connection(ANN)) as caller,
    ):
        with pytest.raises(CallError) as refused:
            await caller.call(THUMBS, "/x").result()
        assert refused.value.reason == "unknown-op"
        (answer,) = await caller.ask(THUMBS, Op("a-1", op="/x", left=1000, must=("shadow",)))
        assert answer.type == "error" and "shadow" in str(answer)
        assert idle.running == 0


@virtual_time
async def test_ids_are_remembered_until_their_deadline_and_not_much_longer() -> None:
    async with pair(quick) as (_, caller, agent):
        remembered = agent._requests._done  # pyright: ignore[reportPrivateUsage]
        for _ in range(10):
            await caller.call(THUMBS, "/quick", timeout=20).result()
        await eventually(lambda: len(remembered) == 10)
        await asyncio.sleep(21 + requests.LATE_BY)
        assert not remembered


@virtual_time
async def test_an_op_that_comes_late_for_the_second_time_does_not_run_again() -> None:
    ran: list[str] = []

    async def handler(request: Request) -> Json:
        ran.append(request.op.id)
        return None

    async with pair(handler) as (_, caller, _):
        (answer,) = await caller.ask(THUMBS, Op("a-1", op="/x", left=5000))
        assert isinstance(answer, Final)
        await caller.ask(THUMBS, Ack("a-1"))
        # Written 2 s before the deadline, and 5 s on its way.
        await asyncio.sleep(8)
        (answer,) = await caller.ask(THUMBS, Op("a-1", op="/x", left=2000))
        assert isinstance(answer, Error) and answer.problem.reason == "already-done"
        assert ran == ["a-1"]


@virtual_time
async def test_a_value_above_the_inline_limit_ends_the_call_with_a_final() -> None:
    async def large(request: Request) -> Json:
        return "x" * 33_000

    async with pair(large) as (_, caller, _):
        (answer,) = await caller.ask(THUMBS, Op("a-1", op="/large", left=5000))
        assert isinstance(answer, Final) and answer.problem is not None
        assert answer.problem.reason == "too-large"


@virtual_time
async def test_a_tombstone_refuses_each_copy_of_its_op() -> None:
    ran: list[str] = []

    async def handler(request: Request) -> Json:
        ran.append(request.op.id)
        return None

    async with pair(handler) as (_, caller, _):
        assert await caller.ask(THUMBS, Cancel("a-1", left=5000)) == [
            Cancelled("a-1", state="unknown")
        ]
        for _ in range(3):
            (answer,) = await caller.ask(THUMBS, Op("a-1", op="/x", left=4000))
            assert isinstance(answer, Error) and answer.problem.reason == "cancelled"
        assert not ran
        await asyncio.sleep(6 + requests.LATE_BY)
        (answer,) = await caller.ask(THUMBS, Op("a-1", op="/x", left=4000))
        assert isinstance(answer, Final) and ran == ["a-1"]


@virtual_time
async def test_a_stream_never_has_more_unanswered_than_its_window() -> None:
    most = 0

    async def numbers(request: Request) -> Json:
        nonlocal most
        for number in range(20):
            await request.data(number)
            most = max(most, len(request.untaken or ()))
        return "end"

    async with pair(numbers) as (_, caller, _):
        call = caller.call(THUMBS, "/numbers", window=3)
        found: list[Json] = []
        async for item in call:
            await asyncio.sleep(0.5)
            assert isinstance(item, Data)
            found.append(item.value)
        assert found == list(range(20))
        assert await call.result() == "end"
        assert most == 3


@virtual_time
async def test_several_writers_of_one_stream_all_get_their_turn() -> None:
    async def numbers(request: Request) -> Json:
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(request.data(number))
        return None

    async with pair(numbers) as (_, caller, _):
        call = caller.call(THUMBS, "/numbers", window=1)
        found = {item.value async for item in call if isinstance(item, Data)}
        assert found == set(range(10))


@virtual_time
async def test_a_reader_that_leaves_stops_the_stream() -> None:
    handler_ended: list[float] = []

    async def endless(request: Request) -> Json:
        try:
            number = 0
            while True:
                await request.data(number)
                number += 1
        finally:
            handler_ended.append(now())

    async with pair(endless) as (_, caller, agent):
        call = caller.call(THUMBS, "/endless", window=2)
        async for _ in call:
            break
        await eventually(lambda: handler_ended)
        await eventually(lambda: agent.running == agent.kept == 0)
        assert not caller.peers[THUMBS].calls


@virtual_time
async def test_a_stream_that_nobody_reads_is_dropped_by_waiting_for_the_result() -> None:
    async def numbers(request: Request) -> Json:
        for number in range(10):
            await request.data(number)
        return "end"

    async with pair(numbers) as (_, caller, _):
        assert await caller.call(THUMBS, "/numbers", window=1).result() == "end"
        assert await caller.call(THUMBS, "/numbers").result() == "end"


@virtual_time
async def test_a_stream_survives_cuts_without_loss_or_doubles() -> None:
    async def numbers(request: Request) -> Json:
        for number in range(40):
            await request.data(number)
            await asyncio.sleep(0.2)
        return "end"

    async with pair(numbers) as (bus, caller, _):
        call = caller.call(THUMBS, "/numbers", window=4)
        found: list[Json] = []
        async for item in call:
            assert isinstance(item, Data)
            found.append(item.value)
            if len(found) in (5, 6, 17, 30):
                bus.cut(ANN)
            if len(found) == 20:
                bus.cut(THUMBS)
            await asyncio.sleep(0.1)
        assert found == list(range(40))
        assert await call.result() == "end"


@virtual_time
async def test_data_beyond_the_window_ends_the_call() -> None:
    handler = Waiting()
    async with pair(handler) as (_, caller, agent):
        call = caller.call(THUMBS, "/wait", window=2)
        await eventually(lambda: call.heard)
        for number in range(4):
            agent.say(ANN, Data(call.id, seq=number))
        with pytest.raises(CallError, match="window"):
            async for _ in call:
                await asyncio.sleep(1)
            await call.result()
        await eventually(lambda: handler.stopped)


@virtual_time
async def test_a_piece_of_data_that_is_too_large_is_the_handlers_mistake() -> None:
    async def large(request: Request) -> Json:
        await request.data("x" * 33_000)
        return None

    async with pair(large) as (_, caller, _):
        with pytest.raises(CallError, match="blob"):
            await caller.call(THUMBS, "/large", window=1).result()


@virtual_time
async def test_what_is_said_after_the_end_is_not_sent() -> None:
    said: list[asyncio.Task[None]] = []

    async def handler(request: Request) -> Json:
        async def later() -> None:
            await asyncio.sleep(1)
            request.progress(1)
            request.log("late")
            await request.data(1)

        said.append(asyncio.ensure_future(later()))
        return None

    async with pair(handler) as (bus, caller, agent):
        await caller.call(THUMBS, "/x", window=1).result()
        await eventually(lambda: agent.kept == 0)
        seen: list[Stanza] = []

        def note(stanza: Stanza) -> bool:
            seen.append(stanza)
            return False

        bus.faults = Faults(applies=note)
        await said[0]
        await asyncio.sleep(1)
        assert not seen


@virtual_time
async def test_news_that_nobody_reads_are_bounded() -> None:
    async def chatter(request: Request) -> Json:
        for number in range(2 * inbox.MAX_NEWS):
            request.progress(number)
        await request.data("data")
        return None

    async with pair(chatter) as (_, caller, _):
        call = caller.call(THUMBS, "/chatter", window=1)
        # The final comes once the piece of data after all of them was taken by the reader.
        await eventually(lambda: call.heard)
        await asyncio.sleep(1)
        items = [item async for item in call]
        assert len(items) == inbox.MAX_NEWS + 1
        last = items[-2]
        assert isinstance(last, Progress) and last.done == 2 * inbox.MAX_NEWS - 1
