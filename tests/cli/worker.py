"""An agent for the tests of the command line."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from spinal.agents import Agent, Blob, Job, Refused

agent = Agent("worker", place={"site": "/eu/fra"}, tags=["test"], slots=4)


@agent.op("/test/add", effects="reads")
async def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: the first one.
        b: the second one.
    """
    return a + b


@agent.op("/test/greet", effects="reads")
async def greet(name: str) -> str:
    """Say hello."""
    return f"Hello, {name}!"


@agent.op("/test/upper", effects="reads")
async def upper(text: Blob) -> Blob:
    """Write a text in capitals."""
    found = await text.read()
    if b"\0" in found:
        raise Refused("that is no text")
    return Blob.of(found.upper(), "text/plain")


@agent.op("/test/fail")
async def fail() -> None:
    """Fail."""
    raise RuntimeError("out of paper")


@agent.op("/test/count", effects="reads")
async def count(to: int) -> AsyncIterator[int]:
    """Count, one number after the other."""
    for number in range(1, to + 1):
        yield number


@agent.op("/test/wait", effects="reads", timeout="5m")
async def wait(job: Job) -> None:
    """Tell that it has begun, and wait until it is cancelled."""
    job.progress(1, 2, "waiting")
    await asyncio.Event().wait()


@agent.op("/test/talk", effects="reads")
async def talk(job: Job, gate: str = "") -> str:
    """Tell how it goes, wait for a file if one is named, and end."""
    job.log("began")
    job.progress(1, 2, "talking")
    while gate and not Path(gate).exists():
        await asyncio.sleep(0.02)
    job.log("careful", level="warning")
    return "said"
