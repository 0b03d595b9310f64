"""HTTPS for what is too large for the event loop: each transfer has a connection and a thread.

Encrypting, hashing, reading and writing files all let other threads run, so a blob costs the event
loop nothing, and half of the CPU that it costs there.  Connections are made on the event loop,
where that can be cancelled, and kept for a while when a transfer has ended well.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

#: Transfers at once; a further one waits.
MOST: Final = 16
#: Seconds without a byte after which a transfer is given up.
STALLED: Final = 30.0
#: Seconds for which a connection without a transfer is kept, at most.
KEPT: Final = 10.0

#: What goes wrong on the way.
FAILURES: Final = (OSError, HTTPException)

T = TypeVar("T")


class Https:
    """Transfers over TLS, to any number of hosts.

    Args:
        ca: certificate authority (PEM) to trust; the system's if none.
    """

    def __init__(self, ca: Path | None) -> None:
        self._ca = ca
        self._trust: ssl.SSLContext | None = None
        self._threads = ThreadPoolExecutor(MOST, "blobs")
        #: Host and port -> connections without a transfer.
        self._idle: dict[tuple[str, int], list[HTTPSConnection]] = {}
        self._busy: set[HTTPSConnection] = set()
        self._closed = False

    def close(self) -> None:
        """End all connections; transfers under way fail.  May be called again."""
        self._closed = True
        for connection in self._busy:
            _cut(connection)
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()
        self._threads.shutdown(wait=False)

    async def transfer(self, url: str, work: Callable[[HTTPSConnection], T]) -> T:
        """Let ``work`` use a connection to the host of a URL, in a thread; give what it returns.

        It is called a second time when the host had closed a kept connection.  Cancelling cuts the
        connection, and returns once the thread has noticed.

        Raises:
            OSError, HTTPException: no connection, or what ``work`` raised.
        """
        place = urlsplit(url)
        host = (place.hostname or "", place.port or 443)
        kept = self._kept(host)
        if kept is not None:
            try:
                return await self._run(host, kept, work)
            except (BrokenPipeError, ConnectionResetError):
                pass  # http.client says of a connection that was closed that it was reset.
        return await self._run(host, await self._connect(*host), work)

    async def _run(
        self,
        host: tuple[str, int],
        connection: HTTPSConnection,
        work: Callable[[HTTPSConnection], T],
    ) -> T:
        loop = asyncio.get_running_loop()
        self._busy.add(connection)
        running = loop.run_in_executor(self._threads, _shaken(work), connection)
        try:
            found = await asyncio.shield(running)
        except asyncio.CancelledError:
            _cut(connection)
            await asyncio.gather(running, return_exceptions=True)
            raise
        else:
            if connection.sock is not None and not self._closed:
                self._idle.setdefault(host, []).append(connection)
                loop.call_later(KEPT, self._drop, host, connection)
            return found
        finally:
            self._busy.discard(connection)
            if connection not in self._idle.get(host, ()):
                connection.close()

    def _drop(self, host: tuple[str, int], connection: HTTPSConnection) -> None:
        """End a connection if it is still without a transfer."""
        idle = self._idle.get(host, [])
        if connection in idle:
            idle.remove(connection)
            connection.close()

    def _kept(self, host: tuple[str, int]) -> HTTPSConnection | None:
        """Give a connection that is still there."""
        idle = self._idle.get(host, [])
        while idle:
            connection = idle.pop()
            if not _readable(connection.sock):
                return connection  # Something to read would be the end of it.
            connection.close()
        return None

    async def _connect(self, host: str, port: int) -> HTTPSConnection:
        if self._trust is None:
            self._trust = ssl.create_default_context(cafile=self._ca)
        plain = await _plain(host, port)
        with closing(plain):  # Wrapping takes it over, unless it fails.
            connection = HTTPSConnection(host, port, context=self._trust)
            connection.sock = self._trust.wrap_socket(
                plain, server_hostname=host, do_handshake_on_connect=False
            )
            return connection


async def _plain(host: str, port: int) -> socket.socket:
    """Connect to the first address of a host that answers."""
    loop = asyncio.get_running_loop()
    error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    ):
        found = socket.socket(family, kind, protocol)
        found.setblocking(False)
        try:
            async with asyncio.timeout(STALLED):
                await loop.sock_connect(found, address)
            found.settimeout(STALLED)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        except OSError as exc:
            found.close()
            error = exc
        except BaseException:
            found.close()
            raise
    raise error


def _shaken(work: Callable[[HTTPSConnection], T]) -> Callable[[HTTPSConnection], T]:
    """Make the handshake before the work; in the thread, because it computes."""

    def shaken(connection: HTTPSConnection) -> T:
        connection.sock.do_handshake()  # Nothing is done where it was done.
        return work(connection)

    return shaken


def _readable(found: socket.socket) -> bool:
    # Not select(), which knows only the first 1,024 files of a process.
    poll = select.poll()
    poll.register(found, select.POLLIN)
    return bool(poll.poll(0))


def _cut(connection: HTTPSConnection) -> None:
    """End a connection under a thread that reads or writes, which then fails."""
    try:
        # Not that of TLS, which changes what the thread uses.
        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
    except OSError:
        pass  # It has ended already.
