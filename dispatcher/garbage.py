"""When a process that knows many agents looks for garbage among all that it has.

A full collection visits every object, so with 100,000 agents it stops the event loop for most of a
second; by itself Python would run one every few seconds, because each report replaces one that had
become old.  Reports refer to each other in no circle and leave when they are replaced, and agents
are taken out of the index, so what collections of the young do not find is rare.  So full ones are
paced by what they cost.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

#: A full collection is followed by so many times its own duration without another, and at least by
#: so many seconds.
SHARE: Final = 1000
LEAST: Final = 60.0

#: Collections of the middle-aged before Python would run a full one by itself.
_NEVER: Final = 2**31 - 1


@asynccontextmanager
async def seldom_collected() -> AsyncGenerator[None]:
    """Pace full collections while inside, and leave them to Python again afterwards."""
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], _NEVER)
    collecting = asyncio.create_task(_collect(), name="garbage")
    try:
        yield
    finally:
        collecting.cancel()
        gc.set_threshold(*before)
        await asyncio.gather(collecting, return_exceptions=True)


async def _collect() -> None:
    pause = LEAST
    while True:
        await asyncio.sleep(pause)
        began = time.perf_counter()
        gc.collect()
        pause = max(LEAST, SHARE * (time.perf_counter() - began))
