from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from spinal.agents.deployment.finish import finish
from spinal.agents.deployment.kinds import in_thread


async def test_work_is_done_to_its_end_however_often_it_is_cancelled() -> None:
    gate = asyncio.Event()
    ended: list[str] = []

    async def work() -> None:
        await gate.wait()
        ended.append("work")

    task = asyncio.create_task(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["work"]


async def test_what_the_work_gives_or_raises_is_passed_on() -> None:
    async def give() -> int:
        return 3

    async def fail() -> None:
        raise ValueError("so it is")

    assert await finish(give()) == 3
    with pytest.raises(ValueError, match="so it is"):
        await finish(fail())


async def test_work_in_a_thread_has_ended_when_its_caller_is_cancelled() -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    done = threading.Event()

    def work(check: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(begun.set)
        try:
            while True:
                check()
        finally:
            done.set()

    task = asyncio.create_task(in_thread(work))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_work_in_a_thread_gives_what_it_gives() -> None:
    assert await in_thread(lambda check: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda check: 1 // 0)
