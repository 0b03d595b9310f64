"""What services and programs have logged: the last lines, and the new ones as they come.

A file is followed by its name: when it is rotated, the rest of the old one is read and then the new
one from its beginning; when it is truncated, it is read from its beginning again.
"""

from __future__ import annotations

import asyncio
import codecs
import fnmatch
import os
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Annotated, Final

from msgspec import Meta

from spinal.agents.agent import Agent
from spinal.agents.errors import CommandFailed, Refused, one_line
from spinal.agents.life import Life
from spinal.agents.process import Guard, Process

from .config import LogsConfig
from .folder import Folder, open_file, split, told
from .services import Desk
from .systemd import Systemd
from .texts import readable, shown

#: Seconds between two looks at a file that is followed.
EVERY: Final = 0.25

#: Bytes at the end of a file in which its last lines are looked for.
TAIL: Final = 4 * 1024 * 1024

#: Bytes that are read at a time.
CHUNK: Final = 64 * 1024

#: Most lines of the past.
MOST: Final = 5000

#: Longest line in characters; the rest of a longer one comes as further lines.
MAX_LINE: Final = 4000

#: What such a line takes on the wire at the most, if every character of it must be escaped.
HEAVIEST: Final = 6 * MAX_LINE


class Lines:
    """Cuts bytes into lines."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> list[str]:
        """Give the lines that are complete."""
        *whole, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        found = [part for line in whole for part in _parts(line)]
        if len(self._rest) > MAX_LINE:
            *more, self._rest = _parts(self._rest)
            found += more
        return found

    def end(self) -> list[str]:
        """Give what stands behind the last newline, and begin anew."""
        rest = self._rest + self._decoder.decode(b"", True)
        self._rest = ""
        self._decoder.reset()
        return _parts(rest) if rest else []


def _parts(line: str) -> list[str]:
    if len(line) <= MAX_LINE:
        return [line]
    return [line[at : at + MAX_LINE] for at in range(0, len(line), MAX_LINE)]


@dataclass(slots=True)
class _Opened:
    """A log that is held open, and how far it has been read."""

    descriptor: int
    at: int

    def read(self) -> bytes:
        """Give what is new, at most a chunk; from the beginning if the file has become shorter."""
        if os.fstat(self.descriptor).st_size < self.at:
            self.at = 0
        data = os.pread(self.descriptor, CHUNK, self.at)
        self.at += len(data)
        return data

    def close(self) -> None:
        os.close(self.descriptor)


class File:
    """A log file at a path.

    Args:
        folder: where it is.
        name: what it is called there.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name

    def open(self, last: int) -> _Opened:
        """Open it, before its last lines.

        Raises:
            OSError: it is not there, or is no ordinary file.
        """
        with self._folder.open() as held:
            descriptor = open_file(held, self._name)
        try:
            return _Opened(descriptor, _before(descriptor, last))
        except BaseException:
            os.close(descriptor)
            raise

    def renewed(self) -> _Opened | None:
        """Open what has its name now, at the beginning; none while there is nothing to open."""
        try:
            opened = self.open(0)
        except OSError:
            return None
        opened.at = 0
        return opened

    def replaced(self, opened: _Opened) -> bool:
        """Tell whether another file has its name by now."""
        with suppress(OSError), self._folder.open() as held:
            found = os.stat(self._name, dir_fd=held, follow_symlinks=False)
            return not os.path.samestat(found, os.fstat(opened.descriptor))
        return False  # It is being rotated: the new one is not there yet.


def _before(descriptor: int, last: int) -> int:
    """Find where the last lines of a file begin."""
    size = os.fstat(descriptor).st_size
    if not last:
        return size
    begin = max(0, size - TAIL)
    at = size
    # A newline at the very end begins no line.
    missing = last + 1 if size and os.pread(descriptor, 1, size - 1) == b"\n" else last
    while at > begin:
        start = max(begin, at - CHUNK)
        data = os.pread(descriptor, at - start, start)
        where = len(data)
        while (where := data.rfind(b"\n", 0, where)) >= 0:
            missing -= 1
            if not missing:
                return start + where + 1
        at = start
    return begin


async def lines_of(file: File, last: int, follow: bool) -> AsyncGenerator[str]:
    """Give the last lines of a file, and with ``follow`` all that come, until cancelled.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    lines = Lines()
    opened = await asyncio.to_thread(file.open, last)
    try:
        while True:
            while data := await asyncio.to_thread(opened.read):
                for line in lines.feed(data):
                    yield line
            if not follow:
                break
            if await asyncio.to_thread(file.replaced, opened):
                # What was written to the old one between the last look and this one.
                while data := await asyncio.to_thread(opened.read):
                    for line in lines.feed(data):
                        yield line
                new = await asyncio.to_thread(file.renewed)
                if new is not None:
                    opened.close()
                    opened = new
                    for line in lines.end():
                        yield line
                    continue
            await asyncio.sleep(EVERY)
        for line in lines.end():
            yield line
    finally:
        opened.close()


# -- the journal


def journal_argv(name: str, last: int, follow: bool) -> list[str]:
    """Give the command that writes the journal of a service (journalctl(1))."""
    argv = ["journalctl", "--no-pager", "--quiet", "--output=short-iso", f"--lines={last}"]
    return [*argv, *(["--follow"] if follow else []), f"--unit={name}.service"]


async def lines_from(argv: list[str], guard: Guard | None) -> AsyncGenerator[str]:
    """Give the lines that a program writes, and end it when nobody wants them any more.

    Raises:
        CommandFailed: it cannot be started, or failed.
    """
    process = Process.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, guard=guard)
    out, err = process.pipes
    assert out is not None and err is not None  # asked for above
    transports: list[asyncio.ReadTransport] = []
    try:
        output, words = [await _reader(pipe, transports) for pipe in (out, err)]
        lines = Lines()
        while data := await output.read(CHUNK):
            for line in lines.feed(data):
                yield line
        for line in lines.end():
            yield line
        ended = await process.wait()
        if ended.code:
            said = one_line((await words.read(CHUNK)).decode("utf-8", "replace"), 300)
            raise CommandFailed(f"{argv[0]!r} ended with {ended}: {said}", ended.code)
    finally:
        try:
            await process.end()
        finally:
            for transport in transports:
                transport.close()
            for pipe in (out, err)[len(transports) :]:
                pipe.close()


async def _reader(pipe: IO[bytes], transports: list[asyncio.ReadTransport]) -> asyncio.StreamReader:
    """Read a pipe as it comes; what is not read holds the program up, and fills no memory."""
    reader = asyncio.StreamReader(limit=CHUNK)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
    transports.append(transport)
    return reader


# -- which ones may be read


class Logs:
    """The logs that the configuration allows."""

    def __init__(self, config: LogsConfig, desk: Desk) -> None:
        self._config = config
        self._desk = desk
        #: Folder and pattern for the name.
        self._files = [
            (Folder(str(path.parent)), path.name) for path in map(PurePosixPath, config.files)
        ]

    def file(self, path: str) -> File:
        """Find an allowed file.

        Raises:
            Refused: the path is none, or not that of a log that may be read.
        """
        steps = split(path)
        for folder, pattern in self._files:
            if steps and steps[:-1] == folder.parts and fnmatch.fnmatchcase(steps[-1], pattern):
                return File(folder, steps[-1])
        raise _not_allowed(shown(path), "logs.files")

    async def journal(self, name: str, last: int, follow: bool) -> list[str]:
        """Give the command that writes the journal of an allowed service.

        Raises:
            Refused: there is no such service, no journal, or it may not be read.
        """
        if not isinstance(self._desk.manager, Systemd):
            raise Refused("there is no journal on this machine: give the file of the log")
        name = await self._desk.known(name)
        if not any(fnmatch.fnmatchcase(name, one) for one in self._config.services):
            raise _not_allowed(name, "logs.services")
        return journal_argv(name, last, follow)


def _not_allowed(what: str, key: str) -> Refused:
    return Refused(f"the log of {what} may not be read: {key} in the configuration says which may")


async def until(source: AsyncGenerator[str], over: Callable[[], bool]) -> AsyncGenerator[str]:
    """Pass on what comes until it is over, which is looked for four times a second."""
    coming: asyncio.Future[str] | None = None
    try:
        while not over():
            if coming is None:
                coming = asyncio.ensure_future(anext(source))
            done, _ = await asyncio.wait([coming], timeout=EVERY)
            if done:
                try:
                    line = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield line
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])


def offer(agent: Agent, config: LogsConfig, desk: Desk, alive: Callable[[], Life | None]) -> None:
    """Offer what the configuration allows; ``alive`` gives the life of the agent, while it has one."""
    if not (config.files or config.services):
        return
    logs = Logs(config, desk)

    # Who follows holds a slot for long: the others are for those who want to help.
    @agent.op("/machine/log", effects="reads", timeout="1d", slots=max(1, (agent.slots or 2) // 2))
    async def log(
        service: Annotated[str, Meta(max_length=200)] = "",
        file: Annotated[str, Meta(max_length=4096)] = "",
        lines: Annotated[int, Meta(ge=0, le=MOST)] = 100,
        follow: bool = False,
    ) -> AsyncGenerator[str]:
        """Give the last lines of a log, one by one, and with follow those that come.

        Args:
            service: whose journal it is.
            file: or the path of a log file.
            lines: how many of the past.
            follow: go on until the call is cancelled or its time is up.
        """
        if bool(service) == bool(file):
            raise Refused("name either a service or a file")
        life = alive()
        if file:
            source = lines_of(logs.file(file), lines, follow)
        else:
            argv = await logs.journal(service, lines, follow)
            source = lines_from(argv, None if life is None else life.guard)

        def over() -> bool:
            """Tell whether the agent is ending, for which nobody who follows is to be waited."""
            return follow and life is not None and life.state == "draining"

        async with aclosing(source), aclosing(until(source, over)) as found:
            with told(file or service):
                async for line in found:
                    yield readable(line, HEAVIEST)
