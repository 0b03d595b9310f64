"""How the machine is: a few numbers, each with its limit.

A machine that is not well stays within reach: whoever wants to look after it needs the agent most
when its disk is full.  So a limit that is exceeded shows in the load, which is then at least 1 and
puts the machine behind all others, and in ``/machine/health``.  Only a limit that the
configuration calls fatal takes the agent off: it is unhealthy then and refuses all work.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil
import structlog

from spinal.agents.agent import Agent
from spinal.agents.life import Life
from spinal.agents.load import cpu_count

from .config import HealthConfig, Limit
from .glance import WITHIN, Glance
from .texts import readable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Check:
    """One number and its limit."""

    name: str
    ok: bool
    #: None: it could not be told in time, which is not well.
    value: float | None
    limit: float
    unit: str
    #: Whether the agent takes no work while it is exceeded.
    fatal: bool


@dataclass(frozen=True, slots=True)
class Report:
    """How the machine is."""

    healthy: bool
    checks: list[Check]
    #: What it advertises.
    load: float

    @property
    def fatal(self) -> str:
        """Why the agent takes no work; empty while it does."""
        return "; ".join(_words(one) for one in self.checks if one.fatal and not one.ok)


def _words(check: Check) -> str:
    if check.value is None:
        return f"{check.name} does not answer"
    return f"{check.name} is at {check.value:g} {check.unit}, the limit is {check.limit:g}"


class Health:
    """What is looked at, and how it was at the last look.

    Args:
        config: what, how often, and the limits.
        within: seconds that a look may take.
    """

    def __init__(self, config: HealthConfig, within: float = WITHIN) -> None:
        self._every = config.every
        self._within = within
        self._looks: list[tuple[str, str, Limit, Glance[float]]] = []
        for folder in config.folders:
            self._add(f"disk {folder}", "%", config.disk, _Disk(folder))
        self._add("memory", "%", config.memory, lambda: psutil.virtual_memory().percent)
        self._add("swap", "%", config.swap, lambda: psutil.swap_memory().percent)
        self._add("load", "per processor", config.load, _load_average)
        self._add("clock", "s", config.clock, clock_error)
        #: Those that were exceeded at the last look.
        self.ill: tuple[str, ...] = ()

    def _add(self, name: str, unit: str, limit: Limit | None, look: Callable[[], float]) -> None:
        if limit is not None:
            name = readable(name, 200)
            self._looks.append((name, unit, limit, Glance(look, f"looks at {name}", self._within)))

    async def checks(self) -> list[Check]:
        """Look at everything, now."""
        return await asyncio.gather(*(self._check(*look) for look in self._looks))

    async def _check(self, name: str, unit: str, limit: Limit, glance: Glance[float]) -> Check:
        value: float | None = None
        try:
            value = round(await glance.ask(), 3)
        except TimeoutError:
            pass  # It hangs: the check says so.
        except (OSError, psutil.Error) as exc:
            log.warning("health_not_measured", check=name, error=str(exc))
        ok = value is not None and value <= limit.limit
        return Check(name, ok, value, limit.limit, unit, limit.fatal)

    async def watch(self, life: Life) -> None:
        """Look again and again, until cancelled, and tell the life what is fatal."""
        while True:
            checks = await self.checks()
            ill = tuple(one.name for one in checks if not one.ok)
            if ill != self.ill:
                told = "; ".join(_words(one) for one in checks if not one.ok)
                log.warning("machine_unhealthy" if ill else "machine_healthy", why=told)
                self.ill = ill
            life.ail(Report(not ill, checks, 0).fatal)
            await asyncio.sleep(self._every)


class _Disk:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self) -> float:
        return float(psutil.disk_usage(self._folder).percent)


def _load_average() -> float:
    return os.getloadavg()[1] / cpu_count()


#: Where maxerror, in microseconds, stands in struct timex (adjtimex(2)) with 64-bit longs.
_MAX_ERROR: Final = "@i4xqqq"


def clock_error() -> float:
    """Give how many seconds the clock may be wrong; 16 if nothing sets it by others.

    Raises:
        OSError: the system does not tell.
    """
    timex = ctypes.create_string_buffer(512)
    try:
        asked = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except AttributeError as exc:
        raise OSError("this system does not tell how exact its clock is") from exc
    if asked < 0:
        raise OSError(ctypes.get_errno(), "adjtimex")
    return float(struct.unpack_from(_MAX_ERROR, timex.raw)[3]) / 1e6


def offer(agent: Agent, health: Health, load: Callable[[], float]) -> None:
    """Offer the look at the machine."""

    @agent.op("/machine/health", effects="reads")
    async def look() -> Report:
        """Tell whether the machine is well: each check with its value and its limit."""
        checks = await health.checks()
        return Report(all(one.ok for one in checks), checks, load())
