"""What the tests of a kind need: a manifest whose operations are run here, and an HTTP service."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from spinal.agents.document import BadDocument
from spinal.agents.job import Facts, Job
from spinal.agents.process import Guard
from spinal.agents.wrap import Manifest, load
from spinal.agents.wrap.kind import Call, Host
from spinal.bus.errors import CallError


class Channel:
    """Hears nothing, and has so many seconds."""

    def __init__(self, remaining: float = 30.0) -> None:
        self.remaining = remaining

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        pass

    def log(self, text: str, level: str = "info") -> None:
        pass

    async def data(self, value: Any) -> None:
        pass

    def spent(self, cpu: float, memory: int) -> None:
        pass


def manifest(folder: Path, text: str) -> Manifest:
    """Read a manifest from a text."""
    path = folder / "manifest.yaml"
    path.write_text(text)
    return load(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """Give the mistakes in a manifest, without the name of the file."""
    path = folder / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(BadDocument) as caught:
        load(path)
    return [f"{one.line}: {one.key}: {one.text}" for one in caught.value.mistakes]


class Ops:
    """The operations of a manifest, open."""

    def __init__(self, manifest: Manifest, guard: Guard) -> None:
        self._manifest = manifest
        self._guard = guard
        #: Seconds that each call has.
        self.remaining = 30.0

    async def run(self, op: str, /, **args: Any) -> Any:
        """Run one with arguments that nobody has checked before: its kind is the last line."""
        found = self._manifest.ops[op]
        given = {name: args.get(name, one.default) for name, one in found.arguments.items()}
        job = Job(Facts("test", op, "test@localhost"), Channel(self.remaining), None, self._guard)
        with Call(job, given, found.arguments).running() as call:
            return await found.kind.run(call)

    async def refused(self, op: str, /, **args: Any) -> str:
        """Run one that refuses an argument by its name, and give the words."""
        with pytest.raises(CallError) as caught:
            await self.run(op, **args)
        problem = caught.value.problem
        assert problem.reason == "bad-arguments", problem
        assert problem.argument in args
        assert "\n" not in problem.text and len(problem.text) < 400
        return problem.text


@asynccontextmanager
async def ops(folder: Path, text: str) -> AsyncGenerator[Ops]:
    """Have a manifest open for a block."""
    guard = Guard()
    found = manifest(folder, text)
    try:
        async with found.open(Host(guard)):
            yield Ops(found, guard)
    finally:
        await guard.close()


@dataclass(frozen=True)
class Request:
    """A request, byte by byte as it came."""

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names in small letters, and values."""
        found: list[tuple[str, str]] = []
        for line in self.head.decode("latin-1").split("\r\n")[1:-2]:
            name, _, value = line.partition(":")
            found.append((name.lower(), value.removeprefix(" ")))
        return found

    def header(self, name: str) -> str | None:
        """Give the one header of a name."""
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) <= 1, values
        return values[0] if values else None


Respond = Callable[[Request], bytes | Awaitable[bytes]]


def answer(
    body: bytes | str = b"", status: str = "200 OK", *headers: str, length: int | None = None
) -> bytes:
    """Write an answer."""
    data = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(data) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1") + data


@dataclass
class Service:
    """An HTTP service that keeps what it is asked, and answers as it is told."""

    url: str = ""
    requests: list[Request] = field(default_factory=list[Request])
    respond: Respond = lambda request: answer("{}")
    connections: int = 0
    open: int = 0

    @property
    def last(self) -> Request:
        return self.requests[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                said = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
                if said is not None:
                    body = await reader.readexactly(int(said[1]))
                elif re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
                    body = await _chunks(reader)
                else:
                    body = b""
                request = Request(head, body)
                self.requests.append(request)
                # Whether the client has gone is only seen while it is read.
                gone = asyncio.ensure_future(reader.read(1))
                made = self.respond(request)
                if not isinstance(made, bytes):
                    task = asyncio.ensure_future(made)
                    await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not task.done():
                        task.cancel()
                        return
                    made = task.result()
                gone.cancel()
                await asyncio.wait((gone,))
                if made == b"":
                    return
                writer.write(made)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The client has gone.
        finally:
            self.open -= 1
            writer.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    found = b""
    while size := int(await reader.readline(), 16):
        found += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return found


@asynccontextmanager
async def service(ssl: Any = None) -> AsyncGenerator[Service]:
    """Run a service on loopback for a block."""
    found = Service()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, ssl=ssl, limit=4 * 1024 * 1024)
    port = server.sockets[0].getsockname()[1]
    found.url = f"{'https' if ssl else 'http'}://127.0.0.1:{port}"
    try:
        yield found
    finally:
        server.close()
