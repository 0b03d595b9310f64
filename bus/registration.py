"""Telling a server that runs already about an account of the home.

``spinal up`` tells its server about all of them when it starts; this is for those that are made or
removed afterwards.
"""

from __future__ import annotations

import asyncio
from typing import Final

from . import server
from .home import Home
from .server.errors import ServerError

#: How long a server that is just starting is waited for, in seconds, and how often it is tried.
PATIENCE: Final = 10.0
PAUSE: Final = 0.2


async def tell_server(home: Home, name: str) -> None:
    """Make the account known at the running server, or unknown if the home no longer has it.

    Does nothing where no server of the home's own runs.

    Raises:
        ServerError: the server cannot be told.
    """
    if not home.managed:
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while home.holder() is not None:
        try:
            await _tell(home, name)
            return
        except ServerError:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(PAUSE)


async def _tell(home: Home, name: str) -> None:
    config = home.server_config()
    if name in home.accounts():
        await server.add_account(home.server, config, name, home.password(name))
    else:
        await server.remove_account(home.server, config, name)
