"""Compares what vendors have with what the books say, of its own accord and for ``spinal sweep``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog

from spinal.agents.provider.pace import Pace
from spinal.protocols import Json

from ..jobs.keeper import Keeper
from ..store.contract import StoreError
from . import record, tending
from .books import Books
from .machine import Machine, State
from .tending import Listing
from .vendors import Vendors

log = structlog.get_logger()

_GONE: Final = "its vendor does not have it"
_BACK: Final = "it was held for gone, and its vendor has it"


class Sweeper:
    """See the module.

    Args:
        books: what is written down.
        vendors: what there is.
        keeper: has our tasks.
        pace: how often vendors are asked, and from when their lists can be relied on.
        is_here: tells whether a machine is on the bus.
    """

    def __init__(
        self,
        books: Books,
        vendors: Vendors,
        keeper: Keeper,
        pace: Pace,
        *,
        is_here: Callable[[Machine], bool],
    ) -> None:
        self._books = books
        self._vendors = vendors
        self._keeper = keeper
        self._pace = pace
        self._is_here = is_here

    def look(self, moving: set[str]) -> None:
        """Ask those vendors for their lists whose last one is too old; that goes on by itself.

        Args:
            moving: vendors at which something is under way.
        """
        pace, names = self._pace, self._books.by_vendor()
        # Also where we have no machine: there may be one that nobody remembers.
        every = {v: pace.look if v in moving else pace.rest for v in self._vendors.here()}
        for vendor in self._vendors.due(every):
            self._keeper.spawn("looking at a vendor", self._look_at, vendor, names.get(vendor, ()))

    async def _look_at(self, vendor: str, names: Sequence[str]) -> None:
        before = self._vendors.listings.get(vendor)
        await self._vendors.look([vendor], {vendor: names})
        listing = self._vendors.listings.get(vendor)
        if listing is None or listing is before:
            return
        try:
            await self._reap(vendor, listing)
        except StoreError as exc:
            log.warning("machines_not_compared", vendor=vendor, error=str(exc))
        self._books.changed.set()

    async def _reap(self, vendor: str, listing: Listing) -> None:
        """Take up again what should be gone and is not."""
        strays = [name for name in listing.machines if name not in self._books.machines]
        for closed in await self._books.over(strays) if strays else ():
            known = record.machine(closed)
            # Until then the list may be from before it went.
            settled = known.since + int(self._pace.settle * 1000)
            if known.vendor != vendor or listing.asked <= settled:
                continue
            if await self._books.reopen(closed, tending.leaving(known, self._books.now(), _BACK)):
                began = known.began or known.created
                log.warning("machine_came_back", machine=known.name, vendor=vendor, began=began)

    async def sweep(self, delete: bool, names: Sequence[str] | None) -> Json:
        """Compare what vendors have with what is written down.

        Args:
            delete: delete what no record owns, and close records whose machine is gone.
            names: only of these machines.

        Raises:
            StoreError: the store cannot be used now.
        """
        books, vendors = self._books, self._vendors
        await books.refresh()
        here = vendors.here()
        asked = books.now()
        await vendors.look(here, books.by_vendor())
        await books.refresh()
        fresh = {
            vendor: listing
            for vendor, listing in vendors.listings.items()
            if vendor in here and listing.asked >= asked
        }
        orphans = [
            (vendor, name, sight)
            for vendor, listing in sorted(fresh.items())
            for name, sight in sorted(listing.machines.items())
            if name not in books.machines and (names is None or name in names)
        ]
        missing = [
            one
            for _, one in sorted(books.machines.items())
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
                outcome = await vendors.destroy(vendor, name)
                deleted[name] = str(outcome.get("outcome"))
            for one in missing:
                await books.change(one.name, self._closed)
                deleted[one.name] = "gone"
        unknown = sorted({one.vendor for one in books.machines.values()} - fresh.keys())
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
                vendor: vendors.errors.get(vendor, "its provider agent is not on the bus")
                for vendor in sorted({*unknown, *here} - fresh.keys())
            },
        }

    def _closed(self, machine: Machine) -> Machine:
        return tending.moved(machine, State.GONE, self._books.now(), why=_GONE)
