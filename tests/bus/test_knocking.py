"""What a client's stream costs and says before a server has a word for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from spinal.bus.errors import BusError, LoginRefused
from spinal.bus.transports import streams
from spinal.bus.transports.slixmpp import ClientConnection
from spinal.protocols import Message, Stanza

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class Nobody:
    """Listens to nothing."""

    def opened(self) -> None: ...
    def closed(self, reason: str) -> None: ...
    def received(self, stanza: Stanza) -> None: ...
    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        return False

    def said(self, message: Message) -> None: ...


@asynccontextmanager
async def listening(talk: Talk) -> AsyncGenerator[int]:
    """Give the port of a server that treats each connection so, and then cuts it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def connection(port: int, *further: int) -> ClientConnection:
    nodes = [("127.0.0.1", each) for each in further]
    return ClientConnection("ann@bus.test/desk", "secret", "127.0.0.1", port, further=nodes)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ClientConnection]:
    """Those for whom a stream was made."""
    found: list[ClientConnection] = []
    make = ClientConnection._make  # pyright: ignore[reportPrivateUsage]

    def note(self: ClientConnection) -> Any:
        found.append(self)
        return make(self)

    monkeypatch.setattr(ClientConnection, "_make", note)
    return found


async def test_a_server_that_hangs_up_is_named_and_no_stream_is_made_for_it(
    made: list[ClientConnection],
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"<stream:stream to='bus.test'" in await reader.readuntil(b">")

    async with listening(hang_up) as port:
        with pytest.raises(BusError, match=rf"127.0.0.1:{port} closed the connection"):
            await connection(port).open(Nobody())
    assert not made


async def test_a_server_that_says_nothing_is_given_up(
    made: list[ClientConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LOGIN_TIMEOUT", 0.1)
    left = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1000):
                pass
        except ConnectionError:
            pass
        left.set()

    async with listening(say_nothing) as port, asyncio.timeout(5):
        with pytest.raises(BusError, match=r"nobody answers at .*silence"):
            await connection(port).open(Nobody())
        await left.wait()
    assert not made


async def test_a_stream_that_ends_with_its_first_words_is_an_error(
    made: list[ClientConnection],
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b">")
        writer.write(
            b"<stream:stream xmlns='jabber:client' version='1.0' from='bus.test' id='1'"
            b" xmlns:stream='http://etherx.jabber.org/streams'></stream:stream>"
        )
        await writer.drain()

    async with listening(greet) as port:
        with pytest.raises(BusError, match="closed the stream"):
            await connection(port).open(Nobody())
    assert len(made) == 1


async def test_the_nodes_of_a_cluster_are_tried_in_turn_and_each_only_once() -> None:
    knocked: list[str] = []

    def note(name: str) -> Talk:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            knocked.append(name)

        return hang_up

    async with listening(note("one")) as one, listening(note("two")) as two:
        with pytest.raises(BusError, match=rf"127.0.0.1:{two} closed the connection"):
            await connection(one, two).open(Nobody())
    assert knocked == ["one", "two"]


async def test_a_node_that_refuses_us_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    async def refuse(self: ClientConnection) -> None:
        tried.append(self._port)  # pyright: ignore[reportPrivateUsage]
        raise LoginRefused("ann@bus.test was refused")

    monkeypatch.setattr(ClientConnection, "_log_in", refuse)
    with pytest.raises(LoginRefused):
        await connection(1, 2).open(Nobody())
    assert tried == [1]
