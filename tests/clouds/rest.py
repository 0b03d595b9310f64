"""What the three vendors that are simulated here have in common: JSON over HTTP, with state."""

from __future__ import annotations

import base64
import binascii
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from .catalogue import Region, Size
from .ledger import Machine
from .vendor import TOKEN, Refusal, Settings, Vendor
from .wire import Ask, Reply, Request, View


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way through a vendor."""

    request: Request
    ask: Ask
    view: View
    at: float


Handler = Callable[[Any, Call], Reply]


@dataclass(frozen=True, slots=True)
class Image:
    """An image that was made of a machine."""

    id: str
    name: str
    machine: Machine
    created: float


class Rest(Vendor):
    """A vendor with a table of routes: method and path, operation, and what answers."""

    #: The vendor's own images: what a request calls it, and the name.
    systems: ClassVar[Mapping[str, str]]
    regions: ClassVar[tuple[Region, ...]]
    sizes: ClassVar[tuple[Size, ...]]
    routes: ClassVar[tuple[tuple[str, str, str, Handler], ...]]
    #: The keys of region, size and name in a request to create.
    keys: ClassVar[tuple[str, str, str]]

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings)
        self.images: dict[str, Image] = {}
        self._routes = [
            (method, re.compile(path), operation, handler)
            for method, path, operation, handler in self.routes
        ]

    async def reset(self) -> None:
        """Forget everything."""
        await super().reset()
        self.images.clear()

    def knows(self, request: Request) -> bool:
        """Say whether it carries the right token."""
        return request.headers.get("authorization") == f"Bearer {TOKEN}"

    def read(self, request: Request) -> Ask:
        """Say what a request is for."""
        operation, id = self._route(request)[:2]
        if operation == "create":
            given = request.object()
            region, type_, name = (str(given.get(key, "")) for key in self.keys)
            return Ask("create", region, type_, name)
        machine = self.ledger.machines.get(id)
        if machine is None:
            return Ask(operation, id=id)
        return Ask(operation, machine.region, machine.type, machine.name, id)

    async def answer(self, request: Request, ask: Ask, view: View) -> Reply:
        """Carry it out."""
        handler = self._route(request)[2]
        at = self.ledger.now() if view.at is None else view.at
        return self.absent() if handler is None else handler(self, Call(request, ask, view, at))

    def refuse(self, refusal: Refusal, ask: Ask, headers: Mapping[str, str]) -> Reply:
        """Say an error as the vendor does."""
        return Reply.of(refusal.status, self.error(refusal), headers)

    @abstractmethod
    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Say an error in the vendor's JSON."""

    def absent(self) -> Reply:
        """Say that there is no such thing."""
        return self.refuse(self.refusals["absent"], Ask("other"), {})

    def invalid(self, said: str) -> Reply:
        """Say that a request cannot be carried out as it is."""
        known = self.refusals["capacity"]
        return self.refuse(Refusal(known.status, known.code, said), Ask("create"), {})

    def machine(self, call: Call) -> Machine | None:
        """Give the living machine that a request is about."""
        machine = self.ledger.machines.get(call.ask.id)
        return machine if machine is not None and machine.lives(call.at) else None

    def has_image(self, id: str) -> bool:
        """Say whether there is such an image, the vendor's or one that was made."""
        return id in self.systems or id in self.images

    def size(self, id: str) -> Size | None:
        """Give a size by its id."""
        return next((size for size in self.sizes if size.id == id), None)

    def region(self, id: str) -> Region | None:
        """Give a region by its id."""
        return next((region for region in self.regions if region.id == id), None)

    def make(self, call: Call, id: str, number: int, **said: Any) -> Machine:
        """Make the machine that is asked for, and write it down."""
        ask = call.ask
        broken = call.view.broken
        machine = Machine(
            ask.name, id, ask.type, ask.region, self.ledger.now(), number, broken=broken, **said
        )
        self.ledger.add(machine)
        return machine

    def _route(self, request: Request) -> tuple[str, str, Handler | None]:
        for method, path, operation, handler in self._routes:
            match = path.fullmatch(request.path)
            if match is not None and method == request.method:
                return operation, match.groupdict().get("id", ""), handler
        return "other", "", None


def address(number: int) -> str:
    """Give a machine's address, in the range that is for benchmarks (RFC 2544)."""
    return f"198.{18 + number // 65536 % 2}.{number // 256 % 256}.{number % 256}"


def stamp(seconds: float, zone: str = "Z") -> str:
    """Write a time as the vendors do."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + zone


def plain(user_data: str) -> str:
    """Read user-data from base64; as it is if it is none."""
    try:
        return base64.b64decode(user_data, validate=False).decode()
    except (binascii.Error, UnicodeDecodeError):
        return user_data


def strings(value: Any) -> list[str]:
    """Read a list of strings; one alone is a list of one, and nothing is none."""
    if not isinstance(value, list):
        return [str(value)] if value else []
    items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
    return [str(item) for item in items]


def number(text: str | None, default: int, least: int, most: int) -> int:
    """Read a number of a query, within bounds."""
    value = int(text) if text is not None and text.isdecimal() else default
    return min(max(value, least), most)
