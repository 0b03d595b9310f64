"""The load of the machine: how much its processors do, smoothed."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Final

import psutil
import structlog

log = structlog.get_logger()

#: Seconds between two looks.
EVERY: Final = 2.0


class Load:
    """How busy the processors are, from 0 to 1.

    Args:
        smooth: seconds after which a change has shown by two thirds.
    """

    def __init__(self, smooth: float) -> None:
        self._smooth = smooth
        #: None until two looks have been taken.
        self._value: float | None = None

    @property
    def value(self) -> float:
        """The load now; 0 until it is known."""
        return round(self._value or 0.0, 3)

    def count(self, used: float, over: float) -> None:
        """Take in what was used (0 to 1) during the last ``over`` seconds."""
        if self._value is None:
            self._value = used
        else:
            self._value += (used - self._value) * (1 - math.exp(-over / self._smooth))

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        last = await asyncio.to_thread(_times)
        while True:
            await asyncio.sleep(EVERY)
            try:
                now = await asyncio.to_thread(_times)
            except (OSError, psutil.Error) as exc:
                log.warning("load_not_measured", error=str(exc))
                continue
            idle, over = now.idle - last.idle, now.all - last.all
            if over > 0:
                self.count(min(1.0, max(0.0, 1 - idle / over)), EVERY)
            last = now


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds that the processors have spent since the start."""

    idle: float
    all: float


def _times() -> _Times:
    # Not psutil.cpu_percent(), which counts for each thread that calls it from its own last call.
    times = psutil.cpu_times()._asdict()
    # On Linux guests are counted among the users as well.
    every = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return _Times(times["idle"] + times.get("iowait", 0.0), every)
