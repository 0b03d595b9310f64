"""What the transport over aioxmpp does with servers that are not as they should be, and with parsers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest

from spinal.bus.errors import BusError, LoginRefused
from spinal.bus.server.certificates import Certificates, ensure
from spinal.bus.transports import streams
from spinal.protocols import Stanza
from spinal.testing import eventually

MISSING = "MISSING: aioxmpp, which there is for Python 3.11 and 3.12"
transport: Any = pytest.importorskip("spinal.bus.transports.aioxmpp", reason=MISSING)

HEADER = (
    b"<stream:stream xmlns='jabber:client' version='1.0' from='bus.test' id='1'"
    b" xmlns:stream='http://etherx.jabber.org/streams'>"
)
TLS = "urn:ietf:params:xml:ns:xmpp-tls"
SASL = "urn:ietf:params:xml:ns:xmpp-sasl"
STARTTLS = f"<stream:features><starttls xmlns='{TLS}'/></stream:features>".encode()
PROCEED = f"<proceed xmlns='{TLS}'/>".encode()
PASSWORD = "a password that nobody may see"


def offer(mechanism: str) -> bytes:
    return (
        f"<stream:features><mechanisms xmlns='{SASL}'><mechanism>{mechanism}</mechanism>"
        "</mechanisms></stream:features>"
    ).encode()


class Nobody:
    """Listens to nothing."""

    def opened(self) -> None: ...
    def closed(self, reason: str) -> None: ...
    def received(self, stanza: Stanza) -> None: ...


class Peer:
    """The server's end of one stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.heard = b""

    async def until(self, end: bytes) -> None:
        self.heard += await self._reader.readuntil(end)

    async def header(self) -> None:
        await self.until(b"<stream:stream ")
        await self.until(b">")

    async def rest(self) -> None:
        try:
            self.heard += await self._reader.read()
        except ConnectionError:
            pass

    async def secure(self, files: Certificates) -> None:
        """Offer TLS, and begin anew inside it."""
        await self.header()
        self.writer.write(HEADER + STARTTLS)
        await self.until(b"/>")
        self.writer.write(PROCEED)
        await self.writer.drain()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        await self.writer.start_tls(context)
        await self.header()


@asynccontextmanager
async def serving(talk: Callable[[Peer], Coroutine[Any, Any, None]]) -> AsyncGenerator[int]:
    """Give the port of a server that treats each stream so, and then cuts it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(Peer(reader, writer))
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def refusal(port: int, ca: Path | None = None) -> BusError:
    """Try to log in, and give the error, which nothing of the try survives."""
    before = asyncio.all_tasks()
    connection = transport.ClientConnection("ann@bus.test/desk", PASSWORD, "127.0.0.1", port, ca)
    async with asyncio.timeout(5):
        with pytest.raises(BusError) as refused:
            await connection.open(Nobody())
    await connection.close()

    def left() -> list[str]:
        names = [
            getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks() - before
        ]
        return [name for name in names if not name.startswith("serving.")]

    await eventually(lambda: not left(), 5, "no task is left")
    assert "\n" not in str(refused.value)
    return refused.value


async def test_a_server_that_hangs_up_is_named() -> None:
    async def hang_up(peer: Peer) -> None:
        await peer.until(b">")

    async with serving(hang_up) as port:
        assert f"127.0.0.1:{port} closed the stream" in str(await refusal(port))


async def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LOGIN_TIMEOUT", 0.1)

    async def say_nothing(peer: Peer) -> None:
        await peer.rest()

    async with serving(say_nothing) as port:
        assert "nobody answers" in str(await refusal(port))


async def test_a_server_that_stops_in_the_middle_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "LOGIN_TIMEOUT", 0.1)

    async def greet(peer: Peer) -> None:
        await peer.header()
        peer.writer.write(HEADER + STARTTLS)
        await peer.rest()

    async with serving(greet) as port:
        assert "did not finish the login" in str(await refusal(port))


@pytest.mark.parametrize("offered", [STARTTLS, offer("SCRAM-SHA-1"), b"<stream:features/>"])
async def test_without_tls_nobody_logs_in(offered: bytes) -> None:
    said = b""

    async def refuse(peer: Peer) -> None:
        nonlocal said
        await peer.header()
        peer.writer.write(HEADER + offered)
        await peer.until(b"/>")
        peer.writer.write(f"<failure xmlns='{TLS}'/></stream:stream>".encode())
        await peer.rest()
        said = peer.heard

    async with serving(refuse) as port:
        assert "refuses TLS" in str(await refusal(port))
        await eventually(lambda: said, 5)
    assert b"starttls" in said and b"auth" not in said


@pytest.mark.parametrize("mechanism", ["PLAIN", "ANONYMOUS", "DIGEST-MD5", "X-SCRAM-SHA-1"])
async def test_a_server_that_wants_the_password_does_not_get_it(
    mechanism: str, tmp_path: Path
) -> None:
    files = ensure(tmp_path, "bus.test")
    said = b""

    async def want_it(peer: Peer) -> None:
        nonlocal said
        await peer.secure(files)
        peer.writer.write(HEADER + offer(mechanism))
        await peer.rest()
        said = peer.heard

    async with serving(want_it) as port:
        error = await refusal(port, files.ca)
        assert isinstance(error, LoginRefused) and "offers no SCRAM" in str(error)
        await eventually(lambda: said, 5)
    assert b"<auth" not in said


async def test_what_was_said_before_tls_counts_for_nothing(tmp_path: Path) -> None:
    files = ensure(tmp_path, "bus.test")

    async def inject(peer: Peer) -> None:
        await peer.header()
        # Whoever is between us and the server can say this; only what comes inside TLS is its.
        peer.writer.write(HEADER + STARTTLS)
        await peer.until(b"/>")
        peer.writer.write(offer("SCRAM-SHA-256") + PROCEED)
        await peer.writer.drain()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        await peer.writer.start_tls(context)
        await peer.header()
        peer.writer.write(HEADER + offer("PLAIN"))
        await peer.rest()

    async with serving(inject) as port:
        assert "offers no SCRAM" in str(await refusal(port, files.ca))


@pytest.mark.parametrize(
    ("condition", "kind"), [("temporary-auth-failure", BusError), ("not-authorized", LoginRefused)]
)
async def test_only_a_password_that_is_wrong_is_final(
    condition: str, kind: type[BusError], tmp_path: Path
) -> None:
    files = ensure(tmp_path, "bus.test")

    async def refuse(peer: Peer) -> None:
        await peer.secure(files)
        peer.writer.write(HEADER + offer("SCRAM-SHA-1"))
        await peer.until(b"</auth>")
        peer.writer.write(f"<failure xmlns='{SASL}'><{condition}/></failure>".encode())
        await peer.rest()

    async with serving(refuse) as port:
        assert type(await refusal(port, files.ca)) is kind


class _Void(asyncio.Transport):
    """Takes everything and sends nothing."""

    def write(self, data: object) -> None: ...
    def abort(self) -> None: ...


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_a_stanza_comes_with_its_last_byte_however_it_was_cut(size: int) -> None:
    heard: list[Element] = []
    stream = transport.Stream("bus.test", heard.append, print, print, asyncio.Event())
    stream.connection_made(_Void())
    stream.data_received(HEADER)
    text = "5 < 6 & 'x' \"y\" ]]> \n\t ✓ 𝄞 " + "z" * 5000
    said = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&#62;")
    whole = (
        f"<message id='{'n' * 3000}'><body>no</body> <x xmlns='urn:spinal:1'>{said}"
        f"<y a='1' xml:lang='de'/>&amp;</x>tail</message>"
    ).encode()
    for first in range(0, len(whole), size):
        assert not heard
        stream.data_received(whole[first : first + size])
    (message,) = heard
    assert (message.tag, message.attrib) == ("{jabber:client}message", {"id": "n" * 3000})
    body, ours = message
    assert (body.tag, body.text, body.tail) == ("{jabber:client}body", "no", " ")
    assert (ours.tag, ours.text, ours.tail) == ("{urn:spinal:1}x", text, "tail")
    assert ours[0].attrib == {"a": "1", "{http://www.w3.org/XML/1998/namespace}lang": "de"}
    assert ours[0].tail == "&"
    stream.end()
