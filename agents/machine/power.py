"""Reboot and shutdown: off unless the configuration allows them, and then in two steps.

The first call does nothing but tell what would end, and gives a code; the second one, by the same
caller within a minute and with that code, does it.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import psutil
from msgspec import Meta

from spinal.agents.agent import Agent
from spinal.agents.errors import CommandFailed, Refused
from spinal.agents.job import Job
from spinal.agents.results import fitting
from spinal.protocols import SpinalError
from spinal.protocols import address as addresses

from .config import Config, Power
from .files import when
from .services import Desk
from .texts import readable, shown

#: Seconds that a code is good for.
GOOD_FOR: Final = 60.0

#: Most codes that are out at once.
MAX_CODES: Final = 100

#: Seconds that the command may take to set things going.
WITHIN: Final = 30.0

Action = Literal["reboot", "shutdown"]

#: Action -> the command, where systemd runs and elsewhere.
_COMMANDS: Final[Mapping[Action, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "reboot": (("systemctl", "reboot"), ("shutdown", "-r", "now")),
    "shutdown": (("systemctl", "poweroff"), ("shutdown", "-h", "now")),
}


def command(action: Action, power: Power, booted: Path = Path("/run/systemd/system")) -> list[str]:
    """Give the command that does it on this platform, or the one of the configuration."""
    systemd, other = _COMMANDS[action]
    return list(power.command or (systemd if booted.is_dir() else other))


class Codes:
    """Codes for one use, each bound to an action and a caller.

    Args:
        clock: seconds, growing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._out: dict[tuple[str, str], tuple[str, float]] = {}

    def make(self, action: str, caller: str) -> str:
        """Give a code; an earlier one for the same is void.

        Raises:
            Refused: too many are out.
        """
        now = self._clock()
        self._out = {key: kept for key, kept in self._out.items() if kept[1] > now}
        if len(self._out) >= MAX_CODES and (action, caller) not in self._out:
            raise Refused("too many callers are about to do that: wait a minute")
        code = secrets.token_hex(8)
        self._out[action, caller] = code, now + GOOD_FOR
        return code

    def take(self, action: str, caller: str, code: str) -> None:
        """Use a code up.

        Raises:
            Refused: it is not the one, or its time is up; it is void then.
        """
        made, until = self._out.pop((action, caller), ("", 0.0))
        if not hmac.compare_digest(made.encode(), code.encode("utf-8", "replace")) or not made:
            raise Refused(f"{shown(code)} is not the code: call without one for another")
        if self._clock() >= until:
            raise Refused("the code was good for a minute: call without one for another")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is logged in."""

    name: str
    terminal: str
    host: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is about to happen, or has been set going."""

    action: Action
    #: Whether it has been set going.
    done: bool
    #: To be given as ``confirm`` within a minute; empty once it is done.
    confirm: str
    #: What will run, or has.
    command: list[str]
    uptime: int
    users: list[User]
    #: Services that run; the first ones.  Told beforehand, as are the users.
    services: list[str]


def _users() -> list[User]:
    found = (
        User(
            readable(one.name, 100),
            readable(one.terminal or "", 100),
            readable(one.host or "", 200),
            when(one.started),
        )
        for one in psutil.users()
    )
    return fitting(found, 100, 8 * 1024)[0]


async def _services(desk: Desk) -> list[str]:
    try:
        found = await desk.list("*", "running", 300)
    except (SpinalError, TimeoutError):
        return []  # They are told for information; there may be no manager at all.
    return fitting((one.name for one in found.services), 100, 8 * 1024)[0]


def offer(agent: Agent, config: Config, desk: Desk) -> None:
    """Offer what the configuration allows."""
    codes = Codes()
    switches: Mapping[Action, Power | None] = {
        "reboot": config.reboot,
        "shutdown": config.shutdown,
    }
    for action, power in switches.items():
        if power is not None:
            _offer(agent, action, power, codes, desk)


_ABOUT: Final[Mapping[Action, str]] = {
    "reboot": "Start the machine anew",
    "shutdown": "Switch the machine off",
}


def _offer(agent: Agent, action: Action, power: Power, codes: Codes, desk: Desk) -> None:
    async def act(job: Job, confirm: Annotated[str, Meta(max_length=100)] = "") -> Outlook:
        argv = command(action, power)
        caller = addresses.bare(job.caller)
        uptime = int(time.time() - psutil.boot_time())
        if not confirm:
            if shutil.which(argv[0]) is None:
                raise Refused(f"{argv[0]} is not on this machine: set power.{action}.command")
            users, services = await asyncio.to_thread(_users), await _services(desk)
            code = codes.make(action, caller)
            return Outlook(action, False, code, argv, uptime, users, services)
        codes.take(action, caller, confirm)
        done = await job.run(argv, timeout=WITHIN)
        if done.code:
            said = readable(done.stderr or done.stdout, 300).strip()
            raise CommandFailed(f"{argv[0]} ended with exit code {done.code}: {said}", done.code)
        return Outlook(action, True, "", argv, uptime, [], [])

    act.__doc__ = f"""{_ABOUT[action]}: the first call tells what that ends, the second one does it.

    Args:
        confirm: the code that the first call gave, within a minute.
    """
    agent.op(f"/machine/{action}", effects="deletes", timeout="2m", slots=1)(act)
