"""Spinal's caller, as a child of its own: calls, jobs and maps, as a program makes them.

``python -m benchmarks.caller``, with the home in the environment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial

from spinal.bus import Client

from . import rounds
from .bare import Asking

OP = "/bench/nothing"
#: Bare name of the agent that direct calls go to.
AGENT = "bench"


async def mapped(
    client: Client, inputs: int = 0, seconds: float = 0.0, window: int = 64
) -> tuple[float, int]:
    """Map over so many inputs, or for so long; gives how many ended per second."""
    began = time.perf_counter()

    def over() -> Iterator[Mapping[str, int]]:
        number = 0
        while number < inputs or time.perf_counter() < began + seconds:
            yield {"x": number}
            number += 1

    ended = 0
    async for item in client.map(OP, over(), window=window):
        if item.error is not None:
            raise item.error
        ended += 1
    return ended / (time.perf_counter() - began), ended


async def main() -> None:
    """Log in and measure what we are asked to."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client())
        single = await stack.enter_async_context(Client(batching=False))
        direct = client.options(to=AGENT)
        durable = client.options(durable=True)
        trips: dict[str, rounds.Trip] = {
            "direct": partial(direct.call, OP, x=1),
            "unbatched": partial(single.options(to=AGENT).call, OP, x=1),
            "brokered": partial(client.call, OP, x=1),
            "durable": partial(durable.call, OP, x=1),
            "submit": partial(client.submit, OP, x=1),
        }
        asking = await stack.enter_async_context(Asking())
        trips["bare"] = asking.trip
        await rounds.obey(
            {
                **rounds.measures(trips),
                "direct map": partial(mapped, direct),
                "durable map": partial(mapped, durable),
            },
            trips,
        )


if __name__ == "__main__":
    rounds.run(main)
