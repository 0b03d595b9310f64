"""Runs on rented machines: says how long a text is, and takes its time."""

import asyncio

from spinal.agents import Agent

agent = Agent("words", slots=1)

#: Seconds for each.
TAKES = 0.3


@agent.op("/word/length", effects="reads")
async def length(word: str) -> int:
    """Count characters."""
    await asyncio.sleep(TAKES)
    return len(word)
