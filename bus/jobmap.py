"""Durable maps: a job whose children are the inputs, started again by its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from itertools import islice
from typing import Any

import structlog

from spinal.protocols import Data, Json
from spinal.protocols.values import escape

from .errors import BusError, CallError
from .jobs import AWAY, SLICE, Job, outcome, submit
from .jsontext import dumps
from .line import ANSWER, NOT_SAID, Argument, Line
from .maps import Mapped, in_window
from .options import Options
from .reconnect import Backoff

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
#: Of a window, this part has to be free before more is taken while there is something to give.
REFILL = 8
#: Pieces of news of one batch that may be unread.
PIECES = 16

#: A position, and the arguments there.
_Input = tuple[int, Mapping[str, Argument]]
#: Types of values in which no file can be.
_SCALARS = frozenset({str, int, float, bool, type(None)})

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
            if self._options.news is None:
                inputs = self._in_batches(over)
            else:
                inputs = in_window(self._one, over, self._window, self._ordered)
            async with aclosing(inputs) as found:
                async for mapped in found:
                    yield mapped
            ended = True
            await self._tell("close", Options().patience)
        finally:
            if not ended:
                await self._tell("cancel", LEAVING)

    async def _in_batches(self, over: Iterable[Mapping[str, Argument]]) -> AsyncGenerator[Mapped]:
        """Submit inputs as there is room, those together that there is room for at once."""
        inputs = enumerate(over)
        exhausted = False
        under_way, following = 0, 0
        running: set[asyncio.Task[None]] = set()
        wake = asyncio.Event()
        #: What became of inputs that nobody has taken yet.
        ready: dict[int, Mapped] = {}
        failed: list[BaseException] = []

        def tell(mapped: Mapped) -> None:
            ready[mapped.index] = mapped
            wake.set()

        def ended(task: asyncio.Task[None]) -> None:
            running.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                failed.append(error)
                wake.set()

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            task = asyncio.get_running_loop().create_task(work)
            running.add(task)
            task.add_done_callback(ended)

        try:
            while True:
                if failed:
                    raise failed[0]
                room = self._window - under_way
                # Not one by one while there is something to give.
                if not exhausted and room > (self._window // REFILL if ready else 0):
                    taken = list(islice(inputs, room))
                    exhausted = len(taken) < room
                    under_way += len(taken)
                    await self._begin(taken, spawn, tell)
                index = following if self._ordered else next(iter(ready), -1)
                mapped = ready.pop(index, None)
                if mapped is not None:
                    following += 1
                    under_way -= 1
                    yield mapped
                elif exhausted and not under_way:
                    return
                else:
                    wake.clear()
                    await wake.wait()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _begin(
        self,
        inputs: Iterable[_Input],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        tell: Callable[[Mapped], None],
    ) -> None:
        """Have inputs followed: in batches, but for those that were there before or hold files."""
        batch: list[_Input] = []
        size = 0
        for index, arguments in inputs:
            plain = _plain(arguments)
            if plain is None or await self._earlier.has(index):
                spawn(self._alone(index, arguments, tell))
                continue
            if batch and (size + plain > BATCH_SIZE or len(batch) == BATCH):
                spawn(self._follow(batch, tell))
                batch, size = [], 0
            batch.append((index, arguments))
            size += plain
        if batch:
            spawn(self._follow(batch, tell))

    async def _alone(
        self, index: int, arguments: Mapping[str, Argument], tell: Callable[[Mapped], None]
    ) -> None:
        tell(await self._one(index, arguments))

    async def _follow(self, batch: Iterable[_Input], tell: Callable[[Mapped], None]) -> None:
        """Submit inputs, and tell what becomes of each; through restarts of the dispatcher."""
        left = dict(batch)
        jobs: dict[int, dict[str, Any]] = {}
        loop = asyncio.get_running_loop()
        seconds = self._options.timeout
        until = loop.time() + (AWAY if seconds is None else seconds)
        backoff = Backoff(first=0.25, most=5.0)
        problem: CallError | BusError | None = None
        while left:
            line = self._line()
            wait = SLICE if seconds is None else max(0.0, min(SLICE, until - loop.time()))
            inputs: list[Json] = [[index, dict(arguments)] for index, arguments in left.items()]
            said = {**self._child, "inputs": inputs, "wait": wait}
            try:
                call = line.begin("/spinal/jobs/map", said, wait + ANSWER, PIECES)
                async with aclosing(aiter(call)) as items:
                    async for item in items:
                        if isinstance(item, Data) and isinstance(item.value, list):
                            backoff.failures = 0
                            if seconds is None:
                                until = loop.time() + AWAY
                            rows: list[Any] = item.value  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType] - of Json
                            for row in rows:
                                arguments = left.pop(row["position"], None)
                                if arguments is not None:
                                    tell(await self._mapped(row, arguments))
                answer: Any = await call.result()
                jobs.update((row["position"], row) for row in answer["jobs"])
                if seconds is None:
                    until = loop.time() + AWAY
                elif loop.time() >= until:
                    break
            except CallError as exc:
                problem = exc
                if exc.reason in _OF_ONE and len(left) > 1:
                    # It is about one of them, and the others must not suffer for it.
                    alone = (self._alone(*pair, tell) for pair in left.items())
                    await asyncio.gather(*alone)
                    return
                if line.closed or exc.reason not in _ROOM:
                    break
                line.passed_over(line.dispatcher)
                pause = max(exc.problem.after or 0.0, backoff.pause())
                if loop.time() + pause >= until:
                    break
                await asyncio.sleep(pause)
        for index, arguments in left.items():
            job = jobs.get(index)
            if problem is None:
                problem = _not_ended(job or {}, seconds)
            tell(Mapped.failed(index, arguments, problem, None if job is None else job["id"]))

    async def _mapped(self, row: dict[str, Any], arguments: Mapping[str, Argument]) -> Mapped:
        index, job = row["position"], row["id"]
        try:
            if "large" in row:
                row = await Job(self._line, job, row).whole()
            value = self._line().incoming(outcome(row))
        except (CallError, BusError) as exc:
            return Mapped.failed(index, arguments, exc, job)
        return Mapped(index, arguments, value, agent=row.get("agent"), ran=row.get("run"), job=job)

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

    async def has(self, index: int) -> bool:
        """Tell whether there is a child at a position; they are looked for roughly in order."""
        async with self._lock:
            while self._rows is not None and (self._next is None or self._next["position"] < index):
                self._next = await anext(self._rows, None)
                if self._next is None:
                    self._rows = None
                else:
                    self._found[self._next["position"]] = self._next
        return index in self._found

    async def row(self, index: int) -> dict[str, Any] | None:
        """Give the row of the child at a position; each is asked for once."""
        return self._found.pop(index, None) if await self.has(index) else None


def _plain(arguments: Mapping[str, Argument]) -> int | None:
    """Give the bytes that arguments take on the wire; nothing if they may hold files or blobs."""
    if not all(type(value) in _SCALARS for value in arguments.values()):
        return None
    try:
        return len(escape(dumps(dict(arguments))))
    except (ValueError, TypeError):
        return None


def _not_ended(row: Mapping[str, Any], seconds: float | None) -> CallError:
    try:
        outcome(row, seconds)
    except CallError as exc:
        return exc
    raise AssertionError("a job that has not ended has no outcome")
