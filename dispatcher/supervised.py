"""The side of a supervised process: proving that it lives, and ending with its supervisor.

Over one inherited socket: a line ``beat`` each second from the event loop, so that a loop that
hangs is noticed; ``ready`` once; ``failed CODE TEXT`` when it cannot start.  The end of the socket
means that the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

from spinal.protocols import SpinalError

#: Seconds between two beats.
BEAT: Final = 1.0

#: prctl(2)
_PR_SET_PDEATHSIG: Final = 1


class Supervisor:
    """What the process can say to whoever supervises it; with none, it says nothing."""

    def __init__(self, connection: socket.socket | None, stop: asyncio.Event) -> None:
        self._connection = connection
        self._stop = stop

    def ready(self) -> None:
        """Say that it does its work now."""
        self._say("ready")

    def failed(self, error: SpinalError) -> None:
        """Say why it cannot start."""
        self._say(f"failed {error.exit_code} {' '.join(str(error).split())[:1000]}")

    def beat(self) -> None:
        """Say that the event loop runs."""
        self._say("beat")

    def heard(self) -> None:
        """Notice that the supervisor is gone."""
        if self._connection is None:
            return
        with suppress(BlockingIOError, ConnectionError):
            if self._connection.recv(64):
                return
            asyncio.get_running_loop().remove_reader(self._connection)
            self._stop.set()

    def _say(self, text: str) -> None:
        if self._connection is None:
            return
        # A full socket means that nobody reads; its other end being gone is noticed by `heard`.
        with suppress(BlockingIOError, ConnectionError):
            self._connection.send(text.encode() + b"\n")


@asynccontextmanager
async def supervised(descriptor: int | None, stop: asyncio.Event) -> AsyncGenerator[Supervisor]:
    """Beat while the block runs; ``stop`` is set when the supervisor is gone."""
    if descriptor is None:
        yield Supervisor(None, stop)
        return
    loop = asyncio.get_running_loop()
    with socket.socket(fileno=descriptor) as connection:
        connection.setblocking(False)
        connection.set_inheritable(False)
        supervisor = Supervisor(connection, stop)
        loop.add_reader(connection, supervisor.heard)
        beating = loop.create_task(_beat(supervisor), name="beat")
        try:
            yield supervisor
        finally:
            beating.cancel()
            loop.remove_reader(connection)
            await asyncio.wait([beating])


async def _beat(supervisor: Supervisor) -> None:
    while True:
        supervisor.beat()
        await asyncio.sleep(BEAT)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end us when our parent ends, also while our event loop hangs (Linux).

    ``parent`` is who it should be: one that ended before we asked would never be noticed.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
