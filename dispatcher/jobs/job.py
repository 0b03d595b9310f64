"""What a job is, and the table of its life.

A job is a call that was accepted, stored, and will be seen through.  Its state moves only along
:data:`TRANSITIONS`; a final state is final, and what is tried again is a new job that names the old
one.  Times are milliseconds since 1970 UTC, so that they mean the same in every dispatcher and after
a restart; durations are seconds.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from spinal.protocols import Json, LocalProtocolError, Problem

#: Seconds that a job may take once it could run, if nobody says otherwise.
DEADLINE: Final = 3600.0

#: Most tries that a job keeps; of more, the oldest that were only sent back are forgotten.
MAX_TRIES: Final = 20


class JobState(Enum):
    """Where a job is."""

    #: For a time, or for other jobs.
    WAITING = "waiting"
    #: For an agent.
    QUEUED = "queued"
    #: An agent has it; or, for a parent, its children are under way.
    PROCESSING = "processing"
    #: Its agent is silent, and the lease is not over.
    STALLED = "stalled"
    DONE = "done"
    ERROR = "error"
    KILLED = "killed"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self in FINAL


FINAL: Final = frozenset({JobState.DONE, JobState.ERROR, JobState.KILLED})
LIVE: Final = frozenset(JobState) - FINAL


class Happening(Enum):
    """What moves a job."""

    #: Its time has come, and the jobs before it have ended as it asked.
    DUE = "due"
    #: An attempt is on disk and goes to an agent; or a parent got its children.
    BEGUN = "begun"
    #: Its agent fell silent, or was heard again.
    SILENT = "silent"
    HEARD = "heard"
    #: The attempt ended without a result, and another one may begin at once.
    RETURNED = "returned"
    #: The attempt failed, and another one may begin after a pause.
    DEFERRED = "deferred"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S, _H = JobState, Happening
_ENDS = {_H.FAILED: _S.ERROR, _H.CANCELLED: _S.KILLED}
_ATTEMPT = {
    _H.RETURNED: _S.QUEUED,
    _H.DEFERRED: _S.WAITING,
    _H.DONE: _S.DONE,
    **_ENDS,
}

#: State -> what happens -> next state.  A new job is ``waiting`` or ``queued``.
TRANSITIONS: Final[Mapping[JobState, Mapping[Happening, JobState]]] = {
    _S.WAITING: {_H.DUE: _S.QUEUED, _H.BEGUN: _S.PROCESSING, **_ENDS},
    # A final may come for an attempt that was given up, before another one began.
    _S.QUEUED: {_H.BEGUN: _S.PROCESSING, _H.DEFERRED: _S.WAITING, _H.DONE: _S.DONE, **_ENDS},
    _S.PROCESSING: {_H.SILENT: _S.STALLED, **_ATTEMPT},
    _S.STALLED: {_H.HEARD: _S.PROCESSING, **_ATTEMPT},
    _S.DONE: {},
    _S.ERROR: {},
    _S.KILLED: {},
}


class JobMoved(LocalProtocolError):
    """The table has no such row: the job is in another state than the mover believes."""


@dataclass(slots=True, kw_only=True)
class Try:
    """One attempt, as the job remembers it."""

    number: int
    agent: str
    epoch: int
    began: int
    ended: int | None = None
    #: ``done``, the reason of the problem, or ``lost``; empty while it runs.
    end: str = ""
    text: str = ""
    #: It does not count against the retries: it was sent back, or lost and moved.
    uncounted: bool = False
    #: It may run twice: the operation is safe, or the caller said so.
    may_rerun: bool = False
    #: Why this agent: reasons in words, up to five runners-up, and how many were passed over by
    #: which rule.
    chosen: Sequence[str] = ()
    runners: Sequence[Mapping[str, Any]] = ()
    passed: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One job.  The first half is what was asked and never changes, the second what became of it."""

    id: str
    #: Bare address of whoever submitted it.
    caller: str
    op: str
    created: int
    args: Mapping[str, Json] = field(default_factory=dict[str, Json])
    #: What is asked of the agent: ``policy``, ``place``, ``tags``, ``sticky``, ``rerun``, ``to``;
    #: and ``avoid``, agents that must not have it.
    want: Mapping[str, Json] = field(default_factory=dict[str, Json])
    key: str | None = None
    labels: Sequence[str] = ()
    priority: int = 0
    #: Jobs that come before it, and what of them is asked: ``done``, ``any`` or ``ended``.
    after: Sequence[str] = ()
    when: str = "done"
    #: Seconds that it may take once it could run, and that one attempt may run.
    allowed: float = DEADLINE
    max_run: float | None = None
    #: The retry policy as it was asked for (``retries.RetryPolicy``), or nothing.
    retry: Mapping[str, Json] | None = None
    #: Operations that are told with a job of their own when it ends.
    on_done: str | None = None
    on_error: str | None = None
    #: ``map``, ``all`` or ``any-first`` for a parent, else empty.
    kind: str = ""
    parent: str | None = None
    position: int | None = None
    #: Where it comes from, if not from its caller directly: ``retry:ID``, ``schedule:ID``,
    #: ``callback:ID``, ``service:NAME``.
    origin: str | None = None
    trace: str | None = None

    state: JobState = JobState.QUEUED
    #: Number of the dispatcher's life that sees it through; none while it waits on disk alone.
    owner: int | None = None
    #: Earliest time by our steady clock, and by the clock on the wall (``at``).
    due: int = 0
    at: int = 0
    #: It waits for other jobs.
    held: bool = False
    #: When it could run first, and when it will be given up.
    runnable: int | None = None
    ends: int | None = None
    attempt: int = 0
    tries: list[Try] = field(default_factory=list[Try])
    #: Tries that count against its retries.
    failures: int = 0
    started: int | None = None
    ended: int | None = None
    agent: str | None = None
    value: Json = None
    problem: Problem | None = None
    #: Sums over all tries, where agents told: milliseconds, milliseconds of CPU; the highest peak
    #: in bytes; money in the home's currency.
    ran: int | None = None
    cpu: int | None = None
    memory: int | None = None
    cost: float | None = None
    #: A parent that gets no more children.
    closed: bool = True
    #: Somebody has looked at its error: it has left the dead list.
    looked: bool = False

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL

    def move(self, happening: Happening) -> None:
        """Move along the table.

        Raises:
            JobMoved: there is no such row; nothing moved.
        """
        after = TRANSITIONS[self.state].get(happening)
        if after is None:
            raise JobMoved(f"job {self.id} is {self.state.value} and cannot be {happening.value}")
        self.state = after

    @property
    def current(self) -> Try | None:
        """The try that is under way."""
        if self.tries and self.tries[-1].ended is None:
            return self.tries[-1]
        return None


_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
#: Two characters at a time.
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]
#: Bits of chance in an id.
_CHANCE: Final = 50


def mint(now: int | None = None) -> str:
    """Give an id that nobody else has: 10 characters of time, then 10 of chance.

    Ids sort by the time of their making, so a table that is ordered by them grows at its end.
    """
    return mint_many(time.time_ns() // 1_000_000 if now is None else now, 1)[0]


def mint_many(now: int, count: int) -> list[str]:
    """Give so many ids in strictly increasing order: they have the time and one draw in common."""
    first = now << _CHANCE | secrets.randbelow((1 << _CHANCE) - count)
    return [_written(number) for number in range(first, first + count)]


def _written(number: int) -> str:
    low = number & 0xFFFFFFFFFF
    high = number >> 40
    mid = high & 0xFFFFFFFFFF
    top = high >> 40
    return (
        _PAIRS[top >> 10]
        + _PAIRS[top & 1023]
        + _PAIRS[mid >> 30]
        + _PAIRS[mid >> 20 & 1023]
        + _PAIRS[mid >> 10 & 1023]
        + _PAIRS[mid & 1023]
        + _PAIRS[low >> 30]
        + _PAIRS[low >> 20 & 1023]
        + _PAIRS[low >> 10 & 1023]
        + _PAIRS[low & 1023]
    )
