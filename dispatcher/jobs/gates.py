"""Lets the jobs of an operation with limits begin one after the other.

Whether one more may begin is decided in the store, for every attempt and for all dispatchers; the gate
of an operation that is known to have limits makes sure that here only one job at a time asks.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Final

from ..store.contract import Limit

#: Seconds after which it is asked again although nothing is known to have ended.
LOOK: Final = 1.0

#: Shortest pause in seconds between two questions.
LEAST: Final = 0.005


class Gates:
    """The operations that have limits, and who waits before them."""

    def __init__(self) -> None:
        self._limited: frozenset[str] = frozenset()
        self._gates: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._room: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def set(self, limits: Iterable[Limit]) -> None:
        """Take the limits that hold now."""
        before, self._limited = self._limited, frozenset(limit.op for limit in limits)
        for op in before - self._limited:
            self.freed(op)

    def __contains__(self, op: object) -> bool:
        return op in self._limited

    async def enter(self, op: str, seconds: float) -> Callable[[], None]:
        """Wait for our turn at most so long; gives what lets the next one go ahead.

        Raises:
            TimeoutError: it did not come.
        """
        gate = self._gates[op]
        async with asyncio.timeout(max(0.0, seconds)):
            await gate.acquire()
        return gate.release

    async def await_room(self, op: str, after: float, seconds: float) -> None:
        """Wait until there may be room: after so long, or when a job ends; at most ``seconds``."""
        room = self._room[op]
        room.clear()
        pause = max(after, LEAST) if after else LOOK
        try:
            async with asyncio.timeout(min(pause, max(0.0, seconds))):
                await room.wait()
        except TimeoutError:
            pass

    def freed(self, op: str) -> None:
        """A job of an operation has ended, or its limits have changed."""
        if op in self._room:
            self._room[op].set()
