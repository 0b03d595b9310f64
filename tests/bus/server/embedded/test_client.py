"""Logging in and binding."""

from __future__ import annotations

import base64

import pytest
from tests.bus.server.embedded.conftest import PASSWORD, STREAM, Raw, Start, World

from spinal.bus.server.embedded import Limits

SASL = "urn:ietf:params:xml:ns:xmpp-sasl"


def auth(mechanism: str, *parts: str) -> str:
    secret = base64.b64encode("\0".join(parts).encode()).decode()
    return f"<auth xmlns='{SASL}' mechanism='{mechanism}'>{secret}</auth>"


def bind(resource: str) -> str:
    return (
        "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>"
        f"<resource>{resource}</resource></bind></iq>"
    )


async def test_slixmpp_logs_in_with_scram(world: World) -> None:
    world.account("anna")
    client = await world.client("anna@bus.test/desk")
    assert client.boundjid.full == "anna@bus.test/desk"
    assert client.plugin["feature_mechanisms"].mech.name == "SCRAM-SHA-256"


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
async def test_a_client_that_has_one_mechanism_logs_in_with_that(
    world: World, mechanism: str
) -> None:
    world.account("anna")
    client = await world.client("anna@bus.test/desk", mechanism=mechanism)
    assert client.plugin["feature_mechanisms"].mech.name == mechanism
    with pytest.raises(PermissionError):
        await world.client("anna@bus.test", mechanism=mechanism, password="wrong")


async def test_a_wrong_password_is_refused(world: World) -> None:
    world.account("anna")
    with pytest.raises(PermissionError):
        await world.client("anna@bus.test", password="wrong")
    with pytest.raises(PermissionError):
        await world.client("nobody@bus.test")


async def test_plain_is_checked_against_the_keys(world: World) -> None:
    world.account("anna")
    raw = await world.secure()
    refused = await raw.ask(auth("PLAIN", "", "anna", "wrong"), "</failure>")
    assert "<not-authorized/>" in refused
    await raw.ask(auth("PLAIN", "anna@bus.test", "Anna", PASSWORD), "</success>")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        (auth("PLAIN", "boss@bus.test", "anna", PASSWORD), "invalid-authzid"),
        (auth("PLAIN", "anna", PASSWORD), "malformed-request"),
        (auth("DIGEST-MD5"), "invalid-mechanism"),
        (auth("SCRAM-SHA-256", "n,,r=x"), "not-authorized"),
        (f"<auth xmlns='{SASL}' mechanism='PLAIN'>not base64!</auth>", "incorrect-encoding"),
        (f"<auth xmlns='{SASL}' mechanism='PLAIN'><x/></auth>", "incorrect-encoding"),
        (f"<auth xmlns='{SASL}' mechanism='PLAIN'>=</auth>", "malformed-request"),
        (f"<abort xmlns='{SASL}'/>", "aborted"),
    ],
)
async def test_a_failed_login_says_why_and_may_be_tried_again(
    world: World, text: str, condition: str
) -> None:
    world.account("anna")
    raw = await world.secure()
    assert f"<{condition}/>" in await raw.ask(text, "</failure>")
    await raw.ask(auth("PLAIN", "", "anna", PASSWORD), "</success>")


async def test_a_login_without_first_words_is_asked_for_them(world: World) -> None:
    world.account("anna")
    raw = await world.secure()
    await raw.ask(f"<auth xmlns='{SASL}' mechanism='PLAIN'/>", "<challenge[^>]*/>")
    secret = base64.b64encode(f"\0anna\0{PASSWORD}".encode()).decode()
    await raw.ask(f"<response xmlns='{SASL}'>{secret}</response>", "</success>")


async def test_three_failures_end_the_stream(world: World) -> None:
    raw = await world.secure()
    for _ in range(3):
        await raw.ask(auth("PLAIN", "", "anna", "wrong"), "</failure>")
    assert "<policy-violation" in await raw.rest()


async def test_an_unknown_name_always_has_the_same_salt(world: World) -> None:
    salts: set[str] = set()
    for _ in range(2):
        raw = await world.secure()
        challenge = await raw.ask(auth("SCRAM-SHA-256", "n,,n=ghost,r=abcdef"), "</challenge>")
        text = base64.b64decode(challenge.partition(">")[2].partition("<")[0]).decode()
        salts.add(text.partition(",s=")[2])
    assert len(salts) == 1


async def logged_in(world: World, name: str) -> Raw:
    raw = await world.secure()
    await raw.ask(auth("PLAIN", "", name, PASSWORD), "</success>")
    features = await raw.ask(STREAM, "</stream:features>")
    assert "xmpp-bind" in features
    assert "<session xmlns='urn:ietf:params:xml:ns:xmpp-session'><optional/></session>" in features
    return raw


async def test_a_resource_is_made_if_none_is_asked_for(world: World) -> None:
    world.account("anna")
    raw = await logged_in(world, "anna")
    text = await raw.ask(
        "<iq type='set' id='1'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>", "</iq>"
    )
    assert "<jid>anna@bus.test/" in text
    assert "type='result'" in text
    assert "id='1'" in text


async def test_nothing_but_bind_is_taken_before_bind(world: World) -> None:
    world.account("anna")
    raw = await logged_in(world, "anna")
    await raw.say("<message to='anna@bus.test'/>")
    assert "<not-authorized" in await raw.rest()


async def test_an_impossible_resource_is_refused_and_another_may_be_asked_for(
    world: World,
) -> None:
    world.account("anna")
    raw = await logged_in(world, "anna")
    assert "<bad-request" in await raw.ask(bind("x" * 1024), "</iq>")
    assert "anna@bus.test/fine" in await raw.ask(bind("fine"), "</iq>")


async def test_streams_of_an_account_are_bounded(start: Start) -> None:
    world = await start(limits=Limits(resources=1))
    await world.login("anna", "one")
    raw = await logged_in(world, "anna")
    assert "<resource-constraint" in await raw.ask(bind("two"), "</iq>")
    assert "anna@bus.test/one" in await raw.ask(bind("one"), "</iq>")


async def test_a_new_stream_with_the_same_resource_replaces_the_old_one(world: World) -> None:
    watcher = await world.login("watcher")
    old = await world.login("anna", presence="<presence/>")
    await old.say("<presence to='watcher@bus.test/r'/>")
    await watcher.until("<presence [^>]*from='anna@bus.test/r'[^>]*>")
    new = await world.login("anna")
    assert "<conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>" in await old.rest()
    await new.say("<presence to='watcher@bus.test/r'/>")
    gone = await watcher.until("<presence [^>]*>")
    assert "type='unavailable'" in gone
    assert "unavailable" not in await watcher.until("<presence [^>]*>")
    await watcher.say("<message to='anna@bus.test/r'><body>hi</body></message>")
    await new.until("<body>hi</body>")


async def test_the_legacy_session_is_granted(world: World) -> None:
    raw = await world.login("anna")
    text = await raw.ask(
        "<iq type='set' id='s'><session xmlns='urn:ietf:params:xml:ns:xmpp-session'/></iq>", "/>"
    )
    assert "type='result'" in text
