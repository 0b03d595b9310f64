"""Many agents in one process, each at an address of its own: ``python crowd.py FIRST COUNT``."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from spinal.agents import Agent
from spinal.agents.runner import Login, serve
from spinal.bus.client import connect
from spinal.bus.home import Home

HOME = Home.find()
ACCOUNT = "crowd"


def member(number: int) -> Agent:
    """Write one of them down."""
    agent = Agent(f"{ACCOUNT}-{number}")

    @agent.op("/crowd/number", effects="reads")
    async def own_number() -> int:  # pyright: ignore[reportUnusedFunction]
        """Give its number."""
        return number

    return agent


@asynccontextmanager
async def log_in(agent: Agent) -> AsyncGenerator[Login]:
    credentials = HOME.credentials(ACCOUNT, agent.name)
    yield Login(connect(credentials), credentials.dispatchers)


first, count = map(int, sys.argv[1:])
asyncio.run(serve(*(member(n) for n in range(first, first + count)), log_in=log_in))
