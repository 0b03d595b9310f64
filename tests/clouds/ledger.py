"""Every machine that one vendor ever made, and what was asked of it."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

#: What a machine is before it runs, when it does, and when it never will.
STARTING: Final = "starting"
RUNNING: Final = "running"
ERROR: Final = "error"

#: Seconds between two events at least; a float of this age has steps of a quarter of a microsecond.
STEP: Final = 1e-5


@dataclass(slots=True)
class Machine:
    """One machine, living or gone; times are seconds since the epoch."""

    name: str
    id: str
    type: str
    region: str
    created: float
    #: Counts from 1, in the order of creation.
    number: int
    image: str = ""
    tags: dict[str, str] | list[str] = field(default_factory=list[str])
    user_data: str = ""
    deleted: float | None = None
    #: Why it never runs, in the vendor's words.
    broken: str = ""
    #: What the vendor last showed of it, for a list that is stale.
    shown: Any = None

    def lives(self, at: float) -> bool:
        """Say whether it was there at that time."""
        return self.created <= at and (self.deleted is None or at < self.deleted)

    def state(self, at: float, boot: float) -> str:
        """Say what it was at that time, if it takes ``boot`` seconds to start."""
        if self.broken:
            return ERROR
        return RUNNING if at - self.created >= boot else STARTING

    def row(self) -> dict[str, Any]:
        """Say it in JSON, with the times in milliseconds."""
        return {
            "name": self.name,
            "id": self.id,
            "type": self.type,
            "region": self.region,
            "image": self.image,
            "created": int(self.created * 1000),
            "deleted": None if self.deleted is None else int(self.deleted * 1000),
            "tags": self.tags,
            "user_data": self.user_data,
            "broken": self.broken,
        }


class Ledger:
    """The machines of one vendor by id."""

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        #: How often a machine of this name was asked for, also in vain.
        self.creates: Counter[str] = Counter()
        #: How often each operation was asked for.
        self.requests: Counter[str] = Counter()
        #: When something was made or deleted.
        self.changes: list[float] = []
        self._numbers = itertools.count(1)
        self._last = 0.0

    def now(self) -> float:
        """Give the time, later than at the call before, so that events have an order."""
        self._last = max(time.time(), self._last + STEP)
        return self._last

    def number(self) -> int:
        """Give the next machine's number."""
        return next(self._numbers)

    def add(self, machine: Machine) -> None:
        """Write down a machine that was made."""
        self.machines[machine.id] = machine
        self.changes.append(machine.created)

    def delete(self, machine: Machine) -> None:
        """Write down that it is gone; twice is once."""
        if machine.deleted is None:
            machine.deleted = self.now()
            self.changes.append(machine.deleted)

    def living(self, at: float) -> list[Machine]:
        """List the machines that were there at that time, the oldest first."""
        return [machine for machine in self.machines.values() if machine.lives(at)]

    def before(self, changes: int) -> float:
        """Give a time before the last so many changes."""
        if changes <= 0:
            return self.now()
        return self.changes[-changes:][0] - STEP / 2 if self.changes else self.now()

    def row(self) -> dict[str, Any]:
        """Say all of it in JSON."""
        return {
            "machines": [machine.row() for machine in self.machines.values()],
            "creates": dict(self.creates),
            "requests": dict(self.requests),
        }
