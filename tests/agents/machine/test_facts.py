from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from spinal.agents.machine.cloud import MAX_ANSWER, SOURCES, Cloud, candidates, hardware, member
from spinal.agents.machine.config import FactsConfig
from spinal.agents.machine.packages import Package, here, parse

from .conftest import Start, World, needs


@pytest.fixture
async def world(start: Start) -> AsyncGenerator[World]:
    async with start("{}") as world:
        yield world


async def test_the_machine_says_what_it_is(world: World) -> None:
    facts = await world.ask("/facts")
    assert facts["memory"]["total"] == psutil.virtual_memory().total
    assert facts["cpu"]["count"] == psutil.cpu_count() and len(facts["cpu"]["load"]) == 3
    assert facts["system"]["host"] == socket.gethostname()
    assert facts["uptime"] > 0 and facts["started"].endswith("Z")
    (loopback,) = [one for one in facts["networks"] if one["name"] == "lo"]
    assert "127.0.0.1" in loopback["addresses"]
    for disk in facts["disks"]:
        assert disk["total"] is None or disk["total"] >= disk["free"]


# -- cloud

EC2 = {
    "instanceId": "i-0abc",
    "instanceType": "t3.small",
    "region": "eu-central-1",
    "availabilityZone": "eu-central-1a",
    "imageId": "ami-1",
    "privateIp": "10.0.0.5",
    "accountId": "123456789012",
}
OPENSTACK = {
    "uuid": "83679162",
    "name": "web7",
    "availability_zone": "nova",
    "hostname": "web7.novalocal",
    "admin_pass": "SECRET",
    "public_keys": {"me": "ssh-rsa SECRET"},
}
DIGITALOCEAN = {
    "droplet_id": 2756294,
    "hostname": "sample-droplet",
    "region": "nyc3",
    "user_data": "SECRET",
    "interfaces": {"public": [{"ipv4": {"ip_address": "203.0.113.7"}}]},
}


@dataclass
class Metadata:
    """A small HTTP server that answers as the services of clouds do."""

    answers: dict[str, object] = field(default_factory=dict[str, object])
    asked: list[str] = field(default_factory=list[str])
    #: Asked for EC2's token, it gives one and wants to see it.
    token: str = ""
    hangs: bool = False
    address: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        if self.hangs:
            await asyncio.Event().wait()
        if request.method == "PUT" and self.token:
            assert request.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "60"
            return web.Response(text=self.token)
        if request.path not in self.answers:
            return web.Response(status=404)
        wants = self.token and "dynamic" in request.path
        if wants and request.headers.get("X-aws-ec2-metadata-token") != self.token:
            return web.Response(status=401)
        answer = self.answers[request.path]
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(text=answer if isinstance(answer, str) else json.dumps(answer))


@pytest.fixture
async def metadata() -> AsyncGenerator[Metadata]:
    server = Metadata()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.address = f"http://{host}:{port}"
    yield server
    await runner.cleanup()


async def facts(server: Metadata, **more: object) -> dict[str, str]:
    options = {"cloud": "on", "metadata": server.address, **more}
    return await Cloud(FactsConfig(**options)).facts()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class TestCloud:
    async def test_ec2_is_asked_with_a_token(self, metadata: Metadata) -> None:
        metadata.token = "token-1"
        metadata.answers["/latest/dynamic/instance-identity/document"] = EC2
        assert await facts(metadata) == {
            "cloud": "ec2",
            "instance": "i-0abc",
            "type": "t3.small",
            "region": "eu-central-1",
            "zone": "eu-central-1a",
            "image": "ami-1",
            "address": "10.0.0.5",
        }
        assert metadata.asked.index("PUT /latest/api/token") >= 0

    async def test_what_speaks_ec2_without_tokens_is_understood(self, metadata: Metadata) -> None:
        metadata.answers["/latest/dynamic/instance-identity/document"] = EC2
        assert (await facts(metadata))["instance"] == "i-0abc"

    async def test_openstack_tells_no_secrets(self, metadata: Metadata) -> None:
        metadata.answers["/openstack/latest/meta_data.json"] = OPENSTACK
        found = await facts(metadata)
        assert found == {
            "cloud": "openstack",
            "instance": "83679162",
            "name": "web7",
            "zone": "nova",
            "host": "web7.novalocal",
        }

    async def test_digitalocean_tells_no_secrets(self, metadata: Metadata) -> None:
        metadata.answers["/metadata/v1.json"] = DIGITALOCEAN
        assert await facts(metadata) == {
            "cloud": "digitalocean",
            "instance": "2756294",
            "name": "sample-droplet",
            "region": "nyc3",
            "address": "203.0.113.7",
        }

    async def test_one_answer_is_enough_for_a_life(self, metadata: Metadata) -> None:
        metadata.answers["/openstack/latest/meta_data.json"] = OPENSTACK
        cloud = Cloud(FactsConfig("on", metadata.address))
        first = await cloud.facts()
        count = len(metadata.asked)
        assert await cloud.facts() == first and len(metadata.asked) == count

    async def test_one_that_hangs_takes_no_longer_than_is_allowed(self, metadata: Metadata) -> None:
        metadata.hangs = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert await facts(metadata, within=0.3) == {}
        assert loop.time() - began < 2 and metadata.asked

    async def test_nobody_there_is_no_cloud(self, metadata: Metadata) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
        assert await facts(metadata, metadata=closed) == {}

    @pytest.mark.parametrize(
        "answer",
        ["", "no JSON", "[]", "null", '"x"', "{}", "[" * 100_000, " " * (MAX_ANSWER + 1) + "{}"],
        ids=lambda answer: repr(answer[:8]),
    )
    async def test_what_is_no_answer_is_none(self, metadata: Metadata, answer: str) -> None:
        for source in SOURCES:
            metadata.answers[source.path.partition("?")[0]] = answer
        assert await facts(metadata) == {}

    async def test_nobody_is_sent_elsewhere(self, metadata: Metadata) -> None:
        metadata.answers["/elsewhere"] = OPENSTACK
        for source in SOURCES:
            path = source.path.partition("?")[0]
            metadata.answers[path] = web.Response(status=302, headers={"Location": "/elsewhere"})
        assert await facts(metadata) == {} and "GET /elsewhere" not in metadata.asked

    async def test_a_proxy_of_the_environment_is_not_asked(
        self, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        metadata.answers["/openstack/latest/meta_data.json"] = OPENSTACK
        assert (await facts(metadata))["cloud"] == "openstack"

    async def test_switched_off_nobody_is_asked(self, metadata: Metadata) -> None:
        assert await facts(metadata, cloud="off") == {} and metadata.asked == []

    async def test_on_the_bus_it_is_among_the_facts(self, start: Start, metadata: Metadata) -> None:
        metadata.answers["/openstack/latest/meta_data.json"] = OPENSTACK
        async with start(f"facts: {{cloud: on, metadata: '{metadata.address}'}}") as world:
            assert (await world.ask("/facts"))["cloud"]["name"] == "web7"

    @pytest.mark.parametrize(
        ("words", "names"),
        [
            ("", []),
            ("qemu standard pc", []),
            ("amazon ec2 t3.small", ["ec2"]),
            ("openstack foundation openstack nova", ["openstack"]),
            ("digitalocean droplet", ["digitalocean"]),
            ("google google compute engine", ["google"]),
            ("hetzner vserver", [one.name for one in SOURCES]),
        ],
    )
    def test_the_hardware_says_who_is_asked(self, words: str, names: list[str]) -> None:
        found = candidates(FactsConfig("auto"), words)
        assert [one.name for one in found] == names
        assert candidates(FactsConfig("off"), words) == ()
        assert candidates(FactsConfig("on"), words)

    def test_the_hardware_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
        (tmp_path / "product_name").write_bytes(b"t3\xff\n")
        assert hardware(tmp_path) == "amazon ec2 t3�"
        assert hardware(tmp_path / "none") == ""

    @pytest.mark.parametrize(
        ("path", "found"),
        [("a.b.1.c", "x"), ("a.b.9.c", ""), ("a.b.-1", ""), ("n", "5"), ("a", ""), ("z.z", "")],
    )
    def test_a_member_is_found_or_not(self, path: str, found: str) -> None:
        assert member({"a": {"b": [0, {"c": "x"}]}, "n": 5}, path) == found


# -- packages


@needs("dpkg-query")
class TestDebian:
    async def test_packages_are_listed(self, world: World) -> None:
        found = await world.ask("/packages", name="dpkg")
        (dpkg,) = found["packages"]
        assert found["by"] == "dpkg" and dpkg["version"] and found["total"] > 100
        one = await world.ask("/packages", name="dpkg", version=dpkg["version"][:3] + "*")
        assert one["matching"] == 1
        assert (await world.ask("/packages", name="dpkg", version="0*"))["matching"] == 0

    async def test_the_list_is_cut(self, world: World) -> None:
        found = await world.ask("/packages", limit=500)
        assert 50 < len(found["packages"]) <= 500 < found["matching"] == found["total"]


async def test_those_of_this_python_are_listed(world: World) -> None:
    found = await world.ask("/packages", by="python", name="psutil")
    assert [one["version"] for one in found["packages"]] == [psutil.__version__]


async def test_a_list_that_is_not_here_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert here() == "python"
    reason, said = await world.problem("/packages", by="rpm")
    assert reason == "refused" and said == "there is no rpm on this machine, but python"
    assert (await world.problem("/packages", by="brew"))[0] == "bad-arguments"


#: Forms from the manuals: dpkg-query(1), rpm(8) and apk(8); the packages are made up.
@pytest.mark.parametrize(
    ("by", "text", "found"),
    [
        (
            "dpkg",
            "a\t1:2-3\tamd64\tinstalled\nb\t1\tall\tconfig-files\nc\t\tall\tnot-installed\n",
            [Package("a", "1:2-3", "amd64")],
        ),
        ("rpm", "bash\t5.2.26-3.fc40\tx86_64\n", [Package("bash", "5.2.26-3.fc40", "x86_64")]),
        ("apk", "alpine-baselayout-3.4.3-r2\n", [Package("alpine-baselayout", "3.4.3-r2")]),
        ("apk", "WARNING: opening from cache\nx\n", []),
        ("dpkg", "\n\t\t\n no tabs\n", []),
    ],
)
def test_lists_are_read(by: str, text: str, found: list[Package]) -> None:
    assert [one for one in parse(by, text) if one.name] == found
