"""The load of :mod:`benchmarks.scale`: many agents in one process.

    python -m benchmarks.swarm --home DIR --first 0 --count 1000

Each is a real agent, with an account, a TLS stream, a session and heartbeats of its own; what they
share is the process, because 5,000 interpreters do not fit into a small machine.  Each offers
``/swarm/name``, which gives its name.  Prints one JSON line when all are on the bus, and whenever
the streams are lost and are all back; ends with SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import signal
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import psutil

from spinal import logs
from spinal.agents import Agent
from spinal.agents.life import Life
from spinal.bus import Home
from spinal.bus.client import connect
from spinal.bus.errors import BusError
from spinal.bus.loops import run

#: Log-ins at once; after a restart each agent comes when its own back-off says so.
LANES = 16
#: How often it is looked whether all are connected, in seconds.
LOOK = 0.05


def name_of(number: int) -> str:
    """Give the account of an agent."""
    return f"swarm{number}"


def make(name: str) -> Agent:
    """Give an agent that tells its name."""
    agent = Agent(name, slots=1)

    @agent.op("/swarm/name", effects="reads")
    async def own_name() -> str:
        """Give the name."""
        return name

    return agent


def tell(event: str, **facts: object) -> None:
    """Print an event with the time, which other processes can compare."""
    print(json.dumps({"event": event, "at": time.time(), **facts}), flush=True)


async def watch(lives: list[Life]) -> None:
    """Tell when streams are lost and when all are back."""
    whole = True
    while True:
        await asyncio.sleep(LOOK)
        connected = sum(life.session.connected for life in lives)
        if whole and connected < len(lives):
            whole = False
            tell("lost")
        elif not whole and connected == len(lives):
            whole = True
            tell("back")


async def swarm(home: Home, numbers: Iterable[int]) -> None:
    """Be these agents until SIGTERM."""
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    async with AsyncExitStack() as stack:
        lives: list[Life] = []

        async def lane() -> None:
            for number in numbers:
                name = name_of(number)
                found = home.credentials(name, "agent")
                while True:
                    life = Life(make(name), connect(found), dispatchers=found.dispatchers)
                    try:
                        lives.append(await stack.enter_async_context(life))
                        break
                    except BusError as error:
                        # A machine that is too busy; the next try is what a supervisor would do.
                        tell("late", agent=name, problem=str(error))

        before = psutil.Process().memory_info().rss
        numbers = iter(numbers)
        await asyncio.gather(*(lane() for _ in range(LANES)))
        after = psutil.Process().memory_info().rss
        # Millions of objects that stay.  In a process of its own an agent has a few thousand, and
        # to look through all of these for garbage is not what is measured.
        gc.freeze()
        gc.set_threshold(200_000, 20, 1000)
        tell("up", agents=len(lives), bytes=after - before)
        watching = asyncio.create_task(watch(lives))
        await over.wait()
        watching.cancel()


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    options = parser.parse_args()
    logs.configure("error")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    numbers = range(options.first, options.first + options.count)
    run(swarm(Home.find(options.home), numbers))


if __name__ == "__main__":
    main()
