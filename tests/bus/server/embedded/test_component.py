"""External components (XEP-0114)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import slixmpp
from tests.bus.server.embedded.conftest import Raw, Start, World

from spinal.bus.server.embedded import Limits

DOMAIN = "disp.bus.test"
SECRET = "a secret"
HEADER = (
    "<stream:stream xmlns='jabber:component:accept' to='{}'"
    " xmlns:stream='http://etherx.jabber.org/streams'>"
)


@pytest.fixture
async def world(start: Start) -> World:
    return await start(components={DOMAIN: SECRET}, limits=Limits(login_time=0.5))


async def connect(world: World, to: str = DOMAIN) -> tuple[Raw, str]:
    """Give a component that has not shown its secret yet, and the id of its stream."""
    port = world.server.config.ports.component
    raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
    world.raws.append(raw)
    header = await raw.ask(HEADER.format(to), "<stream:stream[^>]*>")
    assert "xmlns='jabber:component:accept'" in header
    return raw, header.partition(" id='")[2].partition("'")[0]


def handshake(id: str, secret: str = SECRET) -> str:
    return f"<handshake>{hashlib.sha1((id + secret).encode()).hexdigest()}</handshake>"


async def component(world: World) -> Raw:
    raw, id = await connect(world)
    await raw.ask(handshake(id), "<handshake/>")
    return raw


@pytest.fixture
async def slix(world: World) -> AsyncGenerator[Any]:
    port = world.server.config.ports.component
    make: Any = slixmpp.ComponentXMPP
    client = make(DOMAIN, SECRET, "127.0.0.1", port)
    client.register_plugin("xep_0199")
    started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    client.add_event_handler("session_start", started.set_result)
    client.connect("127.0.0.1", port)
    await asyncio.wait_for(started, 5)
    yield client
    await client.disconnect()


async def test_slixmpp_serves_as_a_component(world: World, slix: Any) -> None:
    world.account("a")
    a = await world.client("a@bus.test/x", "xep_0199")
    assert await a.plugin["xep_0199"].ping(DOMAIN, timeout=5) < 5
    ping = slix.plugin["xep_0199"]
    assert await ping.ping("a@bus.test/x", ifrom=f"me@{DOMAIN}/r", timeout=5) < 5
    assert await ping.ping("bus.test", ifrom=DOMAIN, timeout=5) < 5


async def test_messages_and_presence_reach_a_component(world: World, slix: Any) -> None:
    got: asyncio.Queue[Any] = asyncio.Queue()
    slix.add_event_handler("message", got.put_nowait)
    slix.add_event_handler("changed_status", got.put_nowait)
    a = await world.login("a")
    await a.say(f"<message to='x@{DOMAIN}'><body>hi</body></message>")
    assert (await got.get())["body"] == "hi"
    await a.say(f"<presence to='{DOMAIN}'><show>away</show></presence>")
    assert (await got.get())["type"] == "away"
    a.cut()
    assert (await got.get())["type"] == "unavailable"


async def test_a_wrong_secret_is_refused(world: World) -> None:
    raw, id = await connect(world)
    await raw.say(handshake(id, "wrong"))
    assert "<not-authorized" in await raw.rest()


async def test_a_secret_is_worth_nothing_on_another_stream(world: World) -> None:
    _, id = await connect(world)
    raw, _ = await connect(world)
    await raw.say(handshake(id))
    assert "<not-authorized" in await raw.rest()


async def test_a_domain_that_is_not_configured_is_refused(world: World) -> None:
    raw, _ = await connect(world, "other.bus.test")
    assert "<host-unknown" in await raw.rest()


async def test_a_second_component_of_the_same_domain_is_refused(world: World) -> None:
    first = await component(world)
    second, id = await connect(world)
    await second.say(handshake(id))
    assert "<conflict" in await second.rest()
    a = await world.login("a")
    await a.say(f"<message to='{DOMAIN}'/>")
    await first.until("<message ")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("<message from='a@bus.test' to='a@bus.test'/>", "invalid-from"),
        (f"<message from='x.{DOMAIN}' to='a@bus.test'/>", "invalid-from"),
        (f"<message from='{DOMAIN}'/>", "improper-addressing"),
        ("<message to='a@bus.test'/>", "improper-addressing"),
        ("<handshake/>", "unsupported-stanza-type"),
        (f"<message xmlns='jabber:client' from='{DOMAIN}' to='a@bus.test'/>", "unsupported"),
        ("<message", "connection-timeout"),
    ],
)
async def test_what_a_component_may_not_say_ends_its_stream(
    world: World, text: str, condition: str
) -> None:
    raw, id = await connect(world)
    if condition != "connection-timeout":
        await raw.ask(handshake(id), "<handshake/>")
    await raw.say(text)
    assert f"<{condition}" in await raw.rest()


async def test_large_elements_are_refused_before_the_handshake(world: World) -> None:
    raw, _ = await connect(world)
    await raw.say("<handshake>" + "0" * 11_000)
    assert "<policy-violation" in await raw.rest()
    raw = await component(world)
    a = await world.login("a")
    await raw.say(f"<message from='{DOMAIN}' to='a@bus.test/r'>{'x' * 100_000}</message>")
    await a.until("x</message>")


async def test_its_namespace_is_spelled_as_each_side_knows_it(world: World) -> None:
    raw = await component(world)
    a = await world.login("a")
    forwarded = (
        "<f xmlns='urn:xmpp:forward:0'><message xmlns='jabber:component:accept' to='x'/></f>"
        "<body xmlns=\"jabber:component:accept\">xmlns='jabber:component:accept'</body>"
        "<![CDATA[<a xmlns='jabber:component:accept'>]]>"
    )
    await raw.say(f"<message from='{DOMAIN}' to='a@bus.test/r'>{forwarded}</message>")
    assert (
        "<f xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' to='x'/></f>"
        "<body xmlns='jabber:client'>xmlns='jabber:component:accept'</body>"
        "<![CDATA[<a xmlns='jabber:component:accept'>]]>"
    ) in await a.until("</message>$")
    await a.say(
        f"<message to='{DOMAIN}'><body xmlns='jabber:client'>jabber:client</body><e/>"
        "<f xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client'/></f></message>"
    )
    assert (
        "><body>jabber:client</body><e/>"
        "<f xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client'/></f></message>"
    ) in await raw.until("</f></message>")


async def test_a_component_that_is_away_is_told_apart_from_an_unknown_one(world: World) -> None:
    a = await world.login("a")
    ask = "<iq type='get' id='1' to='{}'><q xmlns='urn:q'/></iq>"
    text = await a.ask(ask.format(DOMAIN), "</iq>")
    assert "<error type='wait'><service-unavailable" in text
    await a.ask(f"<presence to='{DOMAIN}'/>", "<presence [^>]*type='error'.*?</presence>")
    raw = await component(world)
    await a.say(ask.format(DOMAIN))
    await raw.until("<q xmlns")
    raw.cut()
    async with asyncio.timeout(5):
        while DOMAIN in world.server.router.domains:
            await asyncio.sleep(0.001)
    await a.ask(ask.format(DOMAIN), "<error type='wait'><service-unavailable")
    await a.ask(ask.format("other.bus.test"), "<remote-server-not-found")


async def test_an_error_for_a_component_comes_back_to_it(world: World) -> None:
    raw = await component(world)
    text = await raw.ask(f"<message from='x@{DOMAIN}/r' to='nobody@bus.test'/>", "</message>")
    assert "<service-unavailable" in text
    assert f"to='x@{DOMAIN}/r'" in text


async def test_a_contact_may_live_at_a_component(world: World) -> None:
    raw = await component(world)
    a = await world.login("a", presence="<presence/>")
    await a.say(f"<presence to='bot@{DOMAIN}' type='subscribe'/>")
    await raw.until("<presence [^>]*type='subscribe'[^>]*>")
    bot = f"<presence from='bot@{DOMAIN}' to='a@bus.test'"
    await raw.say(f"{bot} type='subscribed'/>")
    await a.until("<presence [^>]*type='subscribed'[^>]*>")
    await raw.say(f"{bot}/>")
    await a.until(f"<presence from='bot@{DOMAIN}' to='a@bus.test'/>")
    await raw.say(f"{bot} type='subscribe'/>")
    await a.until("<presence [^>]*type='subscribe'[^>]*>")
    await a.say(f"<presence to='bot@{DOMAIN}' type='subscribed'/>")
    await raw.until("<presence [^>]*type='subscribed'[^>]*>")
    await raw.until("<presence [^>]*from='a@bus.test/r'[^>]*>")
    a.cut()
    await raw.until("<presence [^>]*from='a@bus.test/r'[^>]*type='unavailable'")
    a = await world.login("a")
    await a.say("<presence/>")
    await raw.until("<presence [^>]*type='probe'[^>]*>")


async def test_who_was_told_that_a_component_is_there_learns_of_its_end(world: World) -> None:
    raw = await component(world)
    a, b = await world.login("a"), await world.login("b")
    for name in "ab":
        await raw.say(f"<presence from='x@{DOMAIN}/r' to='{name}@bus.test/r'/>")
    await raw.say(f"<presence from='x@{DOMAIN}/r' to='b@bus.test/r' type='unavailable'/>")
    await b.until("<presence [^>]*type='unavailable'[^>]*>")
    raw.cut()
    await a.until(f"<presence from='x@{DOMAIN}/r' to='a@bus.test/r' type='unavailable'/>")
    assert "unavailable" not in await b.nothing_but()
