"""Streams of external components (XEP-0114), on loopback only."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from . import stanzas
from .addresses import BadAddress, parse
from .limits import Limits
from .router import Router
from .stream import Stream, Turn
from .xmlstream import COMPONENT, STREAMS, Element, Header, StreamError

log = structlog.get_logger(__name__)


@dataclass
class Dock:
    """What all component streams of a server share."""

    secrets: Mapping[str, str] = field(repr=False)
    max_stanza: int
    limits: Limits
    turn: Turn
    router: Router
    streams: set[ComponentStream] = field(default_factory=set["ComponentStream"])


class ComponentStream(Stream):
    """One component."""

    content = COMPONENT

    def __init__(self, dock: Dock) -> None:
        self._dock = dock
        self.domain = ""
        self._expect: Callable[[Element], None] = self._expect_handshake
        self._welcome = False
        #: From whom to whom it has said that somebody is there.
        self._present: dict[tuple[str, str], None] = {}
        super().__init__(dock.limits, dock.turn)
        self._deadline = self._loop.call_later(dock.limits.login_time, self._too_late)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        super().connection_made(transport)
        if len(self._dock.streams) >= self._limits.login_connections:
            self.abort()
            return
        self._dock.streams.add(self)

    def on_gone(self) -> None:
        """Leave the tables."""
        self._deadline.cancel()
        self._dock.streams.discard(self)
        if self._welcome:
            router = self._dock.router
            del router.domains[self.domain]
            for source, to in self._present:
                gone = {"from": source, "to": to, "type": "unavailable"}
                router.route("presence", gone, b"")
            log.info("component_left", domain=self.domain)

    def _too_late(self) -> None:
        self.end(StreamError("connection-timeout", "the handshake took too long"))

    def on_header(self, header: Header) -> None:
        """Check who it wants to be; the answer with the stream's id is under way."""
        if header.attributes.get("to", "") not in self._dock.secrets:
            raise StreamError("host-unknown", "no such component is configured")

    def before_header(self, header: Header) -> None:
        """Answer in the name of the domain that it asks for."""
        self.domain = header.attributes.get("to", "")

    def on_element(self, element: Element) -> None:
        """Work on what the component says."""
        self._expect(element)

    def _expect_handshake(self, element: Element) -> None:
        secret = self._dock.secrets[self.domain]
        wanted = hashlib.sha1((self.id + secret).encode()).hexdigest()
        given = element.inner.strip().lower()
        if element.name != "handshake" or not hmac.compare_digest(given, wanted.encode()):
            log.warning("component_refused", domain=self.domain, peer=self.peer)
            raise StreamError("not-authorized", "the secret is wrong")
        if self.domain in self._dock.router.domains:
            # Not the new one in place of the old: two that were set up with one name by mistake
            # would throw each other out for ever.
            raise StreamError("conflict", f"{self.domain} is connected already")
        self._deadline.cancel()
        self._welcome = True
        self._expect = self._expect_stanza
        self.slicer.widen(self._dock.max_stanza, self._limits.depth)
        self._dock.router.domains[self.domain] = self._receive
        log.info("component_bound", domain=self.domain)
        self.send(b"<handshake/>")

    def _receive(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        self.send(stanzas.encode(kind, attributes, stanzas.for_component(inner)))

    def _expect_stanza(self, element: Element) -> None:
        if not element.kind:
            if element.namespace == STREAMS:
                self.end()
                return
            raise StreamError("unsupported-stanza-type", f"{element.name} is no stanza")
        attributes = element.attributes
        if not attributes.get("from") or not attributes.get("to"):
            raise StreamError("improper-addressing", "a component says from and to")
        if not within(attributes["from"], self.domain):
            raise StreamError("invalid-from", f"that is not within {self.domain}")
        if element.kind == "presence":
            self._remember(attributes)
        inner = stanzas.from_component(element.inner)
        self._dock.router.route(element.kind, attributes, inner)

    def _remember(self, attributes: dict[str, str]) -> None:
        """Note who has to be told when the component is gone."""
        told = (attributes["from"], attributes["to"])
        type = attributes.get("type")
        if type == "unavailable":
            self._present.pop(told, None)
        elif type is None and len(self._present) < self._limits.directed:
            self._present[told] = None


def within(address: str, domain: str) -> bool:
    """Whether an address is one of the domain's own."""
    if address == domain:
        return True
    try:
        return parse(address).domain == domain
    except BadAddress:
        return False
