"""When a process that knows many agents looks for garbage among all that it has.

A full collection visits every object, so with 100,000 agents it stops the event loop for most of a
second; by itself Python would run one every few seconds, because each report replaces one that had
become old.  Reports refer to each other in no circle and leave when they are replaced, and agents
are taken out of the index, so what collections of the young do not find is rare.  So full ones are
paced by what they cost.

Of the young, too, Python would collect many at once: it counts what was made less what went, and a
report that replaces another does not count.  So they are looked through so often that there are
few, and are not looked at again before the next full collection.
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

#: Seconds between two collections of the young.
YOUNG: Final = 0.02

#: Collections of a generation before Python would run one of the next by itself.
_NEVER: Final = 2**31 - 1


@asynccontextmanager
async def seldom_collected() -> AsyncGenerator[None]:
    """Pace collections while inside, and leave them to Python again afterwards."""
    before = gc.get_threshold()
    gc.set_threshold(before[0], _NEVER, _NEVER)
    collecting = asyncio.create_task(_collect(), name="garbage")
    try:
        yield
    finally:
        collecting.cancel()
        gc.set_threshold(*before)
        gc.unfreeze()
        await asyncio.gather(collecting, return_exceptions=True)


async def _collect() -> None:
    now = asyncio.get_running_loop().time
    due = now() + LEAST
    while True:
        await asyncio.sleep(YOUNG)
        if now() < due:
            gc.collect(0)
        else:
            gc.unfreeze()
            began = time.perf_counter()
            gc.collect()
            due = now() + max(LEAST, SHARE * (time.perf_counter() - began))
        gc.freeze()
