"""The dispatcher of a home as a process: ``python -m spinal.dispatcher --home DIR``.

With the embedded server, that server runs in the same process and the dispatcher is attached to
it; with a managed server the dispatcher is a component on loopback; with a server elsewhere it is
an account.  SIGTERM and SIGINT end it with status 0.  ``spinal up`` starts it, watches it and
restarts it (``--supervisor``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import structlog

from spinal import logs
from spinal.agents.provider.market import Market
from spinal.bus.client import connect
from spinal.bus.connection import Connection
from spinal.bus.errors import BusError
from spinal.bus.home import Home, Roles
from spinal.bus.loops import run
from spinal.bus.server import add_accounts
from spinal.protocols import SpinalError

from .garbage import seldom_collected
from .joining.joining import Joining
from .pools.door import HomeDoor
from .pools.renting import Renting
from .service import Dispatcher
from .store import store_for
from .supervised import Supervisor, die_with_parent, supervised

log = structlog.get_logger()

#: Seconds that calls at agents have to end when we are to stop.
GRACE = 5.0


@asynccontextmanager
async def connection_of(home: Home) -> AsyncGenerator[Connection]:
    """Give the dispatcher's connection; runs the embedded server around it where there is one.

    Raises :class:`SpinalError` if that cannot be started, or the account is not there.
    """
    if home.server == "embedded":
        from spinal.bus.server.embedded import EmbeddedServer
        from spinal.bus.transports.attached import AttachedConnection

        # Attached in this process, so nobody else may come as the dispatcher's component.
        config = replace(home.server_config(), components={})
        passwords = {name: home.password(name) for name in home.accounts()}
        await add_accounts("embedded", config, passwords)
        server = EmbeddedServer(config)
        await server.start()
        try:
            yield AttachedConnection(server, home.dispatcher)
        finally:
            await server.stop()
    elif home.managed:
        from spinal.bus.transports.slixmpp import ComponentConnection

        yield ComponentConnection(
            home.dispatcher, home.component_secret(), "127.0.0.1", home.ports.component
        )
    else:
        yield connect(home.credentials(home.dispatcher_account, "dispatcher"))


async def serve(home: Home, supervisor: Supervisor, stop: asyncio.Event) -> None:
    """Dispatch until ``stop`` is set.

    Raises :class:`SpinalError` if it cannot start, or its stream is lost for good.
    """
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(seldom_collected())
        connection = await stack.enter_async_context(connection_of(home))
        roles = Roles(home)
        store = store_for(home.store)
        market = Market(home.path)
        joining = Joining(home, store, host=market().bus)
        renting = Renting(
            door=HomeDoor(joining),
            domain=home.domain,
            home=home.id,
            market=market,
            pace=market().pace,
        )
        dispatcher = Dispatcher(
            connection,
            roles=roles.of,
            accounts=roles.table,
            known=home.dispatcher_folder / "agents.json",
            dispatchers=(home.dispatcher,),
            store=store,
            on_dispatchers=home.keep_others,
            joining=joining,
            renting=renting,
        )
        await stack.enter_async_context(dispatcher)
        await stack.enter_async_context(joining)
        supervisor.ready()
        stopped, failed = map(asyncio.ensure_future, (stop.wait(), dispatcher.failed()))
        try:
            await asyncio.wait([stopped, failed], return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise BusError(f"the dispatcher cannot go on: {failed.result()}")
            await dispatcher.finish(GRACE)
        finally:
            stopped.cancel()
            failed.cancel()


async def main(place: Path | None, descriptor: int | None) -> int:
    """Run it; gives the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with supervised(descriptor, stop) as supervisor:
        try:
            await serve(Home.find(place), supervisor, stop)
        except SpinalError as error:
            log.error("dispatcher_failed", error=str(error))
            supervisor.failed(error)
            return error.exit_code
        except Exception:
            log.exception("dispatcher_crashed")
            return 1
    return 0


def _raise_limits() -> None:
    """Take as many descriptors as we may: each agent is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _share_fairly() -> None:
    """Suit the interpreter to an event loop that is busy beside threads of the store."""
    # A thread of the store waits so long for the interpreter's lock, at each step of a transaction.
    sys.setswitchinterval(0.0005)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spinal.dispatcher", description=__doc__)
    parser.add_argument("--home", type=Path, help="the home folder")
    parser.add_argument(
        "--supervisor", type=int, metavar="FD", help="socket to whoever watches this process"
    )
    return parser.parse_args()


if __name__ == "__main__":
    given = _read_arguments()
    if given.supervisor is not None:
        die_with_parent(os.getppid())
    logs.configure("info")
    _raise_limits()
    _share_fairly()
    sys.exit(run(main(given.home, given.supervisor)))
