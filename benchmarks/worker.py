"""The agent that the benchmarks call: it does nothing."""

from __future__ import annotations

from spinal.agents import Agent

#: So many that they never bind.
agent = Agent("bench", slots=4096)


@agent.op("/bench/nothing", effects="reads")
async def nothing(x: int = 0) -> int:
    """Give the number back."""
    return x
