"""How long the jobs took that ended lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil
from typing import Final

#: Samples that are kept; of more in a window, the latest stand for all.
MAX_SAMPLES: Final = 2048

#: Seconds for which a sample counts.
WINDOW: Final = 120.0

#: Milliseconds for which a figure is given again without being counted anew.
_FRESH: Final = 1000


def quantile(samples: Sequence[float], share: float) -> float | None:
    """Give the least sample that a share of all does not exceed; none of no samples."""
    if not samples:
        return None
    return sorted(samples)[max(0, ceil(share * len(samples)) - 1)]


class Responses:
    """Response times in seconds of the last while, such as of a pool's operations.

    Args:
        window: seconds for which a sample counts.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window * 1000
        self._samples: deque[tuple[int, float]] = deque(maxlen=MAX_SAMPLES)
        self._known: tuple[int, float | None] | None = None

    def add(self, seconds: float, now: int) -> None:
        """Note how long a job took that ended now, a time in milliseconds."""
        self._samples.append((now, seconds))

    def p95(self, now: int) -> float | None:
        """Give what 95 of 100 did not exceed, as it is now or was within the last second."""
        if self._known is None or not 0 <= now - self._known[0] < _FRESH:
            while self._samples and self._samples[0][0] <= now - self._window:
                self._samples.popleft()
            self._known = now, quantile([seconds for _, seconds in self._samples], 0.95)
        return self._known[1]
