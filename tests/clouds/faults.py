"""What is to go wrong at a vendor, how often and for whom."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .wire import Ask

#: Each kind of fault, and the operation that it hits unless told otherwise.
KINDS: Final[Mapping[str, str]] = {
    # Refused: nothing is made.
    "capacity": "create",
    "quota": "create",
    "auth": "create",
    "rate": "create",
    "server": "create",
    # The connection is held for `seconds` and then cut; nothing is made.
    "timeout": "create",
    # Made, and answered with the vendor's internal error.
    "created_error": "create",
    # Made, and answered `seconds` late.
    "created_slow": "create",
    # Made, and never runs.
    "error_state": "create",
    # Sizes are listed with a price of nothing, all or those of `type`.
    "no_price": "sizes",
    # Answered with an error; the machine stays.
    "delete_fails": "delete",
    # The list shows what was there `seconds` ago, or before the last `changes`.
    "stale": "list",
}

#: Operations that a fault can be for; "any" is every one.
OPERATIONS: Final = (
    "create",
    "list",
    "one",
    "delete",
    "sizes",
    "images",
    "freeze",
    "limits",
    "other",
    "any",
)


@dataclass(slots=True)
class Fault:
    """One fault; an empty filter matches everything."""

    kind: str
    #: The operation that it hits; by default the one in :data:`KINDS`.
    on: str = ""
    #: How many requests it hits; None is all from now on.
    count: int | None = 1
    region: str = ""
    type: str = ""
    name: str = ""
    #: The part of the matching requests that it hits, drawn with ``seed``.
    probability: float = 1.0
    seed: int = 0
    #: For time-outs, late answers and stale lists.
    seconds: float = 30.0
    changes: int = 0
    #: Retry-After in seconds, where the kind is "rate".
    after: int | None = None
    #: The HTTP status instead of the vendor's own.
    status: int | None = None
    #: Given by :class:`Faults`.
    id: int = 0
    hits: int = 0
    _random: random.Random = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no such fault: {self.kind!r}; there are {', '.join(KINDS)}")
        self.on = self.on or KINDS[self.kind]
        if self.on not in OPERATIONS:
            raise ValueError(f"no such operation: {self.on!r}; there are {', '.join(OPERATIONS)}")
        # What comes over the wire has no types.
        numbers: tuple[Any, ...] = (self.probability, self.seed, self.seconds, self.changes)
        optional: tuple[Any, ...] = (self.count, self.after, self.status)
        if not all(isinstance(number, int | float) for number in numbers) or not all(
            number is None or isinstance(number, int) for number in optional
        ):
            raise TypeError("count, after, status, changes, seconds, probability: numbers")
        self._random = random.Random(self.seed)

    def meets(self, ask: Ask) -> bool:
        """Say whether it hits this request; draws if it is left to chance."""
        # A list of sizes is of all types: which of them has no price is seen in the answer.
        type_ = "" if self.kind == "no_price" else self.type
        wanted = ((self.region, ask.region), (type_, ask.type), (self.name, ask.name))
        if self.on not in ("any", ask.operation) or self.count == 0:
            return False
        if any(filter_ and filter_ != value for filter_, value in wanted):
            return False
        return self.probability >= 1 or self._random.random() < self.probability

    def row(self) -> dict[str, Any]:
        """Say it in JSON."""
        return {key: value for key, value in asdict(self).items() if not key.startswith("_")}


class Faults:
    """The faults of one vendor, the oldest first."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._ids = itertools.count(1)

    def add(self, fault: Fault) -> Fault:
        """Let this go wrong from now on."""
        fault.id = next(self._ids)
        self._faults.append(fault)
        return fault

    def remove(self, id: int) -> None:
        """Let it go wrong no more; nothing if it is not there."""
        self._faults = [fault for fault in self._faults if fault.id != id]

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    def take(self, ask: Ask) -> Fault | None:
        """Give the oldest fault that hits this request, and count it down."""
        for fault in self._faults:
            if fault.meets(ask):
                fault.hits += 1
                if fault.count is not None:
                    fault.count -= 1
                return fault
        return None

    def rows(self) -> list[dict[str, Any]]:
        """Say all of them in JSON, also those that are used up."""
        return [fault.row() for fault in self._faults]
