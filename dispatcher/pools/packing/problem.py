"""What is to be packed onto what, in whole numbers.

Jobs that are equal are one class, and machines that are equal are one box.  Sizes are in units that
divide what all jobs ask for, so that nothing is lost by counting in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, gcd, inf

#: Boxes that may together be taken at most so often: places of the boxes, and how often.
Limit = tuple[frozenset[int], int]

#: How many jobs of each class one box carries.
Load = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Class:
    """Equal jobs."""

    cpu: int
    ram: int
    count: int
    #: Kinds of processor that they run on; none means all.
    arch: str = ""
    #: By which jobs are put in order.
    size: float = 0.0


@dataclass(frozen=True, slots=True)
class Box:
    """Equal machines."""

    cpu: int
    ram: int
    price: float
    #: Most of them; infinity if nothing is said.
    cap: float = inf
    arch: str = ""

    def fits(self, each: Class) -> bool:
        """Tell whether it carries one job of a class."""
        return each.arch in ("", self.arch) and each.cpu <= self.cpu and each.ram <= self.ram


@dataclass(frozen=True, slots=True)
class Problem:
    """See the module."""

    classes: Sequence[Class]
    boxes: Sequence[Box]
    limits: Sequence[Limit] = ()

    @property
    def jobs(self) -> int:
        """How many there are."""
        return sum(each.count for each in self.classes)

    def price(self, packed: Sequence[tuple[int, Load]]) -> float:
        """Give what boxes cost."""
        return sum(self.boxes[box].price for box, _ in packed)


class Stock:
    """How many boxes may still be taken."""

    def __init__(self, problem: Problem) -> None:
        self._caps = [each.cap for each in problem.boxes]
        self._limits = [most for _, most in problem.limits]
        self._of: list[list[int]] = [
            [place for place, (members, _) in enumerate(problem.limits) if box in members]
            for box in range(len(problem.boxes))
        ]

    def has(self, box: int) -> bool:
        """Tell whether there is one left."""
        return self._caps[box] >= 1 and all(self._limits[place] >= 1 for place in self._of[box])

    def take(self, box: int, count: int = 1) -> None:
        """Take some; a negative count gives them back."""
        self._caps[box] -= count
        for place in self._of[box]:
            self._limits[place] -= count


def whole(sizes: Sequence[int], rooms: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide what jobs ask for, and what machines have, by what divides all jobs."""
    unit = gcd(*sizes) or 1
    return [size // unit for size in sizes], [room // unit for room in rooms]


def milli(cpu: float) -> int:
    """Give a job's processors in thousandths, rounded up."""
    return max(0, ceil(cpu * 1000 - 1e-6))
