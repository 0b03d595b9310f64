"""Seats for a run: on the bus of a home, with accounts that are gone when it is over."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from spinal.agents.errors import AgentError
from spinal.bus.blobs import Blobs
from spinal.bus.client import connect
from spinal.bus.home import OWNER, Credentials, Home
from spinal.bus.line import AGENT_RESOURCE
from spinal.bus.registration import tell_server
from spinal.protocols import address as addresses

from .program import Program
from .seat import Seat
from .trial import Ops, Trial

#: Who takes part, beside the agent.
ROLES: Final = ("caller", "other", "dispatcher")


@asynccontextmanager
async def on_home(
    home: Home,
    target: str,
    argv: Sequence[str] = (),
    ops: Ops | None = None,
    environ: Mapping[str, str] = os.environ,
) -> AsyncGenerator[Trial]:
    """Make a run against an agent on the bus of a home.

    Where the home makes its own accounts, the run has three of its own, which are gone at its end;
    elsewhere everybody is the owner, each with a resource, and there is no second account.

    Args:
        home: where the bus is.
        target: the agent's address or the name of its account.
        argv: command that is the agent, started and ended by the run; without one the agent is
            there already.
        ops: what to ask for.
        environ: what the command gets beside the ``SPINAL_*`` variables of the agent's account.

    Raises:
        AgentError: there is no such agent, or no such account.
        SpinalError: what kept us from the bus.
    """
    async with AsyncExitStack() as stack:
        credentials = await _credentials(home, stack)
        agent = await _agent(home, target, bool(argv))

        @asynccontextmanager
        async def sit(who: str, resource: str) -> AsyncGenerator[Seat]:
            async with Seat(connect(credentials(who, resource))) as seat:
                yield seat

        caller = await stack.enter_async_context(sit("caller", "kit"))
        store = Blobs(caller.connection, home.domain, home.uploads, home.ca)
        stack.push_async_callback(store.close)
        trial = Trial(agent, caller, sit, ops=ops or Ops(), store=store)
        if home.managed:
            trial.other = await stack.enter_async_context(sit("other", "kit"))
        if argv:
            trial.dispatcher = await stack.enter_async_context(sit("dispatcher", "kit"))
            name = addresses.local(agent)
            inherited = {key: value for key, value in environ.items() if key[:7] != "SPINAL_"}
            variables = {
                **inherited,
                **home.environment(name),
                "SPINAL_DISPATCHER": trial.dispatcher.address,
            }
            trial.control = await stack.enter_async_context(Program(argv, variables))
        yield trial


async def _credentials(home: Home, stack: AsyncExitStack) -> Callable[[str, str], Credentials]:
    """Make accounts for the run, where we may."""
    if not home.managed:
        # The dispatcher's address has to differ from the caller's in its resource at least.
        return lambda who, resource: home.credentials(OWNER, f"{who}-{resource}")
    mark = secrets.token_hex(3)
    names = {who: f"conform-{mark}-{who}" for who in ROLES}

    async def remove() -> None:
        for name in names.values():
            home.remove_account(name)
            await tell_server(home, name)

    stack.push_async_callback(remove)
    home.add_accounts(names.values(), "caller")
    for name in names.values():
        await tell_server(home, name)
    return lambda who, resource: home.credentials(names[who], resource)


async def _agent(home: Home, target: str, starts: bool) -> str:
    """Find the address of an agent; one that is to be started needs an account only."""
    bare, _, resource = target.partition("/")
    bare = bare if "@" in bare else f"{bare}@{home.domain}"
    if starts:
        name = addresses.local(bare)
        if name not in home.accounts():
            if not home.managed:
                raise AgentError(
                    f"no account {name!r} in {home.path}: `spinal account add {name} --role agent`"
                )
            home.add_account(name, "agent")
            await tell_server(home, name)
        return bare
    return addresses.check(f"{bare}/{resource or AGENT_RESOURCE}")
