"""Durable jobs with their results, against Celery and Dramatiq on Redis."""

from __future__ import annotations

from contextlib import AsyncExitStack

from .bench import Bench, Plan
from .ours import ours
from .peers import celery, dramatiq

#: Jobs under way at once.
OUTSTANDING = 256


async def measure(bench: Bench) -> None:
    """Measure on the embedded server, with two agents as the others have two processes."""
    async with AsyncExitStack() as stack:
        bench.say("starting Spinal")
        here = (await stack.enter_async_context(ours("embedded", agents=2))).spinal
        bench.started(here)
        plan = Plan(bench)
        seconds = bench.seconds
        many = {"seconds": seconds, "outstanding": OUTSTANDING}
        plan.add("Spinal alone, ms", here, "alone", trip="durable", seconds=seconds)
        plan.add("Spinal, /s", here, "together", trip="durable", **many)
        for name, needs, peer in (
            ("Celery", celery.NEEDS, celery.celery()),
            ("Dramatiq", dramatiq.NEEDS, dramatiq.dramatiq()),
        ):
            other = await bench.peer(stack, name, needs, peer)
            plan.add(f"{name} alone, ms", other, "alone", seconds=seconds)
            plan.add(f"{name}, /s", other, "together", **many)
        found = await plan.run(seconds=min(0.5, seconds))
    bench.ratio("jobs-rate", found, "Spinal, /s", "Celery, /s")
    bench.ratio("jobs-p50", found, "Spinal alone, ms", "Celery alone, ms")
    bench.ratio("dramatiq-rate", found, "Spinal, /s", "Dramatiq, /s")
    bench.ratio("dramatiq-p50", found, "Spinal alone, ms", "Dramatiq alone, ms")
    bench.figures(
        "Jobs",
        f"Alone: submitted and its result got, one after the other. Per second: {OUTSTANDING} "
        "outstanding. Spinal's are on disk before they are accepted, the others' in memory.",
        found,
    )
