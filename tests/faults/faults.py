"""The table of faults: what each does, to whom, and what Spinal promises about it.

A strike does its harm, waits until it is over, and measures:

* ``seen``: until the dispatcher knows that a worker is not there;
* ``moved``: until a safe job that a struck worker had runs elsewhere (``judge.py`` measures it);
* ``back``: the longest that the dispatcher did not answer somebody who asks all the time, from the
  strike, or from the end of a fault that the dispatcher can only wait out;
* ``told``: until a caller is told that a job cannot be stored.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals

import psutil

from spinal.bus.server import KINDS
from spinal.testing import eventually

from .. import postgres
from ..integration.conftest import parts, restarted
from ..postgres import Postgres
from .judge import EVERYBODY
from .scene import HERE, Scene, Worker

# The bounds that are promised with default settings, in seconds.
CRASH_SEEN = 1.0
HANG_SEEN = 15.0
#: A safe job of a crashed worker runs elsewhere; of one that hangs, once its lease is over.
CRASH_MOVED = 2.0
HANG_MOVED = HANG_SEEN + CRASH_MOVED
DISPATCHER_BACK = 5.0
#: A server of somebody else's make is asked every 2 s whether it answers, and hangs when it did not
#: twice, for 5 s each; then it is killed and started, for which ejabberd takes some seconds.
SERVER_BACK = 10.0
SERVER_HANG_BACK = 30.0


@dataclass(frozen=True)
class Setting:
    """What the processes of a platform run under."""

    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    #: More options of ``spinal up``.
    options: Sequence[str] = ()
    #: Where two dispatchers keep their jobs; the caller goes to both in turn.
    database: Postgres | None = None
    #: What the table has to say about it.
    note: str = ""


Make = Callable[[Path], AbstractAsyncContextManager[Setting]]


@asynccontextmanager
async def _ordinary(folder: Path) -> AsyncGenerator[Setting]:
    yield Setting()


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    name: str
    #: What a strike does.
    what: str
    strike: Callable[[Scene], Awaitable[None]]
    #: Measure -> seconds that are promised.
    bounds: Mapping[str, float]
    strikes: int = 1
    #: It takes workers away for so long that their unsafe jobs may end as lost.
    losses: bool = False
    #: Workers have cables that can be cut.
    wired: bool = False
    servers: Collection[str] = tuple(KINDS)
    #: Where to look for it on the other servers, if it is worth a line.
    elsewhere: str = ""
    setting: Make = _ordinary
    #: Says what has to be installed for it besides servers, or nothing.
    missing: Callable[[], str | None] = lambda: None
    #: It ends processes by SIGKILL; how many a strike.
    kills: int = 0


# -- workers


async def _nothing(scene: Scene) -> None:
    scene.strike().over = time.monotonic()


async def _kill_worker(scene: Scene) -> None:
    worker = await scene.victim()
    strike = scene.strike(worker)
    worker.process.kill(SIGKILL)
    await scene.noticed(strike, worker)
    strike.over = time.monotonic()
    await scene.dismiss(worker)


async def _stop_worker(scene: Scene) -> None:
    worker = await scene.victim()
    strike = scene.strike(worker)
    worker.process.kill(SIGSTOP)
    try:
        await _lease_over(scene, strike.at, worker)
    finally:
        worker.process.kill(SIGCONT)
    await _known_again(scene, worker)
    strike.over = time.monotonic()


async def _restart_worker(scene: Scene) -> None:
    worker = await scene.victim()
    strike = scene.strike(worker)
    worker.process.kill(SIGTERM)
    await scene.dismiss(worker)
    strike.over = time.monotonic()


async def _cut_cable(scene: Scene) -> None:
    worker = await scene.victim()
    assert worker.cable is not None
    strike = scene.strike(worker)
    worker.cable.cut()
    await scene.noticed(strike, worker)
    await asyncio.sleep(AWAY - (time.monotonic() - strike.at))
    worker.cable.mend()
    await _known_again(scene, worker)
    strike.over = time.monotonic()


async def _silence_cable(scene: Scene) -> None:
    worker = await scene.victim()
    assert worker.cable is not None
    strike = scene.strike(worker)
    worker.cable.silence()
    await _lease_over(scene, strike.at, worker)
    worker.cable.mend()
    await _known_again(scene, worker)
    strike.over = time.monotonic()


#: Seconds that a cable is cut: longer than safe jobs wait for their agent, shorter than its lease.
AWAY = 5.0


async def _lease_over(scene: Scene, since: float, worker: Worker) -> None:
    """Wait until a silent worker is given up, and its safe jobs had time to move."""
    await scene.noticed(scene.strikes[-1], worker)
    await asyncio.sleep(HANG_MOVED + 1.0 - (time.monotonic() - since))


async def _known_again(scene: Scene, worker: Worker) -> None:
    async def known() -> bool:
        return await scene.knows(worker)

    await eventually(known, 60.0, f"{worker.name} is known again")


# -- dispatcher and server


def _part(part: str, how: Signals) -> Callable[[Scene], Awaitable[None]]:
    async def strike(scene: Scene) -> None:
        found = parts(scene.platform)[part]
        assert found, f"no process of the {part}"
        since = len(scene.platform.up.lines)
        strike = scene.strike()
        if part == "server" and how is SIGSTOP:
            # Nobody is heard for longer than the lease.
            strike.worker = EVERYBODY
        for process in found:
            # A helper of a server ends with it.
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        name = scene.platform.home.server if part == "server" else part
        await restarted(scene.platform, since, name, 90.0)
        strike.over = time.monotonic()
        await scene.back(strike)

    return strike


async def _kill_all(scene: Scene) -> None:
    platform = scene.platform
    platform.up.kill(SIGKILL)
    await platform.up.wait()
    strike = scene.strike()
    platform.up = await platform.spinal("up", "--json")
    await platform.up.line(lambda line: '"ready"' in line)
    strike.over = time.monotonic()
    await scene.back(strike)


_OWN_SERVER = ("prosody", "ejabberd")
_SAME = "one process with the dispatcher: see there"


# -- disk


#: Milliseconds that a commit takes on the slow disk, and seconds for which it is slow.
SLOW = 700
SLOW_FOR = 6.0
#: Bytes of the disk that gets full.
SMALL = 24 * 1024 * 1024
#: Seconds by which the clock on the wall is off, one after the other.
OFFSETS = (3600, 0, -3600)

SHIM = HERE / "shim.c"


async def _runs(*command: str) -> bool:
    """Run a command and tell whether it ended well."""
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait() == 0


def _shim(variable: str) -> Make:
    """Let the processes run under ``shim.c``, which reads the number in the lever."""

    @asynccontextmanager
    async def setting(folder: Path) -> AsyncGenerator[Setting]:
        shim, lever = folder / "shim.so", folder / "lever"
        await compile_shim(shim)
        lever.write_bytes(number(0))
        yield Setting({"LD_PRELOAD": str(shim), variable: str(lever)})

    return setting


def _no_compiler() -> str | None:
    return None if shutil.which("gcc") else "gcc is not installed (Debian: apt install gcc)"


async def compile_shim(target: Path) -> None:
    """Make the library of ``shim.c``."""
    built = await _runs("gcc", "-shared", "-fPIC", "-O2", "-o", str(target), str(SHIM), "-ldl")
    assert built, "shim.c was not compiled: is gcc there?"


def number(value: int) -> bytes:
    """Give a number as a lever holds it."""
    return f"{value:<16}".encode()


def _pull(scene: Scene, value: int) -> None:
    """Change the number in place, because others have mapped the file."""
    for process in parts(scene.platform)["dispatcher"]:
        loaded = {Path(part.path).name for part in process.memory_maps()}
        assert "shim.so" in loaded, f"the dispatcher (pid {process.pid}) runs without the shim"
    with scene.lever.open("r+b", buffering=0) as lever:
        lever.write(number(value))


async def _slow(scene: Scene) -> None:
    strike = scene.strike()
    _pull(scene, SLOW)
    await asyncio.sleep(SLOW_FOR)
    _pull(scene, 0)
    strike.over = time.monotonic()
    await scene.back(strike)


@asynccontextmanager
async def _small_disk(folder: Path) -> AsyncGenerator[Setting]:
    """Put the dispatcher's files on a disk of their own, if we may."""
    disk = folder / "home" / "dispatcher"
    disk.mkdir(parents=True, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=700", "spinal-faults", str(disk)]
    # Only root may, and not in every container.
    mounted = shutil.which("mount") is not None and await _runs(*command)
    (folder / "lever").write_text(str(disk) if mounted else "")
    try:
        yield Setting(note="" if mounted else "no mount here: a limit on the size of files instead")
    finally:
        if mounted:
            assert await _runs("umount", "-l", str(disk)), f"{disk} is still mounted"


async def _fill(scene: Scene) -> None:
    disk = scene.lever.read_text()
    strike = scene.strike()
    before = scene.caller.refused["full"]
    with _ballast(Path(disk)) if disk else _no_growth(scene):

        def told() -> bool:
            return scene.caller.refused["full"] > before

        await eventually(told, 60.0, "a caller is told that the disk is full")
        scene.measure("told", time.monotonic() - strike.at)
        # What runs meanwhile cannot be stored; it must not be lost for that.
        await asyncio.sleep(3.0)
    strike.over = time.monotonic()
    await eventually(
        lambda: scene.caller.accepted_at > strike.over, 60.0, "jobs are accepted again"
    )
    scene.measure("back", scene.caller.accepted_at - strike.over)


@contextmanager
def _ballast(disk: Path) -> Generator[None]:
    """Fill a disk to its last byte."""
    file = disk / "ballast"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    os.write(descriptor, b"x" * size)
        yield
    finally:
        os.close(descriptor)
        file.unlink()


@contextmanager
def _no_growth(scene: Scene) -> Generator[None]:
    """Let no file of the dispatcher grow; the server's neither, where they are one process."""
    (process,) = parts(scene.platform)["dispatcher"]
    _, hard = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))


# -- clock


async def _jump(scene: Scene) -> None:
    for offset in OFFSETS:
        strike = scene.strike()
        _pull(scene, offset)
        strike.over = time.monotonic()
        await scene.back(strike)


# -- several dispatchers


@asynccontextmanager
async def _database(folder: Path) -> AsyncGenerator[Setting]:
    with postgres.server() as database:
        yield Setting(options=("--store", database.url()), database=database)


def _other(how: Signals) -> Callable[[Scene], Awaitable[None]]:
    """Strike the other dispatcher and whoever watches it, so that nobody starts it again."""

    async def strike(scene: Scene) -> None:
        assert scene.other is not None
        family = psutil.Process(scene.other.pid).children(recursive=True)
        strike = scene.strike()
        scene.other.kill(how)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        await scene.back(strike)
        strike.over = time.monotonic()

    return strike


async def _kill_database(scene: Scene) -> None:
    assert scene.database is not None
    strike = scene.strike()
    scene.database.kill()
    await asyncio.to_thread(scene.database.start)
    strike.over = time.monotonic()
    await eventually(
        lambda: scene.caller.accepted_at > strike.over, 60.0, "jobs are accepted again"
    )
    scene.measure("back", scene.caller.accepted_at - strike.over)


# -- the table

_DISPATCHER = {"back": DISPATCHER_BACK}
_SERVER = {"back": SERVER_BACK}

FAULTS: Mapping[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("none", "nothing: what the harness itself costs", _nothing, {}),
        Fault(
            "worker killed",
            "SIGKILL of an agent at work; another one is started",
            _kill_worker,
            {"seen": CRASH_SEEN, "moved": CRASH_MOVED},
            strikes=4,
            losses=True,
            kills=1,
        ),
        Fault(
            "worker hangs",
            "SIGSTOP of an agent at work, SIGCONT after its lease",
            _stop_worker,
            {"seen": HANG_SEEN, "moved": HANG_MOVED},
            losses=True,
        ),
        Fault(
            "worker restarted",
            "SIGTERM of an agent at work; another one is started",
            _restart_worker,
            {},
            strikes=3,
        ),
        Fault(
            "cable cut",
            "an agent's socket is closed, and it cannot connect for 5 s",
            _cut_cable,
            {"seen": CRASH_SEEN, "moved": CRASH_MOVED},
            strikes=2,
            wired=True,
        ),
        Fault(
            "cable silent",
            "nothing passes between an agent and the server, until after its lease",
            _silence_cable,
            {"seen": HANG_SEEN, "moved": HANG_MOVED},
            losses=True,
            wired=True,
        ),
        Fault(
            "dispatcher killed",
            "SIGKILL of the dispatcher",
            _part("dispatcher", SIGKILL),
            _DISPATCHER,
            strikes=3,
            kills=1,
        ),
        Fault(
            "dispatcher hangs",
            "SIGSTOP of the dispatcher",
            _part("dispatcher", SIGSTOP),
            _DISPATCHER,
        ),
        Fault(
            "dispatcher restarted",
            "SIGTERM of the dispatcher",
            _part("dispatcher", SIGTERM),
            _DISPATCHER,
            strikes=2,
        ),
        Fault(
            "server killed",
            "SIGKILL of the XMPP server",
            _part("server", SIGKILL),
            _SERVER,
            strikes=2,
            servers=_OWN_SERVER,
            elsewhere=_SAME,
            kills=1,
        ),
        Fault(
            "server hangs",
            "SIGSTOP of the XMPP server",
            _part("server", SIGSTOP),
            {"back": SERVER_HANG_BACK},
            servers=_OWN_SERVER,
            elsewhere=_SAME,
        ),
        Fault(
            "server restarted",
            "SIGTERM of the XMPP server",
            _part("server", SIGTERM),
            _SERVER,
            strikes=2,
            servers=_OWN_SERVER,
            elsewhere=_SAME,
        ),
        Fault(
            "all killed",
            "SIGKILL of `spinal up` with all its children, which is started again at once",
            _kill_all,
            _SERVER,
            kills=1,
        ),
        Fault(
            "slow disk",
            f"each commit takes {SLOW} ms longer, for {SLOW_FOR:g} s",
            _slow,
            {"back": DISPATCHER_BACK},
            setting=_shim("FAULTS_SLOW"),
            missing=_no_compiler,
        ),
        Fault(
            "full disk",
            "no byte is left on the store's disk, until after callers were told",
            _fill,
            {"back": DISPATCHER_BACK},
            setting=_small_disk,
        ),
        Fault(
            "clock jumps",
            "the clock on the wall jumps an hour forth, and back, and an hour back",
            _jump,
            _DISPATCHER,
            setting=_shim("FAULTS_CLOCK"),
            missing=_no_compiler,
        ),
        Fault(
            "one of two killed",
            "SIGKILL of one of two dispatchers on one PostgreSQL; it does not come back",
            _other(SIGKILL),
            _DISPATCHER,
            servers=("prosody",),
            setting=_database,
            missing=postgres.available,
            kills=1,
        ),
        Fault(
            "one of two hangs",
            "SIGSTOP of one of two dispatchers on one PostgreSQL, and of whoever watches it",
            _other(SIGSTOP),
            _DISPATCHER,
            servers=("prosody",),
            setting=_database,
            missing=postgres.available,
        ),
        Fault(
            "database killed",
            "SIGKILL of the PostgreSQL of two dispatchers, which is started again at once",
            _kill_database,
            _DISPATCHER,
            servers=("prosody",),
            setting=_database,
            missing=postgres.available,
            kills=1,
        ),
    )
}
