"""Texts of a machine, which anybody may have written, in the bounds of what travels."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from spinal.protocols import values

T = TypeVar("T")

#: Bytes of a list that go into one result; the rest of the 32 KiB is for what stands around it.
ROOM: Final = 24 * 1024

#: Longest text of a machine's that is shown, in bytes as they travel.
LONGEST: Final = 8 * 1024


def weight(value: Any) -> int:
    """Give the bytes that a value takes on the wire."""
    return len(values.escape(msgspec.json.encode(value)))


def readable(text: str | bytes, longest: int = LONGEST) -> str:
    """Give a text as valid Unicode of at most so many bytes on the wire.

    What is not UTF-8 shows as U+FFFD; what is cut ends with ``...``.
    """
    data = text if isinstance(text, bytes) else os.fsencode(_whole(text[: longest + 1]))
    found = data[: longest + 1].decode("utf-8", "replace")
    if weight(found) <= longest + 2:  # the quotes
        return found
    low, high = 0, len(found)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if weight(found[:middle]) <= longest - 1 else (low, middle - 1)
    return found[:low] + "..."


def _whole(text: str) -> str:
    """Leave the escapes of bytes in names (PEP 383), and no other half of a character."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def shown(text: str) -> str:
    """Give what a caller said as it may stand in one line of an error."""
    return repr(readable(text, 120))


def fitting(items: Iterable[T], most: int, room: int = ROOM) -> tuple[list[T], bool]:
    """Give as many items as may travel, and whether there were more."""
    kept: list[T] = []
    for item in items:
        room -= weight(item) + 1
        if len(kept) == most or room < 0:
            return kept, True
        kept.append(item)
    return kept, False
