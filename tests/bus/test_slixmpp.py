"""What the transport over slixmpp does with its library, where no server is needed to see it."""

from __future__ import annotations

import asyncio
from typing import Any

from spinal.bus.transports import slixmpp as transport


class Pipe:
    """A transport that says whether it is read."""

    def __init__(self) -> None:
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False


async def test_a_flood_lets_others_have_their_turn() -> None:
    connection: Any = transport.ComponentConnection("part.bus.test", "secret", "127.0.0.1", 1)
    stream: Any = connection._make()
    stream.init_parser()
    pipe = stream.transport = Pipe()
    stream.data_received(b"<stream:stream xmlns='jabber:component:accept'")
    stream.data_received(b" xmlns:stream='http://etherx.jabber.org/streams' id='1'>")
    stanza = b"<message from='a@bus.test'><body>" + b"x" * 1000 + b"</body></message>"
    for _ in range(transport.READ // len(stanza)):
        stream.data_received(stanza)
        assert pipe.reading
    stream.data_received(stanza)

    assert not pipe.reading

    await asyncio.sleep(0)

    assert pipe.reading
