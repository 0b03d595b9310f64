"""An agent of a home with two dispatchers serves both, and each alone."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from spinal.agents import Agent, Job
from spinal.agents.life import Life
from spinal.bus import Client
from spinal.dispatcher import Dispatcher
from spinal.testing import MemoryBus, eventually, virtual_time

from .conftest import role_of

ONE, TWO = "one.memory.test", "two.memory.test"
AGENT = "agent1@memory.test/agent"


def roles(address: str) -> str | None:
    return "dispatcher" if address in (ONE, TWO) else role_of(address)


@pytest.mark.parametrize("how", ["hang", "kill"])
def test_an_agent_that_knows_one_dispatcher_serves_the_other_when_that_is_gone(how: str) -> None:
    @virtual_time
    async def story() -> None:
        agent = Agent("agent1")

        @agent.op("/who", effects="reads")
        async def who(job: Job) -> str:
            return job.caller

        bus = MemoryBus()
        async with AsyncExitStack() as stack:
            one, two = [
                await stack.enter_async_context(
                    Dispatcher(bus.connection(own), roles=roles, dispatchers=[other], epoch=1)
                )
                for own, other in ((ONE, TWO), (TWO, ONE))
            ]
            life = await stack.enter_async_context(
                Life(agent, bus.connection(AGENT), dispatchers=[ONE])
            )
            await eventually(lambda: AGENT in one.registry and AGENT in two.registry)
            assert set(life.session.dispatchers) == {ONE, TWO}
            client = await stack.enter_async_context(
                Client(connection=bus.connection("caller@memory.test/a"), dispatchers=[TWO])
            )
            assert await client.call("/who") == "caller@memory.test/a"

            getattr(bus, how)(ONE)
            assert await client.options(timeout=5).call("/who") == "caller@memory.test/a"
            bus.resume(ONE)

    story()
