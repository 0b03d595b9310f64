"""How much an agent does at once: slots, the little that may wait for them, and the load."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

from spinal.bus.errors import CallError
from spinal.protocols import Problem

from .operation import Operation


def cpu_count() -> int:
    """Give the number of processors that we may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Slots:
    """Who may run now, who waits, and who is sent away.

    Work waits at the dispatcher, not here: what waits is what a dispatcher sends ahead because it
    is short, so that a slot that falls free is taken at once, and what direct callers send.

    Args:
        size: calls that run at once.
        changed: called whenever :attr:`busy` has changed.
    """

    def __init__(self, size: int, changed: Callable[[], None]) -> None:
        if size < 1:
            raise ValueError(f"slots must be at least 1, not {size}")
        self.size = size
        self.busy = 0
        self._changed = changed
        self._free = asyncio.Semaphore(size)
        self._of: dict[str, _OfOperation] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing runs or waits."""
        await self._idle.wait()

    @property
    def load(self) -> float:
        """Calls that run or wait, by slots."""
        return self.busy / self.size

    @property
    def free(self) -> bool:
        """Whether one more could run at once."""
        return self.busy < self.size

    def take(self, operation: Operation) -> _Place:
        """Have a slot for an ``async with`` block, after waiting for it.

        Entering raises:
            CallError: ``busy``, at once, when enough wait already.
        """
        own = None
        if operation.slots is not None:
            own = self._of.get(operation.path)
            if own is None:
                own = self._of[operation.path] = _OfOperation(operation.slots)
        return _Place(self, operation.path, own)

    async def enter(self, path: str, own: _OfOperation | None) -> None:
        """Wait for a slot; see :meth:`take`."""
        if self.busy >= _most(self.size):
            raise CallError.of(Problem("busy", f"all {self.size} slots are taken"))
        if own is not None and own.busy >= _most(own.size):
            raise CallError.of(Problem("busy", f"all {own.size} slots of {path} are taken"))
        self._count(1, own)
        try:
            if own is None:
                await self._free.acquire()
                return
            # Its own first, so that who waits for it holds no slot that others could use.
            await own.free.acquire()
            try:
                await self._free.acquire()
            except BaseException:
                own.free.release()
                raise
        except BaseException:
            self._count(-1, own)
            raise

    def leave(self, own: _OfOperation | None) -> None:
        """Give a slot back."""
        self._free.release()
        if own is not None:
            own.free.release()
        self._count(-1, own)

    def _count(self, change: int, own: _OfOperation | None) -> None:
        self.busy += change
        if own is not None:
            own.busy += change
        if not self.busy:
            self._idle.set()
        elif self.busy == change:
            self._idle.clear()
        self._changed()


class _Place:
    """A slot, for the length of a block."""

    __slots__ = ("_own", "_path", "_slots")

    def __init__(self, slots: Slots, path: str, own: _OfOperation | None) -> None:
        self._slots = slots
        self._path = path
        self._own = own

    def __aenter__(self) -> Coroutine[Any, Any, None]:
        return self._slots.enter(self._path, self._own)

    async def __aexit__(self, *_: object) -> None:
        self._slots.leave(self._own)


class _OfOperation:
    """The slots of one operation."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = 0
        self.free = asyncio.Semaphore(size)


#: How many may wait: what a dispatcher sends ahead of short calls at the most.
WAITING = 64


def _most(size: int) -> int:
    """How many may run and wait."""
    return size + max(WAITING, size)
