"""Good packings at once: first fit decreasing, and boxes by what they carry for their price."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .problem import Box, Load, Problem, Stock

#: What a job is worth: so much for its share of all processors, the rest for that of the memory.
WEIGHTS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)

Packed = list[tuple[int, Load]]


def first_fit(problem: Problem, worth: Sequence[float]) -> Packed | None:
    """Put jobs by falling worth into the first machine that has room, else into a new cheapest one.

    Returns:
        None if the boxes do not suffice this way.
    """
    stock = Stock(problem)
    cheapest = sorted(range(len(problem.boxes)), key=lambda place: problem.boxes[place].price)
    open_: list[tuple[int, list[int], list[int]]] = []
    for place in sorted(range(len(worth)), key=lambda place: -worth[place]):
        each = problem.classes[place]
        # A machine that has no room for one job of a class has none for the next one.
        left = each.count
        for box, room, load in open_:
            if not problem.boxes[box].fits(each):
                continue
            count = min(left, _times(each.cpu, each.ram, room[0], room[1]))
            _put(room, load, place, count, each.cpu, each.ram)
            left -= count
        while left:
            new = next((b for b in cheapest if stock.has(b) and problem.boxes[b].fits(each)), None)
            if new is None:
                return None
            stock.take(new)
            room, load = [problem.boxes[new].cpu, problem.boxes[new].ram], [0] * len(worth)
            count = min(left, _times(each.cpu, each.ram, room[0], room[1]))
            _put(room, load, place, count, each.cpu, each.ram)
            left -= count
            open_.append((new, room, load))
    return [(box, tuple(load)) for box, _, load in open_]


def best_value(problem: Problem, worth: Sequence[float]) -> Packed | None:
    """Again and again take the machine that carries most worth for its price.

    Returns:
        None if the boxes do not suffice this way.
    """
    stock, packed = Stock(problem), Packed()
    left = [each.count for each in problem.classes]
    order = sorted(range(len(worth)), key=lambda place: -worth[place])
    loads: dict[int, Load] = {}
    while any(left):
        best: tuple[float, int, Load] | None = None
        for place, box in enumerate(problem.boxes):
            if not stock.has(place):
                continue
            load = loads.get(place)
            if load is None or any(n > have for n, have in zip(load, left, strict=True)):
                load = loads[place] = _filled(problem, box, order, left)
            carried = sum(n * value for n, value in zip(load, worth, strict=True))
            if carried <= 0:
                continue
            cost = box.price / carried
            if best is None or cost < best[0] - 1e-15:
                best = cost, place, load
        if best is None:
            return None
        _, place, load = best
        # As often as there are jobs for it: what is best stays so.
        times = min(have // n for n, have in zip(load, left, strict=True) if n)
        for _ in range(times):
            if not stock.has(place):
                break
            stock.take(place)
            packed.append((place, load))
            left = [have - n for n, have in zip(load, left, strict=True)]
    return packed


def variants(problem: Problem) -> Iterator[tuple[str, Packed]]:
    """Give packings by several greedy ways, each with its name; the first is plain first fit."""
    plain = first_fit(problem, [each.size for each in problem.classes])
    if plain is not None:
        yield "first-fit-decreasing", smaller(problem, plain)
    cpu = sum(each.cpu * each.count for each in problem.classes) or 1
    ram = sum(each.ram * each.count for each in problem.classes) or 1
    for share in WEIGHTS:
        worth = [share * each.cpu / cpu + (1 - share) * each.ram / ram for each in problem.classes]
        for name, way in (("first-fit-decreasing", first_fit), ("best value first", best_value)):
            if (found := way(problem, worth)) is not None:
                yield name, smaller(problem, found)


def smaller(problem: Problem, packed: Sequence[tuple[int, Load]]) -> Packed:
    """Put what each machine carries on the cheapest one that carries it, while there are some."""
    stock = Stock(problem)
    for box, _ in packed:
        stock.take(box)
    order = sorted(range(len(problem.boxes)), key=lambda place: problem.boxes[place].price)
    result = Packed()
    for box, load in packed:
        if not any(load):
            stock.take(box, -1)
            continue
        for other in order:
            if problem.boxes[other].price >= problem.boxes[box].price - 1e-12:
                break
            # What is given back first may be what a common limit needs.
            stock.take(box, -1)
            if stock.has(other) and carries(problem, other, load):
                stock.take(other)
                box = other
                break
            stock.take(box)
        result.append((box, load))
    return result


def carries(problem: Problem, place: int, load: Load) -> bool:
    """Tell whether a box carries a load."""
    box = problem.boxes[place]
    pairs = [(n, each) for n, each in zip(load, problem.classes, strict=True) if n]
    return (
        all(box.fits(each) for _, each in pairs)
        and sum(n * each.cpu for n, each in pairs) <= box.cpu
        and sum(n * each.ram for n, each in pairs) <= box.ram
    )


def _filled(problem: Problem, box: Box, order: Sequence[int], left: Sequence[int]) -> Load:
    room, load = [box.cpu, box.ram], [0] * len(left)
    for place in order:
        each = problem.classes[place]
        if left[place] and box.fits(each):
            count = min(left[place], _times(each.cpu, each.ram, room[0], room[1]))
            _put(room, load, place, count, each.cpu, each.ram)
    return tuple(load)


def _times(cpu: int, ram: int, has_cpu: int, has_ram: int) -> int:
    return min(has_cpu // cpu if cpu else 1_000_000_000, has_ram // ram if ram else 1_000_000_000)


def _put(room: list[int], load: list[int], place: int, count: int, cpu: int, ram: int) -> None:
    room[0] -= count * cpu
    room[1] -= count * ram
    load[place] += count
