"""An agent whose operations have every kind of argument that a form can ask for."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from spinal.agents import Agent, Blob, Job, Refused

agent = Agent("forms", slots=2)

#: Names of the calls that were cancelled.
ended: list[str] = []


@agent.op("/forms/every", effects="reads")
async def every(
    colour: Literal["red", "blue & green"],
    text: str,
    whole: int,
    real: float,
    flag: bool,
    some: list[Literal["a", "b", "c"]],
    lines: list[str],
    size: Literal[1, 2, 4] = 2,
    maybe: int | None = None,
    word: str = "it's <it>",
    photo: Blob | None = None,
) -> dict[str, Any]:
    """Give back what it was asked.

    Args:
        colour: One of <two>.
        text: Any text.
    """
    return {
        "colour": colour,
        "text": text,
        "whole": whole,
        "real": real,
        "flag": flag,
        "some": some,
        "lines": lines,
        "size": size,
        "maybe": maybe,
        "word": word,
        "photo": photo is not None,
    }


@agent.op("/forms/scale")
async def scale(photo: Blob, width: int = 640) -> None:
    """Scale a photo, which no form can ask for."""


@agent.op("/forms/any")
async def anything(value: Any) -> None:
    """Take what no form can ask for."""


@agent.op("/forms/plain")
def plain(text: str) -> str:
    """Say it again, from another process."""
    return text


@agent.op("/forms/who")
async def who(job: Job) -> str:
    """Say who asks."""
    return job.caller


@agent.op("/forms/refuse")
async def refuse() -> None:
    """Refuse."""
    raise Refused("the shop is closed")


@agent.op("/forms/brief", timeout="50ms")
async def brief() -> None:
    """Take too long."""
    await asyncio.Event().wait()


@agent.op("/forms/wait")
async def wait(job: Job) -> None:
    """Wait until somebody stops it."""
    try:
        await asyncio.Event().wait()
    finally:
        ended.append(job.id)
