"""An argument quoted for the place in a request that it goes to.

Each function here fills one sort of place.  What the place cannot hold, or what would not arrive
there as it was given, is refused by the argument's name: nothing is dropped or mended in silence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from ...argument import text
from ...kind import Call
from ...template import Template

#: Longest URL, and longest value of a header, in bytes: all that every server takes
#: (RFC 9110, 4.1), and a little less than most take.
MAX_URL: Final = 8000
MAX_HEADER: Final = 8000

#: What a literal part of a path or query may have unquoted: its delimiters, and escapes.
_LITERAL: Final = "/%:@!$&'()*+,;=~?"

#: What would end a place inside a header: the delimiters of lists, parameters and quoted strings.
_DELIMITERS: Final = frozenset(',;"\\')

#: What XML 1.0 cannot hold, and what its parsers would change (2.2, 2.11, 3.3.3).
_NO_XML: Final = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_XML: Final = {ord(c): f"&#{ord(c)};" for c in "<>&\"'\r\n\t"}


def unicode(call: Call) -> None:
    """Make sure that every argument can be written as UTF-8.

    Raises:
        CallError: ``bad-arguments``, by name.
    """
    for name, value in call.args.items():
        if isinstance(value, (str, list, dict)):
            try:
                text(value).encode()
            except UnicodeEncodeError as exc:
                raise call.bad(
                    name, "it has half of a character (a lone surrogate), which is no text"
                ) from exc


def texts(call: Call, names: Sequence[str]) -> dict[str, str]:
    """Give arguments as texts; those that are nothing are left out."""
    return {name: text(call.args[name]) for name in names if call.args.get(name) is not None}


def filled(call: Call, template: Template) -> str | None:
    """Fill a place that takes any text; nothing if an argument in it is nothing."""
    values = texts(call, template.names)
    return None if len(values) < len(template.names) else template.fill(values)


def literal(said: str) -> str:
    """Quote what the manifest itself says in a path or query; its escapes stay."""
    return quote(said, safe=_LITERAL)


def segment(call: Call, template: Template) -> str:
    """Fill one segment of a path (RFC 3986, 3.3): it stays one, and stays where it is.

    Raises:
        CallError: it would name another place in the hierarchy, also after a server has undone the
            quoting.
    """
    values = texts(call, template.names)
    for name, value in values.items():
        if "\0" in value:
            raise call.bad(name, "it has a NUL character, which no path can hold")
        if "/" in value or "\\" in value:
            # Many servers undo the quoting before they look for the path.
            raise call.bad(name, "it has a '/' or '\\', which would name another path")
    plain = template.fill(values)
    if template.names and plain in ("", ".", ".."):
        name = template.names[0]
        raise call.bad(name, f"the part of the path would be {plain!r}, and name another path")
    pieces = (
        literal(piece) if isinstance(piece, str) else quote(values[piece.name], safe="")
        for piece in template.pieces
    )
    return "".join(pieces)


def query(pairs: Sequence[tuple[str, str]]) -> str:
    """Write the query of a URL."""
    return "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)


def header(call: Call, template: Template) -> str | None:
    """Fill the value of a header (RFC 9110, 5.5); nothing if an argument in it is nothing.

    ASCII only: of other characters there is no meaning that all servers share.

    Raises:
        CallError: it would not arrive as it is, or would end its place in the value.
    """
    values = texts(call, template.names)
    if len(values) < len(template.names):
        return None
    for name, value in values.items():
        wrong = next((c for c in value if not (" " <= c <= "~" or c == "\t")), None)
        if wrong is not None:
            raise call.bad(name, f"it has {wrong!a}, which no header can hold")
        if template.whole is None and (ends := sorted(_DELIMITERS & set(value))):
            raise call.bad(name, f"it has {ends[0]!r}, which would end its place in the header")
    found = template.fill(values)
    if template.names and found != found.strip(" \t"):
        name = next((n for n, v in values.items() if v != v.strip(" \t")), template.names[0])
        raise call.bad(name, "the header would begin or end with a space, which no server keeps")
    if len(found) > MAX_HEADER:
        name = max(values, key=lambda n: len(values[n]))
        raise call.bad(name, f"longer than the {MAX_HEADER} bytes of a header")
    return found


def xml(call: Call, template: Template) -> str:
    """Fill places in XML, in its text or in attributes; nothing is empty there.

    Raises:
        CallError: it has what XML cannot hold.
    """
    values = texts(call, template.names)
    for name, value in values.items():
        if (wrong := _NO_XML.search(value)) is not None:
            raise call.bad(name, f"it has {wrong[0]!a}, which XML cannot hold")
    empty = dict.fromkeys(template.names, "")
    return template.fill({**empty, **values}, lambda value: value.translate(_XML))
