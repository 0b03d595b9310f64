from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from spinal.bus.client import connect
from spinal.bus.errors import BusError, HomeError, OperationFailed
from spinal.bus.home import Credentials
from spinal.bus.server import ServerConfig, free_ports
from spinal.bus.server.embedded.server import EmbeddedServer
from spinal.bus.session import Request, Session
from spinal.bus.sync import SyncBlob, SyncClient
from spinal.protocols import Json

DOMAIN = "sync.test"
PASSWORD = "a password"
THUMBS = f"thumbs@{DOMAIN}/agent"


class Site:
    """An embedded server with an agent, on a loop in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.config = ServerConfig(folder, DOMAIN, free_ports())
        self.senders: set[str] = set()
        self.began = threading.Event()
        self.cancelled = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = EmbeddedServer(self.config)
        self._agent: Session | None = None
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)

    def credentials(self, address: str) -> Credentials:
        ports = self.config.ports
        upload = (f"127.0.0.1:{ports.upload}",)
        return Credentials(
            address, PASSWORD, self.server.ca, "127.0.0.1", ports.c2s, (THUMBS,), upload
        )

    async def _start(self) -> None:
        await self.server.start()
        for name in ("ann", "thumbs"):
            await self.server.add_account(name, PASSWORD)
        self._agent = Session(connect(self.credentials(THUMBS)), self._handle, role="agent")
        await self._agent.__aenter__()

    async def _handle(self, request: Request) -> Json:
        self.senders.add(request.sender)
        match request.op.op:
            case "/count":
                for number in range(request.op.args["to"]):
                    await request.data(number)
            case "/forever":
                self.began.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            case "/fail":
                raise ValueError("no")
            case _:
                pass
        return request.op.args.get("value")

    async def _stop(self) -> None:
        assert self._agent is not None
        await self._agent.close()
        await self.server.stop()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    here = Site(tmp_path_factory.mktemp("sync"))
    yield here
    here.stop()


@pytest.fixture
def client(site: Site) -> Iterator[SyncClient]:
    with SyncClient(credentials=site.credentials(f"ann@{DOMAIN}")) as client:
        yield client


def test_a_call_from_an_ordinary_function(client: SyncClient) -> None:
    assert client.call("/echo", value={"a": [1]}) == {"a": [1]}
    assert client.options(timeout="5s").call("/echo", value=2) == 2
    with pytest.raises(OperationFailed, match="no"):
        client.call("/fail")


def _echo(client: SyncClient, value: int) -> object:
    return client.call("/echo", value=value)


def test_many_threads_share_one_login(site: Site) -> None:
    site.senders.clear()
    client = SyncClient(credentials=site.credentials(f"ann@{DOMAIN}"))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(partial(_echo, client), range(200)))
    client.close()
    assert found == list(range(200))
    assert len(site.senders) == 1


def test_streams_and_maps_are_ordinary_iterators(client: SyncClient) -> None:
    assert list(client.stream("/count", to=50)) == list(range(50))
    for number in client.stream("/count", to=10_000):
        if number == 3:
            break
    inputs = ({"value": n} for n in range(30))
    found = [m.value for m in client.map("/echo", inputs, ordered=True)]
    assert found == list(range(30))


def test_blobs_go_and_come(client: SyncClient, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(os.urandom(100_000))
    (back,) = client.call("/echo", value=[photo])
    assert isinstance(back, SyncBlob)
    assert back.size == 100_000 and back.media_type == "image/jpeg"
    assert back.read() == photo.read_bytes()
    assert back.save(tmp_path / "copy").read_bytes() == photo.read_bytes()
    again = client.call("/echo", value=back)
    assert again.sha256 == back.sha256


def test_after_closing_the_next_call_logs_in_again(site: Site) -> None:
    client = SyncClient(credentials=site.credentials(f"ann@{DOMAIN}"))
    assert client.call("/echo", value=1) == 1
    client.close()
    client.close()
    assert client.call("/echo", value=2) == 2
    client.close()
    with pytest.raises(BusError, match="closed"):
        client.run(asyncio.sleep(0))


def test_closing_ends_the_calls_that_other_threads_wait_for(site: Site) -> None:
    client = SyncClient(credentials=site.credentials(f"ann@{DOMAIN}"))
    client.call("/echo")
    site.began.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.call, "/forever")
        assert site.began.wait(10)
        client.close()
        with pytest.raises(OperationFailed, match="closed"):
            waiting.result(10)


def test_a_callback_that_calls_is_told_that_it_cannot(client: SyncClient) -> None:
    def news(_: object) -> None:
        client.call("/echo")

    with pytest.raises(BusError, match="own thread"):
        client.options(news=news).call("/count", to=3)


def test_where_the_login_fails_nothing_is_left(site: Site, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(HomeError):
        SyncClient(tmp_path / "none").call("/echo")
    assert threading.active_count() == before


def test_ctrl_c_while_waiting_cancels_the_call(client: SyncClient, site: Site) -> None:
    site.began.clear()
    site.cancelled.clear()

    def interrupt() -> None:
        site.began.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        client.call("/forever")
    thread.join()
    assert site.cancelled.wait(10)
    assert client.call("/echo", value=1) == 1


FORKING = """
import os, sys
from functools import partial
from pathlib import Path
from spinal.bus.home import Credentials
from spinal.bus.sync import SyncClient

ca, port = Path(sys.argv[1]), int(sys.argv[2])
client = SyncClient(credentials=Credentials(
    "ann@sync.test", "a password", ca, "127.0.0.1", port, ("thumbs@sync.test/agent",), ()))
view = client.options(timeout="10s")
assert client.call("/echo", value="parent") == "parent"
parent = client._ready().address
children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        assert view.call("/echo", value=number) == number
        assert client._ready().address != parent
        client.close()
        os._exit(0)
    children.append(child)
assert client.call("/echo", value="still") == "still"
for child in children:
    _, status = os.waitpid(child, 0)
    assert status == 0, status
assert client._ready().address == parent
assert client.call("/echo", value="and on") == "and on"
client.close()
print("well")
"""


def test_a_child_logs_in_anew_and_leaves_its_parent_alone(site: Site) -> None:
    argv = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", FORKING]
    done = subprocess.run(
        [*argv, str(site.server.ca), str(site.config.ports.c2s)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
    assert "Error" not in done.stderr and "Warning" not in done.stderr, done.stderr
