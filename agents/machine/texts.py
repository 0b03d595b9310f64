"""Texts of a machine, which anybody may have written, in the bounds of what travels."""

from __future__ import annotations

import os
from typing import Final

from spinal.agents.results import weight

#: Longest text of a machine's that is shown, in bytes as they travel.
LONGEST: Final = 8 * 1024


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
