"""Elements of other namespaces as XML text, as every reader takes it.

The standard library writes ``<ns0:query xmlns:ns0=...>``, which is the same to XML and not to
programs that compare names.  Here an element declares its namespace where it is not its parent's,
and nothing has a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element

from .errors import LocalProtocolError

#: What XML 1.0 (2.2) cannot hold, not even as a character reference.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

#: A receiver would read these as spaces (XML 1.0, 3.3.3) unless they are references.
_SPACES = {9: "&#9;", 10: "&#10;", 13: "&#13;"}


def child(
    parent: Element, name: str, attributes: Mapping[str, str] | None = None, text: str = ""
) -> Element:
    """Add an element of the parent's namespace, with these attributes and this text."""
    namespace = parent.tag.rpartition("}")[0]
    added = Element(f"{namespace}}}{name}" if namespace else name, dict(attributes or {}))
    added.text = text
    parent.append(added)
    return added


def write(element: Element) -> bytes:
    """Write an element and what is in it, without text behind elements.

    Characters that XML cannot hold become spaces.
    """
    out: list[str] = []
    _write(element, "", out)
    return "".join(out).encode()


def _write(element: Element, around: str, out: list[str]) -> None:
    namespace, _, name = element.tag.rpartition("}")
    out.append(f"<{name}")
    if namespace[1:] != around:
        out.append(f" xmlns='{attribute(namespace[1:])}'")
    out += [f" {key}='{attribute(plain(value))}'" for key, value in element.attrib.items()]
    if not element.text and not len(element):
        out.append("/>")
        return
    out.append(">" + text(element.text or ""))
    for one in element:
        _write(one, namespace[1:], out)
    out.append(f"</{name}>")


def plain(value: str) -> str:
    """Give a text in which characters that XML cannot hold are spaces."""
    return _UNWRITABLE.sub(" ", value)


def attribute(value: str) -> str:
    """Write the value of an attribute, for single quotes.

    Raises:
        LocalProtocolError: XML cannot hold it.
    """
    if value.isalnum():
        return value
    if not (value.isascii() and value.isprintable()):
        if _UNWRITABLE.search(value):
            raise LocalProtocolError(f"{value[:60]!r} cannot stand in an XML attribute")
        return _markup(value).translate(_SPACES)
    return _markup(value)


def _markup(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&#39;")


def text(value: str) -> str:
    """Write character data; what XML cannot hold becomes a space."""
    # A server may treat '>' after ']]' as an error (XML 1.0, 2.4); a bare CR would become LF.
    return (
        plain(value)
        .replace("\r", " ")
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
