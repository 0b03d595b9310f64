"""Compares what was asked for, what Spinal said, and what really happened.

Pure: the harness must be able to fail, and ``test_judge.py`` shows with doctored ledgers that it
does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from spinal.dispatcher.retry import MOST_LOST

from .ledger import Line, What
from .model import Asked

#: Seconds after its deadline, and after the end of a fault, within which a job must have ended.
FINAL_WITHIN = 20.0
#: Seconds by which the clocks of two observers may differ in what they call the same moment.
BLUR = 0.25

_WHATS: tuple[What, ...] = get_args(What)
#: Name of a worker that stands for all.
EVERYBODY = "*"

#: Counts a fault of a kind, and says in words what it is.
_Note = Callable[[str, Asked, str], None]


@dataclass
class Told:
    """What Spinal said about one job that it accepted."""

    #: Every id that a submission with this key was answered with.
    ids: set[str] = field(default_factory=set[str])
    #: On the monotonic clock: when it was first asked for, when it was accepted, and when its
    #: caller learnt its end; none while there is none.
    asked: float = 0.0
    accepted: float = 0.0
    ended: float | None = None
    #: Its last known state, reason and value.
    state: str = ""
    reason: str | None = None
    value: object = None
    #: Whether the dispatcher knows its id, and what it says of its state after everything.
    known: bool = True
    later: str = ""


@dataclass
class Strike:
    """One time that a fault struck."""

    at: float
    #: When it was over: everything that was taken away is back.
    over: float = 0.0
    #: The worker that it struck, if it was one, or :data:`EVERYBODY`.
    worker: str = ""


@dataclass
class Verdict:
    """One row of the table, before the times."""

    accepted: int = 0
    done: int = 0
    error: int = 0
    killed: int = 0
    #: Accepted and unknown afterwards; or done, and nothing of it happened.
    lost: int = 0
    #: Not final in time.
    stuck: int = 0
    #: A second job of a key, or effects of an unsafe operation beyond what the model allows.
    doubled: int = 0
    #: Ended in another way than the model allows, or did not keep to what was asked.
    wrong: int = 0
    #: Most seconds from a strike to the next run of a safe job that a struck worker had.
    moved: float | None = None
    #: Most seconds from deadline or end of fault, whichever came later, to a job's end.
    late: float = 0.0
    #: Each of the above in words.
    findings: list[str] = field(default_factory=list[str])

    @property
    def faults(self) -> int:
        """What must be 0."""
        return self.lost + self.stuck + self.doubled + self.wrong


def judge(
    script: Sequence[Asked],
    told: Mapping[str, Told],
    ledger: Iterable[Line],
    strikes: Sequence[Strike] = (),
    *,
    losses: bool = False,
    stored: Mapping[str, Collection[str]] | None = None,
) -> Verdict:
    """Judge one run.

    Args:
        script: what was to be asked.
        told: what Spinal said, by our key; of those that were accepted.
        ledger: what happened.
        strikes: when the fault struck, and whom.
        losses: whether it takes workers away for so long that what they had may be lost.
        stored: ids of the jobs in the store by their key; as the dispatcher lists them.
    """
    found = Verdict()
    runs: dict[str, list[Line]] = defaultdict(list)
    for line in ledger:
        runs[line.key].append(line)

    def note(kind: str, asked: Asked, what: str) -> None:
        setattr(found, kind, getattr(found, kind) + 1)
        found.findings.append(f"{kind}: {asked.key} ({asked.kind.name}) {what}")

    for asked in script:
        answer = told.get(asked.key)
        lines = runs.get(asked.key, [])
        if answer is None:
            note("wrong", asked, "was never accepted")
            continue
        found.accepted += 1
        if (ids := answer.ids | set((stored or {}).get(asked.key, ()))) and len(ids) > 1:
            note("doubled", asked, f"has {len(ids)} jobs: {', '.join(sorted(ids))}")
        if not answer.known:
            note("lost", asked, f"is not known any more: {', '.join(sorted(answer.ids))}")
            continue
        if answer.ended is None:
            note("stuck", asked, f"is {answer.state or 'never heard of again'}")
        else:
            setattr(found, answer.state, getattr(found, answer.state) + 1)
            if answer.later and answer.later != answer.state:
                note("wrong", asked, f"was {answer.state} and is {answer.later} now")
            due = answer.accepted + asked.deadline
            late = answer.ended - max([due, *(s.over for s in strikes if s.at < answer.ended)])
            found.late = max(found.late, late)
            if late > FINAL_WITHIN:
                note("stuck", asked, f"ended {late:.1f} s after it had to")
        _effects(asked, answer, lines, strikes, losses, note)
    found.moved = _moved(script, runs, strikes)
    return found


def _effects(
    asked: Asked,
    answer: Told,
    lines: Sequence[Line],
    strikes: Sequence[Strike],
    losses: bool,
    note: _Note,
) -> None:
    """Hold what happened against what was said."""
    struck = {strike.worker for strike in strikes if strike.worker}
    of = {what: [line for line in lines if line.what == what] for what in _WHATS}
    tries = Counter((line.job, line.attempt) for line in of["begun"])
    if not asked.kind.safe:
        for (_, attempt), times in tries.items():
            if times > 1:
                note("doubled", asked, f"ran {times} times as attempt {attempt}")
        if len(tries) > asked.runs:
            note("doubled", asked, f"ran {len(tries)} times, not {asked.runs}")
    if any(line.at < answer.asked + asked.delay - BLUR for line in of["begun"]):
        note("wrong", asked, f"ran before its delay of {asked.delay} s was over")
    if answer.ended is None:
        return
    if asked.kind.safe:
        # Three agents that are lost on one job end it.
        hits = [strike for strike in strikes if answer.accepted <= strike.at <= answer.ended]
        lossy = losses and len(hits) >= MOST_LOST
    else:
        # It ran at a struck worker, or was on its way there.
        mine = [line for line in of["begun"] if line.worker in struck or EVERYBODY in struck]
        lossy = losses and (bool(mine) or len(tries) < asked.runs)
    if not asked.may_end(answer.state, answer.reason, lossy):
        why = f" ({answer.reason})" if answer.reason else ""
        note("wrong", asked, f"ended as {answer.state}{why}")
    if answer.state == "done":
        if not of["ended"]:
            note("lost", asked, "is done, and nothing of it happened")
        if answer.value != asked.key:
            note("wrong", asked, f"gave {answer.value!r}")
    if answer.state == "killed" or asked.kind.name == "too late":
        going = Counter(line.worker for line in of["begun"])
        going.subtract(line.worker for line in of["stopped"])
        for worker, left in going.items():
            if left > 0 and worker not in struck and EVERYBODY not in struck:
                note("wrong", asked, f"goes on at {worker} although it was ended")


def _moved(
    script: Sequence[Asked], runs: Mapping[str, Sequence[Line]], strikes: Sequence[Strike]
) -> float | None:
    """Give the longest time after which a safe job of a struck worker ran elsewhere."""
    times: list[float] = []
    for asked in script:
        if not asked.kind.safe:
            continue
        lines = runs.get(asked.key, ())
        for strike in strikes:
            had = {
                (line.job, line.attempt)
                for line in lines
                if line.worker == strike.worker and line.what == "begun" and line.at < strike.at
            } - {
                (line.job, line.attempt)
                for line in lines
                if line.what != "begun" and line.at < strike.at
            }
            again = [
                line.at - strike.at
                for line in lines
                if had and line.what == "begun" and line.at > strike.at
            ]
            if again:
                times.append(min(again))
    return max(times, default=None)
