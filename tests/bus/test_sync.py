from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from spinal.bus.client import connect
from spinal.bus.errors import BusError, CallError, HomeError, NotEnded, OperationFailed
from spinal.bus.home import Credentials
from spinal.bus.server import ServerConfig, free_ports
from spinal.bus.server.embedded.server import EmbeddedServer
from spinal.bus.session import Request, Session
from spinal.bus.sync import SyncBlob, SyncClient, SyncJob
from spinal.protocols import Json, Problem

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
        self.jobs: dict[str, dict[str, Any]] = {}
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
        if request.op.op.startswith("/spinal/jobs/"):
            return await self._jobs(request, request.op.args)
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

    async def _jobs(self, request: Request, args: Mapping[str, Any]) -> Json:
        """What a client asks a dispatcher about jobs; they end when they are asked about."""
        match request.op.op.removeprefix("/spinal/jobs/"):
            case "submit":
                id = f"job{len(self.jobs)}"
                self.jobs[id] = {"id": id, "state": "queued", **args}
                if "position" in args and args["op"] != "/forever":
                    self.jobs[id] |= {"state": "done", "value": args["args"]["value"]}
                return self.jobs[id]
            case "map":
                made: list[dict[str, Any]] = [
                    {"id": f"{args['parent']}-{position}", "position": position, "args": given}
                    for position, given in args["inputs"]
                ]
                if args["op"] == "/forever":
                    self.began.set()
                    await asyncio.sleep(args["wait"])
                    return {"jobs": made}
                for one in made:
                    one |= {"state": "done", "value": one.pop("args")["value"]}
                await request.data(made)
                return {"jobs": []}
            case "submit-all":
                return {
                    "jobs": [{"name": job["name"], "id": job["after"][0]} for job in args["jobs"]]
                }
            case "list":
                return {"items": list(self.jobs.values())[::-1], "more": False}
            case "log":
                return {"items": [{"seq": 1, "text": "a line"}][args["after"] :], "more": False}
            case "children":
                return {
                    "items": [{"id": "child", "position": 0}][args["after"] + 1 :],
                    "more": False,
                }
            case "why":
                return {"id": args["id"], "lines": ["because"]}
            case "cancel":
                self.jobs[args["id"]] |= {"state": "killed", "problem": {"reason": "cancelled"}}
            case "retry":
                return {"id": "again", "state": "queued"}
            case what:
                job = self.jobs.get(args["id"])
                if job is None:
                    raise CallError.of(Problem("unknown-job", "there is no such job"))
                if job["op"] == "/forever":
                    self.began.set()
                    try:
                        await asyncio.sleep(args["seconds"] if job["state"] == "queued" else 0)
                    finally:
                        self.cancelled.set()
                elif what in ("wait", "watch"):
                    await request.data({"state": job["state"]})
                    self.jobs[args["id"]] |= {"state": "done", "value": job["args"]["value"]}
        return self.jobs[args["id"]]

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


# Jobs.


def test_a_job_from_an_ordinary_function(client: SyncClient, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"photo")
    job = client.options(label="web", retry=2).submit("/echo", value=[photo])
    assert isinstance(job, SyncJob) and job.id in repr(job)
    (back,) = job.result(timeout="10s")
    assert isinstance(back, SyncBlob) and back.read() == b"photo"
    row = client.job(job.id).info()
    assert isinstance(row["value"][0], SyncBlob) and row["labels"] == ["web"]
    assert next(client.jobs(label="web"))["id"] == job.id
    assert job.wait()["state"] == "done"
    assert job.why() == ["because"]
    assert [line.text for line in job.log()] == ["a line"]
    assert [row["id"] for row in job.children()] == ["child"]
    assert job.retry().id == "again"
    after = client.options(after=job)
    plan = {"next": after.planned("/echo", value=back), "last": after.planned("/echo")}
    assert {name: made.id for name, made in client.submit_all(plan).items()} == {
        "next": job.id,
        "last": job.id,
    }


def test_a_watch_is_an_ordinary_iterator(client: SyncClient) -> None:
    job = client.submit("/echo", value=5)
    updates = list(job.watch())
    assert [update.state for update in updates if update.row is not None] == ["queued", "done"]
    assert [update.log.text for update in updates if update.log is not None] == ["a line"]


def test_a_job_is_cancelled_and_says_so(client: SyncClient) -> None:
    job = client.submit("/forever")
    with pytest.raises(NotEnded, match="not ended within 100ms"):
        job.result(timeout="100ms")
    assert job.cancel() == "killed"
    with pytest.raises(OperationFailed) as caught:
        client.job(job.id).result()
    assert caught.value.reason == "cancelled"
    with pytest.raises(OperationFailed) as caught:
        client.job("nobodys").result()
    assert caught.value.reason == "unknown-job"


def test_a_durable_map_is_an_ordinary_iterator(client: SyncClient) -> None:
    durable = client.options(durable=True)
    begun = durable.start_map("/echo", ({"value": n} for n in range(20)), ordered=True)
    assert begun.id == begun.job.id and begun.id in repr(begun)
    found = list(begun)
    assert [mapped.value for mapped in found] == list(range(20))
    assert found[0].job is not None
    assert durable.call("/echo", value="kept") == "kept"
    assert len(list(durable.map("/echo", ({"value": n} for n in range(5))))) == 5


def test_a_handle_of_a_job_needs_no_connection(tmp_path: Path) -> None:
    client = SyncClient(tmp_path / "no home")
    job = client.job("job1")
    assert job.id == "job1"
    with pytest.raises(ValueError, match="no id"):
        client.job("no id")
    with pytest.raises(ValueError, match=r"^priority: "):
        client.options(priority=100)
    with pytest.raises(HomeError):
        job.result()


def test_a_job_outlives_the_login_that_submitted_it(site: Site) -> None:
    client = SyncClient(credentials=site.credentials(f"ann@{DOMAIN}"))
    job = client.submit("/echo", value=3)
    client.close()
    assert job.result() == 3
    client.close()


def test_ctrl_c_while_waiting_for_a_job_leaves_it(client: SyncClient, site: Site) -> None:
    job = client.submit("/forever")
    site.began.clear()
    site.cancelled.clear()

    def interrupt() -> None:
        site.began.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        job.result()
    thread.join()
    # The wait is over at the dispatcher as well, and the job goes on.
    assert site.cancelled.wait(10)
    assert job.wait(0)["state"] == "queued"


def test_ctrl_c_in_a_durable_map_cancels_it(client: SyncClient, site: Site) -> None:
    site.began.clear()

    def interrupt() -> None:
        site.began.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    begun = client.options(durable=True).start_map("/forever", ({"n": n} for n in range(9)))
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(begun)
    thread.join()
    assert site.jobs[begun.id]["state"] == "killed"


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
