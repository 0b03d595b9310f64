"""Archives of a real little service, and a server that gives them, also badly."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

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


def tar(members: Mapping[str, bytes | str], end: str = "gz") -> bytes:
    """Make a tar file: name -> content, executable."""
    out = io.BytesIO()
    made: tarfile.TarFile = tarfile.open(fileobj=out, mode=f"w:{end}")  # type: ignore[call-overload]
    with made as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(members: Mapping[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Make a ZIP file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def service_archive(word: str) -> bytes:
    """Make the archive of a service that answers with a word."""
    return tar({"bin/shop": PROGRAM.format(word=word), "README": word})


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


@pytest_asyncio.fixture
async def shelf() -> AsyncIterator[Shelf]:
    found = Shelf()
    app = web.Application()
    app.router.add_get("/{tail:.*}", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest.fixture
def make_tar() -> Callable[..., bytes]:
    return tar


@pytest.fixture
def make_zip() -> Callable[..., bytes]:
    return zipped


@pytest.fixture
def make_service() -> Callable[[str], bytes]:
    return service_archive
