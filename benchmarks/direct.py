"""Calls without a job: direct, batching off, through ``map``, and brokered; alone and together.

Against nats-py on every server, SPADE on Prosody, and a bare IQ through the same server.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from .bench import Bench, Plan
from .contender import Ask
from .ours import ours
from .peers import nats, spade

#: Round trips under way at once.
OUTSTANDING = 64
#: Windows that nats-py is tried with to find its best, and that a map of ours has.
WINDOWS = (64, 256, 1024)
MAP_WINDOW = 1024


async def measure(bench: Bench) -> None:
    """Measure one server after the other."""
    for server in bench.servers:
        bench.doing = f"direct, {server}"
        async with AsyncExitStack() as stack:
            await _through(bench, server, stack)


async def _through(bench: Bench, server: str, stack: AsyncExitStack) -> None:
    bench.say("starting Spinal")
    here = await stack.enter_async_context(ours(server))
    bench.started(here.spinal)
    peer = await bench.peer(stack, "nats-py", nats.NEEDS, nats.nats())
    plan = Plan(bench)
    seconds = bench.seconds
    many = {"seconds": seconds, "outstanding": OUTSTANDING}
    plan.add("nats-py alone, ms", peer, "alone", trip="request", seconds=seconds)
    plan.add("direct alone, ms", here.spinal, "alone", trip="direct", seconds=seconds)
    plan.add("brokered alone, ms", here.spinal, "alone", trip="brokered", seconds=seconds)
    plan.add("bare IQ alone, ms", here.bare, "alone", trip="bare", seconds=seconds)
    plan.add("nats-py, /s", peer, "together", trip="request", **many)
    plan.add("direct, /s", here.spinal, "together", trip="direct", **many)
    plan.add("unbatched, /s", here.spinal, "together", trip="unbatched", **many)
    plan.add("brokered, /s", here.spinal, "together", trip="brokered", **many)
    plan.add("bare IQ, /s", here.bare, "together", trip="bare", **many)
    windows: dict[str, Ask | str] = {
        str(window): peer
        if isinstance(peer, str)
        else Ask(peer, "together", {**many, "trip": "request", "outstanding": window})
        for window in WINDOWS
    }
    best = await plan.best("nats-py best, /s", windows, seconds=seconds / 2)
    plan.add("direct map, /s", here.spinal, "direct map", seconds=seconds, window=MAP_WINDOW)
    if server == "embedded":
        plain = await bench.peer(stack, "nats-py without TLS", nats.NEEDS, nats.nats(tls=False))
        plan.add("nats-py without TLS, /s", plain, "together", trip="request", **many)
    if server == "prosody":
        other = await bench.peer(stack, "SPADE", spade.NEEDS, spade.spade())
        plan.add("SPADE alone, ms", other, "alone", trip="message", seconds=seconds)
        plan.add("SPADE, /s", other, "together", trip="message", **many)
    found = await plan.run(seconds=min(0.5, seconds))

    bench.ratio(f"direct-p50-{server}", found, "direct alone, ms", "nats-py alone, ms")
    bench.ratio(f"direct-rate-{server}", found, "direct, /s", "nats-py, /s")
    bench.ratio(f"unbatched-rate-{server}", found, "unbatched, /s", "nats-py, /s")
    note = f"nats-py's best window is {best}, `map` has {MAP_WINDOW}"
    bench.ratio(f"map-rate-{server}", found, "direct map, /s", "nats-py best, /s", note)
    bench.ratio(f"brokered-{server}", found, "brokered alone, ms", "direct alone, ms")
    bench.ratio(f"brokered-rate-{server}", found, "brokered, /s", "direct, /s")
    bench.ratio(f"bare-p50-{server}", found, "direct alone, ms", "bare IQ alone, ms")
    bench.ratio(f"bare-rate-{server}", found, "direct, /s", "bare IQ, /s")
    if server == "embedded":
        bench.ratio("plain-rate", found, "direct, /s", "nats-py without TLS, /s")
    if server == "prosody":
        bench.ratio("spade-p50", found, "direct alone, ms", "SPADE alone, ms")
        bench.ratio("spade-rate", found, "direct, /s", "SPADE, /s")
    bench.figures(
        f"Calls through {server}",
        f"Alone: one after the other, the median time. Per second: {OUTSTANDING} outstanding. "
        'CPU is the operating system\'s account of each process; "answering" is the agent, and the '
        "embedded server and its dispatcher are one process.",
        found,
    )
