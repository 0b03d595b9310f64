"""What the server itself answers: service discovery, ping, version, rosters."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from . import stanzas
from .addresses import Address, BadAddress, parse
from .offline import FEATURE as OFFLINE
from .roster import ROSTER, Rosters
from .stanzas import escape
from .xmlstream import CLIENT

if TYPE_CHECKING:
    from .client import ClientStream
    from .presence import Presences
    from .router import Router

INFO: Final = "http://jabber.org/protocol/disco#info"
ITEMS: Final = "http://jabber.org/protocol/disco#items"
PING: Final = "urn:xmpp:ping"
VERSION: Final = "jabber:iq:version"
#: Profanity sends commands to nobody if the server does not know of them.  It has none itself.
COMMANDS: Final = "http://jabber.org/protocol/commands"
SESSION: Final = "urn:ietf:params:xml:ns:xmpp-session"

#: Bytes that are parsed at most; a tree takes a hundred times as much memory.
_PAYLOAD: Final = 64 * 1024
#: Names and groups of one entry of a roster, in characters.
_NAME: Final = 1023
_GROUPS: Final = 64


class Refused(Exception):
    """An IQ gets an error for its answer."""

    def __init__(self, condition: str, text: str = "", extra: str = "") -> None:
        super().__init__(condition, text)
        self.condition = condition
        self.text = text
        #: XML of a condition of the application, beside the general one.
        self.extra = extra


def payload(attributes: dict[str, str], inner: bytes) -> ET.Element:
    """Parse the children of a stanza, which the slicer has checked already.

    Raises :class:`Refused` for one that is larger than anything the server is asked for.
    """
    if len(inner) > _PAYLOAD:
        raise Refused("policy-violation", "too large for the server itself")
    declared = {name: uri for name, uri in attributes.items() if name.startswith("xmlns:")}
    return ET.fromstring(stanzas.encode("x", {"xmlns": CLIENT, **declared}, inner))


def info(category: str, type: str, name: str, features: tuple[str, ...], extra: str = "") -> bytes:
    """Give the answer to disco#info (XEP-0030)."""
    listed = "".join(f"<feature var='{feature}'/>" for feature in features)
    return (
        f"<query xmlns='{INFO}'><identity category='{category}' type='{type}' "
        f"name='{escape(name)}'/>{listed}{extra}</query>"
    ).encode()


def no_node(query: ET.Element) -> None:
    """Refuse to be asked about a node: the server has none."""
    if query.get("node"):
        raise Refused("item-not-found")


#: Answers one IQ of one kind: attributes and first child to the content of the result.
_Answer = Callable[[dict[str, str], ET.Element], bytes]


class Services:
    """Answers IQs to the server and to its accounts."""

    def __init__(self, router: Router, presences: Presences, rosters: Rosters) -> None:
        self._router = router
        self._presences = presences
        self._rosters = rosters
        self._domain: dict[tuple[str, str], _Answer] = {
            ("get", f"{{{INFO}}}query"): self._server_info,
            ("get", f"{{{ITEMS}}}query"): self._server_items,
            ("get", f"{{{PING}}}ping"): _nothing,
            ("get", f"{{{VERSION}}}query"): _version,
            ("set", f"{{{SESSION}}}session"): _nothing,
        }
        self._account: dict[tuple[str, str], _Answer] = {
            ("get", f"{{{INFO}}}query"): _account_info,
            ("get", f"{{{ITEMS}}}query"): _account_items,
        }
        self._own: dict[tuple[str, str], _Answer] = {
            **self._account,
            ("get", f"{{{PING}}}ping"): _nothing,
            ("set", f"{{{SESSION}}}session"): _nothing,
            ("get", f"{{{ROSTER}}}query"): self._roster_get,
            ("set", f"{{{ROSTER}}}query"): self._roster_set,
        }

    def receive(self, kind: str, attributes: dict[str, str], inner: bytes) -> None:
        """Work on a stanza to the domain itself; messages and presence are of no interest."""
        if kind == "iq":
            self._answer(self._domain, attributes, inner)

    def own(self, client: ClientStream, attributes: dict[str, str], inner: bytes) -> None:
        """Work on an IQ from a client to its own account."""
        self._answer(self._own, attributes, inner)

    def account(self, address: Address, attributes: dict[str, str], inner: bytes) -> None:
        """Work on an IQ to an account."""
        try:
            asker = parse(attributes["from"]).bare
        except BadAddress:
            return
        if asker == address.bare:
            self._answer(self._own, attributes, inner)
        elif (
            self._router.accounts.exists(address.local)
            and self._rosters.of(address.local).get(asker).from_
        ):
            self._answer(self._account, attributes, inner)
        else:
            # The same whether there is such an account or not (RFC 6121, 8.5.1).
            self._router.bounce("iq", attributes, "service-unavailable")

    def _answer(
        self, table: dict[tuple[str, str], _Answer], attributes: dict[str, str], inner: bytes
    ) -> None:
        type = attributes["type"]
        if type not in ("get", "set"):
            return  # An answer to a ping of ours, most of the time.
        try:
            children = payload(attributes, inner)
            if len(children) != 1:
                raise Refused("bad-request", "a request has one child")
            found = table.get((type, children[0].tag))
            if found is None:
                raise Refused("service-unavailable")
            result = found(attributes, children[0])
        except Refused as refused:
            self._router.bounce("iq", attributes, refused.condition, refused.text)
        else:
            self._router.reply("iq", stanzas.answer(attributes, "result"), result)

    # The server

    def _server_info(self, attributes: dict[str, str], query: ET.Element) -> bytes:
        no_node(query)
        return info(
            "server", "im", "Spinal", (INFO, ITEMS, PING, VERSION, ROSTER, COMMANDS, OFFLINE)
        )

    def _server_items(self, attributes: dict[str, str], query: ET.Element) -> bytes:
        if query.get("node") == COMMANDS:
            return f"<query xmlns='{ITEMS}' node='{COMMANDS}'/>".encode()
        no_node(query)
        domains = sorted(set(self._router.domains) | self._router.expected)
        items = "".join(
            f"<item jid='{escape(each)}'/>" for each in domains if each != self._router.domain
        )
        return f"<query xmlns='{ITEMS}'>{items}</query>".encode()

    # Rosters

    def _roster_get(self, attributes: dict[str, str], query: ET.Element) -> bytes:
        client = self._asker(attributes)
        client.interested = True
        return self._rosters.of(client.name).xml()

    def _roster_set(self, attributes: dict[str, str], query: ET.Element) -> bytes:
        client = self._asker(attributes)
        if len(query) != 1 or query[0].tag != f"{{{ROSTER}}}item":
            raise Refused("bad-request", "a change of the roster has one item")
        item = query[0]
        try:
            address = parse(item.get("jid", "")).bare
        except BadAddress as error:
            raise Refused("bad-request", "the item has no proper address") from error
        roster = self._rosters.of(client.name)
        if item.get("subscription") == "remove":
            if not roster.get(address).listed:
                raise Refused("item-not-found")
            self._presences.cancel(client, address)
            contact = roster.get(address)
            contact.listed = False
            roster.put(address, contact)
            self._presences.removed(client.name, address)
            return b""
        name = item.get("name", "")
        groups = [group.text or "" for group in item]
        if max(map(len, [name, *groups])) > _NAME or len(groups) > _GROUPS:
            raise Refused("not-acceptable", "the names are too long or too many")
        if len(set(groups)) != len(groups):
            raise Refused("bad-request", "a group is named twice")
        if address not in roster.contacts and self._presences.full(client.name):
            raise Refused("resource-constraint", "the roster is full")
        contact = roster.get(address)
        contact.listed, contact.name, contact.groups = True, name, groups
        roster.put(address, contact)
        self._presences.push(client.name, address)
        return b""

    def _asker(self, attributes: dict[str, str]) -> ClientStream:
        client = self._router.clients.get(attributes["from"])
        if client is None:
            raise Refused("service-unavailable")
        return client


def _nothing(attributes: dict[str, str], query: ET.Element) -> bytes:
    return b""


def _version(attributes: dict[str, str], query: ET.Element) -> bytes:
    try:
        number = version("spinal")
    except PackageNotFoundError:
        number = "unknown"
    return (
        f"<query xmlns='{VERSION}'><name>Spinal</name><version>{number}</version></query>".encode()
    )


def _account_info(attributes: dict[str, str], query: ET.Element) -> bytes:
    no_node(query)
    return info("account", "registered", "", (INFO, ITEMS))


def _account_items(attributes: dict[str, str], query: ET.Element) -> bytes:
    no_node(query)
    return f"<query xmlns='{ITEMS}'/>".encode()
