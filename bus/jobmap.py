"""Durable maps: a job whose children are the inputs, started again by its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import structlog

from spinal.protocols import Json

from .errors import BusError, CallError
from .jobs import AWAY, SLICE, Job, outcome, submit
from .line import NOT_SAID, Argument, Line
from .maps import Mapped, in_window
from .options import Options

log = structlog.get_logger()

#: Seconds that a map may take as a whole if nobody says otherwise; each input has its own hour.
DEADLINE = 86_400.0
#: Seconds that cancelling a map may take when its reader left.
LEAVING = 10.0

#: Why a child that was not taken is submitted again: also when there is no room for it now.
_ROOM = NOT_SAID | {"full"}


class JobMap:
    """A durable map: one job whose children are the inputs.  Made by ``Client.start_map``.

    Iterate over it once, for what becomes of the inputs.  Leaving the loop early cancels the job
    and its children; a caller that dies leaves them, and who starts the map again under the same
    key takes them over: what was submitted is not submitted again, and what ended is not run again.
    """

    def __init__(
        self,
        line: Callable[[], Line],
        job: Job,
        options: Options,
        child: Mapping[str, Json],
        over: Iterable[Mapping[str, Argument]],
        window: int,
        ordered: bool,
    ) -> None:
        self.job = job
        self._line = line
        self._options = options
        self._child = child
        self._over: Iterable[Mapping[str, Argument]] | None = over
        self._window = window
        self._ordered = ordered
        self._earlier = _Earlier(job)

    def __repr__(self) -> str:
        return f"<JobMap {self.id}>"

    @property
    def id(self) -> str:
        """Id of the parent."""
        return self.job.id

    async def __aiter__(self) -> AsyncGenerator[Mapped]:
        """Give what becomes of the inputs."""
        over, self._over = self._over, None
        if over is None:
            raise BusError("the inputs of this map have been taken: start it again with its key")
        ended = False
        try:
            async with aclosing(in_window(self._one, over, self._window, self._ordered)) as found:
                async for mapped in found:
                    yield mapped
            ended = True
            await self._tell("close", Options().patience)
        finally:
            if not ended:
                await self._tell("cancel", LEAVING)

    async def _tell(self, what: str, seconds: float) -> None:
        """Tell the dispatcher that nothing follows; the inputs have had their answers already."""
        until = asyncio.get_running_loop().time() + seconds
        try:
            await self._line().ask(f"/spinal/jobs/{what}", {"id": self.id}, until=until)
        except (CallError, BusError) as exc:
            # It ends at its deadline then.
            log.warning("map_left_open", job=self.id, untold=what, problem=str(exc))

    async def _one(self, index: int, arguments: Mapping[str, Argument]) -> Mapped:
        job: Job | None = None
        try:
            job = await self._job(index, arguments)
            row = await job.followed(self._options.timeout, self._options.news)
            value = outcome(row, self._options.timeout)
        except (CallError, BusError) as exc:
            return Mapped.failed(index, arguments, exc, None if job is None else job.id)
        return Mapped(
            index, arguments, value, agent=row.get("agent"), ran=row.get("run"), job=job.id
        )

    async def _job(self, index: int, arguments: Mapping[str, Argument]) -> Job:
        row = await self._earlier.row(index)
        if row is not None:
            return Job(self._line, row["id"], row)
        line = self._line()
        submission = {
            **self._child,
            "args": await line.outgoing(arguments),
            "key": f"{self._child['key']}/{index}",
            "position": index,
        }
        options = self._options
        wait = 0.0 if options.news else min(SLICE, options.patience)
        until = asyncio.get_running_loop().time() + (options.timeout or AWAY)
        return await submit(self._line, submission, until, wait, _ROOM)


class _Earlier:
    """The children that a map had before it was started again, as its inputs come to them."""

    def __init__(self, job: Job) -> None:
        self._rows = job.children() if job.row.get("children") else None
        self._next: dict[str, Any] | None = None
        self._lock = asyncio.Lock()
        self._found: dict[int, dict[str, Any]] = {}

    async def row(self, index: int) -> dict[str, Any] | None:
        """Give the row of the child at a position; each is asked for once, roughly in order."""
        async with self._lock:
            while self._rows is not None and (self._next is None or self._next["position"] < index):
                self._next = await anext(self._rows, None)
                if self._next is None:
                    self._rows = None
                else:
                    self._found[self._next["position"]] = self._next
        return self._found.pop(index, None)
