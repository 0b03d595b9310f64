from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pytest
from tests.clouds.cloud import Cloud, Clouds
from tests.clouds.fixtures import needs_clouds
from tests.clouds.upstream import missing
from tests.clouds.vendor import TOKEN

from spinal.agents.life import Life
from spinal.agents.provider.agent import assemble
from spinal.agents.provider.settings import Account
from spinal.agents.secret import Secret
from spinal.bus.errors import CallError
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryBus

AGENT = "provider-it@memory.test/agent"
CALLER = "owner@memory.test/a"

HOME_ID = "home1"

#: Those that are ours, and those that need an environment of their own.
OURS = ("digitalocean", "linode", "vultr")
THEIRS = ("ec2", "openstack")

ALL = pytest.mark.parametrize(
    "vendor", [*OURS, *(pytest.param(name, marks=needs_clouds) for name in THEIRS)]
)

#: A type of each, and a region.
TYPES = {
    "ec2": ("t3.small", "eu-west-1"),
    "openstack": ("1GB Standard Instance", "ORD"),
    "digitalocean": ("s-1vcpu-1gb", "fra1"),
    "linode": ("g6-standard-1", "eu-central"),
    "vultr": ("vc2-1c-1gb", "fra"),
    "rackspace": ("2", "ord"),
}


@pytest.fixture(scope="session", autouse=True)
def secret() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUD_TOKEN", TOKEN)
        patch.setenv("CLOUD_SECRET", "a secret of EC2")
        yield


@pytest.fixture(scope="module")
def running() -> Iterator[Clouds]:
    with Clouds(*OURS, *(THEIRS if missing() is None else ())) as clouds:
        yield clouds


@pytest.fixture
def clouds(running: Clouds) -> Clouds:
    for cloud in running:
        cloud.reset()
    return running


def account(cloud: Cloud, **changed: Any) -> Account:
    """Give an account at a simulated vendor."""
    options: dict[str, Any] = {"token": Secret("env", "CLOUD_TOKEN")}
    endpoint = cloud.url
    if cloud.name == "ec2":
        options = {"key": TOKEN, "secret": Secret("env", "CLOUD_SECRET")}
    if cloud.name == "openstack":
        options = {
            "user": "spinal",
            "password": Secret("env", "CLOUD_TOKEN"),
            "identity": "2",
            "service": "cloudServersOpenStack",
        }
        endpoint = f"{cloud.url}/identity"
    kind, region = TYPES[cloud.name]
    made = Account(
        name="it",
        driver=cloud.name,
        regions=(region,),
        endpoint=endpoint,
        prices={kind: 0.03} if cloud.name == "openstack" else {},
        options=options,
    )
    return replace(made, **changed)


@dataclass
class World:
    """The agent of an account on a bus, and somebody who calls it."""

    account: Account
    caller: Session

    async def ask(self, op: str, timeout: float = 60.0, **args: Any) -> Any:
        call = self.caller.call(AGENT, f"/provider{op}", args, timeout=timeout, window=16)
        return await call.result()

    async def problem(self, op: str, **args: Any) -> str:
        """Give the words of an error."""
        with pytest.raises(CallError) as caught:
            await self.ask(op, **args)
        return str(caught.value)

    async def create(self, name: str = "web-aaaaaa", timeout: float = 60.0, **args: Any) -> Any:
        kind, region = TYPES[self.account.driver]
        wanted = {
            "name": name,
            "type": kind,
            "region": region,
            "image": "debian-12",
            "user_data": "#!/bin/sh\necho grüß dich\n",
            "tags": {"spinal": HOME_ID, "spinal-pool": "web", "spinal-name": name},
        }
        return await self.ask("/create", timeout, **{**wanted, **args})

    async def names(self) -> list[str]:
        found = await self.ask("/list")
        return [one["name"] for one in found["machines"]]


class Start(Protocol):
    """Puts the agent of an account on a bus."""

    def __call__(
        self, account: Account, home_id: str = HOME_ID, caller: str = CALLER
    ) -> AbstractAsyncContextManager[World]: ...


@pytest.fixture
def start() -> Start:
    @asynccontextmanager
    async def world(
        account: Account, home_id: str = HOME_ID, caller: str = CALLER
    ) -> AsyncGenerator[World]:
        bus = MemoryBus()
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(Session(bus.connection(caller)))
            agent = assemble(account, home_id)
            await stack.enter_async_context(Life(agent, bus.connection(AGENT)))
            yield World(account, session)

    return world
