"""The services of the machine: systemd's where it runs, else the scripts in ``/etc/init.d``.

A name that a caller gives never becomes more than it is: it must look like one, and be the name of
a service that is there, before a program gets it as an argument.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta

from spinal.agents.agent import Agent
from spinal.agents.errors import Refused
from spinal.agents.results import fitting

from .config import ServicesConfig
from .manager import NAME, Manager, Service, State, Verb
from .systemd import ASK_WITHIN, Systemd
from .sysv import SysV
from .texts import shown

#: Most services that one answer gives.
MOST: Final = 300

ServiceName = Annotated[str, Meta(min_length=1, max_length=200)]


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
        await self.manager.change(name, verb, self._config.timeout)
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
