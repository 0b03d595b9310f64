"""All pools and their machines: looks at each of them again and again, and carries out what is decided.

Theory of operation.  Pools and machines stand in the store alone (:class:`~.books.Books`), so that
any dispatcher may go on with them, and nothing is lost by a restart; whoever orders a machine wrote
that down before.  What to do about one machine says :func:`~.tending.tend`, and
:class:`~.tender.Tender` does it; how many a pool wants, :func:`~.scaling.decide`; which ones are
ordered, :func:`~.plan.plan`, and :class:`~.orders.Orders` orders them.

While our stream is gone, nothing is decided: then silence says nothing about machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import structlog

from spinal.bus.errors import CallError

from ..broker import Broker
from ..jobs.job import Job, JobState
from ..jobs.keeper import Keeper
from ..registry import Registry
from ..store.contract import LifeOver, StoreError
from . import scaling, tending
from .books import Books
from .gate import Gate
from .machine import Machine, State
from .orders import Orders
from .pool import Event, Phase, Pool
from .purse import Purse
from .ranking import rank
from .refusals import Refusals
from .renting import Renting
from .responses import Responses
from .scaling import Have, Measures
from .sweeper import Sweeper
from .tender import Tender
from .tending import Step
from .vendors import Vendors

log = structlog.get_logger()

#: Seconds between two looks, and while something is under way.
LOOK: Final = 1.0
SOON: Final = 0.25

#: Seconds from which it may be us who were stopped, and not the machines.
STOPPED: Final = 4.0

#: Seconds between two looks at the budgets, at what the machines that run would cost elsewhere, and
#: for machines of long ago.
RECKON: Final = 20.0
COMPARE: Final = 300.0
TIDY: Final = 600.0

#: Most waiting jobs that are counted.
MAX_COUNTED: Final = 10_000


class Fleet:
    """See the module.

    Args:
        keeper: has the store.
        registry: who is there.
        broker: asks provider agents.
        renting: what the home says.
        address: our own, in whose name vendors are asked.
        hold: holds back the agents of an account, and says why.
        release: gives them work again.
        leads: tells whether it is we who decide, of several dispatchers on one store.
    """

    def __init__(
        self,
        keeper: Keeper,
        registry: Registry,
        broker: Broker,
        renting: Renting,
        *,
        address: str,
        hold: Callable[[str, str], None],
        release: Callable[[str], None],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._keeper = keeper
        self._registry = registry
        self._broker = broker
        self._leads = leads
        door, pace = renting.door, renting.pace
        self._gate = Gate(door, renting.domain, keeper.spawn, hold=hold, release=release)
        self.books = Books(keeper, self._gate, pace.pauses)
        self.purse = Purse(self.books, renting.market)
        self.vendors = Vendors(broker, registry, address, keeper.now)
        self.refusals = Refusals(keeper.now, self._images, pace.pauses)
        self._tender = Tender(
            self.books,
            self.vendors,
            self.refusals,
            self._gate,
            door,
            keeper=keeper,
            registry=registry,
            broker=broker,
            pace=pace,
        )
        self.orders = Orders(
            self.books,
            self.purse,
            self.vendors,
            self.refusals,
            self._tender,
            self._gate,
            keeper,
            renting,
        )
        self.sweeper = Sweeper(self.books, self.vendors, keeper, pace, is_here=self._tender.is_here)
        self._responses: dict[str, Responses] = {}
        #: Machines that are to go because a budget ends, and why; and when that is reckoned again.
        self._overdue: Mapping[str, str] = {}
        self._reckon_at = 0.0
        #: When it is looked again whether a pool's machines are to be had for less.
        self._compare_at: dict[str, float] = {}
        self._tidy_at = 0.0

    def _images(self) -> list[str]:
        return [pool.spec.server.image for pool in self.books.pools.values()]

    # -- the loop

    async def open(self) -> None:
        """Learn which machines are held back, before anybody can be given work.

        Raises:
            StoreError: the store cannot be used now.
        """
        try:
            await self.books.refresh()
        except (StoreError, LifeOver):
            raise
        except Exception:
            log.exception("pools_not_looked_at")

    async def run(self) -> None:
        """Look after the pools, for ever."""
        looked, changed = self._time(), self.books.changed
        while True:
            changed.clear()
            before, looked = looked, self._time()
            awake = looked - before < STOPPED
            if awake and self._registry.runs and not self._keeper.draining:
                try:
                    await self._look()
                except StoreError as exc:
                    log.warning("pools_not_looked_at", error=str(exc))
                except LifeOver:
                    raise
                except Exception:
                    # A record that nobody understands must not keep machines for ever.
                    log.exception("pools_not_looked_at")
            busy = any(m.state is not State.READY for m in self.books.machines.values())
            try:
                async with asyncio.timeout(SOON if busy else LOOK):
                    await changed.wait()
            except TimeoutError:
                pass

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()

    async def _look(self) -> None:
        books = self.books
        await books.refresh()
        self._tender.forget()
        if not self._leads():
            return
        if self._time() >= self._reckon_at:
            self._reckon_at = self._time() + RECKON
            self._overdue = self.purse.overdue(pool.spec for pool in books.pools.values())
        self.sweeper.look(self._tender.moving())
        for machine in list(books.machines.values()):
            await self._alone(machine.name, self._tender.tend(machine))
        for pool in list(books.pools.values()):
            await self._alone(pool.name, self._keep_to_size(pool))
        if self._time() >= self._tidy_at:
            self._tidy_at = self._time() + TIDY
            self._gate.tidy(books.ledger.values(), books.now())
            await books.tidy()

    @staticmethod
    async def _alone(name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something about one pool or machine; a mistake in it must not keep the others waiting."""
        try:
            await work
        except (StoreError, LifeOver):
            raise
        except Exception:
            log.exception("not_tended", name=name)

    # -- one pool

    async def _keep_to_size(self, pool: Pool) -> None:
        books, tender = self.books, self._tender
        machines = books.of_pool(pool.name)
        if pool.over(books.now()):
            pool = await self._end(pool) or pool
        if pool.phase is not Phase.UP:
            await self._wind_down(pool, machines)
            return
        machines = await self._retire(pool, machines)
        pool = books.pools.get(pool.name, pool)
        counted = [one for one in machines if one.state.counts and not one.retiring]
        pool = await self._scaled(pool, machines, counted)
        ready = sum(one.state is State.READY for one in counted)
        retiring = [one for one in machines if one.retiring and one.state.counts]
        # One by one: what is paid for those that go may be needed for the next ones.
        for one in retiring[: max(0, ready + len(retiring) - pool.wanted)]:
            await tender.send_away(one, one.why)
        if len(counted) < pool.wanted:
            if books.now() >= pool.pause:
                self.orders.fill(pool)
            return
        for one in tending.victims(counted, len(counted) - pool.wanted):
            await tender.send_away(one, pool.why or "the pool wants fewer")
        if pool.spec.scale.consolidate is not None and ready == len(machines):
            self._compare(pool)

    async def _end(self, pool: Pool) -> Pool | None:
        """Have a pool go down whose time is over, whatever became of whoever made it."""
        event = Event(at=self.books.now(), what="down", about=pool.name, said="its time is over")
        return await self.books.keep(
            replace(pool, phase=Phase.DOWN, wanted=0, short="").noting(event)
        )

    async def _wind_down(self, pool: Pool, machines: Sequence[Machine]) -> None:
        for one in machines:
            await self._tender.send_away(one, f"the pool is {pool.phase.value}")
        if machines or pool.phase is not Phase.DOWN or not await self.books.forget(pool):
            return
        log.info("pool_is_down", pool=pool.name)
        self.orders.forget(pool.name)
        self._compare_at.pop(pool.name, None)
        self._responses.pop(pool.name, None)

    async def _retire(self, pool: Pool, machines: Sequence[Machine]) -> list[Machine]:
        """Send away what is too old or too dear, and have replaced what soon will be."""
        now, found = self.books.now(), list[Machine]()
        for one in machines:
            if one.state.counts and now >= one.expires:
                await self._tender.send_away(one, "its time is over")
            elif one.name in self._overdue:
                await self._tender.send_away(one, self._overdue[one.name])
            elif (
                one.state is State.READY
                and not one.retiring
                and now >= one.expires - int(pool.spec.life.join * 1000)
            ):
                retiring = replace(one, retiring=True, why="its time is over soon")
                await self.books.save(one, Step(retiring))
            found.append(self.books.machines.get(one.name, one))
        return found

    # -- cheaper ones

    def _compare(self, pool: Pool) -> None:
        """See, now and then, whether a machine is to be had for less."""
        if self._time() < self._compare_at.get(pool.name, 0.0):
            return

        async def compare() -> None:
            try:
                await self._consolidate(pool)
            except (CallError, StoreError) as exc:
                log.warning("prices_not_compared", pool=pool.name, error=str(exc))

        self._compare_at[pool.name] = self._time() + COMPARE
        self._keeper.spawn("comparing", compare)

    async def _consolidate(self, pool: Pool) -> None:
        """Have a machine replaced where that saves as much as the pool file says."""
        spec, now = pool.spec, self.books.now()
        found = await self.vendors.offers(spec.server)
        exchange, blocked = self.purse.market().exchange, self.refusals.blocked(spec.server.image)
        ranked = rank(found.offers, exchange, spec.server, now, blocked=blocked)
        offers = [one.offer for one in ranked.offers[:1]]
        swap = scaling.consolidate(spec, self.books.of_pool(pool.name), offers, now)
        if swap is None or swap.offer.price > self.purse.room(spec):
            return
        price = f"{swap.offer.price:.4g} {exchange.currency} an hour"
        why = f"{swap.offer.vendor} has {swap.offer.type} for {price}, which saves {swap.share:.0%}"
        await self.books.save(swap.machine, Step(replace(swap.machine, retiring=True, why=why)))

    # -- as many as are wanted

    async def _scaled(
        self, pool: Pool, machines: Sequence[Machine], counted: Sequence[Machine]
    ) -> Pool:
        """Give the pool with the number of machines that it wants now."""
        measures = await self._measures(pool, machines)
        now = self.books.now()
        have = Have.of(counted)
        decision = scaling.decide(pool.spec, pool.memory, measures, have, now)
        after = replace(pool, memory=decision.memory)
        if decision.wanted != pool.wanted:
            log.info("pool_scaled", pool=pool.name, wanted=decision.wanted, why=decision.why)
            event = Event(at=now, what="scaled", about=str(decision.wanted), said=decision.why)
            after = replace(after, wanted=decision.wanted, why=decision.why).noting(event)
        return pool if after == pool else await self.books.keep(after) or pool

    async def _measures(self, pool: Pool, machines: Sequence[Machine]) -> Measures:
        """Measure what a pool is scaled by."""
        ops = pool.spec.scale.ops
        if not ops:
            return Measures()
        slots = busy = idle = 0
        for machine in machines:
            if machine.state is State.READY:
                agents = self._tender.agents(machine, pool.spec)
                running = sum(max(agent.busy, agent.in_flight) for agent in agents)
                slots += sum(agent.slots for agent in agents if ops[0] in agent.operations)
                busy += running
                idle += not running
        stored = await self._keeper.store.queued(ops, MAX_COUNTED)
        waiting = max(stored, self._broker.waiting_for(ops))
        p95 = self._responses.setdefault(pool.name, Responses()).p95(self.books.now())
        return Measures(waiting=waiting, slots=slots, busy=busy, p95=p95, idle=idle)

    def job_ended(self, job: Job) -> None:
        """Note how long a job took."""
        if job.state is not JobState.DONE or job.runnable is None or job.ended is None:
            return
        for name, pool in self.books.pools.items():
            if job.op in pool.spec.scale.ops:
                took = (job.ended - job.runnable) / 1000
                self._responses.setdefault(name, Responses()).add(took, job.ended)
