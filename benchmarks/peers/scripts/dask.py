"""``python -m benchmarks.peers.scripts.dask ADDRESS WORKERS``: maps and gathers no-ops."""

import asyncio
import sys
import time

from benchmarks import rounds
from distributed import Client


def nothing(x=0):
    """Give the number back."""
    return x


def main():
    """Measure maps until the parent is gone."""
    address, workers = sys.argv[1:]
    with Client(address) as client:
        client.wait_for_workers(int(workers))

        async def mapped(inputs):
            began = time.perf_counter()
            client.gather(client.map(nothing, range(inputs), pure=False))
            return inputs / (time.perf_counter() - began), inputs

        asyncio.run(rounds.obey({"map": mapped}))


main()
