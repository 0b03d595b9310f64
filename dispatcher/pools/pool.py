"""The record of a pool: what it is to be, how many machines it wants now, and what happened lately.

Times are milliseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from .scaling import Memory
from .spec import PoolSpec

#: Events that are remembered.
MAX_EVENTS: Final = 40


class Phase(Enum):
    """What is to become of a pool."""

    #: It has as many machines as it wants.
    UP = "up"
    #: Its machines finish what they run and go; it stays, with none, until it is applied again.
    DRAINED = "drained"
    #: The same, and their disks are kept as images.
    FROZEN = "frozen"
    #: The same as drained, and then it is forgotten.
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened to a pool."""

    at: int
    #: In one word, such as ``refused``, ``joined``, ``lost``.
    what: str
    #: The machine, or the offer, that it is about.
    about: str
    #: The vendor's words, or the reason.
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """See the module."""

    spec: PoolSpec
    #: Bare address of whoever applied it last.
    caller: str
    created: int
    phase: Phase = Phase.UP
    #: Machines that it wants now, and why.
    wanted: int = 0
    why: str = ""
    #: What the scaling remembers from one look to the next.
    memory: Memory = field(default_factory=Memory)
    #: Hash of the plan that was applied last.
    hash: str = ""
    #: Why it has fewer machines than it wants; empty if it has them, or they are on their way.
    short: str = ""
    #: Newest last.
    events: Sequence[Event] = ()
    #: Machines that joined; that were refused by their vendors; that never joined; that were lost.
    joined: int = 0
    refused: int = 0
    never_joined: int = 0
    lost: int = 0
    #: Machines in a row that never joined, and until when no further ones are ordered for that.
    failures: int = 0
    pause: int = 0
    #: Counts how often it was saved; 0 if it never was.
    version: int = 0

    @property
    def name(self) -> str:
        """What it is called."""
        return self.spec.pool

    @property
    def freezes(self) -> bool:
        """Whether the disk of a machine that goes is kept as an image."""
        if self.phase is Phase.DOWN:
            return self.spec.life.on_down == "freeze"
        return self.phase is Phase.FROZEN

    def over(self, now: int) -> bool:
        """Tell whether its time is over, and nothing was done about that yet."""
        ends = self.spec.life.ends
        if ends is None or self.phase is Phase.DOWN:
            return False
        return now >= self.created + round(ends * 1000)

    def noting(self, *events: Event) -> Pool:
        """Give the pool with more events."""
        return replace(self, events=(*self.events, *events)[-MAX_EVENTS:]) if events else self
