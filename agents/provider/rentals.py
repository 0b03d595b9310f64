"""What is done with one account: offers, machines, and that one order makes one machine.

Theory of operation.  A vendor may do what it is asked for and answer with an error, or not at all;
and it may be asked twice, when whoever asked did not hear the answer.  So a machine is told by its
name, which is given before the vendor is asked.  A create looks first, asks once, and looks again
after whatever went wrong.  What then is sure is told as ``created`` or ``refused``, and what is not
as ``unknown``: whoever ordered the machine has to look until it is.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from spinal.agents.errors import one_line
from spinal.bus.tasks import Tasks
from spinal.protocols import Json

from . import area
from .desk import Desk, Failed
from .fault import REFUSALS, Fault, Impossible
from .machine import Machine
from .offer import Offer
from .settings import Account
from .vendors.vendor import Order, Quota, Vendor

#: Seconds for which offers are kept.
KEPT: Final = 600.0

#: Seconds that offers may take to learn; those that are known are told after that.
LEARN: Final = 60.0

#: Seconds for which a list is good for the questions after the first one.
PAGED: Final = 30.0

#: Seconds between two looks at a machine that is waited for: at first, and at most.
SOON: Final = 0.5
LATE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a vendor offers, as it was learned."""

    offers: Sequence[Offer] = ()
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    #: Where nothing new was learned, and why; what is offered there is older.
    errors: Sequence[Mapping[str, Json]] = ()


@dataclass(frozen=True, slots=True)
class _Part:
    """Offers of one scope."""

    offers: Sequence[Offer]
    dropped: Mapping[str, int]
    #: Monotonic time at which they were learned.
    at: float


class Rentals:
    """See the module.

    Args:
        account: whose vendor it is.
        home_id: of the home whose machines are shown; empty shows only those that are named.
        desk: calls the vendor; by default one of its own.
    """

    def __init__(self, account: Account, home_id: str = "", desk: Desk | None = None) -> None:
        self.account = account
        self.home_id = home_id
        self._desk = desk or Desk(account)
        self._parts: dict[str, _Part] = {}
        self._asking: dict[str, asyncio.Task[dict[str, Json]]] = {}
        #: The last list, when it was begun (monotonic), and for which names.
        self._listed: tuple[float, tuple[frozenset[str], ...], list[Machine]] | None = None
        self._looking = asyncio.Lock()
        self._tasks = Tasks(f"rentals of {account.name}")

    async def close(self) -> None:
        """Let what is being created be created, and take no more."""
        await self._tasks.idle()
        await self._tasks.close()
        self._desk.close()

    # -- offers

    async def offers(self, *, refresh: bool = False) -> Found:
        """Give all that the vendor offers, cheapest first; learned anew after ten minutes.

        What cannot be learned is told in ``errors``, and stays as it was.
        """
        async with self._looking:
            scopes, errors = await self._scopes()
            stale = [
                scope
                for scope in scopes
                if refresh
                or scope not in self._parts
                or time.monotonic() - self._parts[scope].at > KEPT
            ]
            for scope, failed in zip(
                stale, await asyncio.gather(*map(self._learn, stale)), strict=True
            ):
                if failed is not None:
                    errors.append({"region": scope, "kind": failed.kind, "said": failed.said})
        dropped: Counter[str] = Counter()
        for part in self._parts.values():
            dropped.update(part.dropped)
        every = [offer for part in self._parts.values() for offer in part.offers]
        return Found(sorted(every, key=_rank), dropped, errors)

    async def _scopes(self) -> tuple[list[str], list[dict[str, Json]]]:
        try:
            return await self._desk.call(lambda vendor: vendor.scopes()), []
        except Failed as exc:
            return [], [{"region": "", "kind": exc.fault.kind, "said": exc.fault.said}]

    async def _learn(self, scope: str) -> Fault | None:
        dropped: Counter[str] = Counter()
        now = int(time.time() * 1000)

        def count(reason: str) -> None:
            dropped[reason] += 1

        try:
            found = await self._desk.call(
                lambda vendor: list(vendor.offers(scope, now, count)), LEARN
            )
        except Failed as exc:
            return exc.fault
        self._parts[scope] = _Part(found, dropped, time.monotonic())
        return None

    # -- machines

    async def machines(
        self, names: Sequence[str] = (), also: Sequence[str] = (), *, paging: bool = False
    ) -> list[Machine]:
        """Give our machines, by tag.

        Args:
            names: if there are any, those alone, tagged or not.
            also: those of these names as well, tagged or not.
            paging: whoever asks has read a part, and goes on in the same list.

        Raises:
            Failed: one of the regions did not answer, so that something might be missing.
        """
        asked, now = (frozenset(names), frozenset(also)), time.monotonic()
        if paging and self._listed is not None:
            at, of, kept = self._listed
            if of == asked and now - at < PAGED:
                return kept
        name = names[0] if len(names) == 1 else ""
        wanted = {*names, *also}
        found = [
            one
            for one in await self._shown(None, name)
            if (one.name in wanted and one.of(self.home_id) is not False)
            or (not names and self.home_id and one.of(self.home_id))
        ]
        self._listed = now, asked, found
        return found

    async def _shown(
        self, region: str | None, name: str, within: float | None = None
    ) -> list[Machine]:
        """Ask for what is shown, in one region or all."""
        if region is None:
            places = await self._desk.call(lambda vendor: vendor.scopes(), within)
        else:
            places = await self._desk.call(lambda vendor: [""] if vendor.whole else [region])

        def show(scope: str) -> Callable[[Vendor], list[Machine]]:
            return lambda vendor: vendor.machines(scope, name)

        parts = await asyncio.gather(*(self._desk.call(show(one), within) for one in places))
        return [machine for part in parts for machine in part]

    async def _named(self, name: str, region: str | None, within: float | None) -> Machine | None:
        """Look for a machine of ours by its name; the oldest, if there are several."""
        found = [
            one
            for one in await self._shown(region, name, within)
            if one.name == name and one.of(self.home_id) is not False
        ]
        return min(found, key=lambda one: (one.created or 0, one.id), default=None)

    # -- create

    async def create(self, order: Order, within: float, *, fresh: bool = False) -> dict[str, Json]:
        """Have a machine made, once; see :meth:`agent` for the answer.

        A second one of the same name, while the first is under way, waits for what becomes of that.
        Cancelled, it goes on and is seen through.

        Args:
            order: which machine.
            within: seconds that are left to whoever asks.
            fresh: whether it is sure that this name was never asked for before.
        """
        task = self._asking.get(order.name)
        if task is None:
            task = self._tasks.spawn(self._create(order, within, fresh), f"create {order.name}")
            self._asking[order.name] = task
            task.add_done_callback(lambda _: self._asking.pop(order.name, None))
        return await asyncio.shield(task)

    async def _create(self, order: Order, within: float, fresh: bool) -> dict[str, Json]:
        until = time.monotonic() + within
        timeout = self.account.timeout

        def left() -> float:
            return max(0.0, until - time.monotonic())

        try:
            there = await self._named(order.name, order.region, left())
        except Failed as exc:
            # If it was asked for before, it may be there.
            return _said("refused" if fresh else "unknown", exc.fault)
        if there is not None:
            return {"outcome": "created", "machine": there.row()}
        try:
            prepared = await self._desk.call(lambda vendor: _prepared(vendor, order), left())
        except Failed as exc:
            return _said("refused", exc.fault)
        try:
            made = await self._desk.call(
                lambda vendor: vendor.create(order, prepared), left(), least=timeout
            )
        except Failed as exc:
            return await self._looked(order, exc.fault, max(left(), timeout))
        return {"outcome": "created", "machine": made.row()}

    async def _looked(self, order: Order, fault: Fault, within: float) -> dict[str, Json]:
        """Say what came of a create that ended with a fault."""
        if not fault.sent:
            return _said("refused", fault)
        try:
            there = await self._named(order.name, order.region, within)
        except Failed:
            return _said("unknown", fault)
        if there is not None:
            row = there.tagged(order.tags).row()
            return {"outcome": "created", "machine": {**row, "said": row["said"] or fault.said}}
        return _said("refused" if fault.kind in REFUSALS else "unknown", fault)

    # -- the rest of a machine's life

    async def wait(self, name: str, within: float) -> Machine | None:
        """Wait until a machine runs, or cannot any more; gives it as it is then, none if it is gone.

        Raises:
            Failed: the vendor refuses to show it; what is transient is asked again.
        """
        until = time.monotonic() + within
        pause, seen = SOON, None
        while True:
            try:
                found = await self._named(name, None, None)
            except Failed as exc:
                if exc.fault.kind not in ("transient", "rate", "unknown"):
                    raise
                found = seen
            if found is not None and found.state != "starting":
                return found
            if found is None and seen is not None:
                return None
            seen = found
            if time.monotonic() + pause > until:
                return found
            await asyncio.sleep(pause)
            pause = min(LATE, pause * 1.5)

    async def destroy(self, name: str) -> dict[str, Json]:
        """Have all machines of ours with a name deleted."""
        try:
            found = await self._shown(None, name)
        except Failed as exc:
            return _said("failed", exc.fault)
        own = [one for one in found if one.name == name and one.of(self.home_id) is not False]
        if not own:
            return {"outcome": "gone", "kind": "", "said": ""}
        fault: Fault | None = None
        for machine in own:
            if machine.state == "ending":
                continue
            try:
                await self._desk.call(_destroying(machine))
            except Failed as exc:
                if exc.fault.code != 404:  # It went meanwhile.
                    fault = exc.fault
        if fault is not None:
            return _said("failed", fault)
        return {"outcome": "ending", "kind": "", "said": ""}

    async def freeze(self, name: str, label: str) -> dict[str, Json]:
        """Keep what is on a machine's disk as an image."""
        try:
            machine = await self._named(name, None, None)
            if machine is None:
                return _frozen("failed", "", f"there is no machine {name!r}")
            image = await self._desk.call(_freezing(machine, label))
        except Failed as exc:
            missing = isinstance(exc.__cause__, (NotImplementedError, AttributeError))
            return _frozen("unsupported" if missing else "failed", "", str(exc.fault))
        return _frozen("frozen", image, "")

    async def quota(self) -> Quota:
        """Count the machines of the account; raises :class:`Failed`."""
        return await self._desk.call(lambda vendor: vendor.quota())

    # -- plans

    async def arguments(self, order: Order) -> dict[str, Json]:
        """Give what the driver would be called with; raises :class:`Failed`."""
        found = await self._desk.call(lambda vendor: vendor.arguments(order))
        return {key: _shown(key, value) for key, value in found.items() if value is not None}

    async def known(self) -> list[str]:
        """Give the regions that the vendor has; raises :class:`Failed`."""
        return await self._desk.call(lambda vendor: list(vendor.known_regions()))


def _rank(offer: Offer) -> tuple[Any, ...]:
    return (offer.price, offer.type, offer.region)


def _prepared(vendor: Vendor, order: Order) -> dict[str, Any]:
    """Check what can be checked, and look up what has to be, before anything is bought.

    What it gives is plain data, and may be used by another thread's driver.
    """
    size = len(order.user_data.encode())
    if size > vendor.user_data:
        raise Impossible(
            f"user-data has {size} bytes and this vendor takes {vendor.user_data}: make it shorter"
        )
    if vendor.account.regions and order.region not in vendor.account.regions:
        known = ", ".join(vendor.account.regions)
        raise Impossible(f"region {order.region!r} is none of the account's: {known}")
    return vendor.arguments(order)


def _destroying(machine: Machine) -> Callable[[Vendor], None]:
    return lambda vendor: vendor.destroy(machine)


def _freezing(machine: Machine, label: str) -> Callable[[Vendor], str]:
    return lambda vendor: vendor.freeze(machine, label)


def _said(outcome: str, fault: Fault) -> dict[str, Json]:
    return {
        "outcome": outcome,
        "kind": fault.kind,
        "said": fault.said,
        "code": fault.code,
        "after": fault.after,
    }


def _frozen(outcome: str, image: str, said: str) -> dict[str, Json]:
    return {"outcome": outcome, "image": image, "said": said}


def _shown(key: str, value: Any) -> Json:
    """Write an argument of a driver for people; of what is secret or long, that it is there."""
    if key == "root_pass":
        return "(random)"
    if isinstance(value, dict):
        inner: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON keys
        return {name: _shown(name, item) for name, item in inner.items()}
    if isinstance(value, list):
        items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - JSON items
        return [_shown("", item) for item in items]
    if isinstance(value, (bool, int, float)):
        return value
    return one_line(str(getattr(value, "id", value)), 200)


def enough(
    offers: Iterable[Offer],
    dropped: Counter[str],
    *,
    cpu: float = 0.0,
    ram: int = 0,
    disk: int = 0,
    arch: str = "any",
    regions: Sequence[str] = (),
) -> list[Offer]:
    """Give the offers that are at least this, and count the others by why they are not."""
    found: list[Offer] = []
    for offer in offers:
        if not area.wanted(offer.region, offer.area, regions):
            dropped["other region"] += 1
        elif arch != "any" and offer.arch != arch:
            dropped["other processor"] += 1
        elif offer.cpu < cpu:
            dropped["too few processors"] += 1
        elif offer.ram < ram:
            dropped["too little memory"] += 1
        # A disk of 0 is rented by itself, as large as is wanted.
        elif 0 < offer.disk < disk:
            dropped["too small a disk"] += 1
        else:
            found.append(offer)
    return found
