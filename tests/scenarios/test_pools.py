"""Pools become and stay what they are to be, whatever vendors, dispatchers and machines do.

The vendors here are made up, and everything else is real but the wire and the clock; real drivers
and processes are in tests/storms and tests/integration.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from spinal.agents import Agent, Job
from spinal.agents.life import Life
from spinal.agents.provider.settings import LOCAL, Budget, Providers
from spinal.bus import Client
from spinal.bus.errors import CallError
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.jobs.clock import Clock
from spinal.dispatcher.pools import operations
from spinal.dispatcher.pools.document import to_json
from spinal.dispatcher.pools.machine import Machine
from spinal.dispatcher.pools.renting import Renting
from spinal.dispatcher.pools.spec import (
    Life as Terms,
)
from spinal.dispatcher.pools.spec import (
    Money,
    PoolSpec,
    Rule,
    Scale,
    Server,
    Size,
)
from spinal.dispatcher.store import store_for
from spinal.protocols.address import bare
from spinal.testing import MemoryBus, virtual_time

DISPATCHER = "dispatcher.memory.test"
HOME = "h0me"
OP = "/work"
G = 1024**3


def role_of(address: str) -> str | None:
    name = bare(address).partition("@")[0]
    return {DISPATCHER: "dispatcher", "owner": "owner", "caller": "caller"}.get(name, "agent")


@dataclass(eq=False)
class Rented:
    """A machine as its vendor has it."""

    name: str
    type: str
    created: int
    tags: Mapping[str, str]
    state: str = "running"
    said: str = ""
    deleted: bool = False


@dataclass(eq=False)
class Vendor:
    """A vendor, with what it does to the next orders and deletes."""

    name: str
    price: float
    cloud: Cloud
    rented: dict[str, Rented] = field(default_factory=dict[str, Rented])
    #: Every create request, by name of the machine.
    asked: list[str] = field(default_factory=list[str])
    #: What becomes of the next orders: see ``_order``.
    orders: list[str] = field(default_factory=list[str])
    #: What it says instead of deleting.
    deletes: list[str] = field(default_factory=list[str])
    #: Seconds by which its list is behind.
    stale: float = 0.0
    history: list[tuple[float, dict[str, Rented]]] = field(
        default_factory=list[tuple[float, dict[str, Rented]]]
    )
    frozen: list[str] = field(default_factory=list[str])
    #: What it says instead of keeping a disk.
    freezing: Mapping[str, Any] | None = None
    #: What it adds when it refuses.
    words: str = ""

    @property
    def here(self) -> list[str]:
        return sorted(self.rented)

    def note(self) -> None:
        self.history.append((self.cloud.now, dict(self.rented)))

    def shown(self) -> dict[str, Rented]:
        before = [kept for at, kept in self.history if at <= self.cloud.now - self.stale]
        return before[-1] if before else {}

    def agent(self) -> Agent:
        agent = Agent(f"provider-{self.name}", place={"vendor": f"/{self.name}"}, slots=32)

        @agent.op("/provider/offers", effects="reads")
        async def offers(
            cpu: float = 0, ram: int = 0, disk: int = 0, arch: str = "any", most: int = 9,
            refresh: bool = False, regions: list[str] = [], largest: bool = False,  # noqa: B006
        ) -> dict[str, Any]:  # fmt: skip
            """Offer one type."""
            offer = {
                "vendor": self.name,
                "region": "eu-1",
                "type": "small",
                "area": "eu",
                "arch": "x86_64",
                "cpu": 2.0,
                "ram": 4 * G,
                "disk": 20 * G,
                "price": self.price,
                "currency": "EUR",
                "source": "api",
                "as_of": self.cloud.wall,
                "cap": None,
            }
            return {"offers": [offer], "dropped": {}, "errors": []}

        @agent.op("/provider/list", effects="reads")
        async def list_(also: list[str] = []) -> dict[str, Any]:  # noqa: B006
            """List machines."""
            shown = self.shown() if self.stale else self.rented
            return {"machines": [row(one) for one in shown.values()]}

        @agent.op("/provider/create", effects="spends", timeout="5m")
        async def create(
            job: Job, name: str, type: str, region: str, image: str, user_data: str,
            tags: dict[str, str], fresh: bool,
        ) -> dict[str, Any]:  # fmt: skip
            """Make a machine, or not."""
            return await self._order(name, type, tags)

        @agent.op("/provider/destroy", effects="deletes", safe=True)
        async def destroy(name: str) -> dict[str, Any]:
            """Delete a machine."""
            if self.deletes and name in self.rented:
                return {"outcome": self.deletes.pop(0), "said": "500 oops"}
            there = name in self.rented
            if self.stale and name not in self.shown():
                return {"outcome": "gone"}
            self.delete(name)
            return {"outcome": "ending" if there else "gone"}

        @agent.op("/provider/freeze", effects="writes")
        async def freeze(name: str, label: str) -> dict[str, Any]:
            """Keep a disk."""
            self.frozen.append(name)
            return dict(self.freezing or {"outcome": "frozen", "image": f"image-{name}"})

        return agent

    async def _order(self, name: str, type: str, tags: Mapping[str, str]) -> dict[str, Any]:
        self.asked.append(name)
        order = self.orders.pop(0) if self.orders else "well"
        if order in ("capacity", "quota", "auth", "invalid"):
            return {"outcome": "refused", "kind": order, "said": f"no {order} here{self.words}"}
        if order == "vanishes":
            return {"outcome": "unknown", "kind": "transient", "said": "504"}
        if order == "hangs":
            await asyncio.sleep(1000)
        await self.make(name, type, tags, joins=order != "never joins")
        if order == "made but unknown":
            return {"outcome": "unknown", "kind": "transient", "said": "504"}
        if order == "made but refused":
            return {"outcome": "refused", "kind": "capacity", "said": "no capacity here"}
        if order == "answers never":
            await asyncio.sleep(1000)
        return {"outcome": "created", "machine": row(self.rented[name])}

    async def make(
        self, name: str, type: str, tags: Mapping[str, str], *, joins: bool = True
    ) -> None:
        assert name not in self.rented
        self.rented[name] = Rented(name, type, self.cloud.wall, tags)
        self.note()
        self.cloud.check()
        if joins:
            self.cloud.boot(name)

    def delete(self, name: str) -> None:
        if self.rented.pop(name, None) is not None:
            self.note()
            self.cloud.end(name)


def row(one: Rented) -> dict[str, Any]:
    return {
        "name": one.name,
        "id": f"i-{one.name}",
        "region": "eu-1",
        "type": one.type,
        "state": one.state,
        "created": one.created,
        "addresses": [],
        "tags": dict(one.tags),
        "pool": one.tags.get("spinal-pool", ""),
        "said": one.said,
    }


class Cloud:
    """The vendors, a dispatcher, and the machines as agents."""

    def __init__(self, bus: MemoryBus, stack: AsyncExitStack, file: Path) -> None:
        self.bus = bus
        self._stack = stack
        self._file = file
        self._epoch = 0
        self.vendors: dict[str, Vendor] = {}
        self.market = Providers(accounts={"local": LOCAL})
        self.dispatcher: Dispatcher
        self.client: Client
        self.invited: list[str] = []
        self.dismissed: list[str] = []
        self.lives: dict[str, Life] = {}
        self.most_an_hour = 1000.0
        self.tests: dict[str, bool] = {}
        self.busy = asyncio.Event()
        self.ran: list[str] = []
        self.booting: dict[str, asyncio.Task[None]] = {}

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    @property
    def wall(self) -> int:
        return self.dispatcher.keeper.now() if self.dispatcher.keeper else 0

    def check(self) -> None:
        """Hold what exists at the vendors against the money that may be spent."""
        spent = sum(len(one.rented) * one.price for one in self.vendors.values())
        assert spent <= self.most_an_hour + 1e-9, spent

    # -- the door

    def agents(self, spec: PoolSpec) -> Sequence[str]:
        return ["w"]

    async def invite(self, machine: Machine, spec: PoolSpec) -> str:
        self.invited.append(machine.name)
        return f"#!/bin/sh\n# {machine.name}\n"

    async def dismiss(self, name: str) -> None:
        self.dismissed.append(name)

    # -- machines

    def boot(self, name: str) -> None:
        self.booting[name] = asyncio.create_task(self._boot(name))

    async def _boot(self, name: str) -> None:
        await asyncio.sleep(5)
        agent = Agent("w", slots=1)

        @agent.op(OP, effects="reads", timeout="1h")
        async def work(job: Job, n: int = 0) -> str:
            """Work until the story says so."""
            await self.busy.wait()
            self.ran.append(name)
            return name

        @agent.op("/test", effects="reads")
        async def test() -> dict[str, bool]:
            """Say how it is."""
            return {"healthy": self.tests.get(name, self.tests.get("", True))}

        self._epoch += 1
        life = Life(
            agent,
            self.bus.connection(f"{name}@memory.test/w"),
            dispatchers=[DISPATCHER],
            epoch=self._epoch,
        )
        self.lives[name] = await self._stack.enter_async_context(life)

    def end(self, name: str) -> None:
        if task := self.booting.pop(name, None):
            task.cancel()
        if name in self.lives:
            self.bus.kill(f"{name}@memory.test/w")

    # -- who runs

    async def dispatch(self) -> None:
        self._epoch += 1
        self.dispatcher = Dispatcher(
            self.bus.connection(DISPATCHER),
            roles=role_of,
            epoch=self._epoch,
            store=store_for(f"sqlite:///{self._file}"),
            clock=Clock(running=lambda: self.now),
            renting=Renting(door=self, domain="memory.test", home=HOME, market=lambda: self.market),
        )
        await self._stack.enter_async_context(self.dispatcher)

    async def vendor(self, name: str, price: float) -> Vendor:
        vendor = self.vendors[name] = Vendor(name, price, self)
        await self.provider(vendor)
        return vendor

    async def provider(self, vendor: Vendor) -> None:
        """Start the agent of a vendor."""
        self._epoch += 1
        connection = self.bus.connection(f"provider-{vendor.name}@memory.test/agent")
        life = Life(vendor.agent(), connection, dispatchers=[DISPATCHER], epoch=self._epoch)
        await self._stack.enter_async_context(life)
        await self.until(lambda: vendor.name in self.dispatcher.fleet.vendors.here())  # type: ignore[union-attr]

    # -- what people ask

    async def ask(self, what: str, **arguments: Any) -> Any:
        return await self.client.ask_dispatcher(f"/spinal/{what}", **arguments)

    async def apply(self, spec: PoolSpec) -> Any:
        return await self.ask("pools/apply", spec=to_json(spec))

    async def show(self, name: str = "web") -> dict[str, Any]:
        found: dict[str, Any] = await self.ask("pools/show", name=name)
        return found

    async def down(self, name: str = "web") -> None:
        await self.ask("pools/wind-down", name=name, phase="down")

    async def until(self, holds: Callable[[], Any], within: float = 120.0) -> float:
        """Wait until something is so; gives how long it took."""
        began = self.now
        while True:
            found = holds()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return self.now - began
            assert self.now - began < within, "not in time"
            await asyncio.sleep(0.25)

    async def converged(self, ready: int, name: str = "web", within: float = 300.0) -> float:
        async def is_so() -> bool:
            shown = await self.show(name)
            return bool(shown["converged"] and shown["ready"] == ready)

        return await self.until(is_so, within)

    async def events(self, name: str = "web") -> list[str]:
        return [one["what"] for one in (await self.show(name))["events"]]

    def there(self) -> list[str]:
        return sorted(name for one in self.vendors.values() for name in one.rented)

    def bought(self) -> list[str]:
        return sorted(name for one in self.vendors.values() for name in one.asked)


def a_pool(ready: int = 2, **members: Any) -> PoolSpec:
    given: dict[str, Any] = {
        "pool": "web",
        "server": Server(cpu=1, ram=G),
        "size": Size(min=0, max=8, start=ready),
        **members,
    }
    return PoolSpec(**given)


@asynccontextmanager
async def a_cloud(folder: Path) -> AsyncGenerator[Cloud]:
    async with AsyncExitStack() as stack:
        cloud = Cloud(MemoryBus(), stack, folder / "jobs.db")
        await cloud.dispatch()
        client = Client(
            connection=cloud.bus.connection("owner@memory.test/cli"), dispatchers=[DISPATCHER]
        )
        cloud.client = await stack.enter_async_context(client)
        yield cloud
        for task in cloud.booting.values():
            task.cancel()
        # Whatever the story was: nothing was bought twice.
        assert len(set(cloud.bought())) == len(cloud.bought())


@virtual_time
async def test_a_pool_rents_where_it_is_cheapest_and_returns_everything(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        cheap, dear = await cloud.vendor("cheap", 0.1), await cloud.vendor("dear", 0.2)

        applied = await cloud.apply(a_pool())
        assert (applied["wanted"], applied["ready"]) == (2, 0)
        await cloud.converged(2)

        assert len(cheap.rented) == 2 and not dear.rented
        shown = await cloud.show()
        assert (shown["price"], shown["currency"], shown["joined"]) == (0.2, "EUR", 2)
        assert {one["state"] for one in shown["machines"]} == {"ready"}
        one = next(iter(cheap.rented.values()))
        assert one.name.startswith("web-") and one.tags["spinal"] == HOME

        await cloud.down()
        await cloud.until(lambda: not cheap.rented)
        with pytest.raises(CallError, match="there is no pool web"):
            await cloud.until(cloud.show, 60)
            await asyncio.sleep(5)
            await cloud.show()
        assert sorted(cloud.dismissed) == sorted(cloud.invited)
        costs = await cloud.ask("cost", by=["vendor", "pool"])
        assert [row["key"] for row in costs["rows"]] == [["cheap", "web"]]
        assert costs["spent"] > 0 and costs["rows"][0]["machines"] == 2


@virtual_time
async def test_a_machine_gets_no_work_before_its_self_test_and_counts_only_then(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        cloud.tests[""] = False
        await cloud.apply(a_pool(1, life=Terms(self_test=("/test",))))
        await cloud.until(lambda: cloud.lives)
        await asyncio.sleep(10)

        shown = await cloud.show()
        assert (shown["ready"], shown["machines"][0]["state"]) == (0, "testing")
        resolved = await cloud.ask("resolve", op=OP)
        assert resolved["candidates"] == []
        assert "self-test" in str(resolved["rejected"])

        cloud.tests[""] = True
        await cloud.converged(1)
        assert len((await cloud.ask("resolve", op=OP))["candidates"]) == 1


@virtual_time
async def test_a_machine_that_never_joins_is_returned_counted_and_replaced_ever_more_slowly(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        vendor.orders = ["never joins"] * 3
        await cloud.apply(a_pool(1, life=Terms(join=60.0)))
        await cloud.converged(1, within=600)

        shown = await cloud.show()
        assert (shown["never_joined"], shown["joined"], len(vendor.rented)) == (3, 1, 1)
        assert len(vendor.asked) == 4


@virtual_time
async def test_a_refusal_goes_to_the_next_vendor_and_keeps_the_words(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        cheap, dear = await cloud.vendor("cheap", 0.1), await cloud.vendor("dear", 0.2)
        cheap.orders = ["capacity"]
        await cloud.apply(a_pool(1))
        took = await cloud.until(lambda: dear.rented, 20)
        assert took < 10
        # What was refused is looked up until it is sure that it does not exist.
        await cloud.converged(1)

        assert not cheap.rented and len(dear.rented) == 1
        events = (await cloud.show())["events"]
        refused = next(one for one in events if one["what"] == "refused")
        assert "no capacity here" in refused["said"]


@virtual_time
async def test_an_image_that_a_vendor_does_not_have_is_no_other_pools_matter(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        cheap, dear = await cloud.vendor("cheap", 0.1), await cloud.vendor("dear", 0.2)
        cheap.orders = ["invalid"]
        await cloud.apply(a_pool(1, server=Server(cpu=1, ram=G, image="odd")))
        await cloud.until(lambda: dear.rented, 20)

        await cloud.apply(a_pool(1, pool="other"))
        await cloud.converged(1, "other")
        assert [name for name in cheap.rented if name.startswith("other-")]


@virtual_time
async def test_a_pool_is_shown_page_by_page_however_much_there_is_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "ROOM", 1600)
    monkeypatch.setattr(operations, "ROOM_FOR_MACHINES", 800)
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        vendor.words = ", and that for the following reasons: " + "x" * 2500
        vendor.orders = ["capacity", "capacity"]
        await cloud.apply(a_pool(5))
        await cloud.converged(5, within=3600)

        shown = await cloud.show()
        assert shown["more"] and shown["events"][-1]["what"] == "joined"
        assert "applied" not in [one["what"] for one in shown["events"]]
        names = [one["name"] for one in shown["machines"]]
        while shown["more"]:
            shown = await cloud.ask("pools/show", name="web", offset=len(names))
            names += [one["name"] for one in shown["machines"]]
        assert len(set(names)) == len(names) == 5


@virtual_time
async def test_a_pool_is_not_as_it_is_to_be_while_a_machine_is_to_be_replaced(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        old = (await cloud.show())["machines"][0]["name"]

        answer = await cloud.ask("pools/replace", name="web")
        assert not answer["converged"]
        await cloud.converged(1)
        assert [one["name"] for one in (await cloud.show())["machines"]] != [old]


@virtual_time
async def test_what_was_refused_and_exists_is_deleted(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        cheap, dear = await cloud.vendor("cheap", 0.1), await cloud.vendor("dear", 0.2)
        cheap.orders = ["made but refused"]
        await cloud.apply(a_pool(1))
        await cloud.until(lambda: dear.rented and not cheap.rented)
        await cloud.converged(1)

        assert not cheap.rented and len(dear.rented) == 1
        assert "orphan" in await cloud.events()


@virtual_time
async def test_an_order_without_an_answer_is_looked_up_and_taken_up(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        vendor.orders = ["made but unknown"]
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        assert len(vendor.asked) == 1 == len(vendor.rented)


@virtual_time
async def test_an_order_of_which_nothing_came_is_replaced_once_that_is_sure(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        vendor.orders = ["vanishes"]
        await cloud.apply(a_pool(1))
        await asyncio.sleep(20)
        assert len(vendor.asked) == 1, "the first one may still appear"
        await cloud.converged(1)
        assert len(vendor.asked) == 2 and len(vendor.rented) == 1


@virtual_time
async def test_a_list_that_is_behind_hides_a_machine_and_does_not_leave_it(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        cheap, dear = await cloud.vendor("cheap", 0.1), await cloud.vendor("dear", 0.2)
        cheap.stale = 120.0  # Longer than we wait.
        cheap.orders = ["made but refused"]
        await cloud.apply(a_pool(1))
        await cloud.until(lambda: dear.rented)
        await cloud.until(lambda: not cheap.rented, 600)
        assert len(dear.rented) == 1
        await cloud.converged(1)


@virtual_time
async def test_a_delete_that_looks_into_an_old_list_does_not_leave_the_machine(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        cheap = await cloud.vendor("cheap", 0.1)
        cheap.stale = 20.0
        await cloud.apply(a_pool(1))
        await cloud.until(lambda: cheap.rented)
        await cloud.down()

        async def is_down() -> bool:
            return not (await cloud.ask("pools/list"))["items"]

        await cloud.until(is_down)
        assert not cheap.rented


@virtual_time
async def test_a_dispatcher_that_dies_while_it_orders_does_not_order_again(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        vendor.orders = ["answers never"]
        await cloud.apply(a_pool(1))
        await cloud.until(lambda: vendor.rented)
        cloud.bus.kill(DISPATCHER)
        await cloud.dispatcher.close()
        await cloud.dispatch()
        await cloud.converged(1)
        assert len(vendor.asked) == 1 == len(vendor.rented)


@virtual_time
async def test_an_order_that_never_reached_the_vendor_ends(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        vendor.orders = ["hangs"]
        await cloud.apply(a_pool(1))
        await cloud.converged(1, within=600)
        assert len(vendor.asked) == 2 and len(vendor.rented) == 1


@virtual_time
async def test_a_delete_that_fails_is_tried_until_it_is_gone(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        vendor.deletes = ["failed", "ending", "failed", "failed"]
        await cloud.down()
        await asyncio.sleep(1)
        assert (await cloud.show())["machines"][0]["state"] == "leaving"
        await cloud.until(lambda: not vendor.rented)


@virtual_time
async def test_a_machine_that_dies_is_replaced(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(2))
        await cloud.converged(2)
        first, second = cloud.there()
        vendor.rented[first].state, vendor.rented[first].said = "error", "the host died"
        await cloud.until(lambda: first not in vendor.rented)
        await cloud.converged(2)
        assert second in vendor.rented and (await cloud.show())["lost"] == 1
        # And one of which only the agents are gone.
        cloud.bus.kill(f"{second}@memory.test/w")
        await cloud.until(lambda: second not in vendor.rented, 300)
        await cloud.converged(2)


@virtual_time
async def test_a_machine_that_somebody_deleted_is_noticed(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        vendor.delete(cloud.there()[0])
        await cloud.until(lambda: len(vendor.asked) == 2, 600)
        await cloud.converged(1)


@virtual_time
async def test_a_budget_of_an_hour_is_never_exceeded_and_the_pool_says_why_it_is_short(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        cloud.most_an_hour = 0.35
        vendor.orders = ["made but refused", "made but unknown", "vanishes", "well", "well"]
        spec = a_pool(5, size=Size(min=0, max=5, start=5), money=Money(max_per_hour=0.35))
        await cloud.apply(spec)
        await cloud.until(lambda: len(vendor.rented) == 3, 600)
        await asyncio.sleep(300)
        assert len(vendor.rented) == 3
        assert "over budget" in (await cloud.show())["short"]


@virtual_time
async def test_the_budget_of_a_month_stops_renting_and_returns_machines_in_time(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        vendor.price = 1.0
        cloud.market = replace(cloud.market, budgets=(Budget(1.05),))
        await cloud.apply(a_pool(1, life=Terms(drain=60.0)))
        await cloud.converged(1)
        # Enough for one of them for an hour, and a bit to let it go.
        await cloud.until(lambda: not vendor.rented, 2 * 3600)
        await asyncio.sleep(120)
        spent = (await cloud.ask("cost"))["month"]
        assert 0.6 < spent <= 1.05 and not vendor.rented


@virtual_time
async def test_two_pools_do_not_spend_the_same_money(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 1.0)
        # Of a month, enough for about three machines over the least time of one.
        cloud.market = replace(cloud.market, budgets=(Budget(3.5),))
        cloud.most_an_hour = 3.0
        await asyncio.gather(cloud.apply(a_pool(3)), cloud.apply(replace(a_pool(3), pool="mail")))
        await asyncio.sleep(60)
        assert 1 <= len(cloud.there()) <= 3


@virtual_time
async def test_jobs_that_wait_wake_a_pool_and_it_goes_to_zero_when_nothing_is_left(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        scale = Scale(
            ops=(OP,),
            waiting=Rule(sign=">", bound=2, lasting=5),
            remove_when={"idle": Rule(sign=">", bound=0, lasting=30)},
            cool=10,
        )
        await cloud.apply(a_pool(0, size=Size(min=0, max=3, start=0), scale=scale))
        await asyncio.sleep(60)
        assert not vendor.asked

        jobs = [await cloud.client.submit(OP, n=n) for n in range(12)]
        await cloud.until(lambda: len(vendor.rented) == 3)
        cloud.busy.set()
        for job in jobs:
            await job.result()
        await cloud.until(lambda: not vendor.rented, 600)
        await cloud.converged(0)
        assert len(set(cloud.ran)) > 1


@virtual_time
async def test_a_machine_that_is_to_go_finishes_what_it_runs_and_gets_nothing_new(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        job = await cloud.client.submit(OP, n=1)
        await cloud.until(lambda: cloud.dispatcher.broker.in_flight)
        await cloud.ask("pools/wind-down", name="web", phase="drained")
        later = await cloud.client.submit(OP, n=2)
        await asyncio.sleep(60)
        assert len(vendor.rented) == 1
        cloud.busy.set()
        assert await job.result() in cloud.invited
        await cloud.until(lambda: not vendor.rented)
        assert len(cloud.ran) == 1 and (await later.info())["state"] == "queued"
        assert (await cloud.show())["phase"] == "drained"


@virtual_time
async def test_replacing_has_the_new_one_ready_before_the_old_one_goes(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(2))
        await cloud.converged(2)
        old = cloud.there()
        await cloud.ask("pools/replace", name="web")
        least = 9
        while set(old) & set(vendor.rented):
            ready = sum(one["state"] == "ready" for one in (await cloud.show())["machines"])
            least = min(least, ready)
            await asyncio.sleep(0.5)
        assert least >= 2
        await cloud.converged(2)
        assert not set(old) & set(cloud.there())


@virtual_time
async def test_replacing_needs_money_for_one_more_machine_and_not_for_twice_as_many(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        cloud.most_an_hour = 0.3
        await cloud.apply(a_pool(2, money=Money(max_per_hour=0.3)))
        await cloud.converged(2)
        old = set(cloud.there())
        await cloud.ask("pools/replace", name="web")
        await cloud.until(lambda: not old & set(vendor.rented), 300)
        await cloud.converged(2)


@virtual_time
async def test_a_machine_whose_time_is_over_is_replaced_before_that(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(1, life=Terms(ttl=600.0, join=120.0)))
        await cloud.converged(1)
        (first,) = cloud.there()
        await cloud.until(lambda: first not in vendor.rented, 700)
        assert (await cloud.show())["ready"] == 1
        await asyncio.sleep(2000)
        assert len(vendor.rented) <= 2 and len(vendor.asked) >= 4


@virtual_time
async def test_machines_move_to_where_it_is_cheaper_if_that_saves_enough(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        dear = await cloud.vendor("dear", 0.1)
        await cloud.apply(a_pool(2, scale=Scale(consolidate=0.25)))
        await cloud.converged(2)
        little = await cloud.vendor("little", 0.09)
        await asyncio.sleep(900)
        assert len(dear.rented) == 2 and not little.rented

        cheap = await cloud.vendor("cheap", 0.05)
        await cloud.until(lambda: len(cheap.rented) == 2 and not dear.rented, 3600)
        await cloud.converged(2)
        assert len(cheap.asked) == 2 and not little.asked


@virtual_time
async def test_draining_machines_by_name_makes_the_pool_smaller(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(3))
        await cloud.converged(3)
        gone = cloud.there()[1]
        with pytest.raises(CallError, match="has no machine web-none"):
            await cloud.ask("pools/drain", name="web", machines=["web-none"])
        await cloud.ask("pools/drain", name="web", machines=[gone])
        await cloud.converged(2)
        assert gone not in cloud.there()


@virtual_time
async def test_freezing_keeps_the_disks(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(2))
        await cloud.converged(2)
        names = cloud.there()
        await cloud.ask("pools/wind-down", name="web", phase="frozen")
        await cloud.until(lambda: not vendor.rented)
        assert sorted(vendor.frozen) == names
        said = {e["said"] for e in (await cloud.show())["events"] if e["what"] == "frozen"}
        assert {f"image-{name}" for name in names} <= said


@virtual_time
async def test_applying_refuses_a_plan_that_has_changed(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        spec = to_json(a_pool(2))
        plan = await cloud.ask("pools/plan", spec=spec)
        assert plan["price"] == 0.2 and plan["machines"][0]["count"] == 2
        vendor.price = 0.3
        await cloud.ask("pools/plan", spec=spec, refresh=True)
        with pytest.raises(CallError, match="the plan has changed"):
            await cloud.ask("pools/apply", spec=spec, hash=plan["hash"])
        assert not vendor.asked
        plan = await cloud.ask("pools/plan", spec=spec)
        assert (await cloud.ask("pools/apply", spec=spec, hash=plan["hash"]))["wanted"] == 2


@virtual_time
async def test_sweeping_finds_machines_without_a_record_and_records_without_a_machine(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(2))
        await cloud.converged(2)
        first, _ = cloud.there()
        await vendor.make("old-1", "small", {"spinal": HOME}, joins=False)
        vendor.delete(first)
        await asyncio.sleep(1)

        found = await cloud.ask("sweep")
        assert [one["name"] for one in found["orphans"]] == ["old-1"]
        assert [one["name"] for one in found["missing"]] == [first]
        assert "old-1" in vendor.rented and found["deleted"] == {}

        found = await cloud.ask("sweep", delete=True, names=["old-1", first])
        assert found["deleted"] == {"old-1": "ending", first: "gone"}
        assert "old-1" not in vendor.rented
        await cloud.converged(2)
        found = await cloud.ask("sweep")
        assert found["orphans"] == [] == found["missing"]


@virtual_time
async def test_who_is_not_the_owner_rents_nothing(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        connection = cloud.bus.connection("caller@memory.test/web")
        async with Client(connection=connection, dispatchers=[DISPATCHER]) as client:
            for op, given in (
                ("pools/apply", {"spec": to_json(a_pool())}),
                ("sweep", {"delete": True}),
                ("cost", {}),
                ("pools/wind-down", {"name": "web", "phase": "down"}),
            ):
                with pytest.raises(CallError, match="may not call"):
                    await client.ask_dispatcher(f"/spinal/{op}", **given)


@virtual_time
async def test_an_impossible_demand_is_refused_with_what_comes_nearest(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        with pytest.raises(CallError, match="no offer has 512 cpu; the largest is small at cheap"):
            await cloud.apply(a_pool(server=Server(cpu=512, ram=G)))
        with pytest.raises(CallError, match="no offer is in mars"):
            await cloud.apply(a_pool(server=Server(cpu=1, ram=G, region=("mars",))))
        with pytest.raises(CallError, match="rates"):
            await cloud.apply(a_pool(money=Money(max_per_hour=1, currency="CHF")))
