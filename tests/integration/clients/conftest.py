"""Servers, and programs that are not ours: each logs in as it would anywhere else."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio
from slixmpp import ClientXMPP

from spinal.bus import Client
from spinal.bus.home import Credentials
from spinal.bus.server import KINDS, Server, ServerConfig, available, free_ports, launch
from spinal.testing import eventually

#: slixmpp declares types that are too loose to check anything against.
Bot: TypeAlias = Any
Stanza: TypeAlias = Any

DOMAIN = "bus.test"
PASSWORD = "a long-enough password"
ACCOUNTS = ("ann", "bot", "carol", "dave", "c", "node")
SOON = 15.0


def need(*programs: str) -> None:
    """Leave the test out if one of the programs is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"MISSING: {program}")


@pytest.fixture(scope="session", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    reason = available(name)
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    return name


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    config = ServerConfig(tmp_path_factory.mktemp(kind), DOMAIN, free_ports())
    running = await launch(kind, config)
    try:
        for name in ACCOUNTS:
            await running.add_account(name, PASSWORD)
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def logged_in(server: Server, name: str, *plugins: str) -> AsyncGenerator[Bot]:
    """A stock slixmpp client that trusts the server's authority alone."""
    address = f"{name}@{DOMAIN}"
    async with at(address, PASSWORD, server.config.ports.c2s, server.ca, *plugins) as bot:
        yield bot


@asynccontextmanager
async def at(
    address: str, password: str, port: int, ca: Path, *plugins: str
) -> AsyncGenerator[Bot]:
    """The same, wherever its account is."""
    bot: Bot = ClientXMPP(f"{address}/bot", password)
    bot.ca_certs = ca
    bot.enable_direct_tls = bot.enable_plaintext = False
    bot.ssl_context.verify_flags |= ssl.VERIFY_X509_STRICT
    for plugin in plugins:
        bot.register_plugin(plugin)
    begun = told(bot, "session_start")
    bot.connect("127.0.0.1", port)
    try:
        async with asyncio.timeout(SOON):
            await begun.get()
        yield bot
    finally:
        # Prosody and ejabberd leave the closing of the connection to us.
        await bot.disconnect(wait=0.1)
        bot.cancel_connection_attempt()
        # slixmpp cancels it only when the garbage collector comes by.
        bot._run_out_filters.cancel()
        await asyncio.wait([bot._run_out_filters])


def told(bot: Bot, *events: str) -> asyncio.Queue[Stanza]:
    """What happens from now on."""
    queue: asyncio.Queue[Stanza] = asyncio.Queue()
    for event in events:
        bot.add_event_handler(event, queue.put_nowait)
    return queue


async def soon(queue: asyncio.Queue[Stanza], sender: str, type: str | None = None) -> Stanza:
    """Wait for what this bare address sends, of this type if one is given."""
    async with asyncio.timeout(SOON):
        stanza = await queue.get()
        while stanza["from"].bare != sender or type not in (None, stanza["type"]):
            stanza = await queue.get()
    return stanza


def caller(server: Server, name: str) -> Client:
    """A caller of ours without a dispatcher."""
    ports = server.config.ports
    address = f"{name}@{DOMAIN}"
    return Client(
        credentials=Credentials(address, PASSWORD, server.ca, "127.0.0.1", ports.c2s, (), ())
    )


def environment(server: Server, name: str, folder: Path) -> dict[str, str]:
    """What ``spinal account add --json`` gives to a program elsewhere; no dispatcher here."""
    password = folder / f"{name}.password"
    password.write_text(f"{PASSWORD}\n")
    return {
        "SPINAL_ADDRESS": f"{name}@{DOMAIN}",
        "SPINAL_PASSWORD_FILE": str(password),
        "SPINAL_SERVER": f"127.0.0.1:{server.config.ports.c2s}",
        "SPINAL_CA": str(server.ca),
    }


class Program:
    """A program that is not ours while it runs, with the lines that it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, start: str) -> str:
        """Wait for a line that starts so."""

        def found() -> str | None:
            said = next((line for line in self.lines if line.startswith(start)), None)
            assert said or self.process.returncode is None, "\n".join(self.lines)
            return said

        line: str = await eventually(found, SOON, f"a line {start!r}")
        return line

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip("\n"))

    async def end(self) -> int:
        """Ask it to end, and give its exit status."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end, and give its exit status."""
        async with asyncio.timeout(SOON):
            return await self.process.wait()


@asynccontextmanager
async def program(*argv: str | Path, env: Mapping[str, str]) -> AsyncGenerator[Program]:
    """Run a program with these variables and a PATH; it is gone at the end."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], **env},
    )
    running = Program(process)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(running.read())
        try:
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest_asyncio.fixture(loop_scope="session")
async def bot(server: Server) -> AsyncGenerator[Bot]:
    """A slixmpp user who is there, and answers every request to see its presence with yes."""
    async with logged_in(server, "bot", "xep_0030", "xep_0199") as there:
        there.send_presence()
        yield there
