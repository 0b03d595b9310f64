"""A bus inside one process, with faults to order: for our tests and for users' tests.

It keeps the promises of an XMPP server that the session relies on (the contract suite runs over
it as over the real ones): stanzas of one pair stay in order, an IQ to nobody bounces, directed
presence is taken back when a stream breaks.  A message or presence to a bare address goes to all
who are connected under it, and is kept for nobody.  Every stanza goes through the codec to bytes and
through an XML parser back, so nothing passes here that would not pass on a wire.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from xml.etree.ElementTree import Element, fromstring

import structlog

from spinal.protocols import Codec, Message, Problem, Stanza
from spinal.protocols import address as addresses

from ..connection import Connection, Listener, answer_other
from ..errors import AddressTaken, BusError, NotConnected
from ..questions import Questions
from ..reconnect import Backoff

log = structlog.get_logger()


@dataclass(slots=True)
class Faults:
    """What may happen to a stanza on its way; chances are from 0 to 1.

    ``applies`` picks the stanzas; by default all of them.
    """

    #: Shortest and longest time on the way in seconds.
    delay: tuple[float, float] = (0.0, 0.0)
    drop: float = 0.0
    duplicate: float = 0.0
    #: Chance that a stanza may be overtaken by those behind it, by up to ``late`` seconds.
    reorder: float = 0.0
    late: float = 0.05
    applies: Callable[[Stanza], bool] = field(default=lambda stanza: True, repr=False)


class MemoryBus:
    """Everything that is connected to everything else.

    Args:
        domain: domain of the addresses.
        faults: what happens to stanzas; may be changed at any time.
        seed: the same seed gives the same faults.
    """

    def __init__(
        self, domain: str = "memory.test", faults: Faults | None = None, seed: int = 0
    ) -> None:
        self.domain = domain
        self.faults = faults or Faults()
        self._random = random.Random(seed)
        self._here: dict[str, MemoryConnection] = {}
        #: When the last stanza of a pair arrives: a later one never comes before it.
        self._last: dict[tuple[str, str], float] = {}
        #: While false, nobody can connect.
        self.up = True

    def connection(self, address: str) -> MemoryConnection:
        """Give a connection for a full address, or for a component's domain."""
        return MemoryConnection(self, address)

    def cut(self, address: str) -> None:
        """Break the stream of an address; it comes back by itself."""
        if (found := self._here.get(address)) is not None:
            found.lost("the stream was cut")

    def kill(self, address: str) -> None:
        """End an address as SIGKILL would: its stream breaks and it says nothing more."""
        if (found := self._here.get(address)) is not None:
            found.dead = True
            found.lost("killed")

    def hang(self, address: str) -> None:
        """Stop an address as SIGSTOP would: it stays present, hears and says nothing."""
        if (found := self._here.get(address)) is not None:
            found.hung = True

    def resume(self, address: str) -> None:
        """Let a stopped address go on; what arrived meanwhile comes now."""
        if (found := self._here.get(address)) is not None:
            found.wake()

    def restart(self) -> None:
        """Break every stream, as a restart of the server does."""
        for found in list(self._here.values()):
            found.lost("the server was restarted")

    # -- for the connections

    def join(self, connection: MemoryConnection) -> None:
        """Bind an address; who had it before loses it (RFC 6120, 7.7.2.2)."""
        if not self.up:
            raise BusError("the server is down")
        older = self._here.get(connection.address)
        if older is not None and older is not connection:
            older.lost("conflict", AddressTaken(f"another program uses {connection.address}"))
        self._here[connection.address] = connection

    def leave(self, connection: MemoryConnection) -> None:
        """Unbind, and take directed presence back."""
        if self._here.get(connection.address) is connection:
            del self._here[connection.address]
            for to in connection.directed:
                self._carry(Stanza("presence", "unavailable", to, connection.address))
            connection.directed.clear()

    def route(self, stanza: Stanza) -> None:
        """Take a stanza from its sender."""
        if stanza.kind == "presence" and not stanza.to:
            return
        faults = self.faults
        if not faults.applies(stanza):
            self._carry(stanza)
            return
        if self._random.random() < faults.drop:
            return
        copies = 2 if self._random.random() < faults.duplicate else 1
        for _ in range(copies):
            wait = self._random.uniform(*faults.delay)
            overtaken = self._random.random() < faults.reorder
            if overtaken:
                wait += self._random.uniform(0.0, faults.late)
            # Of two copies one may arrive, and no server says of such a stanza that it did not.
            self._carry(stanza, wait, ordered=not overtaken, bounces=copies == 1)

    def _carry(
        self, stanza: Stanza, wait: float = 0.0, ordered: bool = True, bounces: bool = True
    ) -> None:
        loop = asyncio.get_running_loop()
        at = loop.time() + wait
        if ordered:
            pair = (stanza.sender, stanza.to)
            at = max(at, self._last.get(pair, 0.0))
            self._last[pair] = at
        data = Codec.encode(stanza, stanza.sender)
        if at <= loop.time():
            loop.call_soon(self._deliver, data, bounces)
        else:
            loop.call_at(at, self._deliver, data, bounces)

    def _deliver(self, data: bytes, bounces: bool) -> None:
        element = fromstring(data)
        found = self._here.get(element.get("to", ""))
        if found is not None:
            found.deliver(element)
            return
        if element.tag != "iq" and not addresses.resource(element.get("to", "")):
            for address, each in list(self._here.items()):
                if addresses.bare(address) == element.get("to"):
                    each.deliver(element)
            return
        stanza = Codec.decode(element)
        if bounces and stanza.kind == "iq" and stanza.type in ("get", "set"):
            # RFC 6121, 8.5.3.2.3
            problem = Problem("unreachable")
            self._carry(Stanza("iq", "error", stanza.sender, stanza.to, stanza.id, problem=problem))


class MemoryConnection(Connection):
    """One address on a :class:`MemoryBus`; keeps the contract of :class:`Connection`."""

    def __init__(self, bus: MemoryBus, address: str) -> None:
        self._bus = bus
        self._address = addresses.check(address)
        self._listener: Listener | None = None
        self._connected = False
        self._failed: asyncio.Future[Exception] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._backoff = Backoff(rng=random.Random(address))
        self._inbox: list[Element] = []
        self._questions = Questions(self)
        #: Addresses that we directed available presence at.
        self.directed: set[str] = set()
        self.hung = False
        self.dead = False

    @property
    def address(self) -> str:
        """Full address."""
        return self._address

    @property
    def connected(self) -> bool:
        """Whether a stream is ready now."""
        return self._connected

    async def open(self, listener: Listener) -> None:
        """Connect; see the contract."""
        self._listener = listener
        self._failed = asyncio.get_running_loop().create_future()
        self._connect()

    def _connect(self) -> None:
        assert self._listener is not None
        self._bus.join(self)
        self._connected = True
        self._listener.opened()

    def _retry(self) -> None:
        self._again = None
        try:
            self._connect()
        except BusError:
            self._later()

    def _later(self) -> None:
        loop = asyncio.get_running_loop()
        self._again = loop.call_later(self._backoff.pause(), self._retry)

    async def failed(self) -> Exception:
        """See the contract."""
        assert self._failed is not None
        return await asyncio.shield(self._failed)

    def send(self, stanza: Stanza) -> None:
        """Write a stanza; see the contract."""
        if not self._connected:
            raise NotConnected("the memory bus has no stream for us now")
        if self.hung or self.dead:
            return
        if stanza.kind == "presence" and stanza.to:
            if stanza.type == "":
                self.directed.add(stanza.to)
            else:
                self.directed.discard(stanza.to)
        self._bus.route(replace(stanza, sender=self._address))

    async def drain(self) -> None:
        """Nothing is buffered."""

    async def ask(
        self, kind: str, to: str, payload: Element, timeout: float = 10.0
    ) -> Element | None:
        """Ask somebody on this bus; see the contract.  There is no server to be asked."""
        return await self._questions.ask(kind, to, payload, timeout)

    async def close(self) -> None:
        """Leave; see the contract."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._connected:
            self._connected = False
            self._bus.leave(self)
        self._questions.end("the stream was closed")
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()

    # -- for the bus

    def deliver(self, element: Element) -> None:
        """Take a stanza from the bus."""
        if self.hung:
            self._inbox.append(element)
        elif self._connected and self._listener is not None and not self.dead:
            try:
                self._take(element, self._listener)
            except Exception:
                # As on a real stream, which must not end for it.
                log.exception("stanza_handler_failed", address=self._address)

    def _take(self, element: Element, listener: Listener) -> None:
        stanza = Codec.decode(element)
        if stanza.kind == "iq" and stanza.type in ("get", "set") and stanza.body is None:
            answer_other(self, listener, element)
        elif stanza.kind == "message" and stanza.body is None:
            if (message := Message.read(element)) is not None:
                listener.said(message)
        elif stanza.kind != "iq" or not self._questions.answered(element):
            listener.received(stanza)

    def wake(self) -> None:
        """Go on after a stop."""
        self.hung = False
        inbox, self._inbox = self._inbox, []
        for element in inbox:
            self.deliver(element)

    def lost(self, reason: str, error: Exception | None = None) -> None:
        """The stream broke: for good with an error, else it comes back."""
        if not self._connected:
            return
        self._connected = False
        self._bus.leave(self)
        self._questions.end(f"the stream broke: {reason}")
        if self.dead:
            return
        assert self._listener is not None and self._failed is not None
        self._listener.closed(reason)
        if error is not None:
            if not self._failed.done():
                self._failed.set_result(error)
        else:
            self._later()
