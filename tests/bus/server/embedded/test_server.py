"""The server as an object, and services in this process."""

from __future__ import annotations

import asyncio
import socket

import pytest
from tests.bus.server.embedded.conftest import PASSWORD, World, ignore

from spinal.bus.server.contract import Server
from spinal.bus.server.embedded import EmbeddedServer
from spinal.bus.server.embedded.router import Receive
from spinal.bus.server.errors import PortTaken, ServerError

Got = asyncio.Queue[tuple[str, dict[str, str], bytes]]


def into(got: Got) -> Receive:
    def receive(kind: str, attributes: dict[str, str], inner: bytes) -> None:
        got.put_nowait((kind, attributes, inner))

    return receive


async def test_it_is_a_server(world: World) -> None:
    server: Server = world.server
    await server.add_account("a", PASSWORD)
    await server.probe()
    assert server.ca.read_text().startswith("-----BEGIN CERTIFICATE")
    waiting = asyncio.create_task(server.wait())
    await server.stop()
    await server.stop()
    assert await waiting == 0
    with pytest.raises(ServerError, match="cannot be reached"):
        await server.probe()


async def test_it_can_be_started_again_on_the_same_ports(world: World) -> None:
    await world.login("a")
    await world.restart()
    await (await world.login("a")).nothing_but()


@pytest.mark.parametrize("which", ["c2s", "component", "upload"])
async def test_a_port_that_is_taken_is_named_and_nothing_is_left_running(
    world: World, which: str
) -> None:
    config = world.server.config
    await world.server.stop()
    port = getattr(config.ports, which)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(PortTaken) as refused:
            await EmbeddedServer(config).start()
        assert refused.value.port == port
    server = EmbeddedServer(config)
    await server.start()
    await server.stop()


async def test_streams_are_told_when_the_server_stops(world: World) -> None:
    a = await world.login("a")
    stopping = asyncio.create_task(world.server.stop())
    assert "<system-shutdown" in await a.rest()
    await a.close()
    await asyncio.wait_for(stopping, 1)


async def test_streams_of_a_removed_account_end(world: World) -> None:
    a, b = await world.login("a"), await world.login("b")
    await a.ask(
        "<iq type='set' id='1'><query xmlns='jabber:iq:roster'><item jid='b@bus.test'/></query></iq>",
        "type='result'",
    )
    await world.server.remove_account("a")
    await world.server.remove_account("nobody")
    assert "<not-authorized" in await a.rest()
    assert await b.nothing_but() == ""
    # Whoever gets the name next does not get the roster.
    a = await world.login("a")
    await a.ask("<iq type='get' id='1'><query xmlns='jabber:iq:roster'/></iq>", "'></query></iq>")


async def test_a_removal_by_another_process_is_noticed(world: World) -> None:
    a = await world.login("a")
    for path in world.server.accounts.folder.iterdir():
        path.unlink()
    assert "<not-authorized" in await a.rest()


async def test_a_service_in_this_process_gets_slices_and_answers(world: World) -> None:
    got: Got = asyncio.Queue()
    service = world.server.attach("disp.bus.test", into(got))
    a = await world.login("a")
    await a.say("<iq to='x@disp.bus.test' type='get' id='&lt;1'><q xmlns='urn:q'>&amp;</q></iq>")
    kind, attributes, inner = await got.get()
    assert (kind, inner) == ("iq", b"<q xmlns='urn:q'>&amp;</q>")
    assert attributes == {
        "to": "x@disp.bus.test",
        "type": "get",
        "id": "<1",
        "from": "a@bus.test/r",
        "xml:lang": "en",
    }
    back = {"to": "a@bus.test/r", "from": "x@disp.bus.test", "type": "result", "id": "<1"}
    service.deliver("iq", back, b"<r xmlns='urn:q'/>")
    assert await a.until("</iq>") == (
        "<iq to='a@bus.test/r' from='x@disp.bus.test' type='result' id='&lt;1'>"
        "<r xmlns='urn:q'/></iq>"
    )


async def test_a_service_learns_of_absent_addressees_but_not_inside_its_own_call(
    world: World,
) -> None:
    got: Got = asyncio.Queue()
    service = world.server.attach("disp.bus.test", into(got))
    service.deliver("presence", {"to": "a@bus.test/gone", "from": "disp.bus.test", "id": "7"}, b"")
    assert got.empty()
    kind, attributes, inner = await got.get()
    assert (kind, attributes["type"], attributes["id"]) == ("presence", "error", "7")
    assert b"<service-unavailable" in inner


async def test_services_talk_to_each_other(world: World) -> None:
    got: Got = asyncio.Queue()
    one = world.server.attach("one.bus.test", ignore)
    world.server.attach("two.bus.test", into(got))
    one.deliver("message", {"to": "x@two.bus.test", "from": "y@one.bus.test"}, b"<a/>")
    assert (await got.get())[2] == b"<a/>"


async def test_an_error_in_a_service_hurts_nobody_else(world: World) -> None:
    def broken(kind: str, attributes: dict[str, str], inner: bytes) -> None:
        raise RuntimeError("broken")

    world.server.attach("disp.bus.test", broken)
    a = await world.login("a")
    await a.say("<message to='disp.bus.test'/>")
    await a.ask(
        "<iq to='disp.bus.test' type='get' id='1'><q xmlns='q'/></iq>", "<internal-server.*?</iq>"
    )
    assert await a.nothing_but() == ""


async def test_a_closed_service_is_gone(world: World) -> None:
    service = world.server.attach("disp.bus.test", ignore)
    service.close()
    service.close()
    with pytest.raises(ServerError, match="detached"):
        service.deliver("message", {"to": "a@bus.test", "from": "disp.bus.test"}, b"")
    a = await world.login("a")
    await a.ask("<presence to='disp.bus.test'/>", "type='error'")
    world.server.attach("disp.bus.test", ignore)


@pytest.mark.parametrize(
    "attributes",
    [
        {"to": "a@bus.test"},
        {"from": "disp.bus.test"},
        {"from": "a@bus.test", "to": "a@bus.test"},
        {"from": "disp.bus.test.evil.test", "to": "a@bus.test"},
    ],
)
async def test_a_service_speaks_for_itself_only(world: World, attributes: dict[str, str]) -> None:
    service = world.server.attach("disp.bus.test", ignore)
    with pytest.raises(ValueError, match=r"disp\.bus\.test"):
        service.deliver("message", attributes, b"")


async def test_a_domain_is_attached_once_and_only_while_the_server_runs(world: World) -> None:
    with pytest.raises(ServerError, match="attached already"):
        world.server.attach("bus.test", ignore)
    with pytest.raises(ServerError, match="not started"):
        EmbeddedServer(world.server.config).attach("x.test", ignore)
    service = world.server.attach("x.test", ignore)
    await world.server.stop()
    service.close()
