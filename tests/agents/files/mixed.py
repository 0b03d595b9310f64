"""An agent with coroutines and a plain function."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from spinal.agents import Agent, Blob, Job, PlainJob, Refused
from spinal.bus.errors import CallError
from spinal.protocols import Problem

agent = Agent("mixed", slots=2, place="/eu/fra", tags=["gpu"], cost=0.5)

DEAF = "while true; do sleep 0.1; done"
NOTE = "echo $$ $!"

#: What has no JSON form.
ODD: dict[str, object] = {
    "object": object(),
    "nan": float("nan"),
    "large": [2**60],
    "half": {"a": "\ud800"},
    "key": {(1, 2): 3},
}
ODD["self"] = [ODD]

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


@agent.op("/kib")
async def kib(count: int) -> str:
    return "x" * (count * 1024)


@agent.op("/kib-plain")
def kib_plain(count: int) -> str:
    return "x" * (count * 1024)


@agent.op("/odd")
async def odd(what: str) -> object:
    return ODD[what]


@agent.op("/odd-plain")
def odd_plain(what: str) -> object:
    return ODD[what]


@agent.op("/flood")
async def flood(job: Job, argv: list[str]) -> int:
    """Log whatever a program prints."""
    return len((await job.run(argv, log=True)).stdout)


@agent.op("/flood-plain")
def flood_plain(job: PlainJob, lines: int, length: int) -> None:
    for _ in range(lines):
        job.log("x" * length)


@agent.op("/deaf")
async def deaf(job: Job, note: str) -> None:
    """Run a program that does not end when it is asked to, nor does what it starts."""
    await job.run(["sh", "-c", f"trap '' TERM; (trap '' TERM; {DEAF}) & {NOTE} > {note}; wait"])


@agent.op("/deaf-plain")
def deaf_plain(note: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sh", "-c", f"trap '' TERM; {DEAF}"])
    Path(note).write_text(f"{os.getpid()} {child.pid}")
    child.wait()


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
