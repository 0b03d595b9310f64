"""Running agents as a program: log-in, signals, and an end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from spinal.bus import loops
from spinal.bus.blob import Store
from spinal.bus.blobs import Blobs
from spinal.bus.client import connect
from spinal.bus.connection import Connection
from spinal.bus.errors import HomeError
from spinal.bus.home import Credentials, Home
from spinal.bus.registration import tell_server
from spinal.protocols import address as addresses

from .agent import Agent
from .errors import AgentError
from .files import load_file, load_module
from .life import DRAIN, Life

__all__ = ["Login", "load_file", "load_module", "log_in", "run", "serve"]

log = structlog.get_logger()

#: Resource of an agent that has an account of its own.
RESOURCE = "agent"


@dataclass(frozen=True, slots=True)
class Login:
    """What an agent goes on the bus with."""

    connection: Connection
    dispatchers: Sequence[str] = ()
    store: Store | None = None


#: Gives an agent its way onto the bus, for the length of a block.
LogIn = Callable[[Agent], contextlib.AbstractAsyncContextManager[Login]]


@contextlib.asynccontextmanager
async def log_in(
    agent: Agent,
    home: Path | None = None,
    *,
    name: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> AsyncGenerator[Login]:
    """Find credentials for an agent and hold its name.

    With ``SPINAL_ADDRESS`` in the environment, and no home given, those of the environment.  Else
    the home's: the agent gets an account of its own, named after it, with a number behind where
    another process runs the same agent; the name is given to :attr:`Agent.name`.

    Args:
        agent: who is to go on the bus.
        home: folder of the home.
        name: insist on this name.
        environ: the environment.

    Raises:
        HomeError: no home, a taken name, or credentials that cannot be used.
    """
    with contextlib.ExitStack() as stack:
        if home is None and "SPINAL_ADDRESS" in environ:
            credentials = _named(Credentials.find(environ), name)
            agent.name = addresses.local(credentials.address)
        else:
            found = Home.find(home, environ)
            agent.name = stack.enter_context(
                found.claim_agent_name(agent.declared, name, agent.role)
            )
            if found.managed and agent.name not in found.accounts():
                found.add_account(agent.name, agent.role)
                await tell_server(found, agent.name)
            credentials = found.credentials(agent.name, RESOURCE)
        connection = connect(credentials)
        store = Blobs(connection, credentials.domain, credentials.uploads, credentials.ca)
        try:
            yield Login(connection, credentials.dispatchers, store)
        finally:
            await store.close()


def _named(credentials: Credentials, name: str | None) -> Credentials:
    """Complete a bare address; it has to be that of the name that was asked for, if one was."""
    own = addresses.local(credentials.address)
    if name is not None and name != own:
        raise HomeError(
            f"SPINAL_ADDRESS is {own}'s, so the agent cannot be called {name!r}: leave --name out, "
            f"or use the home"
        )
    if addresses.resource(credentials.address):
        return credentials
    return replace(credentials, address=f"{credentials.address}/{RESOURCE}")


async def serve(
    *agents: Agent,
    log_in: LogIn = log_in,
    grace: float = DRAIN,
    ready: Callable[[Sequence[Life]], None] = lambda lives: None,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> None:
    """Run agents until a signal comes, and end in good order.

    The first signal drains: nothing new is taken, what runs may end within ``grace`` seconds, and
    results wait to be taken.  The second one cancels what runs.

    Args:
        agents: what to run.
        log_in: how each gets onto the bus.
        grace: seconds for what runs.
        ready: called once all are on the bus.
        signals: what ends it.

    Raises:
        RoleRefused: a dispatcher does not take one of them.
        SpinalError: what kept one of them from the bus, or took it off for good.
    """
    if not agents:
        raise AgentError("no agent to run: give the path of an agent's file")
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()

    def signalled(number: signal.Signals) -> None:
        log.info("signal_received", signal=number.name)
        (second if first.is_set() else first).set()

    for number in signals:
        loop.add_signal_handler(number, signalled, number)
    try:
        async with contextlib.AsyncExitStack() as stack:
            lives: list[Life] = []
            for agent in agents:
                login = await stack.enter_async_context(log_in(agent))
                lives.append(
                    await stack.enter_async_context(
                        agent.start(
                            login.connection, dispatchers=login.dispatchers, store=login.store
                        )
                    )
                )
            ready(lives)
            await _first_of(first.wait(), *(_raise(life) for life in lives))
            await _first_of(second.wait(), _drain(lives, grace))
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _drain(lives: Sequence[Life], grace: float) -> None:
    await asyncio.gather(*(life.drain(grace) for life in lives))


async def _raise(life: Life) -> None:
    raise await life.failed()


async def _first_of(*works: Coroutine[object, object, object]) -> None:
    """Wait until one of them ends, and cancel the others; raises what the first one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def run(*agents: Agent, home: Path | None = None, grace: float = DRAIN) -> None:
    """Run agents until SIGTERM or Ctrl-C; for the end of an agent's own file.

    ``spinal agent run FILE`` does the same with options.

    Raises what :func:`serve` raises.
    """

    def find(agent: Agent) -> contextlib.AbstractAsyncContextManager[Login]:
        return log_in(agent, home)

    loops.run(serve(*agents, log_in=find, grace=grace))
