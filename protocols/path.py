"""Operations and places as paths, compared part by part and never as text.

``/slice/1`` is an ancestor of ``/slice/1/disk`` and not of ``/slice/15``.  A call needs the exact
path of an operation; ancestors and patterns only select, in listings and rights.  Places match
symmetrically: an agent at ``/eu/fra/rack7`` answers a request for ``/eu`` and one for
``/eu/fra/rack7/u3``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from .errors import LocalProtocolError

#: Most parts in a path, and longest path in bytes.
MAX_PARTS = 32
MAX_PATH = 512

#: A place that is given without a key has this one.
DEFAULT_KEY = "site"

_FORBIDDEN = frozenset("*?{}[]<>\"'\\")


@lru_cache(maxsize=4096)
def parts(path: str) -> tuple[str, ...]:
    """Take a path apart; the root ``/`` has no parts.

    Raises:
        LocalProtocolError: it does not start with ``/``, has an empty part, a character that
            patterns or XML would trip over, or is too long.
    """
    if not path.startswith("/"):
        raise LocalProtocolError(f"not a path: {path[:60]!r} must start with '/'", argument="op")
    if len(path.encode("utf-8", "replace")) > MAX_PATH:
        raise LocalProtocolError(f"not a path: longer than {MAX_PATH} bytes", argument="op")
    if path == "/":
        return ()
    found = tuple(path[1:].split("/"))
    if len(found) > MAX_PARTS:
        raise LocalProtocolError(f"not a path: more than {MAX_PARTS} parts", argument="op")
    for part in found:
        if not part or part in (".", "..") or not _plain(part):
            raise LocalProtocolError(
                f"not a path: {path[:60]!r} has an empty or forbidden part", argument="op"
            )
    return found


def _plain(part: str) -> bool:
    return part.isprintable() and not any(c.isspace() or c in _FORBIDDEN for c in part)


def is_ancestor(ancestor: str, path: str) -> bool:
    """Tell whether ``path`` is ``ancestor`` or lies below it, by whole parts."""
    above = parts(ancestor)
    return parts(path)[: len(above)] == above


def related(one: str, other: str) -> bool:
    """Tell whether one of the two is an ancestor of the other: how places match."""
    return is_ancestor(one, other) or is_ancestor(other, one)


def selects(pattern: str, path: str) -> bool:
    """Tell whether a pattern selects an operation.

    ``*`` stands for exactly one part, a last ``**`` for any number of them (none as well).  A
    pattern without stars selects just that path.

    Raises:
        LocalProtocolError: it is not a pattern, or not a path.  A pattern that could never select
            anything is no pattern: in a rule that forbids, it would allow.
    """
    wanted, tail = _pattern(pattern)
    have = parts(path)
    if len(have) < len(wanted) or (not tail and len(have) != len(wanted)):
        return False
    return all(w in ("*", h) for w, h in zip(wanted, have, strict=False))


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> tuple[tuple[str, ...], bool]:
    """Take a pattern apart: its parts, and whether it goes on below them."""
    tail = pattern.endswith("/**")
    head = pattern[:-3] or "/" if tail else pattern
    # A star may stand for a whole part only, so without such parts it must be a path.
    parts("/".join("x" if part == "*" else part for part in head.split("/")))
    return tuple(head[1:].split("/")) if head != "/" else (), tail


def places_match(wanted: Mapping[str, str], offered: Mapping[str, str]) -> bool:
    """Tell whether every wanted keyed place is related to the offered one of the same key.

    A key that the agent does not have never matches.
    """
    return all(key in offered and related(place, offered[key]) for key, place in wanted.items())


def check_places(places: Mapping[str, str] | str) -> dict[str, str]:
    """Bring places into their keyed form; a bare path gets the key ``site``.

    Raises:
        LocalProtocolError: a place is not a path.
    """
    keyed = {DEFAULT_KEY: places} if isinstance(places, str) else dict(places)
    for place in keyed.values():
        parts(place)
    return keyed
