"""How far it is: a bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .common import say

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

#: Plain lines about the same thing come at least so many seconds apart.
PAUSE: Final = 2.0


class Progress:
    """Shows how far one piece of work is.  Use as a context manager."""

    def __init__(
        self,
        title: str,
        total: float | None = None,
        *,
        drawn: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._total = total
        self._drawn = sys.stderr.isatty() if drawn is None else drawn
        self._clock = clock
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._said = -PAUSE
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def at(self, done: float | None, total: float | None = None, note: str = "") -> None:
        """Show that so much is done; what is not known is none."""
        total = self._total if total is None else total
        if not self._drawn:
            self._tell(done, total, note)
            return
        bar, task = self._start()
        bar.update(task, completed=done, total=total, description=note or self._title)

    def line(self, text: str) -> None:
        """Print a line without spoiling the bar."""
        if self._bar is None:
            say(text)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def _tell(self, done: float | None, total: float | None, note: str) -> None:
        share = f" {done:g}/{total:g}" if total and done is not None else ""
        line = f"{self._title}{share}{' ' + note if note else ''}"
        now = self._clock()
        ended = total is not None and done is not None and done >= total
        if line != self._last and (ended or now - self._said >= PAUSE):
            self._said, self._last = now, line
            say(line)

    def _start(self) -> tuple[Bar, TaskID]:
        if self._bar is None or self._task is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._title, total=self._total)
            self._bar.start()
        return self._bar, self._task
