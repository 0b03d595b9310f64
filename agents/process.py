"""A child process that leads a group of its own, and ends with everything that it started.

Not :mod:`asyncio.subprocess`, for three reasons.  The group must be killed while its leader is
dead but not yet reaped: after that, its number may belong to somebody else.  What the leader left
running holds its pipes open, so waiting for their end would wait for strangers.  And the kernel
tells what a process cost only to whoever reaps it (wait4(2)).

What leaves the group on purpose (setsid(2)) is beyond us.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import structlog

from spinal.protocols import duration

from . import guard as guarding
from .errors import CommandFailed, one_line

log = structlog.get_logger()

#: Seconds between asking a process to end and killing it.
GRACE: Final = 5.0

#: Bytes of each of its outputs that are kept of a program.
MAX_OUTPUT: Final = 1024 * 1024

#: Seconds that its output may take to arrive once a program has ended.
OUTPUT_WITHIN: Final = 1.0

#: Seconds that what was killed with its leader may take to vanish.
GONE_WITHIN: Final = 1.0

#: How often it is looked for processes that have left their group; the killed stay visible a moment.
MARKED_ROUNDS: Final = 20

#: ``ru_maxrss`` counts KiB on Linux and bytes on macOS.
MEMORY_UNIT: Final = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended and what it cost, with everything that it waited for."""

    #: Exit code; negative for a signal.
    code: int
    #: Seconds of CPU time.
    cpu: float = 0.0
    #: Most memory it had, in bytes.
    memory: int = 0

    def __str__(self) -> str:
        return f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


class Process:
    """A running child; its owner must see it end, by :meth:`wait` or :meth:`end`."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        *,
        guard: Guard | None = None,
        pidfd: bool = True,
    ) -> None:
        self._popen = popen
        self._guard = guard
        if guard is not None:
            guard.watch(popen.pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Ended] = self._loop.create_future()
        #: Its number may belong to somebody else from now on.
        self._reaped = False
        if not (pidfd and self._watch()):
            name = f"waits for process {popen.pid}"
            threading.Thread(target=self._wait_in_thread, name=name, daemon=True).start()

    def __repr__(self) -> str:
        state = self._ended.result() if self._ended.done() else "running"
        return f"<Process {self.pid} {state}>"

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        guard: Guard | None = None,
        pidfd: bool = True,
    ) -> Process:
        """Start a program, which ``guard`` ends if we are killed.

        Raises:
            CommandFailed: it or the folder does not exist or may not be used.
        """
        try:
            # Never a shell.  A session of its own: Ctrl-C in a terminal is for us.
            popen = subprocess.Popen(
                list(argv),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=None if env is None else dict(env),
                pass_fds=pass_fds,
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:
            about = getattr(exc, "filename", None) or argv[0]
            why = getattr(exc, "strerror", None) or str(exc)
            raise CommandFailed(f"cannot run {argv[0]!r}: {about}: {why}") from exc
        return cls(popen, guard=guard, pidfd=pidfd)

    @property
    def pid(self) -> int:
        """Its number, which is its group's as well."""
        return self._popen.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.done()

    @property
    def pipes(self) -> tuple[IO[bytes] | None, IO[bytes] | None]:
        """Our ends of its standard output and error, where they are pipes."""
        return self._popen.stdout, self._popen.stderr

    async def wait(self) -> Ended:
        """Wait for its end; whatever else was in its group has been killed then."""
        return await asyncio.shield(self._ended)

    def signal(self, number: int) -> None:
        """Send a signal to the whole group; nothing happens if it has ended."""
        if self._reaped:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass  # It ended a moment ago, and is about to be noticed.
        except PermissionError:
            log.warning("process_not_signalled", pid=self.pid, signal=number)

    async def end(self, grace: float = GRACE) -> Ended:
        """Ask the group to end, kill it after ``grace`` seconds, and wait until it is gone.

        When cancelled it kills at once, and still waits for the end before it raises.
        """
        timer = None
        if grace > 0:
            self.signal(signal.SIGTERM)
            timer = self._loop.call_later(grace, self.signal, signal.SIGKILL)
        else:
            self.signal(signal.SIGKILL)
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.done():
            try:
                await asyncio.shield(self._ended)
            except asyncio.CancelledError as exc:
                cancelled = exc
                self.signal(signal.SIGKILL)
        if timer is not None:
            timer.cancel()
        if cancelled is not None:
            raise cancelled
        return self._ended.result()

    # -- noticing the end

    def _watch(self) -> bool:
        """Have the event loop notice the end, where the kernel can tell it (pidfd_open(2))."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return False
        self._loop.add_reader(descriptor, self._died, descriptor)
        return True

    def _died(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        # The dead leader still holds its number, so this cannot hit anybody else.
        self.signal(signal.SIGKILL)
        self._release()
        self._settle(self._reap(), self._loop.time() + GONE_WITHIN)

    def _wait_in_thread(self) -> None:
        ended = self._reap()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(RuntimeError):  # The loop has been closed: nobody wants to know.
            self._loop.call_soon_threadsafe(self._release)
            self._loop.call_soon_threadsafe(self._settle, ended, self._loop.time() + GONE_WITHIN)

    def _release(self) -> None:
        """Tell the guard before the number can belong to somebody else, as far as we can."""
        if self._guard is not None:
            self._guard.release(self.pid)

    def _settle(self, ended: Ended, until: float) -> None:
        """Wait until the rest of the group, which was killed, is gone as well."""
        if self._loop.time() < until and _group_lives(self.pid):
            self._loop.call_later(0.002, self._settle, ended, until)
        elif not self._ended.done():
            self._ended.set_result(ended)

    def _reap(self) -> Ended:
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:
            # Reaped by somebody else, as when SIGCHLD is ignored: how it ended is not known.
            log.warning("process_reaped_elsewhere", pid=self.pid)
            self._popen.returncode = 255
            return Ended(255)
        finally:
            self._reaped = True
        code = os.waitstatus_to_exitcode(status)
        self._popen.returncode = code
        return Ended(code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * MEMORY_UNIT)


def located(name: str, folder: Path) -> str:
    """Give a program as it is run: one that is given by a path, from that folder."""
    return str(folder / name) if "/" in name else name


def unrunnable(program: str) -> str:
    """Say why a program cannot be run here, and what to do; empty if it can."""
    if shutil.which(program) is not None:
        return ""
    if Path(program).exists():
        return f"{program!r} may not be executed: chmod +x"
    return f"{program!r} is not here: install it, or give its path"


class Guard:
    """Ends the groups of processes that we leave running if we are killed.

    A process of its own, because nobody else can do it: after SIGKILL we do nothing more, and to
    have the kernel kill our children with us (PR_SET_PDEATHSIG) leaves behind what they have
    started.  It starts with the first group, and again if it died.  It does not know of a program in
    the moment in which that, or the guard itself, is being started.
    """

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process: Process | None = None
        #: Our end of its standard input, which no child of ours inherits.
        self._pipe = -1

    def watch(self, group: int) -> None:
        """End this group if we are killed."""
        self._groups.add(group)
        if not self._tell([group]):
            self._start()

    def release(self, group: int) -> None:
        """Leave this group alone: it has ended."""
        if group in self._groups:
            self._groups.discard(group)
            self._tell([-group])

    async def close(self) -> None:
        """End the guard, and with it what it still watches."""
        self._close_pipe()
        self._groups.clear()
        if self._process is not None:
            guard, self._process = self._process, None
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GONE_WITHIN):
                        await guard.wait()
            finally:
                await guard.end(0)

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _start(self) -> None:
        self._close_pipe()
        # Without the site's modules: it needs none, and is there in a few milliseconds.
        argv = [sys.executable, "-I", "-S", guarding.__file__]
        try:
            theirs, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)
            with open(theirs, "rb", buffering=0) as stdin:
                self._process = Process.start(argv, stdin=stdin, stdout=subprocess.DEVNULL)
        except (OSError, CommandFailed) as exc:
            # What is to run runs all the same.
            log.warning("guard_not_started", error=str(exc))
            self._close_pipe()
            return
        self._tell(self._groups)

    def _tell(self, numbers: Iterable[int]) -> bool:
        """Tell the guard, unless there is none."""
        if self._pipe < 0:
            return False
        try:
            os.write(self._pipe, b"".join(b"%d\n" % number for number in numbers))
        except BrokenPipeError:
            return False
        except BlockingIOError:
            log.warning("guard_hangs")  # Somebody has stopped it.
        return True


def _group_lives(group: int) -> bool:
    """Tell whether anybody is left in a process group but dead ones that nobody has reaped.

    Those stay for ever where the first process reaps no orphans, as in many containers.
    """
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    if sys.platform != "linux":
        return True
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # It ended meanwhile.
            # proc(5): after the name in brackets come state, parent and group.
            state, _, its, *_ = entry.read_bytes().rpartition(b")")[2].split()
            if int(its) == group and state not in b"ZX":
                return True
    return False


def kill_marked(mark: str) -> int:
    """Kill every process whose environment has this entry, and give how many there were.

    For what has left its group on purpose (setsid(2)).  Looks again until nobody is found, because
    who is killed may have started another one meanwhile.  Where there is no ``/proc`` it does nothing.
    """
    wanted, killed = mark.encode(), 0
    for _ in range(MARKED_ROUNDS):
        found = [int(path.parent.name) for path in _environments() if wanted in _entries(path)]
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break
        killed += len(found)
    return killed


def _environments() -> Iterable[Path]:
    return Path("/proc").glob("[0-9]*/environ")


def _entries(path: Path) -> Sequence[bytes]:
    try:
        return path.read_bytes().split(b"\0")
    except OSError:  # It has ended, or is somebody else's.
        return ()


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that has ended by itself."""

    #: Exit code; negative for a signal.
    code: int
    stdout: bytes
    stderr: bytes
    #: More was written than is kept; the beginning is.
    stdout_cut: bool = False
    stderr_cut: bool = False
    #: Seconds of CPU time, and most memory in bytes.
    cpu: float = 0.0
    memory: int = 0

    @property
    def text(self) -> str:
        """Its standard output as text, without the newline at the end."""
        return self.stdout.decode(errors="replace").removesuffix("\n")


#: Takes one line of output.
Line = Callable[[str], None]


class _Output(asyncio.Protocol):
    """Keeps the beginning of an output and passes its lines on."""

    def __init__(
        self, limit: int, line: Line | None, over: Callable[[], None] = lambda: None
    ) -> None:
        self.kept = bytearray()
        self.cut = False
        self.closed = asyncio.Event()
        self._limit = limit
        self._over = over
        self._line = line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def data_received(self, data: bytes) -> None:
        room = self._limit - len(self.kept)
        self.kept += data[:room]
        if len(data) > room and not self.cut:
            self.cut = True
            self._over()
        if self._line is not None:
            *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
            for line in lines:
                self._line(line)
            if len(self._rest) > 8192:
                self._line(self._rest)
                self._rest = ""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._line is not None and self._rest:
            self._line(self._rest)
        self.closed.set()


async def run(
    argv: Sequence[str],
    *,
    input: bytes | str | Path | None = None,
    timeout: float | None = None,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    line: Line | None = None,
    limit: int = MAX_OUTPUT,
    strict: bool = False,
    grace: float = GRACE,
    spent: Callable[[float, int], None] | None = None,
    guard: Guard | None = None,
) -> Completed:
    """Run a program to its end and give what it wrote.

    Its standard input is ``input``, the file at that path, or empty.  On cancellation and after
    ``timeout`` seconds its group is asked to end, killed after ``grace``, and gone when this
    returns.  With ``strict`` it is killed as soon as one of its outputs has more than ``limit``
    bytes.  However it ends,
    ``spent`` is told what it cost: seconds of CPU time, and its peak of memory in bytes.  If we are
    killed, ``guard`` ends it.

    Raises:
        TypeError: ``argv`` is not a list of strings.
        CommandFailed: it could not be started; or, with ``check``, it did not end with code 0.
        TimeoutError: it ran longer than ``timeout``.
    """
    if isinstance(argv, (str, bytes)) or not argv or not all(type(arg) is str for arg in argv):
        raise TypeError(f"run() takes a list of strings such as ['ls', '-l'], not {argv!r:.60}")
    with _source(input) as source:
        process = Process.start(
            argv,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
            guard=guard,
        )
    outputs: list[tuple[asyncio.ReadTransport, _Output]] = []

    def over() -> None:
        if strict:
            process.signal(signal.SIGKILL)

    try:
        for pipe in process.pipes:
            assert pipe is not None  # asked for above
            outputs.append(await _collect(pipe, _Output(limit, line, over)))
        try:
            async with asyncio.timeout(timeout):
                await process.wait()
        except TimeoutError:
            ran = duration.write(timeout or 0)
            raise TimeoutError(f"{argv[0]!r} ran longer than {ran}") from None
        # What left the group may hold the output open; then what has arrived is all there is.
        with suppress(TimeoutError):
            async with asyncio.timeout(OUTPUT_WITHIN):
                for _, output in outputs:
                    await output.closed.wait()
    finally:
        try:
            await process.end(grace)
        finally:
            ended = await process.wait()
            if spent is not None:
                spent(ended.cpu, ended.memory)
            for transport, output in outputs:
                transport.close()
                await output.closed.wait()
            for pipe in process.pipes[len(outputs) :]:
                if pipe is not None:
                    pipe.close()
    out, err = (output for _, output in outputs)
    if check and ended.code != 0:
        words = bytes(err.kept or out.kept).decode(errors="replace").strip().splitlines()
        said = one_line(words[-1], 300) if words else "it said nothing"
        raise CommandFailed(f"{argv[0]!r} ended with {ended}: {said}", ended.code)
    return Completed(
        ended.code, bytes(out.kept), bytes(err.kept), out.cut, err.cut, ended.cpu, ended.memory
    )


def _source(input: bytes | str | Path | None) -> IO[bytes]:
    """Open what a program reads; a file and not a pipe, so that one that does not cannot hold us up."""
    if not input:
        return open(os.devnull, "rb")
    if isinstance(input, Path):
        return input.open("rb")
    source = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    source.write(input.encode() if isinstance(input, str) else input)
    source.seek(0)
    return source


async def _collect(pipe: IO[bytes], output: _Output) -> tuple[asyncio.ReadTransport, _Output]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: output, pipe)
    return transport, output
