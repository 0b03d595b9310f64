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
_UNWANTED: Final = Problem("cancelled")
_SMALL: Final = frozenset({int, float, bool, type(None)})

#: Runs the operation of a request with one set of arguments; raises :class:`CallError`.
RunOne = Callable[[Request, Operation, Mapping[str, Json]], Awaitable[Json]]
#: Told of a run: its place, ``done`` or the reason of its problem, and how many milliseconds it took.
Ended = Callable[[Request, int, str, int], None]


class Group:
    """Runs an operation for each set of arguments, and gives the items of docs/protocol.md, Groups.

    Args:
        request: the op.
        operation: what it asks for.
        slots: where each runner takes its place.
        run_one: does it once.
        ended: told how each ended.

    Raises:
        CallError: ``not-understood``, for an operation that streams, takes a job, or runs in a
            process: those are asked for one by one.
    """

    def __init__(
        self,
        request: Request,
        operation: Operation,
        slots: Slots,
        run_one: RunOne,
        ended: Ended,
    ) -> None:
        if not operation.simple:
            text = f"{operation.path} is asked for with one set of arguments"
            raise CallError.of(Problem("not-understood", text, "each"))
        self._request = request
        self._operation = operation
        self._slots = slots
        self._run_one = run_one
        self._ended = ended
        request.stop_some = self._stop_some
        #: What each runner does now and since when, and why some are stopped.
        self._running: dict[asyncio.Task[None], tuple[int, float]] = {}
        self._stopped: dict[asyncio.Task[None], Problem] = {}
        #: Places of those that nobody wants any longer.
        self._unwanted: set[int] = set()
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
            while running := {task for task in running if not task.done()}:
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
            began = now()
            self._running[task] = (number, began)
            value: Json = None
            problem: Problem | None = None
            try:
                if number in self._unwanted:
                    raise CallError.of(_UNWANTED)
                value = await self._run_one(self._request, self._operation, each[number])
            except CallError as exc:
                problem = exc.problem
            except asyncio.CancelledError:
                if task not in self._stopped:
                    raise
                problem = self._stopped.pop(task)
                task.uncancel()
            ran = round((now() - began) * 1000, 2)
            self._ended(self._request, number, problem.reason if problem else "done", int(ran))
            item: list[Json] = [number, ran, value]
            if problem is not None:
                item.append(problem.to_json())
            size = SMALL if type(item[-1]) in _SMALL else len(escape(msgspec.json.encode(item)))
            # Again, because other runners go on while this one waits for its reader.
            while self._items and self._size + size > ROOM and self._request.window:
                await self._send()
            self._items.append(item)
            self._size += size
        del self._running[task]

    def _stop_late(self) -> None:
        """Stop the runs that take longer than they may."""
        end = asyncio.get_running_loop().time() - self._operation.timeout
        for task, (_, began) in self._running.items():
            if began <= end:
                self._stop(task, self._operation.late)

    def _stop_some(self, places: Sequence[int]) -> None:
        self._unwanted.update(places)
        for task, (number, _) in self._running.items():
            if number in self._unwanted:
                self._stop(task, _UNWANTED)

    def _stop(self, task: asyncio.Task[None], why: Problem) -> None:
        if task not in self._stopped:
            self._stopped[task] = why
            task.cancel()

    async def _send(self) -> None:
        """Send what is ready ahead of the rest, to a caller that takes it."""
        if self._items and self._request.window:
            items, self._items, self._size = self._items, [], 0
            await self._request.data(items)
