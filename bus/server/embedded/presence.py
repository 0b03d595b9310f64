"""Presence: who is there, who is told, and who may ask (RFC 6121, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from . import stanzas
from .addresses import Address, BadAddress, parse
from .limits import Limits
from .roster import ROSTER, Contact, Rosters
from .router import Router
from .services import Refused, payload
from .xmlstream import CLIENT

if TYPE_CHECKING:
    from .client import ClientStream

_ABOUT_SUBSCRIPTION: Final = ("subscribe", "subscribed", "unsubscribe", "unsubscribed")
_TYPES: Final = frozenset({"", "unavailable", "probe", "error", *_ABOUT_SUBSCRIPTION})


class Presences:
    """Works on all presence stanzas but those between two connected full addresses."""

    def __init__(self, router: Router, rosters: Rosters, limits: Limits) -> None:
        self._router = router
        self._rosters = rosters
        self._limits = limits
        self._pushes = 0

    # From a client

    def sent(self, client: ClientStream, attributes: dict[str, str], inner: bytes) -> None:
        """Work on presence from a client; ``from`` is stamped."""
        type = attributes.get("type", "")
        to = attributes.get("to")
        if type not in _TYPES or (to is None and type not in ("", "unavailable")):
            self._router.bounce("presence", attributes, "bad-request")
        elif to is None:
            if type:
                self._tell_gone(client, attributes, inner)
            else:
                self._tell_here(client, attributes, inner)
        elif type in _ABOUT_SUBSCRIPTION:
            self._subscription_out(client, to, type, attributes, inner)
        else:
            if type == "unavailable":
                client.directed.discard(to)
            elif not type and to not in client.directed:
                if len(client.directed) >= self._limits.directed:
                    self._router.bounce("presence", attributes, "resource-constraint")
                    return
                client.directed.add(to)
            self._router.route("presence", attributes, inner)

    def left(self, client: ClientStream) -> None:
        """Say that a client is gone that did not say so itself."""
        if client.available or client.directed:
            self._tell_gone(client, {"from": client.full, "type": "unavailable"}, b"")

    def _tell_here(self, client: ClientStream, attributes: dict[str, str], inner: bytes) -> None:
        first = not client.available
        client.available = True
        client.priority = _priority(attributes, inner)
        client.last = (attributes, inner)
        for to in self._audience(client.bare):
            self._router.route("presence", {**attributes, "to": to}, inner)
        if client.priority >= 0:
            for message in self._router.offline.take(client.name):
                client.send(message)
        if not first:
            return
        for address, contact in self._rosters.of(client.name).contacts.items():
            if contact.to:
                probe = {"from": client.full, "to": address, "type": "probe"}
                self._router.route("presence", probe, b"")
            if contact.asks:
                ask = {"from": address, "to": client.bare, "type": "subscribe"}
                client.send(stanzas.encode("presence", ask, b""))
        for other in self._router.available(client.bare):
            if other is not client and other.last is not None:
                self._send_last(other, client.full)

    def _tell_gone(self, client: ClientStream, attributes: dict[str, str], inner: bytes) -> None:
        told: dict[str, None] = {}
        if client.available:
            client.available = False
            client.last = None
            told = dict.fromkeys(self._audience(client.bare))
        told |= dict.fromkeys(client.directed)
        client.directed.clear()
        for to in told:
            self._router.route("presence", {**attributes, "to": to}, inner)

    def _audience(self, bare: str) -> Iterator[str]:
        """Give the addresses that see the presence of an account, its own resources included."""
        contacts = self._rosters.of(parse(bare).local).contacts
        for address in [bare, *(key for key, each in contacts.items() if each.from_)]:
            if self._local(address):
                yield from [each.full for each in self._router.available(address)]
            else:
                yield address

    def _send_last(self, client: ClientStream, to: str) -> None:
        if client.last is not None:
            attributes, inner = client.last
            self._router.route("presence", {**attributes, "to": to}, inner)

    # To an account

    def received(self, address: Address, attributes: dict[str, str], inner: bytes) -> None:
        """Work on presence to a bare address, or to a full one that is not connected."""
        type = attributes.get("type", "")
        if type in _ABOUT_SUBSCRIPTION:
            self._subscription_in(address, type, attributes, inner)
        elif type == "probe":
            self._probe(address, attributes)
        elif there := [] if address.resource else self._router.available(address.bare):
            data = stanzas.encode("presence", attributes, inner)
            for each in there:
                each.send(data)
        else:
            # RFC 6121, 8.5.3.2.2 would drop it.  Who reports to somebody by directed presence
            # has no other way to learn that nobody reads it.
            self._router.bounce("presence", attributes, "service-unavailable")

    def _probe(self, address: Address, attributes: dict[str, str]) -> None:
        asker = attributes.get("from", "")
        try:
            who = parse(asker).bare
        except BadAddress:
            return
        if who != address.bare and not self._known(address, who).from_:
            if self._router.accounts.exists(address.local):
                refusal = {"from": address.bare, "to": asker, "type": "unsubscribed"}
                self._router.route("presence", refusal, b"")
            return
        there = self._router.available(address.bare)
        for each in there:
            self._send_last(each, asker)
        if not there:
            gone = {"from": address.bare, "to": asker, "type": "unavailable"}
            self._router.route("presence", gone, b"")

    def _known(self, account: Address, contact: str) -> Contact:
        if not self._router.accounts.exists(account.local):
            return Contact()
        return self._rosters.of(account.local).get(contact)

    # Subscriptions.  The two sides of each are kept apart, as if they were on two servers.

    def _subscription_out(
        self, client: ClientStream, to: str, type: str, attributes: dict[str, str], inner: bytes
    ) -> None:
        try:
            address = parse(to)
        except BadAddress:
            self._router.bounce("presence", attributes, "jid-malformed")
            return
        roster = self._rosters.of(client.name)
        contact = roster.get(address.bare)
        if type == "subscribe" and address.bare not in roster.contacts and self.full(client.name):
            self._router.bounce("presence", attributes, "resource-constraint")
            return
        before = contact.xml("")
        asks = contact.asks
        listed = contact.listed
        if type == "subscribe":
            contact.listed = True
            contact.asked = not contact.to
        elif type == "unsubscribe":
            contact.to = contact.asked = False
        elif type == "subscribed":
            if not contact.asks:
                return
            contact.from_ = contact.listed = True
            contact.asks = False
        else:
            contact.from_ = contact.asks = False
        changed = before != contact.xml("") or listed != contact.listed
        if changed or asks != contact.asks:
            roster.put(address.bare, contact)
        route = self._router.route
        stamped = {**attributes, "from": client.bare, "to": address.bare}
        route("presence", stamped, inner)
        if changed and contact.listed:
            self.push(client.name, address.bare)
        for each in self._router.available(client.bare):
            if type == "subscribed":
                self._send_last(each, address.bare)
            elif type == "unsubscribed" and changed:
                gone = {"from": each.full, "to": address.bare, "type": "unavailable"}
                route("presence", gone, b"")

    def _subscription_in(
        self, account: Address, type: str, attributes: dict[str, str], inner: bytes
    ) -> None:
        if not self._router.accounts.exists(account.local):
            return  # RFC 6121, 8.5.1
        try:
            who = parse(attributes["from"]).bare
        except BadAddress:
            return
        attributes["from"] = who
        attributes["to"] = account.bare
        roster = self._rosters.of(account.local)
        contact = roster.get(who)
        before = contact.xml("")
        asks = contact.asks
        if type == "subscribe":
            if contact.from_:
                yes = {"from": account.bare, "to": who, "type": "subscribed"}
                self._router.route("presence", yes, b"")
                return
            if who not in roster.contacts and self.full(account.local):
                return
            contact.asks = True
        elif type == "unsubscribe":
            contact.from_ = contact.asks = False
        elif type == "subscribed":
            if not contact.asked:
                return
            contact.to = True
            contact.asked = False
        else:
            contact.to = contact.asked = False
        changed = before != contact.xml("")
        if not changed and asks == contact.asks:
            return
        roster.put(who, contact)
        there = self._router.available(account.bare)
        data = stanzas.encode("presence", attributes, inner)
        for each in there:
            each.send(data)
        if changed and contact.listed:
            self.push(account.local, who)
        if type == "unsubscribe" and changed:
            for each in there:
                gone = {"from": each.full, "to": who, "type": "unavailable"}
                self._router.route("presence", gone, b"")

    # Rosters

    def full(self, name: str) -> bool:
        """Whether the roster of an account takes no further entry."""
        return len(self._rosters.of(name).contacts) >= self._limits.roster

    def push(self, name: str, address: str) -> None:
        """Tell the account's clients that have asked for the roster how an entry is now."""
        self._push(name, self._rosters.of(name).get(address).xml(address))

    def removed(self, name: str, address: str) -> None:
        """Tell the account's clients that an entry is gone."""
        self._push(name, f"<item jid='{stanzas.escape(address)}' subscription='remove'/>")

    def _push(self, name: str, item: str) -> None:
        self._pushes += 1
        bare = f"{name}@{self._router.domain}"
        inner = f"<query xmlns='{ROSTER}'>{item}</query>".encode()
        for each in self._router.resources.get(bare, {}).values():
            if each.interested:
                push = {"type": "set", "id": f"push-{self._pushes}", "to": each.full}
                each.send(stanzas.encode("iq", push, inner))

    def cancel(self, client: ClientStream, address: str) -> None:
        """End both directions of a subscription, because its entry is being removed."""
        contact = self._rosters.of(client.name).get(address)
        for wanted, type in (
            (contact.to or contact.asked, "unsubscribe"),
            (contact.from_ or contact.asks, "unsubscribed"),
        ):
            if wanted:
                said = {"from": client.full, "to": address, "type": type}
                self._subscription_out(client, address, type, said, b"")

    def _local(self, address: str) -> bool:
        return address.endswith(f"@{self._router.domain}")


def _priority(attributes: dict[str, str], inner: bytes) -> int:
    if b"priority" not in inner:
        return 0
    try:
        text = payload(attributes, inner).findtext(f"{{{CLIENT}}}priority", "0")
        return max(-128, min(127, int(text)))
    except (Refused, ValueError):
        return 0
