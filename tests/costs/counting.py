"""Counts calls, so that a regression of speed fails a test on any machine, however busy.

A call of a Python function or of one in C is an event; nothing is timed, so equal code gives equal
counts.  Functions of other threads are not counted.
"""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

#: Functions that a failure names.
NAMED = 15


@dataclass(slots=True)
class Cost:
    """What was called while something was done so many times."""

    what: str
    runs: int
    calls: Counter[str] = field(default_factory=Counter[str])

    @property
    def each(self) -> float:
        """Calls for each time."""
        return sum(self.calls.values()) / self.runs

    def at_most(self, bound: float) -> None:
        """Fail if it takes more calls than that.

        Raises:
            AssertionError: it does; says what was called most.
        """
        if self.each > bound:
            raise AssertionError(
                f"{self.what} takes {self.each:.1f} calls, and {bound:g} are allowed.  Called each "
                f"time, on average:\n{self.top()}\n"
                "Compare with the same on the commit before; if it has to be, raise the bound."
            )

    def top(self) -> str:
        """List the functions that were called most."""
        lines = (
            f"{count / self.runs:8.2f}  {name}" for name, count in self.calls.most_common(NAMED)
        )
        return "\n".join(lines)


def counted(what: str, run: Callable[[int], object], runs: int, warm: int = 10) -> Cost:
    """Count the calls that ``run(number)`` makes, called with 0, 1, and so on.

    Args:
        what: what it is, for the failure.
        run: does it once; its own call counts as one.
        runs: how often it is counted.
        warm: how often it is done before, so that caches are as they are in life.
    """
    for number in range(warm):
        run(number)
    cost = Cost(what, runs)
    calls = cost.calls

    def see(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            calls[f"{code.co_qualname}  {code.co_filename}:{code.co_firstlineno}"] += 1
        elif event == "c_call":
            calls[f"{argument.__qualname__}  (C, {argument.__module__ or 'built in'})"] += 1

    before = sys.getprofile()
    # What the collector calls (weak references, finalisers) depends on what ran before.
    gc.collect()
    gc.disable()
    sys.setprofile(see)
    try:
        for number in range(warm, warm + runs):
            run(number)
    finally:
        sys.setprofile(before)
        gc.enable()
    own = [name for name in calls if name.startswith("setprofile ")]
    for name in own:
        del calls[name]
    return cost
