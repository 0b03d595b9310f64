"""What a transaction is going to do, decided before it writes anything.

:func:`decide` is handed writes in their order and what the database has (locked until the commit),
and says what to insert, save and delete, and what each write is told.  A write happens whole or not
at all, and sees the ones before it as if they had been committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from ..jobs.job import JobState
from .contract import (
    FENCED,
    SAVED,
    Fire,
    Forget,
    Line,
    Look,
    Result,
    Retention,
    Wait,
)
from .records import Fresh, Row, Saved, Standing, Tended

#: A change that was taken down.
Prepared = Fresh | Saved | Line | Forget | Look | Fire | Tended

#: What a limit counts.
_RUNNING: Final = frozenset({JobState.PROCESSING.value, JobState.STALLED.value})


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limit, with what of it is used."""

    rate: float | None
    per: float
    concurrent: int | None
    #: How many may begin at once, by the rate.
    tokens: float
    #: How many are processing.
    running: int

    def filled(self, seconds: float) -> Bucket:
        """Give the bucket after so long: never fuller than what may begin in ``per`` seconds."""
        if self.rate is None:
            return self
        most = max(1.0, self.rate)
        # A clock that was set back must not take away what is there.
        gained = max(0.0, seconds) * self.rate / self.per
        return replace(self, tokens=min(most, self.tokens + gained))

    def begin(self) -> Bucket | Wait:
        """Take what a beginning job takes."""
        if self.concurrent is not None and self.running >= self.concurrent:
            return Wait(0.0)
        if self.rate is not None and self.tokens < 1.0:
            if self.rate <= 0:
                return Wait(0.0)
            return Wait((1.0 - self.tokens) * self.per / self.rate)
        spent = 0.0 if self.rate is None else 1.0
        return replace(self, tokens=self.tokens - spent, running=self.running + 1)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a log."""

    lines: int = 0
    size: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Seen:
    """What the database has of what the writes are about; :func:`decide` moves it on."""

    jobs: dict[str, Standing] = field(default_factory=dict[str, Standing])
    #: Jobs by caller and key.
    keys: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    logs: dict[str, Kept] = field(default_factory=dict[str, Kept])
    #: Next times of schedules.
    schedules: dict[str, int] = field(default_factory=dict[str, int])
    #: Versions of records.
    versions: dict[str, int] = field(default_factory=dict[str, int])
    #: By operation; one without a limit is not in it.
    limits: dict[str, Bucket] = field(default_factory=dict[str, Bucket])


@dataclass(slots=True)
class Plan:
    """Rows for each statement, in the order in which the statements are to run."""

    inserts: list[Row] = field(default_factory=list[Row])
    labels: list[Row] = field(default_factory=list[Row])
    edges: list[Row] = field(default_factory=list[Row])
    saves: list[Row] = field(default_factory=list[Row])
    looks: list[Row] = field(default_factory=list[Row])
    lines: list[Row] = field(default_factory=list[Row])
    logs: dict[str, Kept] = field(default_factory=dict[str, Kept])
    limits: dict[str, Bucket] = field(default_factory=dict[str, Bucket])
    fires: list[Row] = field(default_factory=list[Row])
    forgets: list[Row] = field(default_factory=list[Row])
    founded: list[Row] = field(default_factory=list[Row])
    tended: list[Row] = field(default_factory=list[Row])
    dropped: list[Row] = field(default_factory=list[Row])
    #: One list for each write.
    results: list[Sequence[Result]] = field(default_factory=list[Sequence[Result]])


def decide(
    writes: Sequence[Sequence[Prepared]], seen: Seen, life: int, retention: Retention
) -> Plan:
    """Decide what happens."""
    plan = Plan()
    for write in writes:
        verdict = _allowed(write, seen, life)
        if verdict is not None:
            plan.results.append([verdict] * len(write))
        else:
            plan.results.append([_apply(one, seen, plan, retention) for one in write])
    return plan


def _allowed(write: Sequence[Prepared], seen: Seen, life: int) -> Result | None:
    """Say why a write must not happen, or nothing."""
    if len(write) == 1 and not isinstance(write[0], Fresh | Saved | Fire | Tended):
        return None
    jobs: dict[str, Standing] = {}
    limits: dict[str, Bucket] = {}
    wait: Wait | None = None
    for one in write:
        if isinstance(one, Fresh):
            if one.id not in seen.jobs and (
                one.key is None or (one.caller, one.key) not in seen.keys
            ):
                jobs[one.id] = one.standing
                wait = _take(None, one, limits, seen) or wait
        elif isinstance(one, Saved):
            before = jobs.get(one.id) or seen.jobs.get(one.id)
            if before is None or not _ours(before, one, life):
                return FENCED
            jobs[one.id] = one.standing
            wait = _take(before, one, limits, seen) or wait
        elif (isinstance(one, Fire) and seen.schedules.get(one.id) != one.due) or (
            isinstance(one, Tended) and seen.versions.get(one.id, 0) != one.version
        ):
            return FENCED
    return wait


def _take(
    before: Standing | None, one: Fresh | Saved, limits: dict[str, Bucket], seen: Seen
) -> Wait | None:
    """Take what a change needs of a limit, if there is so much; else say to wait."""
    bucket = limits.get(one.op) or seen.limits.get(one.op)
    if bucket is None:
        return None
    after = _use(bucket, before, one)
    if isinstance(after, Wait):
        return after
    limits[one.op] = after
    return None


def _use(bucket: Bucket, before: Standing | None, one: Fresh | Saved) -> Bucket | Wait:
    """Give what a change leaves of a limit."""
    was = before is not None and before.state in _RUNNING
    is_ = one.standing.state in _RUNNING
    if not one.counted or was is is_:
        return bucket
    if one.begins:
        return bucket.begin()
    return replace(bucket, running=bucket.running + (1 if is_ else -1))


def _ours(before: Standing, one: Saved, life: int) -> bool:
    """Tell whether we may save a job."""
    if before.ended is not None:
        # Who is not told of his commit, because a connection broke, saves again.
        return (before.state, before.ended) == (one.standing.state, one.standing.ended)
    return before.owner == life


def _apply(one: Prepared, seen: Seen, plan: Plan, retention: Retention) -> Result:
    match one:
        case Fresh():
            return _insert(one, seen, plan)
        case Saved():
            return _save(one, seen, plan)
        case Line():
            return _keep(one, seen, plan, retention)
        case Look():
            before = seen.jobs.get(one.id)
            if before is None or before.state != JobState.ERROR.value or before.looked:
                return False
            seen.jobs[one.id] = replace(before, looked=True)
            plan.looks.append((one.id,))
            return True
        case Forget():
            before = seen.jobs.get(one.id)
            if before is None or before.ended is None:
                return False
            del seen.jobs[one.id]
            plan.forgets.append((one.id,))
            return True
        case Fire():
            seen.schedules[one.id] = one.next
            plan.fires.append((one.next, one.id))
            return True
        case Tended():
            if one.text is None:
                seen.versions.pop(one.id, None)
                plan.dropped.append((one.id,))
            else:
                seen.versions[one.id] = after = one.version + 1
                if one.version:
                    plan.tended.append((after, one.text, one.id))
                else:
                    plan.founded.append((one.id, after, one.text))
            return True


def _insert(one: Fresh, seen: Seen, plan: Plan) -> str:
    if one.id in seen.jobs:
        return one.id
    if one.key is not None:
        there = seen.keys.setdefault((one.caller, one.key), one.id)
        if there != one.id:
            return there
    seen.jobs[one.id] = one.standing
    plan.inserts.append(one.row)
    plan.labels.extend(one.labels)
    plan.edges.extend(one.edges)
    _spend(None, one, seen, plan)
    return one.id


def _save(one: Saved, seen: Seen, plan: Plan) -> bool:
    before = seen.jobs[one.id]
    if before.ended is not None:
        return SAVED
    seen.jobs[one.id] = one.standing
    plan.saves.append(one.row)
    _spend(before, one, seen, plan)
    return SAVED


def _spend(before: Standing | None, one: Fresh | Saved, seen: Seen, plan: Plan) -> None:
    bucket = seen.limits.get(one.op)
    if bucket is not None:
        after = _use(bucket, before, one)
        assert isinstance(after, Bucket), "a write that must wait is not applied"
        if after.tokens != bucket.tokens:
            plan.limits[one.op] = after
        seen.limits[one.op] = after


def _keep(one: Line, seen: Seen, plan: Plan, retention: Retention) -> int:
    if one.job not in seen.jobs:
        return 0
    kept = seen.logs.get(one.job, Kept())
    size = kept.size + len(one.text.encode("utf-8", "replace"))
    fits = not kept.dropped and kept.lines < retention.lines and size <= retention.log_size
    if fits:
        plan.lines.append((one.job, kept.lines + 1, one.at, one.level, one.text))
        kept = Kept(kept.lines + 1, size)
    else:
        kept = replace(kept, dropped=kept.dropped + 1)
    seen.logs[one.job] = plan.logs[one.job] = kept
    return kept.lines if fits else 0


def weigh(one: Prepared) -> int:
    """Give about how many bytes a change holds while it waits."""
    if isinstance(one, Fresh | Saved):
        return one.size
    if isinstance(one, Tended):
        return len(one.text or "")
    return len(one.text) if isinstance(one, Line) else 0
