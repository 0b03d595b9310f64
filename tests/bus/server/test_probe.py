from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from spinal.bus.server.errors import ServerError
from spinal.bus.server.ports import free_ports
from spinal.bus.server.probe import LIMIT, probe


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncGenerator[int]:
    """A server that reads a header, says this and keeps the connection open."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"version='1.0'")
            for answer in answers:
                writer.write(answer)
                await writer.drain()
            await over.wait()
        except ConnectionError:
            over.set()
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        over.set()
        server.close()
        await server.wait_closed()


async def test_features_are_enough() -> None:
    async with answering(b"<stream:stream id='1'>", b"<stream:fea", b"tures/>") as port:
        await probe("127.0.0.1", port, "bus.test")


async def test_a_server_that_hangs_is_reported_in_time() -> None:
    async with answering(b"<stream:stream id='1'>") as port:
        with pytest.raises(ServerError, match=r"within 0\.2 s"):
            await probe("127.0.0.1", port, "bus.test", timeout=0.2)


async def test_nobody_there_is_reported() -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        await probe("127.0.0.1", free_ports().c2s, "bus.test")


@pytest.mark.parametrize(
    "answer", [b"<stream:error><host-unknown/></stream:error>", b"x" * (LIMIT + 1)]
)
async def test_something_else_is_reported(answer: bytes) -> None:
    async with answering(answer) as port:
        with pytest.raises(ServerError, match="no XMPP server for"):
            await probe("127.0.0.1", port, "bus.test")
