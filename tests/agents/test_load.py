from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spinal.agents.load import WAITING, Slots
from spinal.agents.operation import Operation
from spinal.bus.errors import CallError


async def work() -> None: ...


FREE = Operation.of(work, "/free")
NARROW = Operation.of(work, "/narrow", slots=1)


class Crowd:
    """Calls that hold their slots until they are let go."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.go = asyncio.Event()
        self.running = 0
        self.tasks: list[asyncio.Task[None]] = []

    async def _hold(self, operation: Operation) -> None:
        async with self.slots.take(operation):
            self.running += 1
            await self.go.wait()
            self.running -= 1

    async def come(self, count: int, operation: Operation = FREE) -> None:
        self.tasks += [asyncio.create_task(self._hold(operation)) for _ in range(count)]
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.go.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.parametrize(("size", "waiting"), [(1, WAITING), (2, WAITING), (99, 99)])
async def test_as_many_as_slots_run_a_few_wait_and_the_rest_are_sent_away(
    size: int, waiting: int
) -> None:
    crowd = Crowd(Slots(size, lambda: None))
    await crowd.come(size + waiting)

    assert (crowd.running, crowd.slots.busy) == (size, size + waiting)
    assert crowd.slots.load == (size + waiting) / size
    with pytest.raises(CallError) as caught:
        async with crowd.slots.take(FREE):
            pass
    assert caught.value.reason == "busy"
    await crowd.end()
    assert crowd.slots.busy == 0


async def test_an_operation_has_slots_of_its_own() -> None:
    crowd = Crowd(Slots(4 + WAITING, lambda: None))
    await crowd.come(1 + WAITING, NARROW)

    assert crowd.running == 1
    with pytest.raises(CallError, match="all 1 slots of /narrow are taken"):
        async with crowd.slots.take(NARROW):
            pass
    await crowd.come(3)
    assert crowd.running == 4, "who waits for /narrow holds no slot of the others"
    await crowd.end()


async def test_a_cancelled_wait_gives_its_place_back() -> None:
    crowd = Crowd(Slots(1, lambda: None))
    await crowd.come(3)
    crowd.tasks[2].cancel()
    await asyncio.wait([crowd.tasks[2]])

    assert crowd.slots.busy == 2
    await crowd.end()


async def test_every_change_is_told_and_idleness_can_be_awaited() -> None:
    told: list[Any] = []
    slots = Slots(1, lambda: told.append(slots.busy))
    async with slots.take(FREE):
        waiting = asyncio.create_task(slots.idle())
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting

    assert told == [1, 0]
