"""Many sets of arguments for one operation, some of them under way at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spinal.protocols import Problem

from .errors import BusError, CallError

#: Inputs of a map that are under way at once if nobody says otherwise.
WINDOW = 64


@dataclass(frozen=True, slots=True)
class Mapped:
    """What became of one input of a map."""

    #: Place of the input among the inputs, from 0.
    index: int
    arguments: Mapping[str, Any]
    value: Any = None
    error: CallError | None = None
    agent: str | None = None
    #: How long it ran at the agent, in seconds.
    ran: float | None = None
    #: Id of its job, where the map is of jobs and the job was accepted.
    job: str | None = None

    @staticmethod
    def failed(
        index: int,
        arguments: Mapping[str, Any],
        error: CallError | BusError,
        job: str | None = None,
    ) -> Mapped:
        """Make one of an error."""
        if isinstance(error, BusError):
            error = CallError.of(Problem("blob", str(error)))
        return Mapped(index, arguments, error=error, agent=error.agent, job=job)


async def in_window(
    one: Callable[[int, Mapping[str, Any]], Coroutine[Any, Any, Mapped]],
    over: Iterable[Mapping[str, Any]],
    window: int,
    ordered: bool,
) -> AsyncGenerator[Mapped]:
    """Run ``one`` for each input, at most ``window`` at once, and give what becomes of them.

    Inputs are taken as there is room.  Leaving the loop early cancels what runs.
    """
    if window < 1:
        raise ValueError("window must be at least 1")
    inputs = enumerate(over)
    running: set[asyncio.Task[Mapped]] = set()
    queue: deque[asyncio.Task[Mapped]] = deque()
    order: dict[asyncio.Task[Mapped], int] = {}
    exhausted = False
    try:
        while True:
            while not exhausted and len(queue if ordered else running) < window:
                pair = next(inputs, None)
                if pair is None:
                    exhausted = True
                    break
                task = asyncio.get_running_loop().create_task(one(*pair))
                running.add(task)
                if ordered:
                    queue.append(task)
                else:
                    order[task] = pair[0]
            if not running and not (ordered and queue):
                return
            if ordered:
                task = queue.popleft()
                await asyncio.wait([task])
                running.discard(task)
                yield task.result()
            else:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                queue = deque(sorted(done, key=order.__getitem__))
                while queue:
                    task = queue.popleft()
                    del order[task]
                    yield task.result()
    finally:
        left = [*running, *queue]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
