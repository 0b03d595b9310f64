"""The deployment agent as it is run: a platform of real processes, an agent, and its services."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from aiohttp import ClientError, ClientSession

from spinal.agents.deployment.spec import load
from spinal.bus.errors import CallError
from spinal.testing import Platform, Process, eventually, platform

from ..agents.deployment.conftest import Shelf, running_under, service_archive, serving, some_ports

FILE = """\
service: shop
release: {{url: "{url}", sha256: "{sha256}"}}
start: [bin/shop, "{{port}}"]
port: auto
env: {{MODE: "{mode}"}}
health: {{http: "http://127.0.0.1:{{port}}/", every: 200ms, within: 10s}}
restart: {{backoff: 100ms, most: 1s}}
"""


class Site:
    """A platform with one machine."""

    def __init__(self, here: Platform, shelf: Shelf, folder: Path) -> None:
        self.here = here
        self.shelf = shelf
        self.root = folder / "root"
        self._folder = folder
        ports = some_ports()
        self._config = folder / "deployment.yaml"
        self._config.write_text(
            json.dumps({"root": "root", "ports": {"first": ports[0], "last": ports[-1]}})
        )

    async def start(self) -> Process:
        """Run the agent; another life of it has the same name."""
        words = ("agent", "run", "deployment", "--config", str(self._config), "--json")
        process = await self.here.spinal(*words)
        await process.line(lambda line: '"ready"' in line)
        return process

    def spec(self, word: str, mode: str = "") -> dict[str, Any]:
        """Read the service file of a service that answers with a word."""
        release = self.shelf.put(f"shop-{word}.tar.gz", service_archive(word))
        file = self._folder / "shop.yaml"
        file.write_text(FILE.format(**release, mode=mode))
        return dict(load(file).arguments)

    async def call(self, op: str, **arguments: Any) -> Any:
        return await self.here.client.call(f"/deployment/{op}", **arguments)

    async def word(self) -> str:
        """Give what the service says; nothing while it does not."""
        try:
            found = await self.call("show", service="shop")
            async with (
                ClientSession() as session,
                session.get(f"http://127.0.0.1:{found['port']}/") as answer,
            ):
                return (await answer.text()).split()[0]
        except (ClientError, CallError):
            return ""

    async def says(self, word: str) -> None:
        """Wait until it says so."""

        async def holds() -> bool:
            return await self.word() == word

        await eventually(holds, 30, f"the service says {word}")


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving() as shelf, platform() as here:
        yield Site(here, shelf, tmp_path)
    assert running_under(tmp_path) == []


async def test_a_service_lives_through_upgrades_failures_and_a_rollback(site: Site) -> None:
    await site.start()
    first = await site.call("deploy", **site.spec("one"), generation=1)
    assert await site.word() == "one"
    await site.call("deploy", **site.spec("two"), generation=2)
    assert await site.word() == "two"
    with pytest.raises(CallError, match="cannot find the config"):
        await site.call("deploy", **site.spec("three", "dies"), generation=3)
    assert await site.word() == "two"
    await site.call("rollback", service="shop")
    assert await site.word() == "one"
    shown = await site.call("show", service="shop")
    assert (shown["release"], shown["generation"]) == (first["release"], 2)
    psutil.Process(shown["pid"]).kill()
    await site.says("one")
    lines: list[str] = []
    async for part in site.here.client.stream("/deployment/log", service="shop", follow=True):
        lines += part
        if any(line.startswith("starts one") for line in lines):
            break
    await site.call("undeploy", service="shop", purge=True)
    assert running_under(site.root) == []
    assert (await site.call("list"))["items"] == []


async def test_a_killed_agent_takes_its_services_with_it_and_its_next_life_starts_them(
    site: Site,
) -> None:
    agent = await site.start()
    spec = site.spec("one", "stubborn")
    before = await site.call("deploy", **spec, generation=5)
    await eventually(lambda: len(running_under(site.root)) == 2)
    agent.kill(signal.SIGKILL)
    await agent.wait()
    await eventually(lambda: running_under(site.root) == [], 10, "the guard ends the service")
    await site.start()
    await site.says("one")
    after = await site.call("show", service="shop")
    for key in ("release", "generation", "port"):
        assert before[key] == after[key]
    assert not (await site.call("deploy", **spec, generation=5))["changed"]


async def test_an_agent_that_is_killed_while_it_deploys_has_the_old_release_in_its_next_life(
    site: Site,
) -> None:
    agent = await site.start()
    before = await site.call("deploy", **site.spec("one"))
    spec = site.spec("two", "sick")
    doing = asyncio.ensure_future(site.call("deploy", **spec))
    await eventually(lambda: len(running_under(site.root)) == 2)
    doing.cancel()
    await asyncio.wait([doing])
    agent.kill(signal.SIGKILL)
    await agent.wait()
    await eventually(lambda: running_under(site.root) == [])
    await site.start()
    await site.says("one")
    shown = await site.call("show", service="shop")
    assert [one["release"] for one in shown["releases"]] == [before["release"]]


async def test_an_agent_that_ends_in_good_order_ends_its_services(site: Site) -> None:
    agent = await site.start()
    await site.call("deploy", **site.spec("one"))
    agent.kill(signal.SIGTERM)
    assert await agent.wait() == 0
    assert running_under(site.root) == []
    assert json.loads((site.root / "services/shop/state.json").read_text())["wanted"]
