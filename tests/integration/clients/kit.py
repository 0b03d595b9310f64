"""An agent of our own kit that does what ``echoing.py`` asks for, over whichever library it is told."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from spinal.agents import Agent, Job
from spinal.agents.life import Life
from spinal.agents.runner import Login, log_in, serve
from spinal.bus import loops

agent = Agent("kit", slots=64)


@agent.op("/kit/echo", effects="reads")
async def echo(job: Job, text: str) -> str:
    """Give the text back."""
    print("ran", job.id, flush=True)
    return text


@agent.op("/kit/stay", effects="reads")
async def stay() -> None:
    """Stay until somebody ends it."""
    await asyncio.Event().wait()


@agent.op("/kit/count", effects="reads")
async def count() -> AsyncGenerator[int]:
    """Count until nobody listens any more."""
    number = 0
    try:
        while True:
            yield number
            number += 1
            await asyncio.sleep(0)
    finally:
        print("counted", flush=True)


@asynccontextmanager
async def direct(agent: Agent) -> AsyncGenerator[Login]:
    """Log in as every agent does, and advertise nowhere if nobody names a dispatcher."""
    async with log_in(agent) as login:
        yield login if "SPINAL_DISPATCHER" in os.environ else Login(login.connection)


def ready(lives: Sequence[Life]) -> None:
    """Say where we are, and what brought us there."""
    (life,) = lives
    libraries = [name for name in ("slixmpp", "aioxmpp") if name in sys.modules]
    print("over", *libraries, flush=True)
    print("online", life.session.address, flush=True)


if __name__ == "__main__":
    loops.run(serve(agent, log_in=direct, ready=ready))
