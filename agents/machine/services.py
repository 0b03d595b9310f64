"""The services of the machine: systemd's where it runs, else the scripts in ``/etc/init.d``.

A name that a caller gives never becomes more than it is: it must look like one, and be the name of
a service that is there, before a program gets it as an argument.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import re
import shutil
import signal
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal, Protocol

from msgspec import Meta

from spinal.agents.agent import Agent
from spinal.agents.errors import CommandFailed, Refused, one_line
from spinal.agents.process import GRACE, run
from spinal.protocols import duration

from .config import ServicesConfig
from .texts import fitting, readable, shown

#: What a name looks like, without ``.service``.  The backslash is systemd's, as in ``a\x2db``.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._:+\\-]{0,199}", re.ASCII)

#: Seconds that a question may take.
ASK_WITHIN: Final = 10.0

#: Seconds that a script may take to tell how its service is, and how many are asked at once.
STATUS_WITHIN: Final = 5.0
AT_ONCE: Final = 4

#: Most services that one answer gives.
MOST: Final = 300

Verb = Literal["start", "stop", "restart", "enable", "disable"]
State = Literal["running", "stopped", "failed", "unknown"]
ServiceName = Annotated[str, Meta(min_length=1, max_length=200)]


@dataclass(frozen=True, slots=True)
class Service:
    """A service in a list."""

    name: str
    state: State
    #: Whether it starts with the machine; none if it cannot be told.
    enabled: bool | None
    about: str = ""


@dataclass(frozen=True, slots=True)
class Services:
    """The services that were asked for."""

    #: ``systemd`` or ``sysv``.
    manager: str
    services: list[Service]
    more: bool


@dataclass(frozen=True, slots=True)
class Detail:
    """What is known of one service."""

    name: str
    state: State
    enabled: bool | None
    about: str
    #: What the manager says of it, in its own words.
    says: dict[str, str]
    #: Whether this agent may change it.
    changeable: bool


class Manager(Protocol):
    """What looks after services."""

    #: How it is called.
    name: str

    async def all(self) -> list[Service]:
        """Give all services, by name."""
        ...

    async def show(self, name: str) -> tuple[Service, dict[str, str]]:
        """Tell about one, which is known to be there."""
        ...

    async def names(self) -> set[str]:
        """Give the names of all services."""
        ...

    async def change(self, name: str, verb: Verb, timeout: float) -> None:
        """Do something to one, which is known to be there.

        Raises:
            CommandFailed: it did not work.
            TimeoutError: it took too long.
        """
        ...


def manager(config: ServicesConfig, booted: Path = Path("/run/systemd/system")) -> Manager | None:
    """Find what looks after services here; ``booted`` is there where systemd runs (sd_booted(3))."""
    scripts = Path(config.scripts)
    match config.manager:
        case "systemd":
            return Systemd()
        case "sysv":
            return SysV(scripts)
        case "none":
            return None
        case "auto":
            if booted.is_dir():
                return Systemd()
            return SysV(scripts) if scripts.is_dir() else None


# -- systemd

_STATES: Final[Mapping[str, State]] = {
    "active": "running",
    "reloading": "running",
    "activating": "running",
    "inactive": "stopped",
    "deactivating": "stopped",
    "failed": "failed",
}
_ENABLED: Final[Mapping[str, bool]] = {
    "enabled": True,
    "enabled-runtime": True,
    "disabled": False,
    "masked": False,
    "masked-runtime": False,
}

#: What is told of a unit, beside its state.
_PROPERTIES: Final = (
    "Description",
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "NRestarts",
    "Result",
    "ActiveEnterTimestamp",
    "MemoryCurrent",
    "TasksCurrent",
    "FragmentPath",
)

#: What stands before units that are not well; \u00d7 is a multiplication sign.
_MARKS: Final = "\u25cf\u00d7\u25cb* "

_SYSTEMCTL: Final = ("systemctl", "--no-pager", "--no-ask-password")
_LISTED: Final = ("--type=service", "--all", "--plain", "--no-legend", "--full")


def units(text: str) -> dict[str, Service]:
    """Read ``systemctl list-units``, which does not say what starts with the machine."""
    found: dict[str, Service] = {}
    for line in text.splitlines():
        # UNIT LOAD ACTIVE SUB DESCRIPTION; some versions mark units that failed.
        words = line.lstrip(_MARKS).split(None, 4)
        if len(words) >= 4 and words[0].endswith(".service") and words[1] != "not-found":
            about = words[4].strip() if len(words) == 5 else ""
            name = words[0].removesuffix(".service")
            state: State = _STATES.get(words[2], "unknown")
            found[name] = Service(name, state, None, readable(about, 200))
    return found


def unit_files(text: str) -> dict[str, bool | None]:
    """Read ``systemctl list-unit-files``: name -> whether it starts with the machine."""
    found: dict[str, bool | None] = {}
    for line in text.splitlines():
        words = line.split()
        # A template is no service before it has a name behind its @.
        if len(words) >= 2 and words[0].endswith(".service") and "@." not in words[0]:
            found[words[0].removesuffix(".service")] = _ENABLED.get(words[1])
    return found


def properties(text: str) -> dict[str, str]:
    """Read ``systemctl show``: what is set."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: readable(value, 500) for key, _, value in pairs if value not in ("", "[not set]")}


class Systemd:
    """systemd, through systemctl(1)."""

    name = "systemd"

    async def all(self) -> list[Service]:
        """Give all services that are loaded or have a file, by name."""
        loaded = units(await _ask([*_SYSTEMCTL, "list-units", *_LISTED]))
        files = unit_files(await _ask([*_SYSTEMCTL, "list-unit-files", *_LISTED]))
        return [
            # What has not been asked for since the start is not loaded.
            replace(loaded.get(name, Service(name, "stopped", None)), enabled=files.get(name))
            for name in sorted({*loaded, *files})
        ]

    async def names(self) -> set[str]:
        """Give the names of all services."""
        return {one.name for one in await self.all()}

    async def show(self, name: str) -> tuple[Service, dict[str, str]]:
        """Tell about one."""
        argv = [*_SYSTEMCTL, "show", f"--property={','.join(_PROPERTIES)}", "--", _unit(name)]
        says = properties(await _ask(argv))
        state: State = _STATES.get(says.get("ActiveState", ""), "unknown")
        enabled = _ENABLED.get(says.get("UnitFileState", ""))
        return Service(name, state, enabled, says.get("Description", "")), says

    async def change(self, name: str, verb: Verb, timeout: float) -> None:
        """Do something to one."""
        await run(self.argv(name, verb), check=True, timeout=timeout)

    @staticmethod
    def argv(name: str, verb: Verb) -> list[str]:
        """Give the command that changes a service."""
        return [*_SYSTEMCTL, verb, "--", _unit(name)]


def _unit(name: str) -> str:
    return f"{name}.service"


async def _ask(argv: Sequence[str]) -> str:
    done = await run(argv, check=True, timeout=ASK_WITHIN, limit=4 * 1024 * 1024)
    return done.text


# -- System V

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


# -- operations


class Desk:
    """The services as callers see them: what they may know and change."""

    def __init__(self, config: ServicesConfig, found: Manager | None) -> None:
        self._config = config
        self._manager = found

    @property
    def manager(self) -> Manager:
        """What looks after services.

        Raises:
            Refused: nothing does.
        """
        if self._manager is None:
            raise Refused("this machine has no service manager that this agent knows")
        return self._manager

    def changeable(self, name: str) -> bool:
        """Tell whether the configuration lets this service be changed."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._config.change)

    async def known(self, name: str) -> str:
        """Give the name of a service that is there.

        Raises:
            Refused: it is not.
        """
        bare = name.removesuffix(".service")
        if not NAME.fullmatch(bare):
            raise Refused(f"{shown(name)} is not the name of a service")
        if bare not in await self.manager.names():
            raise Refused(f"there is no service {shown(name)}")
        return bare

    async def list(self, match: str, state: str, limit: int) -> Services:
        """Give the services that are meant."""
        found = [
            one
            for one in await self.manager.all()
            if fnmatch.fnmatchcase(one.name, match) and state in ("", one.state)
        ]
        return Services(self.manager.name, *fitting(found, limit))

    async def show(self, name: str) -> Detail:
        """Tell about one."""
        name = await self.known(name)
        found, says = await self.manager.show(name)
        return Detail(name, found.state, found.enabled, found.about, says, self.changeable(name))

    async def change(self, name: str, verb: Verb) -> Service:
        """Do something to one, and tell how it is then.

        Raises:
            Refused: there is no such service, or the configuration does not let it be changed.
            CommandFailed: it did not work.
        """
        name = await self.known(name)
        if not self.changeable(name):
            raise Refused(
                f"{name} may not be changed: services.change in the configuration says which may"
            )
        try:
            await self.manager.change(name, verb, self._config.timeout)
        except CommandFailed as exc:
            raise CommandFailed(one_line(str(exc)), exc.code) from exc
        found, _ = await self.manager.show(name)
        return found


def offer(agent: Agent, config: ServicesConfig, desk: Desk) -> None:
    """Offer what the configuration allows."""

    @agent.op("/machine/services/list", effects="reads", timeout="2m", slots=2)
    async def list(
        match: Annotated[str, Meta(min_length=1, max_length=200)] = "*",
        state: Literal["", "running", "stopped", "failed", "unknown"] = "",
        limit: Annotated[int, Meta(ge=1, le=MOST)] = 100,
    ) -> Services:
        """List the services of the machine.

        Args:
            match: pattern for their names, such as postgres*.
            state: only those that are so.
            limit: how many.
        """
        return await desk.list(match, state, limit)

    @agent.op("/machine/services/show", effects="reads")
    async def show(name: ServiceName) -> Detail:
        """Tell about a service.

        Args:
            name: its name, such as nginx.
        """
        return await desk.show(name)

    if not config.change:
        return
    for verb in VERBS:
        _offer_change(agent, config, desk, verb)


#: What may be done to a service -> what that is called.
VERBS: Final[Mapping[Verb, str]] = {
    "start": "Start a service",
    "stop": "Stop a service",
    "restart": "Restart a service",
    "enable": "Have a service start with the machine",
    "disable": "Have a service not start with the machine",
}


def _offer_change(agent: Agent, config: ServicesConfig, desk: Desk, verb: Verb) -> None:
    async def change(name: ServiceName) -> Service:
        return await desk.change(name, verb)

    change.__doc__ = f"""{VERBS[verb]}, and tell how it is then.

    Args:
        name: its name, such as nginx.
    """
    agent.op(
        f"/machine/services/{verb}",
        effects="writes",
        timeout=config.timeout + 2 * ASK_WITHIN,
    )(change)
