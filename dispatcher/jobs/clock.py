"""The time of a dispatcher: one that cannot jump, and the one on the wall.

What is counted (delays, deadlines, back-off) is counted by a clock that was set from the wall when
the dispatcher started and runs steadily since; only what names a time of day (``at``, cron) is held
against the wall itself, as it is now.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Milliseconds since 1970 UTC, by both clocks."""

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        running: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self._running = running
        self._set = wall() - running()

    def steady(self) -> int:
        """Give the time that does not jump."""
        return int((self._set + self._running()) * 1000)

    def wall(self) -> int:
        """Give the time of day."""
        return int(self._wall() * 1000)
