"""What may be an argument or a result: I-JSON (RFC 7493), bounded in size, depth and count.

Dates, decimals and bytes are strings with a ``format`` in the schema.  What is checked here is
what two JSON libraries could disagree about, so that no value changes on its way.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, NoReturn, cast

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
    depth: int = 0,
) -> None:
    """Make sure that a value is I-JSON within the limits.

    Args:
        value: what is checked.
        limits: bounds of its depth and size.
        error: class of what is raised.
        at: what to call it.
        depth: how deep it lies in something else, of which it is a member.

    Raises:
        ProtocolError: of the class given, because whose fault it is depends on who made the value.
            It names the member of an outermost object that is at fault.
    """
    if type(value) in _ALWAYS:
        return
    wrong = _wrong(value, limits, depth)
    if wrong is None:
        return
    # Which member it was is found out again, so that only an error pays for knowing it.
    if type(value) is dict and not depth:
        outermost = cast(dict[object, Json], value)
        at = next((str(k) for k, v in outermost.items() if _wrong(v, limits, 1)), at)
    raise error(f"{at[:60]}: {wrong}", "bad-arguments", at[:60])


#: Types whose every value is good.
_ALWAYS: Final = frozenset({bool, type(None)})

#: ``type``, but giving an object that can only be compared: the type of a Json is unknown.
_type: Callable[[Json], object] = type


def _wrong(value: Json, limits: Limits, depth: int = 0) -> str | None:
    """Say what is wrong with a value, or nothing.

    Goes level by level, not by recursion, because the depth of a hostile value must not become the
    depth of our stack, and because a level needs no note of how deep each item is.
    """
    if _type(value) is dict and len(value) <= 16 and depth < limits.depth:
        # Arguments mostly are a few plain members, for which the way below is long.
        for key, item in value.items():
            kind = _type(item)
            if not (
                _type(key) is str
                and key.isascii()
                and (
                    (kind is str and item.isascii())
                    or (kind is int and -MAX_INTEGER <= item <= MAX_INTEGER)
                    or kind in _ALWAYS
                )
            ):
                break
        else:
            return None
    level: list[Any] = [value]
    room = limits.members
    while level:
        below: list[Any] = []
        nested = False
        for item in level:
            kind = _type(item)
            if kind is str:
                if not (item.isascii() or _encodes(item)):
                    return "lone surrogate in a string"
            elif kind is int:
                if not -MAX_INTEGER <= item <= MAX_INTEGER:
                    return "integer beyond 2^53-1; send it as a string"
            elif kind is dict:
                room -= len(item)
                if room < 0:
                    return f"more than {limits.members} members; send a blob"
                nested = True
                for key in item:
                    if type(key) is not str:
                        return f"key {key!r} is not a string"
                    if not (key.isascii() or _encodes(key)):
                        return "lone surrogate in a key"
                below += item.values()
            elif kind is list or kind is tuple:
                room -= len(item)
                if room < 0:
                    return f"more than {limits.members} members; send a blob"
                nested = True
                below += item
            elif kind is float:
                if not isfinite(item):
                    return f"{item} is not a JSON number; send null or a string instead"
            elif item is not None and kind is not bool:
                return f"{type(item).__name__} is not a JSON value"
        if nested and depth >= limits.depth:
            return f"nested deeper than {limits.depth} levels"
        level = below
        depth += 1
    return None


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Made once: json.dumps and json.loads make a new one on each call that has an option.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


#: How the escape of one begins.
_SURROGATE: Final = b"\\ud"


def dumps(value: Json) -> bytes:
    """Write JSON text with the standard library; ``ValueError`` for what is not JSON."""
    return _ENCODER.encode(value).encode()


def loads(text: bytes) -> Json:
    """Read JSON text with the standard library; ``ValueError`` for what is not JSON."""
    try:
        # Decoded here, because json.loads takes UTF-16, a byte order mark and surrogates as well.
        found = _DECODER.decode(text.decode())
        if _SURROGATE in text.lower():
            _ENCODER.encode(found).encode()  # Which a lone one cannot be.
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    return found


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
    if b"<" in text or b">" in text or b"&" in text or not text.isascii():
        for raw, escaped in _ESCAPES:
            text = text.replace(raw, escaped)
    return text


def write(value: Json, dumps: Dumps = dumps) -> bytes:
    """Write a value as JSON text that is safe inside XML.

    What may hold any value in it was checked; what two libraries refuse alike they refuse here.

    Raises:
        LocalProtocolError: it is not JSON.
    """
    try:
        return escape(dumps(value))
    # The libraries differ: ValueError and TypeError mean the same here.
    except (ValueError, TypeError) as exc:
        check(value)
        raise LocalProtocolError(f"not JSON: {exc}", "bad-arguments") from exc


_EXACT: Final = loads
#: 2^63 has 19 digits.  Looked for like this because a regular expression takes ten times as long.
_LONG: Final = b"0" * 19
_AS_ZERO: Final = bytes.maketrans(b"123456789", b"0" * 9)


def read(text: bytes, limits: Limits = LIMITS, loads: Loads = loads) -> Json:
    """Read JSON text that a peer sent.

    Raises:
        RemoteProtocolError: it is too large or not JSON.
    """
    if len(text) > limits.receive:
        raise RemoteProtocolError(f"more than {limits.receive} bytes in a stanza", "too-large")
    # Some libraries (orjson) turn an integer that needs more than 64 bits into a float, so that
    # nobody would notice the lost digits; the standard one keeps it for :func:`check` to refuse.
    if loads is not _EXACT and _LONG in text.translate(_AS_ZERO):
        loads = _EXACT
    try:
        return loads(text)
    except ValueError as exc:
        raise RemoteProtocolError(f"not JSON: {exc}") from exc
