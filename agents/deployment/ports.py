"""Which ports are given to services."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import Final

from ..errors import Retry

#: Seconds between two looks at a port that is to become free.
LOOK: Final = 0.1


class Ports:
    """A range of ports, and which of them are given.

    Args:
        first: the lowest.
        last: the highest.
    """

    def __init__(self, first: int, last: int) -> None:
        self._range = range(first, last + 1)
        self._given: set[int] = set()
        self._next = 0

    def take(self, wanted: int | None = None) -> int:
        """Give a port that is free, ``wanted`` if that is.

        Raises:
            Retry: none is.
        """
        count = len(self._range)
        # In turn, so that a port that was just freed is not at once somebody else's.
        turn = [self._range[(self._next + step) % count] for step in range(count)]
        if wanted is not None and wanted in self._range:
            turn.insert(0, wanted)
        for port in turn:
            if port not in self._given and is_free(port):
                self._given.add(port)
                self._next = self._range.index(port) + 1
                return port
        raise Retry(f"all ports from {self._range[0]} to {self._range[-1]} are taken here")

    async def wait(self, port: int | None, within: float) -> None:
        """Wait until a port is free, for at most so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while port is not None and not is_free(port):
                    await asyncio.sleep(LOOK)

    def give_back(self, port: int | None) -> None:
        """Let others have it; nothing if it was not taken here."""
        self._given.discard(port or 0)


def is_free(port: int) -> bool:
    """Tell whether nobody listens on a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # What of a closed connection lingers is no hindrance to a server that says the same.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
