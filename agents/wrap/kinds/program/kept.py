"""A program that is kept running and does one request after the other: JSON lines in and out.

Each process has at most one request at a time, so that one which hangs, or is cancelled, can be
killed without harm to another's.  What a program writes is not trusted: a line that is no answer is
logged and skipped, one that is too long ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from spinal.protocols import Json
from spinal.protocols.retry import doubled

from ....errors import CommandFailed, Retry, one_line
from ....news import Allowance
from ....process import OUTPUT_WITHIN, Ended, Guard, Process, kill_marked

log = structlog.get_logger()

#: Seconds that a program gets to end by itself once its input is closed, and then after SIGTERM.
#: Together they are well within the 5 s after which it is gone, also on a busy machine.
LEAVES_WITHIN: Final = 1.0
GRACE: Final = 2.0

#: Bytes that are no answer and may come before one.
MAX_STRAY: Final = 16 * 1024 * 1024

#: Variable by which what has left a program's group is known when that is to end.
MARK: Final = "SPINAL_PROGRAM"

#: Seconds of the first and the longest pause before a program that died is started again.
FIRST_PAUSE: Final = 0.5
MOST_PAUSE: Final = 30.0

#: A pause that is no longer is waited for by the call that needs the program.
PATIENCE: Final = 1.0


class Died(Exception):
    """The program ended while it had the request."""


class Unread(Died):
    """The program ended before it had read anything of the request: nothing has happened."""


class TooLong(Exception):
    """The program wrote more than is taken."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a program is run."""

    argv: tuple[str, ...]
    folder: Path
    #: Its environment.
    environ: Callable[[], Mapping[str, str]]
    #: Longest line in bytes.
    most: int
    #: Seconds to wait for ``{"ready": true}`` after the start; not at all if none.
    ready: float | None = None


class Running:
    """One process of a program."""

    def __init__(self, way: Way, guard: Guard | None) -> None:
        self._way = way
        self._loop = asyncio.get_running_loop()
        self._allowance = Allowance(self._loop.time)
        self._log = log.bind(program=way.argv[0])
        #: Takes the messages of the request that it has.
        self._told: Callable[[Mapping[str, Any]], None] | None = None
        self._broken: asyncio.Future[Exception] = self._loop.create_future()
        self._ready = asyncio.Event()
        self._last = ""
        #: Bytes that were no answer, since the last one.
        self._strays = 0
        self.answered = False
        self._mark = secrets.token_hex(16)
        theirs, ours = os.pipe()
        try:
            with open(theirs, "rb", buffering=0) as stdin:
                self.process = Process.start(
                    way.argv,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=way.folder,
                    env={**way.environ(), MARK: self._mark},
                    guard=guard,
                )
        except BaseException:
            os.close(ours)
            raise
        os.set_blocking(ours, False)
        self._ours = open(ours, "wb", buffering=0)  # noqa: SIM115 - closed with its transport
        #: The same pipe, to see what of its input it has not read when it has ended.
        self._peek = os.dup(ours)
        self._input: asyncio.WriteTransport | None = None
        self._pipe = _Pipe()
        self._outputs: list[tuple[asyncio.ReadTransport, _Lines]] = []
        self._watch: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Connect its pipes, and wait until it is ready if it says when it is.

        Raises:
            Died: it ended, or was not ready in time.
        """
        out, err = self.process.pipes
        assert out is not None and err is not None
        for pipe, lines in (
            (out, _Lines(self._way.most, self._line, self._too_long)),
            (err, _Lines(8192, self._said, None)),
        ):
            transport, _ = await self._loop.connect_read_pipe(lambda lines=lines: lines, pipe)  # type: ignore[misc]
            self._outputs.append((transport, lines))
        self._input, self._pipe = await self._loop.connect_write_pipe(_Pipe, self._ours)
        self._watch = asyncio.create_task(self._wait(), name=f"waits for {self.process.pid}")
        if self._way.ready is None:
            return
        waits: asyncio.Future[Any] = asyncio.ensure_future(self._ready.wait())
        broken: asyncio.Future[Any] = self._broken
        try:
            await asyncio.wait(
                [waits, broken],
                timeout=self._way.ready,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waits.cancel()
        if self._broken.done():
            raise Died(str(self._broken.result()))
        if not self._ready.is_set():
            raise Died(f"it was not ready within {self._way.ready:g} s")

    @property
    def fit(self) -> bool:
        """Whether it can take a request."""
        return not self._broken.done() and not self.process.ended and self._reads()

    def _reads(self) -> bool:
        """Tell whether somebody has the other end of its input; it ends a little later than that."""
        poll = select.poll()
        poll.register(self._peek, 0)
        return not poll.poll(0)

    def _unread(self) -> int:
        """Give how many bytes are in its input."""
        count = bytearray(4)
        fcntl.ioctl(self._peek, termios.FIONREAD, count)
        return int.from_bytes(count, sys.byteorder)

    async def ask(
        self, id: int, request: Mapping[str, Json], told: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        """Hand over a request and give the message that ends it; ``told`` gets those before.

        Raises:
            Unread: it ended before it had read it.
            Died: it ended before it had answered.
            TooLong: it wrote more than is taken; it is of no use any more.
        """
        answer: asyncio.Future[Any] = self._loop.create_future()
        broken: asyncio.Future[Any] = self._broken

        def take(message: Mapping[str, Any]) -> None:
            if message.get("id") != id or answer.done():
                self._stray(json.dumps(message))
            elif _ENDS.isdisjoint(message):
                told(message)
            else:
                answer.set_result(message)

        self._told = take
        # ASCII: no value can bring a line end of any sort.
        line = json.dumps({"id": id, **request}, ensure_ascii=True).encode() + b"\n"
        try:
            self._send(line)
            await asyncio.wait([answer, broken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._told = None
        if answer.done():
            self.answered = True
            self._strays = 0
            found: Mapping[str, Any] = answer.result()
            return found
        error = self._broken.result()
        if isinstance(error, Died) and self._unread() == len(line):
            raise Unread(str(error)) from error
        raise error

    def _send(self, line: bytes) -> None:
        """Write a request.

        Not by the transport, as far as there is room in the pipe: that does not tell whether the
        other end was gone by then.
        """
        assert self._input is not None
        written = 0
        if self._input.get_write_buffer_size() == 0:
            try:
                written = os.write(self._peek, line)
            except BlockingIOError:
                pass
            except BrokenPipeError as exc:
                raise Unread("it closed its input") from exc
        if written < len(line):
            self._input.write(line[written:])

    async def end(self, polite: bool = False) -> None:
        """See its group end: at once asked to, or first with the end of its input."""
        try:
            if self._input is not None:
                self._input.close()
            if polite:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LEAVES_WITHIN):
                        await self.process.wait()
        finally:
            try:
                await self.process.end(GRACE)
                await asyncio.to_thread(kill_marked, f"{MARK}={self._mark}")
            finally:
                await self._release()

    async def _release(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if not self._broken.done():
            self._broken.cancel()
        if self._input is None:
            self._ours.close()
        else:
            if not self._pipe.closed.is_set():
                # What it has not read, nobody reads.
                self._input.abort()
            await self._pipe.closed.wait()
        os.close(self._peek)
        for transport, lines in self._outputs:
            transport.close()
            await lines.closed.wait()
        for pipe in self.process.pipes[len(self._outputs) :]:
            if pipe is not None:
                pipe.close()

    # -- what it says

    async def _wait(self) -> None:
        ended = await self.process.wait()
        # Its last answer may still be on its way.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OUTPUT_WITHIN):
                for _, lines in self._outputs:
                    await lines.closed.wait()
        self._break(Died(self._how(ended)))

    def _how(self, ended: Ended) -> str:
        return f"it ended with {ended}" + (f": {self._last}" if self._last else "")

    def _break(self, error: Exception) -> None:
        if not self._broken.done():
            self._broken.set_result(error)

    def _line(self, line: bytes) -> None:
        message: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(line)
        if not isinstance(message, dict):
            self._stray(line.decode(errors="replace"))
        elif message.get("ready") is True and "id" not in message:  # pyright: ignore[reportUnknownMemberType]
            self._ready.set()
        elif self._told is not None:
            self._told(message)  # pyright: ignore[reportUnknownArgumentType]
        else:
            self._stray(line.decode(errors="replace"))

    def _too_long(self) -> None:
        # What comes behind it is part of it.
        self._stop(f"it wrote a line of more than {self._way.most} bytes")

    def _stop(self, why: str) -> None:
        self._break(TooLong(why))
        self.process.signal(signal.SIGKILL)

    def _stray(self, text: str) -> None:
        self._strays += len(text)
        if self._strays > MAX_STRAY:
            self._stop(f"it wrote more than {MAX_STRAY} bytes that are no answer")
        if self._allowance.admits(text):
            self._tell_dropped()
            self._log.warning("program_wrote_no_answer", text=one_line(text, 300))

    def _said(self, line: bytes) -> None:
        text = one_line(line.decode(errors="replace"), 300)
        self._last = text or self._last
        if text and self._allowance.admits(text):
            self._tell_dropped()
            self._log.info("program_said", text=text)

    def _tell_dropped(self) -> None:
        if words := self._allowance.told():
            self._log.warning("program_said_too_much", text=words)


#: Members that make a message the last one of its request.
_ENDS: Final = frozenset({"value", "file", "error", "refused", "retry"})


class _Pipe(asyncio.Protocol):
    """Notes when a pipe is closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


class _Lines(asyncio.Protocol):
    """Passes lines on; of one that is too long nothing, or the beginning if nobody minds."""

    def __init__(
        self, most: int, line: Callable[[bytes], None], too_long: Callable[[], None] | None
    ) -> None:
        self._most = most
        self._line = line
        self._too_long = too_long
        self._rest = bytearray()
        self._skips = False
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._add(line)
            if not self._skips:
                self._line(bytes(self._rest))
            self._rest.clear()
            self._skips = False
        self._add(rest)

    def _add(self, data: bytes) -> None:
        if self._skips:
            return
        room = self._most - len(self._rest)
        self._rest += data[:room]
        if len(data) > room:
            self._skips = True
            if self._too_long is not None:
                self._too_long()
            else:
                self._line(bytes(self._rest))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest and not self._skips and self._too_long is None:
            self._line(bytes(self._rest))
        self.closed.set()


class Team:
    """The processes of one program; each is started when it is needed.

    Args:
        way: how it is run.
        size: most processes.
        guard: ends them if we are killed.
    """

    def __init__(self, way: Way, size: int, guard: Guard | None) -> None:
        self._way = way
        self._guard = guard
        self._room = asyncio.Semaphore(size)
        self._idle: list[Running] = []
        self._failures = 0
        self._again_at = 0.0
        self._why = ""
        self._number = 0

    async def ask(
        self, request: Mapping[str, Json], told: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        """Have a process do a request, and give its last message.

        Cancelled, the process is killed with its group, and gone when this ends.

        Raises:
            Retry: it cannot be started now, or ends before it has read anything.
            Died, TooLong: it ended while it had the request.
        """
        async with self._room:
            while True:
                running = await self._take()
                self._number += 1
                try:
                    answer = await running.ask(self._number, request, told)
                except BaseException as exc:
                    await running.end()
                    if isinstance(exc, Died) and not running.answered:
                        self._fail(str(exc))
                        if isinstance(exc, Unread):
                            raise Retry(f"{self._way.argv[0]} does not start: {exc}") from exc
                    if isinstance(exc, Unread):
                        # It had done what it was for, and went while we wrote.
                        continue
                    raise
                self._failures = 0
                self._idle.append(running)
                return answer

    async def _take(self) -> Running:
        while self._idle:
            running = self._idle.pop()
            if running.fit:
                return running
            await running.end()
        loop = asyncio.get_running_loop()
        pause = self._again_at - loop.time()
        if pause > PATIENCE:
            raise Retry(
                f"{self._way.argv[0]} keeps ending and is started again in {pause:.0f} s: {self._why}"
            )
        await asyncio.sleep(max(0.0, pause))
        try:
            running = Running(self._way, self._guard)
        except CommandFailed as exc:
            self._fail(str(exc))
            raise Retry(str(exc)) from exc
        try:
            await running.begin()
        except BaseException as exc:
            await running.end()
            if isinstance(exc, Died):
                self._fail(str(exc))
                raise Retry(f"{self._way.argv[0]} does not start: {exc}") from exc
            raise
        log.info("program_started", program=self._way.argv[0], pid=running.process.pid)
        return running

    def _fail(self, why: str) -> None:
        """Start the next one only after a pause."""
        self._why = why
        pause = doubled(FIRST_PAUSE, self._failures, MOST_PAUSE)
        self._failures += 1
        self._again_at = asyncio.get_running_loop().time() + pause
        log.warning("program_failed", program=self._way.argv[0], why=why, pause=round(pause, 1))

    async def close(self) -> None:
        """End those that wait, all at once."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(running.end(polite=True) for running in idle))


@contextlib.asynccontextmanager
async def team(way: Way, size: int, guard: Guard | None) -> AsyncGenerator[Team]:
    """Have a team for a block."""
    found = Team(way, size, guard)
    try:
        yield found
    finally:
        await found.close()
