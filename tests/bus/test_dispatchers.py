"""Several dispatchers of one home are one caller to an agent."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import pytest

from spinal.bus.call import Call
from spinal.bus.requests import Request
from spinal.bus.session import GRACE, Handler, Session
from spinal.protocols import Ack, Cancel, Cancelled, Data, Error, Final, Json, Op
from spinal.testing import Faults, MemoryBus, eventually, virtual_time

ANN, THUMBS = "ann@memory.test/desk", "thumbs@memory.test/agent"
HOME = ("hub.memory.test", "hub@memory.test/two", "third.memory.test")


@asynccontextmanager
async def home(
    handler: Handler,
) -> AsyncGenerator[tuple[MemoryBus, Session, list[Session]]]:
    """An agent and two dispatchers, which know each other."""
    async with AsyncExitStack() as stack:
        bus = MemoryBus()
        agent = await stack.enter_async_context(
            Session(bus.connection(THUMBS), handler, role="agent", epoch=1, dispatchers=HOME)
        )
        hubs = [await stack.enter_async_context(hub(bus, address)) for address in HOME[:2]]
        for one in hubs:
            await greet(agent, one)
        yield bus, agent, hubs


def now() -> float:
    return asyncio.get_running_loop().time()


def hub(bus: MemoryBus, address: str, epoch: int = 1) -> Session:
    return Session(bus.connection(address), role="dispatcher", epoch=epoch)


async def greet(agent: Session, one: Session) -> None:
    one.send_presence(THUMBS, one.hello())
    await eventually(lambda: THUMBS in one.peers and one.peers[THUMBS].present)
    await eventually(lambda: agent.peers[one.address].present)


def ask(one: Session, id: str = "job1", **options: Any) -> Call:
    options.setdefault("timeout", 600.0)
    return one.call(THUMBS, "/x", id=id, epoch=1, **options)


class Counted:
    """A handler that counts its runs and ends when it may."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.free = defaultdict[str, asyncio.Event](asyncio.Event)

    async def __call__(self, request: Request) -> Json:
        self.ran.append(request.op.id)
        await self.free[request.op.id].wait()
        return "once"


@virtual_time
async def test_what_one_dispatcher_began_another_one_takes_over_without_a_second_run() -> None:
    handler = Counted()
    async with home(handler) as (_, agent, (one, two)):
        first = ask(one, acknowledge=False)
        await eventually(lambda: first.heard)
        second = ask(two, acknowledge=False)
        await eventually(lambda: second.heard)
        assert agent.holds(HOME[0]) == agent.holds(HOME[1]) == [("job1", 1)]
        handler.free["job1"].set()
        assert await second.result() == "once"
        assert not first.done, "the end is for who asked last"
        await eventually(lambda: first.done, 5, "who asked before is told if nobody takes it")
        assert agent.holds(HOME[2]) == [("job1", 1)], "it is kept"
        one.leave(first)
        again = await ask(one).wait()
        assert again.value == "once" and again.again
        await eventually(lambda: agent.kept == 0)
        assert handler.ran == ["job1"]


@virtual_time
async def test_a_dispatcher_that_takes_over_within_the_answer_window_gets_the_end() -> None:
    handler = Counted()
    async with home(handler) as (_, agent, (one, two)):
        first = ask(one)
        await eventually(lambda: handler.ran, what="it runs")
        assert not first.heard, "the window is open"
        second = ask(two)
        await eventually(lambda: second.heard)
        assert first.heard, "the stanza of the first one was answered"
        handler.free["job1"].set()
        assert await second.result() == "once"
        await eventually(lambda: agent.kept == 0)
        assert not first.done and handler.ran == ["job1"]
        one.leave(first)


@virtual_time
async def test_any_dispatcher_may_cancel_and_acknowledge_and_no_caller_may() -> None:
    handler = Counted()
    async with home(handler) as (bus, agent, (one, two)):
        call = ask(one, acknowledge=False)
        await eventually(lambda: call.heard)
        async with Session(bus.connection(ANN)) as caller:
            (answer,) = await caller.ask(THUMBS, Cancel("job1"))
            assert answer == Cancelled("job1", state="unknown")
            await caller.ask(THUMBS, Ack("job1"))
            assert agent.holds(ANN) == []
        (answer,) = await two.ask(THUMBS, Cancel("job1"))
        assert answer == Cancelled("job1", state="cancelled")
        final = await call.wait()
        assert final.problem is not None and final.problem.reason == "cancelled"
        assert agent.kept == 1
        await two.ask(THUMBS, Ack("job1"))
        assert agent.kept == 0
        (answer,) = await one.ask(THUMBS, Op("job1", op="/x", left=1000, epoch=1))
        assert isinstance(answer, Error) and answer.problem.reason == "already-done"


@virtual_time
async def test_a_dispatcher_asks_again_in_its_next_life() -> None:
    handler = Counted()
    async with home(handler) as (bus, agent, (one, _)):
        first = ask(one)
        await eventually(lambda: first.heard)
        bus.kill(HOME[0])
        async with hub(bus, HOME[0], epoch=2) as again:
            await greet(agent, again)
            second = ask(again)
            await eventually(lambda: second.heard)
            handler.free["job1"].set()
            assert await second.result() == "once"
            await eventually(lambda: agent.kept == 0)
        assert handler.ran == ["job1"]


@virtual_time
async def test_the_end_that_a_dead_dispatcher_does_not_come_for_is_said_to_another_one() -> None:
    heard: list[tuple[float, str]] = []
    handler = Counted()
    async with home(handler) as (bus, agent, (one, two)):

        def late(sender: str, final: Final) -> bool:
            heard.append((now(), final.id))
            return True

        two.on_final = late
        calls = [ask(one, "early", acknowledge=False), ask(one, "late")]
        await eventually(lambda: all(call.heard for call in calls))
        handler.free["early"].set()
        await calls[0].wait()
        died = now()
        bus.kill(HOME[0])
        await eventually(lambda: heard, 20)
        assert heard[0][1] == "early" and heard[0][0] - died >= GRACE - 1
        handler.free["late"].set()
        await eventually(lambda: len(heard) == 2)
        assert heard[1][1] == "late"
        await eventually(lambda: agent.kept == 0)


@virtual_time
async def test_ends_wait_for_the_next_dispatcher_when_all_are_gone() -> None:
    handler = Counted()
    async with home(handler) as (bus, agent, (one, _)):
        call = ask(one)
        await eventually(lambda: call.heard)
        bus.kill(HOME[0])
        bus.kill(HOME[1])
        handler.free["job1"].set()
        await asyncio.sleep(60)
        assert agent.kept == 1
        async with hub(bus, HOME[2]) as third:
            heard: list[str] = []

            def late(sender: str, final: Final) -> bool:
                heard.append(final.id)
                return True

            third.on_final = late
            await greet(agent, third)
            await eventually(lambda: agent.kept == 0)
            assert heard == ["job1"]


@virtual_time
async def test_a_dispatcher_that_was_dropped_and_comes_back_makes_no_second_run() -> None:
    handler = Counted()
    async with home(handler) as (bus, agent, (_, two)):
        call = ask(two)
        await eventually(lambda: call.heard)
        agent.dispatchers -= {HOME[1]}
        bus.cut(HOME[1])
        await eventually(lambda: two.connected and call.sends == 2)
        handler.free["job1"].set()
        assert await call.result() == "once"
        assert handler.ran == ["job1"]


@virtual_time
async def test_a_new_reader_of_a_stream_goes_on_where_the_former_one_left() -> None:
    async def numbers(request: Request) -> Json:
        for number in range(12):
            await request.data(number)
        return "end"

    async with home(numbers) as (bus, agent, (one, two)):
        first = ask(one, window=5)
        async for item in first:
            if isinstance(item, Data) and item.value == 3:
                left_at = item.seq
                bus.hang(HOME[0])
                second = ask(two, window=2)
                found = [i.value async for i in second if isinstance(i, Data)]
                assert found == list(range(left_at + 1, 12))
                assert await second.result() == "end"
                bus.resume(HOME[0])
                one.leave(first)
        await eventually(lambda: agent.kept == 0)


@virtual_time
async def test_a_reader_in_its_next_life_goes_on_and_one_that_takes_no_data_frees_the_stream() -> (
    None
):
    async def numbers(request: Request) -> Json:
        for number in range(12):
            await request.data(number)
        return "end"

    async with home(numbers) as (bus, agent, (one, two)):
        first = ask(one, window=3)
        taken = 0
        async for _ in first:
            taken += 1
            if taken == 5:
                bus.kill(HOME[0])
                break
        async with hub(bus, HOME[0], epoch=2) as again:
            await greet(agent, again)
            second = ask(again, window=3)
            async for item in second:
                if isinstance(item, Data):
                    assert item.seq >= taken - 1
                    break
            assert (await ask(two, "job1", window=0).result()) == "end"
            await eventually(lambda: agent.kept == 0)


@virtual_time
async def test_what_runs_is_listed_before_what_is_kept() -> None:
    handler = Counted()
    async with home(handler) as (_, agent, (one, _)):
        calls = [ask(one, f"job{n}", acknowledge=False) for n in range(3)]
        await eventually(lambda: all(call.heard for call in calls))
        await one.ask(THUMBS, Cancel("job0"))
        await calls[0].wait()
        assert agent.holds(HOME[1]) == [("job1", 1), ("job2", 1), ("job0", 1)]


@pytest.mark.parametrize("how", ["hang", "kill"])
def test_a_dispatcher_that_hangs_or_is_gone_holds_nobody_up_and_piles_nothing_up(how: str) -> None:
    @virtual_time
    async def story() -> None:
        async def chatter(request: Request) -> Json:
            for number in range(100):
                request.progress(number)
                request.log("x" * 1000)
                await request.data(number)
                await asyncio.sleep(0.1)
            return "y" * 1000

        async with home(chatter) as (bus, agent, (one, two)):
            calls = [ask(two, f"job{n}", window=n % 2) for n in range(50)]
            await eventually(lambda: all(call.heard for call in calls))
            getattr(bus, how)(HOME[1])
            assert await ask(one, "other", window=0).result() == "y" * 1000
            link = agent._link  # pyright: ignore[reportPrivateUsage]
            for _ in range(30):
                await asyncio.sleep(10)
                assert not link.peers[HOME[1]].outbox
                assert len(link._iqs) <= len(calls)  # pyright: ignore[reportPrivateUsage]
            began = now()
            assert await ask(one, "third", window=0).result() == "y" * 1000
            assert now() - began < 11
            bus.resume(HOME[1])

    story()


@pytest.mark.parametrize("seed", range(10))
def test_jobs_of_dispatchers_that_come_and_go_over_a_bad_network_run_once(seed: int) -> None:
    @virtual_time
    async def story() -> None:
        chance = Random(seed)
        ran: Counter[str] = Counter()
        done: dict[str, Json] = {}

        async def handler(request: Request) -> Json:
            ran[request.op.id] += 1
            await asyncio.sleep(chance.uniform(0, 3))
            return f"end of {request.op.id}"

        async with AsyncExitStack() as stack:
            bus = MemoryBus(seed=seed)
            agent = await stack.enter_async_context(
                Session(bus.connection(THUMBS), handler, role="agent", epoch=1, dispatchers=HOME)
            )
            here: dict[str, Session] = {}

            async def come(address: str) -> None:
                one = await stack.enter_async_context(hub(bus, address, int(now() * 10)))
                one.on_final = known
                one.send_presence(THUMBS, one.hello())
                here[address] = one

            def known(sender: str, final: Final) -> bool:
                return final.id in done

            async def see_through(id: str) -> None:
                """As dispatchers on one store do: ask again, at whichever is there."""
                while id not in done:
                    await asyncio.sleep(chance.uniform(0, 1))
                    one = here[chance.choice(sorted(here))]
                    try:
                        call = ask(one, id)
                    except ValueError:
                        continue  # It has asked already.
                    waiting = asyncio.create_task(call.wait())
                    await asyncio.wait([waiting], timeout=chance.uniform(0.1, 20))
                    one.leave(call)
                    final = await waiting
                    if final.problem is None:
                        done[id] = final.value
                    else:
                        # The last when a first sending came back, so that nothing ran.
                        honest = ("already-done", "no-answer", "lost", "unreachable")
                        assert final.problem.reason in honest

            async def trouble() -> None:
                while True:
                    await asyncio.sleep(chance.uniform(0.5, 6))
                    address = chance.choice(HOME)
                    match chance.randrange(4):
                        case 0:
                            bus.kill(address)
                            await come(address)
                        case 1:
                            bus.hang(address)
                            await asyncio.sleep(chance.uniform(1, 12))
                            bus.resume(address)
                        case 2:
                            bus.cut(address)
                        case _:
                            bus.cut(THUMBS)

            for address in HOME:
                await come(address)
            bus.faults = Faults(
                delay=(0.0, 0.2),
                drop=0.05,
                duplicate=0.1,
                reorder=0.1,
                applies=lambda stanza: stanza.kind != "presence",
            )
            ids = [f"job{number}" for number in range(30)]
            troubled = asyncio.create_task(trouble())
            async with asyncio.timeout(600):
                await asyncio.gather(*map(see_through, ids))
            troubled.cancel()
            await asyncio.wait([troubled])
            bus.faults = Faults()
            for address in HOME:
                bus.resume(address)
            await eventually(lambda: agent.kept == agent.running == 0, 120)
            assert ran == dict.fromkeys(ids, 1)
            assert done == {id: f"end of {id}" for id in ids}

    story()
