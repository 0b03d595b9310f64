"""The record of one machine: what is known of it from the intent to rent it until it is gone.

A record is written before the vendor is asked, and its name is all that is needed to find the
machine again.  So a machine that nobody has a record of cannot come to be by a crash of ours.
Times are milliseconds since 1970 UTC.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """Where a machine is in its life."""

    #: The vendor is about to be asked, or has been and has not answered.
    ORDERED = "ordered"
    #: Nobody knows whether it exists: looked up until that is sure.
    UNKNOWN = "unknown"
    #: The vendor refused.  It may exist all the same, and is looked up until that is sure.
    REFUSED = "refused"
    #: The vendor has it; it has not joined the bus.
    BOOTING = "booting"
    #: Its agents are there, and have to pass the self-test.
    TESTING = "testing"
    #: It counts.
    READY = "ready"
    #: It takes nothing new, and goes once it has finished what it runs.
    DRAINING = "draining"
    #: The vendor is asked to delete it, until it is gone.
    LEAVING = "leaving"

    # Final ones.
    #: It existed and is gone.
    GONE = "gone"
    #: It never existed: the vendor refused, or nothing came of it.
    NEVER = "never"

    @property
    def final(self) -> bool:
        """Whether nothing more becomes of it."""
        return self in (State.GONE, State.NEVER)

    @property
    def costs(self) -> bool:
        """Whether it counts against a budget: it exists, or may."""
        return not self.final

    @property
    def in_doubt(self) -> bool:
        """Whether nobody knows yet if it exists."""
        return self in _IN_DOUBT

    @property
    def counts(self) -> bool:
        """Whether it is one of the machines that the pool has, or is about to have."""
        return self in _COUNTED


_IN_DOUBT = frozenset({State.ORDERED, State.UNKNOWN, State.REFUSED})
_COUNTED = frozenset({State.ORDERED, State.UNKNOWN, State.BOOTING, State.TESTING, State.READY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """See the module."""

    #: Its name at the vendor and on the bus: its account, and the beginning of its agents' names.
    name: str
    pool: str
    #: What it is booked under besides the pool.
    label: str = ""
    state: State
    #: Since when it is in this state.
    since: int
    vendor: str
    region: str
    type: str
    arch: str = "x86_64"
    cpu: float = 0.0
    ram: int = 0
    #: Of an hour, in the currency of the vendor; and what one of that costs in the home's.
    price: float
    currency: str
    rate: float = 1.0
    #: When the record was made; when the vendor began to count, as far as we know; and stopped.
    created: int
    began: int | None = None
    ended: int | None = None
    #: When its time is over.
    expires: int
    #: What the vendor calls it.
    id: str = ""
    #: Last words of the vendor about it, and why it is to go.
    said: str = ""
    why: str = ""
    #: Times that something was tried in this state, and when it is tried again.
    tries: int = 0
    due: int = 0
    #: Whether its vendor has accepted to delete it.
    ending: bool = False
    #: Look-ups in a row that did not show it, and when the last of them was.
    unseen: int = 0
    looked: int = 0
    #: Another one is to take its place.
    retiring: bool = False
    #: Image that its disk was frozen to.
    image: str = ""
    #: Counts how often it was saved; 0 if it never was.
    version: int = 0

    @property
    def hourly(self) -> float:
        """Its price of an hour in the home's currency."""
        return self.price * self.rate
