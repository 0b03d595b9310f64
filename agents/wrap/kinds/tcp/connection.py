"""Connections to a service that speaks in lines: one that reads and writes, and a pool of them.

A connection is used by one talk at a time.  Whoever takes one gives it back only when its talk came
to a clean end; any other is closed, because what comes over it next may be the answer to something
else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, cast

from spinal.bus.tasks import Tasks

from ....errors import Retry

#: Bytes that may wait to be read before the other side is held up.
HIGH: Final = 64 * 1024

#: Seconds for which a connection waits for its next use, and for its end once it is closed.
IDLE: Final = 60.0
CLOSED_WITHIN: Final = 1.0


class Broken(Exception):
    """The other side has ended the connection, or has said more than is taken."""


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._ended = False
        self._more = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._closed = asyncio.Event()
        #: Since it was last taken: whether something was written, and whether anything came.
        self.wrote = False
        self.heard = False
        #: When it was last given back, by the event loop's clock; none if it is new.
        self.idle: float | None = None

    @property
    def fit(self) -> bool:
        """Whether a new talk may begin: it is open, and nothing unasked has come."""
        return not (self._ended or self._buffer or self._closed.is_set())

    def begin(self) -> None:
        """Begin a talk."""
        self.wrote = self.heard = False

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the way out."""
        # uvloop's are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Keep what came until it is read."""
        self.heard = True
        self._buffer += data
        if len(self._buffer) > HIGH and self._transport is not None:
            self._transport.pause_reading()
        self._more.set()

    def eof_received(self) -> None:
        """Take note that nothing more comes, and close it."""
        self._ended = True
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that it is closed."""
        self._ended = True
        self._closed.set()
        self._more.set()
        self._writable.set()

    def pause_writing(self) -> None:
        """Hold up whoever writes."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let whoever writes go on."""
        self._writable.set()

    # -- the talk's side

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the other side is slower.

        Raises:
            Broken: it has been closed.
        """
        if self._transport is None or self._ended:
            raise Broken("it closed the connection")
        self.wrote = True
        self._transport.write(data)
        await self._writable.wait()

    async def line(self, end: bytes, longest: int) -> bytes:
        """Give the next line without its end.

        Raises:
            Broken: there is none, or it is longer.
        """
        start = 0
        while (at := self._buffer.find(end, start)) < 0:
            start = max(0, len(self._buffer) - len(end) + 1)
            if len(self._buffer) > longest:
                raise Broken(f"it sent a line of more than {longest} bytes")
            await self._wait()
        if at > longest:
            raise Broken(f"it sent a line of more than {longest} bytes")
        return self._take(at, len(end))

    async def read(self, count: int) -> bytes:
        """Give so many bytes.

        Raises:
            Broken: there are fewer.
        """
        while len(self._buffer) < count:
            await self._wait()
        return self._take(count)

    async def rest(self, most: int) -> bytes:
        """Give all that comes until the other side closes.

        Raises:
            Broken: that is more.
        """
        while not self._ended:
            if len(self._buffer) > most:
                break
            with contextlib.suppress(Broken):
                await self._wait()
        if len(self._buffer) > most:
            raise Broken(f"it sent more than {most} bytes")
        return self._take(len(self._buffer))

    async def _wait(self) -> None:
        if self._ended:
            raise Broken("it closed the connection")
        self._more.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        await self._more.wait()

    def _take(self, count: int, more: int = 0) -> bytes:
        found = bytes(self._buffer[:count])
        del self._buffer[: count + more]
        return found

    def abort(self) -> None:
        """Close it at once."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    async def close(self, goodbye: bytes = b"") -> None:
        """Say goodbye, unless the other side has, and close it."""
        if self._transport is None:
            return
        if goodbye and not self._ended:
            self._transport.write(goodbye)
        self._transport.close()
        try:
            async with asyncio.timeout(CLOSED_WITHIN):
                await self._closed.wait()
        except TimeoutError:
            self._transport.abort()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service is."""

    #: As the manifest says it.
    text: str
    host: str = ""
    port: int = 0
    #: Of a Unix socket.
    path: str = ""
    tls: bool = False
    #: File of the authority that is trusted; the system's if empty.
    ca: str = ""
    #: Name that its certificate has to be for; the host if empty.
    name: str = ""

    async def connect(self) -> Connection:
        """Open a connection.

        Raises:
            OSError: nobody is there, or its certificate is not good.
        """
        loop = asyncio.get_running_loop()
        context = None
        if self.tls:
            context = await asyncio.to_thread(ssl.create_default_context, cafile=self.ca or None)
        name = (self.name or self.host) if self.tls else None
        if self.path:
            _, found = await loop.create_unix_connection(
                Connection, self.path, ssl=context, server_hostname=name
            )
        else:
            _, found = await loop.create_connection(
                Connection, self.host, self.port, ssl=context, server_hostname=name
            )
        return found


class Pool:
    """Connections to one place, no more than a number of them at once.

    Args:
        place: where.
        size: most that are open.
        within: seconds for opening one, with its greeting.
        greet: what is said on a new one.
        goodbye: what is said before one is closed.
    """

    def __init__(
        self,
        place: Place,
        size: int,
        within: float,
        greet: Callable[[Connection], Awaitable[None]],
        goodbye: bytes = b"",
    ) -> None:
        self._place = place
        self._within = within
        self._greet = greet
        self._goodbye = goodbye
        self._room = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._tasks = Tasks(f"connections to {place.text}")

    @contextlib.asynccontextmanager
    async def room(self) -> AsyncGenerator[None]:
        """Wait for room for one connection, and have it for a block."""
        async with self._room:
            yield

    async def take(self, fresh: bool = False) -> Connection:
        """Give a connection that is fit; call it in :meth:`room`.

        Args:
            fresh: a new one, although another may wait.

        Raises:
            Retry: nobody is there, or answers.
        """
        now = asyncio.get_running_loop().time()
        while self._idle:
            found = self._idle.pop()
            if not fresh and found.fit and now - (found.idle or 0.0) < IDLE:
                found.begin()
                return found
            self._close(found)
        try:
            async with asyncio.timeout(self._within):
                found = await self._place.connect()
                try:
                    await self._greet(found)
                except BaseException:
                    found.abort()
                    raise
        except TimeoutError as exc:
            raise Retry(f"{self._place.text} did not answer within {self._within:g} s") from exc
        except OSError as exc:
            why = exc.strerror or str(exc)
            raise Retry(f"cannot connect to {self._place.text}: {why}") from exc
        except Broken as exc:
            raise Retry(f"{self._place.text} did not greet: {exc}") from exc
        found.begin()
        return found

    def give(self, connection: Connection, keep: bool = True) -> None:
        """Take one back whose talk has come to a clean end."""
        if keep and connection.fit:
            connection.idle = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._tasks.spawn(connection.close(self._goodbye), "close")

    async def close(self) -> None:
        """Close those that wait."""
        while self._idle:
            self._close(self._idle.pop())
        await self._tasks.idle()
        await self._tasks.close()
