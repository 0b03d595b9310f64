"""The yardstick: answers IQs of our namespace with a fixed result, no session, no codec.

Run as a child by ``run.py`` with credentials in the environment.
"""

from __future__ import annotations

import asyncio
import sys

from spinal.bus import Credentials
from spinal.bus.connection import Connection
from spinal.bus.transports.slixmpp import ClientConnection
from spinal.protocols import Stanza


class Answering:
    """Answers every IQ set with its own body."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def opened(self) -> None:
        """Be present, so that IQs to the full address arrive."""
        self._connection.send(Stanza("presence", ""))

    def closed(self, reason: str) -> None:
        """Nothing is waited for."""

    def received(self, stanza: Stanza) -> None:
        """Answer."""
        if stanza.kind == "iq" and stanza.type == "set":
            self._connection.send(
                Stanza("iq", "result", stanza.sender, id=stanza.id, body=stanza.body)
            )


async def main() -> None:
    """Log in and answer until the parent is gone."""
    found = Credentials.find()
    connection = ClientConnection(
        f"{found.address}/bare", found.password, found.host, found.port, found.ca
    )
    await connection.open(Answering(connection))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
