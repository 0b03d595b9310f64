"""Durable maps: a job whose children are the inputs, started again by its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import structlog

from spinal.protocols import Data, Json
from spinal.protocols.values import escape

from .errors import BusError, CallError
from .jobs import AWAY, SLICE, Job, outcome, submit
from .jsontext import dumps
from .line import ANSWER, NOT_SAID, Argument, Line
from .maps import Mapped, Pending, Told, in_window
from .options import Options
from .reconnect import Backoff
from .tasks import Tasks

log = structlog.get_logger()

#: Seconds that a map may take as a whole if nobody says otherwise; each input has its own hour.
DEADLINE = 86_400.0
#: Seconds that cancelling a map may take when its reader left.
LEAVING = 10.0

#: Inputs of a durable map that are under way at once if nobody says otherwise.
WINDOW = 512
#: Inputs that are submitted together at most, and bytes of their arguments.
BATCH = 500
BATCH_SIZE = 24 * 1024
#: Pieces of news of one batch that may be unread.
PIECES = 16

#: Why a child that was not taken is submitted again: also when there is no room for it now.
_ROOM = NOT_SAID | {"full"}
#: Why a batch is refused for what one input in it is.
_OF_ONE = frozenset({"bad-arguments", "malformed", "too-large"})


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
            batches = Batches(self._line, self._options, self._child, self._earlier)
            found = in_window(self._one, over, self._window, self._ordered, batches.begin)
            async with aclosing(batches), aclosing(found):
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


class Batches:
    """The inputs of a durable map that are submitted and followed together; closed when it ends.

    Those of one turn of the event loop go together.  Whose news somebody wants, who is there from an
    earlier start, and what has to be uploaded first, is for others.
    """

    def __init__(
        self,
        line: Callable[[], Line],
        options: Options,
        child: Mapping[str, Json],
        earlier: _Earlier,
    ) -> None:
        self._line = line
        self._options = options
        self._child = child
        self._earlier = earlier
        self._open: _Batch | None = None
        self._tasks = Tasks("map")

    async def aclose(self) -> None:
        """Submit nothing more, and follow nobody."""
        self._open = None
        await self._tasks.close()

    def begin(self, index: int, arguments: Mapping[str, Argument], told: Told) -> Pending | None:
        """Begin an input; none if it has to be seen through on its own."""
        args = self._line().plain(arguments)
        if args is None or self._options.news is not None or self._earlier.expected:
            return None
        try:
            size = len(escape(dumps(args)))
        except (ValueError, TypeError):
            return None  # It cannot travel, and is told so there.
        batch = self._open
        if batch is not None and batch.size + size > BATCH_SIZE:
            self._release(batch)
            batch = None
        if batch is None:
            batch = self._open = _Batch()
            # What this turn of the event loop brings is all that it waits for.
            asyncio.get_running_loop().call_soon(self._release, batch)
        batch.left[index] = (arguments, args, told)
        batch.size += size
        if len(batch.left) == BATCH:
            self._release(batch)
        return batch

    def _release(self, batch: _Batch) -> None:
        """Submit a batch, unless it was."""
        if self._open is batch:
            self._open = None
        if not batch.released and batch.left:
            batch.released = True
            self._tasks.spawn(self._follow(batch), "batch")

    async def _follow(self, batch: _Batch) -> None:
        """Submit inputs, and tell what becomes of each; through restarts of the dispatcher."""
        loop = asyncio.get_running_loop()
        seconds = self._options.timeout
        until = loop.time() + (AWAY if seconds is None else seconds)
        backoff = Backoff(first=0.25, most=5.0)
        problem: CallError | None = None
        while batch.left:
            line = self._line()
            wait = SLICE if seconds is None else max(0.0, min(SLICE, until - loop.time()))
            inputs: list[Json] = [[index, args] for index, (_, args, _) in batch.left.items()]
            said = {**self._child, "inputs": inputs, "wait": wait}
            try:
                call = line.begin("/spinal/jobs/map", said, wait + ANSWER, PIECES)
                async with aclosing(aiter(call)) as items:
                    async for item in items:
                        if isinstance(item, Data):
                            backoff.failures = 0
                            until = loop.time() + AWAY if seconds is None else until
                            await self._deliver(batch, item.value)
                answer: Any = await call.result()
                batch.jobs.update((row["position"], row) for row in answer["jobs"])
                if seconds is None:
                    until = loop.time() + AWAY
                elif loop.time() >= until:
                    break
            except CallError as exc:
                problem = exc
                if exc.reason in _OF_ONE and len(batch.left) > 1:
                    # It is about one of them, and the others must not suffer for it.
                    for index, input in batch.left.items():
                        self._release(_Batch({index: input}))
                    return
                if line.closed or exc.reason not in _ROOM:
                    break
                line.passed_over(line.dispatcher)
                pause = max(exc.problem.after or 0.0, backoff.pause())
                if loop.time() + pause >= until:
                    break
                await asyncio.sleep(pause)
        for index, (arguments, _, told) in batch.left.items():
            job = batch.jobs.get(index, {})
            error = problem or _not_ended(job, seconds)
            told(Mapped.failed(index, arguments, error, job.get("id")))

    async def _deliver(self, batch: _Batch, piece: Any) -> None:
        """Tell what became of some inputs."""
        for row in piece:
            index, job = row["position"], row["id"]
            if index not in batch.left:
                continue
            arguments, _, told = batch.left[index]
            try:
                if "large" in row:
                    row = await Job(self._line, job, row).whole()
                value = self._line().incoming(outcome(row))
            except (CallError, BusError) as exc:
                mapped = Mapped.failed(index, arguments, exc, job)
            else:
                agent, ran = row.get("agent"), row.get("run")
                mapped = Mapped(index, arguments, value, agent=agent, ran=ran, job=job)
            del batch.left[index]
            told(mapped)


@dataclass(slots=True)
class _Batch:
    """Inputs that are submitted together."""

    #: Those that nothing is known of yet, by their positions: arguments, as they travel, and whom
    #: to tell.
    left: dict[int, tuple[Mapping[str, Argument], dict[str, Json], Told]] = field(
        default_factory=dict[int, tuple[Mapping[str, Argument], dict[str, Json], Told]]
    )
    #: What was told of those that have not ended.
    jobs: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    size: int = 0
    released: bool = False

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return not self.left

    def abandon(self) -> None:
        """Nothing: who leaves a map cancels its jobs together."""


class _Earlier:
    """The children that a map had before it was started again, as its inputs come to them."""

    def __init__(self, job: Job) -> None:
        self._rows = job.children() if job.row.get("children") else None
        self._next: dict[str, Any] | None = None
        self._lock = asyncio.Lock()
        self._found: dict[int, dict[str, Any]] = {}

    @property
    def expected(self) -> bool:
        """Whether there may be more of them."""
        return self._rows is not None

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


def _not_ended(row: Mapping[str, Any], seconds: float | None) -> CallError:
    try:
        outcome(row, seconds)
    except CallError as exc:
        return exc
    raise AssertionError("a job that has not ended has no outcome")
