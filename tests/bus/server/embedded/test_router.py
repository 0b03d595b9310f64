"""Who gets which stanza."""

from __future__ import annotations

import re

import pytest
from tests.bus.server.embedded.conftest import Start, World

from spinal.bus.server.embedded import Limits

BODY = "<body>hi &amp; <![CDATA[<bye>]]></body>"


async def test_stanzas_between_full_addresses_arrive_as_they_were_sent(world: World) -> None:
    a, b = await world.login("a"), await world.login("b")
    await a.say(f"<message to='b@bus.test/r' type='normal' id='&lt;1&apos;'>{BODY}</message>")
    text = await b.until("</message>")
    assert text == (
        "<message to='b@bus.test/r' type='normal' id='&lt;1&apos;' from='a@bus.test/r'"
        f" xml:lang='en'>{BODY}</message>"
    )


async def test_an_iq_goes_there_and_back(world: World) -> None:
    a, b = await world.login("a"), await world.login("b")
    await a.say("<iq to='b@bus.test/r' type='get' id='1'><q xmlns='urn:q'/></iq>")
    assert "from='a@bus.test/r'" in await b.until("</iq>")
    await b.say("<iq to='a@bus.test/r' type='result' id='1'><q xmlns='urn:q'>x</q></iq>")
    assert "<q xmlns='urn:q'>x</q></iq>" in await a.until("</iq>")


async def test_slixmpp_clients_ping_each_other(world: World) -> None:
    world.account("a", "b")
    a = await world.client("a@bus.test/x", "xep_0199")
    await world.client("b@bus.test/y", "xep_0199")
    assert await a.plugin["xep_0199"].ping("b@bus.test/y", timeout=5) < 5


async def test_an_own_from_is_allowed_and_completed(world: World) -> None:
    a, b = await world.login("a"), await world.login("b")
    for own in ("a@bus.test/r", "a@bus.test", "A@BUS.test"):
        await a.say(f"<message from='{own}' to='b@bus.test/r' type='normal'/>")
        assert "from='a@bus.test/r'" in await b.until("<message[^>]*/>")


async def test_addresses_are_compared_without_regard_to_case(world: World) -> None:
    a, b = await world.login("a"), await world.login("b", "Desk")
    await a.say("<message to='B@Bus.TEST/Desk' type='normal'/>")
    assert "to='b@bus.test/Desk'" in await b.until("<message[^>]*/>")


async def test_prefixes_declared_on_the_stream_reach_the_receiver(world: World) -> None:
    a, b = await world.login("a"), await world.login("b")
    await a.say("<message to='b@bus.test/r'><stream:x/></message>")
    assert "xmlns:stream='http://etherx.jabber.org/streams'" in await b.until("</message>")
    await a.say("<message to='b@bus.test/r' xmlns:p='urn:p'><p:x/></message>")
    assert "xmlns:p='urn:p'" in await b.until("</message>")
    assert await b.nothing_but() == ""


@pytest.mark.parametrize("type", ["get", "set"])
@pytest.mark.parametrize(
    "to", ["b@bus.test/gone", "nobody@bus.test/r", "nobody@bus.test", "b@bus.test"]
)
async def test_a_request_to_nobody_is_answered(world: World, type: str, to: str) -> None:
    a, _ = await world.login("a"), await world.login("b")
    text = await a.ask(f"<iq to='{to}' type='{type}' id='1'><q xmlns='urn:q'/></iq>", "</iq>")
    assert f"from='{to}'" in text
    assert "id='1'" in text
    assert "type='error'" in text
    assert "<service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>" in text


@pytest.mark.parametrize(
    "stanza",
    [
        "<iq to='nobody@bus.test/r' type='result' id='1'/>",
        "<iq to='nobody@bus.test/r' type='error' id='1'/>",
        "<iq to='nobody@bus.test' type='result' id='1'/>",
        "<message to='nobody@bus.test' type='headline'/>",
        "<message to='nobody@bus.test/r' type='headline'/>",
        "<message to='nobody@bus.test' type='error'/>",
        "<presence to='nobody@bus.test/r' type='unavailable'/>",
        "<presence to='nobody@bus.test' type='error'/>",
        "<presence to='nobody@bus.test' type='subscribe'/>",
        "<presence to='nobody@bus.test' type='probe'/>",
        "<message to='bus.test'/>",
    ],
)
async def test_what_needs_no_answer_gets_none(world: World, stanza: str) -> None:
    a = await world.login("a")
    await a.say(stanza)
    assert await a.nothing_but() == ""


@pytest.mark.parametrize(
    ("stanza", "condition"),
    [
        ("<message to='nobody@bus.test'/>", "service-unavailable"),
        ("<message to='a@bus.test/gone'/>", "service-unavailable"),
        ("<message to='a@bus.test' type='groupchat'/>", "service-unavailable"),
        ("<message to='x@elsewhere.test'/>", "remote-server-not-found"),
        (
            "<iq to='elsewhere.test' type='get' id='1'><q xmlns='q'/></iq>",
            "remote-server-not-found",
        ),
        ("<message to='@bus.test'/>", "jid-malformed"),
        ("<message to=''/>", "jid-malformed"),
        ("<message to='a b@bus.test'/>", "jid-malformed"),
        ("<presence to='nobody@bus.test/r'/>", "service-unavailable"),
        ("<presence to='nobody@bus.test'/>", "service-unavailable"),
        ("<presence to='elsewhere.test'/>", "remote-server-not-found"),
        ("<presence type='subscribe'/>", "bad-request"),
        ("<presence type='nonsense' to='a@bus.test'/>", "bad-request"),
        ("<iq to='a@bus.test/r' type='nonsense' id='1'/>", "bad-request"),
        ("<iq to='a@bus.test/r' type='get'><q xmlns='q'/></iq>", "bad-request"),
        ("<iq to='bus.test' type='get' id='1'/>", "bad-request"),
        ("<iq to='bus.test' type='get' id='1'><q xmlns='urn:q'/></iq>", "service-unavailable"),
    ],
)
async def test_what_cannot_be_delivered_comes_back(
    world: World, stanza: str, condition: str
) -> None:
    a = await world.login("a")
    text = await a.ask(stanza, "</error>")
    assert f"<{condition} xmlns" in text
    assert "type='error'" in text
    assert f"<{stanza[1:4]}" in text


# Messages to accounts (RFC 6121, 8.5)


def presence(priority: int) -> str:
    return f"<presence><priority>{priority}</priority></presence>"


async def test_a_message_to_an_account_goes_to_its_most_available_resources(
    world: World,
) -> None:
    a = await world.login("a")
    low = await world.login("b", "low", presence(1))
    high = await world.login("b", "high", presence(5))
    also = await world.login("b", "also", presence(5))
    never = await world.login("b", "never", presence(-1))
    await world.login("b", "quiet")
    await a.say("<message to='b@bus.test' type='chat'><body>one</body></message>")
    await high.until("<body>one</body>")
    await also.until("<body>one</body>")
    assert "<body>" not in await low.nothing_but()
    assert "<body>" not in await never.nothing_but()


async def test_a_headline_to_an_account_goes_to_all_that_take_messages(world: World) -> None:
    a = await world.login("a")
    low = await world.login("b", "low", presence(1))
    high = await world.login("b", "high", presence(5))
    never = await world.login("b", "never", presence(-1))
    await a.say("<message to='b@bus.test' type='headline'><body>one</body></message>")
    await low.until("<body>one</body>")
    await high.until("<body>one</body>")
    assert "<body>" not in await never.nothing_but()


async def test_a_message_to_an_account_bounces_if_nobody_takes_messages(world: World) -> None:
    a = await world.login("a")
    await world.login("b", "never", presence(-1))
    await world.login("b", "quiet")
    await a.ask("<message to='b@bus.test' id='1'/>", "<service-unavailable")


async def test_chat_to_a_resource_that_is_gone_finds_another_one(world: World) -> None:
    a = await world.login("a")
    b = await world.login("b", "here", "<presence/>")
    await a.say("<message to='b@bus.test/gone' type='chat'><body>one</body></message>")
    await b.until("<body>one</body>")
    await a.ask("<message to='b@bus.test/gone' type='normal'/>", "<service-unavailable")


# Messages to accounts that are away (RFC 6121, 8.5.2.2; XEP-0160)


def hello(text: str, to: str = "b@bus.test", type: str = "chat", more: str = "") -> str:
    return f"<message to='{to}' type='{type}'><body>{text}</body>{more}</message>"


async def test_what_is_said_to_an_account_that_is_away_is_kept_until_it_comes(
    world: World,
) -> None:
    world.account("b")
    a = await world.login("a")
    await a.say(hello("one &amp; only") + hello("two", "b@bus.test/gone"))
    await a.say(hello("three", type="normal"))
    assert await a.nothing_but() == ""
    # Not for who takes no messages.
    never = await world.login("b", "never", presence(-1))
    assert "<body>" not in await never.nothing_but()
    b = await world.login("b", "here")
    assert "<body>" not in await b.nothing_but()
    await b.say("<presence/>")
    text = await b.until("three</body>.*?</message>")
    assert re.findall("<body>(.*?)</body>", text) == ["one &amp; only", "two", "three"]
    stamps = re.findall(
        r"<delay xmlns='urn:xmpp:delay' from='bus.test' stamp='(\d{4}-\d\d-\d\dT[0-9:]{8}Z)'/>",
        text,
    )
    assert len(stamps) == 3 and text.count("from='a@bus.test/r'") == 3
    # Once.
    await b.say("<presence/>")
    again = await world.login("b", "again", "<presence/>")
    assert "<body>" not in await b.nothing_but() + await again.nothing_but()


async def test_what_is_kept_survives_a_restart_and_goes_with_the_account(world: World) -> None:
    world.account("b", "c")
    a = await world.login("a")
    await a.say(hello("kept") + hello("lost", "c@bus.test"))
    await a.nothing_but()
    await world.restart()
    await world.server.remove_account("c")
    world.account("c")
    b = await world.login("b", presence="<presence/>")
    await b.until("<body>kept</body>.*?</message>")
    c = await world.login("c", presence="<presence/>")
    assert "<body>" not in await c.nothing_but()


@pytest.mark.parametrize(
    "stanza",
    [
        hello("x", "nobody@bus.test"),
        hello("x", "b@bus.test/gone", "normal"),
        hello("x", type="groupchat"),
        hello("x", more="<no-store xmlns='urn:xmpp:hints'/>"),
        "<message to='b@bus.test' type='chat'><composing xmlns='urn:x'/></message>",
    ],
)
async def test_what_is_not_kept_comes_back(world: World, stanza: str) -> None:
    world.account("b")
    a = await world.login("a")
    await a.ask(stanza, "<service-unavailable")
    b = await world.login("b", presence="<presence/>")
    assert "<message" not in await b.nothing_but()


async def test_what_is_kept_for_one_account_is_bounded(start: Start) -> None:
    world = await start(Limits(offline=3, offline_bytes=2000))
    world.account("b", "c")
    a = await world.login("a")
    for number in range(3):
        await a.say(hello(str(number)))
    await a.ask(hello("too many"), "<service-unavailable.*?</message>")
    await a.ask(hello("x" * 2000, "c@bus.test"), "<service-unavailable.*?</message>")
    b = await world.login("b", presence="<presence/>")
    assert len(re.findall("<body>", await b.until("<body>2</body>.*?</message>"))) == 3
    # There is room again.
    await b.say("<presence type='unavailable'/>")
    await b.nothing_but()
    await a.say(hello("later"))
    assert await a.nothing_but() == ""


async def test_a_message_without_an_addressee_is_for_oneself(world: World) -> None:
    a = await world.login("a", presence="<presence/>")
    await a.say("<message><body>note</body></message>")
    assert "to='a@bus.test'" in await a.until("<body>note</body>")
