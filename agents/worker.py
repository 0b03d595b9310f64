"""A worker process: loads an agent's file and runs its plain functions, one after the other.

Theory of operation.  There are two processes in the group.  The *guard*, which leads it, does
nothing but wait: when the agent is gone it kills the group, so that nothing is left behind
whatever the function does, even while it keeps the interpreter's lock; when the *worker*, its
child, ends, it ends in the same way.  (To have the kernel kill us with the agent by
PR_SET_PDEATHSIG would spare the guard, but leaves behind what the function has started.)

In the worker, the main thread runs the functions, because signals are delivered there and some
libraries insist on it; a second thread reads the socket.  The socket carries frames and nothing
else; what the function prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import msgspec

from spinal.bus.blob import Blob, LocalBlob, blobs_in
from spinal.bus.errors import CallError
from spinal.protocols import BlobRef, Json, Problem

from . import frames, results
from .errors import AgentError, Refused, one_line, problem_of
from .files import agents_in, load_module
from .frames import Cost, Frame
from .job import Facts, PlainJob
from .news import Allowance
from .operation import Kind, Operation
from .process import MEMORY_UNIT

#: Longest traceback that goes to the agent's log.
MAX_TRACEBACK: Final = 32 * 1024


class Stopped(BaseException):
    """Raised in the main thread when we are to end; not an ``Exception`` on purpose."""


class _Raised(Exception):
    """What the function raised, in the words for the caller and in those for the log."""

    def __init__(self, error: Exception) -> None:
        self.problem = problem_of(error)
        expected = isinstance(error, Refused)
        trace = "" if expected else "".join(traceback.format_exception(error))
        self.trace = _valid(trace[-MAX_TRACEBACK:])


class Worker:
    """The process's one object."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._writing = threading.Lock()
        self._told: queue.SimpleQueue[frames.Told] = queue.SimpleQueue()
        self._taken = threading.Semaphore(0)
        self._operations: dict[str, Operation] = {}
        self._job: PlainJob | None = None
        self._stopping = False

    # -- the socket

    def say(self, frame: Frame) -> None:
        """Send a frame; waits while the agent is slower than we are."""
        with self._writing:
            self._connection.sendall(frames.write(frame))

    def _read(self) -> None:
        """Read frames until the agent is gone; then the guard is about to kill us."""
        with contextlib.suppress(OSError, ValueError, msgspec.MsgspecError):
            while True:
                told = frames.read_told(self._receive(frames.length(self._receive(4))))
                if isinstance(told, frames.Taken):
                    self._taken.release()
                else:
                    self._told.put(told)

    def _receive(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._connection.recv(size - len(parts))
            if not part:
                raise ConnectionResetError
            parts += part
        return bytes(parts)

    # -- life

    def serve(self) -> NoReturn:
        """Load, then run what comes, until we are killed."""
        threading.Thread(target=self._read, name="socket", daemon=True).start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(Stopped):
            signal.signal(signal.SIGTERM, self._terminated)
            while True:
                match self._told.get():
                    case frames.Load() as load:
                        self._load(load)
                    case frames.Call() as call:
                        self.say(self._run(call))
                    case frames.Taken():
                        pass
        sys.exit(0)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            return
        self._stopping = True
        if self._job is not None:
            self._job.stop()
        raise Stopped

    def _load(self, load: frames.Load) -> None:
        sys.path[:] = load.path
        if load.python_path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = load.python_path
        try:
            agents = agents_in(load_module(load.file))
        except AgentError as exc:
            self.say(frames.Broken(str(exc)))
            return
        # The names of a file's agents may be the same; then an operation's path decides.
        for agent in sorted(agents, key=lambda one: one.name == load.agent):
            self._operations.update(agent.operations)
        self.say(frames.Ready())

    # -- a call

    def _run(self, call: frames.Call) -> Frame:
        _forget_peak()
        before = _cpu()
        trace = ""
        channel = _Channel(self, call.left)
        try:
            value, files = self._call(call, channel)
            channel.end()
            return frames.Value(value, files, _cost(before))
        except CallError as exc:
            problem = exc.problem
        except _Raised as exc:
            problem, trace = exc.problem, exc.trace
        finally:
            self._job = None
        channel.end()
        return frames.Failed(problem.reason, problem.text, trace, _cost(before))

    def _call(self, call: frames.Call, channel: _Channel) -> tuple[Json, list[frames.File]]:
        operation = self._operations.get(call.op)
        if operation is None:
            text = (
                f"a worker process does not find {call.op}: make the agent at the top of its file"
            )
            raise CallError.of(Problem("failed", text))

        def blob(ref: BlobRef) -> Blob:
            return LocalBlob(Path(call.files[ref.sha256]), ref.media_type, ref=ref)

        arguments = operation.signature.convert(call.args, blob)
        job = PlainJob(
            Facts(call.id, call.op, call.caller, call.attempt),
            channel,
            self._data,
        )
        if operation.signature.job is not None:
            arguments[operation.signature.job] = job
        self._job = job
        self.say(frames.Began())
        try:
            result = operation.function(**arguments)
            if operation.kind is Kind.PLAIN_STREAM:
                result = self._stream(result)
        except SystemExit as exc:
            raise _Raised(RuntimeError(f"it called sys.exit({exc.code!r})")) from exc
        except Exception as exc:
            raise _Raised(exc) from exc
        return _pack(result, Path(call.folder))

    def _stream(self, values: Generator[Any, None, Any]) -> Any:
        with contextlib.closing(values):
            while True:
                try:
                    value = next(values)
                except StopIteration as end:
                    return end.value
                self._data(value)

    def _data(self, value: object) -> None:
        plain, blobs = results.plain(value)
        if blobs:
            raise TypeError("a plain function cannot send a blob as data: return it")
        results.check(plain, "piece of data")
        self.say(frames.Data(plain))
        self._taken.acquire()


class _Channel:
    """News of a call, on their way to the agent."""

    def __init__(self, worker: Worker, left: float) -> None:
        self._worker = worker
        self._deadline = time.monotonic() + left
        self._lines = Allowance(time.monotonic)

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        """Say how far it is."""
        self._worker.say(frames.Progress(done, total, one_line(note)))

    def log(self, text: str, level: str = "info") -> None:
        """Send a log line, unless there were too many: the agent would only drop it."""
        if self._lines.admits(text):
            self.end()
            self._worker.say(frames.Log(_valid(text), level))

    def end(self) -> None:
        """Say how many lines were not sent."""
        if words := self._lines.told():
            self._worker.say(frames.Log(words, "warning"))

    async def data(self, value: Json) -> None:
        """Never called: a plain function has ``job.send``."""
        raise TypeError("job.data() is for async operations")

    def spent(self, cpu: float, memory: int) -> None:
        """Never called: what a plain function starts is counted with its worker."""
        raise TypeError("job.run() is for async operations")

    @property
    def remaining(self) -> float:
        """Seconds until the caller gives up."""
        return max(0.0, self._deadline - time.monotonic())


def _pack(result: Any, folder: Path) -> tuple[Json, list[frames.File]]:
    """Bring a result into JSON; its blobs become files."""
    value, blobs = results.plain(result)
    files: list[frames.File] = []
    if blobs:
        for steps, blob in blobs_in(value):
            source = blob.source
            if isinstance(source, Path):
                path = source.resolve()
            else:
                folder.mkdir(exist_ok=True)
                path = folder / uuid.uuid4().hex
                path.write_bytes(source or b"")
            files.append(frames.File(list(steps), str(path), blob.media_type))
            value = results.replaced(value, steps, None)
    results.check(value)
    return value, files


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# -- what it costs


def _cpu() -> float:
    mine, children = (
        resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def _forget_peak() -> None:
    """Let the peak of memory count from now (proc(5), clear_refs); elsewhere from our start."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _cost(before: float) -> Cost:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path("/proc/self/status").read_text()
        memory = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return Cost(max(0.0, _cpu() - before), memory)


def _guard(worker: int, connection: int) -> NoReturn:
    """Be the guard: end as the worker ends, or with the whole group when the agent is gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(connection,), name="agent", daemon=True).start()
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _watch(connection: int) -> None:
    """Wait until the agent's end of the socket is closed; what is said there is not for us."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll()
    os.killpg(0, signal.SIGKILL)


def main(argv: list[str]) -> NoReturn:
    """Serve the socket whose descriptor is the first argument."""
    descriptor = int(argv[0])
    os.set_inheritable(descriptor, False)
    worker = os.fork()
    if worker:
        _guard(worker, descriptor)
    Worker(socket.socket(fileno=descriptor)).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
