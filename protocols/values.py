"""What may be an argument or a result: I-JSON (RFC 7493), bounded in size, depth and count.

Dates, decimals and bytes are strings with a ``format`` in the schema.  What is checked here is
what two JSON libraries could disagree about, so that no value changes on its way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from .errors import LocalProtocolError, ProtocolError, RemoteProtocolError

#: A JSON value.  What it may hold is checked by :func:`check`, not by the type.
Json = Any

#: The codec is handed these two, so that a faster library can take their place.
Dumps = Callable[[Json], bytes]
Loads = Callable[[bytes], Json]

#: Largest integer that every JSON library keeps exactly (RFC 7493, 2.2).
MAX_INTEGER: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that hold for everything that is sent or received."""

    #: Bytes of JSON text in one stanza that we send unless the peer announced more.
    stanza: int = 60 * 1024
    #: Bytes of JSON text in one stanza that we read.
    receive: int = 1024 * 1024
    #: Bytes of one argument object or one result, after escaping; above it, a blob.
    inline: int = 32 * 1024
    #: Levels of arrays and objects in a value.
    depth: int = 32
    #: Events in one stanza.
    events: int = 1000
    #: Array elements and object members in all of a value.
    members: int = 20_000


LIMITS: Final = Limits()


def check(
    value: Json,
    limits: Limits = LIMITS,
    error: type[ProtocolError] = LocalProtocolError,
    at: str = "value",
) -> None:
    """Make sure that a value is I-JSON within the limits.

    Raises:
        ProtocolError: of the class given, because whose fault it is depends on who made the value.
    """
    # An own stack, because the depth of a hostile value must not become the depth of ours.
    stack: list[tuple[Any, str, int]] = [(value, at, 0)]
    count = 0
    while stack:
        item, where, depth = stack.pop()
        if item is None or item is True or item is False:
            continue
        kind: type[Any] = type(item)
        if kind is str:
            _check_text(item, where, error)
        elif kind is int:
            if not -MAX_INTEGER <= item <= MAX_INTEGER:
                raise error(
                    f"{where}: integer beyond 2^53-1; send it as a string", "bad-arguments", where
                )
        elif kind is float:
            if not math.isfinite(item):
                raise error(
                    f"{where}: {item} is not a JSON number; send null or a string instead",
                    "bad-arguments",
                    where,
                )
        elif kind in (list, tuple, dict):
            if depth >= limits.depth:
                raise error(
                    f"{where}: nested deeper than {limits.depth} levels", "bad-arguments", where
                )
            count += len(item)
            if count > limits.members:
                raise error(
                    f"{where}: more than {limits.members} members; send a blob",
                    "bad-arguments",
                    where,
                )
            if kind is dict:
                for key, inner in item.items():
                    if type(key) is not str:
                        raise error(f"{where}: key {key!r} is not a string", "bad-arguments", where)
                    _check_text(key, where, error)
                    stack.append((inner, where if depth else str(key), depth + 1))
            else:
                stack.extend((inner, where, depth + 1) for inner in item)
        else:
            raise error(f"{where}: {kind.__name__} is not a JSON value", "bad-arguments", where)


def _check_text(text: str, where: str, error: type[ProtocolError]) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise error(f"{where}: lone surrogate in a string", "bad-arguments", where) from exc


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def dumps(value: Json) -> bytes:
    """Write JSON text with the standard library; ``ValueError`` for what is not JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def loads(text: bytes) -> Json:
    """Read JSON text with the standard library; ``ValueError`` for what is not JSON."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


#: Characters of JSON text that XML would read as markup, or may not hold at all.  They stand in
#: JSON strings only, where the escape means the same, so no XML escaping is needed afterwards.
_ESCAPES: Final = (
    (b"&", b"\\u0026"),
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    ("\ufffe".encode(), b"\\ufffe"),
    ("\uffff".encode(), b"\\uffff"),
)


def escape(text: bytes) -> bytes:
    """Make JSON text safe as XML character data; it stays the same JSON."""
    for raw, escaped in _ESCAPES:
        if raw in text:
            text = text.replace(raw, escaped)
    return text


def write(value: Json, dumps: Dumps = dumps) -> bytes:
    """Write a value that was checked as JSON text that is safe inside XML."""
    return escape(dumps(value))


def read(text: bytes, limits: Limits = LIMITS, loads: Loads = loads) -> Json:
    """Read JSON text that a peer sent.

    Raises:
        RemoteProtocolError: it is too large or not JSON.
    """
    if len(text) > limits.receive:
        raise RemoteProtocolError(f"more than {limits.receive} bytes in a stanza", "too-large")
    try:
        return loads(text)
    except ValueError as exc:
        raise RemoteProtocolError(f"not JSON: {exc}") from exc
