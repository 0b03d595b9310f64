"""What is the same for every library: an address that is kept connected, one stream after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import pytest

from spinal.bus.errors import AddressTaken, BusError, CertificateRefused, LoginRefused
from spinal.bus.transports.streams import StreamConnection
from spinal.protocols import Message, Stanza
from spinal.testing import ManualClock


class Nobody:
    """Listens to nothing."""

    def opened(self) -> None: ...
    def closed(self, reason: str) -> None: ...
    def received(self, stanza: Stanza) -> None: ...
    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        return False

    def said(self, message: Message) -> None: ...


class Scripted(StreamConnection):
    """Logs in, or does not, as it is told."""

    def __init__(self, script: Iterator[BusError | None]) -> None:
        super().__init__("server", 1)
        self._script = script
        self.logins = 0

    async def _begin(self, ended: asyncio.Future[Exception | str]) -> str:
        self._stream = object()
        if (error := next(self._script)) is not None:
            raise error
        self.logins += 1
        self.ended = ended
        return "a@bus.test/desk"

    def _alive(self) -> bool:
        return not self.ended.done()

    def _put(self, data: bytes) -> None: ...
    async def _finish(self) -> None: ...
    async def _end(self) -> None: ...


def always(error: BusError) -> Iterator[BusError | None]:
    yield None
    while True:
        yield error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(LoginRefused("no"), 15.0), (AddressTaken("no"), 60.0), (CertificateRefused("no"), 0.0)],
)
def test_a_refusal_after_a_break_is_doubted_for_a_while(error: BusError, seconds: float) -> None:
    async def story() -> None:
        connection = Scripted(always(error))
        await connection.open(Nobody())
        began = asyncio.get_running_loop().time()
        connection.ended.set_result("cut")

        assert await connection.failed() is error
        took = asyncio.get_running_loop().time() - began
        assert seconds <= took < seconds + 40
        await connection.close()

    ManualClock().run(story())


def test_a_server_that_has_forgotten_an_account_for_a_moment_is_asked_again() -> None:
    async def story() -> None:
        connection = Scripted(iter([None, LoginRefused("no"), LoginRefused("no"), None]))
        await connection.open(Nobody())
        connection.ended.set_result("cut")
        while connection.logins < 2:
            await asyncio.sleep(1)

        assert connection.connected
        await connection.close()

    ManualClock().run(story())


def test_a_first_login_that_is_refused_is_believed() -> None:
    async def story() -> None:
        connection = Scripted(iter([LoginRefused("no")]))
        with pytest.raises(LoginRefused):
            await connection.open(Nobody())
        await connection.close()

    ManualClock().run(story())
