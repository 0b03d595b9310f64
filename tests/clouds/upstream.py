"""A server of somebody else, in a process of its own, behind one of our fronts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from .wire import Reply, Request

ROOT: Final = Path(__file__).resolve().parents[2]
#: Their environment, made by `make clouds`.
BIN: Final = Path(os.environ.get("CLOUDS_VENV", ROOT / ".venv-clouds")) / "bin"

#: Seconds that one may take to start.
READY: Final = 60
#: Headers that are of one connection only (RFC 9110 section 7.6.1), and what is said anew.
HOP: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}
)

#: Gives the argument list of a server on this port, with its files in that folder.
Command = Callable[[int, Path], list[str]]
#: Writes what it reads into that folder; gives its environment variables.
Prepare = Callable[[Path], Mapping[str, str]]


def missing() -> str | None:
    """Say what is not there, or nothing."""
    return None if (BIN / "moto_server").exists() else "the simulated clouds (make clouds)"


class Upstream:
    """A server that is started on a free port; requests go to it as they came."""

    def __init__(self, command: Command, prepare: Prepare = lambda _: {}) -> None:
        self._command, self._prepare = command, prepare
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.port = 0

    async def start(self) -> None:
        """Start it; OSError if it is not there or does not listen in time."""
        if (why := missing()) is not None:
            raise OSError(f"not installed: {why}")
        self._folder = tempfile.TemporaryDirectory(prefix="clouds-")
        folder = Path(self._folder.name)
        self.port = _free()
        with (folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(self.port, folder),
                cwd=folder,
                env={**os.environ, **self._prepare(folder)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            async with asyncio.timeout(READY):
                while not await self._listens():
                    if self._process.returncode is not None:
                        raise OSError((folder / "log").read_text()[-2000:])
                    await asyncio.sleep(0.05)
        except TimeoutError:
            await self.stop()
            raise OSError(f"{self._command(self.port, folder)[0]} does not listen") from None
        self._session = aiohttp.ClientSession(auto_decompress=True)

    async def stop(self) -> None:
        """End it, and remove its files."""
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._session = self._process = self._folder = None

    async def ask(
        self, request: Request, *, method: str = "", target: str = "", body: bytes | None = None
    ) -> Reply:
        """Hand a request on, as it came or with another target or body."""
        assert self._session is not None
        headers = {key: value for key, value in request.headers.items() if key not in HOP}
        headers["accept-encoding"] = "identity"
        async with self._session.request(
            method or request.method,
            URL(f"http://127.0.0.1:{self.port}{target or request.target}", encoded=True),
            headers=headers,
            data=request.body if body is None else body,
            allow_redirects=False,
        ) as answer:
            passed = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
            # Links that it makes to itself lead past the front.
            ours, its = request.headers.get("host", ""), f"127.0.0.1:{self.port}"
            body = (await answer.read()).replace(its.encode(), ours.encode() or its.encode())
            return Reply(answer.status, body, passed)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
