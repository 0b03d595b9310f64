"""Platforms of real processes, and stages on which their stories play."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGTERM
from typing import Any, NamedTuple

import psutil
import pytest
import pytest_asyncio

from spinal.bus import Client
from spinal.bus.errors import CallError
from spinal.bus.server import KINDS, available
from spinal.protocols import Problem
from spinal.testing import Platform, Process, eventually, platform

from ..faults.proxy import Proxy

HERE = Path(__file__).parent
READ, WRITE = "/story/read", "/story/write"
#: Seconds that something which takes a moment may take on a machine that is busy with others.
SOON = 30.0


@pytest.fixture(scope="module", params=list(KINDS))
def server(request: pytest.FixtureRequest) -> str:
    kind = str(request.param)
    reason = available(kind)
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    return kind


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(server: str) -> AsyncIterator[Platform]:
    async with platform(server) as found:
        yield found


class Note(NamedTuple):
    """One line of a ledger."""

    pid: int
    op: str
    n: int
    what: str


@dataclass
class Stage:
    """Where one story plays: its workers are at a place of its own, with a ledger of their own."""

    platform: Platform
    folder: Path
    workers: list[Process] = field(default_factory=list[Process])

    @property
    def place(self) -> str:
        return f"/{self.folder.name}"

    @property
    def client(self) -> Client:
        """The owner's client, whose calls go to the workers of this story."""
        return self.at(self.platform.client)

    def at(self, client: Client) -> Client:
        """Make a client's calls go to the workers of this story."""
        return client.options(place=self.place, timeout=120)

    async def start(self, count: int = 1, **variables: str) -> list[Process]:
        """Start equal workers, each in a process of its own, and wait until they can be called."""
        environ = {**self.platform.environ, "STORY_FOLDER": str(self.folder), **variables}
        command = (sys.executable, "-m", "spinal", "agent", "run", str(HERE / "worker.py"))
        before = len(await self.known())
        fresh = [
            await self.platform.start(*command, "--json", "--place", self.place, environ=environ)
            for _ in range(count)
        ]
        self.workers.extend(fresh)
        for worker in fresh:
            await worker.line(lambda line: '"ready"' in line)

        async def all_known() -> bool:
            return len(await self.known()) == before + count

        await eventually(all_known, SOON, f"{count} workers are known")
        return fresh

    async def known(self) -> list[dict[str, Any]]:
        """The workers of this story, as the dispatcher knows them."""
        return [
            agent
            for agent in await self.platform.client.agents()
            if agent["place"] == {"site": self.place}
            and agent["state"] == "available"
            and agent["ops"]
        ]

    def ask(self, op: str, client: Client | None = None, **arguments: Any) -> asyncio.Task[Any]:
        """Make a call in a task of its own; it gives the value, or the problem."""

        async def call() -> Any:
            try:
                return await (client or self.client).call(op, **arguments)
            except CallError as error:
                return error.problem

        return asyncio.create_task(call())

    def ledger(self, what: str = "begun") -> list[Note]:
        """What was written down."""
        try:
            lines = (self.folder / "ledger").read_text().splitlines()
        except FileNotFoundError:
            return []
        notes = [Note(**json.loads(line)) for line in lines]
        return [note for note in notes if note.what == what]

    def shares(self) -> list[int]:
        """How many calls each worker has begun."""
        counts = Counter(note.pid for note in self.ledger())
        return sorted(counts[worker.pid] for worker in self.workers)

    async def begun(self, count: int) -> None:
        """Wait until so many calls have begun."""
        await eventually(lambda: len(self.ledger()) >= count, SOON, f"{count} calls have begun")

    def open(self, gate: str) -> None:
        """Let those end that wait for a gate."""
        (self.folder / gate).touch()

    async def end(self) -> None:
        """End the workers in good order."""
        for worker in self.workers:
            worker.kill(SIGTERM)
        for worker in self.workers:
            await worker.wait()


@asynccontextmanager
async def stage(running: Platform, folder: Path) -> AsyncGenerator[Stage]:
    folder.mkdir()
    found = Stage(running, folder)
    try:
        yield found
    finally:
        await found.end()


@asynccontextmanager
async def on_a_cable(running: Platform) -> AsyncGenerator[tuple[Client, Proxy]]:
    """Give a client of the owner, and the cable to the server that it hangs on."""
    async with Proxy(lambda: running.home.endpoint).open() as cable:
        credentials = replace(running.home.credentials(), port=cable.port)
        # Its home would tell it of the way around the cable.
        async with Client(credentials=replace(credentials, home=None)) as client:
            yield client, cable


def parts(running: Platform) -> dict[str, list[psutil.Process]]:
    """The processes below ``spinal up``: the dispatcher's, and the server's where it has its own."""
    found: dict[str, list[psutil.Process]] = {"dispatcher": [], "server": []}
    for child in psutil.Process(running.up.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            own = "spinal.dispatcher" in child.cmdline()
            found["dispatcher" if own else "server"].append(child)
    return found


async def restarted(running: Platform, since: int, part: str, within: float = SOON) -> None:
    """Wait until ``spinal up`` has said, after so many lines, that a part is back."""

    def said() -> bool:
        return any(
            event["event"] == "restarted" and event["part"] == part
            for event in map(json.loads, running.up.lines[since:])
        )

    await eventually(said, within, f"{part} is back")


def reason(answer: Any) -> str:
    """Why a call failed."""
    assert isinstance(answer, Problem), f"it did not fail: {answer}"
    assert "\n" not in answer.text
    return answer.reason
