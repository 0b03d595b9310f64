"""Orders machines: what is missing is chosen, written down, and only then asked for.

Orders of all pools take one turn after the other (:data:`~.books.PURSE`), so that two of them cannot
spend the same money.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from spinal.agents.provider.offer import Offer
from spinal.bus.errors import CallError
from spinal.protocols import Json

from ..jobs.keeper import Keeper
from ..store.contract import StoreError
from . import tending
from .books import TRIES, Books
from .gate import Gate
from .machine import Machine, State
from .plan import Impossible, Plan, plan
from .pool import Event, Phase, Pool
from .purse import Purse
from .refusals import Refusals
from .renting import Renting
from .spec import PoolSpec
from .tender import Tender
from .tending import Step
from .vendors import Outcome, Vendors

log = structlog.get_logger()

#: Seconds after which a pool that did not get what it lacks asks again.
AGAIN: Final = 2.0

#: Letters of names: no vowels, so that they spell nothing, and nothing that looks like another.
_LETTERS: Final = "bcdfghjkmnpqrstvwxz2456789"


class Orders:
    """See the module.

    Args:
        books: what there is.
        purse: what it may cost.
        vendors: who is asked.
        refusals: what is not asked for.
        tender: looks after what is ordered.
        gate: who of them may work.
        keeper: has our tasks.
        renting: what the home says.
    """

    def __init__(
        self,
        books: Books,
        purse: Purse,
        vendors: Vendors,
        refusals: Refusals,
        tender: Tender,
        gate: Gate,
        keeper: Keeper,
        renting: Renting,
    ) -> None:
        self._books = books
        self._purse = purse
        self._vendors = vendors
        self._refusals = refusals
        self._tender = tender
        self._gate = gate
        self._keeper = keeper
        self._renting = renting
        self._turn = asyncio.Lock()
        #: Pools for which machines are being chosen.
        self._under_way: set[str] = set()
        #: When a pool that did not get what it lacks is looked at again.
        self._again: dict[str, float] = {}

    def forget(self, pool: str) -> None:
        """Remember nothing of a pool that is no more."""
        self._again.pop(pool, None)

    def fill(self, pool: Pool) -> None:
        """Choose and order what a pool lacks, unless that is being done; it goes on by itself."""
        time = asyncio.get_running_loop().time
        if pool.name in self._under_way or time() < self._again.get(pool.name, 0.0):
            return

        async def order() -> None:
            ordered = 0
            try:
                async with self._turn:
                    ordered = await self._fill(pool.name)
            except (StoreError, CallError) as exc:
                log.warning("machines_not_ordered", pool=pool.name, error=str(exc))
            finally:
                self._under_way.discard(pool.name)
                # What could not be had is not there a moment later either.
                self._again[pool.name] = time() + (0.0 if ordered else AGAIN)
            if ordered:
                self._books.changed.set()

        self._under_way.add(pool.name)
        self._keeper.spawn("ordering", order)

    async def _fill(self, name: str) -> int:
        """Order what a pool lacks, as far as it is to be had; gives how many machines that are."""
        books = self._books
        pool = books.pools.get(name)
        if pool is None or pool.phase is not Phase.UP:
            return 0
        market = await self._vendors.offers(pool.spec.server)
        await books.refresh()
        pool = books.pools.get(name)
        if pool is None or pool.phase is not Phase.UP:
            return 0
        # What is ordered is paid from what the plan knew of, and from nothing that came later.
        purse = books.purse
        try:
            found = await self.planned(pool.spec, market.offers, pool.wanted)
        except (Impossible, CallError) as exc:
            await self._is_short(pool, "; ".join([str(exc), *market.told()]))
            return 0
        ordered = 0
        for one in found.rent:
            # A machine is paid in the currency of its vendor.
            offer = one.listed
            if not self._refusals.room(offer.key, books.machines.values()):
                continue
            kept = await self._order(pool, offer, purse)
            if kept is None:
                break
            pool, ordered, purse = kept, ordered + 1, purse + 1
        if found.missing and not ordered:
            await self._is_short(pool, "; ".join([*found.notes, *market.told()]))
        return ordered

    async def planned(self, spec: PoolSpec, offers: Sequence[Offer], wanted: int) -> Plan:
        """Say what would be ordered now, so that a pool has as many machines.

        Raises:
            Impossible: nothing fits.
            CallError: a budget is in a currency without a rate.
        """
        market = self._purse.market()
        limits = {
            name: account.limit
            for name, account in market.accounts.items()
            if account.limit is not None
        }
        work = partial(
            plan,
            spec,
            offers,
            market.exchange,
            # What is to be replaced is paid for until it is gone, and does not count.
            [
                replace(one, state=State.DRAINING) if one.retiring else one
                for one in self._books.machines.values()
            ],
            wanted,
            self._books.now(),
            blocked=self._refusals.blocked(spec.server.image),
            room=self._purse.room(spec),
            limits=limits,
        )
        # Packing takes seconds; the rest is done sooner than a thread is found for it.
        return await asyncio.to_thread(work) if spec.demand else work()

    async def _is_short(self, pool: Pool, why: str) -> None:
        if pool.short != why:
            log.warning("pool_is_short", pool=pool.name, why=why)
            event = Event(at=self._books.now(), what="short", about=pool.name, said=why)
            await self._books.keep(replace(pool, short=why).noting(event))

    async def _order(self, pool: Pool, offer: Offer, purse: int) -> Pool | None:
        """Write down that a machine is to be, and only then ask for it.

        Gives nothing if somebody was faster, or nobody knows any more what it would cost.
        """
        now, rate = self._books.now(), self._purse.market().exchange.rate(offer.currency)
        if rate is None:
            return None
        machine = Machine(
            name=f"{pool.name}-{''.join(secrets.choice(_LETTERS) for _ in range(6))}",
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
        kept = await self._books.order(replace(pool, short=""), machine, purse)
        if kept is None:
            return None
        log.info("machine_ordered", machine=machine.name, pool=pool.name, offer=offer.key)
        self._tender.do(machine.name, self._rent(machine, kept.spec))
        return kept

    async def _rent(self, machine: Machine, spec: PoolSpec) -> None:
        """Ask the vendor for a machine that was written down."""
        try:
            script = await self._renting.door.invite(machine, spec)
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
            "tags": {"spinal": self._renting.home, "spinal-pool": machine.pool},
            # Nobody has asked for this name before.
            "fresh": True,
        }
        outcome = await self._vendors.create(machine.vendor, args, self._renting.pace.order)
        key = machine.vendor, machine.region, machine.type
        kind, said = str(outcome.get("kind") or "unknown"), str(outcome.get("said", ""))
        if outcome.get("outcome") == "created":
            self._refusals.launched(key)
            await self._answer(machine.name, outcome, "")
            return
        self._refusals.refused(key, spec.server.image, kind, said, outcome.get("after"))
        await self._answer(machine.name, outcome, f"{kind}: {said}")

    async def _answer(
        self, name: str, outcome: Outcome, said: str, refused: str = "refused"
    ) -> None:
        """Write down what the vendor answered, unless a list of its machines was faster."""
        for _ in range(TRIES):
            machine = self._books.machines.get(name)
            if machine is None or machine.state is not State.ORDERED:
                return
            after = tending.answered(machine, outcome, self._books.now())
            event = {State.REFUSED: refused, State.UNKNOWN: "unknown"}.get(after.state, "")
            about = f"{machine.vendor} {machine.type}: {said}" if event else ""
            if await self._books.save(machine, Step(after, event=event, said=about)) is not None:
                if after.state is State.REFUSED:
                    await self._gate.dismiss(name)
                return
