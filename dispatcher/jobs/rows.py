"""A job as its caller sees it: one JSON object, without members that would say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

from spinal.protocols import Json

from .job import Job, JobState, Try

_EPOCH: Final = datetime(1970, 1, 1)  # In UTC, without saying so.


def stamp(ms: int) -> str:
    """Give milliseconds since 1970 as text: ``2026-11-21T05:00:00.000Z``."""
    second, rest = divmod(ms, 1000)
    return f"{_second(second)}.{rest:03}Z"


@lru_cache(1024)
def _second(second: int) -> str:
    # Jobs of one moment have their times in common.
    return (_EPOCH + timedelta(seconds=second)).isoformat()


def row(
    job: Job,
    *,
    whole: bool,
    progress: Mapping[str, Json] | None = None,
    children: Mapping[JobState, int] | None = None,
    offered: bool | None = None,
) -> dict[str, Json]:
    """Give a job as JSON: times in UTC, durations in seconds, sizes in bytes.

    Args:
        job: the job.
        whole: with its arguments, value and attempts, as far as it has any.
        progress: how far it is; said of a live job only.
        children: how many children it has in which state.
        offered: whether anybody is known that offers its operation; False is said of a live job.
    """
    live = not job.final
    waits = job.state is JobState.WAITING
    due = max(job.due, job.at)
    out: dict[str, Any] = {
        "id": job.id,
        "op": job.op,
        "caller": job.caller,
        "state": job.state.value,
        "priority": job.priority,
        "key": job.key,
        "labels": list(job.labels) or None,
        "created": stamp(job.created),
        "due": stamp(due) if waits and due else None,
        "held": True if waits and job.held else None,
        "after": list(job.after) or None,
        "when": job.when if job.after else None,
        "ends": _stamp(job.ends),
        "started": _stamp(job.started),
        "ended": _stamp(job.ended),
        "agent": job.agent,
        "attempt": job.attempt or None,
        "problem": None if job.problem is None else job.problem.to_json(),
        "progress": dict(progress) if progress and live else None,
        "wait": None if job.started is None else max(job.started - job.created, 0) / 1000,
        "run": _seconds(job.ran),
        "cpu": _seconds(job.cpu),
        "memory": job.memory,
        "cost": job.cost,
        "parent": job.parent,
        "position": job.position,
        "kind": job.kind or None,
        "origin": job.origin,
        "children": {state.value: count for state, count in children.items() if count}
        if children is not None
        else None,
        "looked": True if job.looked else None,
        "offered": False if offered is False and live else None,
    }
    if whole:
        out["args"] = dict(job.args) or None
        out["value"] = job.value
        out["attempts"] = [_attempt(attempt) for attempt in job.tries] or None
    return {name: item for name, item in out.items() if item is not None}


def end_row(job: Job) -> dict[str, Json]:
    """Give what the caller of a map has to know of an input that has ended."""
    out: dict[str, Any] = {
        "id": job.id,
        "position": job.position,
        "state": job.state.value,
        "agent": job.agent,
        "run": _seconds(job.ran),
        "problem": None if job.problem is None else job.problem.to_json(),
        "value": job.value,
    }
    return {name: item for name, item in out.items() if item is not None}


def _attempt(attempt: Try) -> dict[str, Json]:
    out: dict[str, Any] = {
        "number": attempt.number,
        "agent": attempt.agent,
        "epoch": attempt.epoch,
        "began": stamp(attempt.began),
        "ended": _stamp(attempt.ended),
        "end": attempt.end or None,
        "text": attempt.text or None,
        "uncounted": True if attempt.uncounted else None,
    }
    return {name: item for name, item in out.items() if item is not None}


def _stamp(ms: int | None) -> str | None:
    return None if ms is None else stamp(ms)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000
