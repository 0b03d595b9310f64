"""The client for programs without an event loop: threads, and frameworks that fork."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from .blob import Blob
from .client import WINDOW, Argument, Client, Mapped, Resolution
from .errors import BusError
from .home import Credentials

_T = TypeVar("_T")


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
        _client: Client | None = None,
        _base: SyncClient | None = None,
        _options: Mapping[str, Any] | None = None,
    ) -> None:
        self._home = home
        self._credentials = credentials
        self._base = _base
        self._chosen: Mapping[str, Any] = _options or {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: Client | None = None
        self._pid = 0

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
        return SyncClient(_base=self._base or self, _options={**self._chosen, **options})

    def call(self, op: str, /, **arguments: Argument) -> Any:
        """Ask for an operation and return its value; see ``Client.call``."""
        return self._plain(self.run(self._view().call(op, **_unwrapped(arguments))))

    def stream(self, op: str, /, **arguments: Argument) -> Iterator[Any]:
        """Give the pieces of an operation's stream; see ``Client.stream``."""
        return self._iterate(self._view().stream(op, **_unwrapped(arguments)))

    def map(
        self,
        op: str,
        /,
        over: Iterable[Mapping[str, Argument]],
        *,
        window: int = WINDOW,
        ordered: bool = False,
    ) -> Iterator[Mapped]:
        """Ask once for each set of arguments; see ``Client.map``."""
        inputs = (_unwrapped(arguments) for arguments in over)
        return self._iterate(self._view().map(op, over=inputs, window=window, ordered=ordered))

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
            loop, thread, client = owner._loop, owner._thread, owner._client
            owner._loop = owner._thread = owner._client = None
        if loop is None or thread is None or owner._pid != os.getpid():
            return
        if client is not None:
            asyncio.run_coroutine_threadsafe(client.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    # -- the loop in its thread

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the client's loop and wait for it.

        Ctrl-C while waiting cancels it there.
        """
        owner = self._base or self
        loop = owner._loop
        assert loop is not None
        future: Future[_T] = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _ready(self) -> Client:
        owner = self._base or self
        if owner._client is not None and owner._pid == os.getpid():
            return owner._client
        with owner._lock:
            if owner._client is not None and owner._pid == os.getpid():
                return owner._client
            # After a fork the parent's loop and thread are not here; its sockets are, unused.
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=loop.run_forever, name="spinal", daemon=True)
            thread.start()
            client = Client(owner._home, credentials=owner._credentials)
            try:
                asyncio.run_coroutine_threadsafe(client.__aenter__(), loop).result()
            except BaseException:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                loop.close()
                raise
            owner._loop, owner._thread, owner._client = loop, thread, client
            owner._pid = os.getpid()
            return client

    def _view(self) -> Client:
        client = self._ready()
        return client.options(**self._chosen) if self._chosen else client

    def _plain(self, value: Any) -> Any:
        if isinstance(value, Blob):
            return SyncBlob(value, self)
        if isinstance(value, dict):
            members: dict[str, Any] = value
            return {key: self._plain(inner) for key, inner in members.items()}
        if isinstance(value, list):
            items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
            return [self._plain(inner) for inner in items]
        if isinstance(value, Mapped):
            return Mapped(
                value.index,
                value.arguments,
                self._plain(value.value),
                value.error,
                value.agent,
                value.ran,
            )
        return value

    def _iterate(self, source: AsyncIterator[Any]) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(source, _END)

        async def leave() -> None:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()

        try:
            while (item := self.run(step())) is not _END:
                yield self._plain(item)
        finally:
            self.run(leave())


class _End:
    pass


_END = _End()


def _unwrapped(arguments: Mapping[str, Argument]) -> dict[str, Argument]:
    return {
        name: value.blob if isinstance(value, SyncBlob) else value
        for name, value in arguments.items()
    }


__all__ = ["BusError", "SyncBlob", "SyncClient"]
