"""The server in a child process."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import aiohttp
import psutil
import pytest
from tests.bus.server.embedded.conftest import PASSWORD, Raw, World
from tests.processes import gone

from spinal.bus.server.contract import Server, ServerConfig
from spinal.bus.server.embedded import EmbeddedServer
from spinal.bus.server.embedded.__main__ import dump, load
from spinal.bus.server.embedded.launch import EmbeddedProcess
from spinal.bus.server.errors import PortTaken, ServerError
from spinal.bus.server.ports import free_ports
from spinal.testing import eventually


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(tmp_path, "bus.test", free_ports(), components={"disp.bus.test": "s3cret"})


@pytest.fixture
async def process(config: ServerConfig) -> AsyncGenerator[EmbeddedProcess]:
    async with await EmbeddedProcess.start(config) as process:
        yield process


def test_a_configuration_is_written_and_read_back(config: ServerConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(dump(config))
    assert load(path) == config


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"folder": 1}'])
def test_a_wrong_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ServerError, match="no server configuration"):
        load(path)


async def test_it_is_a_server_with_a_life_of_its_own(process: EmbeddedProcess) -> None:
    server: Server = process
    assert server.pid != os.getpid()
    await server.probe()
    assert server.ca.exists()
    await server.stop()
    await server.stop()
    assert await server.wait() == 0
    with pytest.raises(ServerError):
        await server.probe()


async def test_accounts_come_and_go_while_it_runs(
    process: EmbeddedProcess, config: ServerConfig
) -> None:
    world = World(cast(EmbeddedServer, process))
    await process.add_account("a", PASSWORD)
    a = await world.login("a")
    assert await a.nothing_but() == ""
    await process.remove_account("a")
    assert "<not-authorized" in await a.rest()
    await process.remove_account("a")
    await a.close()


async def test_blobs_go_through_the_loop_that_it_runs_on(process: EmbeddedProcess) -> None:
    world = World(cast(EmbeddedServer, process))
    a = await world.login("a")
    data = os.urandom(3_000_000)
    text = await a.ask(
        "<iq type='get' id='1' to='upload.bus.test'><request xmlns='urn:xmpp:http:upload:0'"
        f" filename='x' size='{len(data)}'/></iq>",
        "</iq>",
    )
    put, get = re.findall("url='([^']*)'", text)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=world.tls)) as http:
        async with http.put(put, data=io.BytesIO(data)) as answer:
            assert answer.status == 201
        async with http.get(get) as answer:
            assert await answer.read() == data
    await a.close()


async def test_its_secrets_are_for_its_owner_only(
    config: ServerConfig, process: EmbeddedProcess
) -> None:
    for name in ("config.json", "server.log", "lock"):
        assert (config.folder / "embedded" / name).stat().st_mode & 0o077 == 0


async def test_a_second_one_in_the_same_folder_is_refused(
    process: EmbeddedProcess, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerError, match="already runs"):
        await EmbeddedProcess.start(config)
    await process.probe()


async def test_a_port_that_is_taken_is_named(config: ServerConfig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", config.ports.upload))
        taken.listen()
        with pytest.raises(PortTaken, match="uploads") as refused:
            await EmbeddedProcess.start(config)
    assert refused.value.port == config.ports.upload


async def test_a_cancelled_start_leaves_nothing(config: ServerConfig) -> None:
    # Servers that other tests share may run beside it.
    before = set(psutil.Process().children())
    starting = asyncio.create_task(EmbeddedProcess.start(config))
    async with asyncio.timeout(10):
        while not (children := set(psutil.Process().children()) - before):
            await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await eventually(lambda: all(map(gone, children)))


async def test_it_is_killed_if_it_hangs(
    process: EmbeddedProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedProcess, "stop_within", 0.1)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(ServerError, match="did not answer"):
        await process.probe(timeout=0.1)
    await process.stop()
    assert await process.wait() == -signal.SIGKILL


async def test_its_death_is_noticed(process: EmbeddedProcess) -> None:
    waiting = asyncio.create_task(process.wait())
    os.kill(process.pid, signal.SIGKILL)
    assert await waiting == -signal.SIGKILL
    await process.stop()


PARENT = """
import asyncio, sys
from pathlib import Path
from spinal.bus.server.embedded import EmbeddedServer
from spinal.bus.server.embedded.__main__ import load
from spinal.bus.server.embedded.launch import EmbeddedProcess

async def main():
    process = await EmbeddedProcess.start(load(Path(sys.argv[1])))
    Path(sys.argv[2]).write_text(str(process.pid))
    print("ALL SET", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_nothing_is_left_of_it_when_its_parent_is_killed(
    config: ServerConfig, tmp_path: Path
) -> None:
    path = tmp_path / "parent.json"
    path.write_bytes(dump(config))
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(path), str(tmp_path / "pid")),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(10):
            while b"ALL SET" not in await parent.stdout.readline():
                pass
        pid = int((tmp_path / "pid").read_text())
    finally:
        parent.kill()
        await parent.wait()
    await eventually(lambda: gone(pid))
    # And its folder and ports are free at once.
    async with await EmbeddedProcess.start(config) as again:
        await again.probe()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_program_says_when_it_is_ready_and_ends_in_good_order(
    config: ServerConfig, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(dump(config))
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spinal.bus.server.embedded", str(path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert program.stdout is not None
    event = json.loads(await asyncio.wait_for(program.stdout.readline(), 10))
    assert event["event"] == "ready"
    assert event["pid"] == program.pid
    program.send_signal(number)
    out, logs = await asyncio.wait_for(program.communicate(), 10)
    assert program.returncode == 0
    assert out == b""
    events = [json.loads(line)["event"] for line in logs.splitlines()]
    assert events == ["server_started", "server_stopped"]


async def test_many_who_flood_one_that_does_not_read_are_held_up_and_cost_bounded_memory(
    process: EmbeddedProcess,
) -> None:
    world = World(cast(EmbeddedServer, process))
    deaf, other, *senders = [
        await world.login(name) for name in ("deaf", "other", *(f"s{n}" for n in range(8)))
    ]
    server = psutil.Process(process.pid)
    before = server.memory_info().rss
    stanza = f"<message to='deaf@bus.test/r'><body>{'x' * 150}</body></message>".encode()

    async def flood(raw: Raw) -> None:
        while True:
            await raw.say(stanza * 1000)

    async def refused(raw: Raw) -> None:
        """Wait until the one that does not read was cut."""
        while b"service-unavailable" not in await raw.reader.read(65536):
            pass

    flooding = [asyncio.create_task(flood(raw)) for raw in senders]
    cut = asyncio.create_task(refused(senders[0]))
    async with asyncio.timeout(60):
        while not cut.done():
            assert server.memory_info().rss - before < 64e6
            # Whoever floods nobody is served meanwhile.
            assert await other.nothing_but() == ""
    for task in flooding:
        task.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError)
        for each in await asyncio.gather(*flooding, return_exceptions=True)
    )
    for raw in (deaf, *senders):
        raw.cut()
    await other.close()
