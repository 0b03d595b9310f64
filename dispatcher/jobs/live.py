"""One job that is under way here: the book of its attempts, and who watches it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from spinal.protocols import Data, Json, Log, Progress

from ..broker import Attempt, Errand
from ..store.contract import Line, Wait
from .job import MAX_TRIES, Happening, Job, JobState, Try

#: News that one watcher may leave unread; older ones make room.
MAX_NEWS: Final = 1000

#: Lines of one attempt's log that go to the store; what comes after them is counted.
MAX_LINES: Final = 1000

#: What a watcher gets: ``("state", job)``, ``("progress", {...})`` or ``("log", {...})``.
News = tuple[str, Any]


class Fenced(Exception):
    """Another dispatcher has the job, or it has ended: let go of it."""


class Limited(Exception):
    """The limits of the operation allow no more now."""

    def __init__(self, after: float) -> None:
        super().__init__(after)
        self.after = after


class Ledger(Protocol):
    """What a live job needs of its keeper."""

    def now(self) -> int:
        """Give the steady time in milliseconds."""
        ...

    async def begin(self, job: Job) -> bool | Wait:
        """Save a job whose attempt begins, if its limits allow; raises StoreError."""
        ...

    def keep_line(self, line: Line) -> None:
        """Keep a line of a log, without waiting for it."""
        ...


@dataclass(eq=False)
class Live:
    """Implements :class:`~spinal.dispatcher.broker.Book` for one job."""

    job: Job
    ledger: Ledger
    task: asyncio.Task[None] | None = None
    errand: Errand | None = None
    #: Somebody asked that it be stopped.
    cancelling: bool = False
    progress: dict[str, Json] | None = None
    lines: int = 0
    #: Lets the next job of a limited operation go ahead; set while we are the one whose turn it is.
    step_aside: Callable[[], None] | None = None
    #: What the job was before the attempt that is being written down.
    before: tuple[int, str | None, int | None, JobState] | None = None
    #: What it is about to be is being written, and no task waits for that; who does is told.
    writing: bool = False
    written: asyncio.Event | None = None
    watchers: list[Watcher] = field(default_factory=list["Watcher"])

    # -- the book

    async def begin(self, attempt: Attempt) -> None:
        """Write an attempt down.

        Raises:
            Limited: the operation's limits allow no more; nothing was written.
            Fenced: the job is not ours any more.
            StoreError: the store cannot do it now; nothing was written.
        """
        self.enter(attempt)
        result: bool | Wait = False
        try:
            result = await self.ledger.begin(self.job)
        finally:
            if result is not True:
                self.take_back()
        if isinstance(result, Wait):
            raise Limited(result.after)
        if not result:
            raise Fenced
        self.begun()

    def enter(self, attempt: Attempt) -> None:
        """Enter an attempt that is about to be written down."""
        job, why = self.job, attempt.why
        self.before = (job.attempt, job.agent, job.started, job.state)
        job.attempt = attempt.key[1]
        job.agent = attempt.agent.address
        now = self.ledger.now()
        job.started = job.started or now
        job.tries.append(
            Try(
                number=job.attempt,
                agent=attempt.agent.address,
                epoch=attempt.agent.epoch,
                began=now,
                may_rerun=attempt.may_rerun,
                chosen=() if why is None else why.chosen,
                runners=()
                if why is None
                else [{"agent": a, "reasons": list(r)} for a, r in why.runners],
                passed={} if why is None else why.passed,
            )
        )
        job.move(Happening.BEGUN)

    @property
    def entered(self) -> bool:
        """Whether an attempt is entered that may not be on disk yet."""
        return self.before is not None

    def take_back(self) -> None:
        """Take back what was entered: nothing was written."""
        job = self.job
        assert self.before is not None, "nothing was entered"
        job.tries.pop()
        job.attempt, job.agent, job.started, job.state = self.before
        self.before = None

    def begun(self) -> None:
        """What was entered is on disk."""
        self.before = None
        self.pass_on_turn()
        self._forget_tries()
        self.lines = 0
        self.tell(("state", self.job))

    async def settled(self) -> None:
        """Wait while something of it is being written for which no task waits."""
        while self.writing:
            self.written = self.written or asyncio.Event()
            await self.written.wait()

    def settle(self) -> None:
        """What was being written is."""
        self.writing = False
        if self.written is not None:
            self.written.set()
            self.written = None

    def pass_on_turn(self) -> None:
        """Let the next job of a limited operation go ahead, if it is our turn."""
        if self.step_aside is not None:
            self.step_aside()
            self.step_aside = None

    def _forget_tries(self) -> None:
        """Keep the newest tries, and before all others those that count."""
        tries = self.job.tries
        while len(tries) > MAX_TRIES:
            index = next((i for i, item in enumerate(tries) if item.uncounted), 0)
            del tries[index]

    def returned(self, end: str, text: str) -> None:
        """The attempt ended, and the job goes back to the queue.

        That is written down with the next attempt: until then the disk says that this one is under
        way, and who reads that asks its agent again, which changes nothing.
        """
        self.close_try(end, text, uncounted=True)
        if self.job.state is not JobState.QUEUED:
            self.job.move(Happening.RETURNED)
        self.progress = None
        self.tell(("state", self.job))

    def told(self, item: Progress | Log | Data) -> None:
        """The agent said how far it is, or a line for the log."""
        match item:
            case Progress():
                self.progress = {
                    name: value
                    for name, value in (
                        ("done", item.done),
                        ("total", item.total),
                        ("note", item.note or None),
                    )
                    if value is not None
                }
                self.tell(("progress", self.progress))
            case Log():
                self.lines += 1
                if self.lines <= MAX_LINES:
                    now = self.ledger.now()
                    self.ledger.keep_line(Line(self.job.id, now, item.level, item.text))
            case Data():
                pass  # A job has a result; pieces of a stream are for calls.

    def close_try(self, end: str, text: str = "", *, uncounted: bool = False) -> None:
        """Say how the current try ended; nothing if there is none."""
        current = self.job.current
        if self.lines > MAX_LINES:
            left_out = f"{self.lines - MAX_LINES} more lines were not kept"
            self.ledger.keep_line(Line(self.job.id, self.ledger.now(), "warning", left_out))
            self.lines = 0
        if current is not None:
            current.ended = self.ledger.now()
            current.end = end
            current.text = text
            current.uncounted = uncounted

    # -- watchers

    def tell(self, news: News) -> None:
        """Give news to all who watch."""
        for watcher in self.watchers:
            watcher.put(news)


class Watcher:
    """Reads what happens to one job; a slow reader loses the oldest news."""

    def __init__(self) -> None:
        self._news: deque[News] = deque(maxlen=MAX_NEWS)
        self._ready = asyncio.Event()
        self._over = False

    def put(self, news: News) -> None:
        """Give it something."""
        self._news.append(news)
        self._ready.set()

    def end(self) -> None:
        """Nothing follows from here: the job has ended, or is somebody else's."""
        self._over = True
        self._ready.set()

    async def read(self) -> AsyncGenerator[News]:
        """Give what comes until the end."""
        while True:
            while self._news:
                yield self._news.popleft()
            if self._over:
                return
            self._ready.clear()
            await self._ready.wait()
