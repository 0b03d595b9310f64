"""What a caller may submit: the arguments of ``/spinal/jobs/submit``, read into a job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from spinal.bus.errors import CallError
from spinal.protocols import POLICIES, Json, Problem, ProtocolError, RemoteProtocolError, readers
from spinal.protocols.address import bare, check, resource
from spinal.protocols.duration import MAX_SECONDS
from spinal.protocols.readers import Reader
from spinal.protocols.retry import RetryPolicy

from .dependencies import WHEN, cycle
from .job import DEADLINE, Job, JobState, mint, mint_many

#: Most jobs in one batch, jobs that one comes after, labels, and longest texts in characters.
MAX_BATCH: Final = 1000
MAX_AFTER: Final = 1000
MAX_LABELS: Final = 16
MAX_LABEL: Final = 128
MAX_KEY: Final = 256
#: And the longest one of a map, to which the children add their positions.
MAX_MAP_KEY: Final = 240

#: Shortest deadline and run time in seconds.
MIN_SECONDS: Final = 0.1

#: Lowest and highest priority; 0 is usual, and the highest goes first.
PRIORITIES: Final = (-9, 9)

_ID: Final = re.compile("[0-9a-hjkmnp-tv-z]{20}")
#: Control characters, and what cannot be written in UTF-8; a database may refuse both.
_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


# -- readers


def _wrong(name: str, wanted: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"'{name}' must be {wanted}", "bad-arguments", name)


def is_id(text: str) -> bool:
    """Tell whether a text has the form of a job's id."""
    return _ID.fullmatch(text) is not None


def _id(raw: Json, name: str) -> str:
    if not isinstance(raw, str) or not is_id(raw):
        raise _wrong(name, "the id of a job")
    return raw


def _before(raw: Json, name: str) -> str:
    if not isinstance(raw, str):
        raise _wrong(name, "ids of jobs")
    if not is_id(raw):
        shown = raw if len(raw) <= 60 else raw[:57] + "..."
        raise _wrong(name, f"ids of jobs, or names from the same list; '{shown}' is neither")
    return raw


def _line(longest: int) -> Reader:
    """Read 1 to so many characters that fit on one line."""

    def read(raw: Json, name: str) -> str:
        if not isinstance(raw, str) or not 0 < len(raw) <= longest or _UNFIT.search(raw):
            raise _wrong(name, f"1 to {longest} characters, none of them a control character")
        return raw

    return read


def _label(raw: Json, name: str) -> str:
    if not isinstance(raw, str) or not 0 < len(raw) <= MAX_LABEL or _UNFIT.search(raw):
        raise _wrong(name, f"labels of 1 to {MAX_LABEL} characters without control characters")
    if "*" in raw:
        raise _wrong(name, "labels without '*', which stands for any ending in a search")
    return raw


def _seconds(low: float) -> Reader:
    def read(raw: Json, name: str) -> float:
        if type(raw) not in (int, float) or not low <= raw <= MAX_SECONDS:
            raise _wrong(name, f"seconds from {low:g} to {MAX_SECONDS:.0f} (366 days)")
        return float(raw)

    return read


def _at(raw: Json, name: str) -> int:
    """Read a time with its zone; gives milliseconds since 1970."""
    wanted = "a time with its zone, such as 2026-11-21T05:00:00Z"
    if not isinstance(raw, str) or not _TIME.fullmatch(raw):
        raise _wrong(name, wanted)
    try:
        return (datetime.fromisoformat(raw.upper()) - _EPOCH) // _MS
    except ValueError as exc:
        raise _wrong(name, wanted) from exc


def _full_address(raw: Json, name: str) -> str:
    wanted = "the full address of an agent, user@domain/resource"
    if not isinstance(raw, str):
        raise _wrong(name, wanted)
    try:
        check(raw)
    except ProtocolError as exc:
        raise _wrong(name, wanted) from exc
    if not resource(raw):
        raise _wrong(name, wanted)
    return raw


def _kind(raw: Json, name: str) -> str:
    if raw not in ("", "map"):
        raise _wrong(name, "'map', or left out")
    return str(raw)


def _unique(read: Reader) -> Reader:
    """Leave out what stands in a list a second time."""

    def read_unique(raw: Json, name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(read(raw, name)))

    return read_unique


#: What is asked of the agent -> reader, and what stands for nothing being asked.
_WANT: Final[Mapping[str, tuple[Reader, Json]]] = {
    "policy": (readers.one_of(*POLICIES), "least-loaded"),
    "place": (readers.places, {}),
    "tags": (readers.list_of(readers.text(64), 64), ()),
    "sticky": (readers.text(256), ""),
    "rerun": (readers.flag, False),
    "to": (_full_address, ""),
}

#: Argument -> reader.  What is not listed is ignored.
_READS: Final[Mapping[str, Reader]] = {
    "op": readers.operation,
    "args": readers.mapping,
    "key": _line(MAX_KEY),
    "labels": _unique(readers.list_of(_label, MAX_LABELS)),
    "priority": readers.integer(*PRIORITIES),
    "delay": _seconds(0),
    "at": _at,
    "after": _unique(readers.list_of(_before, MAX_AFTER)),
    "when": readers.one_of(*WHEN),
    "deadline": _seconds(MIN_SECONDS),
    "max_run": _seconds(MIN_SECONDS),
    "retry": RetryPolicy.normal,
    "on_done": readers.operation,
    "on_error": readers.operation,
    "kind": _kind,
    "parent": _id,
    "position": readers.integer(),
    "trace": _line(128),
    **{name: read for name, (read, _) in _WANT.items()},
}

#: Arguments that a job has under the same name.
_SAME: Final = (
    "op",
    "args",
    "key",
    "labels",
    "priority",
    "after",
    "when",
    "max_run",
    "retry",
    "on_done",
    "on_error",
    "kind",
    "parent",
    "position",
    "trace",
)


# -- one


def read(
    args: Mapping[str, Json], caller: str, now: int, steady: int, id: str | None = None
) -> Job:
    """Make a job of the arguments of a submission; unknown ones are ignored.

    Args:
        args: as the caller sent them.
        caller: address of whoever submits it.
        now: the time on the wall, in milliseconds since 1970.
        steady: the time by the steady clock, by which delays and deadlines are measured.
        id: its id; by default a new one.

    Raises:
        CallError: reason ``bad-arguments``; the text names the argument and says what it may be.
    """
    try:
        found = readers.members(dict(args), "arguments", _READS)
        _check(found, now)
    except RemoteProtocolError as exc:
        raise _bad(exc.problem.text, exc.problem.argument) from exc
    job = Job(
        id=mint(now) if id is None else id,
        caller=bare(caller),
        created=steady,
        want={
            name: list(found[name]) if name == "tags" else found[name]
            for name, (_, nothing) in _WANT.items()
            if found.get(name, nothing) != nothing
        },
        allowed=found.get("deadline", DEADLINE),
        held=bool(found.get("after")),
        **{name: found[name] for name in _SAME if name in found},
    )
    delay = round(found.get("delay", 0.0) * 1000)
    if delay:
        job.due = steady + delay
    # A time that has passed asks for nothing.
    if found.get("at", 0) > now:
        job.at = found["at"]
    if job.held or job.due or job.at:
        job.state = JobState.WAITING
        return job
    job.runnable = steady
    job.ends = steady + round(job.allowed * 1000)
    if job.kind:
        # The children run; their parent is under way from the beginning.
        job.state = JobState.PROCESSING
        job.started = steady
        job.closed = False
    return job


def _check(found: Mapping[str, Any], now: int) -> None:
    """Check what one reader alone cannot see."""
    if "op" not in found:
        raise _wrong("op", "there: the path of the operation to run")
    if found.get("at", 0) - now > MAX_SECONDS * 1000:
        raise _wrong("at", "at most 366 days from now")
    if ("parent" in found) != ("position" in found):
        missing = "position" if "parent" in found else "parent"
        raise _wrong(missing, "there: a child has both 'parent' and 'position'")
    if found.get("kind") and (found.get("delay") or found.get("at") or found.get("after")):
        raise _wrong("kind", "left out of a job that waits; let its children wait instead")


def _bad(text: str, argument: str | None) -> CallError:
    return CallError.of(Problem("bad-arguments", text, argument))


# -- many


def read_inputs(args: Mapping[str, Json], caller: str, now: int, steady: int) -> list[Job]:
    """Make the children of a map of the arguments of ``/spinal/jobs/map``, in their order.

    What is asked of all of them is read once.  Each has the key of all, ``/`` and its position.

    Raises:
        CallError: reason ``bad-arguments``; the text names the argument.
    """
    try:
        inputs = _INPUTS(args.get("inputs"), "inputs")
    except RemoteProtocolError as exc:
        raise _bad(exc.problem.text, exc.problem.argument) from exc
    all_of_them = read({**args, "args": None, "position": 0}, caller, now, steady)
    if all_of_them.parent is None or all_of_them.kind or all_of_them.after:
        raise _bad("the inputs of a map have a 'parent', and no 'kind' or 'after'", "parent")
    key = all_of_them.key
    if key is not None and len(key) > MAX_MAP_KEY:
        raise _bad(f"the key of a map has at most {MAX_MAP_KEY} characters", "key")
    common = {
        one.name: value
        for one in fields(Job)
        if one.name not in _OF_AN_INPUT
        and (value := getattr(all_of_them, one.name)) is not one.default
    }
    ids = mint_many(now, len(inputs))
    return [
        Job(
            id=id,
            args=given,
            key=None if key is None else f"{key}/{position}",
            position=position,
            **common,
        )
        for id, (position, given) in zip(ids, inputs, strict=True)
    ]


def _input(raw: Json, name: str) -> tuple[int, dict[str, Json]]:
    pair: list[Json] = raw if isinstance(raw, list) else []  # pyright: ignore[reportUnknownVariableType] - JSON items
    if len(pair) != 2:
        raise _wrong(name, "pairs of a position and arguments")
    return _POSITION(pair[0], name), readers.mapping(pair[1], name)


#: What each input of a map has for itself.
_OF_AN_INPUT: Final = frozenset({"id", "args", "key", "position", "tries"})
_POSITION: Final = readers.integer()
_INPUTS: Final = readers.list_of(_input, MAX_BATCH)


def read_all(args: Mapping[str, Json], caller: str, now: int, steady: int) -> list[Job]:
    """Make jobs of the arguments of ``/spinal/jobs/submit-all``, in their order.

    Each has a ``name`` of its own, by which those of the same list may come after it.

    Raises:
        CallError: reason ``bad-arguments``; the text names the job and the argument, or the ring
            of names that wait for each other.
    """
    try:
        items = _ITEMS(args.get("jobs"), "jobs")
        names = [_NAME(item.get("name"), f"jobs[{at}].name") for at, item in enumerate(items)]
    except RemoteProtocolError as exc:
        raise _bad(exc.problem.text, exc.problem.argument) from exc
    _distinct(names, "name", "jobs[{}].name")
    ids = dict(zip(names, mint_many(now, len(names)), strict=True))
    jobs: list[Job] = []
    for at, (name, item) in enumerate(zip(names, items, strict=True)):
        item = {**item, "after": _resolved(item.get("after"), ids)}
        try:
            jobs.append(read(item, caller, now, steady, ids[name]))
        except CallError as exc:
            argument = f"jobs[{at}].{exc.problem.argument}"
            raise _bad(f"job '{name}': {exc.problem.text}", argument) from exc
    _distinct([job.key for job in jobs], "key", "jobs[{}].key")
    ring = cycle({job.id: job.after for job in jobs})
    if ring is not None:
        named = {id: name for name, id in ids.items()}
        path = " -> ".join(named[id] for id in ring)
        raise _bad(f"these jobs wait for each other: {path}", "jobs")
    return jobs


def _resolved(after: Json, ids: Mapping[str, str]) -> Json:
    """Put ids for the names that are known; what else stands there is the reader's to judge."""
    if not isinstance(after, list):
        return after
    given: list[Json] = after  # pyright: ignore[reportUnknownVariableType] - JSON items
    return [ids.get(item, item) if isinstance(item, str) else item for item in given]


_ITEMS: Final = readers.list_of(readers.mapping, MAX_BATCH)
_NAME: Final = _line(128)


def _distinct(texts: Sequence[str | None], what: str, argument: str) -> None:
    seen: set[str] = set()
    for at, text in enumerate(texts):
        if text is None:
            continue
        if text in seen:
            raise _bad(f"two jobs have the {what} '{text}'", argument.format(at))
        seen.add(text)
