"""What the server itself answers."""

from __future__ import annotations

import pytest
from tests.bus.server.embedded.conftest import World, ignore

INFO = "<query xmlns='http://jabber.org/protocol/disco#info'/>"
ITEMS = "<query xmlns='http://jabber.org/protocol/disco#items'/>"


def get(payload: str, to: str = "bus.test") -> str:
    return f"<iq type='get' id='1' to='{to}'>{payload}</iq>"


async def test_the_server_says_what_it_is(world: World) -> None:
    a = await world.login("a")
    text = await a.ask(get(INFO), "</iq>")
    assert "<identity category='server' type='im' name='Spinal'/>" in text
    for feature in ("http://jabber.org/protocol/disco#info", "urn:xmpp:ping", "jabber:iq:version"):
        assert f"<feature var='{feature}'/>" in text


async def test_the_server_lists_its_services(world: World) -> None:
    world.server.attach("disp.bus.test", ignore)
    a = await world.login("a")
    text = await a.ask(get(ITEMS), "</iq>")
    assert "<item jid='disp.bus.test'/><item jid='upload.bus.test'/>" in text
    assert "jid='bus.test'" not in text


async def test_the_server_has_no_nodes(world: World) -> None:
    a = await world.login("a")
    await a.ask(get(INFO.replace("/>", " node='x'/>")), "<item-not-found")


async def test_the_server_tells_its_version(world: World) -> None:
    a = await world.login("a")
    await a.ask(get("<query xmlns='jabber:iq:version'/>"), "<name>Spinal</name><version>")


@pytest.mark.parametrize("to", ["bus.test", "a@bus.test", None])
async def test_pings_are_answered(world: World, to: str | None) -> None:
    a = await world.login("a")
    addressed = f" to='{to}'" if to else ""
    text = await a.ask(
        f"<iq type='get' id='p'{addressed}><ping xmlns='urn:xmpp:ping'/></iq>", "<iq[^>]*/>"
    )
    assert "type='result'" in text


async def test_an_account_describes_itself_to_its_owner_only(world: World) -> None:
    a, b = await world.login("a"), await world.login("b")
    text = await a.ask(get(INFO, "a@bus.test"), "</iq>")
    assert "<identity category='account' type='registered'" in text
    await a.ask(get(ITEMS, "a@bus.test"), "disco#items'/></iq>")
    await b.ask(get(INFO, "a@bus.test"), "<service-unavailable")


@pytest.mark.parametrize(
    "payload",
    [
        "<vCard xmlns='vcard-temp'/>",
        "<query xmlns='jabber:iq:private'><storage xmlns='storage:bookmarks'/></query>",
        "<blocklist xmlns='urn:xmpp:blocking'/>",
        "<enable xmlns='urn:xmpp:carbons:2'/>",
        "<pubsub xmlns='http://jabber.org/protocol/pubsub'><items node='x'/></pubsub>",
    ],
)
async def test_what_it_does_not_offer_it_says_so(world: World, payload: str) -> None:
    a = await world.login("a")
    text = await a.ask(f"<iq type='get' id='1'>{payload}</iq>", "</iq>")
    assert "<service-unavailable" in text
    assert "type='error'" in text


async def test_a_prefixed_request_is_understood(world: World) -> None:
    a = await world.login("a")
    await a.ask(
        "<iq type='get' id='1' to='bus.test' xmlns:p='urn:xmpp:ping'><p:ping/></iq>",
        "type='result'",
    )


async def test_it_knows_of_commands_so_that_clients_send_them_to_others(world: World) -> None:
    commands = "http://jabber.org/protocol/commands"
    a = await world.login("a")
    assert f"<feature var='{commands}'/>" in await a.ask(get(INFO), "</iq>")
    text = await a.ask(get(ITEMS.replace("/>", f" node='{commands}'/>")), "</iq>")
    assert f"<query xmlns='http://jabber.org/protocol/disco#items' node='{commands}'/>" in text
    run = f"<iq type='set' id='1' to='bus.test'><command xmlns='{commands}' node='x'/></iq>"
    await a.ask(run, "<service-unavailable")


async def test_a_huge_request_to_the_server_is_refused(world: World) -> None:
    a = await world.login("a")
    huge = get(f"<ping xmlns='urn:xmpp:ping'>{'<a/>' * 20_000}</ping>")
    await a.ask(huge, "<policy-violation.*?</iq>")
    assert await a.nothing_but() == ""
