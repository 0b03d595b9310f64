"""The provider agents, as the dispatcher asks them: offers, lists, orders, deletes.

Nothing is decided here.  What they answer is kept as long as it is good: offers for a minute, and
the last list of each vendor, which is asked for again by :meth:`Vendors.look`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from spinal.agents.provider.offer import Offer
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem, Want
from spinal.protocols.errors import REASONS, Ran

from ..broker import Broker
from ..registry import Registry
from ..resolver import Demand
from .spec import Server
from .tending import Listing, Sight

log = structlog.get_logger()

#: What provider agents offer.
OFFERS: Final = "/provider/offers"
LIST: Final = "/provider/list"
CREATE: Final = "/provider/create"
DESTROY: Final = "/provider/destroy"
FREEZE: Final = "/provider/freeze"

#: Key of the place of a provider agent that names its account.
VENDOR: Final = "vendor"

#: Seconds that each may take; of an order see :attr:`~.tending.Pace.order`.
OFFERING: Final = 45.0
LISTING: Final = 30.0
DELETING: Final = 60.0
FREEZING: Final = 600.0

#: Seconds for which offers are good.
FRESH: Final = 60.0

#: Demands whose offers are kept.
MAX_KEPT: Final = 100

#: Most offers that each vendor is asked for.
MOST: Final = 100

#: Most machines that a vendor's list may have.
MAX_LISTED: Final = 20_000

#: Most names that a question for a list has room for.
MAX_NAMES: Final = 250

#: An answer to an order or a delete: ``outcome``, and what belongs to it.
Outcome = Mapping[str, Any]


@dataclass(slots=True)
class Offers:
    """What vendors offer, why one of them gave nothing, and what each left out, by reason."""

    offers: list[Offer] = field(default_factory=list[Offer])
    errors: dict[str, str] = field(default_factory=dict[str, str])
    dropped: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def left_out(self) -> list[dict[str, Json]]:
        """Say what provider agents left out themselves, most first."""
        rows: list[dict[str, Json]] = [
            {"reason": f"{reason} at {vendor}", "count": count, "examples": []}
            for vendor, counts in self.dropped.items()
            for reason, count in counts.items()
        ]
        return sorted(rows, key=lambda row: (-row["count"], row["reason"]))


class Vendors:
    """See the module.

    Args:
        broker: carries the questions.
        registry: who is there.
        caller: in whose name they are asked: the dispatcher's own address.
        now: milliseconds since 1970 UTC.
    """

    def __init__(
        self, broker: Broker, registry: Registry, caller: str, now: Callable[[], int]
    ) -> None:
        self._broker = broker
        self._registry = registry
        self.caller = caller
        self._now = now
        #: Each vendor's last list of our machines, and why there is no newer one.
        self.listings: dict[str, Listing] = {}
        self.errors: dict[str, str] = {}
        self._offers: dict[tuple[str, Server], tuple[float, Offers]] = {}
        self._asked: dict[str, float] = {}
        self._under_way: set[str] = set()

    def here(self) -> list[str]:
        """Give the vendors whose provider agents are on the bus, by name."""
        found = {
            agent.advertisement.place[VENDOR].strip("/")
            for agent in self._registry.everybody(CREATE)
            if agent.gone_at is None and VENDOR in agent.advertisement.place
        }
        return sorted(found)

    # -- offers

    async def offers(self, server: Server, refresh: bool = False) -> Offers:
        """Give what all vendors offer for a demand.

        Of a vendor that has nothing, what it has instead: so that it can be said what comes nearest.
        """
        found = Offers()

        async def of(vendor: str) -> None:
            try:
                one = await self._offers_of(vendor, server, refresh)
            except CallError as exc:
                found.errors[vendor] = str(exc)
                return
            found.offers.extend(one.offers)
            found.errors |= one.errors
            found.dropped |= one.dropped

        await asyncio.gather(*map(of, self.here()))
        return found

    async def _offers_of(self, vendor: str, server: Server, refresh: bool) -> Offers:
        time = asyncio.get_running_loop().time()
        key = vendor, server
        known = self._offers.get(key)
        if known is not None and time - known[0] < FRESH and not refresh:
            return known[1]
        wanted: dict[str, Json] = {
            "cpu": server.cpu,
            "ram": server.ram,
            "disk": server.disk,
            "arch": server.arch,
            "regions": list(server.region),
        }
        found = Offers()
        for args in ({**wanted, "refresh": refresh}, {"largest": True}):
            said = await self._ask(vendor, OFFERS, {"most": MOST, **args}, OFFERING)
            found.offers = [Offer.of(row) for row in _rows(said, "offers")]
            if "cpu" in args:
                for error in _rows(said, "errors"):
                    where = f"{vendor} {error['region']}".strip()
                    found.errors[where] = f"{error['kind']}: {error['said']}"
                found.dropped = {vendor: _members(_members(said).get("dropped", {}))}
            if found.offers:
                break
        while len(self._offers) >= MAX_KEPT:
            del self._offers[next(iter(self._offers))]
        self._offers[key] = time, found
        return found

    # -- lists

    def due(self, every: Mapping[str, float]) -> list[str]:
        """Give the vendors whose last list was asked for at least so many seconds ago."""
        time = asyncio.get_running_loop().time()
        return [
            vendor
            for vendor, seconds in every.items()
            if vendor not in self._under_way and self._asked.get(vendor, -1e9) + seconds <= time
        ]

    async def look(self, vendors: Iterable[str], names: Mapping[str, Sequence[str]]) -> None:
        """Ask vendors for their lists of our machines; what they answer is in :attr:`listings`.

        Args:
            vendors: which.
            names: vendor -> names of machines that are asked for by name as well.
        """
        await asyncio.gather(*(self._look(one, sorted(names.get(one, ()))) for one in vendors))

    async def _look(self, vendor: str, names: Sequence[str]) -> None:
        self._under_way.add(vendor)
        self._asked[vendor] = asyncio.get_running_loop().time()
        asked = self._now()
        try:
            rows: list[Mapping[str, Any]] = []
            for at in range(0, max(1, len(names)), MAX_NAMES):
                rows += await self._listed(vendor, names[at : at + MAX_NAMES])
        except CallError as exc:
            if self.errors.get(vendor) != str(exc):
                log.warning("machines_not_listed", vendor=vendor, error=str(exc))
            self.errors[vendor] = str(exc)
            return
        finally:
            self._under_way.discard(vendor)
        self.errors.pop(vendor, None)
        self.listings[vendor] = Listing(asked, {str(row["name"]): Sight.of(row) for row in rows})

    async def _listed(self, vendor: str, also: Sequence[str]) -> list[Mapping[str, Any]]:
        """Ask for all of our machines, and those of some names, page by page."""
        rows: list[Mapping[str, Any]] = []
        more = True
        while more:
            if len(rows) >= MAX_LISTED:
                # What is left out would be held for gone.
                problem = Problem("failed", f"it has more than {MAX_LISTED} machines of ours")
                raise CallError.of(problem)
            args: dict[str, Json] = {"also": list(also)}
            args |= {"after": str(rows[-1]["name"])} if rows else {}
            said = await self._ask(vendor, LIST, args, LISTING)
            page = _rows(said, "machines")
            rows += page
            more = bool(page and _members(said).get("more"))
        return rows

    # -- what is done there

    async def create(self, vendor: str, args: Mapping[str, Json], within: float) -> Outcome:
        """Order a machine; also an error becomes an outcome."""
        try:
            return _members(await self._ask(vendor, CREATE, args, within))
        except CallError as exc:
            untouched = REASONS[exc.reason].ran is Ran.NO if exc.reason in REASONS else False
            outcome = "refused" if untouched else "unknown"
            return {"outcome": outcome, "kind": "transient", "said": str(exc)}

    async def destroy(self, vendor: str, name: str) -> Outcome:
        """Delete a machine; also an error becomes an outcome."""
        return await self._tried(vendor, DESTROY, {"name": name}, DELETING)

    async def freeze(self, vendor: str, name: str, label: str) -> Outcome:
        """Keep a machine's disk as an image; also an error becomes an outcome."""
        return await self._tried(vendor, FREEZE, {"name": name, "label": label}, FREEZING)

    async def _tried(
        self, vendor: str, op: str, args: Mapping[str, Json], within: float
    ) -> Outcome:
        try:
            return _members(await self._ask(vendor, op, args, within))
        except CallError as exc:
            return {"outcome": "failed", "kind": "unknown", "said": str(exc)}

    async def _ask(self, vendor: str, op: str, args: Mapping[str, Json], within: float) -> Json:
        demand = Demand.of(op, Want(place={VENDOR: f"/{vendor}"}))
        return await self._broker.ask(op, args, demand, self.caller, within)


def _members(said: Json) -> Mapping[str, Any]:
    if not isinstance(said, dict):
        raise CallError.of(Problem("failed", "the provider agent did not answer with an object"))
    return said


def _rows(said: Json, name: str) -> list[Mapping[str, Any]]:
    found: Any = _members(said).get(name)
    if not isinstance(found, list):
        raise CallError.of(Problem("failed", f"the provider agent answered without {name!r}"))
    rows: list[Mapping[str, Any]] = found
    return rows
