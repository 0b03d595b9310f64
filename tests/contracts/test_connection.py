"""What ``bus/connection.py`` promises, held against every transport on every server.

One server of each kind serves all tests of its transports.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import socket
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
import pytest_asyncio
from slixmpp.xmlstream import XMLStream

from spinal.bus.connection import Connection
from spinal.bus.errors import (
    AddressTaken,
    BusError,
    CallError,
    CertificateRefused,
    LoginRefused,
    NotConnected,
    Unreached,
)
from spinal.bus.server import Server, ServerConfig, available, free_ports, launch
from spinal.bus.server.certificates import Certificates, ensure
from spinal.bus.server.embedded import server as embedded
from spinal.bus.server.embedded.server import EmbeddedServer
from spinal.bus.transports import client_connection
from spinal.bus.transports.attached import AttachedConnection
from spinal.bus.transports.memory import MemoryBus
from spinal.bus.transports.slixmpp import ClientConnection, ComponentConnection
from spinal.protocols import Ack, Codec, Event, Hello, Log, Message, Problem, Ran, Stanza
from spinal.testing import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOMAIN = "bus.test"
COMPONENT = "disp.bus.test"
SECRET = "a component's secret ü"
PASSWORD = 'it\'s a "pass\\word" & <more>'
INFO = "http://jabber.org/protocol/disco#info"
SOON = 15.0
CODEC = Codec()


class Bus:
    """One transport on one server: makes connections, and breaks them."""

    def __init__(self, transport: str, server: Server | MemoryBus) -> None:
        self.transport = transport
        self.server = server

    def peer(self) -> Connection:
        """An address beside the one under test: a client on slixmpp, if there are any."""
        return self._client(ClientConnection, "bob", secrets.token_hex(4))

    def client(self, name: str, resource: str, **changes: Any) -> Connection:
        """A client over the library under test."""
        library = "aioxmpp" if self.transport == "aioxmpp" else "slixmpp"
        return self._client(client_connection(library), name, resource, **changes)

    def _client(
        self, make: Callable[..., Connection], name: str, resource: str, **changes: Any
    ) -> Connection:
        if isinstance(self.server, MemoryBus):
            return self.server.connection(f"{name}@{DOMAIN}/{resource}")
        config = self.server.config
        options: dict[str, Any] = {
            "password": PASSWORD,
            "host": "127.0.0.1",
            "port": config.ports.c2s,
            "ca": self.server.ca,
            **changes,
        }
        return make(f"{name}@{DOMAIN}/{resource}", **options)

    def make(self) -> Connection:
        """The connection under test."""
        match self.transport:
            case "component":
                return self.component(SECRET)
            case "attached":
                assert isinstance(self.server, EmbeddedServer)
                return AttachedConnection(self.server, "inside.bus.test")
            case _:
                return self.client("alice", secrets.token_hex(4))

    def component(self, secret: str, port: int | None = None) -> ComponentConnection:
        assert not isinstance(self.server, MemoryBus)
        chosen = port or self.server.config.ports.component
        return ComponentConnection(COMPONENT, secret, "127.0.0.1", chosen)

    def cut(self, connection: Connection) -> None:
        """Break its stream as a torn cable with a reset does."""
        if isinstance(self.server, MemoryBus):
            self.server.cut(connection.address)
        else:
            anyone: Any = connection
            anyone._stream.transport.abort()


def nothing(kind: str, sender: str, id: str, payload: Element) -> bool:
    """Understand nothing."""
    return False


class Ear:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.stanzas: list[Stanza] = []
        self.raises = False
        self.answers: Callable[[Stanza], None] | None = None
        #: What somebody else's namespaces asked: kind, sender, id and payload.
        self.questions: list[tuple[str, str, str, Element]] = []
        self.understands: Callable[[str, str, str, Element], bool] = nothing
        #: What was said in words.
        self.words: list[Message] = []

    def opened(self) -> None:
        self.story.append("opened")

    def closed(self, reason: str) -> None:
        self.story.append("closed")

    def received(self, stanza: Stanza) -> None:
        self.stanzas.append(stanza)
        if self.raises:
            raise RuntimeError("the handler is broken")
        if self.answers is not None and stanza.kind == "iq" and stanza.type in ("get", "set"):
            self.answers(stanza)

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        self.questions.append((kind, sender, id, payload))
        return self.understands(kind, sender, id, payload)

    def said(self, message: Message) -> None:
        self.words.append(message)

    def has(self, kind: str, number: int) -> bool:
        return len(self.of(kind)) >= number

    def of(self, kind: str, type: str | None = None) -> list[Stanza]:
        return [s for s in self.stanzas if s.kind == kind and type in (None, s.type)]


TRANSPORTS = (
    "memory",
    "embedded-client",
    "embedded-component",
    "embedded-attached",
    "embedded-aioxmpp",
    "prosody-client",
    "prosody-component",
    "prosody-aioxmpp",
    "ejabberd-client",
    "ejabberd-component",
    "ejabberd-aioxmpp",
)
STREAMS = [name for name in TRANSPORTS if name != "embedded-attached"]
LOGINS = [name for name in STREAMS if name != "memory"]
CLIENTS = [name for name in TRANSPORTS if name.endswith(("-client", "-aioxmpp"))]
ON_AIOXMPP = [name for name in CLIENTS if name.endswith("-aioxmpp")]
ON_SLIXMPP = [name for name in LOGINS if not name.endswith("-aioxmpp")]
ACCOUNTS = ["memory", *CLIENTS]


def over(names: Sequence[str]) -> pytest.MarkDecorator:
    """Hold a promise against some transports only, where the others have nothing to keep."""
    return pytest.mark.parametrize("bus", names, indirect=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[Callable[[str], Any]]:
    """Give a running server of a kind; each is started once."""
    running: dict[str, Server | MemoryBus] = {}
    async with AsyncExitStack() as stack:

        async def start(kind: str) -> Server | MemoryBus:
            if kind not in running:
                if kind == "memory":
                    running[kind] = MemoryBus(DOMAIN)
                    return running[kind]
                name = "embedded" if kind == "inside" else kind
                if (reason := available(name)) is not None:
                    pytest.skip(f"MISSING: {reason}")
                config = ServerConfig(
                    tmp_path_factory.mktemp(kind),
                    DOMAIN,
                    free_ports(),
                    components={COMPONENT: SECRET},
                )
                server: Server
                if kind == "inside":
                    server = EmbeddedServer(config)
                    await server.start()
                else:
                    server = await launch(kind, config)
                stack.push_async_callback(server.stop)
                for account in ("alice", "bob"):
                    await server.add_account(account, PASSWORD)
                running[kind] = server
            return running[kind]

        yield start


@pytest_asyncio.fixture(loop_scope="module", params=TRANSPORTS)
async def bus(request: pytest.FixtureRequest, servers: Callable[[str], Any]) -> Bus:
    kind, _, transport = str(request.param).partition("-")
    if transport == "aioxmpp" and find_spec("aioxmpp") is None:
        pytest.skip("MISSING: aioxmpp, which there is for Python 3.11 and 3.12")
    return Bus(transport or kind, await servers("inside" if transport == "attached" else kind))


@asynccontextmanager
async def opened(connection: Connection) -> AsyncGenerator[tuple[Connection, Ear]]:
    ear = Ear()
    try:
        await connection.open(ear)
        connection.send(Stanza("presence", ""))
        yield connection, ear
    finally:
        await connection.close()


@asynccontextmanager
async def both(bus: Bus) -> AsyncGenerator[tuple[Connection, Ear, Connection, Ear]]:
    async with opened(bus.make()) as (one, ear), opened(bus.peer()) as (two, other):
        await settled(two, one)
        yield one, ear, two, other


async def settled(one: Connection, two: Connection) -> None:
    """Wait until each can reach the other: initial presence is worked on by then."""
    anyone: Any = one
    listener: Ear = anyone._listener
    one.send(Stanza("iq", "set", one.address, id="x.self", body=b"[]"))
    await eventually(lambda: any(s.id == "x.self" for s in listener.stanzas), SOON)
    listener.stanzas.clear()


def body(*events: Event) -> bytes:
    return CODEC.write(events)


def iq(to: str, type: str = "set", id: str = "x.1", said: bytes | None = None) -> Stanza:
    return Stanza("iq", type, to, id=id, body=said)


async def test_the_address_is_the_same_all_along(bus: Bus) -> None:
    async with opened(bus.make()) as (connection, _):
        address = connection.address
        assert connection.connected
        if bus.transport in ("client", "aioxmpp", "memory"):
            assert address.startswith(f"alice@{DOMAIN}/")
        await asyncio.sleep(0)
        assert connection.address == address


async def test_stanzas_arrive_in_the_order_in_which_they_were_sent(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, other):
        for sender, receiver, heard in ((one, two, other), (two, one, ear)):
            for number in range(200):
                sender.send(
                    Stanza(
                        "message",
                        "headline",
                        receiver.address,
                        body=body(Log(f"n{number}", text="x")),
                    )
                )
            await eventually(partial(heard.has, "message", 200), SOON)
            events = [CODEC.read(s.body or b"")[0] for s in heard.of("message")]
            assert [e.id for e in events if isinstance(e, Log)] == [f"n{n}" for n in range(200)]
            assert {s.sender for s in heard.of("message")} == {sender.address}


async def test_what_was_sent_before_the_end_arrives(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, _):
        for number in range(300):
            two.send(
                Stanza("message", "headline", one.address, body=body(Log(f"a-{number}", text="x")))
            )
        await two.close()
        await eventually(lambda: len(ear.of("message")) == 300, SOON)
        said = [Codec().read(stanza.body or b"")[0] for stanza in ear.of("message")]
        assert said == [Log(f"a-{number}", text="x") for number in range(300)]


async def test_a_question_is_answered_with_a_result_or_an_error(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, other):

        def answer(stanza: Stanza) -> None:
            if stanza.type == "get":
                two.send(
                    Stanza(
                        "iq",
                        "error",
                        stanza.sender,
                        id=stanza.id,
                        problem=Problem("busy", "later & <soon>"),
                    )
                )
            else:
                empty = stanza.id == "x.empty"
                two.send(iq(stanza.sender, "result", stanza.id, None if empty else stanza.body))

        other.answers = answer
        said = body(Ack("a-1"))
        one.send(iq(two.address, "set", "x.1", said))
        one.send(iq(two.address, "set", "x.empty", said))
        one.send(iq(two.address, "get", "x.2", said))
        await eventually(lambda: len(ear.of("iq")) == 3, SOON)
        result, empty, error = ear.of("iq")
        assert (result.type, result.id, result.body, result.sender) == (
            "result",
            "x.1",
            said,
            two.address,
        )
        assert (empty.type, empty.id, empty.body) == ("result", "x.empty", None)
        assert (error.type, error.id) == ("error", "x.2")
        assert error.problem is not None
        assert (error.problem.reason, error.problem.text) == ("busy", "later & <soon>")


async def test_a_question_to_nobody_comes_back_and_did_not_run(bus: Bus) -> None:
    async with opened(bus.make()) as (connection, ear):
        connection.send(iq(f"bob@{DOMAIN}/nobody-{secrets.token_hex(3)}", said=body(Ack("a-1"))))
        await eventually(lambda: ear.of("iq", "error"), SOON)
        (bounce,) = ear.of("iq")
        assert bounce.id == "x.1" and bounce.problem is not None
        assert bounce.problem.meaning.ran is Ran.NO


async def test_the_server_can_be_asked_and_its_answers_are_not_told(bus: Bus) -> None:
    async with opened(bus.make()) as (connection, ear):
        if bus.transport == "memory":
            with pytest.raises(CallError):
                await connection.ask("get", DOMAIN, Element(f"{{{INFO}}}query"))
            return
        answer = await connection.ask("get", DOMAIN, Element(f"{{{INFO}}}query"))
        assert answer is not None and answer.tag == f"{{{INFO}}}query"
        assert answer.findall(f"{{{INFO}}}feature")
        with pytest.raises(CallError) as refused:
            await connection.ask("set", DOMAIN, Element("{urn:nobody:knows}this"))
        assert refused.value.problem.meaning.ran is Ran.NO
        assert not ear.of("iq")


async def test_a_question_that_nobody_answers_ends_in_time(bus: Bus) -> None:
    async with both(bus) as (one, _, two, other):
        silent = Element("{urn:spinal:1}x")
        silent.text = "[]"
        with pytest.raises(Unreached):
            await one.ask("set", two.address, silent, timeout=0.3)
        assert len(other.of("iq", "set")) == 1


async def test_what_is_not_ours_is_not_told(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, _):
        with pytest.raises(CallError):
            await two.ask("set", one.address, Element("{urn:nobody:knows}this"), timeout=SOON)
        assert not ear.of("iq")


@pytest.mark.parametrize("type", ["chat", "normal"])
async def test_words_go_both_ways_as_they_were_said(bus: Bus, type: str) -> None:
    said = "äöü 𝄞 <b> & ]]> ' \" \\\nsecond line\tend"
    async with both(bus) as (one, ear, two, other):
        for sender, receiver, heard in ((one, two, other), (two, one, ear)):
            sender.send(Message(said, receiver.address, type=type, id="m1", thread="t<1>").stanza())
            await eventually(partial(len, heard.words), SOON)
            assert heard.words == [
                Message(said, receiver.address, sender.address, type, "m1", "t<1>")
            ]
        assert not ear.of("message") and not other.of("message")


async def test_words_to_an_account_reach_it_wherever_it_is(bus: Bus) -> None:
    async with both(bus) as (one, _, two, other):
        one.send(Message("hello", two.address.partition("/")[0]).stanza())
        await eventually(lambda: other.words, SOON)
        assert [(m.text, m.sender, m.delayed) for m in other.words] == [
            ("hello", one.address, False)
        ]


async def test_of_messages_without_words_for_us_nothing_is_told(bus: Bus) -> None:
    carbon = (
        b"<body>copied</body><received xmlns='urn:xmpp:carbons:2'><forwarded xmlns="
        b"'urn:xmpp:forward:0'><message xmlns='jabber:client'><body>x</body></message>"
        b"</forwarded></received>"
    )
    async with both(bus) as (one, ear, two, _):
        to = one.address
        for type, inner in (
            ("error", b"<body>an error</body><error type='cancel'/>"),
            ("headline", b"<body>news</body>"),
            ("chat", b"<active xmlns='http://jabber.org/protocol/chatstates'/>"),
            ("chat", carbon),
        ):
            two.send(Stanza("message", type, to, id="m", other=inner))
        late = b"<body>old</body><delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/>"
        two.send(Stanza("message", "chat", to, id="late", other=late))
        await eventually(lambda: ear.words, SOON)
        assert [(m.text, m.id, m.delayed) for m in ear.words] == [("old", "late", True)]


async def test_a_message_with_our_element_is_no_words(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, _):
        two.send(Stanza("message", "chat", one.address, body=b"[]", other=b"<body>both</body>"))
        two.send(Message("end", one.address).stanza())
        await eventually(lambda: ear.words, SOON)
        assert [m.text for m in ear.words] == ["end"]
        assert [s.body for s in ear.of("message")] == [b"[]"]


@over(ACCOUNTS)
async def test_who_asks_to_see_us_is_told(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, other):
        me, asker = (each.address.partition("/")[0] for each in (one, two))
        if bus.transport != "memory":
            for each, account in ((one, me), (two, asker)):
                # Who asks for the roster is told of answers (RFC 6121, 2.1.6).
                await each.ask("get", account, Element("{jabber:iq:roster}query"))
        two.send(Stanza("presence", "subscribe", me))
        await eventually(lambda: ear.of("presence", "subscribe"), SOON)
        assert ear.of("presence", "subscribe")[0].sender.partition("/")[0] == asker
        one.send(Stanza("presence", "subscribed", asker))
        await eventually(lambda: other.of("presence", "subscribed"), SOON)
        # So that the next test finds them strangers.
        two.send(Stanza("presence", "unsubscribe", me))
        await eventually(lambda: ear.of("presence", "unsubscribe"), SOON)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("kind", ["get", "set"])
async def test_who_understands_what_is_not_ours_answers_it(bus: Bus, ours: bool, kind: str) -> None:
    text = "äöü 𝄞 <b> & ]]> ' \" \\ end"
    async with both(bus) as (one, ear, two, other):
        asker, answerer, heard = (two, one, ear) if ours else (one, two, other)

        def answer(kind: str, sender: str, id: str, payload: Element) -> bool:
            again = Element(payload.tag, {"said": payload.get("said", "")})
            again.append(payload[0])
            # Not in the turn in which it came.
            asyncio.get_running_loop().call_soon(answerer.reply, sender, id, again)
            return True

        heard.understands = answer
        asked = Element("{urn:example:a}ask", {"said": text})
        child = Element("{urn:example:b}child")
        child.text = text
        asked.append(child)
        found = await asker.ask(kind, answerer.address, asked, timeout=SOON)
        assert found is not None and (found.tag, found.get("said")) == (asked.tag, text)
        assert (found[0].tag, found[0].text) == (child.tag, text)
        ((told, sender, _, _),) = heard.questions
        assert (told, sender) == (kind, asker.address)
        assert not heard.of("iq")


async def test_what_is_not_ours_is_answered_with_nothing_or_a_problem(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, _):

        def answer(kind: str, sender: str, id: str, payload: Element) -> bool:
            if kind == "get":
                one.reply(sender, id)
            else:
                problem = Problem("busy", "later & <soon>")
                one.reply(sender, id, problem=problem, more=Element("{urn:example:a}why"))
            return True

        ear.understands = answer
        asked = Element("{urn:example:a}ask")
        assert await two.ask("get", one.address, asked, timeout=SOON) is None
        with pytest.raises(CallError) as refused:
            await two.ask("set", one.address, asked, timeout=SOON)
        problem = refused.value.problem
        assert (problem.reason, problem.text) == ("busy", "later & <soon>")
        assert problem.condition == "resource-constraint"


async def test_what_nobody_understands_or_holds_nothing_is_refused(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, other):
        with pytest.raises(CallError) as refused:
            await two.ask("set", one.address, Element("{urn:nobody:knows}this"), timeout=SOON)
        assert refused.value.problem.condition == "service-unavailable"
        assert [payload.tag for *_, payload in ear.questions] == ["{urn:nobody:knows}this"]
        two.send(iq(one.address, "get", "x.empty"))
        await eventually(lambda: other.of("iq", "error"), SOON)
        (error,) = other.of("iq", "error")
        assert error.problem is not None and error.problem.condition == "bad-request"


async def test_what_else_a_stanza_holds_goes_out_with_it(bus: Bus) -> None:
    other = b"<c xmlns='urn:example:a' said='&lt;&amp;'/>"
    said = body(Hello(role="agent", epoch=3))
    async with both(bus) as (one, ear, two, other_ear):
        for sender, receiver, heard in ((two, one, ear), (one, two, other_ear)):
            sender.send(Stanza("presence", "", receiver.address, body=said, other=other))
            sender.send(Stanza("iq", "get", receiver.address, id="x.1", other=other))
            await eventually(partial(getattr, heard, "questions"), SOON)
            ((_, _, _, payload),) = heard.questions
            assert (payload.tag, payload.get("said")) == ("{urn:example:a}c", "<&")
            assert said in [stanza.body for stanza in heard.of("presence", "")]


async def test_without_a_stream_no_answer_is_said(bus: Bus) -> None:
    async with opened(bus.make()) as (connection, _):
        pass
    connection.reply(f"bob@{DOMAIN}/x", "1")


@pytest.mark.parametrize("ours", [True, False])
async def test_directed_presence_arrives_and_is_taken_back_at_the_end(bus: Bus, ours: bool) -> None:
    async with both(bus) as (one, ear, two, other):
        sender, receiver, heard = (one, two, other) if ours else (two, one, ear)
        said = body(Hello(role="agent", epoch=3))
        sender.send(Stanza("presence", "", receiver.address, body=said))
        await eventually(lambda: any(s.body == said for s in heard.of("presence", "")), SOON)
        await sender.close()
        await eventually(lambda: heard.of("presence", "unavailable"), 1.0)
        assert heard.of("presence", "unavailable")[0].sender == sender.address


async def test_directed_presence_is_taken_back_when_the_socket_is_aborted(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, _):
        two.send(Stanza("presence", "", one.address, body=body(Hello())))
        await eventually(lambda: ear.of("presence", ""), SOON)
        bus.cut(two)
        await eventually(lambda: ear.of("presence", "unavailable"), 1.0)


@over(STREAMS)
async def test_a_broken_stream_is_replaced_under_the_same_address(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, other):
        address = one.address
        for cuts in range(1, 3):
            bus.cut(one)
            await eventually(
                partial(ear.story.__eq__, ["opened", *["closed", "opened"] * cuts]), SOON
            )
            assert one.connected and one.address == address
        one.send(Stanza("presence", ""))
        one.send(iq(two.address, said=body(Ack("a-1"))))
        await eventually(lambda: other.of("iq"), SOON)
        assert other.of("iq")[0].sender == address


async def test_without_a_stream_nothing_is_sent(bus: Bus) -> None:
    connection = bus.make()
    with pytest.raises(NotConnected):
        connection.send(iq(f"bob@{DOMAIN}/x"))
    async with opened(connection):
        if bus.transport != "attached":
            bus.cut(connection)
            await eventually(lambda: not connection.connected, SOON)
            with pytest.raises(NotConnected):
                connection.send(iq(f"bob@{DOMAIN}/x"))
            with pytest.raises(CallError):
                await connection.ask("get", DOMAIN, Element(f"{{{INFO}}}query"))
    with pytest.raises(NotConnected):
        connection.send(iq(f"bob@{DOMAIN}/x"))


@over(STREAMS)
async def test_a_question_ends_when_the_stream_breaks(bus: Bus) -> None:
    async with both(bus) as (one, _, two, other):
        silent = Element("{urn:spinal:1}x")
        silent.text = "[]"
        asking = asyncio.ensure_future(one.ask("set", two.address, silent, timeout=60))
        await eventually(lambda: other.of("iq"), SOON)
        bus.cut(one)
        with pytest.raises(Unreached):
            async with asyncio.timeout(SOON):
                await asking


@over(LOGINS)
async def test_wrong_passwords_are_refused(bus: Bus) -> None:
    wrong = (
        bus.component("wrong")
        if bus.transport == "component"
        else bus.client("alice", "x", password="wrong")
    )
    with pytest.raises(LoginRefused) as refused:
        await wrong.open(Ear())
    await wrong.close()
    assert "\n" not in str(refused.value)


@over(CLIENTS)
async def test_a_server_with_a_certificate_of_somebody_else_is_refused(
    bus: Bus, tmp_path: Path
) -> None:
    other = ensure(tmp_path, DOMAIN, [])
    wrong = bus.client("alice", "x", ca=other.ca)
    with pytest.raises(CertificateRefused) as refused:
        await wrong.open(Ear())
    await wrong.close()
    assert "\n" not in str(refused.value)


@over(["embedded-client", "embedded-aioxmpp"])
async def test_a_certificate_for_another_domain_is_refused_although_our_authority_signed_it(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ensure(tmp_path, "other.test")

    def ensured(*_: object) -> Certificates:
        return other

    monkeypatch.setattr(embedded, "ensure", ensured)
    server = EmbeddedServer(ServerConfig(tmp_path, DOMAIN, free_ports()))
    await server.start()
    try:
        wrong = bus.client("alice", "x", port=server.config.ports.c2s, ca=other.ca)
        with pytest.raises(CertificateRefused) as refused:
            await wrong.open(Ear())
        await wrong.close()
    finally:
        await server.stop()
    assert "\n" not in str(refused.value)


@over(LOGINS)
async def test_where_nobody_listens_one_line_says_so(bus: Bus) -> None:
    port = free_ports().c2s
    wrong = (
        bus.component(SECRET, port)
        if bus.transport == "component"
        else bus.client("alice", "x", port=port)
    )
    with pytest.raises(BusError, match=str(port)) as refused:
        await wrong.open(Ear())
    await wrong.close()
    assert "\n" not in str(refused.value) and "spinal up" in str(refused.value)


@over(ACCOUNTS)
async def test_who_loses_the_address_to_another_program_does_not_come_back(bus: Bus) -> None:
    async with (
        opened(bus.client("alice", "same")) as (older, ear),
        opened(bus.client("alice", "same")) as (newer, other),
    ):
        async with asyncio.timeout(SOON):
            error = await older.failed()
        assert isinstance(error, AddressTaken)
        assert not older.connected and newer.connected
        assert ear.story == ["opened", "closed"] and other.story == ["opened"]


@over(["embedded-component", "embedded-attached"])
async def test_a_domain_that_is_taken_is_refused(bus: Bus) -> None:
    async with opened(bus.make()):
        second = bus.make()
        with pytest.raises(BusError) as refused:
            await second.open(Ear())
        await second.close()
        assert "\n" not in str(refused.value)


async def test_closing_twice_is_as_good_as_once(bus: Bus) -> None:
    connection = bus.make()
    await connection.close()
    async with opened(connection):
        await connection.close()
        assert not connection.connected
        await connection.close()


async def test_a_large_body_passes_unchanged(bus: Bus) -> None:
    async with both(bus) as (one, ear, two, other):
        said = body(*(Log("a-1", text="y" * (10 * 1024 - 38)) for _ in range(6)))
        assert 60 * 1024 - 100 < len(said) <= 60 * 1024
        one.send(iq(two.address, said=said))
        two.send(iq(one.address, said=said))
        await eventually(lambda: other.of("iq") and ear.of("iq"), SOON)
        assert other.of("iq")[0].body == ear.of("iq")[0].body == said


async def test_a_body_of_a_mebibyte_passes_unchanged(bus: Bus) -> None:
    said = ('["' + r"äöü ß € 𝄞 日本 > ]] ' \" \\ \n \u0000 " * 21_385 + '"]').encode()
    assert 1024 * 1024 - 4096 < len(said) < 1024 * 1024 - 512
    async with both(bus) as (one, ear, two, other):
        one.send(iq(two.address, said=said))
        two.send(iq(one.address, said=said))
        await eventually(lambda: other.of("iq") and ear.of("iq"), SOON)
        assert other.of("iq")[0].body == ear.of("iq")[0].body == said


async def test_every_character_survives(bus: Bus) -> None:
    text = "äöü ß € 𝄞 日本 <b> & ]]> ' \" \\ \n\t\r \x00\x1f\x7f \u2028 \ufffe\uffff \x85 end"
    async with both(bus) as (one, ear, two, other):
        said = body(Log("a-1", text=text))
        for sender, receiver, heard in ((one, two, other), (two, one, ear)):
            sender.send(iq(receiver.address, said=said))
            await eventually(partial(heard.has, "iq", 1), SOON)
            assert CODEC.read(heard.of("iq")[0].body or b"") == [Log("a-1", text=text)]


async def test_a_handler_that_raises_does_not_end_the_stream(
    bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    async with both(bus) as (one, ear, two, _):
        ear.raises = True
        two.send(Stanza("message", "headline", one.address, body=body(Log("a-1", text="x"))))
        await eventually(lambda: ear.of("message"), SOON)
        ear.raises = False
        two.send(Stanza("message", "headline", one.address, body=body(Log("a-2", text="x"))))
        await eventually(lambda: len(ear.of("message")) == 2, SOON)
        assert one.connected and ear.story == ["opened"]


@over(ON_SLIXMPP)
async def test_our_stanzas_pass_slixmpp_by(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    found = getattr(XMLStream, "_spawn_event", None)
    assert found is not None, (
        "slixmpp has no XMLStream._spawn_event any more: transports/slixmpp.py has to take its "
        "stanzas somewhere else"
    )

    def note(self: XMLStream, xml: Any) -> None:
        built.append(xml.tag)
        found(self, xml)

    async with both(bus) as (one, ear, two, _):
        monkeypatch.setattr(XMLStream, "_spawn_event", note)
        two.send(iq(one.address, said=body(Ack("a-1"))))
        await eventually(lambda: ear.of("iq"), SOON)
        assert not built, (
            f"slixmpp built stanza objects for {built}: its parser no longer calls the override of "
            "_spawn_event in transports/slixmpp.py"
        )


@over(ON_AIOXMPP)
async def test_who_asks_before_the_stream_is_ready_is_told_so(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = import_module("spinal.bus.transports.aioxmpp")
    plain = transport.ClientConnection._bind
    async with opened(bus.peer()) as (peer, _):

        async def bind(self: Any, ended: Any) -> Any:
            address = await plain(self, ended)
            for kind in ("get", "set"):
                with pytest.raises(CallError) as refused:
                    await peer.ask(kind, address, Element("{urn:spinal:1}x"), timeout=SOON)
                assert refused.value.problem.meaning.ran is Ran.NO
            return address

        monkeypatch.setattr(transport.ClientConnection, "_bind", bind)
        async with opened(bus.make()) as (connection, ear):
            assert connection.connected and not ear.of("iq")


@over(ON_AIOXMPP)
@pytest.mark.parametrize("answers", [True, False])
async def test_a_server_that_is_silent_is_asked_for_a_word_before_it_is_given_up(
    bus: Bus, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = import_module("spinal.bus.transports.aioxmpp")
    monkeypatch.setattr(transport, "IDLE", timedelta(seconds=0.1))
    monkeypatch.setattr(transport, "DEAD", timedelta(seconds=2.0 if answers else 0.3))
    pings: list[float] = []

    def ping(self: Any) -> None:
        pings.append(asyncio.get_running_loop().time())
        if answers:
            plain(self)

    plain = transport.ClientConnection._ping
    monkeypatch.setattr(transport.ClientConnection, "_ping", ping)
    async with opened(bus.make()) as (_, ear):
        if answers:
            await eventually(lambda: len(pings) > 3, SOON)
            assert ear.story == ["opened"] and not ear.of("iq")
        else:
            await eventually(lambda: ear.story[:3] == ["opened", "closed", "opened"], SOON)


async def test_nothing_is_left_over(bus: Bus) -> None:
    gc.collect()
    before = asyncio.all_tasks()
    sockets = _open_sockets()
    async with both(bus) as (one, _, _, _):
        if bus.transport != "attached":
            bus.cut(one)
            await eventually(lambda: not one.connected, SOON)
            await eventually(lambda: one.connected, SOON)
    await eventually(lambda: not (asyncio.all_tasks() - before), 5, "no task is left")
    gc.collect()
    await eventually(lambda: _open_sockets() <= sockets, 5, "no socket is left")


@over(LOGINS)
async def test_a_stream_that_was_replaced_is_freed(bus: Bus) -> None:
    async with opened(bus.make()) as (connection, ear):
        anyone: Any = connection
        old = weakref.ref(anyone._stream)
        bus.cut(connection)
        await eventually(lambda: ear.story == ["opened", "closed", "opened"], SOON)

        def freed() -> bool:
            gc.collect()
            return old() is None

        await eventually(freed, 5, "the old stream is freed")


@over(STREAMS)
async def test_closing_while_it_looks_for_a_new_stream_ends_that(bus: Bus) -> None:
    before = asyncio.all_tasks()
    async with opened(bus.make()) as (connection, ear):
        bus.cut(connection)
        await eventually(lambda: "closed" in ear.story, SOON)
        await connection.close()
        assert not connection.connected
    await eventually(lambda: not (asyncio.all_tasks() - before), 5, "no task is left")


@over(LOGINS)
async def test_giving_up_an_opening_leaves_nothing(bus: Bus) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        mute = (
            bus.component(SECRET, port)
            if bus.transport == "component"
            else bus.client("alice", "x", port=port)
        )
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await mute.open(Ear())
        await mute.close()
        await eventually(lambda: not (asyncio.all_tasks() - before), 5, "no task is left")


def _open_sockets() -> int:
    return sum(
        1 for item in gc.get_objects() if isinstance(item, socket.socket) and item.fileno() >= 0
    )
