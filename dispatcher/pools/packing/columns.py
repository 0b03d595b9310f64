"""Column generation: the packing as a choice of patterns, found as they are needed.

A pattern is a box and what it carries.  The master chooses how often each is used; its prices for
the jobs say which pattern is missing, which is found by dynamic programming over what is left of a
box.  Gilmore and Gomory, 1961; the bound for prices that are not final is Lagrange's.

Once the bound and a packing are near each other, a better packing can only use patterns whose
reduced cost is less than what lies between.  Where these can all be listed, the choice among them is
exact, and its bound is one for the whole problem.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf
from typing import Any, Final

from .greedy import smaller
from .problem import Box, Class, Load, Problem
from .solver import Program, Whole

#: Rounds of generation.
MAX_ROUNDS: Final = 200

#: The same, for what is left after a dive.
DIVE_ROUNDS: Final = 6

#: Most numbers in the tables of one round.
MAX_CELLS: Final = 12_000_000

#: Most patterns that are listed, and steps of the search for them.
MAX_LISTED: Final = 12_000
MAX_STEPS: Final = 600_000

_SMALL: Final = 1e-7


@dataclass(frozen=True, slots=True)
class Found:
    """What came of it."""

    #: None if no packing was found in time.
    packed: list[tuple[int, Load]] | None
    #: No packing costs less.
    bound: float
    #: Whether that was the choice among all patterns that can be in a better packing.
    exact: bool


def generate(
    problem: Problem,
    start: Sequence[tuple[int, Load]],
    seconds: float,
    clock: Callable[[], float],
    good: float,
) -> Found:
    """Pack by column generation.

    Args:
        problem: what to pack.
        start: a packing, whose patterns are taken up; empty if none is known.
        seconds: of computing after which the best that was found is given.
        clock: tells the seconds of computing.
        good: how near the bound is near enough, as a share.

    Raises:
        SolverError: the solver gave up.
    """
    until = clock() + seconds
    master = _Master(problem)
    for place, load in start:
        master.add(place, load)
    for place, box in enumerate(problem.boxes):
        for index, each in enumerate(problem.classes):
            if box.fits(each):
                master.add(place, _alone(problem, index, box))
    pricing = _Pricing(problem, up=True)
    checking = pricing if pricing.exact else _Pricing(problem, up=False)
    proof = _Proof(0.0, [0.0] * len(problem.classes), [0.0] * len(problem.boxes))
    for _ in range(MAX_ROUNDS):
        prices = master.prices()
        tables = pricing.tables(prices.worth)
        checked = tables if checking is pricing else checking.tables(prices.worth)
        values = [checking.best(checked, place) for place in range(len(problem.boxes))]
        proof = max(proof, _proof(problem, prices, values), key=lambda each: each.bound)
        new = [
            pricing.pattern(tables, place, prices.worth)
            if pricing.best(tables, place) > box.price + prices.extra[place] + _SMALL
            else None
            for place, box in enumerate(problem.boxes)
        ]
        added = [master.add(place, load) for place, load in enumerate(new) if load is not None]
        if not any(added) or clock() > until - seconds / 2:
            break

    best = list(start)
    above = problem.price(best) if best else inf
    exact = False

    def better(found: Whole, packed: list[tuple[int, Load]] | None) -> None:
        nonlocal best, above, proof
        if packed is not None and problem.price(packed) < above:
            best, above = packed, problem.price(packed)
        # All patterns of a better packing were there to choose from.
        if exact:
            proof = _Proof(max(proof.bound, min(above, found.bound)), proof.worth, proof.extra)

    dived = _dive(problem, master.patterns, clock, clock() + (until - clock()) / 3)
    if dived is not None and problem.price(dived) < above:
        best, above = dived, problem.price(dived)
    for place, load in dived or ():
        master.add(place, load)
    if best and above <= proof.bound * (1 + good / 5):
        return Found(best, min(proof.bound, above), exact)
    better(*master.whole(max(0.1, (until - clock()) / 3), good / 5))
    if best and above > proof.bound * (1 + good / 5) and clock() < until:
        tables = pricing.tables(proof.worth)
        for part in (1, 4, 16):
            # What costs more than this is in no better packing.
            most = (above - proof.bound) / part + _SMALL
            listed = pricing.listed(tables, proof, most)
            if listed is not None:
                exact = part == 1 and pricing.exact
                for place, load in listed:
                    master.add(place, load)
                better(*master.whole(max(0.1, until - clock()), good / 5))
                break
    return Found(best or None, min(proof.bound, above), exact)


def _dive(
    problem: Problem,
    patterns: Sequence[tuple[int, Load]],
    clock: Callable[[], float],
    until: float,
) -> list[tuple[int, Load]] | None:
    """Take what the master uses whole times, pack the rest anew with patterns of its own, and so on.

    Returns:
        None where the boxes do not suffice this way, or the time does not.
    """
    left = [each.count for each in problem.classes]
    caps = [box.cap for box in problem.boxes]
    limits = [most for _, most in problem.limits]
    packed: list[tuple[int, Load]] = []
    known = dict.fromkeys(patterns)
    while any(left):
        if clock() > until:
            return None
        rest = Problem(
            [replace(each, count=count) for each, count in zip(problem.classes, left, strict=True)],
            [replace(box, cap=cap) for box, cap in zip(problem.boxes, caps, strict=True)],
            [(members, n) for (members, _), n in zip(problem.limits, limits, strict=True)],
        )
        master, pricing = _Master(rest), _Pricing(rest, up=True)
        for box, load in known:
            cut = tuple(map(min, load, left))
            if any(cut):
                master.add(box, cut)
        for _ in range(DIVE_ROUNDS):
            prices = master.prices()
            tables = pricing.tables(prices.worth)
            new = [
                (place, pricing.pattern(tables, place, prices.worth))
                for place, box in enumerate(rest.boxes)
                if pricing.best(tables, place) > box.price + prices.extra[place] + _SMALL
            ]
            added = [master.add(place, load) for place, load in new]
            if not any(added):
                break
        master.prices()
        used = master.used()
        if not used:
            return None
        known.update(dict.fromkeys((box, load) for _, box, load in used))
        # What is used whole times; if nothing is, what is used most.
        whole = [each for each in used if each[0] >= 1 - _SMALL] or used[:1]
        for value, box, load in whole:
            for _ in range(max(1, int(value + _SMALL))):
                carried = tuple(map(min, load, left))
                if not any(carried):
                    break
                caps[box] -= 1
                for place, (members, _) in enumerate(problem.limits):
                    limits[place] -= box in members
                if caps[box] < 0 or any(n < 0 for n in limits):
                    return None
                left = [have - count for have, count in zip(left, carried, strict=True)]
                packed.append((box, carried))
    return smaller(problem, packed)


# -- the master


@dataclass(frozen=True, slots=True)
class _Prices:
    """What the master says: of a job of each class, of each limit, and of one box of each kind."""

    worth: Sequence[float]
    limits: Sequence[float]
    extra: Sequence[float]


class _Master:
    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._capped = [place for place, box in enumerate(problem.boxes) if not isinf(box.cap)]
        count = len(problem.classes)
        self._cap_row = {place: count + row for row, place in enumerate(self._capped)}
        self._first_limit = count + len(self._capped)
        self._rows = (
            [(float(each.count), inf) for each in problem.classes]
            + [(-inf, float(problem.boxes[place].cap)) for place in self._capped]
            + [(-inf, float(most)) for _, most in problem.limits]
        )
        # Jobs that find no room at all cost more than any machine, so that there is an answer.
        self._missing = 100 * max(1e-3, *(box.price for box in problem.boxes))
        self._patterns: dict[tuple[int, Load], None] = {}
        self._program = self._new()
        self._values: Sequence[float] = ()

    def _new(self) -> Program:
        program = Program(self._rows)
        for row in range(len(self._problem.classes)):
            program.column(self._missing, {row: 1.0})
        return program

    def add(self, box: int, load: Load) -> bool:
        """Add a pattern; tells whether it is new."""
        if (box, load) in self._patterns:
            return False
        self._patterns[box, load] = None
        self._program.column(self._problem.boxes[box].price, self._entries(box, load))
        return True

    def _entries(self, box: int, load: Load) -> dict[int, float]:
        entries = {row: float(count) for row, count in enumerate(load) if count}
        if box in self._cap_row:
            entries[self._cap_row[box]] = 1.0
        for row, (members, _) in enumerate(self._problem.limits, self._first_limit):
            if box in members:
                entries[row] = 1.0
        return entries

    def prices(self) -> _Prices:
        """Solve it in any numbers."""
        linear = self._program.relaxed()
        self._values, duals = linear.values, linear.duals
        classes = len(self._problem.classes)
        limits = [max(0.0, -value) for value in duals[self._first_limit :]]
        extra = [
            (max(0.0, -duals[self._cap_row[place]]) if place in self._cap_row else 0.0)
            + _of_limits(self._problem, place, limits)
            for place in range(len(self._problem.boxes))
        ]
        return _Prices([max(0.0, value) for value in duals[:classes]], limits, extra)

    @property
    def patterns(self) -> Sequence[tuple[int, Load]]:
        """All that there are."""
        return list(self._patterns)

    def used(self) -> list[tuple[float, int, Load]]:
        """Give how often each pattern is used in the last solution in any numbers, most first."""
        values = self._values[len(self._problem.classes) :]
        pairs = zip(values, self._patterns, strict=False)
        used = [(value, box, load) for value, (box, load) in pairs if value > _SMALL]
        return sorted(used, key=lambda each: -each[0])

    def whole(self, seconds: float, gap: float) -> tuple[Whole, list[tuple[int, Load]] | None]:
        """Solve it in whole numbers, with the patterns that there are."""
        program = self._new()
        for box, load in self._patterns:
            program.column(self._problem.boxes[box].price, self._entries(box, load))
        found = program.whole(seconds, gap)
        classes = len(self._problem.classes)
        if found.values is None or any(found.values[:classes]):
            return found, None
        left = [each.count for each in self._problem.classes]
        packed: list[tuple[int, Load]] = []
        for (box, load), times in zip(self._patterns, found.values[classes:], strict=True):
            for _ in range(times):
                # What is covered twice is carried once.
                carried = tuple(map(min, load, left))
                left = [have - count for have, count in zip(left, carried, strict=True)]
                packed.append((box, carried))
        return found, None if any(left) else smaller(self._problem, packed)


def _alone(problem: Problem, index: int, box: Box) -> Load:
    each = problem.classes[index]
    times = [each.count]
    times += [box.cpu // each.cpu] if each.cpu else []
    times += [box.ram // each.ram] if each.ram else []
    return tuple(min(times) if place == index else 0 for place in range(len(problem.classes)))


# -- the bound


@dataclass(frozen=True, slots=True)
class _Proof:
    """Prices for which no pattern costs less than what it carries, and the bound that they give."""

    bound: float
    worth: Sequence[float]
    extra: Sequence[float]


def _of_limits(problem: Problem, place: int, limits: Sequence[float]) -> float:
    pairs = zip(problem.limits, limits, strict=True)
    return sum(price for (members, _), price in pairs if place in members)


def _proof(problem: Problem, prices: _Prices, values: Sequence[float]) -> _Proof:
    """Make a proof of prices that may be a little too high.

    Args:
        problem: of which.
        prices: as the master has them.
        values: what each box can carry at most by these prices.
    """
    limited = [_of_limits(problem, place, prices.limits) for place in range(len(values))]
    scale = 1.0
    for box, value, more in zip(problem.boxes, values, limited, strict=True):
        if isinf(box.cap) and value > box.price + more:
            scale = max(scale, value / (box.price + more))
    extra = list(limited)
    paid = 0.0
    for place, (box, value) in enumerate(zip(problem.boxes, values, strict=True)):
        if not isinf(box.cap):
            over = max(0.0, value / scale - box.price - limited[place])
            extra[place] += over
            paid += over * box.cap
    paid += sum(
        most * price for (_, most), price in zip(problem.limits, prices.limits, strict=True)
    )
    worth = [value / scale for value in prices.worth]
    total = sum(value * each.count for value, each in zip(worth, problem.classes, strict=True))
    return _Proof(max(0.0, total - paid), worth, extra)


# -- patterns that are missing

#: Table for no class, for the first one, for the first two ...: most worth for what room there is.
_Tables = dict[str, list[Any]]


class _Pricing:
    """Finds patterns by what they carry.

    Args:
        problem: of which.
        up: where sizes have to be counted in coarser units, whether those of jobs are rounded up,
            so that patterns hold, or down, so that the bound does.
    """

    def __init__(self, problem: Problem, *, up: bool) -> None:
        self._numpy: Any = importlib.import_module("numpy")
        self._problem = problem
        self._all = all(not each.arch for each in problem.classes)
        cpu = sum(each.cpu * each.count for each in problem.classes)
        ram = sum(each.ram * each.count for each in problem.classes)
        rooms = [(min(box.cpu, cpu), min(box.ram, ram)) for box in problem.boxes]
        width, height = max(w for w, _ in rooms), max(h for _, h in rooms)
        archs = 1 if self._all else len({box.arch for box in problem.boxes})
        cells = max(64, MAX_CELLS // (archs * (len(problem.classes) + 1)))
        units = [1, 1]
        while (width // units[0] + 1) * (height // units[1] + 1) > cells:
            units[width // units[0] < height // units[1]] *= 2
        self.exact = units == [1, 1]
        self._sizes = [
            (-(-each.cpu // units[0]), -(-each.ram // units[1]))
            if up
            else (each.cpu // units[0], each.ram // units[1])
            for each in problem.classes
        ]
        self._rooms = [(w // units[0], h // units[1]) for w, h in rooms]
        self._shape = (width // units[0] + 1, height // units[1] + 1)

    def _arch(self, place: int) -> str:
        return "" if self._all else self._problem.boxes[place].arch

    def tables(self, worth: Sequence[float]) -> _Tables:
        """Fill the tables for prices of jobs."""
        archs = sorted({self._arch(place) for place in range(len(self._problem.boxes))})
        return {arch: self._filled(arch, worth) for arch in archs}

    def _filled(self, arch: str, worth: Sequence[float]) -> list[Any]:
        width, height = self._shape
        table = self._numpy.zeros(self._shape)
        tables = [table]
        for each, (w, h), value in zip(self._problem.classes, self._sizes, worth, strict=True):
            if value > 0 and each.arch in ("", arch):
                table = table.copy()
                # Any number is a sum of these, each of them once.
                for times in _parts(_times(each, w, h, width - 1, height - 1)):
                    over, up = times * w, times * h
                    more = table[: width - over, : height - up] + times * value
                    self._numpy.maximum(table[over:, up:], more, out=table[over:, up:])
            tables.append(table)
        return tables

    def best(self, tables: _Tables, place: int) -> float:
        """Give the most worth that a box carries."""
        return float(tables[self._arch(place)][-1].item(*self._rooms[place]))

    def pattern(self, tables: _Tables, place: int, worth: Sequence[float]) -> Load:
        """Give what it carries then, filled up with what is worth nothing."""
        arch, (w, h) = self._arch(place), self._rooms[place]
        own = tables[arch]
        load = [0] * len(worth)
        for index in reversed(range(len(worth))):
            if own[index] is own[index + 1]:
                continue
            cpu, ram = self._sizes[index]
            target, value = own[index + 1].item(w, h), worth[index]
            each = self._problem.classes[index]
            for count in range(_times(each, cpu, ram, w, h) + 1):
                got = own[index].item(w - count * cpu, h - count * ram) + count * value
                if got >= target - 1e-9 * (1 + target):
                    load[index] = count
                    w, h = w - count * cpu, h - count * ram
                    break
        for index, each in enumerate(self._problem.classes):
            if each.arch in ("", arch) or self._all:
                cpu, ram = self._sizes[index]
                more = min(each.count - load[index], _times(each, cpu, ram, w, h))
                load[index] += more
                w, h = w - more * cpu, h - more * ram
        return tuple(load)

    def listed(self, tables: _Tables, proof: _Proof, most: float) -> list[tuple[int, Load]] | None:
        """List all patterns, to which nothing can be added, of at most some reduced cost.

        Returns:
            None if there are too many.
        """
        found: list[tuple[int, Load]] = []
        steps = 0
        for place, box in enumerate(self._problem.boxes):
            least = box.price + proof.extra[place] - most
            for load in self._walk(tables, place, proof.worth, least):
                steps += 1
                if load is not None:
                    found.append((place, load))
                if len(found) > MAX_LISTED or steps > MAX_STEPS:
                    return None
        return found

    def _walk(
        self, tables: _Tables, place: int, worth: Sequence[float], least: float
    ) -> Iterator[Load | None]:
        """Give the patterns of one box, and None for each step on the way."""
        arch = self._arch(place)
        own, classes = tables[arch], self._problem.classes
        stack: list[tuple[int, int, int, float, Load]] = [
            (len(classes), *self._rooms[place], 0.0, ())
        ]
        while stack:
            index, w, h, carried, load = stack.pop()
            if index == 0:
                full = all(
                    count == each.count or _times(each, *size, w, h) == 0
                    for each, size, count in zip(classes, self._sizes, load, strict=True)
                    if each.arch in ("", arch) or self._all
                )
                yield load if full else None
                continue
            index -= 1
            yield None
            each, (cpu, ram) = classes[index], self._sizes[index]
            can = each.arch in ("", arch) or self._all
            for count in range(_times(each, cpu, ram, w, h) + 1 if can else 1):
                left = w - count * cpu, h - count * ram
                sofar = carried + count * worth[index]
                if sofar + own[index].item(*left) >= least:
                    stack.append((index, *left, sofar, (count, *load)))


def _times(each: Class, cpu: int, ram: int, has_cpu: int, has_ram: int) -> int:
    """Give how many jobs of a class fit into some room, of those that there are."""
    most = each.count
    if cpu:
        most = min(most, has_cpu // cpu)
    if ram:
        most = min(most, has_ram // ram)
    return most


def _parts(count: int) -> Iterator[int]:
    """Give numbers of which every number up to a count is a sum."""
    part = 1
    while count > 0:
        yield min(part, count)
        count -= part
        part *= 2
