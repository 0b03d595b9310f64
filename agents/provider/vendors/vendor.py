"""What all vendors have in common: one account, in blocking calls of one thread.

A driver is not safe in several threads, so each thread has an adapter of its own, and each adapter a
driver for each region that has an API of its own.  An adapter decides nothing: it asks its driver,
and puts the answers in our words.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from libcloud.common.types import LibcloudError
from libcloud.compute.base import NodeImage, NodeLocation, NodeSize
from libcloud.compute.types import NodeState
from libcloud.pricing import get_pricing_file_path

from ..area import of as area_of
from ..fault import Impossible
from ..machine import HOME, NAME, POOL, Machine
from ..offer import Offer
from ..settings import Account

MIB: Final = 1024**2
GIB: Final = 1024**3

#: State of a driver -> ours; what is not here is starting.
_STATES: Final[Mapping[str, str]] = {
    NodeState.RUNNING.value: "running",
    NodeState.REBOOTING.value: "running",
    NodeState.NORMAL.value: "running",
    NodeState.STOPPED.value: "stopped",
    NodeState.SUSPENDED.value: "stopped",
    NodeState.PAUSED.value: "stopped",
    NodeState.ERROR.value: "error",
    NodeState.STOPPING.value: "ending",
    NodeState.TERMINATED.value: "gone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A type of machine as its vendor lists it."""

    type: str
    cpu: float | None
    #: Bytes.
    ram: int
    disk: int = 0
    arch: str = "x86_64"
    #: Of an hour; none or nothing is unknown.
    price: float | None
    source: str = "api"
    #: Milliseconds since 1970 UTC; none means now.
    as_of: int | None = None
    #: Where it is had; none means in all regions of the account.
    regions: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A machine that is to be."""

    name: str
    type: str
    region: str
    #: As it is called here, or by the vendor.
    image: str
    user_data: str = ""
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Public key that may log in.
    ssh_key: str = ""
    #: Bytes that its disk has at least, where disks are rented by themselves.
    disk: int = 0


@dataclass(frozen=True, slots=True)
class Quota:
    """How many machines the account has and may have."""

    machines: int
    limit: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Vendor:
    """See the module.

    Args:
        account: what ``providers.yaml`` says.

    All methods raise what the driver raises, :class:`Impossible` for what cannot be, and
    :class:`~spinal.agents.errors.AgentError` where a secret cannot be read.
    """

    #: Name of libcloud's driver.
    driver_name: ClassVar[str]
    #: Whether one driver sees all regions.
    whole: ClassVar[bool] = True
    #: Largest user-data in bytes, as the vendor counts it.
    user_data: ClassVar[int] = 64 * 1024
    #: Whether machines keep tags of ours.
    tags: ClassVar[bool] = True
    #: Hours that its prices are for.
    hours: ClassVar[float] = 1.0
    #: Name of an image here -> what it is called there: an id, or what :meth:`find_image` takes.
    images: ClassVar[Mapping[str, str]] = {}

    def __init__(self, account: Account) -> None:
        self.account = account
        self._drivers: dict[str, Any] = {}
        self._known: list[str] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.account.name}>"

    # -- to be told by each

    def connect(self, region: str) -> Any:
        """Make a driver for a region, or for all of them."""
        raise NotImplementedError

    def list_regions(self) -> list[str]:
        """Give the regions that the vendor has."""
        return [str(one.id) for one in self.driver("").list_locations()]

    def size(self, size: Any) -> Size:
        """Read a size of the driver."""
        raise NotImplementedError

    def arguments(self, order: Order) -> dict[str, Any]:
        """Give what ``create_node`` is called with; may have to look up the image."""
        raise NotImplementedError

    def region_of(self, node: Any, region: str) -> str:
        """Say where a machine is; ``region`` is that of the driver."""
        return region

    def type_of(self, node: Any) -> str:
        """Say what type a machine is of."""
        size: Any = node.size
        return str(getattr(size, "id", size) or "")

    def tags_of(self, node: Any) -> dict[str, str]:
        """Read the tags of a machine."""
        return {}

    def said_of(self, node: Any) -> str:
        """Say what is wrong with a machine, if its vendor says something."""
        return ""

    def freeze(self, machine: Machine, label: str) -> str:
        """Make an image of a machine's disk, and give its id or name; it may take a while there."""
        raise NotImplementedError

    # -- what follows

    def driver(self, region: str) -> Any:
        """Give this thread's driver for a region."""
        key = "" if self.whole else region
        if key not in self._drivers:
            self._drivers[key] = self.connect(key)
        return self._drivers[key]

    def known_regions(self) -> list[str]:
        """Give the regions that the vendor has; asked once."""
        if self._known is None:
            self._known = self.list_regions()
        return self._known

    def regions(self) -> list[str]:
        """Give the regions of the account."""
        return list(self.account.regions) or self.known_regions()

    def scopes(self) -> list[str]:
        """Give what has to be asked one by one to hear of all regions."""
        return [""] if self.whole else self.regions()

    def sizes(self, scope: str) -> Iterator[Size]:
        """Give the types that are had in a scope."""
        for one in self.driver(scope).list_sizes():
            yield self.size(one)

    def offers(self, scope: str, now: int, dropped: Callable[[str], None]) -> Iterator[Offer]:
        """Give what is had in a scope, and count what is no offer by its reason."""
        account = self.account
        for size in self.sizes(scope):
            price, source, as_of = size.price, size.source, size.as_of or now
            if price is not None:
                price /= self.hours
            if size.type in account.prices:
                price, source, as_of = account.prices[size.type], "config", now
            if price is None or not 0 < price < math.inf:
                dropped("no price")
                continue
            if not size.cpu:
                dropped("no number of processors")
                continue
            for region in self._places(size, scope):
                yield Offer(
                    vendor=account.name,
                    region=region,
                    type=size.type,
                    area=self.area(region),
                    arch=size.arch,
                    cpu=size.cpu,
                    ram=size.ram,
                    disk=size.disk,
                    price=price,
                    currency=account.currency,
                    source=source,
                    as_of=as_of,
                    cap=account.limit,
                )

    def area(self, region: str) -> str:
        """Give the area of a region."""
        return area_of(region)

    def _places(self, size: Size, scope: str) -> Iterable[str]:
        if scope:
            return [scope]
        places = self.regions()
        return places if size.regions is None else [one for one in places if one in size.regions]

    def machines(self, scope: str, name: str = "") -> list[Machine]:
        """Give the machines that the vendor shows in a scope; with a name, at least those."""
        return [found for node in self.nodes(scope, name) if (found := self.machine(node, scope))]

    def nodes(self, scope: str, name: str = "") -> list[Any]:
        """Ask the driver for its machines."""
        found: list[Any] = self.driver(scope).list_nodes()
        return found

    def machine(self, node: Any, scope: str) -> Machine | None:
        """Read a machine of the driver; none if it is gone and merely still shown."""
        state = self.state_of(node)
        if state == "gone":
            return None
        return Machine(
            name=str(node.name),
            id=str(node.id),
            region=self.region_of(node, scope),
            type=self.type_of(node),
            state=state,
            created=milliseconds(node.created_at),
            addresses=self.addresses_of(node),
            tags=self.tags_of(node),
            said=self.said_of(node),
            node=node,
        )

    @staticmethod
    def addresses_of(node: Any) -> tuple[str, ...]:
        """Give its addresses, public ones first."""
        found = (*(node.public_ips or ()), *(node.private_ips or ()))
        return tuple(str(one) for one in dict.fromkeys(found) if one)

    def state_of(self, node: Any) -> str:
        """Say where a machine is in its life; ``gone`` for one that is merely still shown."""
        return _STATES.get(str(getattr(node.state, "value", node.state)), "starting")

    def create(self, order: Order, arguments: Mapping[str, Any]) -> Machine:
        """Have a machine made, in one call; it is not there yet when this returns."""
        made: Any = self.driver(order.region).create_node(**arguments)
        return self.fresh(made, order)

    def fresh(self, node: Any, order: Order) -> Machine:
        """Read a machine just made, of which the answer may show less than we know."""
        state, type = self.state_of(node), self.type_of(node)
        return Machine(
            name=order.name,
            id=str(node.id),
            region=order.region,
            type=type or order.type,
            state="error" if state == "gone" else state,
            created=milliseconds(node.created_at),
            addresses=self.addresses_of(node),
            tags={**order.tags, **self.tags_of(node)},
            said=self.said_of(node) or ("it ended at once" if state == "gone" else ""),
            node=node,
        )

    def destroy(self, machine: Machine) -> None:
        """Have a machine deleted; it may be there for a while."""
        if self.driver(machine.region).destroy_node(machine.node) is False:
            raise LibcloudError("the vendor did not accept the deletion and did not say why")

    def quota(self) -> Quota:
        """Count the account's machines, ours and others."""
        count = sum(len(self.machines(scope)) for scope in self.scopes())
        return Quota(count, self.account.limit)

    def image(self, order: Order) -> str:
        """Give the vendor's id of an image.

        Raises:
            Impossible: the vendor has none of that name.
        """
        wanted = self.account.images.get(order.image) or self.images.get(order.image)
        return order.image if wanted is None else wanted

    # -- for adapters

    def made_size(self, order: Order) -> NodeSize:
        """Make a size by its id alone, which is all that a driver sends."""
        driver = self.driver(order.region)
        return NodeSize(order.type, order.type, 0, 0, None, 0.0, driver)

    def made_image(self, id: Any, order: Order) -> NodeImage:
        """Make an image by its id alone."""
        return NodeImage(id, str(id), self.driver(order.region))

    def made_location(self, order: Order) -> NodeLocation:
        """Make a location by its id alone."""
        return NodeLocation(order.region, order.region, "", self.driver(order.region))


def priced_at() -> int:
    """Say when libcloud's table of prices was made, in milliseconds since 1970 UTC."""
    if not _priced:
        with open(get_pricing_file_path(), encoding="utf-8") as file:
            _priced.append(int(json.load(file).get("updated", 0)) * 1000)
    return _priced[0]


_priced: list[int] = []


def milliseconds(when: Any) -> int | None:
    """Read a time of a driver, which may be a text; one without a zone is UTC."""
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            return None
    if not isinstance(when, datetime):
        return None
    return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)


def address(endpoint: str) -> tuple[str, int, bool, str]:
    """Take an endpoint apart: host, port, whether it is encrypted, and the path."""
    found = re.fullmatch(r"(https?)://(\[[^\]]+\]|[^/:]+)(?::(\d+))?(/.*)?", endpoint)
    if found is None:
        raise Impossible(f"{endpoint!r} is no address: write https://HOST:PORT")
    secure = found[1] == "https"
    return found[2], int(found[3] or (443 if secure else 80)), secure, found[4] or ""


def at(endpoint: str | None) -> dict[str, Any]:
    """Give an endpoint as keywords of a driver's constructor; none without one."""
    if endpoint is None:
        return {}
    host, port, secure, _ = address(endpoint)
    return {"host": host, "port": port, "secure": secure}


def words(tags: Mapping[str, str], longest: int, sign: str = ":") -> list[str]:
    """Write tags as single words, of letters, digits, ``:``, ``-`` and ``_``.

    One that is too long is left out, as a part of it would say something else.
    """
    order = (HOME, POOL, NAME)
    keys = sorted(tags, key=lambda key: (order.index(key) if key in order else 9, key))
    found = [re.sub(r"[^A-Za-z0-9:_-]", "_", f"{key}{sign}{tags[key]}") for key in keys]
    return [word for word in found if len(word) <= longest]


def named(items: Sequence[Any], wanted: str, about: str) -> Any:
    """Give the item of this id or name.

    Raises:
        Impossible: there is none; the text names some that are like it.
    """
    import difflib

    for item in items:
        if str(item.id) == wanted:
            return item
    for item in items:
        if str(item.name) == wanted:
            return item
    near = difflib.get_close_matches(wanted, [str(item.name) for item in items], 3, 0.3)
    raise Impossible(
        f"no {about} {wanted!r}" + (f": there is {', '.join(near)}" if near else " at this vendor")
    )
