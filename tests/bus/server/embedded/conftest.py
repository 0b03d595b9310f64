"""A server on free ports, and two sorts of clients for it."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import slixmpp

from spinal.bus.server.contract import ServerConfig
from spinal.bus.server.embedded import EmbeddedServer, Limits
from spinal.bus.server.embedded.server import accounts_of
from spinal.bus.server.ports import free_ports

DOMAIN = "bus.test"
PASSWORD = "correct horse battery staple"
STREAM = (
    "<?xml version='1.0'?><stream:stream xmlns='jabber:client' version='1.0' to='bus.test'"
    " xmlns:stream='http://etherx.jabber.org/streams' xml:lang='en'>"
)
STARTTLS = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>"
WITHIN = 5.0


class Raw:
    """A client made of a bare socket, for saying what no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        #: What has come and was not asked for yet.
        self.heard = ""

    async def say(self, text: str | bytes) -> None:
        self.writer.write(text if isinstance(text, bytes) else text.encode())
        await self.writer.drain()

    async def until(self, pattern: str) -> str:
        """Read until the pattern comes; give everything up to its end."""
        try:
            async with asyncio.timeout(WITHIN):
                while not (found := re.search(pattern, self.heard, re.DOTALL)):
                    data = await self.reader.read(65536)
                    assert data, f"the stream ended with {self.heard[-500:]!r}, not {pattern!r}"
                    self.heard += data.decode()
        except TimeoutError:
            raise AssertionError(f"{self.heard[-500:]!r} has no {pattern!r}") from None
        text, self.heard = self.heard[: found.end()], self.heard[found.end() :]
        return text

    async def ask(self, text: str | bytes, pattern: str) -> str:
        await self.say(text)
        return await self.until(pattern)

    async def rest(self) -> str:
        """Read to the end of the stream."""
        async with asyncio.timeout(WITHIN):
            while data := await self._read():
                self.heard += data.decode()
        return self.heard

    async def _read(self) -> bytes:
        try:
            return await self.reader.read(65536)
        except ConnectionResetError:
            return b""

    async def nothing_but(self, ping: str = "sync") -> str:
        """Give what came before the answer to a ping to the server."""
        await self.say(
            f"<iq type='get' id='{ping}' to='bus.test'><ping xmlns='urn:xmpp:ping'/></iq>"
        )
        text = await self.until(rf"<iq [^>]*id='{ping}'[^>]*/>")
        return re.sub(rf"<iq [^>]*id='{ping}'[^>]*/>$", "", text)

    async def nothing_heard(self) -> bool:
        """Tell whether nothing comes for a moment."""
        try:
            async with asyncio.timeout(0.05):
                return not self.heard and not await self.reader.read(1)
        except TimeoutError:
            return True

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except (ConnectionError, ssl.SSLError):
            pass

    def cut(self) -> None:
        """Vanish without a word."""
        self.writer.transport.abort()


def ignore(kind: str, attributes: dict[str, str], inner: bytes) -> None:
    """Receive stanzas and do nothing."""


@dataclass
class World:
    """A running server and everybody who is connected to it."""

    server: EmbeddedServer
    raws: list[Raw] = field(default_factory=list[Raw])
    others: list[Any] = field(default_factory=list[Any])

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.server.ca)

    def account(self, *names: str) -> None:
        for name in names:
            accounts_of(self.server.config).add(name, PASSWORD)

    async def connect(self) -> Raw:
        """Give a client that has said nothing yet."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.config.ports.c2s)
        raw = Raw(reader, writer)
        self.raws.append(raw)
        return raw

    async def secure(self) -> Raw:
        """Give a client that may log in."""
        raw = await self.connect()
        await raw.ask(STREAM, "</stream:features>")
        await raw.ask(STARTTLS, "<proceed[^>]*/>")
        await raw.writer.start_tls(self.tls, server_hostname=DOMAIN)
        await raw.ask(STREAM, "</stream:features>")
        return raw

    async def login(self, name: str, resource: str = "r", presence: str = "") -> Raw:
        """Give a client that is bound to name@bus.test/resource; make the account if needed."""
        if not accounts_of(self.server.config).exists(name):
            self.account(name)
        raw = await self.secure()
        secret = base64.b64encode(f"\0{name}\0{PASSWORD}".encode()).decode()
        await raw.ask(
            f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{secret}</auth>",
            "<success.*?</success>",
        )
        await raw.ask(STREAM, "</stream:features>")
        await raw.ask(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
            f"<resource>{resource}</resource></bind></iq>",
            f"<jid>{name}@bus.test/{resource}</jid></bind></iq>",
        )
        if presence:
            await raw.ask(presence, "<presence[^>]*>")
        return raw

    async def client(self, jid: str, *plugins: str, **options: Any) -> Any:
        """Give a slixmpp client whose session has started; its types are not of much use."""
        client: Any = slixmpp.ClientXMPP(jid, options.pop("password", PASSWORD))
        self.others.append(client)
        if mechanism := options.pop("mechanism", None):
            client.plugin["feature_mechanisms"].use_mechs = {mechanism}
        client.ca_certs = self.server.ca
        client.enable_direct_tls = False
        for plugin in plugins:
            client.register_plugin(plugin)
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(_: object) -> None:
            if not started.done():
                started.set_result(None)

        def failed(_: object) -> None:
            if not started.done():
                started.set_exception(PermissionError("login failed"))

        client.add_event_handler("session_start", done)
        client.add_event_handler("failed_all_auth", failed)
        client.connect("127.0.0.1", self.server.config.ports.c2s)
        await asyncio.wait_for(started, WITHIN)
        return client

    async def restart(self) -> None:
        await self.server.stop()
        self.server = EmbeddedServer(self.server.config)
        await self.server.start()

    async def close(self) -> None:
        for other in self.others:
            await other.disconnect()
        for raw in self.raws:
            await raw.close()
        await self.server.stop()


Start = Callable[..., Awaitable[World]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncGenerator[Start]:
    """Start a server; the arguments are those of ServerConfig, and ``limits``."""
    worlds: list[World] = []

    async def make(limits: Limits | None = None, **options: Any) -> World:
        folder = tmp_path / f"server{len(worlds)}"
        config = ServerConfig(folder, DOMAIN, free_ports(), **options)
        world = World(EmbeddedServer(config, limits))
        await world.server.start()
        worlds.append(world)
        return world

    yield make
    for world in worlds:
        await world.close()


@pytest.fixture
async def world(start: Start) -> World:
    """Give a server as it is by default."""
    return await start()
