"""The services of systemd, through systemctl(1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from spinal.agents.process import run

from .manager import Service, State, Verb
from .texts import readable

#: Seconds that a question may take.
ASK_WITHIN: Final = 10.0

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
