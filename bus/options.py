"""How a call or a job is made: a client's options, checked where they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Protocol, Self

from spinal.protocols import POLICIES, REASONS, Json, Want, duration
from spinal.protocols.path import check_places, parts

from .call import Item

#: Seconds that a call may take, and a dispatcher may take to accept a job, if nobody says otherwise.
TIMEOUT = 60.0
#: Longest key: the children of a map add their number to it.
MAX_KEY = 240


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


#: A job, its id, or several of them.
After = _HasId | str | Sequence[_HasId | str]


@dataclass(frozen=True, slots=True)
class Retry:
    """When a job that failed is tried again.

    Pauses are drawn evenly between nothing and a ceiling that starts with ``backoff``, doubles each
    time, and is at most ``most``.  Durations are seconds or texts such as ``"5m"``.

    Raises:
        ValueError: a member cannot be what it is.
    """

    #: Tries after the first one.
    count: int
    backoff: float | str = 1.0
    most: float | str = 60.0
    #: Reasons that are worth another try; by default those of the dispatcher.
    on: Sequence[str] = ()
    #: Not at an agent where it failed before.
    elsewhere: bool = False

    def __post_init__(self) -> None:
        on = (self.on,) if isinstance(self.on, str) else tuple(self.on)
        unknown = [reason for reason in on if reason not in REASONS]
        if unknown:
            raise ValueError(f"on: there is no reason {unknown[0]!r}")
        object.__setattr__(self, "count", _integer(0, 1_000_000)(self.count))
        object.__setattr__(self, "backoff", duration.parse(self.backoff))
        object.__setattr__(self, "most", duration.parse(self.most))
        object.__setattr__(self, "on", on)

    def to_json(self) -> dict[str, Json]:
        """Give the wire form; what is the default is left out."""
        return {f.name: _json(v) for f in fields(self) if (v := getattr(self, f.name)) != f.default}


@dataclass(frozen=True, slots=True)
class Options:
    """How a call or a job is made; ``Client.options`` gives a client with others."""

    #: Address of the one agent that is to do it; without one the dispatcher chooses.
    to: str | None = None
    policy: str = "least-loaded"
    place: Mapping[str, str] = field(default_factory=dict[str, str])
    tags: Sequence[str] = ()
    sticky: str = ""
    #: May run again elsewhere after a lost attempt although it is not safe.
    rerun: bool = False
    #: Seconds that we wait; without one a call has :data:`TIMEOUT`, and a job until it ends.
    timeout: float | None = None
    key: str | None = None
    trace: str | None = None
    #: Told of progress and log lines while a call or a durable call runs.
    news: Callable[[Item], None] | None = None
    #: Calls and maps are jobs.
    durable: bool = False
    # What only a job has.
    labels: Sequence[str] = ()
    priority: int = 0
    delay: float | None = None
    at: str | None = None
    after: Sequence[str] = ()
    when: str | None = None
    deadline: float | None = None
    max_run: float | None = None
    retry: Retry | None = None
    on_done: str | None = None
    on_error: str | None = None

    def changed(self, **given: Any) -> Self:
        """Give options in which those that are not none are as given.

        Raises:
            ValueError: one cannot be what it is; the text begins with its name.
            TypeError: there is no such option.
        """
        label = given.pop("label", None)
        if label is not None:
            more = given.get("labels")
            given["labels"] = [label] if more is None else [label, *_listed(more)]
        changes: dict[str, Any] = {}
        for name, value in given.items():
            if name not in _READ:
                raise TypeError(f"there is no option {name!r}")
            if value is not None:
                try:
                    changes[name] = _READ[name](value)
                except (ValueError, TypeError) as exc:
                    raise ValueError(f"{name}: {exc}") from exc
        return replace(self, **changes)

    @property
    def want(self) -> Want:
        """What the dispatcher is to heed when it chooses an agent."""
        return Want(self.policy, self.place, tuple(self.tags), self.sticky, self.rerun)

    @property
    def patience(self) -> float:
        """Seconds that a call, or the acceptance of a job, may take."""
        return TIMEOUT if self.timeout is None else self.timeout

    def only_of_jobs(self) -> list[str]:
        """Name the options that were given and mean nothing to a call."""
        return [name for name in _JOB if getattr(self, name) != _PLAIN[name]]

    def submission(self) -> dict[str, Json]:
        """Give the members of a submission that these options make (docs/protocol.md)."""
        named = {name: getattr(self, name) for name in ("to", "key", "trace", *_JOB)}
        found = {name: value for name, value in named.items() if value != _PLAIN[name]}
        return {name: _json(value) for name, value in (self.want.to_json() | found).items()}


@dataclass(frozen=True, slots=True)
class Planned:
    """One job of several that are submitted together; made by ``Client.planned``."""

    op: str
    arguments: Mapping[str, Any]
    options: Options


_JOB = (
    "labels",
    "priority",
    "delay",
    "at",
    "after",
    "when",
    "deadline",
    "max_run",
    "retry",
    "on_done",
    "on_error",
)
_PLAIN: Mapping[str, Any] = {f.name: f.default for f in fields(Options)}


def _json(value: Any) -> Any:
    if isinstance(value, Retry):
        return value.to_json()
    return list(value) if isinstance(value, tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - of Any


# -- readers: from what was given to what is kept; they raise ValueError without the name


def _wrong(wanted: str, value: Any) -> ValueError:
    return ValueError(f"must be {wanted}, not {value!r}")


def _text(longest: int) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= longest:
            raise _wrong(f"a text of 1 to {longest} characters", value)
        return value

    return read


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(f"an integer from {low} to {high}", value)
        return value

    return read


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise _wrong(f"one of {', '.join(choices)}", value)
        return str(value)

    return read


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong("true or false", value)
    return value


def _listed(value: Any) -> list[Any]:
    """Give the members of a list; whatever else it is, its only member."""
    return list(value) if isinstance(value, (list, tuple, set)) else [value]  # pyright: ignore[reportUnknownArgumentType] - of Any


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text(128), _listed(value)))


def _labels(value: Any) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(_texts(value)))
    if len(found) > 16:
        raise _wrong("at most 16 labels", value)
    if any("*" in label for label in found):
        raise ValueError("'*' stands for any ending in a search and cannot be in a label")
    return found


def _operation(value: Any) -> str:
    parts(_text(512)(value))
    return str(value)


def _at(value: Any) -> str:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"not a time: {value!r} (write 2026-11-21T06:30:00+01:00)") from None
    if not isinstance(value, datetime):
        raise _wrong("a datetime or a text of RFC 3339", value)
    if value.utcoffset() is None:
        raise ValueError(
            "the time has no zone: use datetime.now().astimezone(), "
            "datetime(..., tzinfo=ZoneInfo(...)), or write 2026-11-21T06:30:00+01:00"
        )
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _after(value: Any) -> tuple[str, ...]:
    ids = [getattr(job, "id", job) for job in _listed(value)]
    for id in ids:
        if not isinstance(id, str) or not id:
            raise _wrong("a job, its id, or a list of them", value)
    return tuple(dict.fromkeys(ids))


def _retry(value: Any) -> Retry:
    if isinstance(value, Retry):
        return value
    if isinstance(value, Mapping):
        members: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        known = [f.name for f in fields(Retry)]
        for name in members:
            if name not in known:
                raise ValueError(f"there is no {name!r} in it, only {', '.join(known)}")
        if "count" not in members:
            raise ValueError("its count is missing")
        return Retry(**members)
    return Retry(value)


def _called(value: Any) -> Any:
    if not callable(value):
        raise _wrong("a function", value)
    return value


_READ: Mapping[str, Callable[[Any], Any]] = {
    "to": _text(3071),
    "policy": _one_of(*POLICIES),
    "place": check_places,
    "tags": _texts,
    "sticky": str,
    "rerun": _flag,
    "timeout": duration.parse,
    "key": _text(MAX_KEY),
    "trace": _text(128),
    "news": _called,
    "durable": _flag,
    "labels": _labels,
    "priority": _integer(-9, 9),
    "delay": duration.parse,
    "at": _at,
    "after": _after,
    "when": _one_of("done", "any", "ended"),
    "deadline": duration.parse,
    "max_run": duration.parse,
    "retry": _retry,
    "on_done": _operation,
    "on_error": _operation,
}
