"""Packing: jobs of any sizes onto the machines that carry them for the least money.

With HiGHS (the extra ``packing``) by column generation, else by the best of several greedy ways.
Either way the answer comes with a bound, below which no packing can cost, and the gap to it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from spinal.agents.provider.offer import Offer
from spinal.protocols import SpinalError

from . import bounds, columns, greedy, solver
from .problem import Box, Class, Limit, Load, Problem, milli, whole

#: Seconds of computing after which the best that was found is given.
SECONDS: Final = 10.0

#: How far above the bound is near enough.
GOOD: Final = 0.01

_GIB: Final = 1024**3


class Unplaceable(SpinalError):
    """The machines do not suffice for the jobs; the text says in one line for which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Equal jobs."""

    cpu: float
    #: Bytes.
    ram: int
    count: int = 1
    #: ``x86_64``, ``arm64`` or ``any``.
    arch: str = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """One machine and its jobs."""

    #: Place in the list of offers, or else in that of the machines that run.
    offer: int | None = None
    running: int | None = None
    #: Place in the list of jobs, and how many of those.
    jobs: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """See the module."""

    #: Machines that run come first.
    carriers: Sequence[Carrier]
    #: Of what is bought.
    price: float
    bound: float
    #: By which share the price is above the bound.
    gap: float
    #: How it was found.
    method: str

    @property
    def purchases(self) -> Mapping[int, int]:
        """Place in the list of offers -> how many of it to buy."""
        return Counter(each.offer for each in self.carriers if each.offer is not None)


def pack(
    jobs: Sequence[Job],
    offers: Sequence[Offer],
    *,
    running: Sequence[Box] = (),
    limits: Mapping[str, int] | None = None,
    most: int | None = None,
    seconds: float = SECONDS,
    good: float = GOOD,
    solve: bool | None = None,
    clock: Callable[[], float] = time.thread_time,
) -> Packing:
    """Pack jobs onto machines.

    Args:
        jobs: what to pack.
        offers: in one currency; ``cap`` is how many of each can still be had.
        running: machines that are paid in any case and carry nothing yet; see :func:`room`.
        limits: vendor -> machines that can still be had there.
        most: machines that may be bought at most.
        seconds: of computing after which the best that was found is given; on a machine that is
            busy with other things it takes longer, so that the answer is the same all the same.
        good: a gap at which it is good enough.
        solve: whether HiGHS is used; where it is installed, if not said.
        clock: tells the seconds of computing.

    Raises:
        Unplaceable: some jobs fit on no machine, or no way was found to place them all.
    """
    if not jobs:
        return Packing(carriers=(), price=0.0, bound=0.0, gap=0.0, method="nothing to pack")
    began = clock()
    work = _Work(jobs, offers, running, limits or {}, most)
    problem = work.problem
    best: tuple[float, str, list[tuple[int, Load]]] | None = None
    for name, packed in greedy.variants(problem):
        price = problem.price(packed)
        if best is None or price < best[0] - 1e-12:
            best = price, name, packed
        if clock() - began > seconds / 4:
            break
    bound = bounds.simple(problem)
    note = " (install spinal[packing] for less)"
    if solver.available() if solve is None else solve:
        start = best[2] if best else []
        left = max(0.5, seconds - (clock() - began))
        try:
            found = columns.generate(problem, start, left, clock, good)
        except solver.SolverError as exc:
            note = f" (HiGHS gave up: {exc})"
        else:
            note = ""
            bound = max(bound, found.bound)
            if found.packed is not None and (best is None or problem.price(found.packed) < best[0]):
                how = "column generation, exact" if found.exact else "column generation"
                best = problem.price(found.packed), how, found.packed
            elif best is not None:
                best = best[0], f"{best[1]}, bound by column generation", best[2]
    if best is None:
        raise Unplaceable(
            f"no way was found to place {problem.jobs} jobs within the caps and limits of "
            f"{len(offers)} offers"
        )
    price, name, packed = best
    bound = min(bound, price)
    return Packing(
        carriers=work.carriers(packed),
        price=price,
        bound=bound,
        gap=0.0 if price - bound <= 1e-9 else price / bound - 1 if bound > 0 else inf,
        method=name + note,
    )


def first_fit_price(jobs: Sequence[Job], offers: Sequence[Offer]) -> float | None:
    """Give what plain first-fit-decreasing costs, to compare with; none where it finds no way."""
    problem = _Work(jobs, offers, (), {}, None).problem
    packed = greedy.first_fit(problem, [each.size for each in problem.classes])
    return None if packed is None else problem.price(packed)


def room(cpu: float, ram: int, arch: str) -> Box:
    """Say what a machine that runs has room for."""
    return Box(int(cpu * 1000 + 1e-6), ram, 0.0, 1.0, arch)


class _Work:
    """Jobs and offers as a problem, and back."""

    def __init__(
        self,
        jobs: Sequence[Job],
        offers: Sequence[Offer],
        running: Sequence[Box],
        limits: Mapping[str, int],
        most: int | None,
    ) -> None:
        merged: dict[tuple[int, int, str], list[int]] = {}
        for place, each in enumerate(jobs):
            arch = "" if each.arch == "any" else each.arch
            merged.setdefault((milli(each.cpu), each.ram, arch), []).append(place)
        self._places = list(merged.values())
        self._jobs = jobs
        # Each machine that runs is there once; those that are equal are one box.
        same: dict[Box, list[int]] = {}
        for place, box in enumerate(running):
            same.setdefault(box, []).append(place)
        self._running = list(same.values())
        kept = list(_useful(offers, limits, most))
        self._offers = [place for place, _ in kept]
        cpus, has_cpu = whole(
            [cpu for cpu, _, _ in merged],
            [box.cpu for box in same] + [int(each.cpu * 1000 + 1e-6) for _, each in kept],
        )
        rams, has_ram = whole(
            [ram for _, ram, _ in merged],
            [box.ram for box in same] + [each.ram for _, each in kept],
        )
        classes = [
            Class(
                cpu,
                ram,
                sum(jobs[place].count for place in places),
                arch,
                jobs[places[0]].cpu + jobs[places[0]].ram / _GIB / 4,
            )
            for cpu, ram, ((_, _, arch), places) in zip(cpus, rams, merged.items(), strict=True)
        ]
        priced = [(0.0, float(len(places)), box.arch) for box, places in same.items()]
        priced += [
            (each.price, inf if each.cap is None else float(each.cap), each.arch)
            for _, each in kept
        ]
        boxes = [Box(w, h, *rest) for w, h, rest in zip(has_cpu, has_ram, priced, strict=True)]
        first = len(same)
        groups: list[Limit] = [
            (frozenset(first + n for n, (_, each) in enumerate(kept) if each.vendor == vendor), n)
            for vendor, n in sorted(limits.items())
        ]
        if most is not None:
            groups.append((frozenset(range(first, len(boxes))), most))
        self.problem = Problem(classes, boxes, [group for group in groups if group[0]])
        for kind, places in zip(classes, self._places, strict=True):
            if not any(box.cap >= 1 and box.fits(kind) for box in boxes):
                job = jobs[places[0]]
                raise Unplaceable(
                    f"no machine that can be had carries a job of {job.cpu:g} cpu and "
                    f"{job.ram / _GIB:.4g}G"
                )

    def carriers(self, packed: Iterable[tuple[int, Load]]) -> list[Carrier]:
        """Say which jobs each machine has."""
        left = [[[place, self._jobs[place].count] for place in places] for places in self._places]
        running = [list(places) for places in self._running]
        found: list[Carrier] = []
        for box, load in sorted(packed):
            jobs: list[tuple[int, int]] = []
            for pile, wanted in zip(left, load, strict=True):
                count = wanted
                while count:
                    taken = min(count, pile[0][1])
                    if taken:
                        jobs.append((pile[0][0], taken))
                    pile[0][1] -= taken
                    count -= taken
                    if not pile[0][1]:
                        pile.pop(0)
            if not jobs:
                continue
            if box < len(running):
                found.append(Carrier(running=running[box].pop(0), jobs=tuple(sorted(jobs))))
            else:
                offer = self._offers[box - len(running)]
                found.append(Carrier(offer=offer, jobs=tuple(sorted(jobs))))
        return found


def _useful(
    offers: Sequence[Offer], limits: Mapping[str, int], most: int | None
) -> Iterable[tuple[int, Offer]]:
    """Leave out what is nowhere better than another offer that can be had without end."""
    better: list[Offer] = []
    for place, each in sorted(enumerate(offers), key=lambda one: (one[1].price, one[1].key)):
        if any(
            one.arch == each.arch and one.cpu >= each.cpu and one.ram >= each.ram for one in better
        ):
            continue
        if each.cap is None and each.vendor not in limits:
            better.append(each)
        yield place, each
