from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from spinal.bus.tasks import Tasks


async def test_closing_waits_until_everything_has_cleaned_up() -> None:
    tasks = Tasks("test")
    cleaned: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    for number in range(3):
        tasks.spawn(work(number))
    await asyncio.sleep(0)
    assert len(tasks) == 3
    await tasks.close()
    await tasks.close()
    assert sorted(cleaned) == [0, 1, 2] and len(tasks) == 0


async def test_what_a_task_raises_is_logged_and_the_others_go_on() -> None:
    tasks = Tasks("test")

    async def broken() -> None:
        raise ValueError("why")

    with capture_logs() as logs:
        other = tasks.spawn(asyncio.sleep(60))
        await asyncio.wait([tasks.spawn(broken(), "the broken one")])
        await asyncio.sleep(0)
    assert [(entry["event"], entry["task"]) for entry in logs] == [("task_died", "the broken one")]
    assert not other.done()
    await tasks.close()


async def test_no_task_starts_after_the_end() -> None:
    tasks = Tasks("test")
    await tasks.close()
    with pytest.raises(RuntimeError, match="test"):
        tasks.spawn(asyncio.sleep(0))


async def test_a_task_may_close_its_owner() -> None:
    tasks = Tasks("test")
    await asyncio.wait([tasks.spawn(tasks.close())])
    assert len(tasks) == 0
