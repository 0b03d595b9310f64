"""A participant of the bus who says exactly what he is told, and writes down what he hears.

A session (``bus/session.py``) keeps the protocol's promises for its user, so it cannot be used to
find out whether a peer keeps them.  A seat promises nothing: it sends what a check wants to send,
right or wrong, answers a stanza that carries answers (or leaves it unanswered, if a check wants to
see what happens then), and keeps everything that comes for the checks to look at.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from xml.etree.ElementTree import Element

from spinal.bus.connection import ID_PREFIX, Connection
from spinal.bus.errors import CallError
from spinal.protocols import Codec, Json, Message, ProtocolError, Stanza

from .verdict import Flooded, Wrong

T = TypeVar("T")

#: One event as it travels.
Said = Mapping[str, Any]

#: Seconds in which whatever takes no time has to be answered, on a busy machine.
SOON: Final = 10.0
#: Stanzas that are kept whatever they are about.
KEPT: Final = 100
#: Most stanzas within a second, and in all; a large one counts for each of these bytes as one more.
FLOOD: Final = 2000
WHOLE: Final = 20_000
LARGE: Final = 16 * 1024

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Heard:
    """One event of the agent, and the stanza that brought it."""

    event: Said
    stanza: Stanza
    #: Time of the event loop.
    at: float

    @property
    def type(self) -> str:
        """Type of the event."""
        return str(self.event["type"])

    @property
    def reason(self) -> str:
        """Reason of its problem; empty if it has none."""
        problem: Said = self.event.get("problem") or {}
        return str(problem.get("reason", ""))


@dataclass
class Exchange:
    """What was said about one attempt of one call."""

    seat: Seat
    id: str
    attempt: int
    #: The stanza that asked; for a resent op the last one.
    asked: Stanza
    heard: list[Heard] = field(default_factory=list[Heard])
    #: Answer to each stanza that asked, by its id.
    answers: dict[str, Stanza] = field(default_factory=dict[str, Stanza])

    def all(self, *types: str) -> list[Heard]:
        """Give the events of these types so far, in the order in which they came."""
        return [each for each in self.heard if each.type in types]

    async def hear(self, *types: str, within: float = SOON, count: int = 1) -> Heard:
        """Wait for an event of these types, or for the ``count``-th one.

        Raises:
            Wrong: none came in time, or the stanza was answered with something else than events.
        """
        wanted = " or ".join(types)

        def found() -> Heard | None:
            events = self.all(*types)
            if len(events) >= count:
                return events[count - 1]
            answer = self.answers.get(self.asked.id)
            if answer is not None and answer.type == "error":
                raise Wrong(f"{wanted} for {self.id}", answer, self.asked)
            return None

        try:
            return await self.seat.until(found, within)
        except TimeoutError:
            last = self.heard[-1].stanza if self.heard else self.answers.get(self.asked.id)
            raise Wrong(f"{wanted} for {self.id} within {within:g} s", last, self.asked) from None

    async def end(self, within: float = SOON) -> Heard:
        """Wait for its final or its error."""
        return await self.hear("final", "error", within=within)

    async def answer(self, within: float = SOON) -> Stanza:
        """Wait for the IQ that answers the last stanza that asked.

        Raises:
            Wrong: none came in time.
        """
        try:
            return await self.seat.until(lambda: self.answers.get(self.asked.id), within)
        except TimeoutError:
            raise Wrong(f"an answer to the stanza within {within:g} s", None, self.asked) from None

    def again(self, **members: Json) -> None:
        """Send the op again, in a stanza of its own, from the same seat."""
        said: list[dict[str, Json]] = json.loads(self.asked.body or b"[]")
        event = next(each for each in said if each.get("id") == self.id)
        self.asked = self.seat.send([{**event, **members}], self.asked.to)
        self.seat.expect(self.asked, [self])


class Seat:
    """One address on the bus; an async context manager.

    Args:
        connection: who it is; opened and closed with the seat.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.exchanges: dict[tuple[str, int], Exchange] = {}
        #: Everything that came, the latest last.
        self.log: deque[Stanza] = deque(maxlen=KEPT)
        #: Stanzas of ours that could not be read, and events of calls that are not ours.
        self.unreadable: list[tuple[Stanza, str]] = []
        self.strays: list[Heard] = []
        #: Presence of each peer: the last one, and when.
        self.presence: dict[str, tuple[Stanza, float]] = {}
        #: Hellos and advertisements, as they came.
        self.news: list[tuple[str, Heard]] = []
        #: Decides whether an IQ set with these events is left unanswered.
        self.withholds: Callable[[Sequence[Said]], bool] = lambda events: False
        self.withheld: list[Stanza] = []
        #: Ids of all that we ever asked for or spoke of.
        self._ours: set[str] = set()
        #: Finals that were heard and not acknowledged.
        self._open: dict[tuple[str, int], None] = {}
        self._answers: dict[str, Stanza] = {}
        #: Ops of each stanza that is not answered.
        self._asking: dict[str, tuple[Stanza, Sequence[Exchange]]] = {}
        self._changed = asyncio.Event()
        self._second = 0.0
        self._in_second = 0
        self._in_all = 0
        self._trouble: Exception | None = None

    async def __aenter__(self) -> Self:
        await self.connection.open(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.connection.close()

    @property
    def address(self) -> str:
        """Full address."""
        return self.connection.address

    # -- what is said

    def send(self, said: Sequence[Said] | str, to: str, kind: str = "set") -> Stanza:
        """Send an IQ with these events, or with this text in place of their JSON."""
        body = write(said) if not isinstance(said, str) else said.encode()
        self._ours.update(_ID.findall(body.decode("utf-8", "replace")))
        stanza = Stanza("iq", kind, to, self.address, f"{ID_PREFIX}{next(_numbers)}", body)
        self.connection.send(stanza)
        return stanza

    def hello(self, to: str, role: str, **members: Json) -> None:
        """Direct presence at a peer, as whoever opens an exchange does."""
        features = ["batch", "cancel", "finals", "stream"]
        event = {"type": "hello", "role": role, "features": features, **members}
        self.connection.send(Stanza("presence", "", to, body=write([event])))

    def settle(self, to: str, batch: bool) -> None:
        """Acknowledge all finals that were heard and are not acknowledged, as a caller has to."""
        taken, self._open = list(self._open), {}
        size = 200 if batch else 1
        for first in range(0, len(taken), size):
            (id, attempt), *also = taken[first : first + size]
            more = {"also": also} if also else {}
            self.send([{"type": "ack", "id": id, "attempt": attempt, **more}], to)

    def reply(self, stanza: Stanza) -> None:
        """Answer an IQ set that was withheld."""
        self.connection.send(Stanza("iq", "result", stanza.sender, id=stanza.id))

    async def ask(
        self, said: Sequence[Said] | str, to: str, within: float = SOON, what: str = "an answer"
    ) -> Stanza:
        """Send an IQ and wait for its answer.

        Raises:
            Wrong: none came in time.
        """
        asked = self.send(said, to)
        try:
            return await self.until(lambda: self._answers.pop(asked.id, None), within)
        except TimeoutError:
            raise Wrong(f"{what} within {within:g} s", None, asked) from None

    def start(self, event: Said, to: str) -> Exchange:
        """Send an op in a stanza of its own."""
        return self.start_all([event], to)[0]

    def start_all(
        self, events: Sequence[Said], to: str, beside: Sequence[Said] = ()
    ) -> list[Exchange]:
        """Send ops in one stanza, behind other events if there are any."""
        asked = self.send([*beside, *events], to)
        begun: list[Exchange] = []
        for event in events:
            id, attempt = str(event["id"]), int(event.get("attempt") or 1)
            exchange = Exchange(self, id, attempt, asked)
            self.exchanges[id, attempt] = exchange
            begun.append(exchange)
        self.expect(asked, begun)
        return begun

    def remember(self, exchange: Exchange) -> Exchange:
        """Take over an exchange that another seat of the account has begun."""
        own = Exchange(self, exchange.id, exchange.attempt, exchange.asked)
        self.exchanges[own.id, own.attempt] = own
        self._ours.add(own.id)
        return own

    def expect(self, asked: Stanza, exchanges: Sequence[Exchange]) -> None:
        """Have exchanges told of the answer to a stanza."""
        self._asking[asked.id] = (asked, exchanges)

    # -- what comes

    def opened(self) -> None:
        """Be there: initial presence comes first (RFC 6121, 4.6)."""
        self.connection.send(Stanza("presence", ""))

    def closed(self, reason: str) -> None:
        """Let who waits know that there is no stream."""
        self._trouble = Wrong(f"our own stream broke: {reason}", None)
        self._changed.set()

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        """Understand nothing of other namespaces."""
        return False

    def said(self, message: Message) -> None:
        """Nobody here talks with people."""

    def received(self, stanza: Stanza) -> None:
        """Write down what came, and answer what has to be answered."""
        self._count(stanza)
        self._changed.set()
        if isinstance(self._trouble, Flooded):
            return  # Nothing is kept any more, and the run ends.
        self.log.append(stanza)
        if stanza.kind == "presence":
            self.presence[stanza.sender] = (stanza, self._now())
        events = self._read(stanza)
        if stanza.kind == "iq" and stanza.type in ("result", "error"):
            self._answered(stanza)
        for event in events:
            self._hear(Heard(event, stanza, self._now()))
        if stanza.kind == "iq" and stanza.type == "set":
            if self.withholds(events):
                self.withheld.append(stanza)
            else:
                self.reply(stanza)

    def _count(self, stanza: Stanza) -> None:
        now = self._now()
        if now - self._second >= 1.0:
            self._second, self._in_second = now, 0
        weight = 1 + len(stanza.body or b"") // LARGE
        self._in_second += weight
        self._in_all += weight
        if self._in_second > FLOOD or self._in_all > WHOLE:
            self._trouble = Flooded(stanza.sender)

    def _read(self, stanza: Stanza) -> Sequence[Said]:
        # An error may send back what it is about (RFC 6120, 8.3.1).
        if stanza.body is None or stanza.type == "error":
            return []
        try:
            # First by the codec, which knows every rule; the checks look at what was said.
            _CODEC.read(stanza.body)
            return read(stanza)
        except (ProtocolError, ValueError) as exc:
            self.unreadable.append((stanza, str(exc)))
            return []

    def _answered(self, stanza: Stanza) -> None:
        asked, exchanges = self._asking.get(stanza.id, (None, ()))
        if asked is None:
            self._answers[stanza.id] = stanza
        elif asked.to == stanza.sender:
            # It counts only from whom was asked (RFC 6120, 8.2.3).
            del self._asking[stanza.id]
            for exchange in exchanges:
                exchange.answers[stanza.id] = stanza

    def _hear(self, heard: Heard) -> None:
        event = heard.event
        if heard.type in ("hello", "advertisement"):
            self.news.append((heard.stanza.sender, heard))
            return
        if heard.type in ("description", "seen"):
            return
        key = (str(event.get("id", "")), int(event.get("attempt") or 1))
        exchange = self.exchanges.get(key)
        if key[0] not in self._ours:
            self.strays.append(heard)
        elif heard.type == "final":
            self._open[key] = None
        if exchange is not None and exchange.asked.to == heard.stanza.sender:
            exchange.heard.append(heard)

    async def until(self, holds: Callable[[], T | None], within: float) -> T:
        """Wait until something is so, and give it.

        Raises:
            TimeoutError: it was not so in time.
            Flooded: too much comes to go on.
        """
        async with asyncio.timeout(within):
            while True:
                self._changed.clear()
                if (found := holds()) is not None:
                    return found
                if self._trouble is not None:
                    raise self._trouble
                await self._changed.wait()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


_CODEC: Final = Codec()
_ID: Final = re.compile(r'"id"\s*:\s*"([^"]*)"')


def read(stanza: Stanza) -> list[Said]:
    """Read the events of a stanza that is known to be good; none if it has no body."""
    found: list[Said] = [] if stanza.body is None else json.loads(stanza.body)
    return found


def escaped(text: str) -> str:
    """Write a text so that it can stand in XML, with references where there have to be any."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def write(events: Sequence[Said]) -> bytes:
    """Write events as the text of a stanza, without any check."""
    text = json.dumps(events, ensure_ascii=False, separators=(",", ":"))
    for mark in "&<>\ufffe\uffff":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text.encode("utf-8", "surrogatepass")


async def is_anybody(connection: Connection, address: str) -> bool:
    """Say whether somebody answers there who may know nothing of Spinal."""
    for tag in ("{urn:xmpp:ping}ping", "{http://jabber.org/protocol/disco#info}query"):
        try:
            await connection.ask("get", address, Element(tag), timeout=3.0)
            return True
        except CallError:
            continue
    return False
