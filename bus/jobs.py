"""Jobs as their caller holds them: by id, over any connection, through restarts of the dispatcher.

A handle keeps nothing but the id and what it was told last, so it may be dropped and made again at
any time.  Every request about a job may be asked twice without harm, and is: when a dispatcher is
gone, hangs or does not answer, the next one is asked, in turn and with growing pauses.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from spinal.protocols import (
    Data,
    Json,
    Log,
    Problem,
    Progress,
    Ran,
    RemoteProtocolError,
    duration,
    readers,
)

from .call import Item
from .errors import CallError, NotEnded
from .line import NOT_SAID, NOT_TAKEN, Line
from .options import Options
from .reconnect import Backoff

#: States after which nothing follows.
FINAL = frozenset({"done", "error", "killed"})

#: Seconds for which a dispatcher is asked to wait for the end of a job, and to tell of its life;
#: that it was restarted behind our back, or hangs, is noticed after that.
SLICE = 10.0
WATCH = 30.0
#: Seconds beyond our own time-out in which the dispatcher's answer may still arrive.
SLACK = 1.0
#: Seconds for which dispatchers are tried when none answers, where nobody set a time-out: the
#: default deadline of a job, or until the deadline of this one if that is later.
AWAY = 3600.0
#: Pieces of news that may be unread, and rows and lines of a page.
WINDOW = 32
PAGE = 200


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log."""

    #: Its number; later lines have higher ones.
    seq: int
    text: str
    level: str = "info"
    #: When it was taken down, RFC 3339 in UTC.
    at: str = ""


@dataclass(frozen=True, slots=True)
class JobLog:
    """What is kept of a job's log."""

    lines: tuple[LogLine, ...]
    #: Lines that were not kept, because there were too many.
    dropped: int = 0

    def __iter__(self) -> Iterator[LogLine]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """One piece of news of a job: exactly one of ``row``, ``progress`` and ``log`` is there."""

    #: State of the job, as far as it is known by now.
    state: str
    #: The whole row, when something in it changed; the last update of a job has its final one.
    row: Mapping[str, Any] | None = None
    progress: Progress | None = None
    log: LogLine | None = None


class Job:
    """A job, by its id.  Made by ``Client.submit`` and, without asking anybody, ``Client.job``.

    What it raises is a :class:`~spinal.bus.CallError`: with reason ``unknown-job`` where there is
    no such job of ours, :class:`~spinal.bus.Unreached` where no dispatcher answered.  Cancelling
    one of its coroutines leaves the job as it is.

    Raises:
        ValueError: that is no id.
    """

    def __init__(
        self, line: Callable[[], Line], id: str, row: Mapping[str, Any] | None = None
    ) -> None:
        self._id = check_id(id)
        self._line = line
        self._row: dict[str, Any] = dict(row or {})

    def __repr__(self) -> str:
        return f"<Job {self._id} {self._row.get('state', 'not asked about yet')}>"

    @property
    def id(self) -> str:
        """Its id; another program of the same account finds the job by it."""
        return self._id

    @property
    def row(self) -> Mapping[str, Any]:
        """What was told of it last; empty for a handle that nobody has asked anything."""
        return self._row

    async def info(self) -> dict[str, Any]:
        """Ask what it is and what became of it; see docs/protocol.md for the members."""
        self._told(await self._ask("get"))
        return await self.whole()

    async def wait(self, timeout: float | str | None = None) -> dict[str, Any]:
        """Wait until it ends, or for so many seconds, and give what is known of it then.

        A restart of the dispatcher is waited out.  Without a time-out, dispatchers of which none
        answers are tried for an hour, or until the job's deadline if that is later.

        Raises:
            Unreached: no dispatcher answered in time.
        """
        loop = asyncio.get_running_loop()
        seconds = None if timeout is None else duration.parse(timeout)
        end = None if seconds is None else loop.time() + seconds
        backoff = Backoff(first=0.25, most=5.0)
        while self._row.get("state") not in FINAL:
            began = loop.time()
            if end is None:
                left, until = SLICE, began + _patience(self._row)
            else:
                left, until = max(0.0, min(SLICE, end - began)), max(end, began) + SLACK
            self._told(await self._ask("wait", until=until, wait=left, seconds=left))
            if end is not None and loop.time() >= end:
                break
            if loop.time() - began < left / 2:
                # It may answer early when it stops; but not in a circle.
                await asyncio.sleep(backoff.pause())
        return await self.whole()

    async def result(self, timeout: float | str | None = None) -> Any:
        """Wait until it ends, and give its value; blobs in it are :class:`~spinal.bus.Blob`.

        Raises:
            NotEnded: not within ``timeout`` seconds; it goes on.
            CallError: it ended otherwise; of the kind that a call would raise.  A job that was
                cancelled has the reason ``cancelled``.
            Unreached: no dispatcher answered in time; see :meth:`wait`.
        """
        return outcome(await self.wait(timeout), timeout)

    async def watch(self) -> AsyncGenerator[JobUpdate]:
        """Tell of its life: changes of state, progress, and the lines of its log from the first.

        Ends after the update with the final state.  Goes on after a restart of the dispatcher,
        with no line twice and none missing of those that are kept; progress may be lost.
        """
        loop = asyncio.get_running_loop()
        backoff = Backoff(first=0.25, most=5.0)
        seen, last = 0, None
        until = loop.time() + _patience(self._row)
        while True:
            line = self._line()
            call = line.begin("/spinal/jobs/watch", {"id": self._id}, WATCH, WINDOW)
            caught_up = False
            try:
                async with aclosing(aiter(call)) as items:
                    async for item in items:
                        if not isinstance(item, Data) or not isinstance(item.value, dict):
                            continue
                        backoff.failures = 0
                        until = loop.time() + _patience(self._row)
                        value: dict[str, Any] = item.value  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType] - of Json
                        state = str(self._row.get("state", ""))
                        if (log_line := value.get("log")) is not None:
                            if log_line["seq"] > seen + 1 or not caught_up:
                                # What came before we watched, or while nobody told us.
                                for missed in (await self.log(seen)).lines:
                                    seen, caught_up = missed.seq, True
                                    yield JobUpdate(state, log=missed)
                            if log_line["seq"] > seen:
                                seen = log_line["seq"]
                                yield JobUpdate(state, log=_line(log_line))
                        elif "state" not in value:
                            if (progress := value.get("progress")) is not None:
                                yield JobUpdate(state, progress=_progress(self._id, progress))
                        elif value["state"] not in FINAL:
                            # A row, which may hold progress too.
                            row = self._told(value)
                            if row != last:
                                last = row
                                yield JobUpdate(row["state"], row=row)
                            if not caught_up:
                                caught_up = True
                                for missed in (await self.log(seen)).lines:
                                    seen = missed.seq
                                    yield JobUpdate(row["state"], log=missed)
                self._told(await call.result())
            except CallError as exc:
                if line.closed or exc.reason not in NOT_SAID or loop.time() >= until:
                    raise
                if not (exc.reason == "deadline" and call.heard):
                    # Otherwise it was there all the time, and only our slice is over.
                    line.passed_over(call.to)
                    await asyncio.sleep(backoff.pause())
                continue
            final = await self.whole()
            for missed in (await self.log(seen)).lines:
                yield JobUpdate(final["state"], log=missed)
            yield JobUpdate(final["state"], row=final)
            return

    async def log(self, after: int = 0) -> JobLog:
        """Give the lines of its log, those after a number if one is given."""
        lines: list[LogLine] = []
        while True:
            page = await self._ask("log", after=after, limit=PAGE)
            lines += map(_line, page["items"])
            if not page.get("more") or not page["items"]:
                return JobLog(tuple(lines), page.get("dropped", 0))
            after = lines[-1].seq

    async def children(self) -> AsyncGenerator[dict[str, Any]]:
        """Give the rows of its children in order, with arguments and values."""
        after = -1
        while True:
            page = await self._ask("children", after=after, limit=PAGE)
            for row in page["items"]:
                after = row["position"]
                child = Job(self._line, row["id"], self._line().incoming(row))
                yield await child.whole()
            if not page.get("more") or not page["items"]:
                return

    async def why(self) -> list[str]:
        """Tell in plain sentences who was asked to do it, why, and how each attempt ended."""
        found: list[str] = (await self._ask("why"))["lines"]
        return found

    async def cancel(self) -> str:
        """Stop it, and give its state: ``killed``, or the final one that it had already."""
        return str(self._told(await self._ask("cancel"))["state"])

    async def retry(self) -> Job:
        """Submit it again as a new job, once it has ended.

        Raises:
            Unreached: nobody answered; look for a job whose ``origin`` is ``retry:`` and this
                one's id before asking again, because each time makes a job.
        """
        row = await self._ask("retry", again=NOT_TAKEN)
        return Job(self._line, row["id"], self._line().incoming(row))

    async def followed(
        self, timeout: float | None, news: Callable[[Item], None] | None
    ) -> dict[str, Any]:
        """Wait as :meth:`wait` does, and tell ``news`` of progress and log lines."""
        if news is None or self._row.get("state") in FINAL:
            return await self.wait(timeout)
        limit = asyncio.timeout(timeout)
        try:
            async with limit, aclosing(self.watch()) as updates:
                async for update in updates:
                    if update.progress is not None:
                        news(update.progress)
                    elif update.log is not None:
                        news(Log(self._id, text=update.log.text, level=update.log.level))
        except TimeoutError:
            if not limit.expired():
                raise
        return dict(self._row)

    async def _ask(
        self,
        what: str,
        *,
        until: float | None = None,
        wait: float = 0.0,
        again: frozenset[str] = NOT_SAID,
        **arguments: Json,
    ) -> Any:
        if until is None:
            until = asyncio.get_running_loop().time() + Options().patience
        arguments = {"id": self._id, **arguments}
        return await self._line().ask(
            f"/spinal/jobs/{what}", arguments, until=until, wait=wait, again=again
        )

    def _told(self, row: Any) -> dict[str, Any]:
        """Take over a row; what it leaves out is no longer so."""
        self._row = self._line().incoming(row)
        return dict(self._row)

    async def whole(self) -> dict[str, Any]:
        """Give the row with the members that were too large to travel in it."""
        for part in self._row.get("large", ()):
            self._row[part] = self._line().incoming(await self._ask("part", part=part))
        self._row.pop("large", None)
        return dict(self._row)


def check_id(id: str) -> str:
    """Give the id of a job back.

    Raises:
        ValueError: it cannot be one.
    """
    try:
        return str(readers.identifier(id, "id"))
    except RemoteProtocolError as exc:
        raise ValueError(f"no id of a job: {id!r}") from exc


def outcome(row: Mapping[str, Any], timeout: float | str | None = None) -> Any:
    """Give the value of a job by its row.

    Raises:
        NotEnded: it has not ended.
        CallError: it did not end well.
    """
    state = row.get("state", "unknown")
    if state == "done":
        return row.get("value")
    if state not in FINAL:
        within = "" if timeout is None else f" within {duration.write(duration.parse(timeout))}"
        text = f"job {row.get('id', '')} has not ended{within}: it is {state} and goes on"
        raise NotEnded(Problem("deadline", text), row.get("agent"))
    found = row.get("problem")
    try:
        problem = readers.problem(found, "problem")
    except RemoteProtocolError:
        problem = Problem("cancelled" if state == "killed" else "failed")
    raise CallError.of(problem, row.get("agent"))


async def submit(
    line: Callable[[], Line],
    submission: Mapping[str, Json],
    until: float,
    wait: float = 0.0,
    again: frozenset[str] = NOT_SAID,
) -> Job:
    """Submit a job under its key, to one dispatcher after the other until one has it.

    Raises:
        CallError: it was refused, or nobody answered.
    """
    if wait:
        submission = {**submission, "wait": wait}
    here = line()
    try:
        row = await here.ask("/spinal/jobs/submit", submission, until=until, wait=wait, again=again)
    except CallError as exc:
        raise uncertain(exc, str(submission["key"])) from exc
    return Job(line, row["id"], here.incoming(row))


def uncertain(error: CallError, key: str) -> CallError:
    """Say in an error after which a job may be there how to find it."""
    if error.reason not in NOT_SAID or error.problem.meaning.ran is Ran.NO:
        return error
    text = f"{error}; the job may be there: submitting it again with key={key!r} gives the same one"
    return CallError.of(Problem(error.reason, text))


def mint_key() -> str:
    """Give a key that nobody else uses, so that a submission can be repeated."""
    return secrets.token_hex(12)


def _patience(row: Mapping[str, Any]) -> float:
    """Seconds for which dispatchers of which none answers are tried about a job."""
    ends = row.get("ends")
    if ends is None:
        return AWAY
    left = datetime.fromisoformat(ends) - datetime.now(UTC)
    return max(AWAY, left.total_seconds())


def _line(raw: Mapping[str, Any]) -> LogLine:
    return LogLine(raw["seq"], raw["text"], raw.get("level", "info"), raw.get("at", ""))


def _progress(id: str, raw: Mapping[str, Any]) -> Progress:
    return Progress(id, done=raw.get("done"), total=raw.get("total"), note=raw.get("note") or "")
