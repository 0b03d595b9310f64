"""What the dispatcher asks of a store, and what the store promises.

Writes are changes.  The changes of one :meth:`Store.write` happen together or not at all, and are
on disk (``fsync``) when the await returns; what different tasks write in the same turn of the event
loop shares a transaction.  A change is copied when it is given, so the job may move on at once.

Jobs have owners.  Each start of a dispatcher is a *life* with a number of its own and a lease; a job
that is under way carries the number of the life that sees it through, and only that life can save
it.  Who lost a job to another life learns it from the answer to its next write (:data:`FENCED`) and
lets go.  Jobs that wait for a time, for other jobs, or for room have no owner and stand on disk
alone; :meth:`Store.claim` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from spinal.protocols import Exit, Json, SpinalError

from ..jobs.job import Job, JobState


class StoreError(SpinalError):
    """The store cannot do it now: disk full, no connection.  Nothing was changed; try again."""

    exit_code = Exit.UNREACHED.value


class NotAStore(SpinalError):
    """The file or database is not a store, or of a newer version; it was left untouched."""

    exit_code = Exit.USAGE.value


class LifeOver(SpinalError):
    """Our lease ran out and another dispatcher has our jobs: begin a new life."""


@dataclass(frozen=True, slots=True)
class New:
    """Insert a job; the result is its id, or the id of the job that has its caller's key already.

    With ``begins`` its first attempt begins with it: as for :class:`Save`, the result may be
    :class:`Wait`, and nothing of this write happened then.
    """

    job: Job
    begins: bool = False


@dataclass(frozen=True, slots=True)
class Save:
    """Save what became of a job; the result is :data:`SAVED`, :data:`FENCED` or a :class:`Wait`.

    With ``begins`` the limits of its operation are heeded: if they allow no more now, nothing of
    this write happens, and the result is :class:`Wait`.
    """

    job: Job
    begins: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """Keep a line of a job's log; the result is its number, from 1.

    Above :attr:`Retention.lines` or bytes it is only counted, and the result is 0.
    """

    job: str
    at: int
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete an ended job with its log; the result tells whether it was there."""

    id: str


@dataclass(frozen=True, slots=True)
class Look:
    """Take a job off the dead list; the result tells whether it was on it."""

    id: str


@dataclass(frozen=True, slots=True)
class Fire:
    """Move a schedule on from ``due`` to ``next``; :data:`FENCED` if somebody else did."""

    id: str
    due: int
    next: int


@dataclass(frozen=True, slots=True)
class Record:
    """Something that a dispatcher looks after, and any dispatcher may change: a service, a pool."""

    #: Small letters; names are told apart within it.
    kind: str
    name: str
    #: Counts how often it was kept; 0 if it never was.
    version: int
    #: All of it.
    body: Json


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep a record as it is now, with the next version; :data:`FENCED` if its version is another.

    With ``drop`` it is deleted instead.
    """

    record: Record
    drop: bool = False


Change = New | Save | Line | Forget | Look | Fire | Keep


@dataclass(frozen=True, slots=True)
class Wait:
    """An operation's limits allow no more now."""

    #: Seconds after which there may be room; 0 if only the end of another job makes room.
    after: float


SAVED: Final = True
#: The job is another life's, has ended, or is gone; nothing of its write happened.
FENCED: Final = False

#: One per change: an id, whether it was applied, the number of a line, or to wait.
Result = str | bool | int | Wait


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs to list, newest first; what is not given does not matter."""

    caller: str | None = None
    states: frozenset[JobState] = frozenset()
    #: A label, or the beginning of one before ``*``.
    label: str | None = None
    #: An operation, or all below one: ``/image/**``.
    op: str | None = None
    key: str | None = None
    parent: str | None = None
    #: Errors that nobody has looked at.
    dead: bool = False
    #: Only jobs older than this id.
    before: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Submits a job at the times of a cron line."""

    id: str
    caller: str
    cron: str
    #: Name of a time zone (IANA).
    zone: str
    #: The submission (``jobs/submission.py``), as its caller sent it.
    submission: Mapping[str, Json]
    created: int
    next: int


@dataclass(frozen=True, slots=True)
class Limit:
    """What the jobs of an operation may take of the fleet together."""

    op: str
    #: Most that begin in ``per`` seconds; after a pause, so many may begin at once.
    rate: float | None = None
    per: float = 1.0
    #: Most that are processing at once.
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log."""

    seq: int
    at: int
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of the past is kept."""

    #: Seconds that an ended job is kept.
    age: float = 7 * 86_400.0
    #: And one with a blob in its result, which the server does not keep any longer.
    blobs: float = 86_400.0
    #: Most ended jobs, and most bytes of their arguments, results, tries and logs.
    count: int = 200_000
    size: int = 2 * 1024**3
    #: Most lines of one job's log, and most bytes; what comes after them is counted.
    lines: int = 1000
    log_size: int = 256 * 1024


@dataclass(frozen=True, slots=True)
class Log:
    """A page of a job's log."""

    lines: Sequence[LogLine]
    #: Lines that were not kept.
    dropped: int


@dataclass(frozen=True, slots=True)
class Peers:
    """The dispatchers that live on this store, ourselves included."""

    addresses: frozenset[str]
    #: A lease of one of them is over: its jobs can be taken (:meth:`Store.take_over`).
    orphans: bool
    #: Roles of accounts by bare address, as the others told them (:meth:`Store.share_roles`); of
    #: what several told, that of the one whose address comes first.
    roles: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Overview:
    """Counts for ``/spinal/status``."""

    states: Mapping[JobState, int] = field(default_factory=dict[JobState, int])
    dead: int = 0


#: Is told what came of a write: the results, or the error that :meth:`Store.write` would raise.
Told = Callable[[Sequence[Result] | Exception], None]


class Store(Protocol):
    """One store, held by one life of one dispatcher.

    Methods raise :class:`StoreError` when the store cannot do it now, and :class:`LifeOver` once
    this life was declared dead.  Cancelling a write does not take it back.
    """

    # -- lives

    async def open(self, address: str, lease: float) -> int:
        """Bring the schema up to date, begin a life, and give its number.

        Former lives of the same address end with it.  Raises :class:`NotAStore`.
        """
        ...

    async def close(self, hand_over: bool = True) -> None:
        """End the life: with ``hand_over``, what we own becomes anybody's.  Writes end first."""
        ...

    async def renew(self) -> Peers:
        """Renew our lease (by the store's clock), and say who lives."""
        ...

    async def take_over(self) -> list[Job]:
        """Own, and give, the live jobs of lives that are over."""
        ...

    async def share_roles(self, roles: Mapping[str, str]) -> None:
        """Tell the others the roles of our accounts, by bare address, in place of what we told.

        It is kept when our life ends: the agents of our home go on working for the others.
        """
        ...

    # -- writing

    def post(self, changes: Sequence[Change], told: Told) -> None:
        """Make changes together as :meth:`write` does, without waiting.

        ``told`` is called once, later and in the event loop, with their results or the error.
        What cannot even be taken down raises at once, and then it is not called.
        """
        ...

    async def write(self, *changes: Change) -> Sequence[Result]:
        """Make the changes together; see the module."""
        ...

    async def claim(
        self, steady: int, wall: int, limit: int, ids: Sequence[str] | None = None
    ) -> list[Job]:
        """Own, and give, jobs that nobody owns and whose time has come, the most urgent first.

        That is: queued ones, and waiting ones that are not held, with ``due <= steady`` and
        ``at <= wall``.  And live ones in any state whose ``ends`` is set and ``<= steady``: their
        time is over.  With ``ids``, these jobs if they are live and nobody's, whatever they wait for.
        """
        ...

    async def ask_to_stop(self, id: str) -> None:
        """Have whoever owns a live job stop it (:meth:`asked_to_stop`); nothing for another one."""
        ...

    async def asked_to_stop(self) -> list[str]:
        """Give the live jobs of ours that somebody wants stopped."""
        ...

    # -- reading

    async def owned(self) -> list[str]:
        """Give the ids of the live jobs that are ours."""
        ...

    async def get(self, id: str) -> Job | None:
        """Give a job whole."""
        ...

    async def find(self, which: Filter, limit: int) -> list[Job]:
        """List jobs, newest first, without ``args`` and ``value``."""
        ...

    async def children(
        self, parent: str, after: int, limit: int, states: frozenset[JobState] = frozenset()
    ) -> list[Job]:
        """Give the children of a job with a position above ``after``, in order, whole."""
        ...

    async def count_children(self, parent: str) -> Mapping[JobState, int]:
        """Count the children of a job by state."""
        ...

    async def states(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        """Give the states of those jobs that exist."""
        ...

    async def dependents(self, ids: Sequence[str]) -> list[str]:
        """Give the held jobs that come after one of these; with none, of any ended job."""
        ...

    async def next_due(self) -> tuple[int, int] | None:
        """Give ``due`` and ``at`` of the waiting job that is due next and is not held."""
        ...

    async def log(self, id: str, after: int, limit: int) -> Log:
        """Give lines of a job's log with a number above ``after``."""
        ...

    async def queued(self, ops: Sequence[str], most: int) -> int:
        """Count the jobs of these operations that are queued and not begun, up to so many."""
        ...

    async def overview(self) -> Overview:
        """Count what is there."""
        ...

    # -- schedules and limits

    async def add_schedule(self, schedule: Schedule) -> None:
        """Keep a schedule."""
        ...

    async def remove_schedule(self, id: str) -> bool:
        """Remove a schedule; tells whether it was there."""
        ...

    async def schedules(self) -> list[Schedule]:
        """Give all schedules, by the time at which they are due."""
        ...

    async def set_limit(self, limit: Limit) -> None:
        """Keep a limit, in place of an earlier one of the same operation."""
        ...

    async def remove_limit(self, op: str) -> bool:
        """Remove a limit; tells whether it was there."""
        ...

    async def limits(self) -> list[Limit]:
        """Give all limits, by operation."""
        ...

    # -- records

    async def records(self, kind: str, names: Sequence[str] | None = None) -> list[Record]:
        """Give the records of a kind that exist, of these names or all, by name."""
        ...

    async def versions(self, kind: str) -> Mapping[str, int]:
        """Give the version of every record of a kind, by name."""
        ...

    # -- housekeeping

    async def prune(self, now: int, most: int = 1000) -> int:
        """Delete up to ``most`` ended jobs beyond the retention; gives how many there were."""
        ...
