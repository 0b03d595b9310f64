"""How long jobs of an operation took lately, from when they could run to their end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Final

#: Seconds for which a response time counts, and most of them that are kept of an operation.
WINDOW: Final = 60.0
MOST: Final = 2048

#: Most operations of which they are kept.
MAX_OPS: Final = 1000


class Responses:
    """See the module.  Times are seconds."""

    def __init__(self) -> None:
        self._of: dict[str, deque[tuple[float, float]]] = {}

    def add(self, op: str, seconds: float, now: float) -> None:
        """Note that a job ended."""
        found = self._of.get(op)
        if found is None:
            while len(self._of) >= MAX_OPS:
                del self._of[next(iter(self._of))]
            found = self._of[op] = deque(maxlen=MOST)
        found.append((now, seconds))

    def p95(self, ops: Iterable[str], now: float) -> float | None:
        """Give what 95 of 100 jobs took at most; none if none of the operations had one lately."""
        found: list[float] = []
        for op in ops:
            kept = self._of.get(op, ())
            found += [seconds for at, seconds in kept if at > now - WINDOW]
        if not found:
            return None
        return sorted(found)[math.ceil(0.95 * len(found)) - 1]
