"""Durations as people write them: ``250ms``, ``60s``, ``1h30m``, or a number of seconds."""

from __future__ import annotations

import math
import re
from typing import Final

#: Longest duration that is read: 366 days, as for deadlines on the wire.
MAX_SECONDS: Final = 366 * 86_400.0

#: Unit -> seconds; largest first, the order in which they are written.
UNITS: Final = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = r"\d+(?:\.\d+)?"
_PLAIN: Final = re.compile(_PART, re.ASCII)
_FORM: Final = re.compile("".join(rf"(?:({_PART}){unit})?" for unit in UNITS), re.ASCII)


def parse(value: str | float) -> float:
    """Give the duration in seconds.

    Raises:
        ValueError: it is not a duration, not finite, negative or longer than 366 days; the text
            shows what one looks like.
    """
    seconds = _read(value.strip().lower()) if isinstance(value, str) else float(value)
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(
            f"not a duration: {value!r} (write 250ms, 60s, 5m, 1h30m, or a number of seconds)"
        )
    if seconds > MAX_SECONDS:
        raise ValueError(f"duration {value!r} is longer than 366 days")
    return seconds


def _read(text: str) -> float | None:
    if _PLAIN.fullmatch(text):
        return float(text)
    found = _FORM.fullmatch(text)
    if found is None or not text:
        return None
    pairs = zip(found.groups(), UNITS.values(), strict=True)
    return math.fsum(float(number) * unit for number, unit in pairs if number is not None)


def write(seconds: float) -> str:
    """Give the shortest usual spelling, to the millisecond; :func:`parse` reads it back."""
    left = round(seconds * 1000)
    if left < 1000:
        return f"{left}ms" if left else "0s"
    if left < 120_000:
        return f"{left / 1000:g}s"
    out = ""
    for unit, worth in UNITS.items():
        number, left = divmod(left, round(worth * 1000))
        if number:
            out += f"{number}{unit}"
    return out
