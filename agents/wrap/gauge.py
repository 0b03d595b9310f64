"""How busy it is, by a measure of its own: a number in a file, of a program, or at a URL."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from spinal.bus.tasks import Tasks
from spinal.protocols import Json

from .. import process
from ..document import DURATION, Document, Mistake, seconds
from ..errors import AgentError, CommandFailed
from ..life import Life
from ..process import Guard
from . import output

log = structlog.get_logger()

#: Seconds between two measurements, and what one may take.
EVERY: Final = 5.0
TIMEOUT: Final = 5.0

#: Most bytes that are read for a number.
MOST: Final = 64 * 1024

#: How it stands in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "anyOf": [
        {"type": "string", "enum": ["busy"]},
        {
            "type": "object",
            "properties": {
                "file": {"type": "string", "minLength": 1, "examples": ["/proc/loadavg"]},
                "run": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "http": {
                    "type": "string",
                    "pattern": "^https?://",
                    "patternErrorMessage": "is no URL of http or https",
                },
                "field": {
                    "type": "integer",
                    "minimum": 1,
                    "description": "Which of the words is the number, from 1.",
                },
                "json": {
                    "type": "string",
                    "pattern": "^/",
                    "patternErrorMessage": "is no JSON pointer, which begins with '/'",
                    "description": "Where the number is in a JSON answer.",
                },
                "full": {
                    "type": "number",
                    "exclusiveMinimum": 0,
                    "description": "The number at which it can take no more (1).",
                },
                "every": {**DURATION, "description": "Time between two measurements (5s)."},
            },
            "additionalProperties": False,
        },
    ],
    "default": "busy",
    "description": "How busy it is: `busy` counts slots; or a number from a file, a program or a URL.",
    "examples": [{"file": "/proc/loadavg", "field": 1, "full": 4}],
}


@dataclass
class Gauge:
    """A measure, and what it last said."""

    kind: str
    what: Any
    #: Which of the words is the number.
    word: int = 1
    json: str | None = None
    full: float = 1.0
    every: float = EVERY
    folder: Path = field(default_factory=Path)
    steps: tuple[str | int, ...] = ()
    _last: float | None = None

    @classmethod
    def of(
        cls, found: Document, steps: tuple[str | int, ...], mistakes: list[Mistake]
    ) -> Gauge | None:
        """Read what fits :data:`SCHEMA`; mistakes are collected."""
        said: Mapping[str, Any] = found.value[steps[0]]
        kinds = [kind for kind in ("file", "run", "http") if kind in said]
        if len(kinds) != 1:
            has = f"{' and '.join(kinds)} stand together" if kinds else "measures nothing"
            mistakes.append(found.mistake(steps, f"{has}: write one of file, run, http"))
            return None
        if "json" in said and "field" in said:
            mistakes.append(found.mistake((*steps, "field"), "goes with words, not with json"))
            return None
        return cls(
            kinds[0],
            said[kinds[0]],
            said.get("field", 1),
            said.get("json"),
            float(said.get("full", 1.0)),
            seconds(said["every"]) if "every" in said else EVERY,
            found.folder,
            steps,
        )

    def measured(self) -> float:
        """Give the last measurement, as part of what it can take.

        Raises:
            AgentError: there was none; then the busy slots count.
        """
        if self._last is None:
            raise AgentError("its load could not be measured yet")
        return self._last

    @property
    def _program(self) -> str:
        return process.located(self.what[0], self.folder)

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say if its program or file is not here."""
        if self.kind == "run" and (why := process.unrunnable(self._program)):
            yield (*self.steps, "run"), why
        if self.kind == "file" and not Path(self.folder, self.what).exists():
            yield (*self.steps, "file"), f"{self.what} does not exist"

    @contextlib.asynccontextmanager
    async def watch(self, life: Life) -> AsyncGenerator[None]:
        """Measure at intervals for a block; the first measurement is waited for."""
        await self._measure(life.guard)
        tasks = Tasks("load")
        tasks.spawn(self._repeat(life), "load")
        try:
            yield
        finally:
            await tasks.close()

    async def _repeat(self, life: Life) -> None:
        while True:
            await asyncio.sleep(self.every)
            await self._measure(life.guard)

    async def _measure(self, guard: Guard) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                data = await self._read(guard)
            self._last = max(0.0, round(self._number(data) / self.full, 3))
        except (OSError, AgentError, CommandFailed, TimeoutError, ValueError) as exc:
            # Busy slots say enough meanwhile.
            self._last = None
            log.warning("load_not_measured", error=str(exc))

    async def _read(self, guard: Guard) -> bytes:
        match self.kind:
            case "file":
                return await asyncio.to_thread(self._read_file)
            case "run":
                ended = await process.run(
                    [self._program, *self.what[1:]],
                    cwd=self.folder,
                    check=True,
                    grace=1.0,
                    guard=guard,
                    limit=MOST,
                )
                return ended.stdout
            case _:
                import aiohttp

                try:
                    async with aiohttp.ClientSession() as session, session.get(self.what) as answer:
                        answer.raise_for_status()
                        found: bytes = await answer.content.read(MOST)
                        return found
                except aiohttp.ClientError as exc:
                    raise AgentError(f"{self.what}: {exc}") from exc

    def _read_file(self) -> bytes:
        with Path(self.folder, self.what).open("rb") as file:
            return file.read(MOST)

    def _number(self, data: bytes) -> float:
        if self.json is not None:
            found = output.Output("json", {"json": self.json}).take(data)
            return float(found)
        words = re.split(r"[\s,;]+", data.decode(errors="replace").strip())
        if len(words) < self.word:
            raise AgentError(f"{self.what}: there is no word {self.word}")
        return float(words[self.word - 1])
