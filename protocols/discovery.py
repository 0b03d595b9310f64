"""What service discovery says of somebody: identity, features, a form, items; and its hash.

XEP-0030 (service discovery), XEP-0128 (the form), XEP-0115 (the hash), XEP-0059 (pages of items).
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from xml.etree.ElementTree import Element

from . import elements
from .elements import child
from .errors import RemoteProtocolError
from .forms import FORMS
from .namespaces import NS

INFO: Final = "http://jabber.org/protocol/disco#info"
ITEMS: Final = "http://jabber.org/protocol/disco#items"
CAPS: Final = "http://jabber.org/protocol/caps"
PAGES: Final = "http://jabber.org/protocol/rsm"

#: Bytes of the items in one answer; there are more pages for what does not fit.
ROOM: Final = 60 * 1024
#: Longest name of an item or an identity in characters.
MAX_NAME: Final = 200


def name_of(text: str) -> str:
    """Make a name for a list of it: one line of a bounded length.

    Without ``<``, which separates the parts of what is hashed (XEP-0115, 5.4).
    """
    line = " ".join(elements.plain(text).replace("<", " ").split())
    return line if len(line) <= MAX_NAME else line[: MAX_NAME - 1] + "…"


@dataclass(frozen=True, slots=True)
class Info:
    """The answer to ``disco#info``."""

    category: str
    type: str
    name: str
    features: Sequence[str]
    #: Fields of the form of type ``urn:spinal:1`` that goes with it, a text or a list of texts;
    #: without any there is none.
    form: Mapping[str, str | Sequence[str]] = field(default_factory=dict[str, str | Sequence[str]])

    def element(self, node: str = "") -> Element:
        """Give the ``query`` of the answer."""
        query = _query(INFO, node)
        identity = {"category": self.category, "type": self.type, "name": self.name}
        child(query, "identity", {key: value for key, value in identity.items() if value})
        for feature in sorted(self.features):
            child(query, "feature", {"var": feature})
        if self.form:
            form = Element(f"{{{FORMS}}}x", {"type": "result"})
            child(child(form, "field", {"var": "FORM_TYPE", "type": "hidden"}), "value", text=NS)
            for var in sorted(self.form):
                kind = "text-single" if isinstance(self.form[var], str) else "text-multi"
                one = child(form, "field", {"var": var, "type": kind})
                for value in self._values(var):
                    child(one, "value", text=value)
            query.append(form)
        return query

    @property
    def ver(self) -> str:
        """The verification string of it, hashed (XEP-0115, 5.1)."""
        # Every list is sorted by the bytes of its items.
        parts = [f"{self.category}/{self.type}//{self.name}", *sorted(self.features, key=_octets)]
        if self.form:
            parts.append(NS)
            for var in sorted(self.form, key=_octets):
                parts += [var, *sorted(self._values(var), key=_octets)]
        said = "".join(f"{part}<" for part in parts)
        return b64encode(hashlib.sha1(said.encode(), usedforsecurity=False).digest()).decode()

    def _values(self, var: str) -> Sequence[str]:
        said = self.form[var]
        return (said,) if isinstance(said, str) else said


def caps(ver: str) -> bytes:
    """Write what presence carries of it (XEP-0115)."""
    return elements.write(Element(f"{{{CAPS}}}c", {"hash": "sha-1", "node": NS, "ver": ver}))


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a list: an address, or a node there."""

    jid: str
    node: str = ""
    name: str = ""

    def element(self) -> Element:
        """Give it as an element of ``disco#items``."""
        said = {"jid": self.jid, "node": self.node, "name": name_of(self.name)}
        return Element(f"{{{ITEMS}}}item", {key: value for key, value in said.items() if value})


def items(
    query: Element, keys: Sequence[str], item: Callable[[str], Item | None], room: int = ROOM
) -> Element:
    """Answer ``disco#items`` with a page of a list (XEP-0059).

    A page begins after the key that the query names, and holds at most as many items as it wants,
    and no more than fit.  The answer tells its first and its last key where it was asked for a
    page, and where there are more items.

    Args:
        query: what was asked.
        keys: the sorted keys of the whole list.
        item: gives the item of a key, or nothing if there is none.
        room: bytes of the items.

    Raises:
        RemoteProtocolError: it asks for a page otherwise than by ``max`` and ``after``.
    """
    after, most = _wanted(query)
    answer = _query(ITEMS, query.get("node", ""))
    shown: list[str] = []
    more = False
    for key in keys[0 if after is None else bisect_right(keys, after) :]:
        found = item(key)
        if found is None:
            continue
        one = found.element()
        # Its namespace is not written again within the query.
        room -= len(elements.write(one))
        if len(shown) == most or (room < 0 and shown):
            more = True
            break
        answer.append(one)
        shown.append(key)
    if more or query.find(f"{{{PAGES}}}set") is not None:
        page = Element(f"{{{PAGES}}}set")
        for name, key in zip(("first", "last"), (shown[:1] + shown[-1:]), strict=False):
            child(page, name, text=key)
        answer.append(page)
    return answer


def _wanted(query: Element) -> tuple[str | None, int | None]:
    """Read where a page begins and how many items it may have."""
    page = query.find(f"{{{PAGES}}}set")
    after: str | None = None
    most: int | None = None
    for wish in () if page is None else page:
        word, said = wish.tag.rpartition("}")[2], wish.text or ""
        if word == "after":
            after = said
        elif word == "max" and said.isascii() and said.isdigit() and len(said) < 10:
            most = int(said)
        else:
            raise RemoteProtocolError(
                "pages are asked for with <max/> and <after/> only", "not-understood"
            )
    return after, most


def _query(namespace: str, node: str) -> Element:
    return Element(f"{{{namespace}}}query", {"node": node} if node else {})


def _octets(text: str) -> bytes:
    return text.encode()
