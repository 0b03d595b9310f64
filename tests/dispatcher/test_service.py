"""The dispatcher on the memory bus, told as stories; time is virtual and nothing sleeps."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest
from tests.tool import COMMANDS, INFO, ITEMS, asked_for, nodes, tool, value

from spinal.bus.call import Call
from spinal.bus.errors import CallError, NoAgent, NotAllowed, OperationFailed, Unreached
from spinal.bus.requests import Request
from spinal.bus.session import Session
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.broker import Errand
from spinal.dispatcher.jobs.job import mint
from spinal.dispatcher.resolver import Demand
from spinal.protocols import (
    FEATURES,
    Advertisement,
    Capabilities,
    Data,
    Event,
    Hello,
    Json,
    Log,
    Mirror,
    Op,
    Operation,
    Problem,
    Progress,
    Seen,
    Want,
)
from spinal.protocols.address import bare
from spinal.testing import Faults, MemoryBus, eventually, virtual_time

HUB = "hub@memory.test/d"
ME = "me@memory.test/web"

OPS = (
    Operation("/echo", "Give it back.", effects="reads", safe=True),
    Operation("/image/resize", "Scale it.", effects="reads", safe=True),
    Operation("/deploy", "Deploy it.", effects="writes"),
)


def role(address: str) -> str | None:
    name = bare(address).partition("@")[0]
    if name.startswith("w"):
        return "agent"
    return {"me": "caller", "you": "caller", "boss": "owner", "hub": "dispatcher"}.get(name)


Behaviour = Callable[["Worker", Request], Awaitable[Json]]


async def echo(worker: Worker, request: Request) -> Json:
    return {"by": worker.address, **request.op.args}


class Worker:
    """An agent without the kit: a session, an advertisement, and a heartbeat.

    It refuses what is beyond its slots, counts what it ran, and can be told to keep calls until
    they are let go.
    """

    def __init__(
        self,
        bus: MemoryBus,
        address: str,
        behaviour: Behaviour = echo,
        ops: Sequence[Operation] = OPS,
        **said: Any,
    ) -> None:
        self.address = address
        self.capabilities = Capabilities.of(ops)
        self.connection = bus.connection(address)
        self.behaviour = behaviour
        self.said: dict[str, Any] = {"slots": 4, "epoch": 1, **said}
        self.session = Session(
            self.connection,
            self._handle,
            role="agent",
            dispatchers=(HUB,),
            epoch=int(self.said["epoch"]),
        )
        self.session.describe = self._describe
        self.session.on_open = self.advertise
        self.session.on_presence = self._presence
        self.session.on_presence_error = lambda who, problem: self.errors.append(problem)
        self.session.on_event = self._event
        self.errors: list[Problem] = []
        self.described = 0
        self.mirrors: list[float] = []
        self.ran: list[Request] = []
        self.stopped = 0
        self.running = 0
        self.free = asyncio.Event()
        self._heart: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.session.__aenter__()
        self._heart = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.wait([self._heart])
        await self.session.close()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(5.0)
            self.advertise()

    def advertise(self, **changes: Any) -> None:
        self.said.update(changes)
        said: dict[str, Any] = {
            "hash": self.capabilities.hash,
            "busy": self.running,
            "holds": self.session.holds(HUB),
            "features": sorted(FEATURES),
            **self.said,
        }
        self.session.send_presence(HUB, Advertisement(**said))

    def _presence(self, sender: str, available: bool, events: Sequence[Event]) -> None:
        if any(isinstance(event, Hello) for event in events):
            self.advertise()

    def _event(self, sender: str, event: Event) -> None:
        if isinstance(event, Mirror):
            self.mirrors.append(event.seconds)

    def _describe(self, hash: str) -> str | None:
        self.described += 1
        return self.capabilities.text if hash == self.capabilities.hash else None

    async def _handle(self, request: Request) -> Json:
        if self.running >= self.said["slots"]:
            raise CallError.of(Problem("busy"))
        self.running += 1
        self.ran.append(request)
        try:
            return await self.behaviour(self, request)
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            self.running -= 1


async def held(worker: Worker, request: Request) -> Json:
    """Keep a call until the test lets it go."""
    await worker.free.wait()
    return {"by": worker.address, **request.op.args}


class House:
    """A bus with a dispatcher, a caller and any number of workers."""

    def __init__(self, bus: MemoryBus, dispatcher: Dispatcher, me: Session, stack: AsyncExitStack):
        self.bus = bus
        self.dispatcher = dispatcher
        self.me = me
        self.stack = stack

    async def worker(self, name: str = "w@memory.test/1", *args: Any, **said: Any) -> Worker:
        """Start a worker and wait until the dispatcher knows what it offers."""
        worker = await self.stack.enter_async_context(Worker(self.bus, name, *args, **said))

        def known() -> bool:
            agent = self.dispatcher.registry.get(name)
            return agent is not None and agent.capabilities is not None

        await eventually(known, what=f"{name} is known")
        return worker

    async def caller(self, address: str) -> Session:
        """Log somebody else in."""
        return await self.stack.enter_async_context(
            Session(self.bus.connection(address), dispatchers=(HUB,))
        )

    def start(
        self, op: str, /, *, want: Want | None = None, timeout: float = 60.0, **args: Any
    ) -> Call:
        return self.me.call(HUB, op, args, want=want, timeout=timeout)

    async def call(self, op: str, /, **args: Any) -> Any:
        return await self.start(op, **args).result()


@asynccontextmanager
async def house(bus: MemoryBus | None = None, known: Path | None = None) -> AsyncGenerator[House]:
    bus = bus or MemoryBus()
    async with AsyncExitStack() as stack:
        dispatcher = await stack.enter_async_context(
            Dispatcher(bus.connection(HUB), roles=role, known=known)
        )
        me = await stack.enter_async_context(Session(bus.connection(ME), dispatchers=(HUB,)))
        yield House(bus, dispatcher, me, stack)


async def problem_of(result: Awaitable[Any]) -> Problem:
    with pytest.raises(CallError) as caught:
        await result
    return caught.value.problem


# -- who is there


@virtual_time
async def test_a_call_reaches_an_agent_and_the_answer_names_it() -> None:
    async with house() as home:
        worker = await home.worker()

        call = home.start("/echo", text="hi")

        assert await call.result() == {"by": worker.address, "text": "hi"}
        assert call.final is not None
        assert call.final.agent == worker.address
        (request,) = worker.ran
        assert request.caller == ME
        assert request.op.epoch == 1
        assert 59_000 < request.op.left <= 60_000


@virtual_time
async def test_a_hundred_equal_workers_are_asked_once_what_they_offer() -> None:
    async with house() as home:
        workers = [
            await home.stack.enter_async_context(Worker(home.bus, f"w@memory.test/{n}"))
            for n in range(100)
        ]

        await eventually(lambda: len(home.dispatcher.registry.offering("/echo")) == 100)

        assert sum(worker.described for worker in workers) == 1


@virtual_time
async def test_who_is_no_agent_cannot_offer_operations_and_is_told_so() -> None:
    async with house() as home:
        intruder = await home.stack.enter_async_context(Worker(home.bus, "you@memory.test/1"))
        stranger = await home.stack.enter_async_context(Worker(home.bus, "mallory@memory.test/1"))

        await eventually(lambda: intruder.errors and stranger.errors)

        assert intruder.errors[0].reason == "not-allowed"
        assert intruder.errors[0].text == "an account with role caller may not offer operations"
        assert len(home.dispatcher.registry) == 0


@virtual_time
async def test_strangers_may_not_call_and_callers_may_not_watch() -> None:
    async with house() as home:
        await home.worker()
        stranger = await home.caller("mallory@memory.test/1")

        with pytest.raises(NotAllowed):
            await stranger.call(HUB, "/echo").result()
        with pytest.raises(NotAllowed):
            await home.me.call(HUB, "/spinal/tap", window=8).result()


@virtual_time
async def test_an_operation_that_nobody_offers_is_refused_at_once_with_a_near_name() -> None:
    async with house() as home:
        nobody = await problem_of(home.call("/image/resize"))
        await home.worker()
        near = await problem_of(home.call("/image/resise"))
        far = await problem_of(home.call("/brew/coffee"))

    assert nobody.text == "no agent offers /image/resize: start one with `spinal agent run`"
    assert near.reason == "no-agent"
    assert near.text == "no agent offers /image/resise: did you mean /image/resize?"
    assert far.text == "no agent offers /brew/coffee: start one with `spinal agent run`"


@virtual_time
async def test_agents_that_are_all_at_the_wrong_place_are_counted() -> None:
    async with house() as home:
        await home.worker("w@memory.test/1", place={"site": "/us"})
        await home.worker("w@memory.test/2", place={"site": "/eu"})

        want = Want(place={"site": "/eu"}, tags=("gpu",))
        problem = await problem_of(home.start("/echo", want=want).result())

    assert problem.reason == "no-agent"
    assert problem.text == (
        "2 agents offer /echo, but none will do: 1 are at another place, 1 lack a tag; "
        "see `spinal resolve /echo`"
    )


# -- choosing


@virtual_time
async def test_a_burst_of_a_hundred_calls_spreads_evenly_over_five_workers() -> None:
    async with house() as home:
        workers = [await home.worker(f"w@memory.test/{n}", held, slots=50) for n in range(5)]

        calls = [home.start("/echo", n=n) for n in range(100)]
        await eventually(lambda: sum(len(w.ran) for w in workers) == 100)
        for worker in workers:
            worker.free.set()
        await asyncio.gather(*(call.result() for call in calls))

    assert all(18 <= len(worker.ran) <= 22 for worker in workers)


@virtual_time
async def test_the_cheapest_with_room_does_it_and_one_of_unknown_cost_is_not_taken_for_free() -> (
    None
):
    async with house() as home:
        await home.worker("w@memory.test/unknown")
        cheap = await home.worker("w@memory.test/cheap", cost=0.01, slots=1)
        dear = await home.worker("w@memory.test/dear", cost=2.0)
        want = Want(policy="cheapest")

        first = home.start("/echo", want=want)
        second = home.start("/echo", want=want)

        assert (await first.result())["by"] == cheap.address
        assert (await second.result())["by"] == dear.address


@virtual_time
async def test_sticky_calls_with_one_key_wait_for_one_worker_although_others_are_free() -> None:
    async with house() as home:
        workers = [await home.worker(f"w@memory.test/{n}", held, slots=1) for n in range(3)]
        want = Want(policy="sticky", sticky="album-7")

        calls = [home.start("/echo", want=want) for _ in range(3)]
        await eventually(lambda: home.dispatcher.broker.waiting == 2)
        for worker in workers:
            worker.free.set()
        answers = [(await call.result())["by"] for call in calls]

    assert len(set(answers)) == 1


# -- waiting


@virtual_time
async def test_calls_beyond_the_slots_wait_and_all_of_them_end() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held, slots=2)

        calls = [home.start("/echo", n=n) for n in range(20)]
        await eventually(lambda: home.dispatcher.broker.waiting == 18)
        assert worker.running == 2
        worker.free.set()
        answers = [(await call.result())["n"] for call in calls]

    assert answers == list(range(20))
    assert [request.op.args["n"] for request in worker.ran] == list(range(20))


@virtual_time
async def test_callers_take_turns_when_they_wait() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held, slots=1)
        you = await home.caller("you@memory.test/web")
        first = home.start("/echo", who="first")
        await eventually(lambda: worker.running == 1)

        mine = [home.start("/echo", who="me") for _ in range(4)]
        await eventually(lambda: home.dispatcher.broker.waiting == 4)
        yours = [you.call(HUB, "/echo", {"who": "you"}) for _ in range(2)]
        await eventually(lambda: home.dispatcher.broker.waiting == 6)
        worker.free.set()
        await asyncio.gather(*(call.result() for call in (first, *mine, *yours)))

    order = [request.op.args["who"] for request in worker.ran]
    assert order == ["first", "me", "you", "me", "you", "me", "me"]


@virtual_time
async def test_a_call_that_waited_in_vain_says_so_before_its_caller_gives_up() -> None:
    async with house() as home:
        await home.worker("w@memory.test/1", held, slots=1)
        busy = home.start("/echo")

        problem = await problem_of(home.start("/echo", timeout=10.0).result())

        assert problem.reason == "expired"
        assert problem.text == "no agent was free for /echo within 9.9 s: 1 busy"
        assert home.dispatcher.broker.waiting == 0
        home.me.abandon(busy)


@virtual_time
async def test_a_cancelled_call_leaves_the_queue_and_never_runs() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held, slots=1)
        running, waiting = home.start("/echo", n=1), home.start("/echo", n=2)
        await eventually(lambda: home.dispatcher.broker.waiting == 1)

        assert await waiting.cancel() == "cancelled"
        problem = await problem_of(waiting.result())

        assert problem.reason == "cancelled"
        assert home.dispatcher.broker.waiting == 0
        worker.free.set()
        await running.result()
        assert len(worker.ran) == 1


@virtual_time
async def test_an_agent_that_says_it_is_full_costs_nothing_but_a_look_elsewhere() -> None:
    async def full(worker: Worker, request: Request) -> Json:
        raise CallError.of(Problem("busy"))

    async with house() as home:
        refuser = await home.worker("w@memory.test/1", full)
        good = await home.worker("w@memory.test/2", load=0.5)

        answer = await home.call("/echo")

    assert answer["by"] == good.address
    assert len(refuser.ran) == 1


@virtual_time
async def test_an_agent_that_keeps_refusing_is_not_asked_again_and_again() -> None:
    async def full(worker: Worker, request: Request) -> Json:
        raise CallError.of(Problem("busy"))

    async with house() as home:
        refuser = await home.worker("w@memory.test/1", full, slots=4)

        calls = [home.start("/echo", timeout=30.0) for _ in range(50)]
        results = await asyncio.gather(*(c.result() for c in calls), return_exceptions=True)

        # Heartbeats come every 5 s, and each lets it be tried with as many calls as it has slots.
        assert len(refuser.ran) <= 4 * 8
        assert {r.reason for r in results if isinstance(r, CallError)} == {"expired"}
        assert len(results) == 50


@virtual_time
async def test_calls_of_direct_callers_count_as_busy() -> None:
    async with house() as home:
        loaded = await home.worker("w@memory.test/1", held, slots=1)
        free = await home.worker("w@memory.test/2", slots=1, load=0.9)
        direct = home.me.call(loaded.address, "/echo")
        await eventually(lambda: loaded.running == 1)
        loaded.advertise()
        await eventually(lambda: home.dispatcher.registry.get(loaded.address).busy == 1)  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]

        answer = await home.call("/echo")

        assert answer["by"] == free.address
        loaded.free.set()
        await direct.result()


@virtual_time
async def test_a_worker_that_calls_an_operation_of_its_own_gets_it_done_alone_or_among_many() -> (
    None
):
    async def nested(worker: Worker, request: Request) -> Json:
        if request.op.op == "/echo":
            return {"by": worker.address}
        return await worker.session.call(HUB, "/echo").result()

    async with house() as home:
        alone = await home.worker("w@memory.test/1", nested)
        assert await home.call("/image/resize") == {"by": alone.address}
        other = await home.worker("w@memory.test/2", nested, tags=("helper",))

        outer = await home.start("/image/resize", want=Want(tags=("helper",))).result()

        assert outer == {"by": alone.address}
        assert len(other.ran) == 1


# -- streams


@virtual_time
async def test_progress_log_lines_and_data_are_passed_on_in_order() -> None:
    async def streaming(worker: Worker, request: Request) -> Json:
        request.progress(0, 3)
        request.log("begun")
        for n in range(3):
            await request.data(n)
        return "end"

    async with house() as home:
        await home.worker("w@memory.test/1", streaming)

        call = home.me.call(HUB, "/echo", window=2)
        items = [item async for item in call]

        assert [item.value for item in items if isinstance(item, Data)] == [0, 1, 2]
        assert [item.total for item in items if isinstance(item, Progress)] == [3]
        assert [item.text for item in items if isinstance(item, Log)] == ["begun"]
        assert await call.result() == "end"


@virtual_time
async def test_a_slow_reader_holds_the_agent_back() -> None:
    produced = 0

    async def fountain(worker: Worker, request: Request) -> Json:
        nonlocal produced
        for n in range(1000):
            await request.data(n)
            produced += 1
        return None

    async with house() as home:
        await home.worker("w@memory.test/1", fountain)
        call = home.me.call(HUB, "/echo", window=4)
        reader = aiter(call)
        assert isinstance(await anext(reader), Data)

        await asyncio.sleep(5.0)

        assert produced <= 20
        home.me.abandon(call)


@virtual_time
async def test_a_cancel_reaches_the_agent_and_is_answered() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held)
        call = home.start("/echo")
        await eventually(lambda: worker.running == 1)

        assert await call.cancel() == "cancelled"
        problem = await problem_of(call.result())

        assert problem.reason == "cancelled"
        await eventually(lambda: worker.stopped == 1)


@virtual_time
async def test_the_call_of_a_caller_that_vanished_is_cancelled_at_the_agent() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held)
        home.start("/echo", timeout=600.0)
        await eventually(lambda: worker.running == 1)
        await asyncio.sleep(1.0)

        home.bus.kill(ME)

        await eventually(lambda: worker.stopped == 1, timeout=15.0)


# -- losses


@virtual_time
async def test_a_safe_call_whose_worker_dies_ends_on_another_one() -> None:
    async with house() as home:
        first = await home.worker("w@memory.test/1", held)
        call = home.start("/echo")
        await eventually(lambda: first.running == 1)
        second = await home.worker("w@memory.test/2")
        began = asyncio.get_running_loop().time()

        home.bus.kill(first.address)

        assert (await call.result())["by"] == second.address
        assert asyncio.get_running_loop().time() - began < 2.0
        assert second.ran[0].op.attempt == 2


@virtual_time
async def test_a_safe_call_whose_only_worker_is_restarted_runs_in_its_new_life() -> None:
    async with house() as home:
        old = await home.worker("w@memory.test/1", held)
        call = home.start("/echo")
        await eventually(lambda: old.running == 1)

        home.bus.kill(old.address)
        await asyncio.sleep(3.0)
        await home.worker("w@memory.test/1", epoch=2)

        assert (await call.result())["by"] == old.address


@virtual_time
async def test_an_unsafe_call_is_lost_at_once_when_its_agent_comes_back_in_a_new_life() -> None:
    async with house() as home:
        old = await home.worker("w@memory.test/1", held)
        call = home.start("/deploy")
        await eventually(lambda: old.running == 1)
        began = asyncio.get_running_loop().time()

        home.bus.kill(old.address)
        await home.worker("w@memory.test/1", epoch=2)
        problem = await problem_of(call.result())

        assert asyncio.get_running_loop().time() - began < 2.0
        assert problem.reason == "lost"
        assert "was restarted" in problem.text and "may have been done" in problem.text


@virtual_time
async def test_an_unsafe_call_waits_for_its_agent_and_ends_with_it_when_the_same_life_is_back() -> (
    None
):
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held)
        other = await home.worker("w@memory.test/2", load=1.0)
        call = home.start("/deploy")
        await eventually(lambda: worker.running == 1)
        await asyncio.sleep(1.0)

        home.bus.cut(worker.address)
        await asyncio.sleep(8.0)
        worker.free.set()

        assert (await call.result())["by"] == worker.address
        assert other.ran == []


@virtual_time
async def test_an_unsafe_call_ends_as_lost_when_the_lease_of_its_silent_agent_is_over() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held)
        await home.worker("w@memory.test/2", load=1.0)
        call = home.start("/deploy", timeout=600.0)
        await eventually(lambda: worker.running == 1)
        began = asyncio.get_running_loop().time()

        home.bus.kill(worker.address)
        problem = await problem_of(call.result())

        assert problem.reason == "lost"
        assert "may have been done" in problem.text
        assert 8.0 < asyncio.get_running_loop().time() - began < 18.0


@virtual_time
async def test_a_call_at_a_worker_that_hangs_moves_when_its_lease_is_over() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held)
        call = home.start("/echo", timeout=600.0)
        await eventually(lambda: worker.running == 1)
        other = await home.worker("w@memory.test/2")
        began = asyncio.get_running_loop().time()

        home.bus.hang(worker.address)

        assert (await call.result())["by"] == other.address
        assert asyncio.get_running_loop().time() - began < 18.0
        worker.connection.wake()
        await eventually(lambda: worker.stopped == 1)


@virtual_time
async def test_the_third_lost_worker_ends_a_call() -> None:
    async with house() as home:
        workers = [await home.worker(f"w@memory.test/{n}", held) for n in range(4)]
        call = home.start("/echo", timeout=600.0)
        for _ in range(3):
            victim = await eventually(
                lambda: next((w for w in workers if w.running and not w.connection.dead), None)
            )
            home.bus.kill(victim.address)

        problem = await problem_of(call.result())

    assert problem.reason == "lost"
    assert problem.text.startswith("3 agents were lost on this call: w@memory.test/")


@virtual_time
async def test_an_attempt_that_an_agent_does_not_know_of_is_made_elsewhere() -> None:
    async with house() as home:
        amnesiac = await home.worker("w@memory.test/1", held)
        call = home.start("/echo", timeout=600.0)
        await eventually(lambda: amnesiac.running == 1)
        other = await home.worker("w@memory.test/2")
        await asyncio.sleep(2.0)

        amnesiac.advertise(holds=[])

        assert (await call.result())["by"] == other.address


@virtual_time
async def test_a_draining_worker_gets_nothing_new_and_finishes_what_it_has() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held)
        running = home.start("/echo")
        await eventually(lambda: worker.running == 1)
        worker.advertise(state="draining")
        await asyncio.sleep(0.1)

        waiting = home.start("/echo")
        await eventually(lambda: home.dispatcher.broker.waiting == 1)
        other = await home.worker("w@memory.test/2")

        assert (await waiting.result())["by"] == other.address
        worker.free.set()
        assert (await running.result())["by"] == worker.address


@virtual_time
async def test_who_waits_for_an_agent_that_does_not_come_back_is_told_when_its_lease_is_over() -> (
    None
):
    async with house() as home:
        worker = await home.worker("w@memory.test/1")
        home.bus.kill(worker.address)
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()

        problem = await problem_of(home.start("/echo", timeout=600.0).result())

        assert problem.reason == "no-agent"
        assert asyncio.get_running_loop().time() - began < 18.0


@virtual_time
async def test_a_stream_that_was_read_is_not_begun_again() -> None:
    async def one_then_wait(worker: Worker, request: Request) -> Json:
        await request.data("first")
        await worker.free.wait()
        return None

    async with house() as home:
        worker = await home.worker("w@memory.test/1", one_then_wait)
        call = home.me.call(HUB, "/echo", window=4)
        items = aiter(call)
        await anext(items)
        await home.worker("w@memory.test/2", one_then_wait)

        home.bus.kill(worker.address)
        rest = [item async for item in items]
        problem = await problem_of(call.result())

    assert rest == []
    assert problem.reason == "lost"
    assert "after 1 pieces of its stream" in problem.text


@virtual_time
async def test_the_problem_that_an_operation_ended_with_is_passed_on_and_not_tried_again() -> None:
    async def failing(worker: Worker, request: Request) -> Json:
        request.progress(1, 2)
        raise CallError.of(Problem("failed", "disk full"))

    async with house() as home:
        workers = [await home.worker(f"w@memory.test/{n}", failing) for n in range(2)]

        with pytest.raises(OperationFailed, match="disk full") as failed:
            await home.call("/echo")

    assert failed.value.agent in {worker.address for worker in workers}
    assert sum(len(worker.ran) for worker in workers) == 1


@virtual_time
async def test_a_busy_bus_restart_loses_no_safe_call() -> None:
    async with house() as home:
        workers = [await home.worker(f"w@memory.test/{n}", held, slots=8) for n in range(3)]
        calls = [home.start("/echo", n=n, timeout=120.0) for n in range(40)]
        await eventually(lambda: sum(w.running for w in workers) == 24)

        home.bus.restart()
        await asyncio.sleep(1.0)
        for worker in workers:
            worker.free.set()

        assert sorted([(await call.result())["n"] for call in calls]) == list(range(40))


# -- many


@virtual_time
async def test_all_gives_every_agents_answer_with_its_address() -> None:
    async with house() as home:
        workers = [await home.worker(f"w@memory.test/{n}") for n in range(3)]

        rows = await home.start("/echo", want=Want(policy="all"), x=1).result()

        assert rows == [
            {"agent": w.address, "state": "done", "value": {"by": w.address, "x": 1}}
            for w in workers
        ]


@virtual_time
async def test_all_gives_what_it_has_when_one_agent_is_silent() -> None:
    async with house() as home:
        await home.worker("w@memory.test/1")
        silent = await home.worker("w@memory.test/2", held)

        rows = await home.start("/echo", want=Want(policy="all"), timeout=8.0).result()

        assert [row["state"] for row in rows] == ["done", "error"]
        assert rows[1]["problem"]["reason"] == "deadline"
        await eventually(lambda: silent.stopped == 1)


@virtual_time
async def test_all_streams_its_rows_to_who_takes_a_stream() -> None:
    async with house() as home:
        for n in range(3):
            await home.worker(f"w@memory.test/{n}")

        call = home.me.call(HUB, "/echo", want=Want(policy="all"), window=8)
        rows = [item.value async for item in call if isinstance(item, Data)]

        assert sorted(row["agent"] for row in rows) == [f"w@memory.test/{n}" for n in range(3)]


@virtual_time
async def test_all_that_nobody_can_do_is_refused() -> None:
    async with house() as home:
        with pytest.raises(NoAgent):
            await home.start("/echo", want=Want(policy="all")).result()


@virtual_time
async def test_any_first_gives_the_first_answer_and_cancels_the_others() -> None:
    async with house() as home:
        slow = await home.worker("w@memory.test/1", held)
        fast = await home.worker("w@memory.test/2", load=0.9)

        answer = await home.start("/echo", want=Want(policy="any-first")).result()

        assert answer["by"] == fast.address
        await eventually(lambda: slow.stopped == 1)


@virtual_time
async def test_any_first_is_refused_for_an_operation_that_is_not_safe() -> None:
    async with house() as home:
        worker = await home.worker()

        problem = await problem_of(home.start("/deploy", want=Want(policy="any-first")).result())

    assert problem.reason == "refused"
    assert worker.ran == []


# -- restarts of the dispatcher


@virtual_time
async def test_a_restarted_dispatcher_greets_the_agents_it_knew_and_calls_wait_for_them() -> None:
    bus = MemoryBus()
    # virtual_time runs a plain coroutine, so there is no fixture for the folder.
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "agents.json"
        async with AsyncExitStack() as stack:
            async with house(bus, known=known) as home:
                await stack.enter_async_context(Worker(bus, "w@memory.test/1"))
                await eventually(lambda: home.dispatcher.registry.offering("/echo"))
            assert json.loads(known.read_text()) == {"agents": ["w@memory.test/1"]}

            async with house(bus, known=known) as home:
                began = asyncio.get_running_loop().time()
                answer = await home.call("/echo")

                assert answer == {"by": "w@memory.test/1"}
                assert asyncio.get_running_loop().time() - began < 2.0


@virtual_time
async def test_a_call_waits_for_remembered_agents_for_six_seconds_and_no_longer() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "agents.json"
        known.write_text(json.dumps({"agents": ["w@memory.test/dead"]}))
        async with house(known=known) as home:
            began = asyncio.get_running_loop().time()

            problem = await problem_of(home.call("/echo"))

            assert problem.reason == "no-agent"
            assert 5.0 < asyncio.get_running_loop().time() - began < 7.0


@virtual_time
async def test_a_broken_file_of_known_agents_is_no_reason_not_to_start() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "agents.json"
        known.write_text("[")
        async with house(known=known) as home:
            await home.worker()
        assert json.loads(known.read_text()) == {"agents": ["w@memory.test/1"]}


@virtual_time
async def test_the_cut_of_the_dispatchers_own_stream_makes_nobody_lost() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held)
        call = home.me.call(HUB, "/deploy", timeout=600.0, patience=60.0)
        await eventually(lambda: worker.running == 1)
        await asyncio.sleep(1.0)
        home.bus.up = False
        home.bus.cut(HUB)

        await asyncio.sleep(25.0)
        home.bus.up = True
        await asyncio.sleep(40.0)
        worker.free.set()

        assert (await call.result())["by"] == worker.address


# -- its own operations


@virtual_time
async def test_agents_are_listed_with_what_they_said() -> None:
    async with house() as home:
        await home.worker(
            "w@memory.test/1", place={"site": "/eu"}, tags=("gpu",), cost=0.5, load=0.25
        )

        page = await home.call("/spinal/agents")

        (row,) = page["items"]
        assert not page["more"]
        assert row.pop("seen") < 1.0
        assert row == {
            "agent": "w@memory.test/1",
            "state": "available",
            "slots": 4,
            "busy": 0,
            "load": 0.25,
            "cost": 0.5,
            "ops": ["/deploy", "/echo", "/image/resize"],
            "place": {"site": "/eu"},
            "tags": ["gpu"],
            "epoch": 1,
        }


@virtual_time
async def test_operations_are_listed_with_their_schemas_and_how_many_offer_them() -> None:
    async with house() as home:
        for n in range(2):
            await home.worker(f"w@memory.test/{n}")

        page = await home.call("/spinal/ops")
        one = await home.call("/spinal/op", op="/echo")
        none = await problem_of(home.call("/spinal/op", op="/ecko"))
        wrong = await problem_of(home.call("/spinal/op", op="echo"))
        missing = await problem_of(home.call("/spinal/op"))

        assert [row["op"] for row in page["items"]] == ["/deploy", "/echo", "/image/resize"]
        assert one in page["items"]
        assert (one["agents"], one["safe"], one["summary"]) == (2, True, "Give it back.")
        assert none.text == "no agent offers /ecko: did you mean /echo?"
        assert wrong.reason == missing.reason == "bad-arguments"


@virtual_time
async def test_long_lists_come_in_pages_that_fit() -> None:
    async with house() as home:
        for n in range(300):
            await home.stack.enter_async_context(Worker(home.bus, f"w@memory.test/agent-{n:04}"))
        await eventually(lambda: len(home.dispatcher.registry.offering("/echo")) == 300)

        found: list[Any] = []
        pages = 0
        while True:
            page = await home.call("/spinal/agents", offset=len(found))
            found += page["items"]
            pages += 1
            if not page["more"]:
                break

        assert pages > 1
        assert [row["agent"] for row in found] == [
            f"w@memory.test/agent-{n:04}" for n in range(300)
        ]


@virtual_time
async def test_resolve_says_who_could_do_it_and_why_not_the_others() -> None:
    async with house() as home:
        await home.worker("w@memory.test/busy", held, slots=1)
        await home.worker("w@memory.test/free", load=0.12, cost=0.031, tags=("gpu",))
        await home.worker("w@memory.test/other", echo, (Operation("/other"),))
        busy = home.start("/deploy", want=Want(policy="all"))
        await asyncio.sleep(0.1)

        found = await home.call("/spinal/resolve", op="/deploy")
        tagged = await home.call("/spinal/resolve", op="/deploy", tags=["gpu"])

        assert found["candidates"] == [
            {
                "agent": "w@memory.test/free",
                "reasons": ["0 of 4 slots busy", "load 0.12", "cost 0.031/h"],
            }
        ]
        assert found["rejected"] == [
            {"agent": "w@memory.test/busy", "reason": "busy 1/1", "later": True},
            {"agent": "w@memory.test/other", "reason": "does not offer /deploy", "later": False},
        ]
        assert tagged["rejected"][0]["reason"] == "lacks tag gpu"
        home.me.abandon(busy)


@virtual_time
async def test_status_counts() -> None:
    async with house() as home:
        await home.worker()
        await home.call("/echo")
        with pytest.raises(NoAgent):
            await home.call("/nope")

        status = await home.call("/spinal/status")

        assert (status["agents"], status["calls"], status["done"], status["failed"]) == (1, 2, 1, 1)


# -- watching


@virtual_time
async def test_the_owner_sees_brokered_calls_and_what_agents_tell_of_direct_ones() -> None:
    async with house() as home:
        worker = await home.worker()
        boss = await home.caller("boss@memory.test/desk")
        tap = boss.call(HUB, "/spinal/tap", window=16, timeout=3600.0)
        await eventually(lambda: worker.mirrors)

        await home.call("/echo")
        worker.session.whisper(HUB, Seen("op", "direct-1", ME, worker.address, "/echo"))
        home.me.whisper(HUB, Seen("op", "forged", ME, worker.address, "/echo"))
        seen: list[Mapping[str, Any]] = []
        async for item in tap:
            assert isinstance(item, Data)
            seen.append(item.value)
            if len(seen) == 3:
                break

        assert [(event["what"], event["id"]) for event in seen][2] == ("op", "direct-1")
        assert [event["what"] for event in seen] == ["op", "final", "op"]
        assert seen[1]["state"] == "done"
        assert seen[1]["agent"] == worker.address
        await eventually(lambda: worker.mirrors[-1] == 0.0)
        assert home.dispatcher.broker.watch is None


@virtual_time
async def test_a_tap_is_renewed_and_reaches_agents_that_come_later() -> None:
    async with house() as home:
        boss = await home.caller("boss@memory.test/desk")
        tap = boss.call(HUB, "/spinal/tap", window=16, timeout=20.0)
        await asyncio.sleep(0.1)
        late = await home.worker()

        assert await tap.result() == {"seen": 0, "dropped": 0}
        assert late.mirrors[0] == 12.0
        assert late.mirrors.count(12.0) >= 3


@virtual_time
async def test_a_slow_watcher_loses_events_and_is_told_how_many() -> None:
    async with house() as home:
        await home.worker(slots=10_000)
        boss = await home.caller("boss@memory.test/desk")
        tap = boss.call(HUB, "/spinal/tap", window=4, timeout=60.0)
        items = aiter(tap)
        await asyncio.sleep(0.1)
        await asyncio.gather(*(home.call("/echo") for _ in range(700)))

        told = 0
        for _ in range(1010):
            item = await anext(items)
            assert isinstance(item, Data)
            if item.value["what"] == "dropped":
                told = int(item.value["state"])
                break

        assert told > 300
        boss.abandon(tap)


# -- a bus that loses, doubles and reorders


@virtual_time
async def test_calls_end_on_a_bus_that_loses_doubles_and_reorders_stanzas() -> None:
    bus = MemoryBus(seed=5)
    async with house(bus) as home:
        for n in range(3):
            await home.worker(f"w@memory.test/{n}")
        bus.faults = replace(
            bus.faults, delay=(0.001, 0.02), drop=0.05, duplicate=0.05, reorder=0.1
        )

        calls = [home.start("/echo", n=n, timeout=120.0) for n in range(200)]
        answers = await asyncio.gather(*(call.result() for call in calls), return_exceptions=True)

        failed = [answer for answer in answers if isinstance(answer, Exception)]
        assert not failed, failed[:3]


@virtual_time
async def test_nothing_is_left_of_calls_that_have_ended() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held, slots=2)
        calls = [home.start("/echo", n=n) for n in range(10)]
        await eventually(lambda: worker.running == 2)
        for call in calls[5:]:
            await call.cancel()
        worker.free.set()
        results = await asyncio.gather(*(c.result() for c in calls), return_exceptions=True)

        assert sum(isinstance(result, CallError) for result in results) == 5
        broker = home.dispatcher.broker
        assert (broker.waiting, broker.in_flight) == (0, 0)
        agent = home.dispatcher.registry.get(worker.address)
        assert agent is not None
        assert agent.busy == 0
        assert not isinstance(results[0], Unreached)


@virtual_time
async def test_all_reaches_a_busy_agent_as_soon_as_it_has_room() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held, slots=1)
        first = home.start("/echo", n=1)
        await eventually(lambda: worker.running == 1)

        everybody = home.start("/echo", want=Want(policy="all"), n=2)
        await eventually(lambda: home.dispatcher.broker.waiting == 1)
        worker.free.set()

        assert (await everybody.result())[0]["value"]["n"] == 2
        assert (await first.result())["n"] == 1


@virtual_time
async def test_round_robin_goes_round() -> None:
    async with house() as home:
        for n in range(3):
            await home.worker(f"w@memory.test/{n}")
        want = Want(policy="round-robin")

        answers = [(await home.start("/echo", want=want).result())["by"][-1] for _ in range(6)]

        assert answers == ["0", "1", "2", "0", "1", "2"]


@virtual_time
async def test_closing_the_dispatcher_leaves_no_task_and_cancels_what_runs() -> None:
    async with house() as home:
        worker = await home.worker("w@memory.test/1", held)
        home.start("/echo", timeout=600.0)
        await eventually(lambda: worker.running == 1)

        await home.dispatcher.close()

        await eventually(lambda: worker.stopped == 1, timeout=15.0)
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert not {"housekeeping", "settling", "greeting"} & set(names)


@pytest.mark.parametrize("seed", range(3))
@virtual_time
async def test_under_cuts_hangs_and_kills_every_call_ends_and_none_that_is_unsafe_runs_twice(
    seed: int,
) -> None:
    rng = Random(seed)
    deployed: Counter[int] = Counter()

    async def work(worker: Worker, request: Request) -> Json:
        number = request.op.args["n"]
        if request.op.op == "/deploy":
            deployed[number] += 1
        await asyncio.sleep(rng.choice([0.01, 0.3, 2.0, 8.0]))
        return number

    bus = MemoryBus(seed=seed)
    async with house(bus) as home:
        workers = [await home.worker(f"w@memory.test/{n}", work, slots=3) for n in range(4)]
        # A server does not lose presence: the stream under it is reliable.
        bus.faults = Faults(
            (0.001, 0.05), 0.03, 0.03, 0.1, applies=lambda stanza: stanza.kind != "presence"
        )

        async def chaos() -> None:
            for epoch in range(2, 1000):
                await asyncio.sleep(rng.uniform(1.0, 4.0))
                number = rng.randrange(4)
                address = workers[number].address
                match rng.choice(["cut", "cut", "kill", "hang"]):
                    case "cut":
                        bus.cut(address)
                    case "hang":
                        bus.hang(address)
                        await asyncio.sleep(rng.uniform(1.0, 20.0))
                        workers[number].connection.wake()
                    case _:
                        bus.kill(address)
                        await asyncio.sleep(rng.uniform(0.0, 3.0))
                        workers[number] = await home.stack.enter_async_context(
                            Worker(bus, address, work, slots=3, epoch=epoch)
                        )

        trouble = asyncio.create_task(chaos())
        calls: list[Call] = []
        for n in range(100):
            calls.append(home.start("/echo" if n % 3 else "/deploy", n=n, timeout=120.0))
            await asyncio.sleep(rng.uniform(0.0, 0.3))
        async with asyncio.timeout(130.0):
            finals = [await call.wait() for call in calls]
        trouble.cancel()
        await asyncio.wait([trouble])

        assert all(count == 1 for count in deployed.values())
        ends = Counter(final.problem.reason for final in finals if final.problem is not None)
        assert set(ends) <= {"lost", "busy"}, ends
        assert (home.dispatcher.broker.waiting, home.dispatcher.broker.in_flight) == (0, 0)
        assert all(agent.in_flight == 0 for agent in home.dispatcher.registry)


# -- what ordinary tools see


ECHO: dict[str, Json] = {
    "properties": {"text": {"type": "string"}, "photo": {"type": "object", "format": "blob"}},
    "required": ["text"],
}
SHOWN = (
    Operation("/say", "Say it again.", ECHO, effects="reads", safe=True),
    Operation("/image/resize", "Scale it.", {**ECHO, "required": ["photo"]}),
    Operation("/deploy"),
)


@virtual_time
async def test_it_shows_the_agents_that_are_there_and_their_operations_as_commands() -> None:
    async with house() as home, tool(home.bus, ME, HUB) as me:
        await home.worker("w@memory.test/1", ops=SHOWN)
        gone = await home.worker("w2@memory.test/1", ops=SHOWN[:1])
        await gone.connection.close()
        await eventually(lambda: len(home.dispatcher.registry.offering("/say")) == 2)

        (identity,) = (await me.ask(INFO)).findall(f"{{{INFO}}}identity")
        assert identity.attrib == {
            "category": "automation",
            "type": "command-list",
            "name": "hub",
        }
        (item,) = await me.ask(ITEMS)
        assert item.attrib == {"jid": "w@memory.test/1", "name": "w"}
        assert nodes(await me.ask(ITEMS, COMMANDS)) == {
            "/deploy": "/deploy",
            "/say": "Say it again.",
        }


@virtual_time
async def test_a_command_is_a_brokered_call_of_whoever_runs_it() -> None:
    async with house() as home, tool(home.bus, "you@memory.test/phone", HUB) as you:
        worker = await home.worker("w@memory.test/1", ops=SHOWN)
        assert asked_for(await you.command("/say")) == {"text": "text-single"}

        done = await you.command("/say", {"text": ["hi"]})

        assert json.loads(value(done)) == {"by": worker.address, "text": "hi"}
        (request,) = worker.ran
        assert request.caller == "you@memory.test/phone"
        assert home.dispatcher.broker.counts.calls == home.dispatcher.broker.counts.done == 1
        assert not home.dispatcher.session.running and not home.dispatcher.session.kept


@virtual_time
async def test_a_command_waits_for_an_agent_and_is_given_up_after_a_minute() -> None:
    async with house() as home, tool(home.bus, ME, HUB) as me:
        worker = await home.worker("w@memory.test/1", held, ops=SHOWN, slots=1)
        running = asyncio.ensure_future(me.command("/deploy"))
        await eventually(lambda: worker.running == 1)
        waiting = asyncio.ensure_future(me.command("/deploy"))

        assert (await problem_of(waiting)).reason == "expired"
        assert (await problem_of(running)).reason == "deadline"

        await eventually(lambda: worker.stopped == 1)


@virtual_time
async def test_a_command_whose_session_is_cancelled_is_cancelled_at_the_agent() -> None:
    async with house() as home, tool(home.bus, ME, HUB) as me:
        worker = await home.worker("w@memory.test/1", held, ops=SHOWN)
        running = asyncio.ensure_future(me.command("/deploy", sessionid="mine"))
        await eventually(lambda: worker.running == 1)

        await me.command("/deploy", action="cancel", sessionid="mine")

        assert (await problem_of(running)).reason == "cancelled"
        await eventually(lambda: worker.stopped == 1)


@virtual_time
async def test_who_may_not_call_may_not_run_commands_and_strangers_see_nothing() -> None:
    async with house() as home:
        await home.worker("w@memory.test/1", ops=SHOWN)
        async with tool(home.bus, "mallory@memory.test/1", HUB) as stranger:
            assert (await problem_of(stranger.ask(INFO))).condition == "service-unavailable"
            assert (await problem_of(stranger.command("/deploy"))).condition == (
                "service-unavailable"
            )
        async with tool(home.bus, "hub@memory.test/other", HUB) as other:
            await other.ask(INFO)
            assert (await problem_of(other.command("/deploy"))).reason == "not-allowed"


@virtual_time
async def test_a_dispatcher_that_is_shutting_down_takes_no_commands() -> None:
    async with house() as home, tool(home.bus, ME, HUB) as me:
        await home.worker("w@memory.test/1", ops=SHOWN)

        await home.dispatcher.finish(1.0)

        assert (await problem_of(me.command("/deploy"))).reason == "draining"


# -- holding back


def only(op: str, agent: str, within: float = 60.0, **args: Json) -> Errand:
    """An errand for one agent, such as the dispatcher itself has."""
    now, id = asyncio.get_running_loop().time(), mint()
    return Errand(
        Op(id, op=op, left=0, args=args), Demand(op, only=agent), bare(ME), now + within, id, now
    )


@virtual_time
async def test_agents_that_are_held_get_no_work_until_they_are_released() -> None:
    async with house() as home:
        home.dispatcher.hold("w@memory.test", "testing")
        worker = await home.worker()
        call = home.start("/echo", text="hi")
        everywhere = home.start("/echo", want=Want(policy="all"))
        assert (await problem_of(everywhere.result())).reason in ("busy", "no-agent")
        (row,) = (await home.call("/spinal/agents"))["items"]
        assert row["held"] == "testing"
        assert not worker.ran

        home.dispatcher.release("w@memory.test")

        assert (await call.result())["text"] == "hi"


@virtual_time
async def test_a_call_that_names_an_agent_reaches_it_while_it_is_held_even_if_it_waited() -> None:
    async with house() as home:
        worker = await home.worker(behaviour=held, slots=1)
        home.dispatcher.hold("w@memory.test", "testing")
        broker = home.dispatcher.broker
        first = asyncio.create_task(broker.run(only("/echo", worker.address, n=1)))
        await eventually(lambda: worker.ran)
        second = asyncio.create_task(broker.run(only("/echo", worker.address, n=2)))
        anybody = home.start("/echo", timeout=30.0, n=3)
        await eventually(lambda: broker.waiting == 2)

        worker.free.set()

        assert (await first).value == {"by": worker.address, "n": 1}
        assert (await second).value == {"by": worker.address, "n": 2}
        assert (await problem_of(anybody.result())).reason
        assert [request.op.args["n"] for request in worker.ran] == [1, 2]


@virtual_time
async def test_a_sticky_call_goes_elsewhere_once_its_agent_is_held() -> None:
    async with house() as home:
        workers = [
            await home.worker(f"w{n}@memory.test/1", behaviour=held, slots=1) for n in range(2)
        ]
        stick = Want(policy="sticky", sticky="key")
        first = home.start("/echo", want=stick, n=1)
        await eventually(lambda: any(worker.ran for worker in workers))
        (mine,) = [worker for worker in workers if worker.ran]
        (other,) = [worker for worker in workers if not worker.ran]
        second = home.start("/echo", want=stick, n=2)
        await eventually(lambda: home.dispatcher.broker.waiting == 1)

        home.dispatcher.hold(bare(mine.address), "draining")
        other.free.set()

        assert (await second.result())["by"] == other.address
        mine.free.set()
        assert (await first.result())["by"] == mine.address
