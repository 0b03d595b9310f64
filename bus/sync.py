"""The client for programs without an event loop: threads, and frameworks that fork."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import (
    AsyncIterator,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from .blob import Blob
from .client import Client, Resolution
from .errors import BusError
from .home import Credentials
from .jobmap import JobMap
from .jobs import Job, JobLog, JobUpdate, check_id
from .line import Argument, Line
from .loops import loop_factory
from .maps import Mapped
from .options import Options, Planned

_T = TypeVar("_T")


class _Running:
    """An open client and the thread that its loop runs in."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.loop = (loop_factory() or asyncio.new_event_loop)()
        self.thread = threading.Thread(target=self.loop.run_forever, name="spinal", daemon=True)
        self.thread.start()
        try:
            self.run(client.__aenter__())
        except BaseException:
            self.close()
            raise

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        # Not run_coroutine_threadsafe: Ctrl-C between its start and its return would leave the
        # work running with nobody to cancel it.
        future: Future[_T] = Future()
        started: list[asyncio.Task[_T]] = []

        def start() -> None:
            task = self.loop.create_task(work)
            started.append(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[_T]) -> None:
            if task.cancelled():
                future.set_exception(BusError("the client was closed meanwhile"))
            elif (error := task.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result())

        def stop() -> None:
            for task in started:
                task.cancel()
            if not started:
                work.close()

        try:
            self.loop.call_soon_threadsafe(start)
            return future.result()
        except BaseException:
            if not future.done():
                self.loop.call_soon_threadsafe(stop)
            raise

    def close(self) -> None:
        """Log out, end whatever still runs on the loop, and the thread."""
        try:
            self.run(self._wind_up())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    async def _wind_up(self) -> None:
        try:
            await self.client.close()
        finally:
            # Threads that wait for these must not wait for ever.
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_asyncgens()
            await asyncio.get_running_loop().shutdown_default_executor()


class SyncBlob:
    """A blob whose methods block; see :class:`~spinal.bus.Blob`."""

    def __init__(self, blob: Blob, client: SyncClient) -> None:
        self._blob = blob
        self._client = client

    def __repr__(self) -> str:
        return repr(self._blob)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self._blob.size

    @property
    def media_type(self) -> str:
        """Media type."""
        return self._blob.media_type

    @property
    def sha256(self) -> str:
        """SHA-256 of its bytes in hex."""
        return self._blob.sha256

    @property
    def blob(self) -> Blob:
        """The blob itself, to be given to another call."""
        return self._blob

    def read(self) -> bytes:
        """Give its bytes; raises :class:`BlobError` when they cannot be fetched."""
        return self._client.run(self._blob.read())

    def save(self, path: Path | str) -> Path:
        """Write its bytes into a file and give the path."""
        return self._client.run(self._blob.save(path))


class SyncJob:
    """A job whose methods block; see :class:`~spinal.bus.Job`."""

    def __init__(self, client: SyncClient, id: str) -> None:
        self._client = client
        self._id = check_id(id)

    def __repr__(self) -> str:
        return f"<SyncJob {self._id}>"

    @property
    def id(self) -> str:
        """Its id; another program of the same account finds the job by it."""
        return self._id

    def info(self) -> dict[str, Any]:
        """Ask what it is and what became of it; see ``Job.info``."""
        row: dict[str, Any] = self._client.plain(self._client.run(self._job().info()))
        return row

    def wait(self, timeout: float | str | None = None) -> dict[str, Any]:
        """Wait until it ends, or for so many seconds, and give its row; see ``Job.wait``."""
        row: dict[str, Any] = self._client.plain(self._client.run(self._job().wait(timeout)))
        return row

    def result(self, timeout: float | str | None = None) -> Any:
        """Wait until it ends, and give its value; see ``Job.result``."""
        return self._client.plain(self._client.run(self._job().result(timeout)))

    def watch(self) -> Iterator[JobUpdate]:
        """Tell of its life as it goes; see ``Job.watch``."""
        return self._client.iterate(self._job().watch())

    def log(self, after: int = 0) -> JobLog:
        """Give the lines of its log; see ``Job.log``."""
        return self._client.run(self._job().log(after))

    def children(self) -> Iterator[dict[str, Any]]:
        """Give the rows of its children; see ``Job.children``."""
        return self._client.iterate(self._job().children())

    def why(self) -> list[str]:
        """Tell who was asked to do it, and why; see ``Job.why``."""
        return self._client.run(self._job().why())

    def cancel(self) -> str:
        """Stop it, and give its state; see ``Job.cancel``."""
        return self._client.run(self._job().cancel())

    def retry(self) -> SyncJob:
        """Submit it again as a new job; see ``Job.retry``."""
        return SyncJob(self._client, self._client.run(self._job().retry()).id)

    def _job(self) -> Job:
        # Made anew each time, because the client may have logged in anew since.
        line = self._client.line
        return Job(lambda: line, self._id)


class SyncJobMap:
    """A durable map for a ``for`` loop; see :class:`~spinal.bus.JobMap`."""

    def __init__(self, found: JobMap, client: SyncClient) -> None:
        self._map = found
        self._client = client

    def __repr__(self) -> str:
        return repr(self._map)

    @property
    def id(self) -> str:
        """Id of the parent."""
        return self._map.id

    @property
    def job(self) -> SyncJob:
        """The parent."""
        return SyncJob(self._client, self._map.id)

    def __iter__(self) -> Iterator[Mapped]:
        return self._client.iterate(aiter(self._map))


class SyncClient:
    """The twin of :class:`~spinal.bus.Client` for threads.

    It may be shared by threads, and logs in at its first call, with an event loop in a thread of
    its own.  After a fork the child logs in anew at its first call, so a framework may make one
    client before it forks its workers; a child never shares its parent's address.
    """

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        credentials: Credentials | None = None,
        _base: SyncClient | None = None,
        _options: Options | None = None,
    ) -> None:
        self._home = home
        self._credentials = credentials
        self._base = _base
        self._options = _options or Options()
        self._lock = threading.Lock()
        self._running: _Running | None = None
        if _base is None:
            _clients.add(self)

    def __enter__(self) -> Self:
        self._ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def options(self, **options: Any) -> SyncClient:
        """Give a client with these options over the same connection; see ``Client.options``."""
        return SyncClient(_base=self._base or self, _options=self._options.changed(**options))

    def call(self, op: str, /, **arguments: Argument) -> Any:
        """Ask for an operation and return its value; see ``Client.call``."""
        return self.plain(self.run(self._view().call(op, **_unwrapped(arguments))))

    def stream(self, op: str, /, **arguments: Argument) -> Iterator[Any]:
        """Give the pieces of an operation's stream; see ``Client.stream``."""
        return self.iterate(self._view().stream(op, **_unwrapped(arguments)))

    def map(
        self,
        op: str,
        /,
        over: Iterable[Mapping[str, Argument]],
        *,
        window: int | None = None,
        ordered: bool = False,
    ) -> Iterator[Mapped]:
        """Ask once for each set of arguments; see ``Client.map``."""
        inputs = (_unwrapped(arguments) for arguments in over)
        return self.iterate(self._view().map(op, over=inputs, window=window, ordered=ordered))

    def submit(self, op: str, /, **arguments: Argument) -> SyncJob:
        """Hand an operation over as a job; see ``Client.submit``."""
        return SyncJob(self, self.run(self._view().submit(op, **_unwrapped(arguments))).id)

    def planned(self, op: str, /, **arguments: Argument) -> Planned:
        """Say what job to make, for :meth:`submit_all`; see ``Client.planned``."""
        return Planned(op, _unwrapped(arguments), self._options)

    def submit_all(self, plan: Mapping[str, Planned]) -> dict[str, SyncJob]:
        """Submit several jobs, all or none; see ``Client.submit_all``."""
        jobs = self.run(self._view().submit_all(plan))
        return {name: SyncJob(self, job.id) for name, job in jobs.items()}

    def start_map(
        self,
        op: str,
        /,
        over: Iterable[Mapping[str, Argument]],
        *,
        window: int | None = None,
        ordered: bool = False,
    ) -> SyncJobMap:
        """Begin a durable map; see ``Client.start_map``."""
        inputs = (_unwrapped(arguments) for arguments in over)
        view = self._view()
        begun = self.run(view.start_map(op, inputs, window=window, ordered=ordered))
        return SyncJobMap(begun, self)

    def job(self, id: str) -> SyncJob:
        """Give the job with that id, without asking anybody; see ``Client.job``."""
        return SyncJob(self, id)

    def jobs(self, **which: Any) -> Iterator[dict[str, Any]]:
        """Give the rows of our jobs, newest first; see ``Client.jobs``."""
        return self.iterate(self._view().jobs(**which))

    def upload(self, source: Path | bytes, media_type: str | None = None) -> SyncBlob:
        """Upload a file or bytes once, for any number of calls; see ``Client.upload``."""
        return SyncBlob(self.run(self._view().upload(source, media_type)), self)

    def resolve(self, op: str) -> Resolution:
        """Ask who could do an operation; see ``Client.resolve``."""
        return self.run(self._view().resolve(op))

    def agents(self) -> Sequence[Mapping[str, Any]]:
        """List the agents; see ``Client.agents``."""
        return self.run(self._view().agents())

    def ops(self) -> Sequence[Mapping[str, Any]]:
        """List the operations; see ``Client.ops``."""
        return self.run(self._view().ops())

    def close(self) -> None:
        """Cancel what is under way and log out; the next call logs in again."""
        owner = self._base or self
        with owner._lock:
            running, owner._running = owner._running, None
        if running is not None:
            running.close()

    # -- the loop in its thread

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the client's loop and wait for it.

        Ctrl-C while waiting cancels it there.

        Raises:
            BusError: the client is closed, or this is its own thread, which cannot wait for itself.
        """
        running = (self._base or self)._running
        if running is None or running.thread is threading.current_thread():
            work.close()
            raise BusError(
                "the client is closed: call something first"
                if running is None
                else "a callback of the client runs in its own thread and cannot wait for it"
            )
        return running.run(work)

    def _ready(self) -> Client:
        owner = self._base or self
        running = owner._running
        if running is None:
            with owner._lock:
                running = owner._running
                if running is None:
                    running = owner._running = _Running(
                        Client(owner._home, credentials=owner._credentials)
                    )
        return running.client

    def _forked(self) -> None:
        """Begin anew in a child: the thread of the parent's loop is not here, its sockets are.

        They are kept as they are, because taking them down would say goodbye in the parent's name.
        """
        self._lock = threading.Lock()
        if self._running is not None:
            _inherited.append(self._running)
            self._running = None

    def _view(self) -> Client:
        return self._ready().with_options(self._options)

    @property
    def line(self) -> Line:
        """The open connection, for jobs; logs in where there is none."""
        return self._ready().line

    def plain(self, value: Any) -> Any:
        """Put what blocks in the place of what would have to be awaited."""
        if isinstance(value, Blob):
            return SyncBlob(value, self)
        if isinstance(value, dict):
            members: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
            return {key: self.plain(inner) for key, inner in members.items()}
        if isinstance(value, list):
            items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
            return [self.plain(inner) for inner in items]
        if isinstance(value, Mapped):
            return replace(value, value=self.plain(value.value))
        if isinstance(value, JobUpdate) and value.row is not None:
            return replace(value, row=self.plain(value.row))
        return value

    def iterate(self, source: AsyncIterator[Any]) -> Iterator[Any]:
        """Take what an asynchronous iterator of this client gives, as it comes."""

        # After Ctrl-C a step may still be tidying up.
        step_by_step = asyncio.Lock()

        async def step() -> Any:
            async with step_by_step:
                return await anext(source, _END)

        async def leave() -> None:
            close = getattr(source, "aclose", None)
            if close is not None:
                async with step_by_step:
                    await close()

        try:
            while (item := self.run(step())) is not _END:
                yield self.plain(item)
        finally:
            if (self._base or self)._running is not None:
                self.run(leave())


class _End:
    pass


_END = _End()

#: Clients of this process, and what a child has of its parent's.
_clients: weakref.WeakSet[SyncClient] = weakref.WeakSet()
_inherited: list[_Running] = []


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()  # pyright: ignore[reportPrivateUsage] - of this module


os.register_at_fork(after_in_child=_after_fork)


def _unwrapped(arguments: Mapping[str, Argument]) -> dict[str, Argument]:
    return {
        name: value.blob if isinstance(value, SyncBlob) else value
        for name, value in arguments.items()
    }


__all__ = ["BusError", "SyncBlob", "SyncClient", "SyncJob", "SyncJobMap"]
