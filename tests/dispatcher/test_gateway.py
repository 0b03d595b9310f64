"""A gateway asks for others, knows who they are, and watches the agents; time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.dispatcher.test_service import HUB, Worker, held, problem_of

from spinal.bus.call import Call
from spinal.bus.session import Session
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.store import store_for
from spinal.protocols import Data, Json
from spinal.testing import MemoryBus, eventually, virtual_time

ROLES = {
    "gate@memory.test": "gateway",
    "ann@memory.test": "caller",
    "boss@memory.test": "owner",
    "hub@memory.test": "dispatcher",
    **{f"w{n}@memory.test": "agent" for n in range(4)},
}
ANN = "ann@memory.test/phone"


class House:
    def __init__(self, bus: MemoryBus, gate: Session, stack: AsyncExitStack) -> None:
        self.bus = bus
        self.gate = gate
        self.stack = stack
        self.dispatcher: Dispatcher

    async def session(self, address: str) -> Session:
        return await self.stack.enter_async_context(
            Session(self.bus.connection(address), dispatchers=(HUB,))
        )

    async def worker(self, number: int, *args: Any, **said: Any) -> Worker:
        name = f"w{number}@memory.test/agent"
        worker = await self.stack.enter_async_context(Worker(self.bus, name, *args, **said))

        def known() -> bool:
            agent = self.dispatcher.registry.get(name)
            return agent is not None and agent.capabilities is not None

        await eventually(known)
        return worker

    def ask(self, op: str, caller: str | None = ANN, /, **args: Json) -> Call:
        return self.gate.call(HUB, op, args, caller=caller)


@asynccontextmanager
async def house(store: Path | None = None) -> AsyncGenerator[House]:
    bus = MemoryBus()
    async with AsyncExitStack() as stack:
        dispatcher = Dispatcher(
            bus.connection(HUB),
            roles=ROLES,
            accounts=lambda: ROLES,
            store=None if store is None else store_for(f"sqlite:///{store / 'jobs.db'}"),
        )
        await stack.enter_async_context(dispatcher)
        gate = Session(bus.connection("gate@memory.test/agent"), dispatchers=(HUB,))
        home = House(bus, await stack.enter_async_context(gate), stack)
        home.dispatcher = dispatcher
        yield home


@virtual_time
async def test_an_agent_is_told_for_whom_a_gateway_asks() -> None:
    async with house() as home:
        worker = await home.worker(1)

        await home.ask("/echo", text="hi").result()

        assert [request.caller for request in worker.ran] == [ANN]


@pytest.mark.parametrize(
    "caller",
    ["mallory@memory.test/x", "hub@memory.test", "ann@elsewhere.test", "ann@memory.test.evil", " "],
)
def test_a_gateway_cannot_ask_for_an_account_that_may_not_call(caller: str) -> None:
    @virtual_time
    async def story() -> None:
        async with house() as home:
            worker = await home.worker(1)

            problem = await problem_of(home.ask("/echo", caller, text="hi").result())

            assert problem.reason == "not-allowed" and not worker.ran

    story()


@virtual_time
async def test_for_a_caller_a_gateway_may_what_the_caller_may_and_no_more() -> None:
    async with house() as home:
        for op in ("/spinal/tap", "/spinal/agents/watch", "/spinal/accounts"):
            assert (await problem_of(home.ask(op).result())).reason == "not-allowed"
        assert (await problem_of(home.ask("/spinal/tap", None).result())).reason == "not-allowed"


@virtual_time
async def test_who_is_no_gateway_asks_for_nobody_but_itself() -> None:
    async with house() as home:
        worker = await home.worker(1)
        ann = await home.session(ANN)

        await ann.call(HUB, "/echo", {}, caller="boss@memory.test/desk").result()

        assert [request.caller for request in worker.ran] == [ANN]


@virtual_time
async def test_agents_believe_no_gateway() -> None:
    async with house() as home:
        worker = await home.worker(1)

        await home.gate.call(worker.address, "/echo", {}, caller=ANN).result()

        assert [request.caller for request in worker.ran] == ["gate@memory.test/agent"]


def test_a_job_that_was_submitted_for_somebody_is_theirs(tmp_path: Path) -> None:
    @virtual_time
    async def story() -> None:
        async with house(tmp_path) as home:
            await home.worker(1)
            made = await home.ask(
                "/spinal/jobs/submit", op="/echo", args={"text": "hi"}, wait=10.0
            ).result()
            assert made["state"] == "done" and made["caller"] == "ann@memory.test"
            ann = await home.session("ann@memory.test/desk")
            found = await ann.call(HUB, "/spinal/jobs/list").result()
            assert [job["id"] for job in found["items"]] == [made["id"]]
            why = home.ask("/spinal/jobs/why", id=made["id"])
            assert (await why.result())["id"] == made["id"]
            for other in (None, "w1@memory.test/agent"):
                answer = home.ask("/spinal/jobs/why", other, id=made["id"]).result()
                assert (await problem_of(answer)).reason == "unknown-job"

    story()


@virtual_time
async def test_accounts_are_listed_by_role_and_one_by_one() -> None:
    async with house() as home:
        ask = partial(home.ask, "/spinal/accounts", None)

        owners = await ask(role="owner").result()
        ann = await ask(account=ANN).result()
        nobody = await ask(account="mallory@memory.test").result()
        two = await ask(limit=2).result()

        assert owners["items"] == [{"account": "boss@memory.test", "role": "owner"}]
        assert ann["items"] == [{"account": "ann@memory.test", "role": "caller"}]
        assert nobody["items"] == []
        assert len(two["items"]) == 2 and two["more"] and two["total"] == len(ROLES)


# -- watching


class Watching:
    """A watch of a gateway, and what it has told."""

    def __init__(self, home: House, window: int = 8) -> None:
        self.call = home.gate.call(HUB, "/spinal/agents/watch", timeout=3600, window=window)
        self.pieces: list[list[Mapping[str, Any]]] = []
        home.stack.push_async_callback(self._end)
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for item in self.call:
            if isinstance(item, Data):
                self.pieces.append(item.value)

    async def _end(self) -> None:
        self._task.cancel()

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        return [row for piece in self.pieces for row in piece]

    def told(self, what: str) -> list[str]:
        return [str(row["agent"]) for row in self.rows if row["what"] == what]


async def watching(home: House) -> Watching:
    watch = Watching(home)
    await eventually(lambda: watch.pieces)
    return watch


@virtual_time
async def test_an_agent_that_dies_is_told_with_what_it_ran_and_its_return_too() -> None:
    async with house() as home:
        worker = await home.worker(1, held)
        watch = await watching(home)
        assert watch.pieces == [[]]
        running = home.ask("/deploy")
        await eventually(lambda: worker.ran)

        home.bus.kill(worker.address)

        await eventually(lambda: watch.told("gone"))
        (row,) = watch.rows
        assert row["agent"] == worker.address and row["in_flight"] == 1
        assert [each["op"] for each in row["running"]] == ["/deploy"]
        home.gate.abandon(running)
        again = Worker(home.bus, worker.address, epoch=2)
        await home.stack.enter_async_context(again)
        await eventually(lambda: watch.told("here") == [worker.address])


@virtual_time
async def test_an_agent_that_hangs_is_told_once_it_is_suspect() -> None:
    async with house() as home:
        worker = await home.worker(1)
        watch = await watching(home)

        home.bus.hang(worker.address)

        await eventually(lambda: watch.told("gone"), 60)
        assert watch.rows[0]["why"] == "silent for 12 s"
        home.bus.resume(worker.address)
        await eventually(lambda: watch.told("here"), 60)


@virtual_time
async def test_an_agent_that_has_said_that_it_leaves_is_not_told() -> None:
    async with house() as home:
        leaving = await home.worker(1)
        dying = await home.worker(2)
        watch = await watching(home)

        leaving.advertise(state="draining")
        agent = home.dispatcher.registry.get(leaving.address)
        await eventually(lambda: agent is not None and agent.advertisement.state == "draining")
        await leaving.session.close()
        home.bus.kill(dying.address)

        await eventually(lambda: watch.told("gone"))
        assert watch.told("gone") == [dying.address]


@virtual_time
async def test_who_begins_to_watch_is_told_who_is_gone_now() -> None:
    async with house() as home:
        worker = await home.worker(1)
        await home.worker(2)
        home.bus.kill(worker.address)
        agent = home.dispatcher.registry.get(worker.address)
        await eventually(lambda: agent is not None and agent.gone_at is not None)

        watch = await watching(home)

        assert watch.told("gone") == [worker.address]


@virtual_time
async def test_a_watch_is_a_stream_for_who_may() -> None:
    async with house() as home:
        assert (await problem_of(home.ask("/spinal/agents/watch", None).result())).reason == (
            "bad-arguments"
        )
        ann = await home.session(ANN)
        refused = ann.call(HUB, "/spinal/agents/watch", window=4).result()
        assert (await problem_of(refused)).reason == "not-allowed"
