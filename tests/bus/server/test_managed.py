from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from spinal.bus.server import KINDS, available, ejabberd, launch, prosody
from spinal.bus.server.contract import ServerConfig
from spinal.bus.server.errors import ServerError, ServerMissing
from spinal.bus.server.managed import checked, short_path
from spinal.bus.server.ports import free_ports
from spinal.bus.server.prosody import ProsodyServer

MANAGED = ["prosody", "ejabberd"]


def always(value: object) -> Callable[..., object]:
    def give(*_: object) -> object:
        return value

    return give


@pytest.fixture(params=MANAGED)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def installed(kind: str) -> str:
    reason = available(kind)
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    return kind


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return ServerConfig(tmp_path, "bus.test", free_ports(), components={"d.bus.test": "secret"})


async def test_a_missing_program_is_reported_with_what_to_do(
    kind: str, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(config.folder))
    with pytest.raises(ServerMissing, match=f"make test-deps.*apt-get install {kind}") as caught:
        await launch(kind, config)
    assert available(kind) == str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(config.folder.iterdir()) == []


async def test_an_unknown_kind_is_answered_with_the_known_ones(config: ServerConfig) -> None:
    with pytest.raises(ServerError, match=", ".join(KINDS)):
        await launch("openfire", config)


async def test_a_server_that_ends_at_start_is_quoted(
    installed: str, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"hosts": 5}
    monkeypatch.setattr(ejabberd, "configuration", always(broken))
    monkeypatch.setattr(prosody, "configuration", always('error("Failed: hosts")'))
    with pytest.raises(ServerError, match=rf"{installed} ended at start \(status \d+\): .*hosts"):
        await launch(installed, config)
    assert not (config.folder / f"{installed}.json").exists()


async def test_a_server_that_never_answers_is_ended(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ProsodyServer, "find", always(Path("/bin/sleep")))
    nothing: dict[str, str] = {}
    monkeypatch.setattr(ProsodyServer, "_command", always((["sleep", "60"], nothing)))
    monkeypatch.setattr(ProsodyServer, "start_within", 0.3)
    before = psutil.Process().children()
    with pytest.raises(ServerError, match=r"prosody was not ready within 0\.3 s"):
        await ProsodyServer.start(config)
    assert psutil.Process().children() == before


async def test_a_cancelled_start_leaves_nothing(installed: str, config: ServerConfig) -> None:
    before = psutil.Process().children()
    starting = asyncio.create_task(launch(installed, config))
    record = config.folder / f"{installed}.json"
    async with asyncio.timeout(10):
        while not record.exists():
            await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert psutil.Process().children() == before
    assert not record.exists()


async def test_orders_to_a_server_that_does_not_run_say_so(
    installed: str, config: ServerConfig
) -> None:
    running = await launch(installed, config)
    await running.stop()
    with pytest.raises(ServerError, match="start it first"):
        await running.add_account("alice", "password")


async def test_it_listens_where_it_was_told_and_nowhere_else(
    installed: str, config: ServerConfig
) -> None:
    running = await launch(installed, config)
    try:
        family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(True)]
        found = {
            (one.laddr.ip, one.laddr.port)
            for process in family
            for one in process.net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        }
    finally:
        await running.stop()
    ports = config.ports
    assert found == {("127.0.0.1", one) for one in (ports.c2s, ports.component, ports.upload)}


async def test_a_home_deep_in_the_file_system_works(installed: str, config: ServerConfig) -> None:
    deep = config.folder / ("x" * 120) / ("y" * 60)
    running = await launch(
        installed, ServerConfig(deep, config.domain, config.ports, components=config.components)
    )
    try:
        await running.add_account("alice", "password")
    finally:
        await running.stop()


async def test_everything_is_written_below_the_folder(
    installed: str, config: ServerConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    running = await launch(installed, config)
    await running.stop()
    assert list(elsewhere.iterdir()) == []


async def test_no_password_is_kept(installed: str, config: ServerConfig) -> None:
    running = await launch(installed, config)
    try:
        await running.add_account("alice", "a very long and telling password")
    finally:
        await running.stop()
    files = [path for path in config.folder.rglob("*") if path.is_file()]
    assert files
    assert not any(b"telling password" in path.read_bytes() for path in files)


@pytest.mark.parametrize("name", ["", " ", "a b", "a@b", "a/b", "a\tb", "a:b", "a&b", "x" * 1024])
def test_what_can_be_no_account_is_refused(name: str) -> None:
    with pytest.raises(ServerError, match="letters"):
        checked(name)


def test_what_can_be_an_account_is_taken() -> None:
    assert checked("worker-1.büro_2") == "worker-1.büro_2"


def test_a_socket_with_a_long_path_can_be_connected_to(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 150)
    folder.mkdir()
    with short_path(folder / "s") as path, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(path)
    assert (folder / "s").is_socket()
