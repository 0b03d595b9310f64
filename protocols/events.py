"""What two ends say to each other, as frozen values.

A stanza carries a JSON list of events; a list of one is the common case.  Ids and answers belong
to the event, never to the stanza (docs/protocol.md, Batches).  On the wire an event is an object
whose ``type`` names the class; members that have their default are left out, and members that the
receiver does not know are ignored, unless ``must`` names them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from . import readers
from .errors import Problem, RemoteProtocolError
from .readers import Reader
from .values import Json

#: Longest deadline that can be asked for, in milliseconds: 366 days.
MAX_LEFT = 366 * 24 * 3600 * 1000

#: Most sets of arguments in one op.
MAX_EACH = 1000

#: Most exchanges that one ``ack`` names besides its own.
MAX_ALSO = 255

#: Most exchanges in one advertisement; each counts three members, of which an event has 20 000.
MAX_HOLDS = 5000

#: Features of the protocol beyond its core profile; told in ``hello`` and the advertisement.
FEATURES = frozenset({"batch", "cancel", "finals", "group", "holds", "mirror", "stream"})

#: How candidates are ranked.
POLICIES = (
    "least-loaded",
    "cheapest",
    "round-robin",
    "random",
    "sticky",
    "all",
    "any-first",
)

#: States of an agent in its advertisement.
AGENT_STATES = ("available", "draining", "unhealthy")

#: Answers to a cancel: being stopped, already ended, never heard of.
CANCEL_STATES = ("cancelled", "late", "unknown")


if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value(**options: bool) -> Any:
        """Make a value of a class: frozen for the type checkers, and not again at run time.

        To set members past a frozen ``__setattr__`` costs three times as much as to set them, and
        every call has six values.
        """
        return dataclasses.dataclass(**options | {"frozen": False, "unsafe_hash": True})


_DEFAULTS: dict[type[Event | Want], tuple[tuple[str, Any], ...]] = {}


def _defaults(cls: type[Event | Want]) -> tuple[tuple[str, Any], ...]:
    """Fields of a class with their defaults, in order; ``MISSING`` where there is none."""
    found = _DEFAULTS.get(cls)
    if found is None:
        found = _DEFAULTS[cls] = tuple(
            (f.name, f.default_factory() if f.default_factory is not MISSING else f.default)
            for f in fields(cls)
        )
    return found


def _to_json(one: Event | Want, out: dict[str, Json]) -> dict[str, Json]:
    for name, default in _defaults(type(one)):
        item = getattr(one, name)
        if item is default or item == default:
            continue
        if type(item) in _NESTED:
            item = item.to_json()
        out[name] = item
    return out


@value(frozen=True, slots=True)
class Want:
    """What a caller asks of the dispatcher about the agent that is to do it."""

    policy: str = "least-loaded"
    place: Mapping[str, str] = field(default_factory=dict[str, str])
    tags: Sequence[str] = ()
    #: What ``sticky`` sticks to: equal text goes to the same agent while it is there.
    sticky: str = ""
    #: Run it elsewhere after a lost attempt even though the operation is not safe.
    rerun: bool = False

    def to_json(self) -> dict[str, Json]:
        """Give the wire form."""
        return _to_json(self, {})

    @classmethod
    def read(cls, raw: Json, name: str) -> Want:
        """Read the wire form."""
        return cls(**readers.members(raw, name, _WANT))


_NESTED = frozenset({Problem, Want})
_TAGS = readers.list_of(readers.text(64), 64)
_WANT: Mapping[str, Reader] = {
    "policy": readers.one_of(*POLICIES),
    "place": readers.places,
    "tags": _TAGS,
    "sticky": readers.text(256),
    "rerun": readers.flag,
}


@value(frozen=True, slots=True)
class Event:
    """One thing said; the subclasses are the language."""

    type: ClassVar[str] = ""
    #: Member -> reader.  What is not listed is ignored.
    reads: ClassVar[Mapping[str, Reader]] = {}
    #: Members that hold any JSON value, which their readers do not look into.
    free: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Json]:
        """Give the wire form."""
        return _to_json(self, {"type": self.type})

    @classmethod
    def parse(cls, raw: Mapping[str, Json]) -> Self:
        """Read the wire form.

        Raises:
            RemoteProtocolError: a member is missing or wrong; the text names it.
        """
        found = readers.members(raw, cls.type, cls.reads)
        try:
            return cls(**found)
        except TypeError as exc:
            missing = next(name for name, d in _defaults(cls) if d is MISSING and name not in found)
            raise RemoteProtocolError(
                f"'{cls.type}' lacks '{missing}'", "malformed", missing
            ) from exc


@value(frozen=True, slots=True)
class CallEvent(Event):
    """An event of one call: the id is the caller's, the attempt tells tries apart."""

    id: str
    attempt: int = 1

    @property
    def exchange(self) -> tuple[str, int]:
        """Which exchange under the caller's address it belongs to."""
        return (self.id, self.attempt)


_CALL: dict[str, Reader] = {"id": readers.identifier, "attempt": readers.attempt}


@value(frozen=True, slots=True, kw_only=True)
class Op(CallEvent):
    """Ask for an operation."""

    type: ClassVar[str] = "op"
    free: ClassVar[tuple[str, ...]] = ("args", "each")
    reads: ClassVar[Mapping[str, Reader]] = {
        **_CALL,
        "op": readers.operation,
        "left": readers.integer(0, MAX_LEFT),
        "args": readers.mapping,
        "each": readers.list_of(readers.mapping, MAX_EACH),
        "epoch": readers.integer(),
        "key": readers.text(256),
        "caller": readers.text(3071),
        "grant": readers.text(4096),
        "trace": readers.text(128),
        "window": readers.integer(0, 10_000),
        "must": readers.list_of(readers.text(64), 32),
        "want": Want.read,
    }

    op: str
    #: Milliseconds remaining until the caller gives up; recomputed at each hop.
    left: int
    args: Mapping[str, Json] = field(default_factory=dict[str, Json])
    #: In place of ``args``, to an agent with ``group``: sets of arguments to do it with.
    each: Sequence[Mapping[str, Json]] | None = None
    #: Epoch of the agent that it is meant for; another one refuses.
    epoch: int | None = None
    #: Idempotency key, unique under the caller's bare address.
    key: str | None = None
    #: On whose behalf; believed only from a dispatcher that the agent's credentials name.
    caller: str | None = None
    #: Reserved for signed rights.
    grant: str | None = None
    #: W3C Trace Context, ``traceparent``.
    trace: str | None = None
    #: How many ``data`` may be unanswered; 0: the caller takes no stream.
    window: int = 0
    #: Members and features that the receiver must understand or refuse.
    must: Sequence[str] = ()
    want: Want | None = None

    def missing(self, features: frozenset[str] = FEATURES) -> str | None:
        """Name something in ``must`` that is neither a known member nor a feature.

        ``each`` is known to who has the feature ``group``.
        """
        known = features | (self.reads.keys() - ("each",))
        if "group" in features:
            known |= {"each"}
        return next((name for name in self.must if name not in known), None)


@value(frozen=True, slots=True)
class Accepted(CallEvent):
    """The operation was taken; its final comes later, in a stanza of its own."""

    type: ClassVar[str] = "accepted"
    reads: ClassVar[Mapping[str, Reader]] = {**_CALL, "seq": readers.integer()}

    #: Number of the first piece of data that this caller gets; those before it were taken already.
    seq: int = 0


@value(frozen=True, slots=True, kw_only=True)
class Progress(CallEvent):
    """How far it is; may be lost, and a later one replaces it."""

    type: ClassVar[str] = "progress"
    reads: ClassVar[Mapping[str, Reader]] = {
        **_CALL,
        "done": readers.number(),
        "total": readers.number(),
        "note": readers.text(4096),
    }

    done: float | None = None
    total: float | None = None
    note: str = ""


@value(frozen=True, slots=True, kw_only=True)
class Data(CallEvent):
    """One numbered piece of a stream; its stanza is answered once the reader has taken it."""

    type: ClassVar[str] = "data"
    free: ClassVar[tuple[str, ...]] = ("value",)
    reads: ClassVar[Mapping[str, Reader]] = {
        **_CALL,
        "seq": readers.integer(),
        "value": readers.value,
    }

    seq: int
    value: Json = None


@value(frozen=True, slots=True, kw_only=True)
class Log(CallEvent):
    """A line that the operation logged; may be lost."""

    type: ClassVar[str] = "log"
    reads: ClassVar[Mapping[str, Reader]] = {
        **_CALL,
        "text": readers.text(16_384),
        "level": readers.text(16),
    }

    text: str
    level: str = "info"


@value(frozen=True, slots=True, kw_only=True)
class Final(CallEvent):
    """The end of an operation that was started: a value, or a problem.

    The agent keeps it until it is acknowledged.
    """

    type: ClassVar[str] = "final"
    free: ClassVar[tuple[str, ...]] = ("value",)
    reads: ClassVar[Mapping[str, Reader]] = {
        **_CALL,
        "value": readers.value,
        "problem": readers.problem,
        "agent": readers.text(3071),
        "ran": readers.integer(),
        "cpu": readers.integer(),
        "memory": readers.integer(),
        "again": readers.flag,
    }

    value: Json = None
    problem: Problem | None = None
    #: Who did it; a dispatcher fills it in, otherwise it is the sender.
    agent: str | None = None
    #: How long it ran, in milliseconds.
    ran: int | None = None
    #: What the processes that worked on it cost, where the agent knows: CPU time in milliseconds,
    #: and the highest peak of resident memory in bytes.
    cpu: int | None = None
    memory: int | None = None
    #: It had been done before: this answers a resent op, and nothing ran again.
    again: bool = False

    def by(self, agent: str) -> Final:
        """Give it with the agent that did it."""
        return Final(
            self.id,
            self.attempt,
            value=self.value,
            problem=self.problem,
            agent=agent,
            ran=self.ran,
            cpu=self.cpu,
            memory=self.memory,
            again=self.again,
        )


@value(frozen=True, slots=True, kw_only=True)
class Error(CallEvent):
    """Refused: the operation was not started, or an event could not be taken."""

    type: ClassVar[str] = "error"
    reads: ClassVar[Mapping[str, Reader]] = {**_CALL, "problem": readers.problem}

    problem: Problem


@value(frozen=True, slots=True)
class Ack(CallEvent):
    """The final was taken, and committed by whoever keeps jobs; it need not be kept."""

    type: ClassVar[str] = "ack"
    reads: ClassVar[Mapping[str, Reader]] = {
        **_CALL,
        "also": readers.list_of(readers.exchange, MAX_ALSO),
    }

    #: Id and attempt of others that are acknowledged with it, to whoever takes batches.
    also: Sequence[tuple[str, int]] = ()

    @property
    def exchanges(self) -> list[tuple[str, int]]:
        """All that are acknowledged."""
        return [self.exchange, *self.also]


@value(frozen=True, slots=True, kw_only=True)
class Cancel(CallEvent):
    """Stop it; always answered with ``cancelled``."""

    type: ClassVar[str] = "cancel"
    reads: ClassVar[Mapping[str, Reader]] = {
        **_CALL,
        "left": readers.integer(0, MAX_LEFT),
        "of": readers.list_of(readers.integer(0, MAX_EACH), MAX_EACH),
    }

    #: Milliseconds until that call's deadline: how long an unknown id is remembered, because the
    #: cancel may have overtaken its op.
    left: int = 60_000
    #: Of a group only these, by their places in ``each``.
    of: Sequence[int] = ()


@value(frozen=True, slots=True, kw_only=True)
class Cancelled(CallEvent):
    """The answer to a cancel; the final, if the operation had been started, still comes."""

    type: ClassVar[str] = "cancelled"
    reads: ClassVar[Mapping[str, Reader]] = {**_CALL, "state": readers.one_of(*CANCEL_STATES)}

    state: str


@value(frozen=True, slots=True)
class Hello(Event):
    """Who is speaking and what it understands; directed presence or an IQ carries it."""

    type: ClassVar[str] = "hello"
    reads: ClassVar[Mapping[str, Reader]] = {
        "version": readers.text(16),
        "role": readers.one_of("agent", "caller", "dispatcher"),
        "features": readers.list_of(readers.text(64), 64),
        "stanza": readers.integer(4096),
        "dispatchers": readers.list_of(readers.text(3071), 64),
        "epoch": readers.integer(),
    }

    version: str = "1.0"
    role: str = "caller"
    features: Sequence[str] = ()
    #: Bytes of JSON text that it reads in one stanza.
    stanza: int = 60 * 1024
    #: From a dispatcher: all dispatchers of this home, so that agents refresh their list.
    dispatchers: Sequence[str] = ()
    #: Number of the speaker's present life.
    epoch: int | None = None


@value(frozen=True, slots=True, kw_only=True)
class Advertisement(Event):
    """What an agent offers, where it is and how busy; directed presence carries it.

    Sent on change at most once a second, and every 5 seconds with jitter as a heartbeat.
    """

    type: ClassVar[str] = "advertisement"
    free: ClassVar[tuple[str, ...]] = ("holds",)
    reads: ClassVar[Mapping[str, Reader]] = {
        "hash": readers.text(64),
        "epoch": readers.integer(),
        "state": readers.one_of(*AGENT_STATES),
        "slots": readers.integer(0, 1_000_000),
        "busy": readers.integer(0, 1_000_000),
        "load": readers.number(0),
        "cost": readers.number(0),
        "place": readers.places,
        "tags": _TAGS,
        "holds": readers.list_of(readers.list_of(readers.value, 2), MAX_HOLDS),
        "more": readers.flag,
        "features": readers.list_of(readers.text(64), 64),
        "stanza": readers.integer(4096),
    }

    #: SHA-256 of the capability description's bytes as sent, in hex.
    hash: str
    epoch: int
    state: str = "available"
    slots: int = 1
    busy: int = 0
    #: 0 is idle, 1 is as much as it can take; the agent's own metric if it has one.
    load: float = 0.0
    #: Price of an hour in the home's currency; none means unknown, never free.
    cost: float | None = None
    place: Mapping[str, str] = field(default_factory=dict[str, str])
    tags: Sequence[str] = ()
    #: ``[id, attempt]`` of the receiver's calls that run here or whose finals are unacknowledged;
    #: for a dispatcher those of all dispatchers of the home.
    holds: Sequence[Sequence[Any]] = ()
    #: There are more than ``holds`` lists, so that what it leaves out may be held all the same.
    more: bool = False
    features: Sequence[str] = ()
    stanza: int = 60 * 1024

    @property
    def held(self) -> frozenset[tuple[str, int]]:
        """The exchanges in ``holds``; entries of another form are ignored."""
        return frozenset(
            (pair[0], pair[1])
            for pair in self.holds
            if len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int
        )


@value(frozen=True, slots=True)
class Describe(Event):
    """Ask for the capability description with this hash."""

    type: ClassVar[str] = "describe"
    reads: ClassVar[Mapping[str, Reader]] = {"hash": readers.text(64)}

    hash: str


@value(frozen=True, slots=True)
class Description(Event):
    """A capability description, as the text that was hashed."""

    type: ClassVar[str] = "description"
    reads: ClassVar[Mapping[str, Reader]] = {
        "hash": readers.text(64),
        "text": readers.text(512 * 1024),
    }

    hash: str
    text: str


@value(frozen=True, slots=True)
class Mirror(Event):
    """From a dispatcher: tell me about your direct calls for so long, because a tap is open."""

    type: ClassVar[str] = "mirror"
    reads: ClassVar[Mapping[str, Reader]] = {"seconds": readers.number(0)}

    #: 0 stops it.
    seconds: float


@value(frozen=True, slots=True)
class Seen(Event):
    """What a tap shows: one event of a call between two others; carries no values."""

    type: ClassVar[str] = "seen"
    reads: ClassVar[Mapping[str, Reader]] = {
        "what": readers.text(32),
        "id": readers.identifier,
        "caller": readers.text(3071),
        "agent": readers.text(3071),
        "op": readers.text(512),
        "state": readers.text(64),
        "ran": readers.integer(),
    }

    what: str
    id: str
    caller: str = ""
    agent: str = ""
    op: str = ""
    #: For a final: ``done`` or the reason of its problem.
    state: str = ""
    ran: int | None = None


#: Everything that can be said, by its ``type``.
EVENTS: Mapping[str, type[Event]] = {
    cls.type: cls
    for cls in (
        Op,
        Accepted,
        Progress,
        Data,
        Log,
        Final,
        Error,
        Ack,
        Cancel,
        Cancelled,
        Hello,
        Advertisement,
        Describe,
        Description,
        Mirror,
        Seen,
    )
}
