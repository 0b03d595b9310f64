"""The agents of one machine: each a process of its own, started again when it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Final

import structlog

from spinal.agents.life import DRAIN
from spinal.agents.process import Ended, Guard, Process
from spinal.bus.errors import BusError, LoginRefused
from spinal.dispatcher.joining import ticket
from spinal.protocols import Exit

from .enrol import Folder, Told
from .supervisor import Backoff
from .supervisor import told as how

log = structlog.get_logger()

#: Seconds that an agent has to end: what runs, its results, and to leave.
GRACE: Final = 2 * DRAIN + 15.0
#: Refusals in a row after which the machine is not wanted any more.
REFUSALS: Final = 3
#: Times that packages are tried to be installed, and seconds that it may take.
INSTALLS: Final = 4
INSTALL_WITHIN: Final = 900.0


def command(folder: Folder, told: Told, name: str) -> list[str]:
    """Give the command that runs an agent of a machine."""
    verb, what = "agent", name
    if name != ticket.MACHINE:
        verb = ticket.ENDINGS[ticket.check_file(name).rpartition(".")[2]]
        what = str(folder.agents / name)
    options = [f"--place={key}={place}" for key, place in sorted(told.place.items())]
    options += [f"--tag={tag}" for tag in told.tags]
    if told.cost is not None:
        options.append(f"--cost={told.cost!r}")
    return [sys.executable, "-m", "spinal", verb, "run", what, *options]


def install(folder: Folder, packages: Sequence[str]) -> None:
    """Install packages below the folder, once, beside those of this interpreter.

    What both need is installed as it is here, so that Spinal runs with what it was tested with.

    Raises:
        BusError: pip could not.
    """
    done = folder.path / "packages.done"
    packages = [one for one in packages if not _is_here(one)]
    wanted = "\n".join(packages)
    if not packages or (done.exists() and done.read_text() == wanted):
        return
    constraints = folder.path / "constraints.txt"
    here = {one.metadata["Name"]: one.version for one in distributions()}
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in here.items()))
    argv = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "-q"]
    argv += ["install", "--upgrade", "--target", str(folder.packages), "-c", str(constraints)]
    pause = 2.0
    for number in range(INSTALLS):
        if number:
            time.sleep(pause)
            pause *= 3
        try:
            ended = subprocess.run(
                [*argv, "--", *packages],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                timeout=INSTALL_WITHIN,
                check=False,
            )
        except subprocess.TimeoutExpired:
            continue
        if ended.returncode == 0:
            done.write_text(wanted)
            return
    raise BusError(f"pip cannot install {' '.join(packages)}: what it said is above")


def _is_here(package: str) -> bool:
    """Tell whether this interpreter has a package, if any version of it will do."""
    try:
        return bool(re.fullmatch(r"[A-Za-z0-9._-]+", package)) and bool(version(package))
    except PackageNotFoundError:
        return False


class Crew:
    """Runs them.

    Args:
        commands: name of each agent -> its command and environment.
        folder: where they are run.
    """

    def __init__(
        self, commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], folder: Path
    ) -> None:
        self._commands = commands
        self._folder = folder
        self._stop = asyncio.Event()
        self._guard = Guard()
        self._running: dict[str, Process] = {}

    def stop(self) -> None:
        """Let each agent end in good order; again: at once."""
        self._signal(signal.SIGTERM)
        self._stop.set()

    async def run(self) -> None:
        """Run them until :meth:`stop`.

        Raises:
            LoginRefused: the bus does not know this machine any more.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._commands:
                    group.create_task(self._keep(name))
        except ExceptionGroup as errors:
            # The first one is why they all ended.
            raise errors.exceptions[0] from errors
        finally:
            await self._guard.close()

    async def _keep(self, name: str) -> None:
        backoff = Backoff()
        refusals = 0
        while not self._stop.is_set():
            argv, environ = self._commands[name]
            begun = time.monotonic()
            process = Process.start(argv, env=environ, cwd=self._folder, guard=self._guard)
            self._running[name] = process
            try:
                ended = await self._see_through(process)
            finally:
                await process.end(0)
                del self._running[name]
            if self._stop.is_set():
                return
            refusals = refusals + 1 if ended.code == Exit.NOT_ALLOWED.value else 0
            if refusals == REFUSALS:
                raise LoginRefused(
                    "the bus does not know this machine any more: join again with a new ticket "
                    "(`spinal ticket create NAME` at the home)"
                )
            pause = backoff.after(time.monotonic() - begun)
            log.warning("agent_ended", agent=name, reason=how(ended.code), again=round(pause, 1))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()

    async def _see_through(self, process: Process) -> Ended:
        """Wait for its end, or end it in good order once we are to stop."""
        waiting = asyncio.ensure_future(process.wait())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([waiting, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                # It was told by `stop`; what it started is told by it.
                with suppress(TimeoutError):
                    async with asyncio.timeout(GRACE):
                        return await process.wait()
                return await process.end(0)
            return waiting.result()
        finally:
            for task in (waiting, stopped):
                task.cancel()
            await asyncio.gather(waiting, stopped, return_exceptions=True)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            # The agent alone: it knows what becomes of its workers.
            if not process.ended:
                os.kill(process.pid, number)


async def serve(crew: Crew) -> None:
    """Run a crew until SIGTERM, Ctrl-C or the end of the terminal; raises as :meth:`Crew.run`."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, crew.stop)
    await crew.run()
