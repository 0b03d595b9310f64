"""An agent with things that people ask for in a chat."""

import asyncio

from spinal.agents import Agent

agent = Agent("errands", slots=4)


@agent.op("/text/shout", effects="reads")
async def shout(text: str, times: int = 1) -> list[str]:
    """Say it louder."""
    return [text.upper()] * times


@agent.op("/coffee/make", effects="writes", timeout="10m")
async def make(minutes: float) -> str:
    """Make coffee."""
    await asyncio.sleep(minutes * 60)
    return "coffee is ready"


@agent.op("/disk/clean", effects="deletes")
async def clean() -> None:
    """Delete old files."""
