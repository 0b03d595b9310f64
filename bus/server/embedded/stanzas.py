"""Writing stanzas: start tags are made anew, everything inside stays as it came."""

from __future__ import annotations

import re
from typing import Final

from .xmlstream import CLIENT, COMPONENT

STANZA_ERRORS: Final = "urn:ietf:params:xml:ns:xmpp-stanzas"

#: What cannot stand in an attribute as it is.  Tab and line ends would come back as spaces.
_UNSAFE: Final = re.compile("[&<>'\"\t\n\r]")
_ESCAPES: Final = str.maketrans(
    {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "'": "&apos;",
        '"': "&quot;",
        "\t": "&#9;",
        "\n": "&#10;",
        "\r": "&#13;",
    }
)

#: Error conditions that the server uses, with their type (RFC 6120, 8.3.3).
TYPES: Final = {
    "bad-request": "modify",
    "conflict": "cancel",
    "feature-not-implemented": "cancel",
    "forbidden": "auth",
    "internal-server-error": "cancel",
    "item-not-found": "cancel",
    "jid-malformed": "modify",
    "not-acceptable": "modify",
    "not-allowed": "cancel",
    "not-authorized": "auth",
    "policy-violation": "modify",
    "remote-server-not-found": "cancel",
    "resource-constraint": "wait",
    "service-unavailable": "cancel",
}

#: Tags, and CDATA sections so that what looks like a tag in them is left alone.
_MARKUP: Final = re.compile(
    rb"""<!\[CDATA\[.*?\]\]>|<(/?)[^"'>]*(?:(?:"[^"]*"|'[^']*')[^"'>]*)*>""", re.DOTALL
)
_ATTRIBUTE: Final = re.compile(rb"""(\s+)([^\s=]+)(\s*=\s*)("[^"]*"|'[^']*')""")


def escape(text: str) -> str:
    """Make the text fit for content and for attributes in either kind of quotes."""
    return text.translate(_ESCAPES) if _UNSAFE.search(text) else text


def encode(kind: str, attributes: dict[str, str], inner: bytes) -> bytes:
    """Give the bytes of a stanza."""
    if _UNSAFE.search("".join(attributes.values())):
        attributes = {name: value.translate(_ESCAPES) for name, value in attributes.items()}
    text = "".join([f" {name}='{value}'" for name, value in attributes.items()])
    if inner:
        return b"<%b>%b</%b>" % (f"{kind}{text}".encode(), inner, kind.encode())
    return f"<{kind}{text}/>".encode()


def error(condition: str, text: str = "", type: str = "", extra: str = "") -> bytes:
    """Give the ``<error/>`` of a stanza; ``extra`` is XML of an application condition."""
    words = f"<text xmlns='{STANZA_ERRORS}'>{escape(text)}</text>" if text else ""
    return (
        f"<error type='{type or TYPES[condition]}'>"
        f"<{condition} xmlns='{STANZA_ERRORS}'/>{words}{extra}</error>"
    ).encode()


def answer(attributes: dict[str, str], type: str) -> dict[str, str]:
    """Give the attributes of the answer to a stanza with these."""
    back = {"type": type}
    for name, source in (("id", "id"), ("from", "to"), ("to", "from")):
        if source in attributes:
            back[name] = attributes[source]
    return back


def for_component(inner: bytes) -> bytes:
    """Let children that say ``xmlns='jabber:client'`` themselves inherit their namespace instead.

    On a component's stream (XEP-0114) the namespace of stanzas is another, and their children
    follow it; deeper down, as in forwarded stanzas, ``jabber:client`` stays.
    """
    if CLIENT.encode() not in inner:
        return inner
    depth = 0

    def rewrite(match: re.Match[bytes]) -> bytes:
        nonlocal depth
        tag = match[0]
        if tag.startswith(b"<!"):
            return tag
        if match[1]:
            depth -= 1
            return tag
        top = depth == 0
        if not tag.endswith(b"/>"):
            depth += 1
        return _redeclare(tag, CLIENT, "") if top else tag

    return _MARKUP.sub(rewrite, inner)


def from_component(inner: bytes) -> bytes:
    """Spell what a component says in its own namespace in that of clients."""
    if COMPONENT.encode() not in inner:
        return inner

    def rewrite(match: re.Match[bytes]) -> bytes:
        tag = match[0]
        return tag if tag.startswith(b"<!") else _redeclare(tag, COMPONENT, CLIENT)

    return _MARKUP.sub(rewrite, inner)


def _redeclare(tag: bytes, old: str, new: str) -> bytes:
    """Replace one default namespace in a tag, or drop its declaration if ``new`` is ""."""

    def rewrite(match: re.Match[bytes]) -> bytes:
        if match[2] != b"xmlns" or match[4][1:-1] != old.encode():
            return match[0]
        return f" xmlns='{new}'".encode() if new else b""

    return _ATTRIBUTE.sub(rewrite, tag)
