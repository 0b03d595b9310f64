"""Services that are scripts, as in System V: one file for each in ``/etc/init.d``."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from spinal.agents.errors import CommandFailed, Refused
from spinal.agents.process import GRACE, run
from spinal.protocols import duration

from .manager import NAME, Service, State, Verb
from .texts import readable

#: Seconds that a script may take to tell how its service is, and how many are asked at once.
STATUS_WITHIN: Final = 5.0
AT_ONCE: Final = 4

#: Exit code of ``status`` -> state (Linux Standard Base 5.0, 22.2).
_CODES: Final[Mapping[int, State]] = {0: "running", 1: "failed", 2: "failed", 3: "stopped"}

#: What other exit codes of a script mean there.
_MEANT: Final[Mapping[int, str]] = {
    2: "it does not take that argument",
    3: "it cannot do that",
    4: "it may not do that",
    5: "it is not installed",
    6: "it is not configured",
    7: "it is not running",
}

#: Signs that a script knows ``status``: some do who knows what with words that they do not know.
_KNOWS_STATUS: Final = re.compile(
    rb"^[^#\n]*\bstatus\b[^()\n]*\)|init-d-script|openrc-run", re.MULTILINE
)

#: Program -> its arguments that have a service start with the machine, or not.
_ENABLERS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "update-rc.d": {"enable": ("{}", "enable"), "disable": ("{}", "disable")},
    "chkconfig": {"enable": ("{}", "on"), "disable": ("{}", "off")},
    "rc-update": {"enable": ("add", "{}"), "disable": ("del", "{}")},
}

#: Scripts that are no services.
_NO_SERVICES: Final = ("README", "skeleton", "functions", "rc", "rcS", "halt", "reboot", "single")

#: What a script gets of our environment, as from service(8).
_ENVIRONMENT: Final = ("PATH", "TERM", "LANG")

#: Most bytes of a script that are read.
_MAX_SCRIPT: Final = 256 * 1024


class SysV:
    """Scripts, one for each service, that take ``start``, ``stop`` and most of them ``status``.

    Args:
        folder: where they are; beside it are the folders ``rc2.d`` and so on.
    """

    name = "sysv"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def all(self) -> list[Service]:
        """Give all services, by name."""
        names = sorted(await self.names())
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(name: str) -> Service:
            async with gate:
                return await self._service(name)

        return await asyncio.gather(*map(one, names))

    async def names(self) -> set[str]:
        """Give the names of all services."""
        return await asyncio.to_thread(self._names)

    def _names(self) -> set[str]:
        found: set[str] = set()
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if NAME.fullmatch(entry.name) and entry.name not in _NO_SERVICES:
                    with suppress(OSError):  # It went meanwhile, or is a link to nothing.
                        mode = entry.stat().st_mode
                        if stat.S_ISREG(mode) and mode & 0o111:
                            found.add(entry.name)
        return found

    async def _service(self, name: str) -> Service:
        script = await asyncio.to_thread(self._read, name)
        state: State = "unknown"
        if _KNOWS_STATUS.search(script):
            with suppress(TimeoutError, CommandFailed):
                # Not 0 is an answer as well.
                done = await run(
                    self.argv(name, "status"),
                    env=_environment(),
                    cwd="/",
                    timeout=STATUS_WITHIN,
                )
                state = _CODES.get(done.code, "unknown")
        enabled = await asyncio.to_thread(self._enabled, name)
        return Service(name, state, enabled, readable(_about(script), 200))

    def _read(self, name: str) -> bytes:
        with suppress(OSError), (self._folder / name).open("rb") as file:
            return file.read(_MAX_SCRIPT)
        return b""  # It went meanwhile.

    def _enabled(self, name: str) -> bool | None:
        """Look for a start link, such as ``rc2.d/S01cron``."""
        levels = [self._folder.parent / f"rc{level}.d" for level in "2345S"]
        if not any(level.is_dir() for level in levels):
            return None
        start = re.compile(rf"S[0-9]+{re.escape(name)}")
        return any(
            start.fullmatch(link.name)
            for level in levels
            if level.is_dir()
            for link in level.iterdir()
        )

    async def show(self, name: str) -> tuple[Service, dict[str, str]]:
        """Tell about one."""
        return await self._service(name), {"script": str(self._folder / name)}

    def argv(self, name: str, verb: str) -> list[str]:
        """Give the command that changes a service.

        Raises:
            Refused: nothing here has services start with the machine.
        """
        if verb not in ("enable", "disable"):
            return [str(self._folder / name), verb]
        for program, words in _ENABLERS.items():
            if shutil.which(program) is not None:
                return [program, *(word.format(name) for word in words[verb])]
        raise Refused(f"none of {', '.join(_ENABLERS)} is installed, so nothing can be {verb}d")

    async def change(self, name: str, verb: Verb, timeout: float) -> None:
        """Do something to one."""
        code = await _leave_running(self.argv(name, verb), timeout)
        if code:
            meant = _MEANT.get(code, "it did not work")
            raise CommandFailed(f"{verb} of {name}: {meant} (exit code {code})", code)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **kept}


def _about(script: bytes) -> str:
    """Find the description in the header of a script (LSB, 22.2)."""
    found = re.search(rb"^#\s*Short-Description:\s*(.*)$", script, re.MULTILINE)
    return found[1].decode("utf-8", "replace").strip() if found else ""


async def _leave_running(argv: Sequence[str], timeout: float) -> int:
    """Run a script that leaves a service running, and give its exit code.

    Not :func:`run`, for which whatever a program leaves in its group is a leak: many an old service
    stays in the group of the script that starts it.  It has no output either: the service would
    have it as well, and be killed when it writes after we have gone.  When the time is up, or when
    it is cancelled, the script's whole group is ended all the same.

    Raises:
        CommandFailed: it cannot be started.
        TimeoutError: it took too long.
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
    except OSError as exc:
        raise CommandFailed(f"cannot run {argv[0]!r}: {exc.strerror}") from exc
    try:
        async with asyncio.timeout(timeout):
            return await child.wait()
    except TimeoutError:
        took = duration.write(timeout)
        raise TimeoutError(f"{argv[0]!r} took longer than {took}") from None
    finally:
        if child.returncode is None:
            await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Ask the group of a child to end, kill it 5 seconds later, and see the child end."""
    _signal(child.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(GRACE):
            await child.wait()
    except TimeoutError:
        pass  # It is killed below.
    finally:
        # As long as anything is left of the group, nobody else can have its number.
        _signal(child.pid, signal.SIGKILL)
        await asyncio.shield(child.wait())


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
