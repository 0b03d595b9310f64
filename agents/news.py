"""News of a running call, no more of them than a caller can use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from spinal.protocols import Json

from .job import Channel

#: Shortest time in seconds between two progress reports; one in between is replaced by the next.
PAUSE: Final = 0.1

#: Log lines that may be sent at once, and how many more each second.
LINES: Final = 1000
LINES_A_SECOND: Final = 100.0
#: Characters of a line; a longer one counts as several.
LINE: Final = 200
#: Seconds for which nothing passes once too many lines came.
QUIET: Final = 1.0


class Allowance:
    """How many lines may pass, and how many did not.

    Args:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lines = float(LINES)
        self._counted = clock()
        self._quiet_until = 0.0
        self._dropped = 0

    def admits(self, text: str) -> bool:
        """Tell whether a line may pass; one that may not is counted."""
        now = self._clock()
        if now >= self._quiet_until:
            allowed = min(LINES, self._lines + (now - self._counted) * LINES_A_SECOND)
            cost = 1 + len(text) // LINE
            self._counted = now
            self._lines = allowed - cost if allowed >= cost else allowed
            if allowed >= cost:
                return True
            self._quiet_until = now + QUIET
        self._dropped += 1
        return False

    def told(self) -> str:
        """Give what is to be said of the lines that did not pass since the last time, if any."""
        dropped, self._dropped = self._dropped, 0
        return f"... {dropped} lines left out" if dropped else ""


class News(Channel):
    """A channel in front of another that thins what comes too fast; a context manager.

    A function may call ``job.progress`` for each row of a table, and a program may print for ever;
    neither must drown the bus.
    """

    def __init__(self, inner: Channel) -> None:
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._next = 0.0
        self._latest: tuple[float | None, float | None, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._lines = Allowance(self._loop.time)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_dropped()

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        """Say how far it is, now or with the next report."""
        self._latest = (done, total, note[:4096])
        if self._timer is None:
            wait = self._next - self._loop.time()
            if wait <= 0:
                self._report()
            else:
                self._timer = self._loop.call_later(wait, self._report)

    def _report(self) -> None:
        self._timer = None
        if self._latest is not None:
            self._next = self._loop.time() + PAUSE
            latest, self._latest = self._latest, None
            self._inner.progress(*latest)

    def log(self, text: str, level: str = "info") -> None:
        """Send a log line, unless there were too many."""
        if self._lines.admits(text):
            self._tell_dropped()
            self._inner.log(text, level)

    def _tell_dropped(self) -> None:
        if words := self._lines.told():
            self._inner.log(words, "warning")

    async def data(self, value: Json) -> None:
        """Send a piece of the stream; the window of the call bounds these."""
        await self._inner.data(value)

    def spent(self, cpu: float, memory: int) -> None:
        """Count what a process cost."""
        self._inner.spent(cpu, memory)

    @property
    def remaining(self) -> float:
        """Seconds until the caller gives up."""
        return self._inner.remaining
