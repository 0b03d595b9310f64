"""The warden of one machine: starts it, keeps its console, and ends all of it.

A process of its own, because a machine outlives whoever rented it, and somebody has to read what it
writes, to notice how it ended, and to know all that it has started.  For the last of these it is the
one to whom the kernel gives orphans (PR_SET_CHILD_SUBREAPER): whatever a machine starts stays below
its warden, also what has left its group or ignores SIGTERM.  When the warden is killed, its child is
killed with it (PR_SET_PDEATHSIG).

Its orders come on standard input as JSON, because arguments can be read by everybody.  Without
complete orders it does nothing: whoever starts it first writes down its number, and then tells it to
go on, so that no machine runs that nobody knows of.  A file of its own that imports nothing of ours,
because it is there for as long as the machine and ought to be small.

Orders::

    steps     list of argv; all but the last prepare the machine and must end with 0
    env, cwd  of each step
    limits    names and values of setrlimit(2)
    joins     files to which each step writes 0, to be in the control groups whose they are
    delay     seconds before the first step
    grace     seconds between SIGTERM and SIGKILL when it is to end
    asked     [first, last]: generations of its descendants that get SIGTERM; last may be null
    console   path of the log, which with its older part ``.1`` has at most `most` bytes
    ended     path of the file that says how the machine ended: {"code": exit code, "step": index}
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from types import FrameType
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36

#: Bytes that are read of the console at a time.
CHUNK: Final = 64 * 1024
#: Seconds between two looks at what is left while a machine ends.
LOOK: Final = 0.01


class Console:
    """What the machine writes: a file of bounded size with one older one beside it."""

    def __init__(self, path: str, most: int) -> None:
        self._path = path
        self._half = max(1, most // 2)
        self._file = self._open()
        self._size = os.fstat(self._file).st_size

    def _open(self) -> int:
        return os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )

    def append(self, data: bytes) -> None:
        """Write; what the disk does not take is lost, which is no reason to end a machine."""
        data = data[-self._half :]
        try:
            if self._size + len(data) > self._half:
                os.replace(self._path, f"{self._path}.1")
                os.close(self._file)
                self._file, self._size = self._open(), 0
            self._size += os.write(self._file, data)
        except OSError:
            pass


def generations() -> list[list[int]]:
    """Give the numbers of our descendants that run: children, grandchildren, and so on."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    stat = file.read()
            except OSError:  # It ended meanwhile.
                continue
            # proc(5): after the name in brackets come state and parent.
            state, parent, *_ = stat.rpartition(b")")[2].split()
            if state not in b"ZX":
                below.setdefault(int(parent), []).append(int(name))
    found: list[list[int]] = []
    row = below.get(os.getpid(), [])
    while row:
        found.append(row)
        row = [child for pid in row for child in below.get(pid, [])]
    return found


def send(rows: list[list[int]], number: int) -> None:
    """Send a signal to each of them that is still there."""
    for pid in (pid for row in rows for pid in row):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def _nothing(number: int, frame: FrameType | None) -> None:
    """Only wake up."""


class Warden:
    """See the module."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self._orders = orders
        self._console = Console(orders["console"], orders["most"])
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._output, self._theirs = os.pipe()
        os.set_blocking(self._output, False)
        self._step = -1
        #: The step that runs.
        self._child: int | None = None
        #: When the next step may begin; none if no more are to.
        self._due: float | None = time.monotonic() + orders["delay"]
        #: When what is left is killed; none as long as the machine is to run.
        self._deadline: float | None = None
        self._asked = False

    def run(self) -> None:
        """Run the machine to its end; nothing of it is left when this returns."""
        self._libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        woken, wakes = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        # Handlers, and not SIG_IGN, which the machine would inherit.
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _nothing)
        signal.signal(signal.SIGTERM, self._on_term)
        while True:
            ready, _, _ = select.select([woken, self._output], [], [], self._pause())
            if woken in ready:
                os.read(woken, 4096)
            self._drain()
            left = self._reap()
            if self._deadline is None:
                if self._due is not None and time.monotonic() >= self._due:
                    self._next()
            elif not left:
                self._drain()
                return
            elif time.monotonic() >= self._deadline:
                send(generations(), signal.SIGKILL)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if self._deadline is None:
            self._asked = True
            self._deadline = time.monotonic() + self._orders["grace"]
            first, last = self._orders["asked"]
            # Before it has begun there is nothing that would care for a question.
            begun = self._step == len(self._orders["steps"]) - 1
            send(generations()[first:last] if begun else generations(), signal.SIGTERM)

    def _pause(self) -> float | None:
        if self._deadline is not None:
            return LOOK
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def _drain(self) -> None:
        try:
            # Not for ever: one that writes without end may still be ended.
            for _ in range(16):
                self._console.append(os.read(self._output, CHUNK))
        except BlockingIOError:
            pass

    def _reap(self) -> bool:
        """Bury the dead, also those that we were given; tell whether there is anybody else."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._child:
                self._child = None
                self._over(os.waitstatus_to_exitcode(status))

    def _over(self, code: int) -> None:
        """Take note that a step has ended."""
        if self._deadline is None and code == 0 and self._step < len(self._orders["steps"]) - 1:
            self._due = time.monotonic()
            return
        self._note(code)
        if self._deadline is None:
            self._deadline = 0.0

    def _note(self, code: int) -> None:
        path = self._orders["ended"]
        note = {"code": code, "step": self._step, "asked": self._asked}
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                json.dump(note, file)
            os.replace(f"{path}.new", path)
        except OSError as exc:  # The folder is gone or the disk is full: the console may say so.
            self._console.append(f"cannot say how it ended: {exc}\n".encode())

    def _next(self) -> None:
        self._due = None
        self._step += 1
        argv = self._orders["steps"][self._step]
        mine = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            try:
                self._become(argv, mine)
            except (OSError, ValueError) as exc:
                why = getattr(exc, "strerror", None) or str(exc)
                os.write(2, f"cannot run {argv[0]!r}: {why}\n".encode())
            finally:
                os._exit(127)

    def _become(self, argv: list[str], warden: int) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them.
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for ours, theirs in ((nothing, 0), (self._theirs, 1), (self._theirs, 2)):
            os.dup2(ours, theirs)
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != warden:
            os._exit(127)
        for name, most in self._orders["limits"].items():
            number = getattr(resource, name)
            _, hard = resource.getrlimit(number)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(number, (most, most))
        for path in self._orders["joins"]:
            with open(path, "w", encoding="ascii") as file:
                file.write("0")
        os.umask(0o022)
        os.chdir(self._orders["cwd"])
        os.execvpe(argv[0], argv, self._orders["env"])


def main() -> None:
    """Read the orders and carry them out."""
    text = sys.stdin.buffer.read()
    if text.endswith(b"\n"):  # Else whoever wrote them died meanwhile.
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        Warden(json.loads(text)).run()


if __name__ == "__main__":
    main()
