"""One life of an agent as the dispatcher knows it: its last report, and what we sent it since."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, NewType

from spinal.protocols import Advertisement, Capabilities, Operation

if TYPE_CHECKING:
    from .index import Shelf

#: No report for so many seconds makes an agent suspect: two heartbeats and their jitter.
SUSPECT_AFTER = 12.0

#: Seconds since an agent was last heard after which nobody waits for its return.
LEASE = 15.0

#: How much older than its arrival a report may be, in seconds.  A call that ended within this time
#: may still count as running in the report, and one that was sent may not count yet.
REPORT_AGE = 1.0

#: Work that may wait at an agent so that a slot is never empty for a round trip, in seconds.
PREFETCH = 0.05

#: Most calls that may wait at an agent, however short they are.
MAX_PREFETCH = 64
#: Seconds after which a call counts half in what an agent was given lately.
SHARED = 1.0

#: Loads are told apart in steps of this size.  Within a step agents take turns, so that noise in
#: reports of up to five seconds ago cannot draw every short call to one agent.
LOAD_STEP = 0.25

#: Weight of the newest run in the moving average of an operation's run time.
NEWEST = 0.2

#: One attempt of ours at an agent: the id and the number of the attempt, as ``holds`` lists it.
AttemptKey = tuple[str, int]

#: Counts the moves of all agents together, so that "who has stood there longest" is a number.
Turn = NewType("Turn", int)

#: Where the index has an agent: the order, the lane, and its rank there.
Spot = tuple[Any, ...]


class AgentState(Enum):
    """Whether an agent is there, as far as presence and reports tell."""

    AVAILABLE = "available"
    #: It is online, but no report came for :data:`SUSPECT_AFTER` seconds.
    SUSPECT = "suspect"
    #: It is offline; until its lease is over the same life may come back.
    GONE = "gone"


class KnownAgent:
    """An agent in its present life (epoch); a restarted agent is a new object.

    How busy it is follows from its report and from what we know better than a report of up to five
    seconds ago: ``busy`` is the calls of *others* in the last report, plus ours that are in flight
    now.  The others are what remains of the reported number once our own are taken away, and those
    are the attempts in ``holds`` that we still wait for or that ended just now.
    """

    __slots__ = (
        "_ended",
        "_flying",
        "_full",
        "_others",
        "_runs",
        "_share",
        "_shared_at",
        "address",
        "advertisement",
        "capabilities",
        "first_seen",
        "gone_at",
        "heard_at",
        "held",
        "last_seen",
        "moved",
        "prefetches",
        "shelves",
        "silent",
        "spots",
        "used",
    )

    def __init__(self, address: str, advertisement: Advertisement, now: float) -> None:
        self.address = address
        self.advertisement = advertisement
        #: What it offers; none until its description has come.
        self.capabilities: Capabilities | None = None
        self.first_seen = now
        self.last_seen = now
        #: When its last report came; unlike ``last_seen`` it is moved by nothing else.
        self.heard_at = now
        #: When it went offline, if it did.
        self.gone_at: float | None = None
        #: Whether it takes calls beyond its slots; until it refuses one, we suppose so.
        self.prefetches = True
        #: No report came for so long that it is suspect, as far as somebody has looked.
        self.silent = False
        #: Why it is given no work unless a call names it; empty if it is.
        self.held = ""
        #: Turn of its last move: it came, began or ended a call, or reported another load.
        self.used = Turn(0)
        #: Told of everything that may be a move; the index that has it.
        self.moved: Callable[[KnownAgent], None] | None = None
        #: What the index keeps with it: where it stands.
        self.shelves: list[Shelf] = []
        self.spots: tuple[Spot, ...] = ()
        #: Attempts in flight: when they were sent, and of which operation they are.
        self._flying: dict[AttemptKey, tuple[float, str]] = {}
        #: Operations that it refused as busy since its last report.
        self._full: set[str] = set()
        self._ended: dict[AttemptKey, float] = {}
        self._others = 0
        self._runs: dict[str, float] = {}
        self._share = 0.0
        self._shared_at = now
        self.report(advertisement, now)

    def __repr__(self) -> str:
        return f"<KnownAgent {self.address} epoch {self.epoch} busy {self.busy}/{self.slots}>"

    # -- what it says

    @property
    def epoch(self) -> int:
        """The number of this life."""
        return self.advertisement.epoch

    @property
    def slots(self) -> int:
        """How many calls it runs at once."""
        return self.advertisement.slots

    @property
    def operations(self) -> Mapping[str, Operation]:
        """What it offers, by path; empty while its description is not known."""
        return self.capabilities.operations if self.capabilities else {}

    def state(self, now: float) -> AgentState:
        """Tell whether it is there."""
        if self.gone_at is not None:
            return AgentState.GONE
        return AgentState.SUSPECT if self.is_silent(now) else AgentState.AVAILABLE

    def is_silent(self, now: float) -> bool:
        """Tell whether no report came for :data:`SUSPECT_AFTER` seconds."""
        return now - self.last_seen > SUSPECT_AFTER

    def lease_over(self, now: float) -> bool:
        """Tell whether it was silent for so long that nobody waits for it."""
        return now - self.last_seen > LEASE

    def report(self, advertisement: Advertisement, now: float) -> None:
        """Take a report of the same life."""
        self.advertisement = advertisement
        self.last_seen = self.heard_at = now
        self.gone_at = None
        self._full.clear()
        self.silent = False
        if self._ended:
            self._forget(now)
        if not self._flying and not self._ended:
            ours = 0
        elif "holds" in advertisement.features and not advertisement.more:
            held = advertisement.held
            ours = sum(1 for key in held if key in self._flying or key in self._ended)
        else:
            ours = len(self._flying) + len(self._ended)
        self._others = max(0, advertisement.busy - ours)
        self._move()

    def leaves(self, now: float) -> None:
        """Learn that it went offline."""
        self.gone_at = now
        self._move()

    def falls_silent(self) -> None:
        """Learn that :meth:`is_silent` has become true."""
        self.silent = True
        self._move()

    def spare(self, now: float) -> None:
        """Count it as heard now, although it said nothing: it could not."""
        self.last_seen = now
        self.silent = False
        self._move()

    # -- what we sent it

    @property
    def busy(self) -> int:
        """How many calls it runs, of ours and of others, to the best of our knowledge."""
        return self._others + len(self._flying)

    @property
    def in_flight(self) -> int:
        """How many of our attempts are there."""
        return len(self._flying)

    def attempts(self) -> Iterator[AttemptKey]:
        """Give our attempts that are in flight, oldest first."""
        return iter(tuple(self._flying))

    def running(self) -> Iterator[tuple[str, str]]:
        """Give id and operation of our attempts that are in flight, oldest first."""
        return iter([(id, op) for (id, _), (_, op) in self._flying.items()])

    def started(self, key: AttemptKey, op: str, now: float) -> None:
        """Count an attempt that is being sent to it."""
        self._flying[key] = (now, op)
        self._share = self.share(now) + 1.0
        self._shared_at = now
        self._move()

    def share(self, now: float) -> float:
        """How much it was given lately: each call counts 1, and half of that :data:`SHARED` later."""
        return self._share * math.exp2((self._shared_at - now) / SHARED)

    def ended(self, key: AttemptKey, now: float) -> None:
        """Count an attempt as over, however it ended; one that is not in flight is ignored."""
        flying = self._flying.pop(key, None)
        if flying is not None:
            self._full.discard(flying[1])
            self._forget(now)
            self._ended[key] = now
            self._move()

    def refused(self, key: AttemptKey) -> None:
        """Learn that it had no room for an attempt, although we thought so.

        Either all its slots were ours, and it keeps nothing waiting; or slots of which we do not
        know are taken, and it counts as full for this operation until its next report or until a
        call of ours of the same operation ends there.
        """
        flying = self._flying.pop(key, None)
        if len(self._flying) >= self.slots:
            self.prefetches = False
        elif flying is not None:
            self._full.add(flying[1])
        self._move()

    @property
    def refuses(self) -> bool:
        """Whether there is an operation that it refused as busy and may still refuse."""
        return bool(self._full)

    def full(self, op: str) -> bool:
        """Tell whether it refused this operation as busy and may still do so."""
        return op in self._full

    def drains(self) -> None:
        """Learn that it takes no new work, before its next report says so."""
        self.advertisement = replace(self.advertisement, state="draining")
        self._move()

    def hold(self, why: str) -> None:
        """Give it no work but what is for it alone; with an empty reason, any again."""
        self.held = why
        self._move()

    def unheld(self) -> list[AttemptKey]:
        """Give the attempts that the last report should list among ``holds`` and does not.

        Those that were sent after the report or up to :data:`REPORT_AGE` before it are left out,
        because they had no chance to be in it.  An agent without the feature is believed, and so is
        a report that does not list all it holds.
        """
        if "holds" not in self.advertisement.features or self.advertisement.more:
            return []
        since = self.last_seen - REPORT_AGE
        expected = [key for key, (sent, _) in self._flying.items() if sent < since]
        held = self.advertisement.held if expected else ()
        return [key for key in expected if key not in held]

    # -- how much more it can take

    @property
    def load_step(self) -> int:
        """The load that it reported, in steps of :data:`LOAD_STEP`."""
        return int(min(self.advertisement.load, 1e9) / LOAD_STEP)

    def ran(self, op: str, seconds: float) -> None:
        """Learn how long one call of an operation ran here."""
        mean = self._runs.get(op)
        self._runs[op] = seconds if mean is None else mean + NEWEST * (seconds - mean)
        if self.busy >= self.slots:
            self._move()

    def has_room(self, op: str) -> bool:
        """Tell whether it may be sent one more call of an operation."""
        busy, slots = self.busy, self.slots
        return busy < slots or (slots > 0 and busy < slots + self.prefetch(op))

    def open_to(self) -> list[str]:
        """Give the operations of which it can start a call, where it cannot start one of any."""
        ops = self.operations if self.busy < self.slots else self._runs
        return [op for op in ops if op not in self._full and self.has_room(op)]

    def prefetch(self, op: str) -> int:
        """How many calls of an operation may wait here: about :data:`PREFETCH` seconds of work."""
        mean = self._runs.get(op)
        if mean is None or not self.prefetches:
            return 0
        work = self.slots * PREFETCH
        # A mean of nothing is a clock that is too coarse, not work that is free.
        return MAX_PREFETCH if work >= MAX_PREFETCH * mean else int(work / mean)

    @property
    def rests(self) -> bool:
        """Whether it can start no call at all now, as the index has it."""
        # Who is held may still be named.
        return not self.held and len(self.spots) == 1 and not self.spots[0][0]

    # -- helpers

    def _move(self) -> None:
        if self.moved is not None:
            self.moved(self)

    def _forget(self, now: float) -> None:
        """Drop what ended so long ago that no report can still count it."""
        ended = self._ended
        while ended:
            oldest = next(iter(ended))
            if ended[oldest] >= now - REPORT_AGE:
                return
            del ended[oldest]
