"""Archives of a real little service, and a server that gives them, also badly."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import hashlib
import io
import itertools
import lzma
import os
import ssl
import tarfile
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest_asyncio
from aiohttp import ClientError, ClientSession, web
from tests.processes import alive

from spinal.agents.deployment.agent import agent_of
from spinal.agents.deployment.config import Config
from spinal.agents.deployment.ports import is_free
from spinal.agents.life import Life
from spinal.bus.call import Call
from spinal.bus.requests import Request
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryBus

#: A service that answers with its word; what it does badly is told by the environment.
PROGRAM = """\
#!/usr/bin/env python3
import http.server, os, pathlib, signal, sys, time
port, word = int(sys.argv[1]), {word!r}
mode = os.environ.get("MODE", "")
print("starts", word, mode, flush=True)
if mode == "dies":
    print("cannot find the config", flush=True)
    sys.exit(3)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        while True:
            time.sleep(1000)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        sick = mode == "sick" or pathlib.Path(os.environ["HOME"], "sick").exists()
        if self.path == "/crash":
            print("crashes", flush=True)
            os._exit(7)
        text = os.environ.get(self.path[5:], "?") if self.path.startswith("/env/") else word
        self.send_response(500 if sick else 200)
        self.end_headers()
        self.wfile.write(f"{{text}} {{os.getpid()}}".encode())
    def log_message(self, *_):
        print("asked for", self.path, flush=True)

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


_COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def tar_of(*members: tuple[Mapping[str, Any], bytes], end: str = "gz") -> bytes:
    """Make a tar file of members with any fields."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for fields, data in members:
            info = tarfile.TarInfo()
            for key, value in fields.items():
                setattr(info, key, value)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return _COMPRESS[end](out.getvalue())


def zipped(members: Mapping[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Make a ZIP file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def service_archive(word: str) -> bytes:
    """Make the archive of a service that answers with a word."""
    program = {"name": "bin/shop", "mode": 0o755}
    return tar_of((program, PROGRAM.format(word=word).encode()), ({"name": "README"}, b"read"))


@dataclass
class Shelf:
    """A server of files on loopback, which can be told to misbehave."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    #: Path -> what answers in place of the file.
    odd: dict[str, Callable[[web.Request], Any]] = field(default_factory=dict[str, Any])
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def put(self, name: str, data: bytes) -> dict[str, str]:
        """Offer a file, and give its ``release``."""
        self.files[name] = data
        return {"url": f"{self.url}/{name}", "sha256": hashlib.sha256(data).hexdigest()}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.path[1:]
        self.asked.append((name, request.headers.get("Range", "")))
        if name in self.odd:
            answer = self.odd[name](request)
            found = await answer if asyncio.iscoroutine(answer) else answer
            assert isinstance(found, web.StreamResponse)
            return found
        if name not in self.files:
            return web.Response(status=404)
        return web.Response(body=self.files[name])


@asynccontextmanager
async def serving(trust: ssl.SSLContext | None = None) -> AsyncGenerator[Shelf]:
    """Serve files on loopback, over TLS if told with what."""
    found = Shelf()
    app = web.Application()
    app.router.add_get("/{tail:.*}", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trust)
    await site.start()
    scheme = "http" if trust is None else "https"
    found.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield found
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def shelf() -> AsyncIterator[Shelf]:
    async with serving() as found:
        yield found


AGENT = "deployment@memory.test/agent"
DISPATCHER = "dispatcher@memory.test/d"
CALLER = "ann@memory.test/a"


class Machine:
    """A machine with a deployment agent on a bus, that can be given several lives."""

    def __init__(self, root: Path, ports: range, shelf: Shelf) -> None:
        self.shelf = shelf
        self.config = Config(root, ports=(ports[0], ports[-1]))
        #: What the dispatcher says of services; without, it hangs.
        self.rows: list[dict[str, Any]] | None = []
        self._bus = MemoryBus()
        self._stack = AsyncExitStack()
        self.life: Life | None = None
        self._caller: Session | None = None

    @asynccontextmanager
    async def bus(self) -> AsyncGenerator[None]:
        """Have a dispatcher and a caller on the bus."""
        dispatcher = Session(
            self._bus.connection(DISPATCHER), self._answer, role="dispatcher", epoch=1
        )
        async with dispatcher, Session(self._bus.connection(CALLER)) as self._caller:
            yield

    async def _answer(self, request: Request) -> Any:
        assert request.op.op == "/spinal/services/list"
        if self.rows is None:
            await asyncio.Event().wait()
        return {"items": self.rows, "more": False, "total": 1}

    async def start(self) -> None:
        """Begin a life."""
        connection = self._bus.connection(AGENT)
        agent = agent_of(self.config)
        self.life = await self._stack.enter_async_context(
            Life(agent, connection, dispatchers=[DISPATCHER])
        )

    async def stop(self) -> None:
        """End it in good order."""
        await self._stack.aclose()

    def ask(self, op: str, **arguments: Any) -> Call:
        """Make a call, to be awaited or listened to."""
        assert self._caller is not None
        return self._caller.call(AGENT, f"/deployment/{op}", arguments, timeout=60.0, window=16)

    async def call(self, op: str, **arguments: Any) -> Any:
        """Make a call and give its result."""
        return await self.ask(op, **arguments).result()

    def spec(self, word: str, **more: Any) -> dict[str, Any]:
        """Give the arguments that deploy a service which answers with a word."""
        usual = {
            "service": "shop",
            "release": self.shelf.put(f"shop-{word}.tar.gz", service_archive(word)),
            "start": ["bin/shop", "{port}"],
            "port": "auto",
            "health": {"http": "http://127.0.0.1:{port}/", "every": "200ms", "within": "20s"},
            "restart": {"backoff": "20ms", "most": "100ms"},
        }
        return {name: one for name, one in {**usual, **more}.items() if one is not None}

    async def get(self, port: int, path: str = "/") -> str:
        """Ask a service; gives what it says, without its pid."""
        url = f"http://127.0.0.1:{port}{path}"
        async with ClientSession() as session, session.get(url) as answer:
            return (await answer.text()).split()[0]

    async def word(self) -> str:
        """Give what the service says now; nothing if it does not answer."""
        found = await self.call("show", service="shop")
        try:
            return await self.get(found["port"])
        except ClientError:
            return ""

    @property
    def folder(self) -> Path:
        """Folder of the service."""
        return self.config.root / "services" / "shop"


def some_ports() -> range:
    """Give a range of ports of this worker's own, where nothing listens."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for _ in range(50):
        # In turn, so that what lingers of one test is out of the way of the next.
        first = 21_000 + worker * 1000 + next(_turns) % 50 * 20
        if all(map(is_free, range(first, first + 20))):
            return range(first, first + 20)
    raise AssertionError("no free ports")


_turns = itertools.count()


@pytest_asyncio.fixture
async def machine(tmp_path: Path, shelf: Shelf) -> AsyncIterator[Machine]:
    found = Machine(tmp_path / "root", some_ports(), shelf)
    async with found.bus():
        await found.start()
        try:
            yield found
        finally:
            await found.stop()
            assert [one for one in running_under(tmp_path)] == []


def running_under(folder: Path) -> list[int]:
    """Give the processes that run in a folder."""
    found: list[int] = []
    for one in psutil.process_iter(["cwd"]):
        cwd = one.info["cwd"]
        if cwd and cwd.startswith(str(folder)) and alive(one):
            found.append(one.pid)
    return found
