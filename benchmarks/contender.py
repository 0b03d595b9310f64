"""What takes part in a comparison, and how rounds of several are made to take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from .children import Asked


@dataclass(frozen=True)
class Contender:
    """One side of a comparison: set up, and ready to be asked for rounds."""

    name: str
    caller: Asked
    #: Process ids by what they are; each counts with its descendants.
    processes: Mapping[str, Sequence[int]]
    #: The commands that started it.
    commands: Sequence[str] = ()
    #: How it is set, in words.
    settings: str = ""


@dataclass(frozen=True)
class Round:
    """What one round gave."""

    #: Milliseconds, or trips a second.
    value: float
    trips: int
    #: Microseconds of CPU per trip, by process.
    cpu: Mapping[str, float]


@dataclass(frozen=True)
class Ask:
    """A question for one contender."""

    contender: Contender
    measure: str
    question: Mapping[str, Any] = field(default_factory=dict[str, Any])

    async def round(self, **changed: Any) -> Round:
        """Have one round measured, some of the question changed."""
        before = _used(self.contender)
        asked = {**self.question, **changed}
        value, trips = await self.contender.caller.ask(self.measure, **asked)
        after = _used(self.contender)
        return Round(
            value, trips, {name: (after[name] - before[name]) / trips * 1e6 for name in after}
        )


async def in_turn(
    asks: Mapping[str, Ask], runs: int, say: Callable[[str], None], **warm: Any
) -> dict[str, list[Round]]:
    """Measure rounds of all in turn, A B C A B C, so that noise meets them alike.

    Args:
        asks: what to measure, by name.
        runs: rounds of each.
        say: told of the progress.
        warm: what is different in the first round of each, which does not count.
    """
    found: dict[str, list[Round]] = {name: [] for name in asks}
    for name, ask in asks.items():
        say(f"warming up: {name}")
        await ask.round(**warm)
    for run in range(runs):
        for name, ask in asks.items():
            made = await ask.round()
            found[name].append(made)
            say(f"round {run + 1} of {runs}: {name}: {made.value:.4g}")
    return found


def middle(rounds: Sequence[Round]) -> float:
    """Give the median of what they measured."""
    return statistics.median(made.value for made in rounds)


def _used(contender: Contender) -> dict[str, float]:
    """Give the CPU seconds so far, by process."""
    return {name: sum(map(_seconds, pids)) for name, pids in contender.processes.items()}


def _seconds(pid: int) -> float:
    process = psutil.Process(pid)
    own = process.cpu_times()
    # Children that ended are in their parent's account; so each is counted once.
    return (
        own.user
        + own.system
        + own.children_user
        + own.children_system
        + sum(map(_seconds, (child.pid for child in process.children())))
    )
