"""A durable map of many inputs, against Dask's map and gather."""

from __future__ import annotations

from contextlib import AsyncExitStack

from .bench import Bench, Plan
from .contender import Ask
from .ours import ours
from .peers import dask

INPUTS = 10_000
#: Inputs of our map that are under way at once.
WINDOW = 1024


async def measure(bench: Bench) -> None:
    """Measure on the embedded server, with two agents as Dask has two threads."""
    inputs = 200 if bench.quick else INPUTS
    async with AsyncExitStack() as stack:
        bench.say("starting Spinal")
        here = (await stack.enter_async_context(ours("embedded", agents=2))).spinal
        bench.started(here)
        plan = Plan(bench)
        tried: dict[str, Ask | str] = {}
        for workers in (1, 2):
            label = f"{workers} process(es) of {2 // workers} thread(s)"
            peer = await bench.peer(stack, f"Dask, {label}", dask.NEEDS, dask.dask(workers))
            tried[label] = peer if isinstance(peer, str) else Ask(peer, "map", {"inputs": inputs})
        plan.add("Spinal, inputs/s", here, "durable map", inputs=inputs, window=WINDOW)
        best = await plan.best("Dask, inputs/s", tried, inputs=inputs // 10)
        found = await plan.run(inputs=inputs // 10)
    note = f"{inputs:,} inputs; Dask's best is {best}; the window of ours is {WINDOW}"
    bench.ratio("durable-map", found, "Spinal, inputs/s", "Dask, inputs/s", note)
    bench.figures("Maps", f"{inputs:,} no-op inputs, results gathered.", found)
