"""The embedded server in a child process, so that it has a core and an event loop of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import structlog

from .. import ports
from ..contract import ServerConfig
from ..errors import PortTaken, ServerError, ServerMissing
from ..files import write
from ..launched import Launched
from .__main__ import dump
from .server import accounts_of, place

log = structlog.get_logger(__name__)

#: The output of earlier lives is kept up to this many bytes.
_KEEP_OUTPUT: Final = 1024 * 1024


class EmbeddedProcess(Launched):
    """A :class:`~spinal.bus.server.contract.Server` in a child process that cannot outlive us."""

    name: ClassVar[str] = "embedded"
    start_within: ClassVar[float] = 15.0
    stop_within: ClassVar[float] = 5.0

    def __init__(self, config: ServerConfig, process: asyncio.subprocess.Process) -> None:
        self.config = config
        self._process = process
        self._ca = config.folder / "ca.pem"
        self._stopping = asyncio.Lock()

    @classmethod
    async def start(cls, config: ServerConfig) -> Self:
        """Start it and return when it takes logins.

        Raises :class:`PortTaken`, or :class:`ServerError` with the server's own words.  Nothing is
        left running then, nor when the call is cancelled.
        """
        folder = place(config)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / "config.json"
        write(path, dump(config), 0o600)
        begun = time.monotonic()
        with _output(folder).open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "spinal.bus.server.embedded", str(path), "--with-parent"),
                # It finds what we have found, and nothing that lies about where we were started.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                cwd=folder,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                # Ctrl-C in a terminal is for us, and we stop it in good order.
                start_new_session=True,
            )
        server = cls(config, process)
        try:
            await server._ready()
        except BaseException:
            await server._end(grace=0)
            raise
        took = round(time.monotonic() - begun, 3)
        log.info("server_started", server=cls.name, pid=process.pid, took=took)
        return server

    async def _ready(self) -> None:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self.start_within):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ServerError(
                f"the server was not ready within {self.start_within:g} s: see {self._log()}"
            ) from None
        event: dict[str, Any] = json.loads(line) if line else {}
        if event.get("event") == "ready":
            self._ca = Path(event["ca"])
        elif "port" in event:
            names = {port: what for what, _, port in ports.endpoints(self.config)}
            raise PortTaken(event["port"], names.get(event["port"], "XMPP"))
        else:
            raise ServerError(event.get("error") or f"the server ended at start: see {self._log()}")

    def _log(self) -> Path:
        return place(self.config) / "server.log"

    @classmethod
    def missing(cls) -> ServerMissing | None:
        """Give None: it comes with Spinal."""
        return None

    @classmethod
    async def _set(cls, config: ServerConfig, name: str, password: str) -> None:
        await asyncio.to_thread(accounts_of(config).add, name, password)

    @classmethod
    async def _drop(cls, config: ServerConfig, name: str) -> None:
        # A server that runs ends its streams within a second or so.
        await asyncio.to_thread(accounts_of(config).remove, name)

    @classmethod
    async def _names(cls, config: ServerConfig) -> Collection[str]:
        return await asyncio.to_thread(accounts_of(config).list)

    @classmethod
    def place(cls, config: ServerConfig) -> Path:
        """Give the folder that the server writes to."""
        return place(config)

    @property
    def ca(self) -> Path:
        """The certificate authority (PEM) that clients of this server trust."""
        return self._ca

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    async def remove_account(self, name: str) -> None:
        """Remove the account and end its streams at once.  Unknown names are no error."""
        await super().remove_account(name)
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGHUP)

    async def wait(self) -> int:
        """Return the exit status once the process has ended by itself or was killed."""
        return await self._process.wait()

    async def stop(self, *, hung: bool = False) -> None:
        """End it and wait until its ports are free; one that hangs is not asked, but killed.

        Calling it again does nothing.
        """
        await self._end(0.0 if hung else self.stop_within)

    async def _end(self, grace: float) -> None:
        async with self._stopping:
            process = self._process
            try:
                if process.returncode is None and grace:
                    with suppress(ProcessLookupError):
                        process.terminate()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(grace):
                            await process.wait()
            finally:
                # Also when we are cancelled in the middle of it.
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                if process.stdin is not None:
                    process.stdin.close()
            await process.wait()


def _output(folder: Path) -> Path:
    path = folder / "server.log"
    if path.exists() and path.stat().st_size > _KEEP_OUTPUT:
        path.replace(folder / "server.log.1")
    path.touch(mode=0o600)
    return path
