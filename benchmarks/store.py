"""What a store full of finished jobs costs: submissions to it and to an empty one take turns."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

from spinal.dispatcher.jobs.job import Happening, Job, mint
from spinal.dispatcher.store import store_for
from spinal.dispatcher.store.contract import New, Save

from .bench import Bench, Plan
from .caller import OP
from .ours import ours

#: Finished jobs in the full store.
FINISHED = 50_000
#: Submissions under way at once.
OUTSTANDING = 32


async def measure(bench: Bench) -> None:
    """Measure on the embedded server."""
    async with AsyncExitStack() as stack:
        plan = Plan(bench)
        for name in ("empty", "full"):
            bench.say(f"starting Spinal, its store {name}")
            here = await stack.enter_async_context(ours("embedded"))
            if name == "full":
                await fill(here.platform.home.store, 1000 if bench.quick else FINISHED)
            many = {"seconds": bench.seconds, "outstanding": OUTSTANDING}
            plan.add(f"{name}, submissions/s", here.spinal, "together", trip="submit", **many)
        found = await plan.run(seconds=min(0.5, bench.seconds))
    bench.ratio("store-full", found, "full, submissions/s", "empty, submissions/s")


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
