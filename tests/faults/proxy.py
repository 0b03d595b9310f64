"""A cable to a server, on loopback, that can be cut: with a closed socket, or in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Carries the bytes of any number of streams between a port of ours and a server."""

    def __init__(self, server: Callable[[], tuple[str, int]]) -> None:
        self._server = server
        #: Where it listens, while :meth:`open`.
        self.port = 0
        self._streams: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._whole = True
        self._flows = asyncio.Event()
        self._flows.set()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Proxy]:
        """Listen; every stream is closed at the end."""
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            for task in self._carrying:
                task.cancel()
            await asyncio.gather(*self._carrying, return_exceptions=True)
            await server.wait_closed()

    def cut(self) -> None:
        """Break every stream; new ones are refused until it is mended."""
        self._whole = False
        for stream in self._streams:
            stream.transport.abort()

    def silence(self) -> None:
        """Carry nothing more and close nothing; new streams are taken and get no answer."""
        self._flows.clear()

    def mend(self) -> None:
        """Carry on, also what was sent in the meantime, as TCP does."""
        self._whole = True
        self._flows.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._whole:
            writer.transport.abort()
            return
        try:
            await self._flows.wait()
            there, back = await asyncio.open_connection(*self._server())
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, back), (there, writer)):
            self._streams.add(sink)
            task = asyncio.create_task(self._carry(source, sink))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        # One end of a stream that breaks ends the other one too.
        try:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    await self._flows.wait()
                    sink.write(data)
                    await sink.drain()
        finally:
            sink.transport.abort()
            self._streams.discard(sink)
