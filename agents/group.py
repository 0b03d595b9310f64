"""One op with many sets of arguments: quick inputs of a map that share an exchange."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from operator import length_hint
from typing import Final

import msgspec

from spinal.bus.errors import CallError
from spinal.bus.requests import Request
from spinal.protocols import LIMITS, Json, Problem
from spinal.protocols.values import escape

from .load import Slots
from .operation import Operation

#: Most sets that run at once; each also takes a slot.
RUNNERS: Final = 16
#: Seconds after which those that are ready do not wait for the others, and between two looks
#: whether one runs for too long.
PATIENCE: Final = 0.05
#: Bytes of results that travel together, and of one that is a number or less.
ROOM: Final = LIMITS.inline - 1024
SMALL: Final = 48
_SMALL: Final = frozenset({int, float, bool, type(None)})

#: Runs the operation of a request with one set of arguments; raises :class:`CallError`.
RunOne = Callable[[Request, Operation, Mapping[str, Json]], Awaitable[Json]]


class Group:
    """Runs an operation for each set of arguments, and gives the items of docs/protocol.md, Groups.

    Args:
        request: the op.
        operation: what it asks for.
        slots: where each runner takes its place.
        run_one: does it once.

    Raises:
        CallError: ``not-understood``, for an operation that streams, takes a job, or runs in a
            process: those are asked for one by one.
    """

    def __init__(
        self, request: Request, operation: Operation, slots: Slots, run_one: RunOne
    ) -> None:
        if not operation.simple:
            text = f"{operation.path} is asked for with one set of arguments"
            raise CallError.of(Problem("not-understood", text, "each"))
        self._request = request
        self._operation = operation
        self._slots = slots
        self._run_one = run_one
        #: When the present run of each runner began, and those that ran for too long.
        self._began: dict[asyncio.Task[None], float] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._items: list[Json] = []
        self._size = 0

    async def run(self, each: Sequence[Mapping[str, Json]]) -> Json:
        """Give the items that were not sent ahead.

        Cancelling it cancels all that run.

        Raises:
            CallError: ``busy``, when no slot is to be had; nothing ran.
        """
        rest = iter(range(len(each)))
        async with self._slots.take(self._operation), asyncio.TaskGroup() as group:
            self._request.accept()  # Some will have run, so its end is no refusal.
            running = {group.create_task(self._work(each, rest))}
            # Those that never wait are all done by the first runner, in its first step.
            await asyncio.sleep(0)
            while length_hint(rest) and len(running) < RUNNERS and self._slots.free:
                running.add(group.create_task(self._help(each, rest)))
                await asyncio.sleep(0)
            while running:
                _, running = await asyncio.wait(running, timeout=PATIENCE)
                if running:
                    self._stop_late()
                    await self._send()
        return self._items

    async def _help(self, each: Sequence[Mapping[str, Json]], rest: Iterator[int]) -> None:
        async with self._slots.take(self._operation):
            await self._work(each, rest)

    async def _work(self, each: Sequence[Mapping[str, Json]], rest: Iterator[int]) -> None:
        now = asyncio.get_running_loop().time
        task = asyncio.current_task()
        assert task is not None
        for number in rest:
            began = self._began[task] = now()
            item: list[Json]
            try:
                value = await self._run_one(self._request, self._operation, each[number])
                item = [number, _ran(began, now()), value]
            except CallError as exc:
                item = [number, _ran(began, now()), None, exc.problem.to_json()]
            except asyncio.CancelledError:
                if task not in self._late:
                    raise
                self._late.remove(task)
                task.uncancel()
                item = [number, _ran(began, now()), None, self._operation.late.to_json()]
            size = SMALL if type(item[-1]) in _SMALL else len(escape(msgspec.json.encode(item)))
            # Again, because other runners go on while this one waits for its reader.
            while self._items and self._size + size > ROOM and self._request.window:
                await self._send()
            self._items.append(item)
            self._size += size
        del self._began[task]

    def _stop_late(self) -> None:
        """Stop the runs that take longer than they may."""
        end = asyncio.get_running_loop().time() - self._operation.timeout
        for task, began in self._began.items():
            if began <= end and task not in self._late:
                self._late.add(task)
                task.cancel()

    async def _send(self) -> None:
        """Send what is ready ahead of the rest, to a caller that takes it."""
        if self._items and self._request.window:
            items, self._items, self._size = self._items, [], 0
            await self._request.data(items)


def _ran(began: float, now: float) -> float:
    return round((now - began) * 1000, 2)
