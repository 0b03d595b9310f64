"""Readers of JSON members that a peer sent: right type and bounds, or an error that names it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .errors import MAX_TEXT, TYPES, Problem, RemoteProtocolError
from .path import check_places, parts
from .values import MAX_INTEGER, Json

#: From what stands in the JSON and the member's name to the value.
Reader = Callable[[Json, str], Any]


def _wrong(name: str, wanted: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"'{name}' must be {wanted}", "malformed", name)


def identifier(raw: Json, name: str) -> str:
    """Read an id: 1 to 128 printable ASCII characters without spaces."""
    # Half the time of a regular expression, and every event has one.
    if not (isinstance(raw, str) and raw.isascii() and raw.isprintable()) or (
        " " in raw or not 0 < len(raw) <= 128
    ):
        raise _wrong(name, "1 to 128 printable ASCII characters without spaces")
    return raw


def text(longest: int) -> Reader:
    """Give a reader of strings of at most so many characters."""

    def read(raw: Json, name: str) -> str:
        if not isinstance(raw, str) or len(raw) > longest:
            raise _wrong(name, f"a string of at most {longest} characters")
        return raw

    return read


def one_of(*choices: str) -> Reader:
    """Give a reader of one of a few words."""

    def read(raw: Json, name: str) -> str:
        if raw not in choices:
            raise _wrong(name, f"one of {', '.join(choices)}")
        return str(raw)

    return read


def integer(low: int = 0, high: int = MAX_INTEGER) -> Reader:
    """Give a reader of integers within bounds."""

    def read(raw: Json, name: str) -> int:
        if type(raw) is not int or not low <= raw <= high:
            raise _wrong(name, f"an integer from {low} to {high}")
        return raw

    return read


#: Reads the number of an attempt.
attempt = integer(1, 10**6)


def exchange(raw: Json, name: str) -> tuple[str, int]:
    """Read the id and the attempt of an exchange, as a list of two."""
    pair: list[Json] = raw if isinstance(raw, list) else []  # pyright: ignore[reportUnknownVariableType] - JSON items
    if len(pair) != 2:
        raise _wrong(name, "a list of an id and an attempt")
    return (identifier(pair[0], name), attempt(pair[1], name))


def number(low: float = -math.inf) -> Reader:
    """Give a reader of finite numbers of at least ``low``."""

    def read(raw: Json, name: str) -> float:
        if type(raw) not in (int, float) or not math.isfinite(raw) or raw < low:
            raise _wrong(name, "a number" if low == -math.inf else f"a number of at least {low}")
        return float(raw)

    return read


def flag(raw: Json, name: str) -> bool:
    """Read true or false."""
    if not isinstance(raw, bool):
        raise _wrong(name, "true or false")
    return raw


def value(raw: Json, name: str) -> Json:
    """Read anything; its depth and size are checked for the stanza as a whole."""
    return raw


def mapping(raw: Json, name: str) -> dict[str, Json]:
    """Read an object."""
    if not isinstance(raw, dict):
        raise _wrong(name, "an object")
    return raw  # pyright: ignore[reportUnknownVariableType] - JSON keys are strings


def list_of(read_item: Reader, most: int) -> Reader:
    """Give a reader of lists of at most so many items."""

    def read(raw: Json, name: str) -> tuple[Any, ...]:
        if not isinstance(raw, list):
            raise _wrong(name, f"a list of at most {most}")
        items: list[Json] = raw  # pyright: ignore[reportUnknownVariableType] - JSON items
        if len(items) > most:
            raise _wrong(name, f"a list of at most {most}")
        return tuple([read_item(item, name) for item in items])

    return read


def operation(raw: Json, name: str) -> str:
    """Read the path of an operation."""
    if not isinstance(raw, str):
        raise _wrong(name, "a path")
    try:
        parts(raw)
    except ValueError as exc:
        raise _wrong(name, str(exc)) from exc
    return raw


def places(raw: Json, name: str) -> dict[str, str]:
    """Read keyed places."""
    found = mapping(raw, name)
    if len(found) > 32 or not all(isinstance(place, str) for place in found.values()):
        raise _wrong(name, "an object of at most 32 paths")
    try:
        return check_places(found)
    except ValueError as exc:
        raise _wrong(name, str(exc)) from exc


_PROBLEM: Mapping[str, Reader] = {
    "reason": text(64),
    "text": text(MAX_TEXT),
    "argument": text(256),
    "after": number(0),
    "type": one_of(*sorted(TYPES)),
    "condition": text(64),
}


def members(raw: Json, name: str, table: Mapping[str, Reader]) -> dict[str, Any]:
    """Read the members of an object that the table knows; others are ignored."""
    found: dict[str, Any] = {}
    for key, item in mapping(raw, name).items():
        read = table.get(key)
        if read is not None and item is not None:
            found[key] = read(item, key)
    return found


def problem(raw: Json, name: str) -> Problem:
    """Read an error object."""
    found = members(raw, name, _PROBLEM)
    if "reason" not in found:
        raise _wrong(name, "an object with a reason")
    return Problem(**found)
