"""What a worker has: five vendors, a home, its dispatcher and provider agents as real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from libcloud.pricing import (
    get_size_price,  # pyright: ignore[reportUnknownVariableType] - of floats
)
from tests.clouds import TOKEN, Clouds
from tests.clouds.catalogue import VULTR_SIZES
from tests.clouds.digitalocean import HOURS, DigitalOcean
from tests.clouds.linode import HOUR, Linode

from spinal.bus import CallError, Client
from spinal.bus.errors import BusError
from spinal.bus.home import Home
from spinal.cli.supervisor import ChildProcess
from spinal.cli.up import Providers, parts
from spinal.protocols import SpinalError

from .script import TIMEOUT

#: Seconds from accepted to running at a vendor.
BOOT: Final = 0.3

#: What one USD costs.
RATE: Final = 0.92

#: The one type of OpenStack that has a price, and what mimic calls it.
FLAVOUR: Final = "1GB Standard Instance"

#: Regions of each account.
REGIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "ec2": ("eu-west-1",),
    "openstack": ("ORD",),
    "digitalocean": ("fra1", "nyc3"),
    "linode": ("eu-central", "us-east"),
    "vultr": ("fra", "ewr"),
}

#: The pace is that of tests: `settle` is longer than the oldest list that is injected (2.5 s), and
#: `order` than three answers of a vendor.
PROVIDERS: Final = """\
currency: EUR
rates: {{USD: {rate}}}
pace: {{order: 7s, look: 400ms, rest: 2s, settle: 4s, unseen: 3, away: 6s, pauses: 0.01}}
accounts:
  ec2: {{driver: ec2, endpoint: {ec2}, key: {token}, secret: {{env: SIM_TOKEN}}, regions: [eu-west-1], timeout: {timeout}s}}
  openstack:
    driver: openstack
    endpoint: {openstack}/identity
    identity: "2"
    service: cloudServersOpenStack
    user: spinal
    password: {{env: SIM_TOKEN}}
    regions: [ORD]
    prices: {{{flavour}: 0.008}}
    timeout: {timeout}s
  digitalocean: {{driver: digitalocean, endpoint: {digitalocean}, token: {{env: SIM_TOKEN}}, regions: [fra1, nyc3], timeout: {timeout}s}}
  linode: {{driver: linode, endpoint: {linode}, token: {{env: SIM_TOKEN}}, regions: [eu-central, us-east], timeout: {timeout}s}}
  vultr: {{driver: vultr, endpoint: {vultr}, token: {{env: SIM_TOKEN}}, regions: [fra, ewr], timeout: {timeout}s}}
"""


class Prices(dict[tuple[str, str, str], float]):
    """What an hour costs by vendor, region and type, in EUR, as the vendors say."""

    def __missing__(self, key: tuple[str, str, str]) -> float:
        vendor, region, type = key
        monthly = {size.id: size.monthly for size in VULTR_SIZES}
        match vendor:
            case "ec2":
                found = get_size_price("compute", "ec2_linux", type, region=region)
            case "openstack":
                found = 0.008
            case "digitalocean":
                found = {s.id: round(s.monthly / HOURS, 5) for s in DigitalOcean.sizes}[type]
            case "linode":
                found = {s.id: round(s.monthly * HOUR, 4) for s in Linode.sizes}[type]
            case _:
                found = monthly[type] / 730
        assert found, key
        self[key] = found * RATE
        return self[key]


@dataclass
class Vendor:
    """The control API of a simulated vendor, without waiting."""

    name: str
    url: str
    session: aiohttp.ClientSession

    async def state(self) -> dict[str, Any]:
        """Give all machines that ever were, and the faults."""
        return await self._ask("GET", "state")

    async def fault(self, **how: Any) -> None:
        """Let something go wrong."""
        await self._ask("POST", "fault", how)

    async def mend(self) -> None:
        """Let nothing go wrong any more."""
        await self._ask("DELETE", "fault")

    async def reset(self) -> None:
        """Forget everything."""
        await self._ask("POST", "reset", {})

    async def take_away(self, id: str) -> None:
        """Delete a machine, as somebody else might; of one of the three that are simulated here."""
        path = {
            "digitalocean": "v2/droplets",
            "linode": "v4/linode/instances",
            "vultr": "v2/instances",
        }[self.name]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with self.session.delete(f"{self.url}/{path}/{id}", headers=headers) as answer:
            await answer.read()

    async def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        async with self.session.request(method, f"{self.url}/__sim/{path}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            found: dict[str, Any] = await answer.json()
            return found


@dataclass
class World:
    """See the module."""

    home: Home
    bus: Client
    vendors: Mapping[str, Vendor]
    #: The dispatcher, and the provider agents by account.
    processes: Mapping[str, ChildProcess]
    prices: Prices = field(default_factory=Prices)
    _turns: dict[str, asyncio.Lock] = field(default_factory=dict[str, asyncio.Lock])

    async def kill(self, whom: str, pause: float) -> bool:
        """Kill a process without warning, and start it again after a pause.

        Tells whether it ran.
        """
        turn = self._turns.setdefault(whom, asyncio.Lock())
        if turn.locked():
            return False
        async with turn:
            process = self.processes[whom]
            if process.pid is None:
                return False
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.ended()
            await process.stop()
            await asyncio.sleep(pause)
            await _start(process)
        return True

    async def whole(self) -> None:
        """Wait until everything that was killed runs again."""
        for turn in list(self._turns.values()):
            async with turn:
                pass

    async def ask(self, op: str, within: float, **arguments: Any) -> Any:
        """Ask the dispatcher, again and again until it answers.

        Raises:
            CallError: it refused.
            TimeoutError: it did not answer in time.
        """
        said = ""
        end = time.monotonic() + within
        while time.monotonic() < end:
            try:
                return await self.bus.options(timeout=min(within, 6.0)).ask_dispatcher(
                    op, **arguments
                )
            except CallError as error:
                if error.reason in ("refused", "bad-arguments", "failed", "not-allowed"):
                    raise
                said = str(error)
            except BusError as error:
                said = str(error)
            await asyncio.sleep(0.2)
        raise TimeoutError(f"{op} was not answered within {within:g} s: {said}")


async def _start(process: ChildProcess) -> None:
    """Start a process, again until it runs: an agent needs the server, which the dispatcher has."""
    end = time.monotonic() + 60.0
    while True:
        try:
            return await process.start()
        except SpinalError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.2)


@asynccontextmanager
async def world(folder: Path) -> AsyncGenerator[World]:
    """Start everything, and end it."""
    os.environ["SIM_TOKEN"] = TOKEN
    async with AsyncExitStack() as stack:
        clouds = await stack.enter_async_context(Clouds(boot=BOOT))
        urls = {cloud.name: cloud.url for cloud in clouds}
        home = Home.create(folder / "home")
        text = PROVIDERS.format(rate=RATE, token=TOKEN, timeout=TIMEOUT, flavour=FLAVOUR, **urls)
        (home.path / "providers.yaml").write_text(text)
        # As `spinal up` does: who makes an account sees by this that there is a server to tell.
        stack.enter_context(home.hold())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        vendors = {name: Vendor(name, url, session) for name, url in urls.items()}
        providers = Providers(home)
        made = (*parts(home), *map(providers.make, providers.wanted()))
        (dispatcher, *found) = (part for part in made if isinstance(part, ChildProcess))
        await dispatcher.start()
        stack.push_async_callback(dispatcher.stop)
        for one in found:
            stack.push_async_callback(one.stop)
        await asyncio.gather(*(_start(one) for one in found))
        running: dict[str, Any] = {one.name.removeprefix("provider "): one for one in found}
        bus = await stack.enter_async_context(Client(home.path))
        yield World(home, bus, vendors, {"dispatcher": dispatcher, **running})
