"""A component inside the process of the embedded server: no socket, no parser, no login.

The dispatcher of a small site is attached like this.  What we write goes straight to the router as
bytes, and what comes is read without a parser where it has the form that we write ourselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from xml.etree.ElementTree import Element, fromstring

import structlog

from spinal.protocols import Codec, Message, Problem, Stanza

from ..connection import ID_PREFIX, Connection, Listener, answer_other
from ..errors import BusError, NotConnected
from ..questions import Questions
from ..server.embedded.server import Attachment, EmbeddedServer
from ..server.errors import ServerError

log = structlog.get_logger()


class AttachedConnection(Connection):
    """A domain of an embedded server in this process.

    It is connected as long as it is open and the server runs; the server outlives it.
    """

    def __init__(self, server: EmbeddedServer, domain: str) -> None:
        self._server = server
        self._domain = domain
        self._listener: Listener | None = None
        self._attachment: Attachment | None = None
        self._questions = Questions(self)
        #: Who is told when we go.
        self._directed: set[str] = set()
        self._sending = False
        #: What came while we were sending, because our own turn has to end first.
        self._inbox: deque[tuple[str, dict[str, str], bytes]] = deque()
        self._never: asyncio.Future[Exception] | None = None

    @property
    def address(self) -> str:
        """Our domain."""
        return self._domain

    @property
    def connected(self) -> bool:
        """Whether we are attached."""
        return self._attachment is not None

    async def open(self, listener: Listener) -> None:
        """Attach; see the contract."""
        self._never = asyncio.get_running_loop().create_future()
        self._listener = listener
        try:
            self._attachment = self._server.attach(self._domain, self._receive)
        except ServerError as exc:
            raise BusError(str(exc)) from exc
        listener.opened()

    async def failed(self) -> Exception:
        """Wait for ever: there is no stream that could break."""
        assert self._never is not None
        return await asyncio.shield(self._never)

    async def close(self) -> None:
        """Detach; see the contract."""
        if self._attachment is not None:
            # A server does not do it for components.
            for to in list(self._directed):
                self.send(Stanza("presence", "unavailable", to))
            self._attachment.close()
            self._attachment = None
            self._inbox.clear()
        if self._never is not None:
            self._never.cancel()
        self._questions.end("the stream was closed")

    def send(self, stanza: Stanza) -> None:
        """Hand a stanza to the router; see the contract."""
        if self._attachment is None:
            raise NotConnected("not attached to the embedded server")
        if not stanza.to:
            return  # A component has no initial presence (XEP-0114).
        if stanza.kind == "presence":
            (self._directed.discard if stanza.type else self._directed.add)(stanza.to)
        attributes = {"from": self._domain, "to": stanza.to}
        if stanza.type:
            attributes["type"] = stanza.type
        if stanza.id:
            attributes["id"] = stanza.id
        self._deliver(stanza.kind, attributes, Codec.inner(stanza))

    def _deliver(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        assert self._attachment is not None
        self._sending = True
        try:
            self._attachment.deliver(kind, attributes, inner)
        finally:
            self._sending = False

    async def drain(self) -> None:
        """Nothing waits here: the router bounds what it buffers for each receiver."""

    async def ask(
        self, kind: str, to: str, payload: Element, timeout: float = 10.0
    ) -> Element | None:
        """Ask a service of somebody else's; see the contract."""
        return await self._questions.ask(kind, to, payload, timeout)

    def _receive(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        """Take a stanza from the router, which may be answering while we are still sending."""
        if self._sending or self._inbox:
            if not self._inbox:
                asyncio.get_running_loop().call_soon(self._empty)
            self._inbox.append((kind, attributes, inner))
        else:
            self._take(kind, attributes, inner)

    def _empty(self) -> None:
        while self._inbox and self._attachment is not None:
            try:
                self._take(*self._inbox[0])
            except Exception:
                # Outside of the router nobody else would say so.
                log.exception("stanza_handler_failed", address=self._domain)
            self._inbox.popleft()

    def _take(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        assert self._listener is not None
        type, id = attributes.get("type", ""), attributes.get("id", "")
        answering = kind == "iq" and type in ("result", "error")
        if answering and not id.startswith(ID_PREFIX):
            return
        body = Codec.body_of(inner)
        question = answering and id in self._questions
        if (body is not None or not inner) and not question:
            stanza = Stanza(
                kind,
                type,
                attributes.get("to", ""),
                attributes.get("from", ""),
                id,
                body,
                Problem("unreachable") if type == "error" else None,
            )
            element: Element | None = None
        else:
            element = fromstring(
                b"<%b xmlns='jabber:client'>%b</%b>" % (kind.encode(), inner, kind.encode())
            )
            for name, value in attributes.items():
                element.set(name, value)
            stanza = Codec.decode(element)
        if question and element is not None:
            self._questions.answered(element)
        elif answering or kind == "presence" or stanza.body is not None:
            self._listener.received(stanza)
        elif kind == "iq":
            answer_other(
                self, self._listener, Element("iq", attributes) if element is None else element
            )
        elif element is not None and (message := Message.read(element)) is not None:
            self._listener.said(message)
