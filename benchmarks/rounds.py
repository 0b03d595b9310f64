"""What a child process measures when it is asked to: one round at a time, by the clock.

Standard library only: the peers' children run it in an environment of their own.  A child says on
its standard output what it can measure, and then answers each line of JSON with a line of JSON,
until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

#: One round trip.
Trip = Callable[[], Awaitable[object]]
#: Gives what it measured and how many trips that took; its arguments are those of the question.
Measure = Callable[..., Awaitable[tuple[float, int]]]


async def alone(trip: Trip, seconds: float) -> tuple[float, int]:
    """Make one trip after the other; gives the median time of one, in milliseconds."""
    times: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while (began := clock()) < end:
        await trip()
        times.append(clock() - began)
    return statistics.median(times) * 1000, len(times)


async def together(trip: Trip, seconds: float, outstanding: int) -> tuple[float, int]:
    """Keep so many trips under way; gives how many ended per second, the last ones included."""
    clock = time.perf_counter
    made = 0
    began = clock()
    end = began + seconds

    async def lane() -> None:
        nonlocal made
        while clock() < end:
            await trip()
            made += 1

    await asyncio.gather(*(lane() for _ in range(outstanding)))
    return made / (clock() - began), made


def measures(trips: Mapping[str, Trip]) -> dict[str, Measure]:
    """Give the two measures of trips that have names; a question names the trip."""

    async def measure_alone(trip: str, seconds: float) -> tuple[float, int]:
        return await alone(trips[trip], seconds)

    async def measure_together(trip: str, seconds: float, outstanding: int) -> tuple[float, int]:
        return await together(trips[trip], seconds, outstanding)

    return {"alone": measure_alone, "together": measure_together}


async def obey(known: Mapping[str, Measure], trips: Mapping[str, Trip] = {}) -> None:
    """Say that we are ready, and answer questions until nobody can ask any more."""

    def say(answer: Mapping[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    say({"trips": sorted(trips)})
    while line := await asyncio.to_thread(sys.stdin.readline):
        question = json.loads(line)
        value, count = await known[question.pop("measure")](**question)
        say({"value": value, "count": count})


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a child's main coroutine on uvloop if that is installed."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    with suppress(ImportError):
        new_event_loop = import_module("uvloop").new_event_loop

    async def started() -> None:
        await main()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(started())
