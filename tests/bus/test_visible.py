"""What ordinary tools see over the memory bus: discovery, capabilities, pings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, fromstring

import pytest
from tests.tool import COMMANDS, FORMS, INFO, ITEMS, Tool, nodes, tool

from spinal.bus.errors import CallError
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryBus
from spinal.bus.visible import FEATURES, Visible
from spinal.protocols import NS, VERSION, Hello, Json, Operation, Stanza
from spinal.protocols.discovery import CAPS, PAGES
from spinal.testing import eventually

AGENT = "thumbs@memory.test/1"
ANN = "ann@memory.test/phone"
STRANGER = "eve@elsewhere.test/1"
PING = "{urn:xmpp:ping}ping"

TEXT: Mapping[str, Json] = {"properties": {"text": {"type": "string"}}, "required": ["text"]}
PHOTO: Mapping[str, Json] = {
    "properties": {"photo": {"type": "object", "format": "blob"}},
    "required": ["photo"],
}
OPERATIONS = {
    "/echo": Operation("/echo", "Say it again.", TEXT),
    "/image/resize": Operation("/image/resize", "Scale it.", PHOTO),
    "/now": Operation("/now"),
}


class Bus(MemoryBus):
    """Keeps what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Stanza] = []

    def route(self, stanza: Stanza) -> None:
        self.sent.append(stanza)
        super().route(stanza)


@dataclass
class World:
    bus: Bus
    session: Session
    visible: Visible
    ann: Tool
    eve: Tool


@pytest.fixture
async def world() -> AsyncIterator[World]:
    bus = Bus()
    session = Session(bus.connection(AGENT), role="agent")
    visible = Visible(
        session,
        "client",
        "bot",
        paths=lambda: sorted(OPERATIONS),
        operation=OPERATIONS.get,
        hash=lambda: "55c6",
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(session)
        ann = await stack.enter_async_context(tool(bus, ANN, AGENT))
        eve = await stack.enter_async_context(tool(bus, STRANGER, AGENT))
        yield World(bus, session, visible, ann, eve)


def features(answer: Element) -> set[str]:
    return {one.get("var", "") for one in answer.findall(f"{{{INFO}}}feature")}


async def test_it_says_what_it_is_and_what_it_can(world: World) -> None:
    answer = await world.ann.ask(INFO)

    (identity,) = answer.findall(f"{{{INFO}}}identity")
    assert identity.attrib == {"category": "client", "type": "bot", "name": "thumbs"}
    assert features(answer) == set(FEATURES) > {NS, COMMANDS, CAPS, "urn:xmpp:ping"}
    fields = answer.findall(f"{{{FORMS}}}x/{{{FORMS}}}field")
    assert {one.get("var"): [v.text for v in one] for one in fields} == {
        "FORM_TYPE": [NS],
        "features": sorted(world.session.hello().features),
        "hash": ["55c6"],
        "version": [VERSION],
    }


async def test_it_lists_its_operations_and_its_commands(world: World) -> None:
    answer = await world.ann.ask(ITEMS)

    assert nodes(answer) == {
        "/echo": "Say it again.",
        "/image/resize": "Scale it.",
        "/now": "/now",
    }
    assert {item.get("jid") for item in answer} == {AGENT}
    assert set(nodes(await world.ann.ask(ITEMS, COMMANDS))) == {"/echo", "/now"}
    assert not nodes(await world.ann.ask(ITEMS, "/echo"))


async def test_it_says_what_an_operation_is(world: World) -> None:
    answer = await world.ann.ask(INFO, "/echo")
    (identity,) = answer.findall(f"{{{INFO}}}identity")
    assert identity.attrib == {
        "category": "automation",
        "type": "command-node",
        "name": "Say it again.",
    }
    assert answer.get("node") == "/echo"
    assert features(answer) == {INFO, COMMANDS, FORMS}
    assert features(await world.ann.ask(INFO, "/image/resize")) == {INFO}
    (identity,) = (await world.ann.ask(INFO, COMMANDS)).findall(f"{{{INFO}}}identity")
    assert identity.get("type") == "command-list"


@pytest.mark.parametrize("namespace", [INFO, ITEMS])
async def test_what_is_not_there_is_not_found(world: World, namespace: str) -> None:
    for node in ("/nothing", f"{NS}#an-older-one", "x" * 9000):
        with pytest.raises(CallError) as refused:
            await world.ann.ask(namespace, node)
        assert refused.value.problem.condition == "item-not-found"


async def test_a_page_of_the_list_can_be_had(world: World) -> None:
    asked = Element(f"{{{ITEMS}}}query")
    page = SubElement(asked, f"{{{PAGES}}}set")
    SubElement(page, f"{{{PAGES}}}max").text = "1"

    answer = await world.ann.connection.ask("get", AGENT, asked)

    assert answer is not None and list(nodes(answer)) == ["/echo"]
    assert answer.findtext(f"{{{PAGES}}}set/{{{PAGES}}}last") == "/echo"


async def test_the_node_that_presence_names_is_answered_as_none(world: World) -> None:
    node = f"{NS}#{world.visible.info.ver}"

    named = await world.ann.ask(INFO, node)

    plain = await world.ann.ask(INFO)
    assert named.get("node") == node
    assert [one.attrib for one in named] == [one.attrib for one in plain]


async def test_presence_names_it_at_first_and_heartbeats_do_not(world: World) -> None:
    world.bus.cut(AGENT)
    world.bus.sent.clear()
    await eventually(lambda: world.session.connected)
    for _ in range(3):
        world.session.send_presence(ANN, Hello())
    world.session.send_presence(ANN, type="unavailable")
    world.session.send_presence(ANN, Hello())

    seen = [(one.to, one.type, one.other) for one in world.bus.sent if one.sender == AGENT]
    caps = seen[0][2]
    assert fromstring(caps).tag == f"{{{CAPS}}}c"
    assert fromstring(caps).attrib == {
        "hash": "sha-1",
        "node": NS,
        "ver": world.visible.info.ver,
    }
    assert seen == [
        ("", "", caps),
        (ANN, "", caps),
        (ANN, "", b""),
        (ANN, "", b""),
        (ANN, "unavailable", b""),
        (ANN, "", caps),
    ]


async def test_a_ping_is_answered(world: World) -> None:
    assert await world.ann.connection.ask("get", AGENT, Element(PING)) is None


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        ("get", f"{{{INFO}}}query"),
        ("get", f"{{{ITEMS}}}query"),
        ("get", PING),
        ("set", f"{{{COMMANDS}}}command"),
    ],
)
async def test_who_may_not_ask_for_anything_learns_nothing(
    world: World, kind: str, tag: str
) -> None:
    with pytest.raises(CallError) as refused:
        await world.eve.connection.ask(kind, AGENT, Element(tag))

    assert refused.value.problem.condition == "service-unavailable"


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        ("set", f"{{{INFO}}}query"),
        ("get", f"{{{INFO}}}other"),
        ("get", "{jabber:iq:version}query"),
        ("get", f"{{{COMMANDS}}}command"),
        ("set", "{jabber:iq:roster}query"),
    ],
)
async def test_what_it_does_not_understand_it_says(world: World, kind: str, tag: str) -> None:
    with pytest.raises(CallError) as refused:
        await world.ann.connection.ask(kind, AGENT, Element(tag))

    assert refused.value.problem.condition == "service-unavailable"


async def test_a_caller_shows_nothing_but_that_it_is_there() -> None:
    bus = MemoryBus()
    async with Session(bus.connection(AGENT)) as session, tool(bus, ANN, AGENT) as ann:
        assert await ann.connection.ask("get", AGENT, Element(PING)) is None
        with pytest.raises(CallError):
            await ann.ask(INFO)
        assert session.caps() == b""


async def test_our_server_may_ask_even_where_only_some_accounts_may() -> None:
    bus = MemoryBus()
    hub = Session(bus.connection("hub.memory.test"), trust=lambda who: who.startswith("ann@"))
    async with hub, tool(bus, "memory.test", "hub.memory.test") as server:
        assert await server.connection.ask("get", "hub.memory.test", Element(PING)) is None
