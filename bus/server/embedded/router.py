"""Who gets which stanza (RFC 6120, section 10; RFC 6121, section 8)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from . import stanzas
from .accounts import Accounts
from .addresses import Address, BadAddress, parse

if TYPE_CHECKING:
    from .client import ClientStream
    from .offline import Offline
    from .presence import Presences
    from .services import Services

#: Takes kind, unescaped attributes and the bytes between start and end tag of a stanza.
Receive = Callable[[str, dict[str, str], bytes], None]

_IQ_TYPES: Final = frozenset({"get", "set", "result", "error"})
_SUBSCRIPTION: Final = frozenset({"subscribe", "subscribed", "unsubscribe", "unsubscribed"})
#: Kind and type of stanzas that are never answered with an error.
_SILENT: Final = frozenset(
    {
        ("iq", "result"),
        ("iq", "error"),
        ("message", "error"),
        ("message", "headline"),
        ("presence", "error"),
        ("presence", "unavailable"),
        ("presence", "unsubscribe"),
        ("presence", "unsubscribed"),
    }
)


class Router:
    """The tables of who is there, and the way from one to the other."""

    presences: Presences
    services: Services
    offline: Offline

    def __init__(self, domain: str, components: Collection[str], accounts: Accounts) -> None:
        self.domain = domain
        #: Domains of components that may come, connected or not.
        self.expected = frozenset(components)
        self.accounts = accounts
        #: Full address to stream.
        self.clients: dict[str, ClientStream] = {}
        #: Bare address to resource to stream.
        self.resources: dict[str, dict[str, ClientStream]] = {}
        #: Domain of a connected component or of a service in this process.
        self.domains: dict[str, Receive] = {}
        self._loop = asyncio.get_running_loop()

    def bind(self, client: ClientStream) -> None:
        """Take a client in."""
        self.clients[client.full] = client
        self.resources.setdefault(client.bare, {})[client.resource] = client

    def unbind(self, client: ClientStream) -> None:
        """Take a client out and tell whoever should know that it is gone."""
        del self.clients[client.full]
        siblings = self.resources[client.bare]
        del siblings[client.resource]
        if not siblings:
            del self.resources[client.bare]
        self.presences.left(client)

    def available(self, bare: str) -> list[ClientStream]:
        """Give the streams of an account that have sent initial presence."""
        return [each for each in self.resources.get(bare, {}).values() if each.available]

    def from_client(
        self, client: ClientStream, kind: str, attributes: dict[str, str], inner: bytes
    ) -> None:
        """Route what a client has sent; ``from`` is stamped already."""
        if kind == "presence":
            self.presences.sent(client, attributes, inner)
            return
        if kind == "iq" and (attributes.get("type") not in _IQ_TYPES or "id" not in attributes):
            self.bounce(kind, attributes, "bad-request", "an IQ needs an id and a type")
            return
        target = self.clients.get(attributes.get("to", ""))
        if target is not None:
            target.send(stanzas.encode(kind, attributes, inner))
        elif "to" in attributes:
            self.route(kind, attributes, inner)
        elif kind == "iq":
            self.services.own(client, attributes, inner)
        else:
            attributes["to"] = client.bare
            self.route(kind, attributes, inner)

    def route(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        """Bring a stanza to ``attributes["to"]``, or answer with an error in its place."""
        to = attributes["to"]
        subscription = kind == "presence" and attributes.get("type") in _SUBSCRIPTION
        if not subscription:
            client = self.clients.get(to)
            if client is not None:
                client.send(stanzas.encode(kind, attributes, inner))
                return
        try:
            address = parse(to)
        except BadAddress:
            self.bounce(kind, attributes, "jid-malformed")
            return
        if subscription:
            address = Address(address.local, address.domain, "")
        normal = str(address)
        if normal != to:
            attributes["to"] = normal
            client = self.clients.get(normal)
            if client is not None:
                client.send(stanzas.encode(kind, attributes, inner))
                return
        if address.domain == self.domain and address.local:
            self._to_account(address, kind, attributes, inner)
            return
        receive = self.domains.get(address.domain)
        if receive is not None:
            receive(kind, attributes, inner)
        elif address.domain in self.expected:
            self.bounce(kind, attributes, "service-unavailable", "it is not connected", "wait")
        else:
            self.bounce(kind, attributes, "remote-server-not-found")

    def _to_account(
        self, address: Address, kind: str, attributes: dict[str, str], inner: bytes
    ) -> None:
        """Work on a stanza to a bare address, or to a full one that is not connected."""
        if kind == "presence":
            self.presences.received(address, attributes, inner)
        elif kind == "message":
            self._message(address, attributes, inner)
        elif address.resource:
            self.bounce(kind, attributes, "service-unavailable")
        else:
            self.services.account(address, attributes, inner)

    def _message(self, address: Address, attributes: dict[str, str], inner: bytes) -> None:
        type = attributes.get("type", "normal")
        there: list[ClientStream] = []
        # RFC 6121, 8.5.3.2.1: of those to a resource that is gone, only chat looks for another.
        if type != "groupchat" and (not address.resource or type == "chat"):
            there = [each for each in self.available(address.bare) if each.priority >= 0]
        if not there:
            if not self._keep(address, type, attributes, inner):
                self.bounce("message", attributes, "service-unavailable")
            return
        if type == "error":
            return
        if type != "headline":
            best = max(each.priority for each in there)
            there = [each for each in there if each.priority == best]
        data = stanzas.encode("message", attributes, inner)
        for each in there:
            each.send(data)

    def _keep(self, address: Address, type: str, attributes: dict[str, str], inner: bytes) -> bool:
        """Keep a message for an account that is away (RFC 6121, 8.5.2.2; XEP-0160), if it is one
        that is kept; what was said to a resource that is gone (8.5.3.2.1), only if it is chat.
        """
        if type in ("error", "groupchat", "headline") or (address.resource and type != "chat"):
            return False
        name = address.local
        return self.accounts.exists(name) and self.offline.keep(name, attributes, inner)

    def bounce(
        self, kind: str, attributes: dict[str, str], condition: str, text: str = "", type: str = ""
    ) -> None:
        """Answer with an error, unless a stanza of that sort is never answered."""
        if "from" in attributes and (kind, attributes.get("type", "")) not in _SILENT:
            back = stanzas.answer(attributes, "error")
            self.reply(kind, back, stanzas.error(condition, text, type))

    def reply(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        """Bring an answer of the server's own to whoever asked."""
        client = self.clients.get(attributes["to"])
        if client is not None:
            client.send(stanzas.encode(kind, attributes, inner))
        else:
            # A service in this process may still be inside the call that we answer.
            self._loop.call_soon(self.route, kind, attributes, inner)
