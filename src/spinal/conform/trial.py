"""What a check has at hand: the agent that is tried, seats on the bus, and operations to ask for."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from spinal.bus.blob import Store
from spinal.protocols import Json

from .seat import SOON, Exchange, Heard, Seat
from .verdict import NotOffered, Wrong

#: Milliseconds that an op of a check has if the check does not say.
LEFT: Final = 30_000

#: Operations that every agent offers while it is tried (docs/protocol.md, 18).
CORE: Final = ("echo", "repeat", "work", "fail", "refuse")
#: Operations that go with something that not every agent can do.
EXTRA: Final = ("report", "stream", "copy")

#: What is asked to see whether they are there: ``copy`` then refuses its arguments.
PROBES: Final[Mapping[str, Mapping[str, Json]]] = {
    "report": {"steps": 1},
    "stream": {"count": 0},
    "copy": {},
}

#: Makes a seat: ``caller``, ``other`` or ``dispatcher``, and the resource.
Sit = Callable[[str, str], AbstractAsyncContextManager[Seat]]


class Control(Protocol):
    """Starts and ends the agent's process."""

    async def start(self) -> None:
        """Begin a life of the agent; returns at once."""
        ...

    async def kill(self) -> None:
        """End it as SIGKILL does."""
        ...

    async def stop(self) -> None:
        """Ask it to drain and end, as SIGTERM does; returns at once."""
        ...

    async def ended(self, within: float) -> int:
        """Wait for its end and give its exit status.

        Raises:
            TimeoutError: it goes on.
        """
        ...

    def said(self) -> str:
        """Give its last words, for an error's text."""
        ...


@dataclass(frozen=True)
class Ops:
    """Where the operations of the tests are, and how their arguments are called there.

    Attributes:
        paths: path of each operation by its role (``echo``, ``work``, ...); what is not there is
            not offered.
        templates: argument objects with ``"{text}"`` and the like where a check's argument goes;
            without one the arguments are those of the page.
    """

    paths: Mapping[str, str] = field(
        default_factory=lambda: {role: f"/conform/{role}" for role in (*CORE, *EXTRA)}
    )
    templates: Mapping[str, Mapping[str, Json]] = field(
        default_factory=dict[str, Mapping[str, Json]]
    )

    def event(self, role: str, args: Mapping[str, Json]) -> dict[str, Json]:
        """Give ``op`` and ``args`` of an op.

        Raises:
            NotOffered: there is none with this role.
        """
        if role not in self.paths:
            raise NotOffered(f"it offers nothing in the place of /conform/{role}")
        template = self.templates.get(role)
        filled = args if template is None else {k: _fill(v, args) for k, v in template.items()}
        return {"op": self.paths[role], "args": filled}


def _fill(value: Json, args: Mapping[str, Json]) -> Json:
    if isinstance(value, str) and value[:1] == "{" and value[-1:] == "}":
        return args.get(value[1:-1])
    return value


@dataclass
class Trial:
    """One run of the checks against one agent.

    Attributes:
        agent: its full address in its present life.
        caller, other, dispatcher: our seats; ``other`` has another account.  None where the run
            has none.
        sit: makes further seats, such as one that goes and comes back.
        ops: what to ask for.
        control: starts and ends the agent, if the run does that.
        store: where blobs go, if there is a place.
        features: what the agent says that it can do.
        epoch: number of its present life, if it told.
    """

    agent: str
    caller: Seat
    sit: Sit
    other: Seat | None = None
    dispatcher: Seat | None = None
    ops: Ops = field(default_factory=Ops)
    control: Control | None = None
    store: Store | None = None
    features: frozenset[str] = frozenset()
    epoch: int | None = None
    #: Number of the check that runs, which every id begins with.
    number: str = "0"
    _offers: dict[str, bool] = field(default_factory=dict[str, bool])

    @property
    def seats(self) -> list[Seat]:
        """Those of the whole run."""
        all = (self.caller, self.other, self.dispatcher)
        return [seat for seat in all if seat is not None]

    @asynccontextmanager
    async def seat(self, who: str, resource: str) -> AsyncGenerator[Seat]:
        """Sit down somewhere else for a while, having said hello to the agent."""
        async with self.sit(who, resource) as seat:
            seat.hello(self.agent, "caller")
            yield seat
            self.settle(seat)

    def settle(self, *seats: Seat) -> None:
        """Acknowledge what was heard, where the agent keeps finals."""
        if "finals" in self.features:
            for seat in seats:
                if seat.connection.connected:
                    seat.settle(self.agent, "batch" in self.features)

    def id(self) -> str:
        """Mint the id of a call."""
        return f"{self.number}-{secrets.token_hex(5)}"

    async def need(self, role: str) -> None:
        """Make sure that an operation is there which not every agent offers.

        Raises:
            NotOffered: it is not.
        """
        if role not in self._offers:
            event = self.event(role, PROBES[role], id=f"0-{secrets.token_hex(5)}")
            end = await self.caller.start(event, self.agent).end()
            self._offers[role] = end.reason != "unknown-op"
        if not self._offers[role]:
            raise NotOffered(f"it does not offer {self.ops.paths[role]}")

    def event(
        self, role: str, given: Mapping[str, Json] | None = None, /, **members: Any
    ) -> dict[str, Json]:
        """Make an op event with these arguments; ``members`` replace or add to what it says."""
        base: dict[str, Json] = {"type": "op", "id": self.id(), "left": LEFT}
        return {**base, **self.ops.event(role, given or {}), **members}

    def start(
        self,
        role: str,
        args: Mapping[str, Json] | None = None,
        *,
        seat: Seat | None = None,
        **members: Any,
    ) -> Exchange:
        """Send an op from a seat, the caller's by default."""
        return (seat or self.caller).start(self.event(role, args, **members), self.agent)

    def need_page(self, role: str) -> None:
        """Make sure that an operation is the page's own, for what only that one takes.

        Raises:
            NotOffered: another one takes its place.
        """
        if self.ops.paths.get(role) != f"/conform/{role}" or role in self.ops.templates:
            raise NotOffered(f"only /conform/{role} is known to take this")

    async def echoes(self, within: float = SOON) -> None:
        """Make sure that the agent answers."""
        done = await self.value(self.start("echo", {"value": "still there?"}), within)
        if done != "still there?":
            raise Wrong("the value that was sent", self.caller.log[-1])

    async def value(self, exchange: Exchange, within: float = SOON) -> Any:
        """Wait for the end of a call that has to end well, and give its value."""
        end = await exchange.end(within)
        if end.type != "final" or end.event.get("problem") is not None:
            raise Wrong(f"a final without a problem for {exchange.id}", end.stanza, exchange.asked)
        return end.event.get("value")

    async def failed(self, exchange: Exchange, *reasons: str, within: float = SOON) -> Heard:
        """Wait for the end of a call that has to be started and to fail."""
        return await self._ended(exchange, "final", reasons, within)

    async def refused(self, exchange: Exchange, *reasons: str, within: float = SOON) -> Heard:
        """Wait for the refusal of a call that must not be started."""
        return await self._ended(exchange, "error", reasons, within)

    async def _ended(
        self, exchange: Exchange, kind: str, reasons: tuple[str, ...], within: float
    ) -> Heard:
        end = await exchange.end(within)
        if end.type != kind or end.reason not in reasons:
            expected = f"{kind} with the reason {' or '.join(reasons)} for {exchange.id}"
            raise Wrong(expected, end.stanza, exchange.asked)
        return end

    async def runs(self, name: str) -> int:
        """Say how often work was begun under a name."""
        count = await self.value(self.start("work", {"name": name}))
        if type(count) is not int:
            raise Wrong("a number as the value of /conform/work", self.caller.log[-1])
        return count - 1


def same(expected: Json, found: Json) -> bool:
    """Compare JSON values: 1 is 1.0, but neither is true."""
    match expected, found:
        case (bool(), _) | (_, bool()):
            return expected is found
        case dict(), dict():
            left: dict[str, Json] = expected  # pyright: ignore[reportUnknownVariableType] - JSON
            right: dict[str, Json] = found  # pyright: ignore[reportUnknownVariableType] - JSON
            return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
        case list(), list():
            one: list[Json] = expected  # pyright: ignore[reportUnknownVariableType] - JSON
            other: list[Json] = found  # pyright: ignore[reportUnknownVariableType] - JSON
            return len(one) == len(other) and all(map(same, one, other))
        case _:
            return bool(expected == found)
