from __future__ import annotations

import asyncio
import gc
import weakref

from spinal.dispatcher.garbage import LEAST, YOUNG, seldom_collected
from spinal.testing import eventually, virtual_time


class Ring:
    def __init__(self) -> None:
        self.ring = self


@virtual_time
async def test_old_garbage_is_found_although_python_looks_for_it_no_more() -> None:
    before = gc.get_threshold()
    async with seldom_collected():
        assert gc.get_threshold()[0] == before[0]
        assert all(now > was for now, was in zip(gc.get_threshold()[1:], before[1:], strict=True))
        old = Ring()
        gc.collect()
        gone = weakref.ref(old)
        del old
        gc.collect(1)
        assert gone() is not None

        await eventually(lambda: gone() is None, timeout=2 * LEAST)

    assert gc.get_threshold() == before


@virtual_time
async def test_what_has_survived_once_is_not_looked_at_with_the_young_again() -> None:
    async with seldom_collected():
        lasting = [Ring() for _ in range(1000)]
        await asyncio.sleep(10 * YOUNG)
        assert not any(one is lasting[0] for one in gc.get_objects(generation=0))
        assert gc.get_freeze_count() > len(lasting)
        del lasting

    assert gc.get_freeze_count() == 0
