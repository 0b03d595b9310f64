from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spinal.agents import Agent, AgentError
from spinal.agents.errors import RoleRefused
from spinal.agents.files import load_file
from spinal.agents.life import Life
from spinal.agents.runner import Login, log_in, serve
from spinal.bus.errors import HomeError
from spinal.bus.home import Home
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryBus
from spinal.protocols import Problem, Stanza

DISPATCHER = "dispatcher@memory.test/d"


class Stage:
    """A bus, agents that are being served on it, and a caller."""

    def __init__(self, files: Path) -> None:
        self.bus = MemoryBus()
        self.agent = load_file(files / "mixed.py")
        self.lives: Sequence[Life] = ()
        self.ready = asyncio.Event()

    @asynccontextmanager
    async def log_in(self, agent: Agent) -> AsyncGenerator[Login]:
        connection = self.bus.connection(f"{agent.name}@memory.test/agent")
        yield Login(connection, [DISPATCHER])

    def _ready(self, lives: Sequence[Life]) -> None:
        self.lives = lives
        self.ready.set()

    async def serve(self, *agents: Agent, grace: float = 10.0) -> asyncio.Task[None]:
        """Start serving, and return when the agents are on the bus."""
        serving = asyncio.create_task(
            serve(
                *(agents or [self.agent]),
                log_in=self.log_in,
                grace=grace,
                ready=self._ready,
                signals=[signal.SIGUSR1],
            )
        )
        ready = asyncio.create_task(self.ready.wait())
        await asyncio.wait([serving, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if serving.done():
            serving.result()
        return serving


@pytest.fixture
async def stage(files: Path) -> Stage:
    return Stage(files)


def send_signal() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


async def busy(life: Life) -> None:
    async with asyncio.timeout(10):
        while not life.slots.busy:
            await asyncio.sleep(0.001)


async def test_a_signal_drains_and_what_runs_ends(stage: Stage) -> None:
    serving = await stage.serve()
    async with Session(stage.bus.connection("ann@memory.test/a")) as caller:
        call = caller.call(stage.lives[0].address, "/run", {"argv": ["sleep", "0.2"]})
        await busy(stage.lives[0])
        send_signal()
        assert await call.result() == ""
        async with asyncio.timeout(10):
            await serving


async def test_a_second_signal_cancels_what_runs(stage: Stage) -> None:
    serving = await stage.serve(grace=1000)
    async with Session(stage.bus.connection("ann@memory.test/a")) as caller:
        call = caller.call(stage.lives[0].address, "/run", {"argv": ["sleep", "100"]})
        await busy(stage.lives[0])
        send_signal()
        while stage.lives[0].state != "draining":
            await asyncio.sleep(0.001)
        send_signal()
        async with asyncio.timeout(10):
            await serving
        assert not call.done
        caller.abandon(call)


async def test_several_agents_run_in_one_program(stage: Stage) -> None:
    other = Agent("other")

    @other.op("/hello")
    async def hello() -> str:
        return "hello"

    serving = await stage.serve(stage.agent, other)
    async with Session(stage.bus.connection("ann@memory.test/a")) as caller:
        assert await caller.call("mixed@memory.test/agent", "/add", {"a": 1}).result() == 2
        assert await caller.call("other@memory.test/agent", "/hello").result() == "hello"
    send_signal()
    async with asyncio.timeout(10):
        await serving


async def test_a_refused_role_ends_the_program_with_that_error(stage: Stage) -> None:
    serving = await stage.serve()
    refusal = Stanza(
        "presence", "error", stage.lives[0].address, problem=Problem("not-allowed", "a caller")
    )
    async with Session(stage.bus.connection(DISPATCHER)) as dispatcher:
        dispatcher.connection.send(refusal)
        with pytest.raises(RoleRefused, match="give its account the role agent"):
            async with asyncio.timeout(10):
                await serving


async def test_a_connection_that_gives_up_ends_the_program_with_its_error(stage: Stage) -> None:
    from spinal.bus.errors import AddressTaken

    serving = await stage.serve()
    address = stage.lives[0].address
    async with Session(stage.bus.connection(address)):
        with pytest.raises(AddressTaken):
            async with asyncio.timeout(10):
                await serving


async def test_no_agent_is_an_error() -> None:
    with pytest.raises(AgentError, match="no agent to run"):
        await serve()


async def test_an_agent_gets_an_account_of_its_own_in_the_home(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home")
    assert home.ca is not None
    home.ca.parent.mkdir(exist_ok=True)
    home.ca.touch()  # As if it had been up.
    first, second = Agent("thumbs"), Agent("thumbs")
    async with log_in(first, home.path) as one, log_in(second, home.path):
        assert (first.name, second.name) == ("thumbs", "thumbs-2")
        assert home.accounts()["thumbs"] == home.accounts()["thumbs-2"] == "agent"
        assert list(one.dispatchers) == list(home.dispatchers)
        with pytest.raises(HomeError, match="taken"):
            async with log_in(Agent("thumbs"), home.path, name="thumbs"):
                pass
    third = Agent("thumbs")
    async with log_in(third, home.path):
        assert third.name == "thumbs"


async def test_the_environment_goes_before_the_default_home(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o600)
    environ = {
        "SPINAL_ADDRESS": "worker@bus.test",
        "SPINAL_PASSWORD_FILE": str(password),
        "SPINAL_DISPATCHER": "d1@bus.test/x d2@bus.test/x",
    }
    async with log_in(Agent("x"), environ=environ) as login:
        assert list(login.dispatchers) == ["d1@bus.test/x", "d2@bus.test/x"]


async def test_without_home_and_environment_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="spinal up"):
        async with log_in(Agent("x"), environ={"SPINAL_HOME": str(tmp_path / "none")}):
            pass


async def test_the_account_of_an_agent_gets_its_role(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home")
    assert home.ca is not None
    home.ca.parent.mkdir(exist_ok=True)
    home.ca.touch()  # As if it had been up.
    for declared, role in (("gate", "gateway"), ("worker", "agent")):
        async with log_in(Agent(declared, role=role), home.path):
            assert home.accounts()[declared] == role
    # One of another role is somebody else's.
    with pytest.raises(HomeError, match="with the role agent, and this agent needs the role gatew"):
        async with log_in(Agent("worker", role="gateway"), home.path, name="worker"):
            pass
    agent = Agent("gate", role="agent")
    async with log_in(agent, home.path):
        assert agent.name == "gate-2" and home.accounts()["gate-2"] == "agent"
