"""Whether what is wrapped is well: a probe at intervals, and an agent that takes no work meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from spinal.bus.tasks import Tasks
from spinal.protocols import Json

from .. import probe
from ..document import DURATION, Document, Mistake, seconds
from ..life import Life
from ..probe import Probe

#: Seconds between two probes, and failures in a row after which it is not well, if not said.
EVERY: Final = 30.0
FAIL_AFTER: Final = 2

#: How it stands in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "type": "object",
    "properties": {
        **probe.PROPERTIES,
        "every": {**DURATION, "description": "Time between two checks (30s)."},
        "fail_after": {
            "type": "integer",
            "minimum": 1,
            "description": "Failures in a row after which no new work is taken (2).",
            "examples": [2],
        },
    },
    "additionalProperties": False,
    "description": "How to tell whether it is well; while it is not, the agent takes no new work.",
    "examples": [{"run": ["units", "--version"], "every": "30s", "fail_after": 2}],
}


@dataclass(frozen=True)
class Health:
    """What is asked, and how often."""

    probe: Probe
    every: float = EVERY
    fail_after: int = FAIL_AFTER
    steps: tuple[str | int, ...] = ()

    @classmethod
    def of(
        cls, found: Document, steps: tuple[str | int, ...], mistakes: list[Mistake]
    ) -> Health | None:
        """Read what fits :data:`SCHEMA`; mistakes are collected."""
        said: Mapping[str, Any] = found.value[steps[0]]
        try:
            asked = Probe.of(said, found.folder)
        except ValueError as exc:
            mistakes.append(found.mistake(steps, str(exc)))
            return None
        every = seconds(said["every"]) if "every" in said else EVERY
        return cls(asked, every, said.get("fail_after", FAIL_AFTER), steps)

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say if its program is not here."""
        for text in self.probe.lacks():
            yield (*self.steps, "run"), text

    @contextlib.asynccontextmanager
    async def watch(self, life: Life) -> AsyncGenerator[None]:
        """Ask at intervals for a block.

        The first answer is waited for, and counts by itself: what is broken from the start takes no
        work at all.
        """
        life.ail(await self.probe.ask(life.guard))
        tasks = Tasks("health")
        tasks.spawn(self._ask(life), "health")
        try:
            yield
        finally:
            await tasks.close()

    async def _ask(self, life: Life) -> None:
        failed = self.fail_after if life.ailment else 0
        while True:
            await asyncio.sleep(self.every)
            why = await self.probe.ask(life.guard)
            failed = failed + 1 if why else 0
            if not why or failed >= self.fail_after:
                life.ail(why)
