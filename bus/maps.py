"""Many sets of arguments for one operation, some of them under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from spinal.protocols import Final, Problem

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
    def done(index: int, arguments: Mapping[str, Any], value: Any, final: Final) -> Mapped:
        """Make one of a value and the final that had it."""
        ran = None if final.ran is None else final.ran / 1000
        return Mapped(index, arguments, value, agent=final.agent, ran=ran)

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


#: Sees an input through, in a task of its own.
One = Callable[[int, Mapping[str, Any]], Coroutine[Any, Any, Mapped]]
#: Told what became of an input.
Told = Callable[[Mapped], None]


class Pending(Protocol):
    """An input that was begun without a task."""

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        ...

    def abandon(self) -> None:
        """Give it up."""
        ...


#: Begins an input that needs no task, and tells what became of it; none if it needs one.
Begin = Callable[[int, Mapping[str, Any], Told], Pending | None]


async def in_window(
    one: One,
    over: Iterable[Mapping[str, Any]],
    window: int,
    ordered: bool,
    begin: Begin = lambda index, arguments, told: None,
) -> AsyncGenerator[Mapped]:
    """Give what becomes of the inputs, of which at most ``window`` are under way or not yet given.

    They are taken as there is room.  Leaving the loop early gives up what runs.
    """
    if window < 1:
        raise ValueError("window must be at least 1")
    run = _Run(one, begin)
    rest = enumerate(over)
    exhausted = False
    following = 0
    try:
        while True:
            while not exhausted and len(run) < window:
                pair = next(rest, None)
                if pair is None:
                    exhausted = True
                else:
                    run.begin(*pair)
            found = run.take(following if ordered else None)
            if found is not None:
                following += 1
                yield found
            elif len(run):
                await run.wait()
            else:
                return
    finally:
        await run.close()


class _Run:
    """The inputs of a map that are under way, and those that have ended and were not given."""

    def __init__(self, one: One, begin: Begin) -> None:
        self._one = one
        self._begin = begin
        self._begun: dict[int, Pending] = {}
        self._tasks: dict[int, asyncio.Task[Mapped]] = {}
        #: In the order in which they ended.  A task's outcome may be an error of ours.
        self._ended: dict[int, Mapped | asyncio.Task[Mapped]] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._begun) + len(self._tasks) + len(self._ended)

    def begin(self, index: int, arguments: Mapping[str, Any]) -> None:
        """Begin an input."""
        try:
            begun = self._begin(index, arguments, self._told)
        except (CallError, BusError) as exc:
            self._told(Mapped.failed(index, arguments, exc))
            return
        if begun is None:
            work = self._one(index, arguments)
            task = self._tasks[index] = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(lambda task: self._settle(index, task))
        elif not begun.done:
            self._begun[index] = begun

    def _told(self, mapped: Mapped) -> None:
        self._settle(mapped.index, mapped)

    def _settle(self, index: int, found: Mapped | asyncio.Task[Mapped]) -> None:
        self._begun.pop(index, None)
        self._tasks.pop(index, None)
        self._ended[index] = found
        self._news.set()

    def take(self, index: int | None) -> Mapped | None:
        """Give what became of that input, or of the one that ended first; none if it has not."""
        if index is None:
            index = next(iter(self._ended), None)
        found = None if index is None else self._ended.pop(index, None)
        return found.result() if isinstance(found, asyncio.Task) else found

    async def wait(self) -> None:
        """Wait until another one has ended."""
        self._news.clear()
        await self._news.wait()

    async def close(self) -> None:
        """Give up what is under way."""
        for begun in list(self._begun.values()):
            begun.abandon()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
