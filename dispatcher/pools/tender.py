"""Tends the pools: looks at each of them again and again, and carries out what is decided.

Theory of operation.  Pools and machines stand in the store alone, so that any dispatcher may go on
with them, and nothing is lost by a restart.  Every change of a machine is one write under its version,
together with what the pool remembers of it; so of several dispatchers only the first succeeds, and
whoever ordered a machine wrote that down before.  What to do about one machine says
:func:`~.tending.tend`; how many a pool wants, :func:`~.scaling.decide`; which ones are ordered,
:func:`~.plan.plan`.

Orders of all pools take one turn after the other (:data:`PURSE`), so that two of them cannot spend
the same money.

While our stream is gone, nothing is decided: then silence says nothing about machines.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol, cast

import structlog

from spinal.agents.provider.offer import Offer
from spinal.agents.provider.pace import Pace
from spinal.agents.provider.settings import Providers
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem, SpinalError
from spinal.protocols.retry import doubled

from ..agent import KnownAgent
from ..broker import Broker
from ..jobs.job import Job, JobState
from ..jobs.keeper import Keeper
from ..registry import Registry
from ..resolver import Demand
from ..store.contract import FENCED, Change, Keep, LifeOver, Record, StoreError
from . import money, record, scaling, tending
from .launches import Launches, Offering, asked
from .machine import Machine, State
from .money import Budget
from .plan import Impossible, Plan, plan
from .pool import Event, Phase, Pool
from .ranking import Blocked, rank
from .responses import Responses
from .scaling import Have, Measures
from .spec import PoolSpec
from .tending import Ask, Seen, Step, Terms
from .vendors import Outcome, Vendors

log = structlog.get_logger()

#: Seconds between two looks, and while something is under way.
LOOK: Final = 1.0
SOON: Final = 0.25

#: Seconds from which it may be us who were stopped, and not the machines.
STOPPED: Final = 4.0

#: Seconds that a self-test may take, and between two of them.
TESTING: Final = 20.0
TEST_AGAIN: Final = 2.0

#: Seconds between two looks at the budgets, and at what the machines that run would cost elsewhere.
RECKON: Final = 20.0
COMPARE: Final = 300.0

#: Seconds after which a pool that did not get what it lacks asks again.
ORDER_AGAIN: Final = 2.0

#: Seconds after which a machine is ordered in place of one that never joined, at first and at most.
FIRST_PAUSE: Final = 4.0
MAX_PAUSE: Final = 600.0

#: Times that a machine's account is tried to be taken away, and milliseconds for which that is
#: begun again by a dispatcher that does not know whether it was.
DISMISSALS: Final = 12
DOUBTFUL: Final = 3_600_000

#: Seconds for which the records of machines are kept that never were, and of others for the bill;
#: seconds between two looks for older ones, and how many of them are deleted together.
DOUBTED: Final = 86_400.0
BILLED: Final = 400 * 86_400.0
TIDY: Final = 600.0
MAX_TIDIED: Final = 1000

#: Most pools.
MAX_POOLS: Final = 200

#: Most waiting jobs that are counted.
MAX_COUNTED: Final = 10_000

#: Record that every order moves on.
PURSE: Final = ("purse", "orders")

#: Letters of names: no vowels, so that they spell nothing, and nothing that looks like another.
_LETTERS: Final = "bcdfghjkmnpqrstvwxz2456789"

#: Times that a change is tried which somebody else was faster with.
TRIES: Final = 8


class Door(Protocol):
    """How machines come onto the bus."""

    def agents(self, spec: PoolSpec) -> Sequence[str]:
        """Give the resources of the agents that run on each machine."""
        ...

    async def invite(self, machine: Machine, spec: PoolSpec) -> str:
        """Make a ticket for a machine, and give the script that it boots with."""
        ...

    async def dismiss(self, name: str) -> None:
        """Take a machine's account and tickets away; nothing for one that has none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Renting:
    """What a home says about machines that it rents."""

    #: How machines come onto the bus, and the domain of their accounts.
    door: Door
    domain: str
    #: Id of the home, which machines are tagged with.
    home: str
    #: Gives currency, rates and budgets as they are now.
    market: Callable[[], Providers]
    pace: Pace = field(default_factory=Pace)


class Tender:
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
        self._door = renting.door
        self._domain = renting.domain
        self._home = renting.home
        self._pace = renting.pace
        #: Gives currency, rates and budgets as they are now.
        self.market = renting.market
        self._leads = leads
        self._hold_back = hold
        self._release = release
        self.vendors = Vendors(broker, registry, address, keeper.now, self._is_rented)
        self.launches = Launches(pauses=renting.pace.pauses)
        #: Image -> what does not take it: a pool whose image is misspelt is no other pool's matter.
        self._unfit: dict[str, Launches] = {}
        self._responses: dict[str, Responses] = {}
        self.pools: dict[str, Pool] = {}
        self.machines: dict[str, Machine] = {}
        #: Machines that are over, for the bill; and their records as far as they are known.
        self.ledger: dict[str, Machine] = {}
        self._purse = 0
        self._learned = False
        #: Machines that are to go because a budget ends, and why; and when that is reckoned again.
        self._overdue: Mapping[str, str] = {}
        self._reckon_at = 0.0
        #: When it is looked again whether a pool's machines are to be had for less.
        self._compare_at: dict[str, float] = {}
        self._changed = asyncio.Event()
        #: Machines that something is being done about.
        self._busy: set[str] = set()
        #: Pools for which machines are being chosen.
        self._ordering: set[str] = set()
        #: When a pool that did not get what it lacks is looked at again.
        self._order_at: dict[str, float] = {}
        self._tidy_at = 0.0
        #: Machines that are over, and whose account is taken away.
        self._dismissed: set[str] = set()
        self._turn = asyncio.Lock()
        #: Held while something is written, so that we do not overtake ourselves.
        self._writing = asyncio.Lock()
        self._tests: dict[str, tuple[bool, str]] = {}
        #: Since when no agent of a machine is there.
        self._away: dict[str, int] = {}
        #: The account of each machine that is held back, and why.
        self._held: dict[str, str] = {}

    # -- the loop

    async def open(self) -> None:
        """Learn which machines are held back, before anybody can be given work.

        Raises:
            StoreError: the store cannot be used now.
        """
        try:
            await self.refresh()
        except (StoreError, LifeOver):
            raise
        except Exception:
            log.exception("pools_not_looked_at")

    async def run(self) -> None:
        """Look after the pools, for ever."""
        looked = self._time()
        while True:
            self._changed.clear()
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
            busy = any(m.state is not State.READY for m in self.machines.values())
            try:
                async with asyncio.timeout(SOON if busy else LOOK):
                    await self._changed.wait()
            except TimeoutError:
                pass

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()

    async def _look(self) -> None:
        await self.refresh()
        if not self._leads():
            return
        self._reckon()
        self._look_at_vendors()
        for machine in list(self.machines.values()):
            await self._alone(machine.name, self._tend(machine))
        for pool in list(self.pools.values()):
            await self._alone(pool.name, self._keep_to_size(pool))
        if self._time() >= self._tidy_at:
            self._tidy_at = self._time() + TIDY
            await self._tidy()

    async def _tidy(self) -> None:
        """Forget machines of long ago; the rest of too many in the next rounds."""
        now = self.now()
        for one in list(self.ledger.values()):
            if one.since + DOUBTFUL > now and one.name not in self._dismissed:
                self._dismissed.add(one.name)
                self._keeper.spawn("dismissing", self._dismiss, one.name)
        self._dismissed &= self.ledger.keys()
        long = {State.NEVER: DOUBTED, State.GONE: BILLED}
        old = [one for one in self.ledger.values() if one.since + long[one.state] * 1000 < now][
            :MAX_TIDIED
        ]
        if not old:
            return
        drops = [Keep(record.of_machine(one), drop=True) for one in old]
        if (await self._keeper.store.write(*drops))[0] is FENCED:
            self._learned, self.ledger = False, {}
            return
        for one in old:
            self.ledger.pop(one.name, None)

    def _reckon(self) -> None:
        """Find, now and then, the machines for which a budget has no more money."""
        if self._time() < self._reckon_at:
            return
        self._reckon_at = self._time() + RECKON
        # Those of the home are among the budgets of each pool.
        budgets: dict[Budget, None] = {}
        for spec in (None, *(pool.spec for pool in self.pools.values())):
            try:
                budgets |= dict.fromkeys(self.budgets(spec))
            except CallError as exc:
                log.error("budget_not_reckoned", error=str(exc))
        drain = max((pool.spec.life.drain for pool in self.pools.values()), default=0.0)
        going = money.overdue(budgets, self.recent(), self.now(), drain=drain)
        self._overdue = {machine.name: why for machine, why in going}

    @staticmethod
    async def _alone(name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something about one pool or machine; a mistake in it must not keep the others waiting."""
        try:
            await work
        except (StoreError, LifeOver):
            raise
        except Exception:
            log.exception("not_tended", name=name)

    async def refresh(self, doubtful: bool = False) -> None:
        """Learn what others made of pools and machines.

        Args:
            doubtful: what we know may be old although nobody else lives on our store, as far as we
                know.
        """
        if self._learned and self._keeper.alone and not doubtful:
            return
        store = self._keeper.store
        # Before the machines: whoever orders by what we know must have known of all of them.
        purse = (await store.versions(PURSE[0])).get(PURSE[1], 0)
        versions = await store.versions(record.POOL)
        self.pools = {name: one for name, one in self.pools.items() if name in versions}
        stale = [
            n for n, v in versions.items() if n not in self.pools or self.pools[n].version != v
        ]
        for one in await store.records(record.POOL, stale) if stale else ():
            self.pools[one.name] = record.pool(one)
        versions = await store.versions(record.MACHINE)
        known = self.machines
        self.machines = {name: one for name, one in known.items() if name in versions}
        stale = [n for n, v in versions.items() if n not in known or known[n].version != v]
        for one in await store.records(record.MACHINE, stale) if stale else ():
            self.machines[one.name] = record.machine(one)
            self.ledger.pop(one.name, None)
        over = known.keys() - self.machines.keys()
        if over or not self._learned or purse != self._purse:
            # All of them once, and then those that others close; what somebody else has ordered
            # may be over before we heard of it.
            missing = (await store.versions(record.LEDGER)).keys() - self.ledger.keys()
            for one in await store.records(record.LEDGER, sorted(missing)) if missing else ():
                self.ledger[one.name] = record.machine(one)
            self._learned = True
        for gone in over:
            self._forget(gone)
        self._purse = purse
        for machine in self.machines.values():
            self._hold(machine)

    def _forget(self, name: str) -> None:
        self._tests.pop(name, None)
        self._away.pop(name, None)
        if self._held.pop(name, None) is not None:
            self._release(self._account(name))

    # -- what vendors have

    def _look_at_vendors(self) -> None:
        names, pace = self._names(), self._pace
        moving = {
            m.vendor
            for m in self.machines.values()
            # Whose agents are away may have ended, which its vendor knows.
            if m.state is not State.READY or m.name in self._away
        }
        # Also where we have no machine: there may be one that nobody remembers.
        every = {v: pace.look if v in moving else pace.rest for v in self.vendors.here()}
        for vendor in self.vendors.due(every):
            self._keeper.spawn("looking at a vendor", self._look_at, vendor, names)

    async def _look_at(self, vendor: str, names: Mapping[str, Sequence[str]]) -> None:
        before = self.vendors.listings.get(vendor)
        await self.vendors.look([vendor], names)
        listing = self.vendors.listings.get(vendor)
        if listing is None or listing is before:
            return
        try:
            await self._reap(vendor, listing)
        except StoreError as exc:
            log.warning("machines_not_compared", vendor=vendor, error=str(exc))
        self._changed.set()

    def _names(self) -> Mapping[str, Sequence[str]]:
        """Give the names of our machines by vendor."""
        names: defaultdict[str, list[str]] = defaultdict(list)
        for machine in self.machines.values():
            names[machine.vendor].append(machine.name)
        return names

    async def _reap(self, vendor: str, listing: tending.Listing) -> None:
        """Take up again what should be gone and is not."""
        strays = [name for name in listing.machines if name not in self.machines]
        if not strays:
            return
        for one in await self._keeper.store.records(record.LEDGER, strays):
            known = record.machine(one)
            # Until then the list may be from before it went.
            settled = known.since + int(self._pace.settle * 1000)
            if known.vendor != vendor or listing.asked <= settled:
                continue
            why = "it was held for gone, and its vendor has it"
            back = tending.leaving(replace(known, ended=None), self._keeper.now(), why)
            began = known.began or known.created
            changes = Keep(one, drop=True), Keep(record.of_machine(replace(back, version=0)))
            if (await self._keeper.store.write(*changes))[0] is not FENCED:
                self.ledger.pop(known.name, None)
                kept = self.machines[known.name] = replace(back, version=1)
                self._hold(kept)
                log.warning("machine_came_back", machine=known.name, vendor=vendor, began=began)

    # -- one machine

    def _account(self, name: str) -> str:
        return f"{name}@{self._domain}"

    def _is_rented(self, account: str) -> bool:
        """Tell whether an account is that of a machine, as long as it may have one."""
        name, _, domain = account.partition("@")
        return domain == self._domain and (name in self.machines or name in self.ledger)

    def _agents(self, machine: Machine, spec: PoolSpec) -> list[KnownAgent]:
        account = self._account(machine.name)
        found = (self._registry.get(f"{account}/{one}") for one in self._door.agents(spec))
        return [agent for agent in found if agent is not None]

    def _seen(self, machine: Machine, spec: PoolSpec) -> Seen:
        now = self._keeper.now()
        agents = self._agents(machine, spec)
        here = [agent for agent in agents if agent.gone_at is None and not agent.silent]
        if here or machine.state not in (State.READY, State.DRAINING):
            self._away.pop(machine.name, None)
        else:
            self._away.setdefault(machine.name, now)
        whole = len(here) == len(self._door.agents(spec))
        passed, said = self._tests.get(machine.name, (None, ""))
        return Seen(
            now,
            self.vendors.listings.get(machine.vendor),
            len(here) if whole else 0,
            sum(max(agent.busy, agent.in_flight) for agent in here),
            self._away.get(machine.name),
            passed,
            said,
        )

    async def _tend(self, machine: Machine) -> None:
        if machine.name in self._busy:
            return
        pool = self.pools.get(machine.pool)
        spec = None if pool is None else pool.spec
        seen = Seen(self._keeper.now(), self.vendors.listings.get(machine.vendor))
        terms = Terms()
        if spec is not None:
            seen, terms = self._seen(machine, spec), Terms(spec.life.join, spec.life.drain)
        step = tending.tend(machine, seen, terms, self._pace)
        if step.machine is not machine and not await self._save(machine, step):
            return
        match step.ask:
            case Ask.NOTHING:
                pass
            case Ask.TEST if pool is not None:
                self._do(machine.name, self._test(step.machine, pool))
            case _:
                self._do(machine.name, self._destroy(machine.name))

    def _do(self, name: str, work: Awaitable[None]) -> None:
        """Do something about a machine, which nothing else is done about meanwhile."""

        async def do() -> None:
            try:
                await work
            except StoreError as exc:
                log.warning("machine_not_kept", machine=name, error=str(exc))
            finally:
                self._busy.discard(name)
                self._changed.set()

        self._busy.add(name)
        self._keeper.spawn("tending", do)

    async def _save(self, before: Machine, step: Step) -> Machine | None:
        """Keep what became of a machine, with what its pool is to remember of it.

        Gives nothing if somebody else was first.
        """
        async with self._writing:
            return await self._save_in_turn(before, step)

    async def _save_in_turn(self, before: Machine, step: Step) -> Machine | None:
        after = replace(step.machine, version=before.version)
        changes: list[Change] = [*_moving(before, after)]
        pool = self.pools.get(after.pool)
        if pool is not None and step.event:
            at = self._keeper.now()
            event = Event(at=at, what=step.event, about=after.name, said=step.said)
            pool = _counting(pool, step.event, at, self._pace.pauses).noting(event)
            changes.append(Keep(record.of_pool(pool)))
        if (await self._keeper.store.write(*changes))[0] is FENCED:
            await self.refresh(doubtful=True)
            return None
        if pool is not None and step.event:
            self.pools[pool.name] = replace(pool, version=pool.version + 1)
            if step.event in _BROKEN:
                key = after.vendor, after.region, after.type
                self.launches = self.launches.refused(key, "unknown", step.said, self.now())
        if after.state is not before.state:
            log.info(
                "machine_moved",
                machine=after.name,
                vendor=after.vendor,
                state=after.state.value,
                what=step.event,
                why=step.said or after.why or after.said,
            )
        if after.state.final:
            self.machines.pop(after.name, None)
            self.ledger[after.name] = replace(after, version=1)
            self._forget(after.name)
            self._keeper.spawn("dismissing", self._dismiss, after.name)
            return after
        kept = replace(after, version=after.version + 1)
        self.machines[kept.name] = kept
        self._hold(kept)
        return kept

    async def _dismiss(self, name: str) -> None:
        """Take a machine's account away, however often that has to be tried: it knows the password."""
        for tries in range(DISMISSALS):
            try:
                await self._door.dismiss(name)
            except LifeOver:
                raise
            except (SpinalError, OSError) as exc:
                log.warning("machine_not_dismissed", machine=name, error=str(exc))
                await asyncio.sleep(doubled(1.0, tries, MAX_PAUSE))
            else:
                self._dismissed.add(name)
                return

    def _hold(self, machine: Machine) -> None:
        """Keep work from a machine that is not ready, or is to go."""
        why = _HOLDS.get(machine.state, "")
        if self._held.get(machine.name, "") == why:
            return
        if why:
            self._held[machine.name] = why
            self._hold_back(self._account(machine.name), why)
        else:
            del self._held[machine.name]
            self._release(self._account(machine.name))

    async def _test(self, machine: Machine, pool: Pool) -> None:
        """Run a pool's self-test on a machine."""
        try:
            for op in pool.spec.life.self_test:
                await self._test_one(op, self._agents(machine, pool.spec))
        except CallError as exc:
            self._tests[machine.name] = False, f"self-test: {exc}"
            await asyncio.sleep(TEST_AGAIN)
            return
        self._tests[machine.name] = True, ""

    async def _test_one(self, op: str, agents: Sequence[KnownAgent]) -> None:
        agent = next((one for one in agents if op in one.operations), None)
        if agent is None:
            raise CallError.of(Problem("no-agent", f"no agent of the machine offers {op}"))
        demand = Demand(op, only=agent.address)
        said = await self._broker.ask(op, {}, demand, self.vendors.caller, TESTING)
        if isinstance(said, dict) and cast("Mapping[str, Any]", said).get("healthy") is False:
            raise CallError.of(Problem("failed", f"{op} says that it is not healthy"))

    async def _destroy(self, name: str) -> None:
        """Have a machine deleted, and frozen before that if its pool is to be."""
        machine = self.machines.get(name)
        if machine is None or machine.state is not State.LEAVING:
            return
        pool = self.pools.get(machine.pool)
        if (
            pool is not None
            and pool.freezes
            and not machine.image
            and machine.began
            and not tending.is_missing(machine, self._pace)
        ):
            outcome = await self.vendors.freeze(machine.vendor, name, pool.name)
            image = str(outcome.get("image", ""))
            frozen = outcome.get("outcome") == "frozen" and image
            if frozen:
                step = Step(replace(machine, image=image), event="frozen", said=image)
            else:
                # Whoever wants the disk kept has to hear it once that this machine still costs.
                after = tending.unfrozen(machine, outcome, self.now(), self._pace)
                step = Step(after, event="" if machine.tries else "not-frozen", said=after.said)
            if await self._save(machine, step) is None or not frozen:
                return
        outcome = await self.vendors.destroy(machine.vendor, name)
        await self.change(name, lambda one: tending.deleted(one, outcome, self.now(), self._pace))

    async def change(self, name: str, change: Callable[[Machine], Machine]) -> None:
        """Change a machine, also if somebody else does at the same time."""
        for _ in range(TRIES):
            machine = self.machines.get(name)
            if machine is None:
                return
            after = change(machine)
            event = "returned" if after.state is State.GONE else ""
            if await self._save(machine, Step(after, event=event, said=after.why)) is not None:
                return

    def now(self) -> int:
        """Give the time, in milliseconds since 1970 UTC."""
        return self._keeper.now()

    # -- one pool

    def of_pool(self, name: str) -> list[Machine]:
        """Give the machines of a pool that exist, or may, by name."""
        found = [one for one in self.machines.values() if one.pool == name]
        return sorted(found, key=lambda one: one.name)

    async def _keep_to_size(self, pool: Pool) -> None:
        machines = self.of_pool(pool.name)
        if pool.over(self.now()):
            pool = await self._end(pool) or pool
        if pool.phase is not Phase.UP:
            await self._wind_down(pool, machines)
            return
        machines = await self._retire(pool, machines)
        pool = self.pools.get(pool.name, pool)
        counted = [one for one in machines if one.state.counts and not one.retiring]
        pool = await self._scaled(pool, machines, counted)
        ready = sum(one.state is State.READY for one in counted)
        retiring = [one for one in machines if one.retiring and one.state.counts]
        # One by one: what is paid for those that go may be needed for the next ones.
        for one in retiring[: max(0, ready + len(retiring) - pool.wanted)]:
            await self._send_away(one, one.why)
        if len(counted) < pool.wanted:
            if self.now() >= pool.pause:
                self._order(pool)
            return
        for one in tending.victims(counted, len(counted) - pool.wanted):
            await self._send_away(one, pool.why or "the pool wants fewer")
        if pool.spec.scale.consolidate is not None and ready == len(machines):
            self._compare(pool)

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
        found = await self.vendors.offers(pool.spec.server)
        exchange, now = self.market().exchange, self.now()
        blocked = self.blocked(pool.spec.server.image)
        ranked = rank(found.offers, exchange, pool.spec.server, now, blocked=blocked)
        offers = [one.offer for one in ranked.offers[:1]]
        swap = scaling.consolidate(pool.spec, self.of_pool(pool.name), offers, now)
        if swap is None or swap.offer.price > self._room(pool.spec):
            return
        price = f"{swap.offer.price:.4g} {exchange.currency} an hour"
        why = f"{swap.offer.vendor} has {swap.offer.type} for {price}, which saves {swap.share:.0%}"
        await self._save(swap.machine, Step(replace(swap.machine, retiring=True, why=why)))

    async def _end(self, pool: Pool) -> Pool | None:
        """Have a pool go down whose time is over, whatever became of whoever made it."""
        event = Event(at=self.now(), what="down", about=pool.name, said="its time is over")
        return await self.keep(replace(pool, phase=Phase.DOWN, wanted=0, short="").noting(event))

    async def _wind_down(self, pool: Pool, machines: Sequence[Machine]) -> None:
        for one in machines:
            await self._send_away(one, f"the pool is {pool.phase.value}")
        if not machines and pool.phase is Phase.DOWN:
            drop = Keep(record.of_pool(pool), drop=True)
            if (await self._keeper.store.write(drop))[0] is FENCED:
                await self.refresh(doubtful=True)
                return
            log.info("pool_is_down", pool=pool.name)
            for kept in (self.pools, self._order_at, self._compare_at, self._responses):
                kept.pop(pool.name, None)

    async def _send_away(self, machine: Machine, why: str) -> None:
        """Have a machine go: at once if it is of no use yet, else when it has finished what it runs."""
        now = self.now()
        if machine.state is State.READY:
            await self._save(machine, Step(tending.draining(machine, now, why)))
        elif machine.state in (State.BOOTING, State.TESTING):
            await self._save(machine, Step(tending.leaving(machine, now, why)))

    async def _retire(self, pool: Pool, machines: Sequence[Machine]) -> list[Machine]:
        """Send away what is too old or too dear, and have replaced what soon will be."""
        now, found = self.now(), list[Machine]()
        overdue = self._overdue
        for one in machines:
            if one.state.counts and now >= one.expires:
                await self._send_away(one, "its time is over")
            elif one.name in overdue:
                await self._send_away(one, overdue[one.name])
            elif (
                one.state is State.READY
                and not one.retiring
                and now >= one.expires - int(pool.spec.life.join * 1000)
            ):
                retiring = replace(one, retiring=True, why="its time is over soon")
                await self._save(one, Step(retiring))
            found.append(self.machines.get(one.name, one))
        return found

    def recent(self) -> list[Machine]:
        """Give the machines that this month's money is spent on."""
        begin, _ = money.month(self.now())
        over = (one for one in self.ledger.values() if (one.ended or one.since) >= begin)
        return [*self.machines.values(), *over]

    def all(self) -> list[Machine]:
        """Give every machine that is remembered, also those that are gone."""
        return [*self.machines.values(), *self.ledger.values()]

    async def _scaled(
        self, pool: Pool, machines: Sequence[Machine], counted: Sequence[Machine]
    ) -> Pool:
        """Give the pool with the number of machines that it wants now."""
        measures = await self._measures(pool, machines)
        now = self.now()
        have = Have.of(counted)
        decision = scaling.decide(pool.spec, pool.memory, measures, have, now)
        after = replace(pool, memory=decision.memory)
        if decision.wanted != pool.wanted:
            log.info("pool_scaled", pool=pool.name, wanted=decision.wanted, why=decision.why)
            event = Event(at=now, what="scaled", about=str(decision.wanted), said=decision.why)
            after = replace(after, wanted=decision.wanted, why=decision.why).noting(event)
        return pool if after == pool else await self.keep(after) or pool

    async def _measures(self, pool: Pool, machines: Sequence[Machine]) -> Measures:
        """Measure what a pool is scaled by."""
        ops = pool.spec.scale.ops
        if not ops:
            return Measures()
        slots = busy = idle = 0
        for machine in machines:
            if machine.state is State.READY:
                agents = self._agents(machine, pool.spec)
                running = sum(max(agent.busy, agent.in_flight) for agent in agents)
                slots += sum(agent.slots for agent in agents if ops[0] in agent.operations)
                busy += running
                idle += not running
        stored = await self._keeper.store.queued(ops, MAX_COUNTED)
        waiting = max(stored, self._broker.waiting_for(ops))
        p95 = self._responses.setdefault(pool.name, Responses()).p95(self.now())
        return Measures(waiting=waiting, slots=slots, busy=busy, p95=p95, idle=idle)

    def job_ended(self, job: Job) -> None:
        """Note how long a job took."""
        if job.state is not JobState.DONE or job.runnable is None or job.ended is None:
            return
        for name, pool in self.pools.items():
            if job.op in pool.spec.scale.ops:
                took = (job.ended - job.runnable) / 1000
                self._responses.setdefault(name, Responses()).add(took, job.ended)

    async def keep(self, pool: Pool, *changes: Change) -> Pool | None:
        """Keep a pool as it is now; nothing if somebody else was first."""
        async with self._writing:
            written = await self._keeper.store.write(Keep(record.of_pool(pool)), *changes)
            if written[0] is FENCED:
                await self.refresh(doubtful=True)
                return None
            kept = self.pools[pool.name] = replace(pool, version=pool.version + 1)
        self._changed.set()
        return kept

    async def sweep(self, delete: bool, names: Sequence[str] | None) -> Json:
        """Compare what vendors have with what is written down.

        Args:
            delete: delete what no record owns, and close records whose machine is gone.
            names: only of these machines.
        """
        await self.refresh()
        here = self.vendors.here()
        asked = self.now()
        await self.vendors.look(here, self._names())
        await self.refresh()
        fresh = {
            vendor: listing
            for vendor, listing in self.vendors.listings.items()
            if vendor in here and listing.asked >= asked
        }
        orphans = [
            (vendor, name, sight)
            for vendor, listing in sorted(fresh.items())
            for name, sight in sorted(listing.machines.items())
            if name not in self.machines and (names is None or name in names)
        ]
        missing = [
            one
            for _, one in sorted(self.machines.items())
            if one.vendor in fresh
            and one.began is not None
            and one.since < fresh[one.vendor].asked
            and one.name not in fresh[one.vendor].machines
            # A list may be behind, and who is on the bus exists.
            and not self._is_here(one)
            and (names is None or one.name in names)
        ]
        deleted: dict[str, str] = {}
        if delete:
            for vendor, name, _ in orphans:
                outcome = await self.vendors.destroy(vendor, name)
                deleted[name] = str(outcome.get("outcome"))
            for one in missing:
                await self.change(one.name, self._closed)
                deleted[one.name] = "gone"
        unknown = sorted({one.vendor for one in self.machines.values()} - fresh.keys())
        return {
            "orphans": [
                {"vendor": vendor, "name": name, **sight.row()} for vendor, name, sight in orphans
            ],
            "missing": [
                {"vendor": one.vendor, "name": one.name, "pool": one.pool, "id": one.id}
                for one in missing
            ],
            "deleted": deleted,
            "errors": {
                vendor: self.vendors.errors.get(vendor, "its provider agent is not on the bus")
                for vendor in sorted({*unknown, *here} - fresh.keys())
            },
        }

    def _is_here(self, machine: Machine) -> bool:
        pool = self.pools.get(machine.pool)
        agents = [] if pool is None else self._agents(machine, pool.spec)
        return any(agent.gone_at is None and not agent.silent for agent in agents)

    def _closed(self, machine: Machine) -> Machine:
        return tending.moved(machine, State.GONE, self.now(), why="its vendor does not have it")

    # -- ordering

    def _order(self, pool: Pool) -> None:
        """Choose and order what a pool lacks, unless that is being done."""
        if pool.name in self._ordering or self._time() < self._order_at.get(pool.name, 0.0):
            return

        async def order() -> None:
            ordered = 0
            try:
                async with self._turn:
                    ordered = await self._order_in_turn(pool.name)
            except (StoreError, CallError) as exc:
                log.warning("machines_not_ordered", pool=pool.name, error=str(exc))
            finally:
                self._ordering.discard(pool.name)
                # What could not be had is not there a moment later either.
                pause = 0.0 if ordered else ORDER_AGAIN
                self._order_at[pool.name] = self._time() + pause
            if ordered:
                self._changed.set()

        self._ordering.add(pool.name)
        self._keeper.spawn("ordering", order)

    async def _order_in_turn(self, name: str) -> int:
        """Order what a pool lacks, as far as it is to be had; gives how many machines that are."""
        pool = self.pools.get(name)
        if pool is None or pool.phase is not Phase.UP:
            return 0
        market = await self.vendors.offers(pool.spec.server)
        await self.refresh()
        pool = self.pools.get(name)
        if pool is None or pool.phase is not Phase.UP:
            return 0
        # What is ordered is paid from what the plan knew of, and from nothing that came later.
        purse = self._purse
        try:
            found = await self.planned(pool.spec, market.offers, pool.wanted)
        except (Impossible, CallError) as exc:
            await self._is_short(pool, "; ".join([str(exc), *_told(market.errors)]))
            return 0
        ordered = 0
        for one in found.rent:
            # A machine is paid in the currency of its vendor.
            offer = one.listed
            if not self.launches.room(
                offer.key, asked(self.machines.values())[offer.key], self.now()
            ):
                continue
            kept = await self._order_one(pool, offer, purse)
            if kept is None:
                break
            pool, ordered, purse = kept, ordered + 1, purse + 1
            self._purse = max(self._purse, purse)
        if found.missing and not ordered:
            await self._is_short(pool, "; ".join([*found.notes, *_told(market.errors)]))
        return ordered

    async def planned(self, spec: PoolSpec, offers: Sequence[Offer], wanted: int) -> Plan:
        """Say what would be ordered now, so that a pool has as many machines.

        Raises:
            Impossible: nothing fits.
        """
        now, market = self.now(), self.market()
        limits = {
            name: account.limit
            for name, account in market.accounts.items()
            if account.limit is not None
        }
        room = self._room(spec)
        work = partial(
            plan,
            spec,
            offers,
            market.exchange,
            # What is to be replaced is paid for until it is gone, and does not count.
            [
                replace(one, state=State.DRAINING) if one.retiring else one
                for one in self.machines.values()
            ],
            wanted,
            now,
            blocked=self.blocked(spec.server.image),
            room=room,
            limits=limits,
        )
        # Packing takes seconds; the rest is done sooner than a thread is found for it.
        return await asyncio.to_thread(work) if spec.demand else work()

    def _room(self, spec: PoolSpec) -> float:
        """Give the money of an hour that a pool's further machines may cost."""
        return money.room(
            self.budgets(spec),
            self.recent(),
            self.now(),
            spec.pool,
            spec.money.label,
            drain=spec.life.drain,
        )

    def blocked(self, image: str = "") -> Blocked:
        """Give what is not asked for now, nor for an image, until when, and why."""
        now, unfit = self.now(), self._unfit.get(image)
        blocks = {**({} if unfit is None else unfit.blocked(now)), **self.launches.blocked(now)}
        return {key: (block.until, f"{block.kind}: {block.said}") for key, block in blocks.items()}

    def _refused(
        self, key: Offering, image: str, kind: str, said: str, after: float | None
    ) -> None:
        """Remember a refusal; what a vendor does not understand may be the image."""
        if kind != "invalid":
            self.launches = self.launches.refused(key, kind, said, self.now(), after)
            return
        images = {one.spec.server.image for one in self.pools.values()} | {image}
        self._unfit = {each: known for each, known in self._unfit.items() if each in images}
        known = self._unfit.get(image, Launches(pauses=self._pace.pauses))
        self._unfit[image] = known.unfit(key, said, self.now())

    def budgets(self, spec: PoolSpec | None = None) -> list[Budget]:
        """Give the budgets of the home, and of a pool, in the home's currency.

        Raises:
            CallError: one is in a currency without a rate.
        """
        market = self.market()
        own = () if spec is None else (Budget.of(spec.pool, spec.money),)
        try:
            shared = [
                Budget(label=one.label or "", per_month=one.per_month) for one in market.budgets
            ]
            return [one.converted(market.exchange) for one in (*own, *shared)]
        except ValueError as exc:
            raise CallError.of(Problem("refused", str(exc))) from exc

    async def _is_short(self, pool: Pool, why: str) -> None:
        if pool.short != why:
            log.warning("pool_is_short", pool=pool.name, why=why)
            event = Event(at=self.now(), what="short", about=pool.name, said=why)
            await self.keep(replace(pool, short=why).noting(event))

    async def _order_one(self, pool: Pool, offer: Offer, purse: int) -> Pool | None:
        """Write down that a machine is to be, and only then ask for it.

        Gives nothing if somebody was faster, or nobody knows any more what it would cost.
        """
        now, rate = self.now(), self.market().exchange.rate(offer.currency)
        if rate is None:
            return None
        machine = Machine(
            name=self._fresh_name(pool.name),
            pool=pool.name,
            label=pool.spec.money.label,
            state=State.ORDERED,
            since=now,
            vendor=offer.vendor,
            region=offer.region,
            type=offer.type,
            arch=offer.arch,
            cpu=offer.cpu,
            ram=offer.ram,
            price=offer.price,
            currency=offer.currency,
            rate=rate,
            created=now,
            expires=now + int(pool.spec.life.ttl * 1000),
        )
        kept = await self.keep(
            replace(pool, short=""),
            Keep(Record(*PURSE, purse, None)),
            Keep(record.of_machine(machine)),
        )
        if kept is None:
            return None
        machine = self.machines[machine.name] = replace(machine, version=1)
        self._hold(machine)
        log.info("machine_ordered", machine=machine.name, pool=pool.name, offer=offer.key)
        self._do(machine.name, self._rent(machine, kept.spec))
        return kept

    def _fresh_name(self, pool: str) -> str:
        return f"{pool}-{''.join(secrets.choice(_LETTERS) for _ in range(6))}"

    async def _rent(self, machine: Machine, spec: PoolSpec) -> None:
        """Ask the vendor for a machine that was written down."""
        try:
            script = await self._door.invite(machine, spec)
        except (CallError, StoreError, OSError) as exc:
            # No vendor is to blame, so another offer is no better: the pool has to pause.
            outcome: Outcome = {"outcome": "refused", "said": f"no ticket for it: {exc}"}
            await self._answer(machine.name, outcome, str(outcome["said"]), "failed")
            return
        args: dict[str, Json] = {
            "name": machine.name,
            "type": machine.type,
            "region": machine.region,
            "image": spec.server.image,
            "user_data": script,
            "tags": {"spinal": self._home, "spinal-pool": machine.pool},
            # Nobody has asked for this name before.
            "fresh": True,
        }
        outcome = await self.vendors.create(machine.vendor, args, self._pace.order)
        key = machine.vendor, machine.region, machine.type
        kind, said = str(outcome.get("kind") or "unknown"), str(outcome.get("said", ""))
        if outcome.get("outcome") == "created":
            self.launches = self.launches.launched(key, self.now())
            await self._answer(machine.name, outcome, "")
            return
        self._refused(key, spec.server.image, kind, said, outcome.get("after"))
        await self._answer(machine.name, outcome, f"{kind}: {said}")

    async def _answer(
        self, name: str, outcome: Outcome, said: str, refused: str = "refused"
    ) -> None:
        """Write down what the vendor answered, unless a list of its machines was faster."""
        for _ in range(TRIES):
            machine = self.machines.get(name)
            if machine is None or machine.state is not State.ORDERED:
                return
            after = tending.answered(machine, outcome, self.now())
            event = {State.REFUSED: refused, State.UNKNOWN: "unknown"}.get(after.state, "")
            about = f"{machine.vendor} {machine.type}: {said}" if event else ""
            if await self._save(machine, Step(after, event=event, said=about)) is not None:
                if after.state is State.REFUSED:
                    await self._dismiss(name)
                return


#: Why a machine's agents get no work, by its state.
_HOLDS: Final[Mapping[State, str]] = {
    State.ORDERED: "it joins",
    State.UNKNOWN: "it joins",
    State.REFUSED: "it is returned",
    State.BOOTING: "it joins",
    State.TESTING: "its self-test is not passed",
    State.DRAINING: "it is returned",
    State.LEAVING: "it is returned",
}

#: Events after which an offer is left alone for a while: what came of it was of no use.
_BROKEN: Final = frozenset({"never-joined", "failed"})

#: What a pool counts, by event.
_COUNTED: Final[Mapping[str, str]] = {
    "joined": "joined",
    "refused": "refused",
    "never-joined": "never_joined",
    "failed": "never_joined",
    "lost": "lost",
}


def _counting(pool: Pool, event: str, now: int, pauses: float) -> Pool:
    """Give a pool that counts an event; one whose machines never join orders ever more slowly."""
    member = _COUNTED.get(event)
    if member is None:
        return pool
    pool = replace(pool, **{member: getattr(pool, member) + 1})
    if member == "joined":
        return replace(pool, failures=0, pause=0)
    if member == "never_joined":
        pause = doubled(FIRST_PAUSE, pool.failures, MAX_PAUSE) * pauses
        return replace(pool, failures=pool.failures + 1, pause=now + int(pause * 1000))
    return pool


def _moving(before: Machine, after: Machine) -> Iterable[Change]:
    """Give the changes that keep a machine: into the ledger, once it is over."""
    if not after.state.final:
        yield Keep(record.of_machine(after))
        return
    yield Keep(record.of_machine(before), drop=True)
    yield Keep(record.of_machine(replace(after, version=0)))


def _told(errors: Mapping[str, str]) -> list[str]:
    return [f"{vendor}: {why}" for vendor, why in sorted(errors.items())]
