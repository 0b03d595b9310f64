"""The application of the worker; ``python -m benchmarks.peers.scripts.celery`` submits to it."""

import asyncio
import os
import statistics
import time
from collections import deque

from benchmarks import rounds
from celery import Celery

URL = os.environ["REDIS"]
app = Celery("bench", broker=f"{URL}/0", backend=f"{URL}/1")
app.conf.update(
    broker_connection_retry_on_startup=True,
    result_expires=3600,
    task_acks_late=True,
    worker_prefetch_multiplier=64,
)


@app.task(name="bench.nothing")
def nothing(x=0):
    """Give the number back."""
    return x


async def alone(seconds):
    """Submit and get, one after the other; gives the median in milliseconds."""
    nothing.delay(x=1).get(timeout=60)  # Whoever has slept is awake then.
    times = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        nothing.delay(x=1).get(timeout=60)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000, len(times)


async def together(seconds, outstanding):
    """Keep so many under way; gives how many ended per second, the last ones included."""
    began = time.perf_counter()
    waiting = deque()
    made = 0
    while time.perf_counter() < began + seconds:
        waiting.append(nothing.delay(x=1))
        if len(waiting) == outstanding:
            waiting.popleft().get(timeout=60)
            made += 1
    while waiting:
        waiting.popleft().get(timeout=60)
        made += 1
    return made / (time.perf_counter() - began), made


if __name__ == "__main__":
    nothing.delay(x=1).get(timeout=60)
    asyncio.run(rounds.obey({"alone": alone, "together": together}))
