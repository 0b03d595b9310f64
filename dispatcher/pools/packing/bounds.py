"""What a packing costs at least, without a solver.

Whatever processors and memory are taken to be worth, a box carries at most its size of them; what
the jobs are worth, less what boxes are worth more than their price, is a bound.  The best such worth
is searched for.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from .problem import Problem

#: Steps of a search by thirds: to better than a millionth.
_STEPS = 48


def simple(problem: Problem) -> float:
    """Give a bound: no packing costs less."""
    cpu = sum(each.cpu * each.count for each in problem.classes)
    ram = sum(each.ram * each.count for each in problem.classes)
    jobs = problem.jobs
    boxes = [(box.cpu, box.ram, box.price, min(box.cap, jobs)) for box in problem.boxes]

    def bound(a: float, b: float) -> float:
        extra = sum(cap * max(0.0, a * w + b * h - price) for w, h, price, cap in boxes)
        return a * cpu + b * ram - extra

    most = max((price for _, _, price, _ in boxes), default=0.0)

    def best(a: float) -> float:
        return _greatest(lambda b: bound(a, b), most * 2)

    found = _greatest(best, most * 2)
    # Each job has to be somewhere, also the one that only dear boxes carry.
    single = max(
        (
            min((box.price for box in problem.boxes if box.fits(each)), default=0.0)
            for each in problem.classes
        ),
        default=0.0,
    )
    return max(0.0, found, single)


def _greatest(function: Callable[[float], float], high: float) -> float:
    """Give the greatest value of a concave function that was met between 0 and a bound."""
    low, best = 0.0, -inf
    for _ in range(_STEPS):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        left, right = function(one), function(two)
        best = max(best, left, right)
        if left < right:
            low = one
        else:
            high = two
    return best
