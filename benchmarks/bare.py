"""The yardstick: IQs of our namespace to and fro, no session, no codec, no operation.

``python -m benchmarks.bare``, with credentials in the environment, is the end that answers.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from xml.etree.ElementTree import Element

from spinal.bus import Credentials
from spinal.bus.connection import ID_PREFIX, Connection
from spinal.bus.transports.slixmpp import ClientConnection
from spinal.protocols import Codec, Message, Op, Stanza
from spinal.protocols import address as addresses

from . import rounds

#: Account, and resource, of the end that answers.
NAME = "bare"


def connect() -> ClientConnection:
    """Make the connection that the credentials of the environment are for."""
    found = Credentials.find()
    own = f"{addresses.bare(found.address)}/{NAME}"
    return ClientConnection(own, found.password, found.host, found.port, found.ca)


class Asking:
    """The asking end: a future per id, nothing else.  Use as an async context manager."""

    def __init__(self) -> None:
        self._connection = connect()
        self._to = f"{NAME}@{Credentials.find().domain}/{NAME}"
        self._waiting: dict[str, asyncio.Future[Stanza]] = {}
        self._number = 0
        # The bytes of a real op, so that both kinds move the same.
        self._body = Codec().write([Op("0123456789-1", op="/bench/nothing", left=60_000)])

    async def __aenter__(self) -> Self:
        await self._connection.open(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._connection.close()

    def opened(self) -> None:
        """Nothing to do."""

    def closed(self, reason: str) -> None:
        """A benchmark whose stream breaks is void."""

    def received(self, stanza: Stanza) -> None:
        """Settle the future."""
        waiting = self._waiting.pop(stanza.id, None)
        if waiting is not None:
            waiting.set_result(stanza)

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        """Understand nothing."""
        return False

    def said(self, message: Message) -> None:
        """Nobody talks here."""

    async def trip(self) -> None:
        """Ask once."""
        self._number += 1
        id = f"{ID_PREFIX}{self._number}"
        answer = self._waiting[id] = asyncio.get_running_loop().create_future()
        self._connection.send(Stanza("iq", "set", self._to, id=id, body=self._body))
        await answer


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

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        """Understand nothing."""
        return False

    def said(self, message: Message) -> None:
        """Nobody talks here."""


async def main() -> None:
    """Log in and answer until the parent is gone."""
    connection = connect()
    await connection.open(Answering(connection))
    await rounds.obey({})
    await connection.close()


if __name__ == "__main__":
    rounds.run(main)
