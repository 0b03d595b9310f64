"""Who does what in ``spinal demo``, from what the tap shows, and how it looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from spinal.protocols import address

from .common import say

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

#: Seconds between two plain lines, and how often a second it is drawn on a terminal.
PAUSE: Final = 1.0
FRAMES: Final = 8


@dataclass(slots=True)
class Worker:
    """One of the workers."""

    name: str
    #: Ids of the jobs that it has now.
    running: set[str] = field(default_factory=set[str])
    done: int = 0
    #: How long its jobs ran, together.
    seconds: float = 0.0
    killed: bool = False


class Scoreboard:
    """Counts what is seen.  Pure: it is told everything.

    Args:
        names: the workers.
        jobs: how many are to be done.
        caller: whose calls count.
        op: which operation counts.
    """

    def __init__(self, names: Iterable[str], jobs: int, caller: str, op: str) -> None:
        self.workers = {name: Worker(name) for name in names}
        self.jobs = jobs
        #: Jobs that were given to another worker because theirs had been killed.
        self.moved: set[str] = set()
        self._caller = caller
        self._op = op
        self._given: dict[str, str] = {}

    @property
    def done(self) -> int:
        """Jobs that ended well."""
        return sum(worker.done for worker in self.workers.values())

    def seen(self, event: Mapping[str, Any]) -> None:
        """Take an event of a tap."""
        worker = self.workers.get(address.local(event.get("agent", "")))
        ours = event.get("caller") == self._caller and event.get("op") == self._op
        if worker is None or not ours:
            return
        job = event["id"]
        if event["what"] == "op":
            before = self._given.get(job)
            if before is not None and before != worker.name:
                self.workers[before].running.discard(job)
                if self.workers[before].killed:
                    self.moved.add(job)
            self._given[job] = worker.name
            worker.running.add(job)
        else:
            worker.running.discard(job)
            worker.seconds += (event.get("ran") or 0) / 1000

    def result(self, agent: str | None) -> None:
        """Take a result of an agent."""
        worker = self.workers.get(address.local(agent or ""))
        if worker is not None:
            worker.done += 1

    def killed(self, name: str) -> None:
        """Take note of a killed worker."""
        self.workers[name].killed = True

    def line(self) -> str:
        """Say how it stands in one line."""
        told = [
            f"{one.name} {one.done}" + (" (killed)" if one.killed else f" (+{len(one.running)})")
            for one in self.workers.values()
        ]
        return f"{self.done}/{self.jobs} done: {', '.join(told)}"


class Show:
    """Shows a scoreboard while it changes: drawn on a terminal, in plain lines elsewhere.

    Use as a context manager, and call :meth:`tick` often.
    """

    def __init__(
        self,
        board: Scoreboard,
        *,
        quiet: bool = False,
        drawn: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        out: Callable[[str], None] = say,
    ) -> None:
        self._board = board
        self._out = out
        self._quiet = quiet
        self._drawn = sys.stderr.isatty() if drawn is None else drawn
        self._clock = clock
        self._began = clock()
        self._next = self._began + PAUSE
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._drawn and not self._quiet:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self._draw(), refresh=True)
            self._live.stop()
        elif kind is None and not self._quiet:
            self._out(self._board.line())

    def tick(self) -> None:
        """Show how it stands, if it is time to."""
        if self._live is not None:
            self._live.update(self._draw(), refresh=True)
        elif not self._quiet and self._clock() >= self._next:
            self._next = self._clock() + PAUSE
            self._out(self._board.line())

    def line(self, text: str) -> None:
        """Print a line without spoiling the picture."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            self._out(text)

    def _draw(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        board = self._board
        grid = Table.grid(padding=(0, 2, 0, 0))
        for worker in board.workers.values():
            busy = "killed" if worker.killed else "● " * len(worker.running)
            style = "red" if worker.killed else "green"
            grid.add_row(
                Text(f"  {worker.name}", style="dim" if worker.killed else ""),
                ProgressBar(total=board.jobs, completed=worker.done, width=32),
                Text(f"{worker.done:>4}"),
                Text(busy, style=style),
            )
        grid.add_row(
            Text("  all", style="bold"),
            ProgressBar(total=board.jobs, completed=board.done, width=32),
            Text(f"{board.done:>4}", style="bold"),
            Text(f"of {board.jobs}, {self._clock() - self._began:.0f} s", style="dim"),
        )
        return grid


def rows(board: Scoreboard) -> Sequence[tuple[str, str, str, str]]:
    """Give the last table: worker, jobs, seconds of work, what became of it."""
    return [
        (
            worker.name,
            str(worker.done),
            f"{worker.seconds:.1f} s",
            "killed half-way" if worker.killed else "worked to the end",
        )
        for worker in board.workers.values()
    ]
