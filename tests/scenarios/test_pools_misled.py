"""Pools keep to their money and leave nothing behind when somebody misleads or hinders them.

Provider agents that answer nonsense, machines that pose as vendors, another dispatcher that is
faster, settings that change under what runs.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.scenarios.test_pools import DISPATCHER, OP, Cloud, a_cloud, a_pool

from spinal.agents import Agent
from spinal.agents.life import Life
from spinal.agents.provider.settings import LOCAL, Providers
from spinal.bus.server import ServerError
from spinal.dispatcher.pools import books, fleet, record
from spinal.dispatcher.pools.machine import Machine, State
from spinal.dispatcher.pools.spec import Life as Terms
from spinal.dispatcher.pools.spec import Money
from spinal.dispatcher.store.contract import Keep, Record
from spinal.testing import virtual_time

NONSENSE: list[Any] = [
    None,
    "offers",
    [1, "two", None, []],
    [{}],
    [{"vendor": "cheap", "region": "eu-1"}],
    [{"name": 7}, {"name": ""}, {"state": "running"}],
]


async def an_agent(cloud: Cloud, agent: Agent, address: str) -> None:
    cloud._epoch += 1
    connection = cloud.bus.connection(address)
    life = Life(agent, connection, dispatchers=[DISPATCHER], epoch=cloud._epoch)
    await cloud._stack.enter_async_context(life)


def a_provider(vendor: str, answers: Mapping[str, Any], asked: list[str]) -> Agent:
    """Make a provider agent that gives these answers, whatever it is asked."""
    agent = Agent(f"provider-{vendor}", place={"vendor": f"/{vendor}"}, slots=32)

    def offer(op: str) -> None:
        @agent.op(f"/provider/{op}", effects="reads")
        async def answer(
            also: list[str] = [], name: str = "", type: str = "", region: str = "",  # noqa: B006
            image: str = "", user_data: str = "", tags: dict[str, str] = {},  # noqa: B006
            fresh: bool = False, cpu: float = 0, ram: int = 0, disk: int = 0, arch: str = "any",
            most: int = 9, refresh: bool = False, regions: list[str] = [],  # noqa: B006
            largest: bool = False, after: str = "", label: str = "",
        ) -> Any:  # fmt: skip
            """Answer."""
            asked.append(op)
            return answers[op]

    for op in ("offers", "list", "create", "destroy", "freeze"):
        offer(op)
    return agent


def an_offer(**changed: Any) -> dict[str, Any]:
    return {
        "vendor": "odd", "region": "eu-1", "type": "small", "area": "eu", "arch": "x86_64",
        "cpu": 2.0, "ram": 4 * 1024**3, "disk": 0, "price": 0.01, "currency": "EUR",
        "source": "api", "as_of": 0, "cap": None, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    "offers",
    [
        *NONSENSE,
        [an_offer(price=None), an_offer(price="0.01"), an_offer(price=0), an_offer(price=-1.0)],
        [an_offer(vendor="cheap", price=0.0001)],
        [an_offer(cpu="4"), an_offer(ram=None), an_offer(more="than it should have", region=7)],
    ],
)
@virtual_time
async def test_offers_of_one_vendor_that_are_none_do_not_keep_others_from_being_taken(
    tmp_path: Path, offers: Any
) -> None:
    async with a_cloud(tmp_path) as cloud:
        cheap = await cloud.vendor("cheap", 0.1)
        answers: dict[str, Any] = {
            "offers": {"offers": offers, "errors": [7, {}], "dropped": "no"},
            "list": [],
        }
        await an_agent(cloud, a_provider("odd", answers, []), "provider-odd@memory.test/agent")
        await cloud.until(lambda: "odd" in cloud.dispatcher.fleet.vendors.here())  # type: ignore[union-attr]

        await cloud.apply(a_pool(2))
        await cloud.converged(2)
        assert len(cheap.rented) == 2
        assert {one["price"] for one in (await cloud.show())["machines"]} == {0.1}


@pytest.mark.parametrize(
    "created",
    [
        {"outcome": "refused", "kind": ["capacity"], "said": {"no": 1}, "after": "tomorrow"},
        {"outcome": "refused", "kind": "rate", "said": "x" * 20_000, "after": -1e300},
        {"outcome": "created", "machine": {"name": [], "created": "yesterday", "id": {}}},
        {"outcome": "created", "machine": "a machine"},
        {"outcome": 7},
        "created",
    ],
)
@virtual_time
async def test_an_answer_to_an_order_that_is_none_leaves_no_machine_without_an_end(
    tmp_path: Path, created: Any
) -> None:
    async with a_cloud(tmp_path) as cloud:
        rows: list[dict[str, Any]] = []
        answers: dict[str, Any] = {
            "offers": {"offers": [an_offer()], "errors": [], "dropped": {}},
            "create": created,
            "list": {"machines": [*rows, 7, {"name": "x", "created": "now"}], "more": True},
            "destroy": {"outcome": "gone"},
        }
        await an_agent(cloud, a_provider("odd", answers, []), "provider-odd@memory.test/agent")
        await cloud.until(lambda: "odd" in cloud.dispatcher.fleet.vendors.here())  # type: ignore[union-attr]
        await cloud.apply(a_pool(1))
        await cloud.until(lambda: cloud.invited)
        await cloud.down()

        async def is_gone() -> bool:
            return not (await cloud.ask("pools/list"))["items"]

        await cloud.until(is_gone, 600)
        assert len(str(cloud.dispatcher.fleet.books.ledger)) < 5000 * len(cloud.invited)  # type: ignore[union-attr]


@virtual_time
async def test_whose_account_is_no_provider_agents_is_asked_nothing(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        asked: list[str] = []
        answers = {"offers": {"offers": [an_offer(vendor="odd", price=0.01)], "errors": []}}
        agent = a_provider("odd", answers, asked)
        # A worker that somebody was invited with, and the agent of another vendor.
        for number, account in enumerate(("worker", "provider-cheap", "provider-odd-2")):
            await an_agent(cloud, agent, f"{account}@memory.test/odd{number}")
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        assert cloud.dispatcher.fleet.vendors.here() == ["cheap"]  # type: ignore[union-attr]
        assert asked == []


@virtual_time
async def test_a_machine_that_poses_as_a_vendor_is_asked_nothing(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        (name,) = cloud.there()
        asked: list[str] = []
        answers: dict[str, Any] = {
            "offers": {"offers": [an_offer(vendor="cheap")], "errors": [], "dropped": {}},
            "create": {"outcome": "created"},
            "list": {"machines": []},
            "destroy": {"outcome": "gone"},
        }
        for vendor in ("cheap", "odd"):
            agent = a_provider(vendor, answers, asked)
            await an_agent(cloud, agent, f"{name}@memory.test/{vendor}")
        await asyncio.sleep(10)
        await cloud.apply(a_pool(3))
        await cloud.converged(3)
        await cloud.down()
        await cloud.until(lambda: not cloud.there())
        assert asked == []
        assert cloud.dispatcher.fleet.vendors.here() == ["cheap"]  # type: ignore[union-attr]


@virtual_time
async def test_what_another_dispatcher_orders_meanwhile_is_not_paid_twice(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(0, money=Money(max_per_hour=0.1)))
        keeper = cloud.dispatcher.keeper
        assert keeper is not None
        theirs = Machine(
            name="other-1", pool="other", label="web", state=State.ORDERED, since=cloud.wall,
            vendor="elsewhere", region="eu", type="small", price=0.1, currency="EUR",
            created=cloud.wall, expires=cloud.wall + 10**9,
        )  # fmt: skip
        versions, done = keeper.store.versions, list[bool]()

        async def interrupted(kind: str) -> Mapping[str, int]:
            found = await versions(kind)
            if kind == record.MACHINE and not done:
                done.append(True)
                purse = (await versions(books.PURSE[0])).get(books.PURSE[1], 0)
                orders = Keep(Record(*books.PURSE, purse, None))
                await keeper.store.write(orders, Keep(record.of_machine(theirs)))
            return found

        keeper.store.versions = interrupted  # type: ignore[method-assign]
        keeper._peers = {"a", "b"}  # type: ignore[assignment]
        await cloud.apply(a_pool(1, money=Money(max_per_hour=0.1)))
        await asyncio.sleep(30)
        assert done and not vendor.asked


@virtual_time
async def test_a_budget_that_is_lowered_below_what_runs_returns_machines(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(3, money=Money(max_per_hour=0.3)))
        await cloud.converged(3)
        await cloud.apply(a_pool(3, money=Money(max_per_hour=0.15)))
        await cloud.until(lambda: len(vendor.rented) == 1)
        await asyncio.sleep(120)
        assert len(vendor.rented) == 1 and len(vendor.asked) == 3


@virtual_time
async def test_machines_go_at_their_time_also_where_a_currency_has_lost_its_rate(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        cloud.market = Providers(accounts={"local": LOCAL}, rates={"CHF": 1.1})
        life = Terms(ttl=600.0, join=120.0)
        await cloud.apply(a_pool(1, life=life, money=Money(max_per_hour=1, currency="CHF")))
        await cloud.converged(1)
        cloud.market = Providers(accounts={"local": LOCAL})
        await cloud.until(lambda: not vendor.rented, 700)
        await cloud.down()

        async def is_gone() -> bool:
            return not (await cloud.ask("pools/list"))["items"]

        await cloud.until(is_gone)


@virtual_time
async def test_a_pool_that_had_its_time_can_be_applied_again(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        spec = a_pool(1, life=Terms(ends=300.0))
        await cloud.apply(spec)
        await cloud.converged(1)
        vendor.deletes = ["failed"] * 5
        await asyncio.sleep(300)
        assert (await cloud.show())["phase"] == "down" and vendor.rented
        await cloud.apply(spec)
        await cloud.converged(1)
        assert (await cloud.show())["phase"] == "up"
        await cloud.until(lambda: not vendor.rented, 400)


# -- freezing


@pytest.mark.parametrize("said", ["unsupported", "failed", "gone", "ending", "frozen"])
@virtual_time
async def test_a_machine_whose_disk_cannot_be_kept_stays_and_its_pool_says_so(
    tmp_path: Path, said: str
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        vendor.freezing = {"outcome": said, "said": "no images here"}
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        await cloud.ask("pools/wind-down", name="web", phase="frozen")
        await asyncio.sleep(300)
        assert len(vendor.rented) == 1 and 3 < len(vendor.frozen) < 30
        shown = await cloud.show()
        assert [one["state"] for one in shown["machines"]] == ["leaving"]
        assert [e["said"] for e in shown["events"] if e["what"] == "not-frozen"] == [
            "no images here"
        ]
        # Somebody deletes it by hand: then there is nothing to be kept.
        vendor.rented.clear()
        await cloud.until(lambda: not cloud.dispatcher.fleet.books.machines, 300)  # type: ignore[union-attr]


# -- holding and draining


@virtual_time
async def test_a_machine_that_drains_is_not_returned_while_its_agents_are_away(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        (name,) = cloud.there()
        await cloud.client.submit(OP, n=1)
        await cloud.until(lambda: cloud.dispatcher.broker.in_flight)
        await cloud.ask("pools/wind-down", name="web", phase="drained")
        cloud.bus.kill(f"{name}@memory.test/w")
        await asyncio.sleep(30)
        assert vendor.rented
        await cloud.until(lambda: not vendor.rented, 120)


@virtual_time
async def test_what_is_held_back_is_so_before_a_new_dispatcher_hears_of_anybody(
    tmp_path: Path,
) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(2))
        await cloud.converged(2)
        await cloud.client.submit(OP, n=1)
        await cloud.until(lambda: cloud.dispatcher.broker.in_flight)
        await cloud.ask("pools/wind-down", name="web", phase="drained")
        await cloud.until(lambda: len(cloud.there()) == 1)
        (busy,) = cloud.there()
        await cloud.dispatcher.close()
        await cloud.dispatch()
        assert f"{busy}@memory.test" in cloud.dispatcher.registry.holds
        cloud.busy.set()


@pytest.mark.parametrize("restart", [False, True])
@virtual_time
async def test_an_account_is_taken_away_also_if_that_fails_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        await cloud.apply(a_pool(1))
        await cloud.converged(1)
        (name,) = cloud.there()
        tries: list[str] = []

        async def dismiss(self: Cloud, name: str) -> None:
            tries.append(name)
            if len(tries) < 3:
                raise ServerError("the server cannot be told now")
            self.dismissed.append(name)

        monkeypatch.setattr(Cloud, "dismiss", dismiss)
        await cloud.down()
        await cloud.until(lambda: tries)
        if restart:
            await cloud.dispatcher.close()
            await cloud.dispatch()
        await cloud.until(lambda: cloud.dismissed == [name])


# -- what is kept


@virtual_time
async def test_where_no_machine_can_join_ever_fewer_are_ordered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_cloud(tmp_path) as cloud:
        vendor = await cloud.vendor("cheap", 0.1)
        await cloud.vendor("dear", 0.2)
        tries: list[str] = []

        async def invite(self: Cloud, machine: Machine, spec: Any) -> str:
            tries.append(machine.name)
            raise OSError("the desk is closed")

        monkeypatch.setattr(Cloud, "invite", invite)
        await cloud.apply(a_pool(1))
        await asyncio.sleep(900)
        assert 3 < len(tries) < 20 and not vendor.asked


@virtual_time
async def test_machines_of_long_ago_are_forgotten(tmp_path: Path) -> None:
    async with a_cloud(tmp_path) as cloud:
        await cloud.vendor("cheap", 0.1)
        dispatcher = cloud.dispatcher
        assert dispatcher.keeper is not None and dispatcher.fleet is not None
        now, day = cloud.wall, 86_400_000
        one = Machine(
            name="", pool="web", state=State.NEVER, since=0, vendor="cheap", region="eu",
            type="small", price=0.1, currency="EUR", created=0, expires=0,
        )  # fmt: skip
        told = {
            "never-old": replace(one, since=now - 2 * day),
            "never-new": replace(one, since=now),
            "gone-old": replace(one, state=State.GONE, since=now - 500 * day),
            "gone-new": replace(one, state=State.GONE, since=now - 100 * day),
        }
        for name, machine in told.items():
            await dispatcher.keeper.store.write(
                Keep(record.of_machine(replace(machine, name=name)))
            )
        dispatcher.fleet.books._learned = False
        await dispatcher.fleet.books.refresh(doubtful=True)
        await asyncio.sleep(fleet.TIDY + 5)
        kept = await dispatcher.keeper.store.versions(record.LEDGER)
        assert sorted(kept) == ["gone-new", "never-new"] == sorted(dispatcher.fleet.books.ledger)
