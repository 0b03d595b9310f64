"""The pools and machines as the store has them, and every write that changes one.

Every change of a machine is one write under its version, together with what its pool remembers of
it; so of several dispatchers only the first succeeds.  What somebody else wrote is learned by
:meth:`Books.refresh`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from spinal.protocols.retry import doubled

from ..jobs.keeper import Keeper
from ..store.contract import FENCED, Change, Keep, Record
from . import money, record
from .gate import Gate
from .machine import Machine, State
from .pool import Event, Pool
from .tending import Step

log = structlog.get_logger()

#: Record that every order moves on.
PURSE: Final = ("purse", "orders")

#: Times that a change is tried which somebody else was faster with.
TRIES: Final = 8

#: Seconds for which the records of machines are kept that never were, and of others for the bill;
#: and how many older ones are deleted together.
DOUBTED: Final = 86_400.0
BILLED: Final = 400 * 86_400.0
MAX_TIDIED: Final = 1000

#: Seconds after which a machine is ordered in place of one that never joined, at first and at most.
FIRST_PAUSE: Final = 4.0
MAX_PAUSE: Final = 600.0


class Books:
    """See the module.

    Args:
        keeper: has the store.
        gate: hears of each machine that changes.
        pauses: by how much longer pauses are than usual.
    """

    def __init__(self, keeper: Keeper, gate: Gate, pauses: float) -> None:
        self._keeper = keeper
        self._gate = gate
        self._pauses = pauses
        self.pools: dict[str, Pool] = {}
        self.machines: dict[str, Machine] = {}
        #: Machines that are over, for the bill; and their records as far as they are known.
        self.ledger: dict[str, Machine] = {}
        #: Orders so far: what is ordered must have known of all of them.
        self.purse = 0
        #: Set when a pool was written.
        self.changed = asyncio.Event()
        self._learned = False
        #: Held while something is written, so that we do not overtake ourselves.
        self._writing = asyncio.Lock()

    # -- what stands in them

    def now(self) -> int:
        """Give the time, in milliseconds since 1970 UTC."""
        return self._keeper.now()

    def of_pool(self, name: str) -> list[Machine]:
        """Give the machines of a pool that exist, or may, by name."""
        found = [one for one in self.machines.values() if one.pool == name]
        return sorted(found, key=lambda one: one.name)

    def by_vendor(self) -> Mapping[str, Sequence[str]]:
        """Give the names of the machines that exist, or may, by vendor."""
        names: defaultdict[str, list[str]] = defaultdict(list)
        for machine in self.machines.values():
            names[machine.vendor].append(machine.name)
        return names

    def all(self) -> list[Machine]:
        """Give every machine that is remembered, also those that are gone."""
        return [*self.machines.values(), *self.ledger.values()]

    def recent(self) -> list[Machine]:
        """Give the machines that this month's money is spent on."""
        begin, _ = money.month(self.now())
        over = (one for one in self.ledger.values() if (one.ended or one.since) >= begin)
        return [*self.machines.values(), *over]

    # -- what others wrote

    async def refresh(self, doubtful: bool = False) -> None:
        """Learn what others made of pools and machines.

        Args:
            doubtful: what we know may be old although nobody else lives on our store, as far as we
                know.

        Raises:
            StoreError: the store cannot be used now.
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
        if over or not self._learned or purse != self.purse:
            # All of them once, and then those that others close; what somebody else has ordered
            # may be over before we heard of it.
            missing = (await store.versions(record.LEDGER)).keys() - self.ledger.keys()
            for one in await store.records(record.LEDGER, sorted(missing)) if missing else ():
                self.ledger[one.name] = record.machine(one)
            self._learned = True
        self.purse = purse
        for name in over:
            self._gate.open(name)
        for machine in self.machines.values():
            self._gate.watch(machine)

    # -- pools

    async def keep(self, pool: Pool, *changes: Change) -> Pool | None:
        """Keep a pool as it is now; nothing if somebody else was first."""
        async with self._writing:
            if not await self._write(Keep(record.of_pool(pool)), *changes):
                return None
            kept = self.pools[pool.name] = replace(pool, version=pool.version + 1)
        self.changed.set()
        return kept

    async def forget(self, pool: Pool) -> bool:
        """Forget a pool, unless somebody else has changed it."""
        async with self._writing:
            if not await self._write(Keep(record.of_pool(pool), drop=True)):
                return False
            self.pools.pop(pool.name, None)
        return True

    # -- machines

    async def order(self, pool: Pool, machine: Machine, purse: int) -> Pool | None:
        """Write down that a machine is to be.

        Args:
            pool: whose it is, as it is then.
            machine: the machine.
            purse: orders of which whoever ordered it knew.

        Returns:
            The pool as it stands now; none if somebody else was faster.
        """
        orders, new = Keep(Record(*PURSE, purse, None)), Keep(record.of_machine(machine))
        kept = await self.keep(pool, orders, new)
        if kept is not None:
            self.purse = max(self.purse, purse + 1)
            self._know(replace(machine, version=1))
        return kept

    async def save(self, before: Machine, step: Step) -> Machine | None:
        """Keep what became of a machine, with what its pool is to remember of it.

        Gives nothing if somebody else was first.
        """
        async with self._writing:
            return await self._save(before, step)

    async def _save(self, before: Machine, step: Step) -> Machine | None:
        after = replace(step.machine, version=before.version)
        changes: list[Change] = [*_moving(before, after)]
        pool = self.pools.get(after.pool)
        if pool is not None and step.event:
            at = self.now()
            event = Event(at=at, what=step.event, about=after.name, said=step.said)
            pool = _counting(pool, step.event, at, self._pauses).noting(event)
            changes.append(Keep(record.of_pool(pool)))
        if not await self._write(*changes):
            return None
        if pool is not None and step.event:
            self.pools[pool.name] = replace(pool, version=pool.version + 1)
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
            self._gate.close(after.name)
            return after
        return self._know(replace(after, version=after.version + 1))

    async def change(self, name: str, change: Callable[[Machine], Machine]) -> None:
        """Change a machine, also if somebody else does at the same time."""
        for _ in range(TRIES):
            machine = self.machines.get(name)
            if machine is None:
                return
            after = change(machine)
            event = "returned" if after.state is State.GONE else ""
            if await self.save(machine, Step(after, event=event, said=after.why)) is not None:
                return

    async def over(self, names: Sequence[str]) -> Sequence[Record]:
        """Give the records of those of these machines that are over."""
        return await self._keeper.store.records(record.LEDGER, names)

    async def reopen(self, closed: Record, machine: Machine) -> bool:
        """Take up again a machine that was over, unless somebody else has."""
        back = replace(machine, ended=None, version=0)
        async with self._writing:
            if not await self._write(Keep(closed, drop=True), Keep(record.of_machine(back))):
                return False
            self.ledger.pop(machine.name, None)
            self._know(replace(back, version=1))
        return True

    async def tidy(self) -> None:
        """Forget machines of long ago; the rest of too many in the next rounds."""
        now = self.now()
        long = {State.NEVER: DOUBTED, State.GONE: BILLED}
        every = self.ledger.values()
        old = [one for one in every if one.since + long[one.state] * 1000 < now][:MAX_TIDIED]
        if not old:
            return
        drops = [Keep(record.of_machine(one), drop=True) for one in old]
        if (await self._keeper.store.write(*drops))[0] is FENCED:
            self._learned, self.ledger = False, {}
            return
        for one in old:
            self.ledger.pop(one.name, None)

    def _know(self, machine: Machine) -> Machine:
        self.machines[machine.name] = machine
        self._gate.watch(machine)
        return machine

    async def _write(self, *changes: Change) -> bool:
        """Write all of it; if somebody else was first nothing, and then learn what it was."""
        if (await self._keeper.store.write(*changes))[0] is FENCED:
            await self.refresh(doubtful=True)
            return False
        return True


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
