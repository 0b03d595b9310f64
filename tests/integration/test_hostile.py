"""Hostile input: forged, replayed, deep, huge, endless, and a great deal of it.

On each server, from somebody who has an account.  What the server refuses itself never reaches us;
what it lets through is refused by the agent kit and by the dispatcher.  After each of them an
honest call is answered, and neither process has grown beyond a bound.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest
import pytest_asyncio
from slixmpp import ClientXMPP

from spinal.bus import Client
from spinal.bus.blobs import MAX_FILE
from spinal.bus.errors import CallError
from spinal.bus.registration import tell_server
from spinal.bus.server import Server, ServerConfig, free_ports, launch
from spinal.protocols import TAG
from spinal.testing import READY, Platform, Process, eventually

from .conftest import SOON, parts

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: slixmpp declares types that are too loose to check anything against.
Bot: TypeAlias = Any

MIB = 1024 * 1024
#: By how much the memory of a process may grow at its peak, over what it had before.
ROOM = 64 * MIB
#: The same where a hundred thousand ids are told, which are remembered for a while on purpose.
ROOM_FOR_IDS = 400 * MIB

AGENT = '''
import asyncio
from pathlib import Path

from spinal.agents import Agent, Blob

agent = Agent("honest", slots=4)


@agent.op("/hostile/echo", effects="reads")
async def echo(text: str) -> str:
    """Say it again."""
    return text


@agent.op("/hostile/any", effects="reads")
async def anything(value: dict[str, object]) -> int:
    """Take anything."""
    return len(value)


@agent.op("/hostile/work", effects="writes")
async def work(ledger: str, gate: str) -> str:
    """Write down that it began, and wait for a file."""
    with open(ledger, "a") as file:
        file.write("begun\\n")
    while not Path(gate).exists():
        await asyncio.sleep(0.02)
    return "worked"


@agent.op("/hostile/read", effects="reads", timeout="20s")
async def read(file: Blob) -> int:
    """Take a blob into memory."""
    return len(await file.read())


@agent.op("/hostile/file", effects="reads", timeout="60s")
def save(file: Blob) -> int:
    """Take a blob as a file."""
    return file.path.stat().st_size


@agent.op("/hostile/slow", effects="reads", timeout="3s")
async def slow(file: Blob) -> int:
    """Take a blob into memory that had better come soon."""
    return len(await file.read())
'''


class Foe:
    """Somebody with an account, who writes bytes of their own."""

    def __init__(self, bot: Bot) -> None:
        self._bot = bot
        self.heard: list[Any] = []
        self.ended = False

    @property
    def address(self) -> str:
        """Full address."""
        return str(self._bot.boundjid.full)

    def write(self, text: str) -> None:
        """Write to the stream whatever it is."""
        if self._bot.transport is not None:
            self._bot.send_raw(text)

    async def written(self) -> None:
        """Wait until the network has taken it all."""
        await eventually(
            lambda: self._bot.transport is None or not self._bot.transport.get_write_buffer_size(),
            READY,
            "it is written",
        )

    def answers(self, id: str) -> list[Any]:
        """The stanzas with this id that have come."""
        return [stanza for stanza in self.heard if stanza.get("id") == id]

    async def asks(self, to: str, body: str, id: str) -> Any:
        """Send a body as an IQ, and give the answer; none if the stream ended instead."""
        self.write(iq(to, body, id))

        def over() -> bool:
            return self.ended or bool(self.answers(id))

        await eventually(over, SOON, f"an answer to {id}")
        return self.answers(id)[0] if self.answers(id) else None


def iq(to: str, body: str, id: str, more: str = "") -> str:
    """Write an IQ with a body of ours."""
    text = body.replace("&", "&amp;").replace("<", "&lt;")
    return f"<iq type='set' to='{to}' id='{id}'{more}><x xmlns='urn:spinal:1'>{text}</x></iq>"


def op(id: str, path: str, **arguments: Any) -> dict[str, Any]:
    """Write an op."""
    return {"type": "op", "id": id, "op": path, "left": 60000, "args": arguments}


def events(stanza: Any) -> list[dict[str, Any]]:
    """Read what an answer carries."""
    found = stanza.find(TAG)
    return [] if found is None else json.loads(found.text)


@dataclass
class Ground:
    """Where it happens."""

    platform: Platform
    agent: Process
    dispatcher: str
    address: str
    folder: Path

    @asynccontextmanager
    async def foe(self, name: str = "foe") -> AsyncGenerator[Foe]:
        """Log in as somebody."""
        home = self.platform.home
        bot: Bot = ClientXMPP(f"{name}@{home.domain}/f", home.password(name))
        bot.ca_certs = home.ca
        bot.enable_direct_tls = bot.enable_plaintext = False
        bot.register_plugin("xep_0030")
        begun = asyncio.Event()
        found = Foe(bot)
        spawn = bot._spawn_event

        def hear(xml: Any) -> None:
            found.heard.append(xml)
            del found.heard[:-1000]
            spawn(xml)

        def ended(_: Any) -> None:
            found.ended = True

        def has_begun(_: Any) -> None:
            begun.set()

        bot._spawn_event = hear
        bot.add_event_handler("session_start", has_begun)
        bot.add_event_handler("disconnected", ended)
        host, port = home.endpoint
        bot.connect(host, port)
        try:
            async with asyncio.timeout(SOON):
                await begun.wait()
            bot.send_presence()
            yield found
        finally:
            if bot.transport is not None:
                bot.abort()
            bot.cancel_connection_attempt()
            bot._run_out_filters.cancel()
            await asyncio.wait([bot._run_out_filters])

    def processes(self) -> dict[str, psutil.Process]:
        """The agent's process, and the dispatcher's (with the embedded server, its too)."""
        (dispatcher,) = parts(self.platform)["dispatcher"]
        return {"agent": psutil.Process(self.agent.pid), "dispatcher": dispatcher}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ground(
    running: Platform, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Ground]:
    home = running.home
    for name, role in (
        ("foe", "caller"),
        ("other", "caller"),
        ("honest", "agent"),
        ("bad", "agent"),
    ):
        home.add_account(name, role)
        await tell_server(home, name)
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "agent.py").write_text(AGENT)
    # Any port of this machine, so that a host of blobs may be a bad one.
    environ = {
        **running.environ,
        **home.environment("honest"),
        "SPINAL_HOME": "",
        "SPINAL_UPLOAD": "127.0.0.1",
    }
    agent = await running.start(
        *(sys.executable, "-m", "spinal", "agent", "run", str(folder / "agent.py"), "--json"),
        environ=environ,
    )
    ready = json.loads(await agent.line(lambda line: '"ready"' in line))

    async def known() -> bool:
        return any(a["agent"] == ready["agent"] and a["ops"] for a in await running.client.agents())

    await eventually(known, READY, "the agent is known")
    yield Ground(running, agent, home.dispatcher, ready["agent"], folder)


def status(process: psutil.Process, name: str) -> int:
    """Read a line of /proc/PID/status in bytes (proc(5))."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name}")


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def it_stays_small_and_honest(
    ground: Ground, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> AsyncIterator[None]:
    before: dict[str, tuple[psutil.Process, int]] = {}
    for name, process in ground.processes().items():
        # The peak from now on (proc(5), clear_refs).
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        before[name] = process, process.memory_info().rss
    yield
    for name, process in ground.processes().items():
        said = [*ground.platform.up.lines[-4:], *ground.platform.up.errors[-4:]]
        assert process == before[name][0], f"the {name} died of it: {said}"
    async with asyncio.timeout(SOON):
        for to in (None, ground.address):
            client = ground.platform.client.options(to=to)
            assert await client.call("/hostile/echo", text="honest") == "honest"
    room = ROOM_FOR_IDS if "thousand_ids" in request.node.name else ROOM
    for name, (process, had) in before.items():
        grown = status(process, "VmHWM") - had
        record_property(f"{name} grew, MiB", round(grown / MIB, 1))
        print(f"GREW {request.node.name} {name} {grown / MIB:.1f} of {had / MIB:.0f} MiB")
        assert grown < room, f"the {name} grew by {grown / MIB:.0f} MiB"


# Forged.


async def test_a_forged_sender_is_refused_or_corrected_by_the_server(ground: Ground) -> None:
    home = ground.platform.home
    body = json.dumps([op("forged", "/spinal/limits/set", op="/hostile/echo", rate=0.001)])
    async with ground.foe() as foe:
        for forged in (f"owner@{home.domain}", f"owner@{home.domain}/x", ground.dispatcher):
            foe.write(iq(ground.dispatcher, body, f"f-{len(forged)}", f" from='{forged}'"))
        await foe.written()
        answer = await foe.asks(
            ground.dispatcher, json.dumps([op("own", "/spinal/limits/list")]), "z"
        )
        assert answer is None or events(answer)
        for stanza in foe.heard:
            for event in events(stanza):
                if event.get("id") == "forged" and event["type"] != "accepted":
                    assert event["problem"]["reason"] == "not-allowed", event
    assert (await ground.platform.client.ask_dispatcher("/spinal/limits/list"))["items"] == []


# Replayed.


async def test_what_is_replayed_runs_once_and_touches_nobody_else(
    ground: Ground, tmp_path: Path
) -> None:
    ledger, gate = tmp_path / "ledger", tmp_path / "gate"
    arguments = {"ledger": str(ledger), "gate": str(gate)}

    def begun() -> int:
        return len(ledger.read_text().splitlines()) if ledger.exists() else 0

    async with ground.foe("foe") as foe, ground.foe("other") as other:
        for to, times in ((ground.address, 1), (ground.dispatcher, 2)):
            said = json.dumps([op(f"mine-{times}", "/hostile/work", **arguments)])
            foe.write(iq(to, said, f"once-{times}"))

            def has_begun(times: int = times) -> bool:
                return begun() == times

            await eventually(has_begun, SOON, "it has begun")
            for n in range(20):
                foe.write(iq(to, said, f"again-{times}-{n}"))
            # Another account: nothing of the first one's is known under its name.
            for n, event in enumerate(("cancel", "ack")):
                body = json.dumps([{"type": event, "id": f"mine-{times}"}])
                answer = await other.asks(to, body, f"other-{times}-{n}")
                for one in events(answer):
                    assert one.get("state") == "unknown", one
            final = [{"type": "final", "id": f"mine-{times}", "value": "forged"}]
            await other.asks(foe.address, json.dumps(final), f"final-{times}")
        assert begun() == 2
        gate.touch()

        def ended() -> bool:
            values = [e.get("value") for stanza in foe.heard for e in events(stanza)]
            return values.count("worked") >= 2

        await eventually(ended, SOON, "both have ended")
        assert begun() == 2
        # Acknowledged, and then once more: it was done.
        ack = json.dumps([{"type": "ack", "id": "mine-1"}])
        for n in range(3):
            await foe.asks(ground.address, ack, f"ack-{n}")
        late = await foe.asks(
            ground.address, json.dumps([op("mine-1", "/hostile/work", **arguments)]), "late"
        )
        assert events(late)[0]["problem"]["reason"] == "already-done"
        assert begun() == 2


async def test_a_final_of_somebody_else_ends_no_call_of_ours(
    ground: Ground, tmp_path: Path
) -> None:
    client: Client = ground.platform.client
    gate = tmp_path / "gate"
    async with ground.foe() as foe:
        call = await client.options(to=ground.address).start(
            "/hostile/work", {"ledger": str(tmp_path / "ledger"), "gate": str(gate)}
        )
        await eventually((tmp_path / "ledger").exists, SOON)
        for kind in ("final", "error", "accepted", "progress", "data", "cancelled"):
            event: dict[str, Any] = {"type": kind, "id": call.id, "value": "forged", "seq": 0}
            event |= {"state": "late", "problem": {"reason": "failed"} if kind == "error" else None}
            await foe.asks(client.address, json.dumps([event]), f"forged-{kind}")
        assert not call.done
        gate.touch()
        assert await call.result() == "worked"


# XML.

LAUGHS = (
    "<!DOCTYPE lol [<!ENTITY a 'ha ha ha ha'>"
    + "".join(
        f"<!ENTITY {c} '{f'&{b};' * 10}'>" for b, c in zip("abcdefghi", "bcdefghij", strict=True)
    )
    + "]>"
)
EXTERNAL = "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"


@pytest.mark.parametrize(
    "said",
    [
        LAUGHS + "<message to='{to}'><body>&j;</body></message>",
        "<message to='{to}'><x xmlns='urn:spinal:1'>&j;</x></message>",
        EXTERNAL + "<message to='{to}'><body>&e;</body></message>",
        "<iq type='set' to='{to}' id='long'><x xmlns='urn:spinal:1'>" + "x" * (8 * MIB),
    ],
    ids=["laughs", "undeclared", "external", "endless"],
)
async def test_xml_that_is_no_stanza_ends_at_the_server(ground: Ground, said: str) -> None:
    async with ground.foe() as foe:
        foe.write(said.replace("{to}", ground.address))
        await eventually(lambda: foe.ended, SOON, "the server has ended the stream")


async def test_a_processing_instruction_ends_the_stream_or_is_nothing(ground: Ground) -> None:
    async with ground.foe() as foe:
        # Prosody and the embedded server end the stream; ejabberd reads over it.
        foe.write("<?php evil ?>")
        answer = await foe.asks(
            ground.address, json.dumps([op("pi", "/hostile/echo", text="x")]), "pi"
        )
        assert answer is None or events(answer)[0]["id"] == "pi"


async def test_xml_of_ten_thousand_levels_is_refused_by_the_server_or_by_us(ground: Ground) -> None:
    deep = "<x xmlns='urn:spinal:1'>" * 10_000 + "</x>" * 10_000
    async with ground.foe() as foe:
        for to in (ground.address, ground.dispatcher):
            foe.write(f"<iq type='set' to='{to}' id='deep-{to}'>{deep}</iq>")

            def over(to: str = to) -> bool:
                return foe.ended or bool(foe.answers(f"deep-{to}"))

            await eventually(over, SOON, "it is refused")
            assert all(stanza.get("type") == "error" for stanza in foe.answers(f"deep-{to}"))


# JSON.


@pytest.mark.parametrize(
    "value",
    [
        "[" * 10_000 + "]" * 10_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        "1" * 5_000,
        "-" + "9" * 400,
        "1e999",
        "NaN",
        "-Infinity",
        "[" + ",".join(["0"] * 100_000) + "]",
        '"\\ud800"',
        "9007199254740993",
    ],
    ids=[
        *("deep lists", "deep objects", "5000 digits", "400 digits", "1e999", "NaN", "-Infinity"),
        *("100000 members", "half a character", "beyond 2^53"),
    ],
)
async def test_json_that_is_not_ours_is_answered_with_an_error(ground: Ground, value: str) -> None:
    bodies = (
        value,
        f'[{{"type":"op","id":"j","op":"/hostile/any","left":60000,"args":{{"value":{{"a":{value}}}}}}}]',
        f'[{{"type":"op","id":"j","op":"/hostile/any","left":{value}}}]',
        f'[{{"type":"advertisement","hash":"h","epoch":{value}}}]',
    )
    async with ground.foe() as foe:
        for to in (ground.address, ground.dispatcher):
            for n, body in enumerate(bodies):
                answer = await foe.asks(to, body, f"{n}-{to}")
                assert answer is not None, "the stream ended"
                assert answer.get("type") == "error" or "problem" in events(answer)[0], body[:80]


# Blobs.


class Host:
    """A host of blobs with a certificate of our authority, which does what it likes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked = 0

    def ref(self, path: str, size: int) -> dict[str, Any]:
        """A reference to a blob here."""
        url = f"https://127.0.0.1:{self.port}/{path}"
        return {"blob": {"url": url, "sha256": "0" * 64, "size": size}}


HEAD = b"HTTP/1.1 200 OK\r\n"
ZEROS = bytes(MIB)
MEGABYTE = 1_000_000


async def _announces(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: 1000000000\r\n\r\n")
    await _repeat(writer, bytes(MEGABYTE), 1000)


async def _never_ends(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    await _repeat(writer, b"100000\r\n" + ZEROS + b"\r\n", 1_000_000)


async def _headers_never_end(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    await _repeat(writer, b"X-More: " + b"x" * 8192 + b"\r\n", 1_000_000)


async def _repeat(writer: asyncio.StreamWriter, piece: bytes, times: int) -> None:
    for _ in range(times):
        if writer.is_closing():
            return
        writer.write(piece)
        await writer.drain()
        # Draining alone lets nobody else run while the network takes it all.
        await asyncio.sleep(0)


async def _drips(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b"Content-Length: 1000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.2)


PATHS: dict[str, Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]] = {
    "announces": _announces,
    "never-ends": _never_ends,
    "headers": _headers_never_end,
    "drips": _drips,
}


@pytest_asyncio.fixture(loop_scope="module")
async def host(ground: Ground) -> AsyncIterator[Host]:
    folder = ground.platform.home.path / "server"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.pem", folder / "server-key.pem")
    serving: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        found.asked += 1
        try:
            line = (await reader.readuntil(b"\r\n\r\n")).split()
            await PATHS[line[1].decode().strip("/")](writer)
            # Whoever had enough goes, and who wants more has all of it.
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # It has heard enough.
        finally:
            serving.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    found = Host(server.sockets[0].getsockname()[1])
    try:
        yield found
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


@pytest.mark.parametrize("path", ["announces", "never-ends", "headers"])
@pytest.mark.parametrize("how", ["/hostile/read", "/hostile/file"])
async def test_a_host_that_sends_more_than_the_reference_says_is_not_listened_to(
    ground: Ground, host: Host, how: str, path: str
) -> None:
    with pytest.raises(CallError) as caught:
        await ground.platform.client.call(how, file=_raw(host.ref(path, 1000)))
    assert caught.value.reason == "blob" and host.asked


@pytest.mark.parametrize(("how", "size"), [("/hostile/read", 10**9), ("/hostile/file", 10**12)])
async def test_a_blob_that_is_announced_as_too_large_is_not_even_asked_for(
    ground: Ground, host: Host, how: str, size: int
) -> None:
    assert size > MAX_FILE or how == "/hostile/read"
    with pytest.raises(CallError) as caught:
        await ground.platform.client.call(how, file=_raw(host.ref("announces", size)))
    assert caught.value.reason == "blob" and not host.asked


async def test_a_gigabyte_that_is_announced_goes_into_a_file_and_not_into_memory(
    ground: Ground, host: Host
) -> None:
    with pytest.raises(CallError, match="SHA-256") as caught:
        await ground.platform.client.options(timeout=100).call(
            "/hostile/file", file=_raw(host.ref("announces", 10**9))
        )
    assert caught.value.reason == "blob"


async def test_a_host_that_drips_is_left_when_the_operation_is_out_of_time(
    ground: Ground, host: Host
) -> None:
    calls = [
        ground.platform.client.call("/hostile/slow", file=_raw(host.ref("drips", 1000)))
        for _ in range(8)
    ]
    for problem in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(problem, CallError) and problem.reason in ("deadline", "blob")


def _raw(reference: dict[str, Any]) -> Any:
    """A reference as an argument that is sent as it is."""
    return reference


# A great deal.

#: Ids of a flood; ``make hostile`` sends ten times as many.
MANY = int(os.environ.get("SPINAL_MANY", "10000"))


def batches(written: Iterable[dict[str, Any]], size: int) -> Iterable[str]:
    """Bodies of so many events each."""
    some: list[dict[str, Any]] = []
    for event in written:
        some.append(event)
        if len(some) == size:
            yield json.dumps(some, separators=(",", ":"))
            some = []
    if some:
        yield json.dumps(some, separators=(",", ":"))


async def flood(foe: Foe, to: str, bodies: Iterable[str]) -> None:
    """Send bodies as fast as they are taken, and wait for the answer to the last one."""
    n = 0
    for n, body in enumerate(bodies):
        foe.write(iq(to, body, f"flood-{n}-{to}"))
        if n % 16 == 15:
            await foe.written()
            await asyncio.sleep(0)
    await eventually(
        lambda: foe.ended or foe.answers(f"flood-{n}-{to}"), READY, "the last one is answered"
    )


@pytest.mark.parametrize("whom", ["agent", "dispatcher"])
@pytest.mark.parametrize("kind", ["op", "unknown", "cancel", "ack"])
async def test_very_many_ids(ground: Ground, whom: str, kind: str) -> None:
    to = ground.address if whom == "agent" else ground.dispatcher
    make: dict[str, Callable[[str], dict[str, Any]]] = {
        "op": lambda id: op(id, "/hostile/echo", text=id),
        "unknown": lambda id: op(id, "/hostile/nothing", text=id),
        "cancel": lambda id: {"type": "cancel", "id": id, "left": 31622400000},
        "ack": lambda id: {"type": "ack", "id": id},
    }
    count = MANY // 5 if kind == "op" else MANY
    ids = (f"{kind}-{whom}-{n}-{'x' * 40}" for n in range(count))
    async with ground.foe() as foe:
        await flood(foe, to, batches((make[kind](id) for id in ids), 500))


@pytest.mark.parametrize("name", ["foe", "bad"])
async def test_a_flood_of_presence_and_advertisements(ground: Ground, name: str) -> None:
    async with ground.foe(name) as foe:
        for n in range(5000):
            offer = {"type": "advertisement", "hash": f"{n:064d}", "epoch": n + 1, "slots": 1000000}
            hello = {"type": "hello", "role": "dispatcher", "dispatchers": [foe.address] * 8}
            for to, event in ((ground.dispatcher, offer), (ground.address, hello)):
                foe.write(
                    f"<presence to='{to}'><x xmlns='urn:spinal:1'>{json.dumps([event])}</x></presence>"
                )
            if n % 64 == 0:
                await foe.written()
        await foe.written()
        await eventually(
            lambda: foe.ended or any(s.tag.endswith("presence") for s in foe.heard), SOON
        )
        for to in (ground.dispatcher, ground.address):
            await foe.asks(to, '[{"type":"hello"}]', f"last-{to}")


# A component.


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def with_component(
    server: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Server]:
    config = ServerConfig(
        tmp_path_factory.mktemp("component"),
        "bus.test",
        free_ports(),
        components={"part.bus.test": "secret"},
    )
    found = await launch(server, config)
    try:
        await found.add_account("ann", "a password")
        yield found
    finally:
        await found.stop()


async def test_a_component_that_stamps_a_foreign_domain_is_not_believed(
    with_component: Server,
) -> None:
    config = with_component.config
    bot: Bot = ClientXMPP("ann@bus.test/desk", "a password")
    bot.ca_certs = with_component.ca
    bot.enable_direct_tls = bot.enable_plaintext = False
    begun, senders = asyncio.Event(), list[str]()

    def has_begun(_: Any) -> None:
        bot.send_presence()
        begun.set()

    def note(message: Any) -> None:
        senders.append(str(message["from"]))

    bot.add_event_handler("session_start", has_begun)
    bot.add_event_handler("message", note)
    bot.connect("127.0.0.1", config.ports.c2s)
    try:
        async with asyncio.timeout(SOON):
            await begun.wait()
        for forged in ("owner@bus.test/x", "elsewhere.test", "part.bus.test"):
            reader, writer = await asyncio.open_connection("127.0.0.1", config.ports.component)
            try:
                async with asyncio.timeout(SOON):
                    writer.write(
                        b"<stream:stream xmlns='jabber:component:accept' to='part.bus.test'"
                        b" xmlns:stream='http://etherx.jabber.org/streams'>"
                    )
                    head = await reader.readuntil(b">")
                    while b" id=" not in head:
                        head = await reader.readuntil(b">")
                    quote = head.split(b" id=")[1][:1]
                    own = head.split(b" id=")[1][1:].split(quote)[0]
                    mark = sha1(own + b"secret", usedforsecurity=False).hexdigest()
                    writer.write(f"<handshake>{mark}</handshake>".encode())
                    await reader.readuntil(b"handshake")
                    writer.write(
                        f"<message from='{forged}' to='ann@bus.test/desk' type='chat'>"
                        "<body>let me in</body></message>".encode()
                    )
                    await writer.drain()
                    if forged.startswith("part"):
                        await eventually(lambda: senders, SOON, "the honest one arrives")
                    else:
                        await reader.read(65536)  # What it says to that, and perhaps its end.
            finally:
                writer.transport.abort()
        assert senders == ["part.bus.test"]
    finally:
        await bot.disconnect(wait=0.1)
        bot.cancel_connection_attempt()
        bot._run_out_filters.cancel()
        await asyncio.wait([bot._run_out_filters])
