"""Several dispatchers on one PostgreSQL, in this process: the wire is a memory bus, the time real.

A dispatcher can be switched off from its store, so that it is dead or stopped for the others while
its objects are still there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests import postgres

from spinal.agents import Agent, Job
from spinal.agents.life import Life
from spinal.bus import Client
from spinal.bus.errors import CallError, NotAllowed
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.jobs import keeper
from spinal.dispatcher.jobs.clock import Clock
from spinal.dispatcher.store import store_for
from spinal.protocols import Stanza
from spinal.testing import Faults, MemoryBus, eventually

ONE, TWO = "one@memory.test/d", "two@memory.test/d"
READ, WRITE, QUICK = "/photo/read", "/photo/print", "/photo/name"

#: Logins of clients are numbered.
_numbers = itertools.count(1)

#: Seconds of a lease here, and between two renewals.
LEASE, RENEW = 2.0, 0.2
#: Seconds that something which takes a moment may take on a busy machine.
SOON = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    reason = postgres.available()
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    with postgres.server() as running:
        yield running.url()


@pytest.fixture
def url(server: str) -> str:
    """A database in which there is nothing yet."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS spinal CASCADE")
    return server


@pytest.fixture(autouse=True)
def quick_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LEASE", LEASE)
    monkeypatch.setattr(keeper, "RENEW", RENEW)


class Switched:
    """A store that does not answer while it is off, as for a process that is stopped or dead."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.on = asyncio.Event()
        self.on.set()
        self._late: set[asyncio.Task[None]] = set()

    def post(self, changes: Any, told: Any) -> None:
        async def late() -> None:
            await self.on.wait()
            self._store.post(changes, told)

        if self.on.is_set():
            self._store.post(changes, told)
        else:
            task = asyncio.create_task(late())
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    def __getattr__(self, name: str) -> Any:
        async def method(*args: Any, **kwargs: Any) -> Any:
            await self.on.wait()
            return await getattr(self._store, name)(*args, **kwargs)

        return method


@dataclass(eq=False)
class Worker:
    """An agent of the kit that writes down what it begins, and ends it when it may."""

    life: Life
    begun: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    ended: list[int] = field(default_factory=list[int])
    stopped: list[int] = field(default_factory=list[int])
    times: list[float] = field(default_factory=list[float])
    running: int = 0
    most: int = 0
    free: asyncio.Event = field(default_factory=asyncio.Event)


ROLES = {"one": "dispatcher", "two": "dispatcher", "boss": "owner", "me": "caller"}


class Site:
    """Two dispatchers with homes of their own, and who else is there."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.bus = MemoryBus()
        self.url = url
        self.stores: dict[str, Switched] = {}
        self.dispatchers: dict[str, Dispatcher] = {}
        self.others: dict[str, list[str]] = {}
        self._stack = stack

    async def dispatch(
        self, address: str, more: Mapping[str, str] | None = None, clock: Clock | None = None
    ) -> Dispatcher:
        """Start a dispatcher whose home knows these accounts and the usual ones."""
        names = {**ROLES, **{f"worker{n}": "agent" for n in range(1, 5)}, **(more or {})}
        accounts = {f"{name}@memory.test": role for name, role in names.items()}
        store: Any = Switched(store_for(self.url))
        self.stores[address] = store
        self.dispatchers[address] = Dispatcher(
            self.bus.connection(address),
            roles=accounts,
            accounts=lambda: accounts,
            store=store,
            clock=clock,
            on_dispatchers=lambda found: self.others.update({address: sorted(found)}),
        )
        return await self._stack.enter_async_context(self.dispatchers[address])

    async def worker(
        self, name: str = "worker1", slots: int = 4, knows: str = ONE, free: bool = False
    ) -> Worker:
        """Start an agent that was told of one dispatcher, and wait until it is known to all."""
        agent = Agent(name, slots=slots)
        connection = self.bus.connection(f"{name}@memory.test/agent")
        worker = Worker(Life(agent, connection, dispatchers=[knows], heartbeat=0.5, pause=0.05))
        if free:
            worker.free.set()

        async def work(job: Job, n: int = 0) -> int:
            worker.begun.append((job.op, n))
            worker.times.append(time.monotonic())
            worker.running += 1
            worker.most = max(worker.most, worker.running)
            try:
                await worker.free.wait()
                await asyncio.sleep(0 if job.op == QUICK else 0.02)
            except asyncio.CancelledError:
                worker.stopped.append(n)
                raise
            finally:
                worker.running -= 1
            worker.ended.append(n)
            return n

        for op in (READ, WRITE, QUICK):
            agent.op(op, effects="writes" if op == WRITE else "reads", timeout="10m")(work)
        await self._stack.enter_async_context(worker.life)
        await self.known(worker, *self.dispatchers)
        return worker

    async def known(self, worker: Worker, *addresses: str) -> None:
        def everywhere() -> bool:
            found = [self.dispatchers[d].registry.get(worker.life.address) for d in addresses]
            return all(agent is not None and agent.operations for agent in found)

        await eventually(everywhere, SOON, f"{worker.life.address} is known to {addresses}")

    async def client(self, *dispatchers: str, name: str = "me") -> Client:
        """Log somebody in who was told of these dispatchers."""
        number = next(_numbers)
        connection = self.bus.connection(f"{name}@memory.test/{number}")
        client = Client(connection=connection, dispatchers=dispatchers)
        return await self._stack.enter_async_context(client)

    def stop(self, address: str) -> None:
        """Stop a dispatcher as SIGSTOP does."""
        self.bus.hang(address)
        self.stores[address].on.clear()

    def proceed(self, address: str) -> None:
        """Let it go on."""
        self.stores[address].on.set()
        self.bus.resume(address)

    def kill(self, address: str) -> None:
        """Kill a dispatcher as SIGKILL does."""
        self.stores[address].on.clear()
        self.bus.kill(address)

    async def close(self) -> None:
        for store in self.stores.values():
            store.on.set()


@asynccontextmanager
async def site(url: str, *addresses: str, **options: Any) -> AsyncGenerator[Site]:
    async with AsyncExitStack() as stack:
        made = Site(url, stack)
        for address in addresses or (ONE, TWO):
            await made.dispatch(address, **options)
        stack.push_async_callback(made.close)
        yield made


async def met(here: Site) -> None:
    """Wait until the dispatchers know each other."""
    await eventually(lambda: here.others.get(ONE) == here.others.get(TWO) == [ONE, TWO], SOON)


# -- any of them


async def test_a_job_submitted_at_one_is_seen_and_explained_by_the_other(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker()
        first, second = await here.client(ONE), await here.client(TWO)

        job = await first.options(label="x").submit(READ, n=1)
        await eventually(lambda: worker.begun)
        same = second.job(job.id)

        assert (await same.info())["state"] == "processing"
        assert [row["id"] async for row in second.jobs(label="x")] == [job.id]
        assert any("worker1" in line for line in await same.why())
        watched = asyncio.create_task(_states(same))
        worker.free.set()
        assert await same.result() == 1
        assert (await watched)[-1] == "done"
        assert worker.begun == [(READ, 1)]


async def _states(job: Any) -> list[str]:
    return [update.state async for update in job.watch()]


async def test_the_same_key_submitted_at_both_gives_one_job(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker(free=True)
        clients = [await here.client(ONE), await here.client(TWO)]

        jobs = await asyncio.gather(
            *(c.options(key=f"k{n}").submit(WRITE, n=n) for n in range(20) for c in clients)
        )
        values = await asyncio.gather(*(job.result() for job in jobs))

        assert len({job.id for job in jobs}) == 20
        assert sorted(values) == sorted(list(range(20)) * 2)
        assert sorted(n for _, n in worker.begun) == list(range(20))


async def test_agents_advertise_to_a_dispatcher_that_came_later(url: str) -> None:
    async with site(url, ONE) as here:
        worker = await here.worker(knows=ONE, free=True)

        await here.dispatch(TWO)

        await here.known(worker, ONE, TWO)
        assert await (await here.client(TWO)).call(QUICK, n=3) == 3


async def test_a_client_learns_of_the_others_and_goes_to_them_when_its_own_dies(url: str) -> None:
    async with site(url, ONE) as here:
        await here.worker(free=True)
        client = await here.client(ONE)
        assert await client.call(QUICK, n=1) == 1
        await here.dispatch(TWO)
        await met(here)
        await eventually(lambda: TWO in client.line.dispatchers)

        here.kill(ONE)

        assert await client.call(QUICK, n=2) == 2
        assert await (await client.submit(QUICK, n=3)).result() == 3


async def test_an_account_of_one_home_may_do_at_the_other_what_its_role_allows(url: str) -> None:
    async with site(url, ONE) as here:
        await here.dispatch(TWO, more={"you": "caller", "robot": "agent"})
        await met(here)
        await here.worker("robot", knows=TWO, free=True)

        you = await here.client(ONE, name="you")
        assert await you.call(QUICK, n=1) == 1

        stranger = await here.client(ONE, name="stranger")
        with pytest.raises(NotAllowed):
            await stranger.options(timeout=5).call(QUICK, n=1)
        with pytest.raises(NotAllowed):
            await you.ask_dispatcher("/spinal/limits/set", op=QUICK, concurrent=1)


async def test_what_the_own_home_says_of_an_account_counts_more(url: str) -> None:
    async with site(url, ONE) as here:
        await here.dispatch(TWO, more={"me": "owner"})
        await met(here)

        me = await here.client(ONE)
        with pytest.raises(NotAllowed):
            await me.ask_dispatcher("/spinal/limits/set", op=QUICK, concurrent=1)


# -- deaths


async def test_what_a_dead_dispatcher_had_goes_on_at_the_other_and_nothing_runs_twice(
    url: str,
) -> None:
    async with site(url) as here:
        worker = await here.worker(slots=4)
        first = await here.client(ONE)
        jobs = [await first.submit(WRITE if n % 2 else READ, n=n) for n in range(12)]
        later = await first.options(delay=0.5).submit(QUICK, n=12)
        await eventually(lambda: len(worker.begun) == 4)

        here.kill(ONE)
        killed = time.monotonic()

        second = await here.client(TWO)
        # They are the second's once the lease of the first is over; then they may end.
        await eventually(lambda: len(here.dispatchers[TWO].keeper.live) >= 12, SOON)  # type: ignore[union-attr]
        assert time.monotonic() - killed < LEASE + 10 * RENEW + 2
        worker.free.set()
        values = [await second.job(job.id).result(timeout=SOON) for job in [*jobs, later]]

        assert values == list(range(13))
        assert sorted(n for _, n in worker.begun) == list(range(13))
        assert worker.stopped == []
        assert [(await second.job(job.id).info())["attempt"] for job in jobs[:4]] == [1] * 4


async def test_a_final_that_came_while_nobody_had_the_job_is_not_lost(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker()
        job = await (await here.client(ONE)).submit(WRITE, n=1)
        await eventually(lambda: worker.begun)

        here.kill(ONE)
        worker.free.set()
        await eventually(lambda: worker.ended)

        assert await (await here.client(TWO)).job(job.id).result(timeout=SOON) == 1
        assert worker.begun == [(WRITE, 1)]
        await eventually(lambda: worker.life.session.kept == 0, SOON)


async def test_an_attempt_that_was_written_down_and_not_sent_runs_once(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker(free=True)
        client = await here.client(ONE)

        def to_the_worker(stanza: Stanza) -> bool:
            return stanza.kind == "iq" and stanza.sender == ONE and stanza.to == worker.life.address

        here.bus.faults = Faults(delay=(3600, 3600), applies=to_the_worker)
        job = await client.submit(WRITE, n=1)
        await eventually(lambda: here.dispatchers[ONE].broker.in_flight == 1)
        here.stop(ONE)
        here.bus.faults = Faults()

        second = (await here.client(TWO)).job(job.id)
        assert await second.result(timeout=SOON) == 1

        here.proceed(ONE)
        await here.dispatchers[ONE].failed()
        await here.dispatchers[ONE].close()
        assert worker.begun == [(WRITE, 1)]
        assert (await second.info())["attempt"] == 1


async def test_a_stopped_dispatcher_finds_its_life_over_and_lets_go_of_everything(
    url: str,
) -> None:
    async with site(url) as here:
        worker = await here.worker(slots=4)
        client = await here.client(ONE)
        jobs = [await client.submit(WRITE if n % 2 else READ, n=n) for n in range(8)]
        await eventually(lambda: len(worker.begun) == 4)

        here.stop(ONE)
        await eventually(lambda: len(here.dispatchers[TWO].keeper.live) == 8, SOON)  # type: ignore[union-attr]
        here.proceed(ONE)
        failed = await asyncio.wait_for(here.dispatchers[ONE].failed(), SOON)
        await here.dispatchers[ONE].close()

        assert "life is over" in str(failed)
        # What runs is the other one's, and goes on.
        assert worker.stopped == []
        worker.free.set()
        second = await here.client(TWO)
        assert [await second.job(j.id).result(timeout=SOON) for j in jobs] == list(range(8))
        assert sorted(n for _, n in worker.begun) == list(range(8))
        # And it may come back.
        await here.dispatch(ONE)
        await eventually(lambda: here.others[TWO] == [ONE, TWO], SOON)
        assert await (await here.client(ONE)).job(jobs[0].id).result() == 0


async def test_a_dispatcher_whose_life_is_over_sends_its_callers_to_the_others(url: str) -> None:
    async with site(url) as here:
        await here.worker(free=True)
        await met(here)
        client = await here.client(ONE, TWO)
        here.stores[ONE].on.clear()
        await eventually(lambda: here.others[TWO] == [TWO], SOON)
        here.stores[ONE].on.set()

        job = await client.submit(QUICK, n=1)

        assert await job.result() == 1


# -- cancelling what another one has


async def test_a_job_of_another_dispatcher_is_cancelled_at_any(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker()
        job = await (await here.client(ONE)).submit(WRITE, n=1)
        await eventually(lambda: worker.begun)
        await met(here)

        began = time.monotonic()
        state = await (await here.client(TWO)).job(job.id).cancel()

        assert state == "killed"
        assert worker.stopped == [1]
        assert time.monotonic() - began < 4


async def test_a_job_of_a_dead_dispatcher_is_cancelled_once_another_one_has_it(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker()
        job = await (await here.client(ONE)).submit(WRITE, n=1)
        await eventually(lambda: worker.begun)

        here.kill(ONE)

        assert await (await here.client(TWO)).job(job.id).cancel() == "killed"
        assert worker.stopped == [1]


async def test_the_children_of_a_map_run_at_both_and_are_cancelled_with_it(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker()
        await met(here)
        first, second = await here.client(ONE), await here.client(TWO)
        parent = await first.line.ask(
            "/spinal/jobs/submit", {"op": READ, "kind": "map", "key": "m"}, until=_in(10)
        )
        for n, client in enumerate((first, second) * 2):
            child = {"op": READ, "parent": parent["id"], "position": n, "args": {"n": n}}
            await client.line.ask("/spinal/jobs/submit", child, until=_in(10))
        await eventually(lambda: len(worker.begun) == 4, SOON)

        assert await second.job(parent["id"]).cancel() == "killed"

        states = [row["state"] async for row in first.job(parent["id"]).children()]
        assert states == ["killed"] * 4
        assert sorted(worker.stopped) == [0, 1, 2, 3]


def _in(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_a_job_that_comes_after_one_of_another_dispatcher_runs(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker()
        first = await (await here.client(ONE)).submit(READ, n=1)
        second = await (await here.client(TWO)).options(after=first.id).submit(READ, n=2)
        await eventually(lambda: worker.begun)

        worker.free.set()

        assert await second.result(timeout=SOON) == 2
        assert [n for _, n in worker.begun] == [1, 2]


# -- limits and schedules


async def test_a_limit_of_concurrency_holds_over_both(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker(slots=16, free=True)
        await met(here)
        boss = await here.client(ONE, name="boss")
        await boss.ask_dispatcher("/spinal/limits/set", op=WRITE, concurrent=2)
        clients = [await here.client(ONE), await here.client(TWO)]

        jobs = [await clients[n % 2].submit(WRITE, n=n) for n in range(16)]
        values = [await job.result(timeout=60) for job in jobs]

        assert values == list(range(16))
        assert worker.most == 2


async def test_a_limit_of_rate_holds_over_both(url: str) -> None:
    async with site(url) as here:
        worker = await here.worker(slots=16, free=True)
        await met(here)
        boss = await here.client(TWO, name="boss")
        await boss.ask_dispatcher("/spinal/limits/set", op=QUICK, rate=4, per=1)
        clients = [await here.client(ONE), await here.client(TWO)]

        jobs = [await clients[n % 2].submit(QUICK, n=n) for n in range(14)]
        for job in jobs:
            await job.result(timeout=60)

        begun = sorted(worker.times)
        # The first four may begin at once, and then four in each second.
        assert begun[-1] - begun[0] >= (14 - 4 - 1) / 4
        assert all(later - former >= 0.9 for former, later in zip(begun, begun[8:], strict=False))


async def test_a_schedule_fires_once(url: str) -> None:
    # A clock on which the next minute begins in two seconds.
    now = datetime.now(UTC)
    shift = (now.replace(second=0, microsecond=0) + timedelta(minutes=1) - now).total_seconds() - 2
    clock = Clock(wall=lambda: time.time() + shift)
    async with site(url, clock=clock) as here:
        worker = await here.worker(free=True)
        client = await here.client(ONE)
        await client.ask_dispatcher(
            "/spinal/schedules/add", cron="* * * * *", submission={"op": QUICK, "args": {"n": 7}}
        )

        await eventually(lambda: worker.begun, SOON)
        for dispatcher in here.dispatchers.values():
            assert dispatcher.keeper is not None
            dispatcher.keeper.timetable.changed()
        rows = [row async for row in (await here.client(TWO)).jobs(op=QUICK)]

        assert len(rows) == 1
        assert worker.begun == [(QUICK, 7)]


# -- calls


async def test_a_burst_of_calls_over_both_loses_nothing(url: str) -> None:
    async with site(url) as here:
        workers = [await here.worker(f"worker{n}", slots=2, free=True) for n in range(1, 4)]
        clients = [await here.client(ONE), await here.client(TWO)]

        values = await asyncio.gather(
            *(clients[n % 2].options(timeout=60).call(READ, n=n) for n in range(200))
        )

        assert values == list(range(200))
        begun = Counter(n for worker in workers for _, n in worker.begun)
        assert set(begun.values()) == {1}


async def test_a_burst_of_jobs_over_both_runs_each_once(url: str) -> None:
    async with site(url) as here:
        workers = [await here.worker(f"worker{n}", slots=2, free=True) for n in range(1, 4)]
        clients = [await here.client(ONE), await here.client(TWO)]

        jobs = await asyncio.gather(*(clients[n % 2].submit(WRITE, n=n) for n in range(200)))
        values = await asyncio.gather(*(job.result(timeout=60) for job in jobs))

        assert values == list(range(200))
        begun = Counter(n for worker in workers for _, n in worker.begun)
        assert set(begun.values()) == {1}


# -- the store


async def test_a_store_that_cannot_be_reached_is_told_at_the_start(tmp_path: Path) -> None:
    bus = MemoryBus()
    store = store_for("postgresql://spinal:secret@127.0.0.1:1/jobs")
    with pytest.raises(Exception) as caught:
        async with Dispatcher(bus.connection(ONE), roles={}, store=store):
            pass
    said = str(caught.value)
    assert "jobs on 127.0.0.1" in said and "secret" not in said and "\n" not in said
    assert getattr(caught.value, "exit_code", None) == 4
    assert not isinstance(caught.value, CallError)
