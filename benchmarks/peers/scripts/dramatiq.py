"""The actor of the workers; ``python -m benchmarks.peers.scripts.dramatiq`` submits to it."""

import asyncio
import os
import statistics
import time
from collections import deque

import dramatiq
from benchmarks import rounds
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

URL = os.environ["REDIS"]
broker = RedisBroker(url=f"{URL}/0")
broker.add_middleware(Results(backend=RedisBackend(url=f"{URL}/1")))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def nothing(x=0):
    """Give the number back."""
    return x


def get(message):
    """Wait for the result of a message."""
    return message.get_result(block=True, timeout=60_000)


async def alone(seconds):
    """Submit and get, one after the other; gives the median in milliseconds."""
    get(nothing.send(x=1))  # Whoever has slept is awake then.
    times = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        get(nothing.send(x=1))
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000, len(times)


async def together(seconds, outstanding):
    """Keep so many under way; gives how many ended per second, the last ones included."""
    began = time.perf_counter()
    waiting = deque()
    made = 0
    while time.perf_counter() < began + seconds:
        waiting.append(nothing.send(x=1))
        if len(waiting) == outstanding:
            get(waiting.popleft())
            made += 1
    while waiting:
        get(waiting.popleft())
        made += 1
    return made / (time.perf_counter() - began), made


if __name__ == "__main__":
    get(nothing.send(x=1))
    asyncio.run(rounds.obey({"alone": alone, "together": together}))
