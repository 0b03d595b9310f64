"""What a vendor of our own making, which can be told to be slow, shows of the logic of one account."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from libcloud.common import exceptions

from spinal.agents.provider.desk import Desk, Failed
from spinal.agents.provider.machine import Machine
from spinal.agents.provider.offer import Offer
from spinal.agents.provider.rentals import Rentals, enough
from spinal.agents.provider.settings import Account
from spinal.agents.provider.vendors import Form
from spinal.agents.provider.vendors.vendor import Order, Size, Vendor

#: Untyped in libcloud.
BaseHTTPError: Any = exceptions.BaseHTTPError

ORDER = Order(name="web-1", type="small", region="here", image="debian-12")


@dataclass
class Site:
    """What all threads' adapters see."""

    machines: list[Machine] = field(default_factory=list[Machine])
    #: What is raised next by an operation.
    errors: dict[str, list[Exception]] = field(default_factory=dict[str, list[Exception]])
    calls: list[str] = field(default_factory=list[str])
    threads: dict[int, int] = field(default_factory=dict[int, int])
    second_look: Exception | None = None

    def on(self, what: str) -> None:
        self.calls.append(what)
        if self.errors.get(what):
            raise self.errors[what].pop(0)
        if what == "list" and self.second_look and "create" in self.calls:
            raise self.second_look


SITE = Site()


class Ours(Vendor):
    """A vendor in memory."""

    driver_name = "ours"

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        SITE.threads[id(self)] = threading.get_ident()
        self._thread = threading.get_ident()

    def list_regions(self) -> list[str]:
        return ["here"]

    def sizes(self, scope: str) -> Any:
        SITE.on("sizes")
        for name, price in (("small", 0.1), ("large", 0.2), ("free", 0.0), ("odd", None)):
            yield Size(type=name, cpu=1, ram=1024**3, price=price)

    def machines(self, scope: str, name: str = "") -> list[Machine]:
        assert threading.get_ident() == self._thread
        SITE.on("list")
        return list(SITE.machines)

    def arguments(self, order: Order) -> dict[str, Any]:
        SITE.on("arguments")
        return {"image": "7"}

    def create(self, order: Order, arguments: Any) -> Machine:
        made = Machine(
            name=order.name, id=str(len(SITE.machines)), region=order.region, state="starting"
        )
        SITE.machines.append(made)
        SITE.on("create")
        return made

    def destroy(self, machine: Machine) -> None:
        SITE.on("destroy")
        SITE.machines.remove(machine)


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    SITE.__init__()  # type: ignore[misc]

    def make(self: Form, account: Account) -> Vendor:
        return Ours(account)

    monkeypatch.setattr(Form, "make", make)
    return SITE


@asynccontextmanager
async def renting(home_id: str = "", **changed: Any) -> AsyncGenerator[Rentals]:
    settings: dict[str, Any] = {"timeout": 1.0, **changed}
    rentals = Rentals(Account(name="it", driver="ec2", **settings), home_id)
    try:
        yield rentals
    finally:
        await rentals.close()


async def test_nothing_is_begun_without_time_for_the_answer(site: Site) -> None:
    async with renting(timeout=30.0) as rentals:
        found = await rentals.create(ORDER, 20)

    assert (found["outcome"], found["kind"]) == ("refused", "transient")
    assert found["said"] == "not begun: less than 30 s were left for the vendor's answer"
    assert "create" not in site.calls


async def test_there_is_one_create_and_a_look_before_and_after(site: Site) -> None:
    site.errors["create"] = [BaseHTTPError(500, "boom")]
    async with renting() as rentals:
        found = await rentals.create(ORDER, 20)

    assert site.calls == ["list", "arguments", "create", "list"]
    # It was made all the same.
    assert found["outcome"] == "created"
    machine: Any = found["machine"]
    assert machine["said"] == "boom"


async def test_a_look_that_fails_after_a_create_that_failed_leaves_it_unknown(site: Site) -> None:
    site.errors["create"] = [BaseHTTPError(422, "not available in this region")]
    async with renting() as rentals:
        site.second_look = BaseHTTPError(500, "no list")
        found = await rentals.create(ORDER, 20)

    assert (found["outcome"], found["kind"]) == ("unknown", "capacity")
    assert site.calls.count("create") == 1


async def test_a_look_that_fails_before_it_leaves_it_unknown_unless_the_name_is_new(
    site: Site,
) -> None:
    site.errors["list"] = [BaseHTTPError(500, "no list")]
    async with renting() as rentals:
        found = await rentals.create(ORDER, 20)

    assert found["outcome"] == "unknown"
    assert "create" not in site.calls


async def test_a_fresh_name_whose_first_look_fails_does_not_exist(site: Site) -> None:
    site.errors["list"] = [BaseHTTPError(401, "no")]
    async with renting() as rentals:
        found = await rentals.create(ORDER, 20, fresh=True)

    assert (found["outcome"], found["kind"], found["code"]) == ("refused", "auth", 401)


async def test_an_image_that_is_not_there_buys_nothing(site: Site) -> None:
    site.errors["arguments"] = [BaseHTTPError(404, "no such image")]
    async with renting() as rentals:
        found = await rentals.create(ORDER, 20)

    assert (found["outcome"], found["kind"]) == ("refused", "invalid")
    assert "create" not in site.calls


async def test_pages_after_the_first_are_of_one_list(site: Site) -> None:
    site.machines = [Machine(name="web-1", id="1", region="here", state="running")]
    async with renting("home") as rentals:
        found = await rentals.machines(also=["web-1"])
        site.machines.clear()
        assert await rentals.machines(also=["web-1"], paging=True) == found != []
        assert await rentals.machines(also=["web-2"], paging=True) == []
        assert await rentals.machines(also=["web-1"]) == []


async def test_all_machines_of_a_name_are_destroyed(site: Site) -> None:
    site.machines = [
        Machine(name="web-1", id=str(number), region="here", state="running") for number in range(3)
    ]
    async with renting() as rentals:
        assert (await rentals.destroy("web-1"))["outcome"] == "ending"

    assert site.machines == []


async def test_one_that_went_meanwhile_is_no_failure(site: Site) -> None:
    site.machines = [Machine(name="web-1", id="1", region="here", state="running")]
    site.errors["destroy"] = [BaseHTTPError(404, "not found")]
    async with renting() as rentals:
        assert (await rentals.destroy("web-1"))["outcome"] == "ending"


async def test_waiting_ends_with_what_cannot_run_any_more(site: Site) -> None:
    site.machines = [Machine(name="web-1", id="1", region="here", state="error", said="no host")]
    site.errors["list"] = [BaseHTTPError(500, "a hiccup")]
    async with renting() as rentals:
        found = await rentals.wait("web-1", 20)
        assert found is not None and found.said == "no host"
        assert await rentals.wait("web-2", 0.1) is None
        site.errors["list"] = [BaseHTTPError(401, "no")]
        with pytest.raises(Failed, match="auth: no"):
            await rentals.wait("web-1", 20)


async def test_offers_are_kept_for_a_while_and_those_without_a_price_are_counted(
    site: Site,
) -> None:
    async with renting(prices={"odd": 0.3}) as rentals:
        found = await rentals.offers()
        await rentals.offers()
        assert site.calls == ["sizes"]
        await rentals.offers(refresh=True)

    assert [(one.type, one.source) for one in found.offers] == [
        ("small", "api"),
        ("large", "api"),
        ("odd", "config"),
    ]
    assert found.dropped == {"no price": 1}
    assert site.calls == ["sizes", "sizes"]


async def test_each_thread_has_an_adapter_of_its_own(site: Site) -> None:
    async with renting() as rentals:
        await asyncio.gather(*(rentals.machines() for _ in range(40)))

    assert len(site.threads) == len(set(site.threads.values()))


async def test_a_vendor_that_hangs_does_not_hold_the_loop(site: Site) -> None:
    desk = Desk(Account(name="it", driver="ec2"))
    begun, release = threading.Event(), threading.Event()

    def hang(_: Vendor) -> bool:
        begun.set()
        return release.wait(30)

    try:
        hanging = asyncio.create_task(desk.call(hang))
        assert await asyncio.to_thread(begun.wait, 30)
        assert await desk.call(lambda vendor: vendor.known_regions()) == ["here"]
        assert not hanging.done()
    finally:
        release.set()
        desk.close()
    assert await hanging


def offer(**changed: Any) -> Offer:
    usual: dict[str, Any] = {
        "vendor": "it",
        "region": "fra1",
        "area": "eu",
        "type": "small",
        "cpu": 2.0,
        "ram": 4 * 1024**3,
        "disk": 0,
        "price": 0.1,
        "currency": "EUR",
        "source": "api",
        "as_of": 1,
    }
    return Offer(**{**usual, **changed})


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({}, None),
        ({"region": "nyc3", "area": "us"}, "other region"),
        ({"arch": "arm64"}, "other processor"),
        ({"cpu": 1.0}, "too few processors"),
        ({"ram": 1}, "too little memory"),
        ({"disk": 1}, "too small a disk"),
        ({"disk": 20 * 1024**3}, None),
    ],
)
def test_an_offer_is_enough_or_there_is_a_reason(changed: Any, reason: str | None) -> None:
    reasons = Counter[str]()
    found = enough(
        [offer(**changed)],
        reasons,
        cpu=2,
        ram=4 * 1024**3,
        disk=10 * 1024**3,
        arch="x86_64",
        regions=["eu"],
    )

    assert reasons == ({} if reason is None else {reason: 1})
    assert len(found) == (reason is None)


async def test_beside_those_that_are_asked_for_a_list_has_all_of_the_home(site: Site) -> None:
    """Else a machine that nobody remembers is found only where there is no other."""
    tags = {"ours": {"spinal": "h0me"}, "theirs": {"spinal": "other"}, "bare": dict[str, str]()}
    for name, kept in tags.items():
        site.machines.append(Machine(name=name, id=name, region="here", state="running", tags=kept))
    async with renting("h0me") as rentals:

        async def names(*only: str, also: tuple[str, ...] = ()) -> list[str]:
            return sorted(one.name for one in await rentals.machines(only, also))

        assert await names() == ["ours"]
        assert await names(also=("bare", "theirs")) == ["bare", "ours"]
        assert await names("bare") == ["bare"]
