"""Writes jobs to a store and says so, for tests that watch or kill it from outside."""

from __future__ import annotations

import asyncio
import os
import sys

from spinal.dispatcher.jobs.job import Happening, Job
from spinal.dispatcher.store import store_for
from spinal.dispatcher.store.contract import New, Save


async def main(url: str, count: int) -> None:
    store = store_for(url)
    life = await store.open("writer@home.test/d", 1000.0)
    for n in range(count):
        job = Job(id=f"job-{n:05}", caller="a@home.test", op="/a", created=1, owner=life)
        await store.write(New(job))
        _say(f"accepted {job.id}.")
        job.move(Happening.BEGUN)
        job.agent = f"agent-{n:05}"
        await store.write(Save(job, begins=True))
        _say(f"sent {job.agent}.")
        job.move(Happening.DONE)
        job.ended, job.value = 2, f"result-{n:05}"
        await store.write(Save(job))
        _say(f"acknowledged {job.value}.")
    await store.close()


def _say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
