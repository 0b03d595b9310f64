"""The load of the machine: how much its processors do, smoothed."""

from __future__ import annotations

import asyncio
import math
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
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(psutil.cpu_percent)  # Counts from here.
        last = loop.time()
        while True:
            await asyncio.sleep(EVERY)
            try:
                percent = await asyncio.to_thread(psutil.cpu_percent)
            except (OSError, psutil.Error) as exc:
                log.warning("load_not_measured", error=str(exc))
                continue
            now = loop.time()
            self.count(min(1.0, percent / 100), now - last)
            last = now
