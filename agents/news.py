"""News of a running call, no more of them than a caller can use."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from spinal.protocols import Json

from .job import Channel

#: Shortest time in seconds between two progress reports; one in between is replaced by the next.
PAUSE: Final = 0.1

#: Log lines that may be sent at once, and how many more each second.
LINES: Final = 1000
LINES_A_SECOND: Final = 100.0


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
        self._lines = float(LINES)
        self._counted = self._loop.time()
        self._dropped = 0

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
        if self._dropped:
            self._inner.log(f"... {self._dropped} lines left out", "warning")

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
        now = self._loop.time()
        self._lines = min(LINES, self._lines + (now - self._counted) * LINES_A_SECOND)
        self._counted = now
        if self._lines < 1:
            self._dropped += 1
            return
        self._lines -= 1
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._inner.log(f"... {dropped} lines left out", "warning")
        self._inner.log(text, level)

    async def data(self, value: Json) -> None:
        """Send a piece of the stream; the window of the call bounds these."""
        await self._inner.data(value)

    @property
    def remaining(self) -> float:
        """Seconds until the caller gives up."""
        return self._inner.remaining
