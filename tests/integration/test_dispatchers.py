"""Two dispatchers of real processes on one PostgreSQL: one is killed or stopped, and all jobs end.

The first is that of a home with its own server; the second has a home of its own, as on another
machine, and is an account at that server.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from tests import postgres
from tests.processes import below

from spinal.bus import Client, Home
from spinal.bus.errors import CallError
from spinal.bus.home import DOMAIN
from spinal.bus.jobs import Job
from spinal.bus.registration import tell_server
from spinal.bus.server import available
from spinal.dispatcher.jobs.keeper import LEASE, RENEW
from spinal.testing import READY, Platform, Process, eventually, platform

from .conftest import READ, WRITE, Stage, stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVER = "prosody"
#: Address of the first one.
FIRST = f"dispatcher.{DOMAIN}"
#: Seconds until the jobs of a dispatcher that is dead, or stopped, are another one's; twice for a
#: machine that is busy with others.
MOVED = 2 * (LEASE + RENEW)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    for reason in (postgres.available(), available(SERVER)):
        if reason is not None:
            pytest.skip(f"MISSING: {reason}")
    with postgres.server() as found:
        yield found.url()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(url: str) -> AsyncIterator[Platform]:
    async with platform(SERVER, "--store", url) as found:
        yield found


@dataclass
class Second:
    """The second dispatcher's home, and its processes."""

    platform: Platform
    home: Home
    client: Client
    process: Process


def dispatcher_of(up: Process) -> psutil.Process:
    """Find the dispatcher that ``spinal up`` watches."""
    (found,) = below(up.pid, "spinal.dispatcher")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def home(running: Platform, url: str, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The home of the second: the same server, the same store, an account of its own."""
    first = running.home
    first.add_account("dispatcher2", "dispatcher")
    await tell_server(first, "dispatcher2")
    host, port = first.endpoint
    made = Home.create(
        tmp_path_factory.mktemp("second") / "home",
        server=f"{host}:{port}",
        domain=first.domain,
        authority=first.ca,
        store=url,
    )
    for name, role in (("dispatcher2", "dispatcher"), ("owner", "owner")):
        made.add_account(name, role, first.password(name))
    return made


@asynccontextmanager
async def second(running: Platform, home: Home, *, supervised: bool) -> AsyncGenerator[Second]:
    """Start it, and end it in good order if it is still there."""
    environ = {**running.environ, "SPINAL_HOME": str(home.path)}
    if supervised:
        process = await running.start(
            sys.executable, "-m", "spinal", "up", "--json", environ=environ
        )
        await process.line(lambda line: '"ready"' in line)
    else:
        process = await running.start(sys.executable, "-m", "spinal.dispatcher", environ=environ)
    # Its own clients know no other one, so what they submit is its.
    credentials = replace(home.credentials("owner"), dispatchers=(home.dispatcher,))
    try:
        async with Client(credentials=credentials) as client:

            async def answers() -> bool:
                try:
                    await client.options(timeout=5).agents()
                except CallError:
                    assert process.process.returncode is None, process.errors[-20:]
                    return False
                return True

            await eventually(answers, READY, "the second one answers")
            await eventually(lambda: home.dispatcher in running.home.dispatchers, 30)
            yield Second(running, home, client, process)
    finally:
        process.kill(signal.SIGCONT)
        process.kill(signal.SIGTERM)
        await process.wait()


async def laid_down(there: Second, scene: Stage) -> list[Job]:
    """Submit at the second: four that run until the gate is open, and twelve that wait for room."""
    client = there.client.options(place=scene.place)
    jobs = [await client.submit(WRITE if n % 2 else READ, n=n, gate="go") for n in range(4)]
    await scene.begun(4)
    jobs += [await client.submit(WRITE if n % 2 else READ, n=n) for n in range(4, 16)]
    return jobs


async def done_once(scene: Stage, client: Client, jobs: list[Job], within: float = 60.0) -> None:
    """Hold each job against its value, its attempts and the ledger."""
    for n, job in enumerate(jobs):
        assert (await client.job(job.id).result(timeout=within))[1] == n
    assert Counter(note.n for note in scene.ledger()) == dict.fromkeys(range(len(jobs)), 1)
    assert scene.ledger("cancelled") == []
    for job in jobs[:4]:
        assert (await client.job(job.id).info())["attempt"] == 1


async def owned(running: Platform, count: int, since: float) -> None:
    """Wait until the first dispatcher has so many jobs under way."""

    async def has() -> bool:
        status = await running.client.ask_dispatcher("/spinal/status")
        return int(status["in_flight"] + status["waiting"]) == count

    await eventually(has, MOVED, "the jobs have moved")
    assert time.monotonic() - since < MOVED


async def test_the_jobs_of_a_dispatcher_that_was_killed_end_at_the_other(
    running: Platform, home: Home, tmp_path: Path
) -> None:
    async with stage(running, tmp_path / "killed") as scene:
        await scene.start(1)
        async with second(running, home, supervised=True) as there:
            jobs = await laid_down(there, scene)
            # With whoever watches it, who would start it again.
            there.process.kill(signal.SIGSTOP)
            dispatcher_of(there.process).kill()
            there.process.kill()
            killed = time.monotonic()

            await owned(running, 16, killed)
            scene.open("go")
            await done_once(scene, running.client, jobs)


async def test_a_dispatcher_that_was_stopped_too_long_lets_go_and_ends(
    running: Platform, home: Home, tmp_path: Path
) -> None:
    async with stage(running, tmp_path / "stopped") as scene:
        await scene.start(1)
        async with second(running, home, supervised=False) as there:
            jobs = await laid_down(there, scene)
            there.process.kill(signal.SIGSTOP)
            stopped = time.monotonic()
            await owned(running, 16, stopped)

            there.process.kill(signal.SIGCONT)
            assert await there.process.wait() != 0

            assert any("life is over" in line for line in there.process.errors)
            assert scene.ledger("ended") == [] and scene.ledger("cancelled") == []
            scene.open("go")
            await done_once(scene, running.client, jobs, within=8)


async def test_a_dispatcher_that_hangs_is_started_again_and_goes_on_with_its_jobs(
    running: Platform, home: Home, tmp_path: Path
) -> None:
    async with stage(running, tmp_path / "hung") as scene:
        await scene.start(1)
        async with second(running, home, supervised=True) as there:
            jobs = await laid_down(there, scene)
            dispatcher_of(there.process).suspend()
            # The other one is not kept from anything meanwhile.
            job = await running.client.options(place=scene.place).submit(READ, n=16)
            await there.process.line(lambda line: '"restarted"' in line)

            scene.open("go")
            await done_once(scene, there.client, [*jobs, job])


async def test_the_first_one_may_die_too_and_its_callers_go_to_the_second(
    running: Platform, home: Home, tmp_path: Path
) -> None:
    async with stage(running, tmp_path / "first") as scene:
        await scene.start(1)
        async with second(running, home, supervised=True):
            client = running.client.options(place=scene.place)
            jobs = [await client.submit(WRITE if n % 2 else READ, n=n, gate="go") for n in range(4)]
            await scene.begun(4)
            before = len(running.up.lines)
            dispatcher_of(running.up).kill()

            jobs += [await client.submit(WRITE, n=n) for n in range(4, 12)]
            scene.open("go")
            await done_once(scene, client, jobs)
            await eventually(
                lambda: any('"restarted"' in line for line in running.up.lines[before:]), 30
            )


async def test_what_is_submitted_while_dispatchers_die_ends_once(
    running: Platform, home: Home, tmp_path: Path
) -> None:
    async with stage(running, tmp_path / "storm") as scene:
        await scene.start(2)
        async with second(running, home, supervised=True) as there:
            known = replace(home.credentials("owner"), dispatchers=(home.dispatcher, FIRST))
            async with Client(credentials=known) as both:
                clients = [both.options(place=scene.place, timeout=90), scene.client]

                async def one(n: int) -> int:
                    op = WRITE if n % 3 else READ
                    job = await clients[n % 2].submit(op, n=n)
                    found: list[int] = await job.result(timeout=90)
                    return found[1]

                for wave in range(4):
                    numbers = range(wave * 60, wave * 60 + 60)
                    ends = [asyncio.create_task(one(n)) for n in numbers]
                    await scene.begun(wave * 60 + 10)
                    if wave % 2:
                        dispatcher_of(running.up).kill()
                    else:
                        dispatcher_of(there.process).kill()
                    assert await asyncio.gather(*ends) == list(numbers)
        assert Counter(note.n for note in scene.ledger()) == dict.fromkeys(range(240), 1)


async def test_jobs_that_run_at_one_are_cancelled_at_the_other(
    running: Platform, home: Home, tmp_path: Path
) -> None:
    async with stage(running, tmp_path / "cancel") as scene:
        await scene.start(1)
        async with second(running, home, supervised=True) as there:
            mine = there.client.options(place=scene.place)
            jobs = [await mine.submit(READ, n=n, gate="never") for n in range(4)]
            await scene.begun(4)

            began = time.monotonic()
            states = await asyncio.gather(*(running.client.job(job.id).cancel() for job in jobs))

            assert states == ["killed"] * 4
            assert time.monotonic() - began < 15
            assert len(scene.ledger("cancelled")) == 4


async def test_a_store_that_cannot_be_reached_is_one_line_without_the_password(
    running: Platform, tmp_path: Path
) -> None:
    environ = {**running.environ, "SPINAL_HOME": str(tmp_path / "home"), "SPINAL_LOG": "critical"}
    store = "postgresql://spinal:secret@127.0.0.1:1/jobs"
    process = await running.start(
        sys.executable, "-m", "spinal", "up", "--store", store, environ=environ
    )
    assert await process.wait() == 4
    said = [line for line in process.errors if line]
    assert len(said) == 1 and "jobs on 127.0.0.1" in said[0], said
    assert "secret" not in "\n".join(process.errors + process.lines)
