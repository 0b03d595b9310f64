"""Many deadlines under one timer of the event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

_T = TypeVar("_T")

#: Entries that are kept before those that are over are looked for.
LEAST = 64


class Deadlines(Generic[_T]):
    """What is due when; most of it is over long before.

    So none has a timer of its own, which would be made only to be cancelled: an entry that is over
    stays until it comes up, or until half of all are.

    Args:
        due: told of what is due and not over.
        over: whether nothing is to happen with it any more.
    """

    def __init__(self, due: Callable[[_T], None], over: Callable[[_T], bool]) -> None:
        self._due = due
        self._over = over
        self._heap: list[tuple[float, int, _T]] = []
        self._numbers = count()
        self._room = LEAST
        #: When the timer fires.
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when: float, item: _T) -> None:
        """Have something be due at this ``loop.time()``; it may have several."""
        heap = self._heap
        if len(heap) >= self._room:
            heap[:] = [entry for entry in heap if not self._over(entry[2])]
            heapify(heap)
            self._room = max(LEAST, 2 * len(heap))
        heappush(heap, (when, next(self._numbers), item))
        if when < self._at:
            self._arm(when)

    def close(self) -> None:
        """Forget everything, and the timer."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at = math.inf

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._fire)

    def _fire(self) -> None:
        # A timer may fire a little early, by the resolution of the clock.
        now = max(self._at, asyncio.get_running_loop().time())
        self._timer, self._at = None, math.inf
        heap = self._heap
        while heap and (heap[0][0] <= now or self._over(heap[0][2])):
            item = heappop(heap)[2]
            if not self._over(item):
                self._due(item)
        if heap and heap[0][0] < self._at:
            self._arm(heap[0][0])
