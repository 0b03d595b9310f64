"""The server as a process: ``python -m spinal.bus.server.embedded CONFIG.json``.

Prints one JSON line on stdout, ``{"event": "ready", ...}`` or ``{"event": "failed", ...}``; logs
on stderr.  SIGTERM and SIGINT end it with status 0; SIGHUP makes it look at the accounts at once.
With ``--with-parent`` it also ends when stdin does, which happens however the parent dies.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import structlog

from ...loops import run
from ..contract import Ports, ServerConfig
from ..errors import PortTaken, ServerError
from .server import EmbeddedServer, place

log = structlog.get_logger(__name__)

#: How long a server that is just ending in the same folder is waited for, in seconds.
_PATIENCE: Final = 3.0


def load(path: Path) -> ServerConfig:
    """Read a configuration; raise :class:`ServerError` if it is none."""
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        record["folder"] = Path(record["folder"])
        record["ports"] = Ports(**record["ports"])
        return ServerConfig(**record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{path} is no server configuration ({error}): write it anew") from error


def dump(config: ServerConfig) -> bytes:
    """Write a configuration as :func:`load` reads it; it holds secrets."""
    record = {each.name: getattr(config, each.name) for each in fields(config)}
    record["folder"] = str(config.folder)
    record["ports"] = {each.name: getattr(config.ports, each.name) for each in fields(Ports)}
    record["components"] = dict(config.components)
    return json.dumps(record).encode()


async def serve(config: ServerConfig, with_parent: bool) -> None:
    """Run the server until it is told to end."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    server = EmbeddedServer(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    watcher: asyncio.ReadTransport | None = None
    if with_parent:
        watcher, _ = await loop.connect_read_pipe(lambda: _Parent(over.set), sys.stdin)
    try:
        await server.start()
        loop.add_signal_handler(signal.SIGHUP, server.check_accounts)
        _tell(event="ready", pid=os.getpid(), ca=str(server.ca))
        await over.wait()
    finally:
        await server.stop()
        if watcher is not None:
            watcher.close()


class _Parent(asyncio.Protocol):
    """Notices the end of stdin."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone

    def connection_lost(self, exc: Exception | None) -> None:
        """End, too."""
        self._gone()


@contextmanager
def _alone(config: ServerConfig) -> Generator[None]:
    """Keep a second server out of the folder."""
    folder = place(config)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"a server already runs in {config.folder}: stop that one first"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run as a program; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m spinal.bus.server.embedded")
    parser.add_argument("config", type=Path, help="configuration, as JSON")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin ends")
    chosen = parser.parse_args(arguments)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        config = load(chosen.config)
        with _alone(config):
            run(serve(config, chosen.with_parent))
    except PortTaken as error:
        _tell(event="failed", error=str(error), port=error.port)
        return ServerError.exit_code
    except ServerError as error:
        _tell(event="failed", error=str(error))
        return ServerError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
