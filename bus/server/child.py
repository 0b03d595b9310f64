"""A server program as a child process that cannot outlive us.

On Linux the kernel ends the child when we die, however we die (prctl(2), PR_SET_PDEATHSIG).  What
a killed parent left behind all the same is recognised by a record in the folder: a process is
known by its number *and* the moment it started, so that a number used again is left alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from .errors import ServerError, ServerMissing
from .files import write

log = structlog.get_logger()

LINUX: Final = sys.platform == "linux"

#: Enough for 50,000 streams; more makes Erlang walk through a million descriptors at start.
OPEN_FILES: Final = 65_536
#: How long what has been killed may take to vanish, in seconds.
GONE_WITHIN: Final = 5.0
#: How often a condition that nobody announces is looked at, in seconds.
POLL: Final = 0.02
#: The output of earlier lives is kept up to this many bytes.
KEEP_OUTPUT: Final = 1024 * 1024

_USERS: Final = ("spinal", "nobody")


@dataclass(frozen=True, slots=True)
class Process:
    """One process, told apart from later ones with the same number."""

    pid: int
    born: str

    @classmethod
    def find(cls, pid: int) -> Process | None:
        """Give the process with this number, None if there is none (or only its remains)."""
        born = _born(pid)
        return None if born is None else cls(pid, born)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return _born(self.pid) == self.born

    def kill(self) -> None:
        """End it at once; nothing happens if it is gone."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Owner:
    """The user that a server runs as."""

    uid: int
    gid: int

    @classmethod
    def choose(cls) -> Owner | None:
        """Give the user to change to, None to stay who we are.

        Root never runs a server itself: one that listens to a network must not own the machine.
        """
        if os.geteuid() != 0:
            return None
        for name in _USERS:
            with suppress(KeyError):
                user = pwd.getpwnam(name)
                return cls(user.pw_uid, user.pw_gid)
        raise ServerError("a server must not run as root: make a user called spinal for it")

    def give(self, folder: Path) -> None:
        """Give the folder and all that is in it to this user."""
        if folder.stat().st_uid == self.uid:
            return
        for parent, folders, files in os.walk(folder):
            for name in (*folders, *files):
                os.chown(Path(parent, name), self.uid, self.gid, follow_symlinks=False)
        os.chown(folder, self.uid, self.gid)


class Child:
    """A running child; its owner must call :meth:`stop`."""

    def __init__(
        self, process: asyncio.subprocess.Process, name: str, record: Path, output: Path
    ) -> None:
        self._process = process
        self._name = name
        self._record = record
        self._output = output
        self._stopping = asyncio.Lock()
        self._stopped = False

    @classmethod
    async def start(
        cls,
        name: str,
        argv: Sequence[str],
        *,
        folder: Path,
        cwd: Path,
        env: Mapping[str, str],
        owner: Owner | None,
    ) -> Child:
        """Run ``argv`` in ``cwd``; its output and a record of it go into ``folder``.

        Raises :class:`ServerMissing` if a program is not there.
        """
        output = folder / f"{name}.log"
        if output.exists() and output.stat().st_size > KEEP_OUTPUT:
            os.replace(output, folder / f"{name}.log.1")
        with output.open("ab") as file:
            os.fchmod(file.fileno(), 0o600)
            try:
                process = await asyncio.create_subprocess_exec(
                    *_bound(owner),
                    *argv,
                    cwd=cwd,
                    env=dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in a terminal is for us, and we stop it in good order.
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise ServerMissing(f"{error.filename} is missing: install it") from error
        child = cls(process, name, folder / f"{name}.json", output)
        try:
            child._note()
        except BaseException:
            await child.stop(grace=0)
            raise
        return child

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.returncode is not None

    async def wait(self) -> int:
        """Wait for its end and give its exit status, negative for a signal."""
        return await self._process.wait()

    def last_words(self) -> str:
        """Give the most telling one of the last lines of its output."""
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - 16_384))
            text = file.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        words = ("critical", "error", "fatal", "cannot", "failed")
        telling = [one for one in lines if any(word in one.lower() for word in words)]
        return (telling or lines or ["it said nothing"])[-1][:500]

    async def stop(self, grace: float) -> None:
        """Ask it to end, kill it after ``grace`` seconds, and wait until nothing of it is left."""
        async with self._stopping:
            if self._stopped:
                return
            family = [] if self.ended else descendants(self.pid)
            try:
                if not self.ended and grace > 0:
                    with suppress(ProcessLookupError):
                        self._process.terminate()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(grace):
                            await self._process.wait()
            finally:
                # Also when we are cancelled in the middle of it.
                if not self.ended:
                    with suppress(ProcessLookupError):
                        self._process.kill()
            await self._process.wait()
            await _gone(family)
            self._record.unlink(missing_ok=True)
            self._stopped = True
            log.info("server_stopped", server=self._name, status=self._process.returncode)

    def _note(self) -> None:
        parent, child = Process.find(os.getpid()), Process.find(self.pid)
        if parent is None or child is None:
            return  # It is gone already; whoever waits for it finds out.
        record = {"parent": [parent.pid, parent.born], "child": [child.pid, child.born]}
        write(self._record, json.dumps(record).encode(), 0o600)


async def end_leftover(name: str, folder: Path) -> None:
    """End what a killed parent left running in the folder.

    Raises :class:`ServerError` if its parent lives: then it is in use.
    """
    path = folder / f"{name}.json"
    try:
        record = json.loads(path.read_bytes())
        parent = Process(int(record["parent"][0]), str(record["parent"][1]))
        child = Process(int(record["child"][0]), str(record["child"][1]))
    except FileNotFoundError:
        return
    except (ValueError, KeyError, IndexError, TypeError):
        # Not written by us; nothing in it says whom to end.
        log.warning("server_record_unreadable", path=str(path))
        path.unlink(missing_ok=True)
        return
    if child.alive:
        if parent.alive:
            raise ServerError(
                f"a server already runs in {folder} (process {child.pid}, started by "
                f"{parent.pid}): stop that one first"
            )
        log.warning("server_leftover_ended", server=name, pid=child.pid)
        family = [child, *descendants(child.pid)]
        child.kill()
        await _gone(family)
    path.unlink(missing_ok=True)


def descendants(pid: int) -> list[Process]:
    """Give all that the process started and what those started (Linux; elsewhere nothing)."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields is not None:
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[Process] = []
    open_ends = [pid]
    while open_ends:
        for child in parents.get(open_ends.pop(), ()):
            process = Process.find(child)
            if process is not None:
                found.append(process)
                open_ends.append(child)
    return found


async def _gone(processes: Iterable[Process]) -> None:
    """Wait for their end, and kill what takes longer than it should."""
    left = [one for one in processes if one.alive]
    # Helpers of a server end by themselves when it closes its end of their pipe.
    for kill, patience in ((False, 1.0), (True, GONE_WITHIN)):
        deadline = time.monotonic() + patience
        if kill:
            for one in left:
                one.kill()
        while left and time.monotonic() < deadline:
            await asyncio.sleep(POLL)
            left = [one for one in left if one.alive]
    if left:
        raise ServerError(f"process {left[0].pid} of a server cannot be ended: kill it by hand")


def _bound(owner: Owner | None) -> list[str]:
    """Give the programs in front of a server's own that tie it to us and raise its limits."""
    if not LINUX:
        return []
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    tools = [shutil.which(name) for name in ("prlimit", "setpriv")]
    if not all(tools):
        raise ServerMissing("prlimit and setpriv are missing: apt-get install util-linux")
    prlimit, setpriv = (str(tool) for tool in tools)
    prefix = [prlimit, f"--nofile={files}:{files}", setpriv, "--pdeathsig", "KILL"]
    prefix += ["--no-new-privs"]
    if owner is not None:
        prefix += [f"--reuid={owner.uid}", f"--regid={owner.gid}", "--clear-groups"]
    return [*prefix, "--"]


def _stat(pid: int) -> list[str] | None:
    """Give the fields of /proc/PID/stat after the name: state, parent, ... (proc(5))."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _born(pid: int) -> str | None:
    """Give what tells this process from a later one with its number, None if it does not run."""
    if not LINUX:
        answer = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() or None
    fields = _stat(pid)
    if fields is None or fields[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{fields[19]}"
