"""The processes of the machine: which there are, and signals for those that may get them.

A process is known by its number and its start: a number alone may belong to somebody else by the
time that a signal is sent.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import psutil
from msgspec import Meta

from spinal.agents.agent import Agent
from spinal.agents.errors import Refused
from spinal.agents.results import fitting

from .config import ProcessesConfig
from .files import when
from .texts import readable

#: Seconds over which the use of the processors is measured.
WINDOW: Final = 0.5

#: Most processes that one answer gives.
MOST: Final = 200

#: Bytes of a command line that are shown.
MAX_COMMAND: Final = 500

Signal = Literal["TERM", "HUP", "INT", "QUIT", "USR1", "USR2", "STOP", "CONT", "KILL"]
By = Literal["cpu", "memory", "pid", "age"]
Word = Annotated[str, Meta(max_length=255)]


@dataclass(frozen=True, slots=True)
class Running:
    """A process."""

    pid: int
    #: What tells it from a later one of its number: when it started, in ticks.
    started: int
    since: datetime
    name: str
    user: str
    state: str
    #: Percent of one processor over the last half second.
    cpu: float
    #: Bytes of memory.
    memory: int
    threads: int
    #: With its arguments; empty unless the configuration shows them.
    command: str


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that were asked for, the first ones first."""

    processes: list[Running]
    #: How many there are on the machine, and how many of them were meant.
    total: int
    matching: int


#: What is asked of each process.
_ASKED: Final = (
    "name",
    "username",
    "status",
    "cpu_times",
    "memory_info",
    "num_threads",
)

_ORDER: Final[Mapping[By, Callable[[Running], float]]] = {
    "cpu": lambda one: -one.cpu,
    "memory": lambda one: -one.memory,
    "pid": lambda one: one.pid,
    "age": lambda one: one.started,
}


#: A process by its number and the time of its start.
_Key = tuple[int, float]


def _seen(asked: Sequence[str]) -> dict[_Key, psutil.Process]:
    return {
        (one.info["pid"], one.info["create_time"]): one
        for one in psutil.process_iter(["pid", "create_time", *asked])
    }


def _used() -> dict[_Key, float]:
    """Give the processor time that each process has used."""
    return {key: _seconds(one.info["cpu_times"]) for key, one in _seen(["cpu_times"]).items()}


def _seconds(times: Any) -> float:
    return 0.0 if times is None else float(times.user + times.system)


def started(pid: int) -> int:
    """Give the start of a process, in ticks since the machine's own start (proc(5)).

    Not the time of day: that of a process changes when the clock is set.  Where the system has
    nothing else it is all the same, in milliseconds.

    Raises:
        ProcessLookupError: there is none.
    """
    try:
        if sys.platform != "linux":
            return round(psutil.Process(pid).create_time() * 1000)
        # The name, in brackets, may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess) as exc:
        raise ProcessLookupError(pid) from exc


def _running(process: psutil.Process, before: float | None, over: float) -> Running | None:
    info: Mapping[str, Any] = process.info
    try:
        start = started(process.pid)
    except ProcessLookupError:
        return None
    if not process.is_running():
        return None  # What was read may be of two processes.
    cpu = 0.0 if before is None else 100 * (_seconds(info["cpu_times"]) - before) / over
    memory = info["memory_info"]
    return Running(
        info["pid"],
        start,
        when(info["create_time"]),
        readable(info["name"] or "", 200),
        readable(info["username"] or "", 200),
        str(info["status"] or ""),
        round(max(0.0, cpu), 1),
        0 if memory is None else memory.rss,
        info["num_threads"] or 0,
        readable(" ".join(info.get("cmdline") or ()), MAX_COMMAND),
    )


def _look(asked: Sequence[str], before: Mapping[_Key, float], over: float) -> list[Running]:
    found = (_running(one, before.get(key), over) for key, one in _seen(asked).items())
    return [one for one in found if one is not None]


async def look(config: ProcessesConfig, by: By, name: str, user: str, limit: int) -> Processes:
    """Give the first processes in an order."""
    before: dict[_Key, float] = {}
    if by == "cpu":
        before = await asyncio.to_thread(_used)
        await asyncio.sleep(WINDOW)
    asked = [*_ASKED, "cmdline"] if config.arguments else _ASKED
    found = await asyncio.to_thread(_look, asked, before, WINDOW)
    meant = [
        one
        for one in found
        if fnmatch.fnmatchcase(one.name, name or "*") and user in ("", one.user)
    ]
    kept, _ = fitting(sorted(meant, key=_ORDER[by]), limit)
    return Processes(kept, len(found), len(meant))


def send(config: ProcessesConfig, pid: int, start: int, name: Signal) -> str:
    """Send a signal to a process that the configuration allows it for; give its name.

    Raises:
        Refused: there is no such process any more, or no rule allows it.
    """
    if pid <= 1:
        raise Refused(f"{pid} is not the number of a process that may be signalled")
    if pid in _ours():
        raise Refused(f"{pid} is this agent, or what it runs under")
    try:
        # Held before it is looked at: from here on the number is that of this process.
        held = os.pidfd_open(pid)
    except OSError as exc:
        raise Refused(f"there is no process {pid}") from exc
    try:
        process = psutil.Process(pid)
        if started(pid) != start:
            raise Refused(
                f"process {pid} is not the one that started at {start}: that has ended, and "
                "another one has its number"
            )
        about = process.name()
        user = process.username()
        exe = ""
        with suppress(psutil.AccessDenied):
            exe = process.exe()
        if not any(name in rule.signals and rule.fits(about, user, exe) for rule in config.signal):
            raise Refused(
                f"{name} for {readable(about, 100)} of {user} is not allowed: processes.signal "
                "in the configuration says what is"
            )
        signal.pidfd_send_signal(held, getattr(signal, f"SIG{name}"))
    except (psutil.NoSuchProcess, ProcessLookupError) as exc:
        raise Refused(f"there is no process {pid}") from exc
    except PermissionError as exc:
        raise Refused(f"this agent's user may not signal process {pid}") from exc
    finally:
        os.close(held)
    return readable(about, 200)


def _ours() -> set[int]:
    """Give the numbers of this process and of those that it lives by."""
    own = psutil.Process()
    return {own.pid, *(parent.pid for parent in own.parents())}


def offer(agent: Agent, config: ProcessesConfig) -> None:
    """Offer what the configuration allows."""

    @agent.op("/machine/processes", effects="reads")
    async def processes(
        by: By = "cpu",
        name: Word = "",
        user: Word = "",
        limit: Annotated[int, Meta(ge=1, le=MOST)] = 20,
    ) -> Processes:
        """Show the processes that use most.

        Args:
            by: cpu, memory, age (the oldest first) or pid.
            name: pattern for their names, such as postgres*.
            user: only those of this user.
            limit: how many.
        """
        return await look(config, by, name, user, limit)

    # Without a hold on the process (pidfd_open(2)) its number could be another's by then.
    if not (config.signal and hasattr(os, "pidfd_open")):
        return

    @agent.op("/machine/process/signal", effects="deletes")
    async def send_signal(
        pid: Annotated[int, Meta(ge=2, le=2**31 - 1)],
        started: Annotated[int, Meta(ge=0)],
        signal: Signal = "TERM",
    ) -> str:
        """Send a signal to a process, and give its name.

        Args:
            pid: its number.
            started: its start, as /machine/processes gives it.
            signal: which one.
        """
        return await asyncio.to_thread(send, config, pid, started, signal)
