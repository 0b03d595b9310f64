"""Hostile and clumsy clients, seen from their own socket."""

from __future__ import annotations

import asyncio
import ssl
import warnings

import pytest
from tests.bus.server.embedded.conftest import STARTTLS, STREAM, Raw, Start, World

from spinal.bus.server.embedded import Limits

IQ = "<iq type='get' id='1' to='bus.test'><ping xmlns='urn:xmpp:ping'/></iq>"


async def test_only_tls_is_offered_at_first(world: World) -> None:
    raw = await world.connect()
    features = await raw.ask(STREAM, "</stream:features>")
    assert "<required/>" in features
    assert "mechanism" not in features
    assert "from='bus.test'" in features
    assert "version='1.0'" in features
    assert " id='" in features
    assert "xml:lang='" in features


@pytest.mark.parametrize(
    "text",
    [
        IQ,
        "<message to='a@bus.test'/>",
        "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGEAYg==</auth>",
        "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>",
    ],
)
async def test_nothing_but_tls_is_taken_in_clear(world: World, text: str) -> None:
    raw = await world.connect()
    await raw.ask(STREAM, "</stream:features>")
    await raw.say(text)
    assert "<not-authorized" in await raw.rest()


@pytest.mark.parametrize(
    "text", [IQ, "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>"]
)
async def test_nothing_but_a_login_is_taken_after_tls(world: World, text: str) -> None:
    raw = await world.secure()
    await raw.say(text)
    assert "<not-authorized" in await raw.rest()


async def test_what_is_smuggled_in_before_tls_is_dropped(world: World) -> None:
    raw = await world.connect()
    await raw.ask(STREAM, "</stream:features>")
    await raw.ask(STARTTLS + IQ, "<proceed[^>]*/>")
    await raw.writer.start_tls(world.tls, server_hostname="bus.test")
    text = await raw.ask(STREAM, "</stream:features>")
    assert "error" not in text
    assert "PLAIN" in text


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("<iq><a></b></iq>", "not-well-formed"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]>", "not-well-formed"),
        ("<!-- x -->", "restricted-xml"),
        ("<?x y?>", "restricted-xml"),
        ("<c:iq xmlns:c='jabber:client' type='get' id='1'/>", "bad-namespace-prefix"),
        ("<iq xmlns='jabber:server' type='get' id='1'/>", "unsupported-stanza-type"),
        ("<a xmlns='urn:x'/>", "unsupported-stanza-type"),
        ("hello", "bad-format"),
        ("<iq from='b@bus.test/r' type='get' id='1'><a xmlns='x'/></iq>", "invalid-from"),
        ("<message from='@' to='b@bus.test'/>", "invalid-from"),
        ("<iq>" + "<a>" * 100 + "</a>" * 100 + "</iq>", "policy-violation"),
        ("<iq" + "".join(f" a{n}=''" for n in range(70)) + "/>", "policy-violation"),
    ],
)
async def test_what_cannot_be_forwarded_ends_the_stream(
    world: World, text: str, condition: str
) -> None:
    raw = await world.login("a")
    await raw.say(text)
    rest = await raw.rest()
    assert f"<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>" in rest
    assert rest.endswith("</stream:stream>")


async def test_a_document_type_ends_the_stream_before_it_begins(world: World) -> None:
    raw = await world.connect()
    await raw.say("<!DOCTYPE x [<!ENTITY a 'aaaa'>]><x>&a;</x>")
    rest = await raw.rest()
    assert "<stream:stream" in rest
    assert "<restricted-xml" in rest


@pytest.mark.parametrize(
    ("header", "condition"),
    [
        (STREAM.replace("bus.test", "elsewhere.test"), "host-unknown"),
        (STREAM.replace("version='1.0' to", "to"), "unsupported-version"),
        (STREAM.replace("jabber:client", "jabber:server"), "invalid-namespace"),
        (
            STREAM.replace("<?xml version='1.0'?>", "<?xml version='1.0' encoding='latin1'?>"),
            "unsup",
        ),
    ],
)
async def test_a_wrong_header_is_refused(world: World, header: str, condition: str) -> None:
    raw = await world.connect()
    await raw.say(header)
    assert f"<{condition}" in await raw.rest()


async def test_large_elements_are_refused_before_the_login(world: World) -> None:
    raw = await world.secure()
    await raw.say("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>" + "A" * 11_000)
    assert "<policy-violation" in await raw.rest()


async def test_stanzas_are_bounded_after_the_login(start: Start) -> None:
    world = await start(max_stanza=50_000)
    a, b = await world.login("a"), await world.login("b")
    await a.say(f"<message to='b@bus.test/r'><body>{'x' * 49_000}</body></message>")
    assert "x" * 49_000 in await b.until("</message>")
    await a.say(f"<message to='b@bus.test/r'><body>{'y' * 51_000}</body></message>")
    assert "<policy-violation" in await a.rest()
    assert "y" not in await b.nothing_but()


async def test_who_does_not_log_in_is_cut(start: Start) -> None:
    world = await start(limits=Limits(login_time=0.2))
    raw = await world.connect()
    assert "<connection-timeout" in await raw.rest()
    raw = await world.secure()
    assert "<connection-timeout" in await raw.rest()


async def test_who_has_logged_in_is_not_cut(start: Start) -> None:
    world = await start(limits=Limits(login_time=0.5))
    raw = await world.login("a")
    idle = await world.connect()
    await idle.rest()
    assert await raw.nothing_but() == ""


async def test_who_comes_while_many_log_in_waits_for_its_turn(start: Start) -> None:
    world = await start(limits=Limits(logins=2, login_time=60))
    first = await world.secure()
    second = await world.secure()
    third, fourth, fifth = [await world.connect() for _ in range(3)]
    for one in (third, fourth, fifth):
        await one.say(STREAM)
    fourth.cut()  # Nobody is kept waiting by one that is gone.
    assert await first.nothing_heard() and await third.nothing_heard()
    first.cut()
    await third.until("</stream:features>")
    assert await fifth.nothing_heard()
    await second.close()
    await fifth.until("</stream:features>")


async def test_the_time_to_log_in_begins_with_the_turn(start: Start) -> None:
    world = await start(limits=Limits(logins=1, login_time=0.3))
    await world.connect()
    later = await world.connect()
    await later.ask(STREAM, "</stream:features>")
    assert "connection-timeout" in await later.rest()


async def test_who_waits_for_its_turn_is_let_go_with_the_server(start: Start) -> None:
    world = await start(limits=Limits(logins=1))
    await world.connect()
    waiting = await world.connect()
    await world.server.stop()
    assert "system-shutdown" in await waiting.rest()


async def test_only_so_many_strangers_may_wait(start: Start) -> None:
    world = await start(limits=Limits(login_connections=2))
    first = await world.connect()
    await first.ask(STREAM, "</stream:features>")
    second = await world.connect()
    await second.ask(STREAM, "</stream:features>")
    third = await world.connect()
    assert await third.rest() == ""
    await first.close()
    await second.close()
    assert await (await world.login("a")).nothing_but() == ""


async def test_a_closed_stream_is_closed_in_return(world: World) -> None:
    raw = await world.login("a")
    await raw.say(f"{IQ}</stream:stream>")
    rest = await raw.rest()
    assert "type='result'" in rest
    assert rest.endswith("</stream:stream>")
    assert "error" not in rest


async def test_space_keeps_a_stream_alive(world: World) -> None:
    raw = await world.login("a")
    await raw.say(" \n" * 10_000)
    assert await raw.nothing_but() == ""


async def test_garbage_instead_of_tls_closes_the_connection(world: World) -> None:
    raw = await world.connect()
    await raw.ask(STREAM, "</stream:features>")
    await raw.ask(STARTTLS, "<proceed[^>]*/>")
    await raw.say("this is no hello" * 100)
    await raw.rest()
    assert world.server.router.clients == {}


async def test_old_versions_of_tls_are_refused(world: World) -> None:
    raw = await world.connect()
    await raw.ask(STREAM, "</stream:features>")
    await raw.ask(STARTTLS, "<proceed[^>]*/>")
    context = world.tls
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await raw.writer.start_tls(context, server_hostname="bus.test")


# Slow readers


async def flood(raw: Raw, to: str, count: int, size: int = 60_000) -> None:
    text = f"<message to='{to}'><body>{'x' * size}</body></message>".encode()
    for _ in range(count):
        await raw.say(text)


async def test_who_does_not_read_is_cut_and_costs_bounded_memory(start: Start) -> None:
    limits = Limits(backlog=500_000, backlog_hard=2_000_000, slow_time=0.3)
    world = await start(limits=limits)
    slow, fast, other = [await world.login(name) for name in ("slow", "fast", "other")]
    stream = world.server.router.clients["slow@bus.test/r"]
    most = 0

    async def watch() -> None:
        nonlocal most
        while not stream.ended:
            most = max(most, stream.waiting)
            await asyncio.sleep(0.001)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(watch())
        # The kernel takes a few megabytes of it by itself.
        group.create_task(flood(fast, "slow@bus.test/r", 400))
    assert 0 < most < limits.backlog_hard
    assert "slow@bus.test/r" not in world.server.router.clients
    assert await fast.until("<service-unavailable")
    assert await other.nothing_but() == ""
    slow.cut()


async def test_two_who_flood_each_other_without_reading_do_not_stop_the_server(
    start: Start,
) -> None:
    world = await start(limits=Limits(backlog=200_000, slow_time=0.3))
    one, two, other = [await world.login(name) for name in ("one", "two", "other")]

    async def drown(raw: Raw, to: str) -> None:
        try:
            await flood(raw, to, 400)
        except (ConnectionError, ssl.SSLError):
            pass

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(drown(one, "two@bus.test/r"))
        group.create_task(drown(two, "one@bus.test/r"))
        assert await other.nothing_but() == ""
    assert await other.nothing_but() == ""
    one.cut()
    two.cut()


async def test_who_reads_late_gets_everything_in_order(start: Start) -> None:
    world = await start(limits=Limits(backlog=200_000, slow_time=10))
    late, fast = await world.login("late"), await world.login("fast")
    sending = asyncio.create_task(flood(fast, "late@bus.test/r", 300))
    stream = world.server.router.clients["late@bus.test/r"]
    async with asyncio.timeout(10):
        while stream.waiting <= 200_000:
            await asyncio.sleep(0.001)
    total = 0
    for _ in range(300):
        text = await late.until("</message>")
        total += text.count("x" * 60_000)
    assert total == 300
    await sending
    assert await fast.nothing_but() == ""


async def test_a_silent_client_is_pinged_and_cut_if_it_does_not_answer(start: Start) -> None:
    world = await start(limits=Limits(silence=0.1, answer=0.1))
    watcher = await world.login("watcher")
    silent = await world.login("silent")
    await silent.ask("<presence to='watcher@bus.test/r'/>", "")
    await watcher.until("<presence [^>]*from='silent@bus.test/r'[^>]*>")

    async def answer_pings() -> None:
        while True:
            ping = await watcher.until("<ping xmlns='urn:xmpp:ping'/></iq>|unavailable")
            if "unavailable" in ping:
                return
            number = ping.split("id='")[1].split("'")[0]
            await watcher.say(f"<iq type='result' id='{number}' to='bus.test'/>")

    async with asyncio.timeout(10):
        await answer_pings()
    assert list(world.server.router.clients) == ["watcher@bus.test/r"]
