"""What a service writes: a file of bounded size, with one older one beside it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

#: Most bytes that are read to find the last lines.
MAX_TAIL: Final = 1024 * 1024
#: Most lines that wait for one reader; what comes beyond is left out, and counted.
MAX_WAITING: Final = 1000
#: Seconds without a line after which one who follows is given none.
QUIET: Final = 1.0
#: Longest line that is told.
MAX_LINE: Final = 4000


class LogFile:
    """A log that is written here, and may be read and followed meanwhile.

    Args:
        path: the file; ``<path>.1`` is the older one.
        limit: bytes of each of the two.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit
        self._file: IO[bytes] | None = None
        self._size = 0
        self._rest = b""
        self._readers: set[_Reader] = set()
        #: The two files are not turned while somebody reads them.
        self._turning = threading.Lock()

    def append(self, data: bytes) -> None:
        """Write; blocks, so call it in a thread.

        Raises:
            OSError: the disk is full, or the like.
        """
        with self._turning:
            if self._file is None or self._size + len(data) > self._limit:
                self._turn()
            assert self._file is not None, "opened above"
            self._file.write(data)
            self._size += len(data)

    def tail(self, count: int) -> list[str]:
        """Give the last lines, at most those of its last :data:`MAX_TAIL` bytes; blocks.

        The last one may be one that is being written.
        """
        if count < 1:
            return []
        data = b""
        with self._turning:
            for one in (self.path, older(self.path)):
                try:
                    with one.open("rb") as file:
                        size = os.fstat(file.fileno()).st_size
                        file.seek(max(0, size - (MAX_TAIL - len(data))))
                        data = file.read(MAX_TAIL) + data
                except FileNotFoundError:
                    continue
                if len(data) >= MAX_TAIL or data.count(b"\n") > count:
                    break
        lines = data.removesuffix(b"\n").split(b"\n") if data else []
        return [_text(line) for line in lines[-count:]]

    def _turn(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        with_it = os.path.getsize(self.path) if self.path.exists() else 0
        if with_it >= self._limit // 2:
            self.path.replace(older(self.path))
            with_it = 0
        descriptor = os.open(
            self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600
        )
        self._file = open(descriptor, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._size = with_it

    def tell(self, data: bytes) -> None:
        """Give what was written to those who follow; on the event loop."""
        if not self._readers:
            self._rest = b""
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            lines.append(self._rest)
            self._rest = b""
        for reader in self._readers:
            reader.take(lines)

    def close(self) -> None:
        """Close the file; may be called again, and a later write opens it anew."""
        if self._file is not None:
            self._file.close()
            self._file = None

    async def follow(self, quiet: float = QUIET) -> AsyncGenerator[list[str]]:
        """Give new lines as they come, and no lines when none came for ``quiet`` seconds."""
        reader = _Reader()
        self._readers.add(reader)
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(quiet):
                        await reader.more.wait()
                yield reader.lines()
        finally:
            self._readers.discard(reader)


class _Reader:
    """One who follows."""

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._left_out = 0
        #: There are some.
        self.more = asyncio.Event()

    def take(self, lines: list[bytes]) -> None:
        room = MAX_WAITING - len(self._waiting)
        self._waiting.extend(lines[:room])
        self._left_out += len(lines[room:])
        if lines:
            self.more.set()

    def lines(self) -> list[str]:
        self.more.clear()
        found = [_text(line) for line in self._waiting]
        self._waiting.clear()
        if self._left_out:
            found.append(f"... {self._left_out} lines left out")
            self._left_out = 0
        return found


def older(path: Path) -> Path:
    """Give where the older part of a log is."""
    return path.with_name(f"{path.name}.1")


def _text(line: bytes) -> str:
    return line[:MAX_LINE].decode("utf-8", "replace").rstrip("\r")
