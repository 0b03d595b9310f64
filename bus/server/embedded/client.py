"""Client streams: STARTTLS, login, bind (RFC 6120, sections 5 to 7), then stanzas."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from . import sasl, stanzas
from .addresses import BadAddress, parse, resourcepart
from .limits import Limits
from .lobby import Lobby
from .router import Router
from .services import PING, SESSION, Refused, payload
from .stream import Stream, Turn
from .xmlstream import CLIENT, STREAMS, Element, Header, StreamError

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

TLS: Final = "urn:ietf:params:xml:ns:xmpp-tls"
SASL: Final = "urn:ietf:params:xml:ns:xmpp-sasl"
BIND: Final = "urn:ietf:params:xml:ns:xmpp-bind"


@dataclass
class Site:
    """What all client streams of a server share."""

    domain: str
    max_stanza: int
    limits: Limits
    turn: Turn
    router: Router
    door: sasl.Door
    tls: ssl.SSLContext
    lobby: Lobby


class ClientStream(Stream):
    """One client.  What it may say is up to how far it has come: see the methods ``_expect_*``."""

    content = CLIENT

    def __init__(self, site: Site) -> None:
        self._site = site
        self.domain = site.domain
        self._expect: Callable[[Element], None] = self._expect_starttls
        self._login: sasl.Login | None = None
        self._failures = 0
        self.name = ""
        self.resource = ""
        self.bare = ""
        self.full = ""
        #: Has sent initial presence; with which priority, and what it was last.
        self.available = False
        self.priority = 0
        self.last: tuple[dict[str, str], bytes] | None = None
        #: Addresses that were told directly that it is here.
        self.directed: set[str] = set()
        #: Has asked for the roster and so hears of its changes.
        self.interested = False
        #: When a ping was sent that has no answer yet.
        self.pinged: float | None = None
        #: Ends a login that takes too long.
        self._deadline: asyncio.TimerHandle | None = None
        super().__init__(site.limits, site.turn)

    def size_limits(self) -> tuple[int, int]:
        """Give the limits: small ones until it has logged in."""
        if self.name:
            return self._site.max_stanza, self._limits.depth
        return super().size_limits()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, if there is room."""
        super().connection_made(transport)
        self._site.lobby.enter(self)

    def wait(self) -> None:
        """Be read no further until it is our turn to log in."""
        self.hold(self._site.lobby)

    def proceed(self) -> None:
        """Log in."""
        self._deadline = self._loop.call_later(self._limits.login_time, self._too_late)
        self.unhold(self._site.lobby)

    def on_gone(self) -> None:
        """Leave the tables, and tell who should know."""
        self._logged_in()
        if self.full:
            self._site.router.unbind(self)
            log.info("client_left", address=self.full)

    def _logged_in(self) -> None:
        """Make room for another one."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._site.lobby.leave(self)

    def _too_late(self) -> None:
        self.end(StreamError("connection-timeout", "the login took too long"))

    def on_header(self, header: Header) -> None:
        """Offer what may come next."""
        to = header.attributes.get("to", self.domain)
        if to.lower() != self.domain:
            raise StreamError("host-unknown", f"this is {self.domain}")
        if not header.attributes.get("version", "").startswith("1."):
            raise StreamError("unsupported-version", "XMPP 1.0 is needed")
        if not self.encrypted:
            features = f"<starttls xmlns='{TLS}'><required/></starttls>"
        elif not self.name:
            mechanisms = "".join(f"<mechanism>{each}</mechanism>" for each in sasl.MECHANISMS)
            features = f"<mechanisms xmlns='{SASL}'>{mechanisms}</mechanisms>"
        else:
            features = f"<bind xmlns='{BIND}'/><session xmlns='{SESSION}'><optional/></session>"
        self.send(f"<stream:features>{features}</stream:features>".encode())

    def on_element(self, element: Element) -> None:
        """Work on what the client says."""
        self._expect(element)

    def _expect_starttls(self, element: Element) -> None:
        if (element.namespace, element.name) != (TLS, "starttls"):
            raise _out_of_turn(element)
        self._expect = self._expect_login
        self.start_tls(self._site.tls, f"<proceed xmlns='{TLS}'/>".encode())

    def _expect_login(self, element: Element) -> None:
        if element.namespace != SASL or not self.encrypted:
            raise _out_of_turn(element)
        try:
            if element.name == "auth":
                self._login = self._site.door.login(element.attributes.get("mechanism", ""))
                if not element.inner:
                    # No initial response: ask for it with an empty challenge (RFC 6120, 6.4.2).
                    self.send(f"<challenge xmlns='{SASL}'/>".encode())
                    return
            elif element.name == "abort":
                raise sasl.Failure("aborted")
            elif element.name != "response" or self._login is None:
                raise _out_of_turn(element)
            answer, done = self._login.step(sasl.decode(element.inner.strip()))
        except sasl.Failure as failure:
            self._failed(failure)
            return
        name = "success" if done else "challenge"
        self.send(f"<{name} xmlns='{SASL}'>{b64encode(answer).decode()}</{name}>".encode())
        if done:
            self.name = self._login.name
            self._login = None
            self._expect = self._expect_bind
            self.restart()

    def _failed(self, failure: sasl.Failure) -> None:
        self._login = None
        self._failures += 1
        log.info("login_failed", peer=self.peer, condition=failure.condition)
        self.send(f"<failure xmlns='{SASL}'><{failure.condition}/></failure>".encode())
        if self._failures >= self._limits.login_failures:
            raise StreamError("policy-violation", "too many failed logins")

    def _expect_bind(self, element: Element) -> None:
        if element.kind != "iq":
            raise _out_of_turn(element)
        attributes = {"id": element.attributes.get("id", "")}
        try:
            children = payload(element.attributes, element.inner)
        except Refused as refused:
            raise StreamError("policy-violation", refused.text) from refused
        if element.attributes.get("type") != "set" or [each.tag for each in children] != [
            f"{{{BIND}}}bind"
        ]:
            raise _out_of_turn(element)
        wanted = children[0].findtext(f"{{{BIND}}}resource") or secrets.token_urlsafe(9)
        bare = f"{self.name}@{self.domain}"
        siblings = self._site.router.resources.get(bare, {})
        try:
            resource = resourcepart(wanted)
            old = siblings.get(resource)
            if old is None and len(siblings) >= self._limits.resources:
                raise Refused("resource-constraint", "too many streams of this account")
        except (BadAddress, Refused) as error:
            condition = error.condition if isinstance(error, Refused) else "bad-request"
            refusal = stanzas.error(condition)
            self.send(stanzas.encode("iq", attributes | {"type": "error"}, refusal))
            return
        if old is not None:
            # The new one wins: after a cut cable the old one is dead and does not know it.
            old.end(StreamError("conflict", "replaced by a new stream"))
        self.resource, self.bare, self.full = resource, bare, f"{bare}/{resource}"
        self._logged_in()
        self._expect = self._expect_stanza
        self._site.router.bind(self)
        log.info("client_bound", address=self.full, peer=self.peer)
        address = f"<bind xmlns='{BIND}'><jid>{stanzas.escape(self.full)}</jid></bind>"
        self.send(stanzas.encode("iq", attributes | {"type": "result"}, address.encode()))

    def _expect_stanza(self, element: Element) -> None:
        kind = element.kind
        if not kind:
            if element.namespace == STREAMS:
                self.end()
                return
            raise StreamError("unsupported-stanza-type", f"{element.name} is no stanza")
        attributes = element.attributes
        sent = attributes.get("from")
        if sent is not None and sent != self.full and not self._own(sent):
            raise StreamError("invalid-from", "that is not your address")
        attributes["from"] = self.full
        if self.lang and "xml:lang" not in attributes:
            # RFC 6120, 8.1.5: what it inherits from this stream it would lose on another.
            attributes["xml:lang"] = self.lang
        self._site.router.from_client(self, kind, attributes, element.inner)

    def _own(self, address: str) -> bool:
        try:
            return str(parse(address)) in (self.full, self.bare)
        except BadAddress:
            return False

    def check(self, now: float) -> None:
        """Ping a client that was silent for long; cut one that did not answer."""
        if self.pinged is not None and self.heard >= self.pinged:
            self.pinged = None
        if self.pinged is not None:
            if now - self.pinged >= self._limits.answer:
                log.info("client_silent", address=self.full)
                self.abort()
        elif now - self.heard >= self._limits.silence:
            self.pinged = now
            ping = {"type": "get", "id": f"ping-{secrets.token_hex(4)}", "from": self.domain}
            inner = f"<ping xmlns='{PING}'/>".encode()
            self.send(stanzas.encode("iq", ping | {"to": self.full}, inner))


def _out_of_turn(element: Element) -> StreamError:
    if element.namespace == STREAMS:
        return StreamError("undefined-condition", "a stream error was received")
    return StreamError("not-authorized", f"{element.name} is not allowed yet")
