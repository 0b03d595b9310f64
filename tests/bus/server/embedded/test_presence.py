"""Directed presence, broadcasts, subscriptions and rosters."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.bus.server.embedded.conftest import Raw, Start, World

from spinal.bus.server.embedded import Limits

ROSTER = "<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>"


def change(item: str) -> str:
    return f"<iq type='set' id='set'><query xmlns='jabber:iq:roster'>{item}</query></iq>"


async def heard(raw: Raw, *patterns: str) -> None:
    for pattern in patterns:
        await raw.until(pattern)


# Directed


@pytest.mark.parametrize("initial", ["", "<presence/>"])
@pytest.mark.parametrize("end", ["cut", "close", "stream", "say", "broadcast"])
async def test_everybody_who_was_told_learns_of_the_end(
    world: World, initial: str, end: str
) -> None:
    a, b, c = [await world.login(name) for name in "abc"]
    agent = await world.login("agent", presence=initial)
    for name in "abc":
        await agent.say(f"<presence to='{name}@bus.test/r'><s xmlns='urn:s'/></presence>")
    await agent.say("<presence to='c@bus.test/r' type='unavailable'/>")
    for raw in (a, b, c):
        await raw.until("<presence [^>]*from='agent@bus.test/r'[^>]*><s")
    await c.until("<presence [^>]*type='unavailable'[^>]*>")
    if end == "cut":
        agent.cut()
    elif end == "close":
        await agent.close()
    elif end == "stream":
        await agent.say("</stream:stream>")
    elif end == "broadcast":
        await agent.say("<presence type='unavailable'><status>bye</status></presence>")
    else:
        for name in "ab":
            await agent.say(f"<presence to='{name}@bus.test/r' type='unavailable'/>")
    for raw in (a, b):
        assert "agent@bus.test/r" in await raw.until("<presence [^>]*type='unavailable'[^>]*>")
        assert "unavailable" not in await raw.nothing_but()
    assert "agent" not in await c.nothing_but()


async def test_the_end_is_told_once_to_a_subscriber_who_was_also_told_directly(
    world: World,
) -> None:
    a = await world.login("a", presence="<presence/>")
    agent = await world.login("agent", presence="<presence/>")
    await befriend(agent, "agent", a, "a")
    await agent.say("<presence to='a@bus.test/r'><s xmlns='urn:s'/></presence>")
    await a.until("<s xmlns")
    agent.cut()
    await a.until("<presence [^>]*type='unavailable'[^>]*>")
    assert "unavailable" not in await a.nothing_but()


async def test_presence_to_an_account_reaches_its_available_resources(world: World) -> None:
    a = await world.login("a", "one", "<presence/>")
    quiet = await world.login("a", "two")
    agent = await world.login("agent")
    await agent.say("<presence to='a@bus.test'/>")
    await a.until("<presence [^>]*from='agent@bus.test/r'")
    assert "agent" not in await quiet.nothing_but()
    agent.cut()
    await a.until("<presence [^>]*from='agent@bus.test/r'[^>]*type='unavailable'")


async def test_addressees_of_directed_presence_are_bounded(start: Start) -> None:
    world = await start(limits=Limits(directed=1))
    await world.login("a")
    agent = await world.login("agent")
    await agent.say("<presence to='a@bus.test/r'/>" * 2)
    await agent.ask("<presence to='b@bus.test/r'/>", "<resource-constraint")


# Broadcast


async def test_the_resources_of_an_account_see_each_other(world: World) -> None:
    one = await world.login("a", "one", "<presence><show>away</show></presence>")
    two = await world.login("a", "two")
    await two.say("<presence/>")
    text = await two.nothing_but()
    assert "from='a@bus.test/one'" in text
    assert "<show>away</show>" in text
    await one.until("<presence [^>]*from='a@bus.test/two'")
    two.cut()
    await one.until("<presence [^>]*from='a@bus.test/two'[^>]*type='unavailable'")


async def befriend(asker: Raw, name: str, other: Raw, other_name: str) -> None:
    """Let each see the other; both have sent initial presence."""
    for one, one_name, two, two_name in (
        (asker, name, other, other_name),
        (other, other_name, asker, name),
    ):
        await one.say(f"<presence to='{two_name}@bus.test' type='subscribe'/>")
        await two.until(f"<presence [^>]*from='{one_name}@bus.test'[^>]*>")
        await two.say(f"<presence to='{one_name}@bus.test' type='subscribed'/>")
        await one.until("<presence [^>]*type='subscribed'[^>]*>")
        await one.until(f"<presence [^>]*from='{two_name}@bus.test/r'[^>]*>")


async def test_a_subscription_is_asked_for_granted_and_used(world: World) -> None:
    a = await world.login("a", presence="<presence/>")
    b = await world.login("b", presence="<presence><show>dnd</show></presence>")
    await heard(b, "</presence>")
    await a.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")
    await b.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")
    await a.say("<presence to='b@bus.test/r' type='subscribe'/>")
    pushed = await a.until("<iq [^>]*type='set'[^>]*>.*?</iq>")
    assert "jid='b@bus.test' subscription='none' ask='subscribe'" in pushed
    asked = await b.until("<presence[^>]*>")
    assert "from='a@bus.test'" in asked
    assert "to='b@bus.test'" in asked
    await b.say("<presence to='a@bus.test' type='subscribed'/>")
    assert "jid='a@bus.test' subscription='from'" in await b.until("<iq .*?</iq>")
    text = await a.until("<show>dnd</show></presence>")
    assert "type='subscribed'" in text
    assert "jid='b@bus.test' subscription='to'>" in text
    # A later change, the end, and the beginning of the next session.
    await b.say("<presence><show>xa</show></presence>")
    await a.until("<show>xa</show>")
    b.cut()
    await a.until("<presence [^>]*from='b@bus.test/r'[^>]*type='unavailable'")
    await a.close()
    await world.login("b", presence="<presence><show>chat</show></presence>")
    a = await world.login("a")
    await a.say("<presence/>")
    await a.until("<presence [^>]*from='b@bus.test/r'[^>]*><show>chat</show>")


async def test_a_question_waits_for_who_is_away_and_may_be_refused(world: World) -> None:
    world.account("b")
    a = await world.login("a", presence="<presence/>")
    await a.say("<presence to='b@bus.test' type='subscribe'/>")
    await a.nothing_but()
    b = await world.login("b")
    await b.say("<presence/>")
    text = await b.until("<presence [^>]*type='subscribe'[^>]*>")
    assert "from='a@bus.test'" in text
    assert "a@bus.test" not in await b.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")
    await b.say("<presence to='a@bus.test' type='unsubscribed'/>")
    await a.until("<presence [^>]*type='unsubscribed'[^>]*>")
    roster = await a.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")
    assert "jid='b@bus.test' subscription='none'>" in roster


async def test_a_subscription_is_taken_back_and_given_up(world: World) -> None:
    a = await world.login("a", presence="<presence/>")
    b = await world.login("b", presence="<presence/>")
    await befriend(a, "a", b, "b")
    assert "subscription='both'" in await a.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")
    await b.say("<presence to='a@bus.test' type='unsubscribed'/>")
    text = await a.until("<presence [^>]*from='b@bus.test/r'[^>]*type='unavailable'[^>]*>")
    assert "type='unsubscribed'" in text
    assert "subscription='from'" in text
    await b.say("<presence><show>away</show></presence>")
    await b.nothing_but()
    assert "away" not in await a.nothing_but()
    await b.say("<presence to='a@bus.test' type='unsubscribe'/>")
    await a.until("type='unsubscribe'")
    await b.until("<presence [^>]*from='a@bus.test/r'[^>]*type='unavailable'[^>]*>")
    assert "subscription='none'" in await a.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")


async def test_who_is_subscribed_already_is_granted_it_again_at_once(world: World) -> None:
    a = await world.login("a", presence="<presence/>")
    b = await world.login("b", presence="<presence/>")
    await befriend(a, "a", b, "b")
    await world.restart()
    (world.server.config.folder / "embedded" / "rosters" / "b.json").unlink()
    b = await world.login("b", presence="<presence/>")
    await b.ask("<presence to='a@bus.test' type='subscribe'/>", "<presence [^>]*type='subscribed'")


async def test_a_probe_is_answered_to_those_who_may_know(world: World) -> None:
    a = await world.login("a", presence="<presence/>")
    b = await world.login("b", presence="<presence/>")
    stranger = await world.login("stranger")
    await befriend(a, "a", b, "b")
    await a.ask("<presence to='b@bus.test' type='probe'/>", "<presence [^>]*from='b@bus.test/r'")
    b.cut()
    await a.until("type='unavailable'")
    await a.ask("<presence to='b@bus.test' type='probe'/>", "type='unavailable'")
    await stranger.say("<presence to='b@bus.test' type='probe'/>")
    assert "b@bus.test" not in await stranger.nothing_but()


async def test_strangers_cannot_fill_a_roster(start: Start) -> None:
    world = await start(limits=Limits(roster=2))
    world.account("victim")
    for name in ("x", "y", "z"):
        raw = await world.login(name)
        await raw.say("<presence to='victim@bus.test' type='subscribe'/>")
        await raw.nothing_but()
    victim = await world.login("victim")
    await victim.say("<presence/>")
    assert (await victim.nothing_but()).count("type='subscribe'") == 2
    await victim.ask(change("<item jid='w@bus.test'/>"), "<resource-constraint")
    await victim.ask("<presence to='w@bus.test' type='subscribe'/>", "<resource-constraint")


# Rosters


async def test_a_roster_is_kept_over_a_restart(world: World, start: Start) -> None:
    a = await world.login("a")
    await a.ask(ROSTER, "<query xmlns='jabber:iq:roster'></query></iq>")
    item = "<item jid='B@bus.test' name='B &lt;&amp; Co'><group>Büro</group><group>x</group></item>"
    text = await a.ask(change(item), "id='set'[^>]*/>")
    assert "<item jid='b@bus.test' subscription='none' name='B &lt;&amp; Co'>" in text
    roster = await a.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")
    assert "<group>Büro</group><group>x</group></item>" in roster
    await world.restart()
    a = await world.login("a")
    assert "<group>Büro</group>" in await a.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")
    text = await a.ask(change("<item jid='b@bus.test' subscription='remove'/>"), "id='set'[^>]*/>")
    assert "subscription='remove'" in text
    await a.ask(ROSTER, "<query xmlns='jabber:iq:roster'></query></iq>")
    await a.ask(change("<item jid='b@bus.test' subscription='remove'/>"), "<item-not-found")


async def test_removing_a_contact_ends_both_directions(world: World) -> None:
    a = await world.login("a", presence="<presence/>")
    b = await world.login("b", presence="<presence/>")
    await befriend(a, "a", b, "b")
    await a.say(change("<item jid='b@bus.test' subscription='remove'/>"))
    text = await b.until("<presence [^>]*from='a@bus.test/r'[^>]*type='unavailable'[^>]*>")
    await a.until("id='set'")
    text += await b.nothing_but()
    assert "type='unsubscribe'" in text
    assert "type='unsubscribed'" in text
    assert "subscription='none'" in await b.ask(ROSTER, "id='roster'[^>]*>.*?</iq>")


@pytest.mark.parametrize(
    ("item", "condition"),
    [
        ("", "bad-request"),
        ("<item jid='b@bus.test'/><item jid='c@bus.test'/>", "bad-request"),
        ("<item/>", "bad-request"),
        ("<item jid='@'/>", "bad-request"),
        ("<item jid='b@bus.test'><group>x</group><group>x</group></item>", "bad-request"),
        (f"<item jid='b@bus.test' name='{'x' * 2000}'/>", "not-acceptable"),
    ],
)
async def test_a_wrong_change_of_the_roster_is_refused(
    world: World, item: str, condition: str
) -> None:
    a = await world.login("a")
    await a.ask(change(item), f"<{condition}")


async def test_a_damaged_roster_is_put_aside(world: World) -> None:
    folder = world.server.config.folder / "embedded" / "rosters"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{broken")
    a = await world.login("a")
    await a.ask(ROSTER, "<query xmlns='jabber:iq:roster'></query></iq>")
    assert (folder / "a.damaged").read_text() == "{broken"
    await a.ask(change("<item jid='b@bus.test'/>"), "id='set'[^>]*/>")
    assert "b@bus.test" in json.loads((folder / "a.json").read_bytes())


async def test_slixmpp_clients_become_friends(world: World) -> None:
    world.account("a", "b")
    a = await world.client("a@bus.test/x")
    b = await world.client("b@bus.test/y")
    seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def online(event: Any) -> None:
        if event["from"].bare == "b@bus.test" and not seen.done():
            seen.set_result(None)

    a.add_event_handler("presence_available", online)
    await a.get_roster()
    await b.get_roster()
    a.send_presence()
    b.send_presence()
    a.send_presence_subscription("b@bus.test")
    await asyncio.wait_for(seen, 10)
