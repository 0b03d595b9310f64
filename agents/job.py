"""What an operation may know and do while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from spinal.bus.blob import Blob, Store
from spinal.protocols import Json

from . import process, results
from .process import Completed

#: Longest line that goes to the caller's log.
MAX_LINE = 8000


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a call when it starts."""

    id: str
    op: str
    caller: str
    attempt: int = 1


class Channel(Protocol):
    """Where news of a running call go: a request of the bus session is one."""

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        """Say how far it is."""
        ...

    def log(self, text: str, level: str = "info") -> None:
        """Send a log line."""
        ...

    async def data(self, value: Json) -> None:
        """Send a piece of the stream."""
        ...

    def spent(self, cpu: float, memory: int) -> None:
        """Count what a process cost: seconds of CPU time, and its peak of memory in bytes."""
        ...

    @property
    def remaining(self) -> float:
        """Seconds until the caller gives up."""
        ...


class Job:
    """One run of an operation, as its function sees it.

    An ``async`` operation takes it as a parameter annotated ``Job``.  A plain function that does
    so gets a :class:`PlainJob`, whose coroutines are replaced by what works there.
    """

    def __init__(
        self,
        facts: Facts,
        channel: Channel,
        store: Store | None = None,
        guard: process.Guard | None = None,
    ) -> None:
        self._facts = facts
        self._channel = channel
        self._store = store
        self._guard = guard
        self._cancelled = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.op} {self.id} attempt {self.attempt}>"

    @property
    def id(self) -> str:
        """The id that the caller gave it."""
        return self._facts.id

    @property
    def op(self) -> str:
        """Path of the operation."""
        return self._facts.op

    @property
    def caller(self) -> str:
        """Address on whose behalf it runs."""
        return self._facts.caller

    @property
    def attempt(self) -> int:
        """Which try of the job this is, from 1."""
        return self._facts.attempt

    @property
    def remaining(self) -> float:
        """Seconds until the caller gives up; never negative."""
        return self._channel.remaining

    @property
    def cancelled(self) -> bool:
        """Whether it is being stopped; for loops and threads that want to end in good order."""
        return self._cancelled

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        """Say how far it is; may be lost, and a later one replaces it."""
        self._channel.progress(done, total, note)

    def log(self, text: str, level: str = "info") -> None:
        """Send a line to the caller; may be lost.

        Of one above 8000 characters the beginning is sent.  Of too many, some are left out and
        counted: 1000 pass at once, and 100 more each second.
        """
        if len(text) > MAX_LINE:
            text = f"{text[:MAX_LINE]} ... {len(text) - MAX_LINE} characters left out"
        self._channel.log(text, level)

    async def data(self, value: object) -> None:
        """Send a piece of the result ahead of it; waits while the reader is slower than we are.

        Dropped when the caller takes no stream.

        Raises:
            CallError: the value has no JSON form, or more than 32 KiB: give a blob.
        """
        await self._channel.data(await results.pack(value, self._store, "piece of data"))

    async def fetch(self, blob: Blob) -> bytes:
        """Fetch a blob and check its hash; the same as ``await blob.read()``."""
        return await blob.read()

    async def store(self, data: bytes | Path | str, media_type: str | None = None) -> Blob:
        """Upload bytes or a file now, and give the blob to return or to send as ``data``.

        Raises:
            BlobError: it could not be uploaded.
            ValueError: there is no such file.
        """
        blob = Blob.of(data, media_type)
        if self._store is None:
            return blob  # Called without a bus, as in a test of the function itself.
        ref = await self._store.upload(blob.source or b"", blob.media_type)
        return Blob(blob.source, blob.media_type, ref=ref, store=self._store)

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | str | Path | None = None,
        timeout: float | None = None,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
        log: bool = False,
        line: Callable[[str], None] | None = None,
        limit: int = process.MAX_OUTPUT,
        strict: bool = False,
        grace: float = process.GRACE,
    ) -> Completed:
        """Run a program and give its exit code and what it wrote.

        Args:
            argv: The program and its arguments; there is no shell.
            input: Its standard input, or the file that is; empty without.
            timeout: Seconds after which it is ended; the job's own time bounds it anyway.
            cwd: Folder to run it in.
            env: All of its environment; ours without.
            check: Raise if it ends with another code than 0.
            log: Send the lines of its output to the caller while it runs.
            line: Takes the lines of its output while it runs, in place of the log.
            limit: Bytes of each output that are kept; the rest is read and dropped, and flagged.
            strict: End it instead, as soon as there is more.
            grace: Seconds between asking it to end and killing it.

        It leads a process group.  When the job is cancelled or the time is up, the group is asked
        to end, killed after ``grace``, and gone before this returns.  When the agent itself is
        killed, so is the group.

        Raises:
            TypeError: ``argv`` is a string.
            CommandFailed: it cannot be started; or, with ``check``, its code is not 0.
            TimeoutError: it ran longer than ``timeout``.
        """
        return await process.run(
            argv,
            input=input,
            timeout=timeout,
            cwd=cwd,
            env=env,
            check=check,
            line=self.log if log and line is None else line,
            limit=limit,
            strict=strict,
            grace=grace,
            spent=self._channel.spent,
            guard=self._guard,
        )

    # -- for the kit

    def stop(self) -> None:
        """Note that it is being stopped."""
        self._cancelled = True


class PlainJob(Job):
    """A job as a plain function sees it, in its worker process.

    Cancelled, the function gets an exception that no ``except Exception`` catches, so that
    ``finally`` cleans up; 5 seconds later its process is killed with all that it started.
    """

    def __init__(self, facts: Facts, channel: Channel, send: Callable[[object], None]) -> None:
        super().__init__(facts, channel)
        self._send = send

    def send(self, value: object) -> None:
        """Send a piece of the result ahead of it; waits while the reader is slower than we are.

        Raises:
            CallError: the value has no JSON form, or more than 32 KiB.
        """
        self._send(value)

    def data(self, value: object) -> NoReturn:
        """Say what to use in a plain function."""
        raise TypeError("job.data() is for async operations; a plain function has job.send(value)")

    def fetch(self, blob: Blob) -> NoReturn:
        """Say what to use in a plain function."""
        raise TypeError("job.fetch() is for async operations; a plain function has blob.data")

    def store(self, data: bytes | Path | str, media_type: str | None = None) -> NoReturn:
        """Say what to use in a plain function."""
        raise TypeError("job.store() is for async operations; a plain function returns Blob.of()")

    def run(self, argv: Sequence[str], **options: object) -> NoReturn:
        """Say what to use in a plain function."""
        raise TypeError("job.run() is for async operations; a plain function has subprocess.run")
