"""From bytes to slices: where each stanza of an XML stream begins and ends.

No I/O here.  expat checks that the bytes are well-formed, namespaces included, and tells where
elements begin; what is inside a stanza is never taken apart but kept as the bytes that came.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import unescape
from typing import Final
from xml.parsers import expat

from .limits import Limits

CLIENT: Final = "jabber:client"
COMPONENT: Final = "jabber:component:accept"
STREAMS: Final = "http://etherx.jabber.org/streams"
_XML: Final = "http://www.w3.org/XML/1998/namespace"
#: Between namespace and name in what expat reports; expat refuses it inside a namespace.
_SEP: Final = "\n"

KINDS: Final = ("iq", "message", "presence")

#: A start tag.  Quoted values are skipped as a whole because ``>`` is legal in them.
_TAG: Final = re.compile(rb"""<([^\s/>]+)[^"'>]*(?:(?:"[^"]*"|'[^']*')[^"'>]*)*>""")
_ATTRIBUTE: Final = re.compile(rb"""\s+([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")
_SPACE: Final = b" \t\r\n"


class StreamError(Exception):
    """A stream has to end; ``condition`` is one of RFC 6120, 4.9.3."""

    def __init__(self, condition: str, text: str = "") -> None:
        super().__init__(condition, text)
        self.condition = condition
        self.text = text


@dataclass(slots=True)
class Header:
    """The start tag of the stream."""

    attributes: dict[str, str]
    #: The default namespace that it declares, "" if none.
    content: str


@dataclass(slots=True)
class Element:
    """One first-level element of a stream."""

    #: ``iq``, ``message`` or ``presence`` if it is an unprefixed stanza of the stream's own
    #: namespace: only those can be forwarded as slices.  Else "".
    kind: str
    namespace: str
    name: str
    #: Unescaped.  Declared prefixes that the stanza needs are here too, as ``xmlns:prefix``.
    attributes: dict[str, str]
    #: Everything between start tag and end tag, as it came.
    inner: bytes


class End:
    """The end tag of the stream."""


END: Final = End()

Item = Header | Element | End | StreamError


class Slicer:
    """Takes the bytes of one stream in pieces of any size and gives its elements.

    ``content`` is the namespace of stanzas on this stream.  An item of type :class:`StreamError`
    is the last one, as is :data:`END`; what is fed afterwards is ignored.
    """

    def __init__(self, content: str, size: int, depth: int, limits: Limits) -> None:
        self._stanzas = {f"{content}{_SEP}{kind}": kind for kind in KINDS}
        self._content = content
        self._size = size
        self._max_depth = depth + 1
        self._limits = limits
        self._depth = 0
        #: Bytes from ``_base`` on that are still needed, if any.
        self._pending = bytearray()
        self._buffer: bytes | bytearray = b""
        #: Position in the stream of the first byte in the buffer.
        self._base = 0
        #: All that was ever fed, in bytes.
        self._fed = 0
        #: Where the element under way begins, and where the one before it ended.
        self._begin = 0
        self._end = 0
        self._name = ""
        self._attributes: dict[str, str] = {}
        self._prefixes: list[tuple[bytes, str, str]] = []
        self._items: list[Item] = []
        self._over = False
        parser = self._parser = expat.ParserCreate(None, _SEP)
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._finish
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._forbidden
        parser.CommentHandler = self._forbidden
        parser.ProcessingInstructionHandler = self._forbidden
        # expat 2.6 holds back a tag that was completed by a small read until much more comes.
        defer: Callable[[bool], None] | None = getattr(parser, "SetReparseDeferralEnabled", None)
        if defer is not None:
            defer(False)

    def widen(self, size: int, depth: int) -> None:
        """Take larger elements from now on."""
        self._size = size
        self._max_depth = depth + 1

    def feed(self, data: bytes) -> list[Item]:
        """Take more bytes; give what they complete."""
        items = self._items = []
        if self._over:
            return items
        if self._pending:
            self._pending += data
            self._buffer = self._pending
        else:
            self._buffer = data
        self._fed += len(data)
        try:
            self._parser.Parse(data, False)
            if not self._over:
                self._keep()
        except expat.ExpatError as error:
            if not self._over:
                items.append(StreamError("not-well-formed", str(error)))
            self._close()
        except StreamError as error:
            items.append(error)
            self._close()
        self._buffer = b""
        return items

    def _close(self) -> None:
        self._over = True
        self._pending = bytearray()

    def _keep(self) -> None:
        """Keep the bytes after the last complete element: a tag among them may be unfinished."""
        done = self._end - self._base
        if self._buffer is self._pending:
            del self._pending[:done]
        elif done < len(self._buffer):
            self._pending = bytearray(self._buffer[done:])
        self._base = self._end
        if self._depth < 2 and self._pending:
            self._trim()
        if len(self._pending) > self._size:
            raise StreamError("policy-violation", f"more than {self._size} bytes in a stanza")
        # CurrentByteIndex is where the unfinished token begins.
        if self._fed - self._parser.CurrentByteIndex > self._limits.tag:
            raise StreamError("policy-violation", f"more than {self._limits.tag} bytes in a tag")

    def _trim(self) -> None:
        """Drop the space between elements (keepalives); nothing else may be there."""
        rest = self._pending.lstrip(_SPACE)
        self._end = self._base = self._base + len(self._pending) - len(rest)
        self._pending = rest
        if rest and rest[0] != 0x3C and self._depth == 1:
            raise StreamError("bad-format", "text between stanzas")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        depth = self._depth = self._depth + 1
        if len(attributes) > self._limits.attributes:
            raise StreamError("policy-violation", "too many attributes")
        if depth == 2:
            self._begin = begin = self._parser.CurrentByteIndex
            if begin != self._end and self._gap(begin):
                raise StreamError("bad-format", "text between stanzas")
            self._name = name
            self._attributes = attributes
        elif depth == 1:
            self._open(name, attributes)
        elif depth > self._max_depth:
            raise StreamError("policy-violation", f"nested deeper than {self._max_depth - 1}")

    def _gap(self, begin: int) -> bool:
        return bool(self._buffer[self._end - self._base : begin - self._base].strip(_SPACE))

    def _open(self, name: str, attributes: dict[str, str]) -> None:
        begin = self._parser.CurrentByteIndex
        tag = _TAG.match(self._buffer, begin - self._base)
        if tag is None or b"\0" in tag[0]:
            # expat recognises UTF-16 whatever it is told; the slices would be garbage.
            raise StreamError("unsupported-encoding", "only UTF-8")
        self._end = begin + len(tag[0])
        if name != f"{STREAMS}{_SEP}stream":
            raise StreamError("invalid-namespace", "a stream of jabber:client is needed")
        declared = _declarations(tag)
        content = declared.pop("", "")
        if len(declared) > self._limits.prefixes:
            raise StreamError("policy-violation", "too many prefixes")
        self._prefixes = [(f"{p}:".encode(), f"xmlns:{p}", uri) for p, uri in declared.items()]
        self._items.append(Header(_plain(attributes), content))

    def _finish(self, name: str) -> None:
        self._depth -= 1
        if self._depth > 1:
            return
        if self._depth == 0:
            end = self._parser.CurrentByteIndex
            if self._gap(end):
                raise StreamError("bad-format", "text between stanzas")
            self._items.append(END)
            self._close()
            return
        begin = self._begin - self._base
        tag = self._tag(self._begin)
        inside = tag.end()
        buffer = self._buffer
        if buffer[inside - 2] == 0x2F:  # <x/>
            inner, end = b"", inside
        else:
            close = self._parser.CurrentByteIndex - self._base
            inner = bytes(buffer[inside:close])
            end = buffer.index(b">", close) + 1
        self._end = self._base + end
        if end - begin > self._size:
            raise StreamError("policy-violation", f"more than {self._size} bytes in a stanza")
        self._items.append(self._element(name, tag, inner))

    def _element(self, name: str, tag: re.Match[bytes], inner: bytes) -> Element:
        attributes = self._attributes
        kind = self._stanzas.get(name)
        if kind is None:
            namespace, _, local = name.rpartition(_SEP)
            return Element("", namespace, local, _plain(attributes), inner)
        if b":" in tag[1]:
            # Its children may lean on a default namespace that a forwarded slice would not have.
            raise StreamError("bad-namespace-prefix", "stanzas must not have a prefix")
        if _SEP in "".join(attributes):
            attributes = _plain(attributes)
        if b"xmlns:" in tag[0]:
            attributes |= {f"xmlns:{p}": uri for p, uri in _declarations(tag).items() if p}
        for prefix, attribute, uri in self._prefixes:
            if prefix in inner:
                attributes.setdefault(attribute, uri)
        return Element(kind, self._content, kind, attributes, inner)

    def _tag(self, position: int) -> re.Match[bytes]:
        tag = _TAG.match(self._buffer, position - self._base)
        if tag is None:
            raise StreamError("internal-server-error", "a start tag that cannot be found again")
        return tag

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() != "utf-8":
            raise StreamError("unsupported-encoding", "only UTF-8")

    def _forbidden(self, *_: object) -> None:
        raise StreamError("restricted-xml", "no DOCTYPE, comment or processing instruction")


def _plain(attributes: dict[str, str]) -> dict[str, str]:
    """Spell ``xml:lang`` as it is written; refuse attributes of other namespaces."""
    plain: dict[str, str] = {}
    for name, value in attributes.items():
        namespace, _, local = name.rpartition(_SEP)
        if namespace == _XML:
            plain[f"xml:{local}"] = value
        elif namespace:
            raise StreamError("bad-namespace-prefix", f"attribute {local} of another namespace")
        else:
            plain[local] = value
    return plain


def _declarations(tag: re.Match[bytes]) -> dict[str, str]:
    """Give prefix to namespace of a start tag; the default namespace has the prefix ""."""
    found: dict[str, str] = {}
    for name, value in _ATTRIBUTE.findall(tag[0], len(tag[1]) + 1):
        if name == b"xmlns" or name.startswith(b"xmlns:"):
            found[name[6:].decode()] = unescape(value[1:-1].decode())
    return found
