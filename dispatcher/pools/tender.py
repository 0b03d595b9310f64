"""Looks after machines one by one: carries out what :func:`~.tending.tend` says of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import structlog

from spinal.agents.provider.pace import Pace
from spinal.bus.errors import CallError
from spinal.protocols import Problem

from ..agent import KnownAgent
from ..broker import Broker
from ..jobs.keeper import Keeper
from ..registry import Registry
from ..resolver import Demand
from ..store.contract import StoreError
from . import tending
from .books import Books
from .door import Door
from .gate import Gate
from .machine import Machine, State
from .pool import Pool
from .refusals import Refusals
from .spec import PoolSpec
from .tending import Ask, Seen, Step, Terms
from .vendors import Vendors

log = structlog.get_logger()

#: Seconds that a self-test may take, and between two of them.
TESTING: Final = 20.0
TEST_AGAIN: Final = 2.0

#: Events after which an offer is left alone for a while: what came of it was of no use.
_BROKEN: Final = frozenset({"never-joined", "failed"})


class Tender:
    """See the module.

    Args:
        books: what is known of machines, and where that is written down.
        vendors: deletes them, and says what there is.
        refusals: hears of machines that were of no use.
        gate: has their accounts.
        door: knows which agents a machine has.
        keeper: has our tasks.
        registry: who is on the bus.
        broker: asks for self-tests.
        pace: how long things take.
    """

    def __init__(
        self,
        books: Books,
        vendors: Vendors,
        refusals: Refusals,
        gate: Gate,
        door: Door,
        *,
        keeper: Keeper,
        registry: Registry,
        broker: Broker,
        pace: Pace,
    ) -> None:
        self._books = books
        self._vendors = vendors
        self._refusals = refusals
        self._gate = gate
        self._door = door
        self._keeper = keeper
        self._registry = registry
        self._broker = broker
        self._pace = pace
        #: Machines that something is being done about.
        self._busy: set[str] = set()
        #: Whether a machine passed its self-test, and what that said.
        self._tests: dict[str, tuple[bool, str]] = {}
        #: Since when no agent of a machine is there.
        self._away: dict[str, int] = {}

    def agents(self, machine: Machine, spec: PoolSpec) -> list[KnownAgent]:
        """Give the agents of a machine that are known."""
        account = self._gate.account(machine.name)
        found = (self._registry.get(f"{account}/{one}") for one in self._door.agents(spec))
        return [agent for agent in found if agent is not None]

    def is_here(self, machine: Machine) -> bool:
        """Tell whether a machine is on the bus."""
        pool = self._books.pools.get(machine.pool)
        agents = [] if pool is None else self.agents(machine, pool.spec)
        return any(agent.gone_at is None and not agent.silent for agent in agents)

    def moving(self) -> set[str]:
        """Give the vendors at which something is under way."""
        return {
            one.vendor
            for one in self._books.machines.values()
            # Whose agents are away may have ended, which its vendor knows.
            if one.state is not State.READY or one.name in self._away
        }

    def forget(self) -> None:
        """Remember nothing of machines that are over."""
        for known in (self._tests, self._away):
            for name in known.keys() - self._books.machines.keys():
                del known[name]

    async def tend(self, machine: Machine) -> None:
        """Do about a machine what is to be done now, unless something is being done about it."""
        if machine.name in self._busy:
            return
        pool = self._books.pools.get(machine.pool)
        if pool is None:
            seen = Seen(self._books.now(), self._vendors.listings.get(machine.vendor))
            terms = Terms()
        else:
            life = pool.spec.life
            seen, terms = self._seen(machine, pool.spec), Terms(life.join, life.drain)
        step = tending.tend(machine, seen, terms, self._pace)
        if step.machine is not machine:
            if await self._books.save(machine, step) is None:
                return
            if step.event in _BROKEN:
                self._refusals.broken(machine, step.said)
        match step.ask:
            case Ask.NOTHING:
                pass
            case Ask.TEST if pool is not None:
                self.do(machine.name, self._test(step.machine, pool))
            case _:
                self.do(machine.name, self._destroy(machine.name))

    def _seen(self, machine: Machine, spec: PoolSpec) -> Seen:
        now = self._books.now()
        here = [one for one in self.agents(machine, spec) if one.gone_at is None and not one.silent]
        if here or machine.state not in (State.READY, State.DRAINING):
            self._away.pop(machine.name, None)
        else:
            self._away.setdefault(machine.name, now)
        whole = len(here) == len(self._door.agents(spec))
        passed, said = self._tests.get(machine.name, (None, ""))
        return Seen(
            now,
            self._vendors.listings.get(machine.vendor),
            len(here) if whole else 0,
            sum(max(agent.busy, agent.in_flight) for agent in here),
            self._away.get(machine.name),
            passed,
            said,
        )

    def do(self, name: str, work: Awaitable[None]) -> None:
        """Do something about a machine, which nothing else is done about meanwhile."""

        async def do() -> None:
            try:
                await work
            except StoreError as exc:
                log.warning("machine_not_kept", machine=name, error=str(exc))
            finally:
                self._busy.discard(name)
                self._books.changed.set()

        self._busy.add(name)
        self._keeper.spawn("tending", do)

    async def send_away(self, machine: Machine, why: str) -> None:
        """Have a machine go: at once if it is of no use yet, else when it has finished what it runs."""
        now = self._books.now()
        if machine.state is State.READY:
            await self._books.save(machine, Step(tending.draining(machine, now, why)))
        elif machine.state in (State.BOOTING, State.TESTING):
            await self._books.save(machine, Step(tending.leaving(machine, now, why)))

    async def _test(self, machine: Machine, pool: Pool) -> None:
        """Run a pool's self-test on a machine."""
        try:
            for op in pool.spec.life.self_test:
                await self._test_one(op, self.agents(machine, pool.spec))
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
        said = await self._broker.ask(op, {}, demand, self._vendors.caller, TESTING)
        if isinstance(said, dict) and cast("Mapping[str, Any]", said).get("healthy") is False:
            raise CallError.of(Problem("failed", f"{op} says that it is not healthy"))

    async def _destroy(self, name: str) -> None:
        """Have a machine deleted, and frozen before that if its pool is to be."""
        machine = self._books.machines.get(name)
        if machine is None or machine.state is not State.LEAVING:
            return
        pool, now = self._books.pools.get(machine.pool), self._books.now
        if (
            pool is not None
            and pool.freezes
            and not machine.image
            and machine.began
            and not tending.is_missing(machine, self._pace)
        ):
            outcome = await self._vendors.freeze(machine.vendor, name, pool.name)
            image = str(outcome.get("image", ""))
            frozen = outcome.get("outcome") == "frozen" and image
            if frozen:
                step = Step(replace(machine, image=image), event="frozen", said=image)
            else:
                # Whoever wants the disk kept has to hear it once that this machine still costs.
                after = tending.unfrozen(machine, outcome, now(), self._pace)
                step = Step(after, event="" if machine.tries else "not-frozen", said=after.said)
            if await self._books.save(machine, step) is None or not frozen:
                return
        outcome = await self._vendors.destroy(machine.vendor, name)
        await self._books.change(name, lambda one: tending.deleted(one, outcome, now(), self._pace))
