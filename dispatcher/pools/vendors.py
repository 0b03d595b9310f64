"""The provider agents, as the dispatcher asks them: offers, lists, orders, deletes.

Nothing is decided here.  What they answer is kept as long as it is good: offers for a minute, and
the last list of each vendor, which is asked for again by :meth:`Vendors.look`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Final, cast

import msgspec
import structlog

from spinal.agents.errors import one_line
from spinal.agents.provider.offer import Offer
from spinal.agents.provider.settings import PREFIX
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem
from spinal.protocols.address import local
from spinal.protocols.errors import REASONS, Ran

from ..agent import KnownAgent
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

#: Most characters of a vendor's words, and of its names for things, that are kept.
MAX_SAID: Final = 500
MAX_TEXT: Final = 200

#: An answer to an order or a delete: ``outcome``, and what belongs to it.
Outcome = Mapping[str, Any]


@dataclass(slots=True)
class Offers:
    """What vendors offer, why one of them gave nothing, and what each left out, by reason."""

    offers: list[Offer] = field(default_factory=list[Offer])
    errors: dict[str, str] = field(default_factory=dict[str, str])
    dropped: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def told(self) -> list[str]:
        """Say which vendors gave nothing, and why."""
        return [f"{vendor}: {why}" for vendor, why in sorted(self.errors.items())]

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
        self,
        broker: Broker,
        registry: Registry,
        caller: str,
        now: Callable[[], int],
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
        return sorted({_vendor(agent) for agent in self._agents()})

    def _agents(self) -> list[KnownAgent]:
        return [
            agent
            for agent in self._registry.everybody(CREATE)
            if agent.gone_at is None and _vendor(agent)
        ]

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
            rows = _rows(said, "offers")[:MOST]
            found.offers = [one for row in rows if (one := _offer(row, vendor)) is not None]
            if "cpu" in args:
                for error in _rows(said, "errors")[:MOST]:
                    where = f"{vendor} {_text(error, 'region')}".strip()
                    found.errors[where] = f"{_text(error, 'kind')}: {_text(error, 'said')}"
                dropped = _counts(_members(said).get("dropped"))
                if strange := len(rows) - len(found.offers):
                    dropped["not an offer of theirs"] = strange
                found.dropped = {vendor: dropped}
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
            sights: dict[str, Sight] = {}
            for at in range(0, max(1, len(names)), MAX_NAMES):
                sights |= await self._listed(vendor, names[at : at + MAX_NAMES])
        except CallError as exc:
            if self.errors.get(vendor) != str(exc):
                log.warning("machines_not_listed", vendor=vendor, error=str(exc))
            self.errors[vendor] = str(exc)
            return
        finally:
            self._under_way.discard(vendor)
        self.errors.pop(vendor, None)
        self.listings[vendor] = Listing(asked, sights)

    async def _listed(self, vendor: str, also: Sequence[str]) -> dict[str, Sight]:
        """Ask for all of our machines, and those of some names, page by page."""
        sights: dict[str, Sight] = {}
        after, more = "", True
        while more:
            if len(sights) >= MAX_LISTED:
                # What is left out would be held for gone.
                problem = Problem("failed", f"it has more than {MAX_LISTED} machines of ours")
                raise CallError.of(problem)
            args: dict[str, Json] = {"also": list(also)}
            args |= {"after": after} if after else {}
            said = await self._ask(vendor, LIST, args, LISTING)
            page = {name: _sight(row) for row in _rows(said, "machines") if (name := _name(row))}
            sights |= page
            # One that does not go on would be asked again and again.
            last = max(page, default="")
            more = bool(_members(said).get("more")) and last > after
            after = last
        return sights

    # -- what is done there

    async def create(self, vendor: str, args: Mapping[str, Json], within: float) -> Outcome:
        """Order a machine; also an error becomes an outcome."""
        try:
            return _outcome(await self._ask(vendor, CREATE, args, within))
        except CallError as exc:
            untouched = REASONS[exc.reason].ran is Ran.NO if exc.reason in REASONS else False
            outcome = "refused" if untouched else "unknown"
            return {"outcome": outcome, "kind": "transient", "said": str(exc)[:MAX_SAID]}

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
            return _outcome(await self._ask(vendor, op, args, within))
        except CallError as exc:
            return {"outcome": "failed", "kind": "unknown", "said": str(exc)[:MAX_SAID]}

    async def _ask(self, vendor: str, op: str, args: Mapping[str, Json], within: float) -> Json:
        theirs = [
            agent for agent in self._agents() if _vendor(agent) == vendor and op in agent.operations
        ]
        if not theirs:
            text = f"no provider agent of {vendor} is on the bus"
            raise CallError.of(Problem("no-agent", text))
        agent = min(theirs, key=lambda one: (one.silent, one.in_flight, one.address))
        demand = Demand(op, only=agent.address)
        return await self._broker.ask(op, args, demand, self.caller, within)


def _vendor(agent: KnownAgent) -> str:
    """Give the vendor that an agent rents from; empty if its account is none of a provider agent.

    Any agent may offer what it likes, and those of rented machines are not to rent others.
    """
    vendor = agent.advertisement.place.get(VENDOR, "").strip("/")
    return vendor if local(agent.address) == f"{PREFIX}{vendor}" else ""


# What provider agents answer, as far as it can be understood: nothing in it may stop the pools.


def _members(said: Json) -> Mapping[str, Any]:
    if not isinstance(said, dict):
        raise CallError.of(Problem("failed", "the provider agent did not answer with an object"))
    return cast("Mapping[str, Any]", said)


def _rows(said: Json, name: str) -> list[Mapping[str, Any]]:
    found: Any = _members(said).get(name)
    if not isinstance(found, list):
        raise CallError.of(Problem("failed", f"the provider agent answered without {name!r}"))
    rows: list[Any] = found  # pyright: ignore[reportUnknownVariableType] - JSON
    return [cast("Mapping[str, Any]", row) for row in rows if isinstance(row, dict)]


def _offer(row: Mapping[str, Any], vendor: str) -> Offer | None:
    """Read an offer; none if it is not one of this vendor."""
    try:
        found = msgspec.convert(row, Offer, strict=True)
    except msgspec.ValidationError:
        return None
    texts = (found.region, found.type, found.area, found.arch, found.currency, found.source)
    if found.vendor != vendor or any(len(text) > MAX_TEXT for text in texts):
        return None
    return found if all(isfinite(n) for n in (found.price, found.cpu, found.ram)) else None


def _name(row: Mapping[str, Any]) -> str:
    found = row.get("name")
    return found if isinstance(found, str) and len(found) <= MAX_TEXT else ""


def _sight(row: Mapping[str, Any]) -> Sight:
    found = Sight.of(row)
    created: Any = found.created
    if isinstance(created, bool) or not isinstance(created, (int, type(None))):
        created = None
    texts = {name: _text(row, name) for name in Sight.__slots__ if name != "created"}
    return replace(found, created=created, **texts)


def _outcome(said: Json) -> Outcome:
    """Read an outcome; what is not as it should be is left out."""
    members = _members(said)
    found: dict[str, Any] = {
        name: _text(members, name) for name in ("outcome", "kind", "said", "image")
    }
    machine, after = members.get("machine"), members.get("after")
    if isinstance(machine, dict):
        sight = _sight(machine)  # pyright: ignore[reportUnknownArgumentType] - JSON keys
        found["machine"] = sight.row()
    if isinstance(after, (int, float)) and not isinstance(after, bool):
        found["after"] = float(after)
    return found


def _text(row: Mapping[str, Any], name: str) -> str:
    found = row.get(name)
    if not isinstance(found, (str, int, float)):
        return ""
    return one_line(str(found), MAX_SAID)


def _counts(raw: Any) -> dict[str, int]:
    rows: dict[Any, Any] = raw if isinstance(raw, dict) else {}  # pyright: ignore[reportUnknownVariableType] - JSON
    return {
        one_line(str(reason), MAX_TEXT): count
        for reason, count in list(rows.items())[:MOST]
        if isinstance(count, int)
    }
