from __future__ import annotations

import gc
import weakref

from spinal.dispatcher.garbage import LEAST, seldom_collected
from spinal.testing import eventually, virtual_time


class Ring:
    def __init__(self) -> None:
        self.ring = self


@virtual_time
async def test_old_garbage_is_found_although_python_looks_for_it_no_more() -> None:
    before = gc.get_threshold()
    async with seldom_collected():
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] > before[2]
        old = Ring()
        gc.collect()
        gone = weakref.ref(old)
        del old
        gc.collect(1)
        assert gone() is not None

        await eventually(lambda: gone() is None, timeout=2 * LEAST)

    assert gc.get_threshold() == before
