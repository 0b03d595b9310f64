from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from spinal.bus.deadlines import LEAST, Deadlines
from spinal.testing import ManualClock, virtual_time


class Thing:
    def __init__(self, name: int = 0) -> None:
        self.name = name
        self.over = False


def over(thing: Thing) -> bool:
    return thing.over


def now() -> float:
    return asyncio.get_running_loop().time()


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=200))
def test_what_is_due_is_told_in_its_order_and_what_is_over_is_not(
    entries: list[tuple[float, bool]],
) -> None:
    async def story() -> None:
        told: list[tuple[float, int]] = []
        deadlines = Deadlines[Thing](lambda thing: told.append((now(), thing.name)), over)
        began = now()
        things = [Thing(number) for number in range(len(entries))]
        for thing, (seconds, _) in zip(things, entries, strict=True):
            deadlines.add(began + seconds, thing)
        for thing, (_, ends) in zip(things, entries, strict=True):
            thing.over = ends
        await asyncio.sleep(101)
        assert told == sorted(
            (began + seconds, number) for number, (seconds, ends) in enumerate(entries) if not ends
        )
        assert not len(deadlines)

    ManualClock().run(story())


@virtual_time
async def test_what_is_over_does_not_pile_up() -> None:
    deadlines = Deadlines[Thing](lambda thing: None, over)
    lasting = [Thing() for _ in range(100)]
    for thing in lasting:
        deadlines.add(now() + 60, thing)
    for _ in range(10_000):
        brief = Thing()
        deadlines.add(now() + 60, brief)
        brief.over = True
        assert len(deadlines) <= 2 * (len(lasting) + 1) + LEAST
    deadlines.close()


@virtual_time
async def test_one_that_is_due_may_add_another() -> None:
    told: list[float] = []
    began = now()

    def again(thing: Thing) -> None:
        told.append(now() - began)
        if len(told) < 3:
            deadlines.add(now() + 1, thing)

    deadlines = Deadlines[Thing](again, over)
    deadlines.add(began + 1, Thing())
    await asyncio.sleep(10)
    assert told == [1, 2, 3]


@virtual_time
async def test_closing_tells_nothing_more() -> None:
    told: list[Thing] = []
    deadlines = Deadlines[Thing](told.append, over)
    deadlines.add(now() + 1, Thing())
    deadlines.close()
    await asyncio.sleep(2)
    assert not told
