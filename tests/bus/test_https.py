from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from http.client import HTTPSConnection, RemoteDisconnected
from pathlib import Path

import pytest
import pytest_asyncio

from spinal.bus import https as module
from spinal.bus.https import Https
from spinal.bus.server.certificates import ensure

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Host:
    """A host on loopback that serves each connection as a test wants."""

    ca: Path
    url: str = ""
    connections: int = 0
    serve: Serve | None = None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        assert self.serve is not None
        try:
            await self.serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncGenerator[Host]:
    files = ensure(tmp_path / "tls", "https.test", ["127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.combined)
    found = Host(files.ca)
    server = await asyncio.start_server(found.accept, "127.0.0.1", 0, ssl=context)
    found.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    async with server:
        yield found


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    await writer.drain()


async def always(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await answer(reader, writer)


def get(connection: HTTPSConnection) -> bytes:
    connection.request("GET", "/x")
    return connection.getresponse().read()


async def test_a_connection_is_kept_for_the_next_transfer_and_a_second_one_made_beside_it(
    host: Host,
) -> None:
    host.serve = always
    https = Https(host.ca)

    assert [await https.transfer(host.url, get) for _ in range(3)] == [b"hi"] * 3
    assert host.connections == 1
    assert await asyncio.gather(*(https.transfer(host.url, get) for _ in range(2))) == [b"hi"] * 2
    assert host.connections == 2
    https.close()
    https.close()


async def test_a_kept_connection_that_the_host_has_closed_is_made_anew(host: Host) -> None:
    host.serve = answer  # Once, and closes.
    https = Https(host.ca)

    assert [await https.transfer(host.url, get) for _ in range(3)] == [b"hi"] * 3
    assert host.connections == 3
    https.close()


async def test_a_kept_connection_that_ends_without_an_answer_is_no_failure_but_a_new_one_is(
    host: Host,
) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if host.connections < 3:
            await answer(reader, writer)
        await reader.readuntil(b"\r\n\r\n")

    host.serve = once
    https = Https(host.ca)

    assert await https.transfer(host.url, get) == b"hi"
    assert await https.transfer(host.url, get) == b"hi"
    assert host.connections == 2
    with pytest.raises(RemoteDisconnected):
        await https.transfer(host.url, get)
    assert host.connections == 3
    https.close()


async def test_a_transfer_that_is_cancelled_has_ended_when_the_cancelling_has(host: Host) -> None:
    reached = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reached.set()
        await reader.read()

    ended: list[bool] = []

    def watched(connection: HTTPSConnection) -> bytes:
        try:
            return get(connection)
        finally:
            ended.append(True)

    host.serve = silent
    https = Https(host.ca)
    transfer = asyncio.ensure_future(https.transfer(host.url, watched))
    await reached.wait()

    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(5):
            await transfer

    assert ended == [True]
    https.close()


async def test_closing_ends_the_transfers_that_are_under_way(host: Host) -> None:
    reached = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reached.set()
        await reader.read()

    host.serve = silent
    https = Https(host.ca)
    transfer = asyncio.ensure_future(https.transfer(host.url, get))
    await reached.wait()

    https.close()

    with pytest.raises(RemoteDisconnected):
        async with asyncio.timeout(5):
            await transfer


async def test_a_connection_without_a_transfer_is_not_kept_for_ever(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 0.01)
    ended = asyncio.Event()

    async def watching(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)
        await reader.read()
        ended.set()

    host.serve = watching
    https = Https(host.ca)

    assert await https.transfer(host.url, get) == b"hi"
    async with asyncio.timeout(5):
        await ended.wait()

    https.close()
