"""A small world on a memory bus: a dispatcher, agents of the kit, and callers.

Everything in it is real but the wire and the clock.  Workers keep what they begin until the story
lets it end, and the world keeps a ledger of what was begun, which is what effects would show.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from spinal.agents import Agent, Effects, Job
from spinal.agents.life import Life
from spinal.bus import Client
from spinal.bus.errors import CallError
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.jobs.clock import Clock
from spinal.dispatcher.store import store_for
from spinal.protocols import Problem
from spinal.protocols.address import bare
from spinal.testing import Faults, MemoryBus, eventually

DISPATCHER = "dispatcher.memory.test"
#: May run twice; may not; and answers at once.
READ, WRITE, QUICK = "/photo/read", "/photo/print", "/photo/name"

#: Every account is named after its role, with a number behind.
ROLES = ("owner", "caller", "agent")


def role_of(address: str) -> str | None:
    if address == DISPATCHER:
        return "dispatcher"
    name = bare(address).partition("@")[0].rstrip("0123456789")
    return name if name in ROLES else None


class Effect(NamedTuple):
    """Something that a worker began to do."""

    worker: str
    op: str
    n: int


@dataclass(eq=False)
class Worker:
    """An agent of the kit with three operations, of which two wait until they may end."""

    name: str
    ledger: list[Effect]
    life: Life = field(init=False)
    #: While it is not set, what reads or prints does not end.
    free: asyncio.Event = field(default_factory=asyncio.Event)
    running: list[int] = field(default_factory=list[int])
    stopped: list[int] = field(default_factory=list[int])

    @property
    def address(self) -> str:
        return f"{self.name}@memory.test/agent"

    def begun(self, op: str | None = None) -> list[int]:
        """What it began, in order."""
        return [e.n for e in self.ledger if e.worker == self.name and op in (None, e.op)]

    def is_running(self) -> bool:
        return bool(self.running)

    def agent(self, ops: Collection[str], slots: int = 4, **options: Any) -> Agent:
        """Write the agent down."""
        agent = Agent(self.name, slots=slots, **options)

        async def work(job: Job, n: int = 0) -> list[object]:
            """Do it once the story says so; gives who did it, and the number."""
            await self._work(job, n)
            return [self.name, n]

        async def quick(job: Job, n: int = 0) -> list[object]:
            """Do it at once."""
            self.ledger.append(Effect(self.name, job.op, n))
            return [self.name, n]

        for op in ops:
            effects: Effects = "writes" if op == WRITE else "reads"
            agent.op(op, effects=effects, timeout="10m")(work if op in (READ, WRITE) else quick)
        return agent

    async def _work(self, job: Job, n: int) -> None:
        self.ledger.append(Effect(self.name, job.op, n))
        self.running.append(n)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.stopped.append(n)
            raise
        finally:
            self.running.remove(n)


class World:
    """Who is on the bus, and what was begun."""

    def __init__(self, bus: MemoryBus, stack: AsyncExitStack) -> None:
        self.bus = bus
        self.ledger: list[Effect] = []
        self.dispatcher: Dispatcher
        self.client: Client
        self._stack = stack
        self._epoch = 0
        #: Where its jobs are kept, if it has any.
        self.file: Path | None = None

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def dispatch(self) -> None:
        """Start a dispatcher, which takes the place of one that died."""
        self._epoch += 1
        store = None if self.file is None else store_for(f"sqlite:///{self.file}")
        self.dispatcher = Dispatcher(
            self.bus.connection(DISPATCHER),
            roles=role_of,
            epoch=self._epoch,
            store=store,
            clock=Clock(running=lambda: self.now),
        )
        await self._stack.enter_async_context(self.dispatcher)

    async def worker(
        self,
        name: str = "agent1",
        ops: Collection[str] = (READ, WRITE, QUICK),
        *,
        free: bool = False,
        known: bool = True,
        **options: Any,
    ) -> Worker:
        """Start an agent, a new life each time, and wait until it can be called."""
        worker = Worker(name, self.ledger)
        if free:
            worker.free.set()
        await self.add(worker, worker.agent(ops, **options), known=known)
        return worker

    async def add(self, worker: Worker, agent: Agent, *, known: bool = True) -> None:
        """Bring a worker's agent to the bus."""
        self._epoch += 1
        worker.life = Life(
            agent,
            self.bus.connection(worker.address),
            dispatchers=[DISPATCHER],
            epoch=self._epoch,
        )
        await self._stack.enter_async_context(worker.life)
        if known:
            await eventually(lambda: self.knows(worker), what=f"{worker.name} is known")

    def knows(self, worker: Worker) -> bool:
        """Whether the dispatcher has this life of a worker and what it offers, and both are here."""
        found = self.dispatcher.registry.get(worker.address)
        return (
            self.dispatcher.session.connected
            and worker.life.session.connected
            and found is not None
            and found.epoch == worker.life.epoch
            and found.gone_at is None
            and set(found.operations) == set(worker.life.agent.operations)
        )

    async def caller(self, name: str) -> Client:
        """Log somebody else in."""
        connection = self.bus.connection(f"{name}@memory.test/web")
        client = Client(connection=connection, dispatchers=[DISPATCHER])
        return await self._stack.enter_async_context(client)

    def ask(
        self, op: str, client: Client | None = None, *, timeout: float = 300.0, **options: Any
    ) -> Asking:
        """Give what makes calls of an operation in tasks of their own."""
        chosen = (client or self.client).options(timeout=timeout, **options)
        return Asking(self._stack, chosen, op)


class Asking:
    """Makes calls of one operation."""

    def __init__(self, stack: AsyncExitStack, client: Client, op: str) -> None:
        self._stack = stack
        self._client = client
        self._op = op

    def __call__(self, **arguments: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(self._client.call(self._op, **arguments))
        self._stack.push_async_callback(_end, task)
        return task


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()


@asynccontextmanager
async def world(
    seed: int = 0, faults: Faults | None = None, file: Path | None = None
) -> AsyncGenerator[World]:
    """A bus with a dispatcher and one caller; with a file for the store it takes jobs."""
    async with AsyncExitStack() as stack:
        bus = MemoryBus(faults=faults, seed=seed)
        made = World(bus, stack)
        made.file = file
        await made.dispatch()
        made.client = await made.caller("caller")
        yield made


async def problem_of(call: Awaitable[Any]) -> Problem:
    """Wait for a call that is to fail."""
    with pytest.raises(CallError) as caught:
        await call
    assert "\n" not in str(caught.value)
    return caught.value.problem


async def ends(call: Awaitable[Any]) -> Any:
    """Wait for a call; gives its value, or its problem."""
    try:
        return await call
    except CallError as error:
        return error.problem


def counted(ledger: Collection[Effect], by: Callable[[Effect], Any]) -> Mapping[Any, int]:
    """Count effects."""
    return Counter(by(effect) for effect in ledger)
