from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from spinal.agents import Agent, Job, Refused
from spinal.agents.life import Life
from spinal.bus import Client
from spinal.bus.maps import Mapped
from spinal.bus.session import Request, Session
from spinal.bus.transports.memory import Faults, MemoryBus
from spinal.protocols import (
    FEATURES,
    LIMITS,
    Codec,
    Data,
    Event,
    Final,
    Json,
    Mirror,
    Op,
    Seen,
    Stanza,
)
from spinal.protocols.values import dumps, escape
from spinal.testing import eventually, virtual_time

ADDRESS = "quick@memory.test/agent"
DISPATCHER = "dispatcher@memory.test/d"
ran: Counter[int] = Counter()
stopped: list[int] = []


def quick(slots: int = 100) -> Agent:
    agent = Agent("quick", slots=slots)

    @agent.op("/double", effects="reads", timeout="2s")
    async def double(x: int, wait: float = 0.0, fail: bool = False) -> int:
        """Give twice as much, after a while."""
        ran[x] += 1
        try:
            if wait:
                await asyncio.sleep(wait)
        except asyncio.CancelledError:
            stopped.append(x)
            raise
        if fail:
            raise Refused(f"{x} is not doubled")
        return 2 * x

    @agent.op("/long", effects="reads")
    async def long(size: int) -> str:
        """Give a text that grows when it is written."""
        return "<" * size

    @agent.op("/reporting", effects="reads")
    async def reporting(job: Job, x: int) -> int:
        """Say something, too."""
        ran[x] += 1
        job.progress(x)
        return x

    return agent


class Place:
    def __init__(self, bus: MemoryBus, life: Life, client: Client) -> None:
        self.bus = bus
        self.life = life
        self.client = client
        self.seen: list[Stanza] = []
        bus.faults = Faults(applies=self._note)

    def _note(self, stanza: Stanza) -> bool:
        self.seen.append(stanza)
        return False

    def said(self, kind: type[Any]) -> list[Any]:
        return [
            event
            for stanza in self.seen
            if stanza.body and stanza.kind == "iq"
            for event in Codec().read(stanza.body)
            if isinstance(event, kind)
        ]

    @property
    def groups(self) -> list[int]:
        """Sizes of the groups that were asked for."""
        return [len(op.each) for op in self.said(Op) if op.each is not None]

    @property
    def singles(self) -> int:
        return sum(op.each is None for op in self.said(Op))

    async def map(self, op: str, over: Iterable[dict[str, Any]], **how: Any) -> list[Mapped]:
        return [mapped async for mapped in self.client.map(op, over, **how)]


@asynccontextmanager
async def place(slots: int = 100, **options: Any) -> AsyncGenerator[Place]:
    ran.clear()
    stopped.clear()
    bus = MemoryBus()
    async with (
        Life(quick(slots), bus.connection(ADDRESS), dispatchers=[DISPATCHER]) as life,
        Client(connection=bus.connection("ann@memory.test/desk"), **options) as client,
    ):
        direct = client.options(to=ADDRESS)
        # How long they run is known only when some have run.
        for op, argument in ("/double", "x"), ("/long", "size"):
            async for _ in direct.map(op, [{argument: number} for number in range(20)]):
                pass
        await asyncio.sleep(1)
        ran.clear()
        yield Place(bus, life, direct)


@virtual_time
async def test_quick_inputs_share_exchanges_and_each_gets_its_own_result() -> None:
    async with place() as here:
        found = await here.map("/double", ({"x": x} for x in range(1000)), window=400)
        assert {mapped.index: mapped.value for mapped in found} == {x: 2 * x for x in range(1000)}
        assert all(
            mapped.agent == ADDRESS and mapped.arguments["x"] == mapped.index for mapped in found
        )
        assert set(ran.values()) == {1}
        assert max(here.groups) == 100
        # The first goes at once, when nothing is under way that it could be with.
        assert 1 <= here.singles <= 10
        assert sum(here.groups) + here.singles == 1000


@virtual_time
async def test_results_come_in_the_order_of_the_inputs_if_asked_for() -> None:
    async with place() as here:
        waits = [0.3 if x % 7 == 0 else 0 for x in range(100)]
        over = [{"x": x, "wait": wait} for x, wait in enumerate(waits)]
        found = await here.map("/double", over, ordered=True)
        assert [mapped.value for mapped in found] == [2 * x for x in range(100)]


@virtual_time
async def test_an_input_that_fails_or_does_not_fit_spoils_no_other() -> None:
    async with place() as here:
        over: list[dict[str, Any]] = [{"x": x} for x in range(10)]
        over[3]["fail"] = True
        over[5] = {"y": 5}
        found = await here.map("/double", over, ordered=True)
        assert here.groups
        assert [mapped.value for mapped in found if mapped.error is None] == [
            2 * x for x in range(10) if x not in (3, 5)
        ]
        assert found[3].error is not None and str(found[3].error) == "3 is not doubled"
        assert found[5].error is not None and found[5].error.reason == "bad-arguments"
        assert found[5].error.agent == ADDRESS


@virtual_time
async def test_nobody_waits_long_for_a_slow_neighbour() -> None:
    async with place() as here:
        loop = asyncio.get_running_loop()
        began = loop.time()
        took: dict[int, float] = {}
        over = [{"x": x, "wait": 1.5 if x == 5 else 0.0} for x in range(10)]
        async for mapped in here.client.map("/double", over):
            took[mapped.index] = loop.time() - began
            assert mapped.value == 2 * mapped.index
        assert here.groups == [9]
        assert all(took[x] < 0.1 for x in took if x != 5)
        assert 1.49 < took[5] < 1.6


@virtual_time
async def test_an_input_that_takes_too_long_is_stopped_and_the_others_are_done() -> None:
    async with place(slots=1) as here:
        over = [{"x": x, "wait": 60.0 if x == 2 else 0.0} for x in range(6)]
        found = await here.map("/double", over, ordered=True)
        assert [mapped.error is None for mapped in found] == [x != 2 for x in range(6)]
        error = found[2].error
        assert error is not None and error.reason == "deadline"
        assert str(error) == "ran longer than its timeout of 2s"
        assert stopped == [2]
        assert here.life.slots.busy == 0


@virtual_time
async def test_an_operation_that_takes_longer_is_asked_for_one_by_one() -> None:
    async with place() as here:
        await here.map("/double", [{"x": x, "wait": 0.2} for x in range(200)])
        assert set(ran.values()) == {1}
        # What was on its way before the first had ended.
        assert sum(here.groups) <= 64
        assert here.singles >= 136


@virtual_time
async def test_an_operation_that_takes_a_job_is_asked_for_one_by_one_and_nothing_runs_twice() -> (
    None
):
    async with place() as here:
        found = await here.map("/reporting", [{"x": x} for x in range(200)], ordered=True)
        assert [mapped.value for mapped in found] == list(range(200))
        assert set(ran.values()) == {1}
        assert here.singles == 200


@virtual_time
async def test_results_that_are_large_together_travel_in_pieces() -> None:
    async with place() as here:
        sizes = [1000, 2000, 5000] * 10
        found = await here.map("/long", ({"size": size} for size in sizes), ordered=True)
        assert [len(mapped.value) for mapped in found] == sizes
        assert here.said(Data)
        for said in here.said(Data) + here.said(Final):
            assert len(escape(dumps(said.value))) <= LIMITS.inline


@virtual_time
async def test_leaving_early_stops_what_runs() -> None:
    async with place() as here:
        over = ({"x": x, "wait": 1.0 if x > 20 else 0.0} for x in range(1, 100_000))
        async with aclosing(here.client.map("/double", over)) as found:
            async for _ in found:
                break
        await eventually(lambda: here.life.slots.busy == 0)
        assert sum(ran.values()) < 200
        assert here.life.session.running == 0


@virtual_time
async def test_calls_that_are_made_at_the_same_time_share_exchanges_too() -> None:
    async with place() as here:
        found = await asyncio.gather(*(here.client.call("/double", x=x) for x in range(64)))
        assert found == [2 * x for x in range(64)]
        assert set(ran.values()) == {1}
        assert here.singles == 1 and sum(here.groups) == 63
        assert len(here.groups) <= 7


@virtual_time
async def test_calls_one_after_the_other_go_alone_and_at_once() -> None:
    async with place() as here:
        began = asyncio.get_running_loop().time()
        for x in range(10):
            assert await here.client.call("/double", x=x) == 2 * x
        assert asyncio.get_running_loop().time() == began
        assert here.singles == 10 and not here.groups


@virtual_time
async def test_a_call_that_is_cancelled_is_stopped_and_its_neighbours_are_not() -> None:
    async with place() as here:
        calls = [
            asyncio.create_task(here.client.call("/double", x=x, wait=1.0 if x % 2 else 0.0))
            for x in range(10)
        ]
        await eventually(lambda: len(ran) == 10)
        assert here.groups
        calls[5].cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert stopped == [5]
        assert isinstance(found[5], asyncio.CancelledError)
        assert [value for x, value in enumerate(found) if x != 5] == [
            2 * x for x in range(10) if x != 5
        ]


@virtual_time
async def test_calls_that_are_cancelled_before_they_left_never_run() -> None:
    async with place() as here:
        calls = [asyncio.create_task(here.client.call("/double", x=x)) for x in range(10)]
        await asyncio.sleep(0)  # The calls begin, and nothing leaves before the end of the turn.
        for call in calls[4:]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(1)
        assert set(ran) <= set(range(4))


@virtual_time
async def test_calls_that_have_not_left_when_the_client_is_closed_end() -> None:
    async with place() as here:
        calls = [asyncio.create_task(here.client.call("/double", x=x)) for x in range(10)]
        await asyncio.sleep(0)
    async with asyncio.timeout(1):
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert {getattr(error, "reason", error) for error in found} == {"cancelled"}


@virtual_time
async def test_a_tap_shows_each_of_them() -> None:
    async with place() as here:
        seen: list[Seen] = []

        def hear(sender: str, event: Event) -> None:
            if isinstance(event, Seen):
                seen.append(event)

        connection = here.bus.connection(DISPATCHER)
        async with Session(connection, role="dispatcher", dispatchers=[DISPATCHER]) as tap:
            tap.on_event = hear
            tap.send_presence(ADDRESS, tap.hello())
            tap.say(ADDRESS, Mirror(60.0))
            await asyncio.sleep(1)
            await asyncio.gather(*(here.client.call("/double", x=x) for x in range(20)))
            await eventually(lambda: len(seen) == 40)
            assert len({event.id for event in seen}) == 20
            assert [event.state for event in seen if event.what == "final"] == ["done"] * 20


@virtual_time
async def test_an_agent_that_is_gone_is_told_for_each_input() -> None:
    async with place() as here:
        over = ({"x": x, "wait": 1.0} for x in range(20))
        mapping = asyncio.create_task(here.map("/double", over))
        await eventually(lambda: ran)
        here.bus.kill(ADDRESS)
        found = await mapping
        assert len(found) == 20
        assert {mapped.error.reason for mapped in found if mapped.error} <= {"lost", "unreachable"}
        assert all(mapped.error for mapped in found)


@virtual_time
async def test_without_batching_each_input_has_an_op_of_its_own() -> None:
    async with place(batching=False) as here:
        await here.map("/double", [{"x": x} for x in range(50)])
        assert here.singles == 50 and not here.groups


@virtual_time
async def test_an_agent_that_answers_nonsense_fails_the_calls_and_nothing_else() -> None:
    bus = MemoryBus()

    async def handler(request: Request) -> Json:
        if request.op.each is None:
            return 1
        request.accept()
        return ["x", [0], [0, "soon", 1], [1, 0.1, 1], [1, 0.1, 2], [2, 0.1, None, {}], [{}, 1, 1]]

    async with (
        Session(bus.connection(ADDRESS), handler, role="agent", epoch=1, features=FEATURES),
        Client(connection=bus.connection("ann@memory.test/desk")) as client,
    ):
        direct = client.options(to=ADDRESS)
        await direct.call("/x")
        first, *grouped = await asyncio.gather(
            *(direct.call("/x", n=n) for n in range(5)), return_exceptions=True
        )
        assert first == 1
        assert [getattr(error, "reason", error) for error in grouped] == [
            "failed",
            1,
            *2 * ["failed"],
        ]


@virtual_time
async def test_who_does_not_know_groups_refuses_them() -> None:
    bus = MemoryBus()
    handled: list[Op] = []

    async def handler(request: Any) -> Any:
        handled.append(request.op)

    async with (
        Session(bus.connection("d@memory.test/d"), handler, role="dispatcher", epoch=1),
        Session(bus.connection("ann@memory.test/desk")) as caller,
    ):
        call = caller.call("d@memory.test/d", "/double", each=[{"x": 1}])
        final = await call.wait()
        assert final.problem is not None and final.problem.reason == "not-understood"
        assert not handled
