"""What a full store costs, and how soon a dispatcher that was restarted knows its agents.

    python -m benchmarks.jobs finished [--jobs 50000] [--runs 5]
    python -m benchmarks.jobs known [--server prosody] [--agents 1000] [--runs 5]

``finished``: two platforms on the embedded server, one of which has so many finished jobs in its
store; submissions to both take turns, and the ratio of their times is what counts.
``known``: so many agents are connected, all from one process, each with an account and a stream of its
own; the dispatcher is killed, and from the moment in which it answers again until it lists all of them
is what counts (on the embedded server, which dies with it: from the last one's reconnecting).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import statistics
import time
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import psutil
from benchmarks.run import OP, outstanding, parts, spread

from spinal.agents import Agent
from spinal.agents.life import Life
from spinal.bus import Client, Credentials
from spinal.bus.client import connect
from spinal.bus.server import KINDS, add_account
from spinal.dispatcher.jobs.job import Happening, Job, mint
from spinal.dispatcher.store import store_for
from spinal.dispatcher.store.contract import New, Save
from spinal.protocols import SpinalError
from spinal.testing import Platform, platform

HERE = Path(__file__).resolve().parent
#: Submissions under way at once.
LANES = 32


async def fill(url: str, count: int) -> None:
    """Put finished jobs into a store, as another life beside its dispatcher's."""
    store = store_for(url)
    life = await store.open("filler@bench/x", 60.0)
    now = time.time_ns() // 1_000_000
    for start in range(0, count, 1000):
        jobs = [
            Job(
                id=mint(now),
                caller="owner@bench",
                op=OP,
                created=now,
                owner=life,
                args={"x": number},
                key=f"filled-{number}",
                labels=("filled",),
                runnable=now,
                ends=now + 3_600_000,
            )
            for number in range(start, min(start + 1000, count))
        ]
        await store.write(*map(New, jobs))
        for job in jobs:
            job.move(Happening.BEGUN)
            job.move(Happening.DONE)
            job.started = job.ended = now
            job.value = job.args["x"]
        await store.write(*map(Save, jobs))
    await store.close()


async def finished(count: int, runs: int, calls: int) -> None:
    """Compare submissions to an empty store with those to a full one."""
    async with AsyncExitStack() as stack:
        clients: dict[str, Client] = {}
        for name in ("empty", "full"):
            here: Platform = await stack.enter_async_context(platform("embedded"))
            if name == "full":
                await fill(here.home.store, count)
            await here.agent(HERE / "worker.py", "--name", "bench")
            clients[name] = await stack.enter_async_context(
                Client(credentials=Credentials.find(home=here.home))
            )
        rates: dict[str, list[float]] = {name: [] for name in clients}
        for run in range(runs + 1):
            for name, client in clients.items():
                rate = await outstanding(partial(client.submit, OP, x=1), calls)
                if run:  # The first one warms up.
                    rates[name].append(rate)
        ratio = statistics.median(rates["empty"]) / statistics.median(rates["full"])
        for name, values in rates.items():
            print(f"{name}: {spread(values, '.0f')} submissions a second")
        print(f"time of a submission with {count} finished jobs over one without: {ratio:.3f}")


async def known(server: str, count: int, runs: int) -> None:
    """Measure how soon a restarted dispatcher knows its agents."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with AsyncExitStack() as stack:
        here: Platform = await stack.enter_async_context(platform(server))
        await accounts(here, server, count)
        agent = Agent("many", slots=1)

        async def nothing() -> None:
            """Do nothing."""

        agent.op("/bench/many", effects="reads")(nothing)

        async def one(number: int) -> None:
            found = here.home.credentials(f"many{number}", "agent")
            life = Life(agent, connect(found), dispatchers=found.dispatchers)
            lives.append(await stack.enter_async_context(life))

        lives: list[Life] = []
        for start in range(0, count, 50):
            await asyncio.gather(*(one(n) for n in range(start, min(start + 50, count))))
        times: list[float] = []
        for run in range(runs):
            await until(here, count)
            await asyncio.sleep(2)  # Whom it knows it writes down each second.
            found = parts(psutil.Process(here.up.pid))
            # The embedded server lives in the dispatcher's process.
            (dispatcher,) = found.get("dispatcher") or found["server"]
            os.kill(dispatcher.pid, signal.SIGKILL)
            killed = time.perf_counter()
            answered = await until(here, 0, after=dispatcher.pid)
            while not all(life.session.connected for life in lives):
                await asyncio.sleep(0.05)
                answered = time.perf_counter()
            complete = await until(here, count)
            times.append(complete - answered)
            print(
                f"run {run + 1}: there again after {answered - killed:.2f} s, "
                f"knew all {count} after {complete - answered:.2f} s more"
            )
        print(f"{server}: {spread(times, '.2f')} s until it knew {count} agents")


async def accounts(here: Platform, server: str, count: int) -> None:
    """Make an account for each agent: resources of one account would hear of each other."""
    config = here.home.server_config()
    names = [f"many{number}" for number in range(count)]
    for name in names:
        here.home.add_account(name, "agent")
    for name in names:
        await add_account(server, config, name, here.home.password(name))


async def until(here: Platform, count: int, after: int = 0) -> float:
    """Ask until the dispatcher answers that it knows so many; gives the time."""
    while True:
        with suppress(SpinalError):
            async with Client(credentials=Credentials.find(home=here.home)) as client:
                while True:
                    status = await client.options(timeout=1).ask_dispatcher("/spinal/status")
                    if status["agents"] >= count and not (after and psutil.pid_exists(after)):
                        return time.perf_counter()
                    await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)


async def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("finished", "known"))
    parser.add_argument("--server", default="prosody", choices=sorted(KINDS))
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    if options.what == "finished":
        await finished(options.jobs, options.runs, options.calls)
    else:
        await known(options.server, options.agents, options.runs)


if __name__ == "__main__":
    asyncio.run(main())
