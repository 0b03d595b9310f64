"""One run of one fault: a platform of real processes, workers, a caller, and somebody who looks."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import psutil

from spinal.bus import Client, Home
from spinal.bus.errors import BusError, CallError
from spinal.bus.jobs import Job
from spinal.bus.registration import tell_server
from spinal.testing import Platform, Process, eventually

from ..postgres import Postgres
from .judge import Strike, Told
from .ledger import Ledger
from .model import KINDS, Asked
from .proxy import Proxy

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
#: Agents at work.
WORKERS = 3
#: Seconds between two looks of whoever looks, and for which one look waits.
LOOK = 0.05
PATIENCE = 0.5
#: Seconds after which a submission that was not taken is tried again.
AGAIN = 0.2

#: Seconds for which a strike looks for a worker that is at work.
FIND = 10.0

_SAFE = KINDS["safe long"].op


@dataclass
class Worker:
    """An agent in a process of its own, and its cable if it has one."""

    name: str
    process: Process
    address: str
    cable: Proxy | None = None


class Caller:
    """Submits the jobs of a script, at a steady rate, as a program that does not give up does."""

    def __init__(
        self,
        clients: Sequence[Client],
        script: Sequence[Asked],
        rate: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._clients = clients
        self._script = script
        self._rate = rate
        self.told: dict[str, Told] = {}
        #: Why submissions were not taken, and how often.
        self.refused: Counter[str] = Counter()
        #: The same in words, and why jobs have not ended.
        self.texts: set[str] = set()
        #: When a job was accepted last.
        self.accepted_at = 0.0
        self._jobs: dict[str, Job] = {}
        self._begun = 0
        self._allowed = 0.0

    async def run(self) -> None:
        """Submit all, and see all through."""
        async with asyncio.TaskGroup() as group:
            for number, asked in enumerate(self._script):
                while number >= self._allowed * len(self._script):
                    await asyncio.sleep(LOOK)
                group.create_task(self._one(asked, number), name=asked.key)
                self._begun += 1
                await asyncio.sleep(1 / self._rate)

    def allow(self, part: float) -> None:
        """Let so much of the script be asked for, so that something is left for later strikes."""
        self._allowed = part

    async def reached(self, part: float) -> None:
        """Wait until so much of the script was asked for."""
        await eventually(lambda: self._begun >= part * len(self._script), 600.0, "the next strike")

    async def _one(self, asked: Asked, number: int) -> None:
        told = Told(asked=self._now())
        job = await self._submit(asked, number)
        told.accepted = self.accepted_at = self._now()
        told.ids.add(job.id)
        self.told[asked.key] = told
        self._jobs[asked.key] = job
        try:
            if asked.twice:
                told.ids.add((await self._submit(asked, number + 1)).id)
            if asked.kind.cancelled:
                await asyncio.sleep(asked.delay + asked.patience)
                await self._until_answered(job.cancel)
            row = await self._until_answered(job.wait)
        except CallError as error:
            assert error.reason == "unknown-job", error
            told.known = False
            return
        told.ended = self._now()
        told.state, told.reason, told.value = _read(row)

    async def _submit(self, asked: Asked, turn: int) -> Job:
        client = self._clients[turn % len(self._clients)]
        client = client.options(key=asked.key, timeout=10, **asked.options)
        while True:
            try:
                return await client.submit(asked.kind.op, **asked.args)
            except CallError as error:
                self.refused[error.reason] += 1
                self.texts.add(f"{error.reason}: {error}")
                await asyncio.sleep(AGAIN)

    async def _until_answered(self, ask: Any) -> Any:
        while True:
            try:
                return await ask()
            except CallError as error:
                if error.reason == "unknown-job":
                    raise
                await asyncio.sleep(AGAIN)

    async def audit(self) -> dict[str, set[str]]:
        """Ask for every job again, and give the ids of all that are stored, by key."""
        await asyncio.gather(*(self._look_at(key, job) for key, job in self._jobs.items()))
        for asked in self._script:
            # After all that happened its key must still give the same job.
            if asked.twice and asked.key in self.told:
                self.told[asked.key].ids.add((await self._submit(asked, 0)).id)
        stored: dict[str, set[str]] = {}
        async for row in self._clients[0].jobs():
            stored.setdefault(row["key"], set()).add(row["id"])
        return stored

    async def _look_at(self, key: str, job: Job) -> None:
        told = self.told[key]
        try:
            row = await job.info()
        except CallError as error:
            if error.reason != "unknown-job":
                raise
            told.known = False
            return
        told.later = row["state"]
        if told.ended is None:
            told.state, told.reason, told.value = _read(row)
            self.texts.update(f"{key}: {line}" for line in (str(row), *await job.why()))


def _read(row: dict[str, Any]) -> tuple[str, str | None, object]:
    problem = row.get("problem")
    return row["state"], problem["reason"] if problem else None, row.get("value")


@dataclass
class Scene:
    """Everything that a fault may strike, and what was measured."""

    platform: Platform
    ledger: Ledger
    dice: Random
    caller: Caller
    wired: bool
    #: What a fault needs to be turned on and off: a file that a process under it reads, a folder.
    lever: Path
    #: ``spinal up`` of the other dispatcher and their database, where there are several.
    other: Process | None = None
    database: Postgres | None = None
    workers: list[Worker] = field(default_factory=list[Worker])
    strikes: list[Strike] = field(default_factory=list[Strike])
    #: The longest of each measure, in seconds.
    measures: dict[str, float] = field(default_factory=dict[str, float])
    cables: AsyncExitStack = field(default_factory=AsyncExitStack)
    _answers: list[float] = field(default_factory=list[float])
    _hired: int = 0

    # -- workers

    async def hire(self, count: int = 1) -> None:
        """Start workers and wait until they can be called."""
        fresh = [await self._start() for _ in range(count)]
        for process, name, cable in fresh:
            ready = json.loads(await process.line(lambda line: '"ready"' in line))
            self.workers.append(Worker(name, process, ready["agent"], cable))

        async def known() -> bool:
            return all([await self.knows(worker) for worker in self.workers[-count:]])

        await eventually(known, 30.0, "the new workers are known")

    async def _start(self) -> tuple[Process, str, Proxy | None]:
        self._hired += 1
        name, cable = f"w{self._hired}", None
        home = self.platform.home
        environ = {
            **self.platform.environ,
            "FAULTS_LEDGER": str(self.ledger.file),
            "FAULTS_WORKER": name,
            "PYTHONPATH": f"{self.platform.environ['PYTHONPATH']}:{ROOT}",
        }
        if self.wired:
            cable = await self.cables.enter_async_context(Proxy(lambda: home.endpoint).open())
            home.add_account(name, "agent")
            await tell_server(home, name)
            del environ["SPINAL_HOME"]
            environ |= {
                "SPINAL_ADDRESS": f"{name}@{home.domain}",
                "SPINAL_PASSWORD_FILE": str(home.path / "secrets" / f"{name}.password"),
                "SPINAL_CA": str(home.ca),
                "SPINAL_SERVER": f"127.0.0.1:{cable.port}",
                "SPINAL_DISPATCHER": " ".join(home.dispatchers),
                "SPINAL_UPLOAD": " ".join(home.uploads),
            }
        command = (sys.executable, "-m", "spinal", "agent", "run", str(HERE / "workers.py"))
        process = await self.platform.start(*command, "--json", environ=environ)
        return process, name, cable

    async def knows(self, worker: Worker) -> bool:
        """Ask whether the dispatcher believes that a worker can be given work."""
        try:
            agents = await self.platform.client.options(timeout=PATIENCE).agents()
        except CallError:
            return False
        return any(a["agent"] == worker.address and a["state"] == "available" for a in agents)

    async def victim(self) -> Worker:
        """Give a worker, drawn by the seed; if there is one, one at something safe and long."""
        end = time.monotonic() + FIND
        while not (busy := self._at_work()) and time.monotonic() < end:
            await asyncio.sleep(LOOK)
        return self.dice.choice(busy or self.workers)

    def _at_work(self) -> list[Worker]:
        going = Counter[str]()
        for line in self.ledger.read():
            if line.op == _SAFE:
                going[line.worker] += 1 if line.what == "begun" else -1
        return [worker for worker in self.workers if going[worker.name] > 0]

    async def dismiss(self, worker: Worker) -> None:
        """Forget a worker that ended, and start another one."""
        self.workers.remove(worker)
        await worker.process.wait()
        await self.hire()

    # -- measuring

    def strike(self, worker: Worker | None = None) -> Strike:
        """Note that the fault strikes now; whoever strikes says when it is over."""
        strike = Strike(time.monotonic(), worker=worker.name if worker else "")
        self.strikes.append(strike)
        return strike

    def measure(self, what: str, seconds: float) -> None:
        """Keep the longest."""
        self.measures[what] = max(seconds, self.measures.get(what, 0.0))

    async def noticed(self, strike: Strike, worker: Worker, within: float = 60.0) -> None:
        """Wait until the dispatcher knows that a worker is not there, and measure it."""

        async def gone() -> bool:
            agents = await self.platform.client.options(timeout=PATIENCE).agents()
            return not any(
                a["agent"] == worker.address and a["state"] == "available" for a in agents
            )

        await eventually(gone, within, f"{worker.name} is not there")
        self.measure("seen", time.monotonic() - strike.at)

    async def back(self, strike: Strike, begin: float | None = None, within: float = 90.0) -> None:
        """Wait until the dispatcher answers again, and measure how long it did not.

        It counts as back once it answered for two seconds on end; the longest gap is the measure.
        """
        begin = strike.at if begin is None else begin
        end = time.monotonic() + within
        while True:
            before = [at for at in self._answers if at < begin][-1:]
            since = before + [at for at in self._answers if at >= begin]
            now = time.monotonic()
            gaps = [b - a for a, b in pairwise(since)]
            last = max(
                (at for at, gap in zip(since, gaps, strict=False) if gap > 0.5), default=begin
            )
            steady = [at for at in since if at > last]
            if now - begin > 3.0 and steady and since[-1] - steady[0] > 2.0 and now - since[-1] < 1:
                self.measure("back", max(gaps))
                return
            assert now < end, f"the dispatcher is not back within {within:g} s"
            await asyncio.sleep(LOOK)

    async def look(self) -> None:
        """Ask the dispatcher something all the time.

        Over a fresh stream after each failure: what is measured is when the dispatcher is back, not
        when the turn of one of its many clients comes to connect again.
        """
        while True:
            try:
                async with Client(self.platform.home.path) as client:
                    asking = client.options(timeout=PATIENCE)
                    while True:
                        await asking.ask_dispatcher("/spinal/status")
                        self._answers.append(time.monotonic())
                        await asyncio.sleep(LOOK)
            except (CallError, BusError):
                await asyncio.sleep(LOOK)


@asynccontextmanager
async def scene(
    platform: Platform,
    folder: Path,
    script: Sequence[Asked],
    rate: float,
    seed: int,
    *,
    wired: bool = False,
    database: Postgres | None = None,
) -> AsyncGenerator[Scene]:
    """Put workers and a caller onto a platform; with a database, another dispatcher as well."""
    async with AsyncExitStack() as stack:
        clients, other = [platform.client], None
        if database is not None:
            other, client = await _other_dispatcher(platform, folder / "other", database)
            clients.append(await stack.enter_async_context(client))
        caller = Caller(clients, script, rate)
        found = Scene(
            platform,
            Ledger(folder / "ledger"),
            Random(seed),
            caller,
            wired,
            folder / "lever",
            other,
            database,
            cables=stack,
        )
        await found.hire(WORKERS)
        looking = asyncio.create_task(found.look())
        try:
            yield found
        finally:
            looking.cancel()
            await asyncio.wait([looking])
            for worker in found.workers:
                worker.process.kill()
            if other is not None:
                await _end(other)


async def _other_dispatcher(
    platform: Platform, folder: Path, database: Postgres
) -> tuple[Process, Client]:
    """Start a dispatcher in a home of its own on the same store, and give a client of it."""
    first = platform.home
    host, port = first.endpoint
    first.add_account("dispatcher2", "dispatcher")
    await tell_server(first, "dispatcher2")
    home = Home.create(
        folder,
        server=f"{host}:{port}",
        domain=first.domain,
        authority=first.ca,
        store=database.url(),
    )
    for name, role in (("dispatcher2", "dispatcher"), ("owner", "owner")):
        home.add_account(name, role, first.password(name))
    environ = {**platform.environ, "SPINAL_HOME": str(folder)}
    process = await platform.start(sys.executable, "-m", "spinal", "up", "--json", environ=environ)
    await process.line(lambda line: '"ready"' in line)
    await eventually(lambda: home.dispatcher in first.dispatchers, 30.0, "each knows the other")
    credentials = replace(home.credentials("owner"), dispatchers=(home.dispatcher,))
    return process, Client(credentials=credentials)


async def _end(up: Process) -> None:
    """End ``spinal up`` whatever was done to it and its children."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(up.pid).children(recursive=True):
            process.kill()
    up.kill()
    await up.wait()
