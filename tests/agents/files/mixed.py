"""An agent with coroutines and a plain function."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from spinal.agents import Agent, Blob, Job, Refused
from spinal.bus.errors import CallError
from spinal.protocols import Problem

agent = Agent("mixed", slots=2, place="/eu/fra", tags=["gpu"], cost=0.5)

#: Names of the calls that were cancelled.
ended: list[str] = []


@agent.op("/add", effects="reads")
async def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@agent.op("/who")
async def who(job: Job) -> list[str | int]:
    return [job.caller, job.op, job.attempt]


@agent.op("/wait")
async def wait(job: Job) -> None:
    """Wait until somebody stops it."""
    job.log("waiting")
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(job.id)


@agent.op("/brief", timeout="50ms")
async def brief() -> None:
    await asyncio.Event().wait()


@agent.op("/fail")
async def fail() -> None:
    raise ValueError("no such\nphoto")


@agent.op("/own-timeout")
async def own_timeout() -> None:
    raise TimeoutError("the camera does not answer")


@agent.op("/refuse")
async def refuse() -> None:
    raise Refused("the shop is closed")


@agent.op("/relay")
async def relay() -> None:
    raise CallError.of(Problem("no-agent", "nobody scales"))


@agent.op("/give-up")
async def give_up() -> None:
    raise asyncio.CancelledError


@agent.op("/big")
async def big() -> str:
    return "x" * 40_000


@agent.op("/count")
async def count(to: int) -> AsyncIterator[int]:
    for number in range(to):
        yield number


@agent.op("/copy")
async def copy(job: Job, photo: Blob) -> dict[str, Blob]:
    data = await photo.read()
    return {"stored": await job.store(data * 2, "text/x"), "returned": Blob.of(data * 3)}


@agent.op("/copy-plain")
def copy_plain(photo: Blob) -> dict[str, Blob]:
    return {"data": Blob.of(photo.data * 2, "text/x"), "file": Blob.of(photo.path)}


@agent.op("/run")
async def run(job: Job, argv: list[str]) -> str:
    return (await job.run(argv, log=True, check=True)).text


@agent.op("/pid")
def pid() -> int:
    return os.getpid()


@agent.op("/kill-worker")
def kill_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@agent.op("/folder")
def folder() -> list[str]:
    return [str(Path(__file__)), __name__, str(Path(__file__).parent in map(Path, sys.path))]
