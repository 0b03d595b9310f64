"""A job as a row, and a row as a job.

Members that still have their default are not written.  A row holds only what drivers take as it is,
because it goes to them without a detour; the order is that of the columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from typing import Any, Final, cast

from spinal.bus.jsontext import dumps, loads
from spinal.protocols import Json, LocalProtocolError, Problem
from spinal.protocols.blob import MARK, is_reference

from ..jobs.job import Job, JobState, Try
from .contract import LogLine, Record, Retention, Schedule
from .tables import OF_KIND, jobs

#: A row as a driver takes it.
Row = tuple[Any, ...]


class _Members:
    """Members of a dataclass that go into one JSON object, unless nothing was put in for them."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._names = tuple(defaults)
        self._defaults = tuple(defaults.values())
        self._get = attrgetter(*self._names)

    def of(self, one: Job | Try) -> dict[str, Json]:
        """Take them down."""
        values = self._get(one)
        if values == self._defaults:
            return {}
        found = zip(self._names, values, self._defaults, strict=False)
        return {name: value for name, value, default in found if value is not default}


def _defaults(kind: type[Job | Try]) -> dict[str, Any]:
    """Give the members of a dataclass with their defaults; one without has one that nothing is."""
    found: dict[str, Any] = {}
    for one in fields(kind):
        if one.default_factory is not MISSING:
            found[one.name] = one.default_factory()
        else:
            found[one.name] = one.default
    return found


_DEFAULTS: Final = _defaults(Job)
_ASKED_NAMES: Final = [
    "want",
    "labels",
    "after",
    "when",
    "allowed",
    "max_run",
    "retry",
    "on_done",
    "on_error",
    "origin",
    "trace",
]
_ASKED: Final = _Members({name: _DEFAULTS[name] for name in _ASKED_NAMES})
#: The rest that has no column, but for two that are objects of their own.
_FATE: Final = _Members(
    {
        name: default
        for name, default in _DEFAULTS.items()
        if name not in (*jobs.columns.keys(), *_ASKED_NAMES, "tries", "problem")
    }
)
_TRY: Final = _Members({one.name: MISSING for one in fields(Try)} | _defaults(Try))

#: What a row of a save has: columns that it writes, what is ``added`` to the weight for the size,
#: and the id of the job.
SAVED_ROW: Final = [
    "state",
    "owner",
    "due",
    "at",
    "ready",
    "held",
    "ends",
    "ended",
    "expires",
    "looked",
    "added",
    "fate",
    "value",
    "job",
]
#: Columns of a listed job, and of a whole one.
LISTED: Final = [
    "id",
    "caller",
    "op",
    "kind",
    "created",
    "key",
    "parent",
    "position",
    "priority",
    "state",
    "owner",
    "due",
    "at",
    "held",
    "ends",
    "ended",
    "looked",
    "asked",
    "fate",
]
WHOLE: Final = [*LISTED, "args", "value"]

_MARK: Final = f'"{MARK}"'.encode()


# None of these is frozen: some are made for every write, and would take three times as long.


@dataclass(slots=True)
class Standing:
    """Where a job stands, as far as it decides what may be done with it."""

    state: str
    owner: int | None
    ended: int | None
    looked: bool = False


@dataclass(slots=True)
class Fresh:
    """A new job, ready to be inserted."""

    id: str
    caller: str
    key: str | None
    op: str
    #: Its first attempt begins with it, and heeds the limits of its operation.
    begins: bool
    #: Limits count it.  A parent only waits for its children, which take the room.
    counted: bool
    standing: Standing
    row: Row
    labels: Sequence[tuple[str, str]]
    edges: Sequence[tuple[str, str]]
    size: int


@dataclass(slots=True)
class Saved:
    """What became of a job, ready to be saved."""

    id: str
    op: str
    #: It heeds the limits of its operation.
    begins: bool
    #: Limits count it.  A parent only waits for its children, which take the room.
    counted: bool
    standing: Standing
    row: Row
    size: int


@dataclass(slots=True)
class Tended:
    """A record, ready to be kept in place of its last version."""

    id: str
    #: The one that it takes the place of; 0 for none.
    version: int
    #: None if it is to be dropped.
    text: str | None


def fresh(job: Job, begins: bool, retention: Retention) -> Fresh:
    """Take down a new job.

    Raises:
        LocalProtocolError: it cannot be kept.
    """
    asked, args = _text(job, _ASKED.of(job)), _text(job, job.args)
    standing, moving, fate, value, size = _fate(job, retention)
    weight = len(asked) + len(args)
    row = (
        job.id,
        job.caller,
        job.op,
        job.kind,
        job.created,
        job.key,
        job.parent,
        job.position,
        job.priority,
        weight,
        *moving,
        weight + size,
        asked.decode(),
        fate,
        args.decode(),
        value,
    )
    return Fresh(
        job.id,
        job.caller,
        job.key,
        job.op,
        begins,
        not job.kind,
        standing,
        row,
        [(job.id, label) for label in dict.fromkeys(job.labels)],
        [(job.id, before) for before in dict.fromkeys(job.after)],
        weight + size,
    )


def saved(job: Job, begins: bool, retention: Retention) -> Saved:
    """Take down what became of a job.

    Raises:
        LocalProtocolError: it cannot be kept.
    """
    standing, moving, fate, value, size = _fate(job, retention)
    row = (*moving, size, fate, value, job.id)
    return Saved(job.id, job.op, begins, not job.kind, standing, row, size)


def _fate(job: Job, retention: Retention) -> tuple[Standing, Row, str, str | None, int]:
    """Give what became of a job, and the columns from ``state`` to ``looked``, which move with it."""
    if job.final is not (job.ended is not None):
        raise LocalProtocolError(
            f"job {job.id} is {job.state.value} and has {'no' if job.final else 'a'} time of its end"
        )
    members = _FATE.of(job)
    if job.tries:
        members["tries"] = [_TRY.of(one) for one in job.tries]
    if job.problem is not None:
        members["problem"] = job.problem.to_json()
    fate = _text(job, members)
    value = None if job.value is None else _text(job, job.value)
    expires = None
    if value is not None and job.ended is not None and _MARK in value and _has_blob(job.value):
        expires = job.ended + int(retention.blobs * 1000)
    standing = Standing(job.state.value, job.owner, job.ended, job.looked)
    moving = (
        standing.state,
        job.owner,
        job.due,
        job.at,
        max(job.due, job.at),
        job.held,
        job.ends,
        job.ended,
        expires,
        job.looked,
    )
    size = len(fate) + (0 if value is None else len(value))
    return standing, moving, fate.decode(), None if value is None else value.decode(), size


def _text(job: Job, value: Json | Mapping[str, Json]) -> bytes:
    if not value and type(value) is dict:
        return b"{}"
    try:
        return dumps(value)
    # The libraries differ: ValueError and TypeError mean the same here.
    except (ValueError, TypeError) as exc:
        raise LocalProtocolError(f"job {job.id} is not JSON: {exc}", "bad-arguments") from exc


def _has_blob(value: Json) -> bool:
    level: list[Json] = [value]
    while level:
        one = level.pop()
        if is_reference(one):
            return True
        if isinstance(one, dict):
            level.extend(cast(dict[str, Json], one).values())
        elif isinstance(one, list | tuple):
            level.extend(cast(Sequence[Json], one))
    return False


def _read(text: str) -> Any:
    return loads(text.encode())


def job(row: Sequence[Any]) -> Job:
    """Read a row of the columns :data:`LISTED` or :data:`WHOLE`."""
    members: dict[str, Any] = dict(zip(WHOLE, row, strict=False))
    members["state"] = JobState(members["state"])
    members["held"], members["looked"] = bool(members["held"]), bool(members["looked"])
    members.update(_read(members.pop("asked")))
    members.update(_read(members.pop("fate")))
    for name in ("labels", "after"):
        if name in members:
            members[name] = tuple(members[name])
    if "tries" in members:
        members["tries"] = [Try(**one) for one in members["tries"]]
    if "problem" in members:
        members["problem"] = Problem(**members["problem"])
    if "args" in members:
        members["args"] = _read(members["args"])
        members["value"] = None if members["value"] is None else _read(members["value"])
    return Job(**members)


def roles_row(dispatcher: str, roles: Mapping[str, str]) -> dict[str, Any]:
    """Take down the roles of the accounts of a dispatcher's home."""
    return {"dispatcher": dispatcher, "roles": dumps(dict(roles)).decode()}


def roles(text: str) -> dict[str, str]:
    """Read such roles."""
    found: dict[str, str] = _read(text)
    return found


def schedule_row(schedule: Schedule) -> dict[str, Any]:
    """Take down a schedule."""
    return {
        "id": schedule.id,
        "caller": schedule.caller,
        "cron": schedule.cron,
        "zone": schedule.zone,
        "submission": dumps(dict(schedule.submission)).decode(),
        "created": schedule.created,
        "next": schedule.next,
    }


def schedule(row: Any) -> Schedule:
    """Read a schedule."""
    return Schedule(
        id=row.id,
        caller=row.caller,
        cron=row.cron,
        zone=row.zone,
        submission=_read(row.submission),
        created=row.created,
        next=row.next,
    )


def tended(one: Record, drop: bool) -> Tended:
    """Take down a record.

    Raises:
        LocalProtocolError: it cannot be kept.
    """
    id = f"{one.kind}{OF_KIND}{one.name}"
    if drop:
        return Tended(id, one.version, None)
    try:
        return Tended(id, one.version, dumps(one.body).decode())
    # The libraries differ: ValueError and TypeError mean the same here.
    except (ValueError, TypeError) as exc:
        raise LocalProtocolError(f"{one.name} is not JSON: {exc}", "bad-arguments") from exc


def record(row: Any) -> Record:
    """Read a record."""
    kind, _, name = row.id.partition(OF_KIND)
    return Record(kind, name, row.version, _read(row.body))


def line(row: Any) -> LogLine:
    """Read a line of a log."""
    return LogLine(row.seq, row.at, row.level, row.text)
