"""What the end of an attempt means for its call: elsewhere, or the end.

Pure; whoever runs the attempt says how it ended.  Reasons are read by their meaning in
``protocols.REASONS``, so a new reason needs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from spinal.protocols import Again, Problem, Ran

#: Seconds that an agent may be offline before a safe attempt moves: most cuts are shorter.
MOVE_AFTER = 1.0

#: Agents lost on one call that end it: the call may be what kills them.
MOST_LOST = 3


class Loss(Enum):
    """How an attempt was lost; each in words that follow the agent's address."""

    #: Its presence ended and did not come back.
    GONE = "went offline"
    #: It is back in a new life, which knows nothing of the old one.
    RESTARTED = "was restarted"
    #: It said nothing for the whole lease.
    SILENT = "was silent for too long"
    #: It is alive and does not have the attempt.
    FORGOTTEN = "does not know of it any more"


class Lesson(Enum):
    """What an answer teaches about the agent that gave it."""

    NOTHING = "nothing"
    #: It had no room.
    FULL = "full"
    #: It takes no new work.
    DRAINING = "draining"
    #: Nobody is there, or another life is.
    GONE = "gone"
    #: It cannot do this call.
    UNABLE = "unable"


#: Reason of a refusal -> what it teaches.  Refusals that may be tried elsewhere and are not listed
#: rule the agent out for this call only.
LESSONS: Mapping[str, Lesson] = {
    "busy": Lesson.FULL,
    "draining": Lesson.DRAINING,
    "unreachable": Lesson.GONE,
    "stale-epoch": Lesson.GONE,
    "unknown-op": Lesson.UNABLE,
    "not-understood": Lesson.UNABLE,
}


@dataclass(frozen=True, slots=True)
class History:
    """What a call has gone through."""

    #: It may run twice: the operation is safe, or the caller said so.
    may_rerun: bool
    #: Agents that were lost while they worked on it, the present one not counted.
    lost: tuple[str, ...] = ()
    #: Pieces of its stream that the caller has got.
    passed_on: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do next: end with the problem, or, if there is none, try elsewhere."""

    problem: Problem | None = None
    lesson: Lesson = Lesson.NOTHING


def answered(problem: Problem) -> Verdict:
    """Decide after an agent refused, or the stanza bounced: not counted, the deadline bounds it."""
    meaning = problem.meaning
    if meaning.ran is Ran.NO and meaning.again is Again.ELSEWHERE:
        return Verdict(None, LESSONS.get(problem.reason, Lesson.UNABLE))
    return Verdict(problem)


def ended(problem: Problem, may_rerun: bool) -> Verdict:
    """Decide after an operation ended with a problem: that is its result.

    Only of a refusal that came late, because the op had been accepted for the agent when it was
    refused, may a call that can run twice make a second try.  Others may not: the problem may be
    that of a call which the operation made itself, after it had done something.
    """
    verdict = answered(problem)
    if may_rerun and verdict.lesson in (Lesson.FULL, Lesson.DRAINING):
        return verdict
    return Verdict(problem)


def lost(loss: Loss, agent: str, history: History) -> Verdict:
    """Decide after an attempt was lost."""
    what = f"{agent} {loss.value}"
    agents = (*history.lost, agent)
    if not history.may_rerun:
        return Verdict(
            Problem(
                "lost", f"{what}; the operation is not safe to run twice, and may have been done"
            )
        )
    if history.passed_on:
        return Verdict(
            Problem("lost", f"{what} after {history.passed_on} pieces of its stream were passed on")
        )
    if len(agents) >= MOST_LOST:
        return Verdict(
            Problem("lost", f"{len(agents)} agents were lost on this call: {', '.join(agents)}")
        )
    return Verdict()


def patience(may_rerun: bool, remaining: float) -> float:
    """How many seconds an attempt waits for an agent that went offline.

    One that must not run twice waits as long as the caller does; the end of the agent's lease ends
    it before that.
    """
    return MOVE_AFTER if may_rerun else remaining


def forgotten_for(may_rerun: bool, lease: float) -> float:
    """How many seconds reports may leave an attempt out before it counts as lost."""
    return 0.0 if may_rerun else lease
