from __future__ import annotations

import asyncio
from functools import partial

import pytest

from spinal.bus import link
from spinal.bus.peers import Peer
from spinal.bus.session import Request, Session
from spinal.protocols import Advertisement, Hello, Json, Stanza
from spinal.testing import MemoryBus, eventually, virtual_time

ANN, THUMBS = "ann@memory.test/desk", "thumbs@memory.test/agent"


def test_a_new_epoch_is_a_new_life_and_the_first_is_not() -> None:
    peer = Peer(THUMBS)
    assert not peer.learn(Hello())
    assert not peer.learn(Hello(epoch=1))
    assert not peer.learn(Advertisement(hash="h", epoch=1, features=["batch"], stanza=100_000))
    assert peer.batch and peer.stanza == 100_000
    assert peer.learn(Hello(epoch=2))
    assert peer.epoch == 2 and not peer.batch


@virtual_time
async def test_both_ends_of_an_exchange_learn_when_the_other_goes_and_returns() -> None:
    async def echo(request: Request) -> Json:
        return 1

    bus = MemoryBus()
    async with (
        Session(bus.connection(THUMBS), echo, role="agent", epoch=1) as agent,
        Session(bus.connection(ANN)) as caller,
    ):
        story: list[tuple[str, bool]] = []
        agent.on_presence = lambda address, available, _: story.append((address, available))
        await caller.call(THUMBS, "/echo").result()
        await eventually(lambda: caller.peers[THUMBS].present)
        bus.cut(ANN)
        await eventually(lambda: not agent.peers[ANN].present)
        await eventually(lambda: caller.connected)
        await caller.call(THUMBS, "/echo").result()
        await eventually(lambda: agent.peers[ANN].present and caller.peers[THUMBS].present)
        bus.cut(THUMBS)
        await eventually(lambda: not caller.peers[THUMBS].present)
        assert (ANN, False) in story and story[-1] == (ANN, True)


@virtual_time
async def test_greetings_end() -> None:
    bus = MemoryBus()
    said: list[str] = []

    def note(stanza: Stanza) -> bool:
        if stanza.kind == "presence":
            said.append(stanza.sender)
        return False

    bus.faults.applies = note
    async with Session(bus.connection(THUMBS)) as one, Session(bus.connection(ANN)) as two:
        one.send_presence(ANN, one.hello())
        two.send_presence(THUMBS, two.hello())
        await asyncio.sleep(60)
        assert len(said) <= 6


@virtual_time
async def test_peers_are_bounded() -> None:
    bus = MemoryBus()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "MAX_PEERS", 20)
        async with Session(bus.connection(THUMBS)) as session:
            for number in range(100):
                async with Session(bus.connection(f"u{number}@memory.test/x")) as other:
                    other.send_presence(THUMBS, other.hello())
                    await eventually(partial(session.peers.__contains__, other.address))
            assert len(session.peers) <= 21
