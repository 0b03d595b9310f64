"""Whether a job that comes after others may run, and whether a set of jobs can run at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from spinal.protocols import Problem

from .job import JobState

#: What may be asked of the jobs before: all are done; one is done; all have ended, however.
WHEN: Final = ("done", "any", "ended")

#: Jobs that a text names; more are counted.
NAMED: Final = 5


class Next(Enum):
    """What becomes of a job that comes after others."""

    RUN = "run"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of it, and the problem if it fails."""

    next: Next
    problem: Problem | None = None


_RUN: Final = Verdict(Next.RUN)
_WAIT: Final = Verdict(Next.WAIT)


def verdict(when: str, states: Mapping[str, JobState | None]) -> Verdict:
    """Decide from the states of the jobs before.

    A job that is no longer known (None) was there when it was named, so it has ended; how, nobody
    can tell any more: that is enough for ``ended`` and not for the other two.
    """
    bad = {id: state for id, state in states.items() if _ended_badly(state)}
    done = sum(state is JobState.DONE for state in states.values())
    open = len(states) - len(bad) - done
    if when == "ended":
        return _WAIT if open else _RUN
    if when == "any":
        if done or not states:
            return _RUN
        return _WAIT if open else _fail(f"none of the jobs before it was done: {_named(bad)}")
    if bad:
        return _fail(f"it comes after {_named(bad)}")
    return _WAIT if open else _RUN


def _ended_badly(state: JobState | None) -> bool:
    return state is None or (state.final and state is not JobState.DONE)


def _fail(text: str) -> Verdict:
    return Verdict(Next.FAIL, Problem("dependency", text))


#: State -> how it is said of a job.
_SAID: Final[Mapping[JobState | None, str]] = {
    JobState.ERROR: "which ended with an error",
    JobState.KILLED: "which was killed",
    None: "which has ended and is no longer kept",
}


def _named(bad: Mapping[str, JobState | None]) -> str:
    said = [f"job {id}, {_SAID[state]}" for id, state in bad.items()]
    more = f"; and {len(said) - NAMED} more" if len(said) > NAMED else ""
    return "; ".join(said[:NAMED]) + more


def cycle(edges: Mapping[str, Sequence[str]]) -> list[str] | None:
    """Find jobs that wait for each other in a ring.

    Args:
        edges: name -> names of those that it comes after; names that are no key come after nothing.

    Returns:
        The names along one ring, the first one again at its end; or nothing.
    """
    finished: set[str] = set()
    for start in edges:
        if start in finished:
            continue
        # The way down from the start, in order, with what is left to look at on each step.
        path: dict[str, Iterator[str]] = {start: iter(edges[start])}
        while path:
            name = next(reversed(path))
            below = next(path[name], None)
            if below is None:
                finished.add(name)
                del path[name]
            elif below in path:
                ring = list(path)
                return [*ring[ring.index(below) :], below]
            elif below not in finished:
                path[below] = iter(edges.get(below, ()))
    return None
