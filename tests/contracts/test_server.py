"""What the contract of ``bus/server`` promises, held against every kind of server.

One server of each kind serves all tests that leave it as it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import psutil
import pytest
import pytest_asyncio
from slixmpp import JID, ClientXMPP
from slixmpp.componentxmpp import ComponentXMPP
from tests.processes import alive, below

from spinal.bus.server import (
    KINDS,
    PortTaken,
    Server,
    ServerConfig,
    ServerError,
    add_account,
    add_accounts,
    available,
    free_ports,
    launch,
    remove_account,
)
from spinal.bus.server.certificates import ensure
from spinal.testing import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: A slixmpp stream; the types that it declares are too loose to check anything against.
Stream: TypeAlias = Any
Stanza: TypeAlias = Any

DOMAIN = "bus.test"
COMPONENT = "disp.bus.test"
SECRET = 'a component\'s "secret" \\ ü'
PASSWORD = 'it\'s a "pass\\word" & <more>'
SOON = 15.0


class Refused(Exception):
    """The login did not come to be."""


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    reason = available(name)
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    return name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(kind: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Server]:
    running = await launch(kind, config_in(tmp_path_factory.mktemp(kind)))
    try:
        for name in ("alice", "bob"):
            await running.add_account(name, PASSWORD)
        yield running
    finally:
        await running.stop()


def config_in(folder: Path) -> ServerConfig:
    return ServerConfig(folder, DOMAIN, free_ports(), components={COMPONENT: SECRET})


async def outcome(stream: Stream, good: str, bad: tuple[str, ...], port: int) -> None:
    """Connect and wait for one of the events."""
    ended: asyncio.Future[tuple[str, object]] = asyncio.get_running_loop().create_future()

    def note(event: str, data: object = None) -> None:
        if not ended.done():
            ended.set_result((event, data))

    for event in (good, *bad):
        stream.add_event_handler(event, partial(note, event))
    stream.connect("127.0.0.1", port)
    async with asyncio.timeout(SOON):
        event, data = await ended
    if event != good:
        raise Refused(f"{event}: {data!r}")


async def close(stream: Stream) -> None:
    if stream.transport is not None:
        gone = end_of(stream)
        stream.abort()
        async with asyncio.timeout(SOON):
            await gone.wait()
    stream.cancel_connection_attempt()


def end_of(stream: Stream) -> asyncio.Event:
    gone = asyncio.Event()

    def note(_: object) -> None:
        gone.set()

    stream.add_event_handler("disconnected", note)
    return gone


def inbox(stream: Stream, *events: str) -> asyncio.Queue[Stanza]:
    """What comes in from now on."""
    queue: asyncio.Queue[Stanza] = asyncio.Queue()
    for event in events:
        stream.add_event_handler(event, queue.put_nowait)
    return queue


@asynccontextmanager
async def client(
    server: Server, name: str, password: str = PASSWORD, ca: Path | None = None
) -> AsyncGenerator[Stream]:
    stream: Stream = ClientXMPP(f"{name}@{DOMAIN}/{secrets.token_hex(4)}", password)
    stream.ca_certs = ca or server.ca
    stream.enable_direct_tls = stream.enable_plaintext = False
    stream.ssl_context.verify_flags |= ssl.VERIFY_X509_STRICT
    for plugin in ("xep_0030", "xep_0199", "xep_0363"):
        stream.register_plugin(plugin)
    try:
        bad = ("failed_all_auth", "ssl_invalid_chain", "connection_failed", "disconnected")
        await outcome(stream, "session_start", bad, server.config.ports.c2s)
        yield stream
    finally:
        await close(stream)


@asynccontextmanager
async def component(server: Server, secret: str) -> AsyncGenerator[Stream]:
    make: Any = ComponentXMPP
    stream: Stream = make(COMPONENT, secret)
    try:
        bad = ("connection_failed", "disconnected")
        await outcome(stream, "session_start", bad, server.config.ports.component)
        yield stream
    finally:
        await close(stream)


async def from_peer(came: asyncio.Queue[Stanza], kind: str, sender: JID) -> None:
    """Wait for presence of this kind and sender, and skip what else comes."""
    stanza = await came.get()
    while (stanza["type"], stanza["from"]) != (kind, sender):
        stanza = await came.get()


async def test_a_new_stream_is_answered(server: Server) -> None:
    await server.probe()
    assert server.pid > 0
    assert server.ca.read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")


async def test_a_client_logs_in_over_verified_tls(server: Server) -> None:
    async with client(server, "alice") as alice:
        assert alice.boundjid.bare == f"alice@{DOMAIN}"
        assert alice.transport is not None
        assert alice.transport.get_extra_info("cipher")


async def test_a_client_that_refuses_tls_gets_nowhere(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.config.ports.c2s)
    try:
        writer.write(
            f"<stream:stream xmlns='jabber:client' to='{DOMAIN}' version='1.0'"
            " xmlns:stream='http://etherx.jabber.org/streams'>".encode()
        )
        async with asyncio.timeout(SOON):
            features = await reader.readuntil(b"</stream:features>")
        assert b"<required" in features
        assert b"<mechanism>" not in features
    finally:
        writer.transport.abort()


async def test_a_wrong_password_is_refused(server: Server) -> None:
    with pytest.raises(Refused, match="failed_all_auth"):
        async with client(server, "alice", "wrong"):
            pass


async def test_an_unknown_account_is_refused(server: Server) -> None:
    with pytest.raises(Refused, match="failed_all_auth"):
        async with client(server, "nobody"):
            pass


async def test_a_client_that_trusts_another_authority_does_not_log_in(
    server: Server, tmp_path: Path
) -> None:
    other = ensure(tmp_path, DOMAIN).ca
    with pytest.raises(Refused, match="CERTIFICATE_VERIFY_FAILED"):
        async with client(server, "alice", ca=other):
            pass


async def test_nobody_registers_an_account_in_band(server: Server) -> None:
    async with client(server, "alice") as alice:
        info = await alice.plugin["xep_0030"].get_info(jid=DOMAIN, timeout=SOON)
        assert "jabber:iq:register" not in info["disco_info"]["features"]


async def test_two_clients_exchange_an_iq(server: Server) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        await alice.plugin["xep_0199"].send_ping(bob.boundjid, timeout=SOON)


async def test_a_crash_is_told_to_whom_presence_was_directed(server: Server) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        came = inbox(bob, "presence_available", "presence_unavailable")
        bob.send_presence()
        alice.send_presence()
        alice.send_presence(pto=bob.boundjid)
        async with asyncio.timeout(SOON):
            await from_peer(came, "available", alice.boundjid)
        assert alice.transport is not None
        alice.transport.abort()
        async with asyncio.timeout(1.0):
            await from_peer(came, "unavailable", alice.boundjid)


async def test_a_large_stanza_arrives_whole(server: Server) -> None:
    size = server.config.max_stanza * 3 // 4
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        came = inbox(bob, "message")
        alice.send_message(mto=bob.boundjid, mbody="x" * size)
        async with asyncio.timeout(SOON):
            assert len((await came.get())["body"]) == size


async def test_a_stanza_above_the_limit_ends_the_stream_of_its_sender(server: Server) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        gone = end_of(alice)
        alice.send_message(mto=bob.boundjid, mbody="x" * (server.config.max_stanza + 4096))
        async with asyncio.timeout(SOON):
            await gone.wait()
        async with client(server, "alice") as again:
            await again.plugin["xep_0199"].send_ping(bob.boundjid, timeout=SOON)


async def test_a_stanza_that_is_nested_deeply_harms_nobody_but_its_sender(server: Server) -> None:
    levels = server.config.max_stanza // 16
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        alice.send_raw("<message to='ghost@nowhere.test'>" + "<a>" * levels + "</a>" * levels)
        alice.send_raw("</message><presence/>")
        async with client(server, "alice") as again:
            await again.plugin["xep_0199"].send_ping(bob.boundjid, timeout=SOON)


async def test_a_component_joins_with_its_secret(server: Server) -> None:
    async with component(server, SECRET) as dispatcher, client(server, "alice") as alice:
        came = inbox(dispatcher, "message")
        alice.send_message(mto=f"{COMPONENT}/d", mbody="hello")
        async with asyncio.timeout(SOON):
            assert (await came.get())["body"] == "hello"


async def test_a_component_with_a_wrong_secret_is_refused(server: Server) -> None:
    with pytest.raises(Refused):
        async with component(server, "wrong"):
            pass


@pytest.mark.parametrize("by", ["client", "component"])
async def test_a_blob_comes_back_as_it_was_sent(server: Server, by: str) -> None:
    blob = os.urandom(1024 * 1024)
    context = ssl.create_default_context(cafile=str(server.ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    who = client(server, "alice") if by == "client" else component(server, SECRET)
    async with who as stream, aiohttp.ClientSession() as http:
        stream.register_plugin("xep_0363")
        reply = await stream.plugin["xep_0363"].request_slot(
            JID(server.config.upload_domain),
            "blob.bin",
            len(blob),
            "application/octet-stream",
            ifrom=None if by == "client" else JID(f"{COMPONENT}/d"),
            timeout=SOON,
        )
        slot = reply["http_upload_slot"]
        headers = {one["name"]: one["value"] for one in slot["put"]["headers"]}
        headers["Content-Type"] = "application/octet-stream"
        assert slot["put"]["url"].startswith(
            f"https://{server.config.upload_host}:{server.config.ports.upload}/"
        )
        async with http.put(slot["put"]["url"], data=blob, headers=headers, ssl=context) as answer:
            assert answer.status in (200, 201)
        async with http.get(slot["get"]["url"], ssl=context) as answer:
            assert answer.status == 200
            back = await answer.read()
    assert hashlib.sha256(back).digest() == hashlib.sha256(blob).digest()


async def test_a_removed_account_is_cut_off_and_stays_out(server: Server) -> None:
    await server.add_account("carol", PASSWORD)
    async with client(server, "carol") as carol:
        gone = end_of(carol)
        await server.remove_account("carol")
        async with asyncio.timeout(SOON):
            await gone.wait()
    with pytest.raises(Refused, match="failed_all_auth"):
        async with client(server, "carol"):
            pass
    await server.remove_account("carol")


async def test_a_new_password_replaces_the_old_one(server: Server) -> None:
    await server.add_account("dave", "first password")
    await server.add_account("dave", "second password")
    async with client(server, "dave", "second password"):
        pass
    with pytest.raises(Refused, match="failed_all_auth"):
        async with client(server, "dave", "first password"):
            pass


async def test_giving_an_account_its_password_again_disturbs_nobody(server: Server) -> None:
    async with client(server, "alice") as alice, client(server, "bob") as bob:
        await server.add_account("alice", PASSWORD)
        await alice.plugin["xep_0199"].send_ping(bob.boundjid, timeout=SOON)


async def test_a_name_that_can_be_no_account_is_refused(server: Server) -> None:
    for name in ("", "a b", "a@b", "a/b", 'a"b', "a<b"):
        with pytest.raises(ServerError):
            await server.add_account(name, PASSWORD)


async def test_accounts_are_managed_from_elsewhere(server: Server, kind: str) -> None:
    await add_account(kind, server.config, "erin", PASSWORD)
    async with client(server, "erin"):
        pass
    await remove_account(kind, server.config, "erin")
    with pytest.raises(Refused, match="failed_all_auth"):
        async with client(server, "erin"):
            pass


async def test_many_accounts_are_made_at_once(server: Server, kind: str) -> None:
    crowd = {f"crowd{number}": f"{PASSWORD}{number}" for number in range(12)}
    await add_accounts(kind, server.config, crowd)
    for name, password in list(crowd.items())[::5]:
        async with client(server, name, password):
            pass


async def test_of_many_accounts_only_the_new_ones_cost_anything(
    server: Server, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = {name: PASSWORD for name in ("new", "known", "changed", "removed", "by-hand")}
    await add_accounts(kind, server.config, {**crowd, "new": "another one"})
    await add_account(kind, server.config, "changed", "in between")
    await remove_account(kind, server.config, "removed")
    launcher: Any = type(server)
    await launcher._drop(server.config, "by-hand")
    told: list[str] = []
    tell = launcher._set

    async def note(config: ServerConfig, name: str, password: str) -> None:
        told.append(name)
        await tell(config, name, password)

    monkeypatch.setattr(launcher, "_set", note)
    await add_accounts(kind, server.config, crowd)
    assert sorted(told) == ["by-hand", "changed", "new", "removed"]
    for name in crowd:
        async with client(server, name):
            pass


async def test_the_first_account_of_many_that_is_refused_ends_it(server: Server, kind: str) -> None:
    with pytest.raises(ServerError):
        await add_accounts(kind, server.config, {"a b": PASSWORD, "fine": PASSWORD})


async def test_only_the_owner_enters_the_folder(server: Server) -> None:
    assert server.config.folder.stat().st_mode & 0o077 == 0


# From here on: servers of their own.


async def test_accounts_and_authority_outlive_a_restart(kind: str, tmp_path: Path) -> None:
    config = config_in(tmp_path / "home")
    first = await launch(kind, config)
    try:
        await first.add_account("alice", PASSWORD)
        ca = first.ca.read_bytes()
    finally:
        await first.stop()
    # Other ports: they are not part of what an account is.
    second = await launch(kind, replace(config, ports=free_ports()))
    try:
        assert second.ca.read_bytes() == ca
        async with client(second, "alice"):
            pass
    finally:
        await second.stop()


async def test_a_server_without_components_starts(kind: str, tmp_path: Path) -> None:
    server = await launch(kind, replace(config_in(tmp_path), components={}))
    try:
        with pytest.raises(Refused):
            async with component(server, ""):
                pass
    finally:
        await server.stop()


@pytest.mark.parametrize("which", ["c2s", "component", "upload"])
async def test_a_taken_port_is_named(kind: str, tmp_path: Path, which: str) -> None:
    config = config_in(tmp_path)
    port: int = getattr(config.ports, which)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(PortTaken, match=str(port)):
        await launch(kind, config)
    assert not listening(config)


async def test_a_stopped_server_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    server = await launch(kind, config)
    family = [psutil.Process(server.pid), *below(server.pid)]
    await server.stop()
    await server.stop()
    assert not any(map(alive, family))
    assert not listening(config)


async def test_two_servers_on_one_folder_do_not_fight(kind: str, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    server = await launch(kind, config)
    try:
        with pytest.raises(ServerError):
            await launch(kind, config)
        await server.probe()
    finally:
        await server.stop()


async def test_a_killed_server_is_reported_and_can_be_started_again(
    kind: str, tmp_path: Path
) -> None:
    config = config_in(tmp_path)
    server = await launch(kind, config)
    os.kill(server.pid, signal.SIGKILL)
    async with asyncio.timeout(SOON):
        assert await server.wait() == -signal.SIGKILL
    with pytest.raises(ServerError):
        await server.probe()
    await server.stop()
    again = await launch(kind, config)
    await again.stop()


PARENT = """
import asyncio, sys
from pathlib import Path
from spinal.bus.server import Ports, ServerConfig, launch

async def main():
    c2s, component, upload = map(int, sys.argv[3:])
    ports = Ports(c2s=c2s, component=component, upload=upload)
    components = {"disp.bus.test": "secret"}
    server = await launch(
        sys.argv[1], ServerConfig(Path(sys.argv[2]), "bus.test", ports, components=components)
    )
    print("pid", server.pid, flush=True)
    await server.wait()

asyncio.run(main())
"""


async def test_a_server_does_not_outlive_a_killed_parent(kind: str, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    ports = (config.ports.c2s, config.ports.component, config.ports.upload)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, kind, str(tmp_path), *map(str, ports)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    pid = 0
    async with asyncio.timeout(60):
        async for line in parent.stdout:
            if line.startswith(b"pid "):
                pid = int(line.split()[1])
                break
    family = [psutil.Process(pid), *below(pid)]
    parent.kill()
    await parent.wait()
    await eventually(lambda: not any(map(alive, family)), SOON)
    assert not listening(config)
    again = await launch(kind, config)
    await again.stop()


def listening(config: ServerConfig) -> list[int]:
    """Those of its ports on which somebody answers."""
    return [port for port in ports_of(config) if answers(port)]


def ports_of(config: ServerConfig) -> Iterator[int]:
    yield from (config.ports.c2s, config.ports.component, config.ports.upload)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
