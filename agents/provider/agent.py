"""The agent of one account at a vendor: its operations on the bus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from spinal.agents.agent import Agent
from spinal.agents.errors import AgentError, EndWith, Refused
from spinal.agents.job import Job
from spinal.agents.life import Life
from spinal.agents.results import fitting
from spinal.bus.home import OWNER, Home
from spinal.protocols import Json, Problem
from spinal.protocols import address as addresses

from .desk import Desk
from .machine import HOME
from .rentals import Rentals, enough
from .settings import Account, Providers
from .vendors.vendor import Order

#: Calls at once; most of them wait for the vendor.
SLOTS: Final = 32

#: Seconds that a create may take: to look, to ask, and to look again.
CREATE: Final = "5m"

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Bytes = Annotated[int, msgspec.Meta(ge=0)]
Number = Annotated[float, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
Arch = Literal["any", "x86_64", "arm64"]


def make(config: Path | None = None, account: str = "local", *, home_id: str = "") -> Agent:
    """Make the agent of an account.

    Args:
        config: path of ``providers.yaml``; without one that of the home, which may have none.
        account: its name there.
        home_id: of the home, whose machines it shows; by that tag they are told from others.

    Raises:
        BadDocument: the file has mistakes.
        AgentError: there is no such file, or no such account in it.
    """
    found = Providers.find(Home.locate()) if config is None else Providers.load(config)
    return assemble(found.account(account), home_id)


def assemble(account: Account, home_id: str = "", desk: Desk | None = None) -> Agent:
    """Make an agent of an account's settings."""
    lives: list[tuple[Life, Rentals]] = []

    @asynccontextmanager
    async def lifespan(life: Life) -> AsyncGenerator[None]:
        rentals = Rentals(account, home_id, desk)
        lives.append((life, rentals))
        try:
            yield
        finally:
            lives.remove((life, rentals))
            await rentals.close()

    def alive() -> tuple[Life, Rentals]:
        if not lives:
            raise AgentError("the agent is not on the bus")
        return lives[0]

    def rentals() -> Rentals:
        return alive()[1]

    def for_caller(job: Job) -> Rentals:
        """Give what rents and returns, to the owner of the home and its dispatchers alone.

        Else every machine that joined could rent more.

        Raises:
            EndWith: the caller is somebody else.
        """
        life, found = alive()
        owner = f"{OWNER}@{addresses.domain(life.address)}"
        allowed = {owner, *map(addresses.bare, life.session.dispatchers)}
        if addresses.bare(job.caller) not in allowed:
            text = f"only {owner} and the dispatcher rent and return machines"
            raise EndWith(Problem("not-allowed", text))
        return found

    agent = Agent(
        account.agent,
        place={"vendor": f"/{account.name}"},
        tags=("provider",),
        slots=SLOTS,
        lifespan=lifespan,
    )

    @agent.op("/provider/offers", effects="reads", timeout="3m")
    async def offers(
        cpu: Number = 0.0,
        ram: Bytes = 0,
        disk: Bytes = 0,
        arch: Arch = "any",
        regions: list[str] = [],  # noqa: B006 - read for its schema, and never changed
        refresh: bool = False,
        most: Count = 100,
        largest: bool = False,
    ) -> dict[str, Any]:
        """Tell what kinds of machine the vendor rents and for how much, cheapest first.

        Learned from the vendor once in ten minutes; `as_of` of each says when its price was
        learned. What has no price is not offered, and counted in `dropped` with the other reasons.
        Where the vendor did not answer, `errors` says why, and the offers there are the last known.

        Args:
            cpu: Processors, at least.
            ram: Bytes of memory, at least.
            disk: Bytes of disk, at least.
            arch: Kind of processor.
            regions: Regions as the vendor writes them, or areas such as eu; all without.
            refresh: Ask the vendor now.
            most: How many.
            largest: The largest first, and not the cheapest.
        """
        found = await rentals().offers(refresh=refresh)
        dropped = Counter(found.dropped)
        fits = enough(
            found.offers, dropped, cpu=cpu, ram=ram, disk=disk, arch=arch, regions=regions
        )
        if largest:
            fits = sorted(fits, key=lambda offer: (-offer.cpu, -offer.ram, offer.price))
        rows, _ = fitting((offer.row() for offer in fits), most, ROOM)
        if len(fits) > len(rows):
            dropped["after those shown"] += len(fits) - len(rows)
        return {
            "offers": rows,
            "dropped": dict(dropped),
            "errors": list(found.errors),
        }

    @agent.op("/provider/prices", effects="reads", timeout="3m")
    async def prices(
        regions: list[str] = [],  # noqa: B006
        refresh: bool = False,
    ) -> dict[str, Any]:
        """Tell the price of an hour of each type in each region, where it is from and how old it is.

        Args:
            regions: Regions or areas; all without.
            refresh: Ask the vendor now.
        """
        found = await rentals().offers(refresh=refresh)
        now = int(time.time() * 1000)
        table: dict[str, dict[str, Any]] = {}
        sources: dict[str, dict[str, Any]] = {}
        count = 0
        for offer in enough(found.offers, Counter(), regions=regions):
            count += 1
            table.setdefault(offer.region, {})[offer.type] = offer.price
            known = sources.setdefault(offer.source, {"as_of": offer.as_of, "count": 0})
            known["count"] += 1
            known["as_of"] = min(known["as_of"], offer.as_of)
        for known in sources.values():
            known["age"] = max(0, now - known["as_of"]) // 1000
        return {
            "currency": account.currency,
            "prices": _bounded(table),
            "count": count,
            "more": count > MAX_PRICES,
            "sources": sources,
            "no_price": found.dropped.get("no price", 0),
            "errors": list(found.errors),
        }

    @agent.op("/provider/create", effects="spends", safe=False, timeout=CREATE)
    async def create(
        job: Job,
        name: Name,
        type: Text,
        region: Text,
        image: Text,
        user_data: Annotated[str, msgspec.Meta(max_length=64 * 1024)] = "",
        tags: dict[str, str] = {},  # noqa: B006
        ssh_key: str | None = None,
        disk: Bytes = 0,
        fresh: bool = False,
    ) -> dict[str, Any]:
        """Rent a machine, and answer as soon as the vendor has accepted it; it does not run yet.

        One name makes one machine: if there is one of this name, that is the answer. The vendor is
        asked once, whatever comes of it. `outcome` is `created`, with the `machine`; `refused`: it
        does not exist; or `unknown`: it may exist, look for it with /provider/list. The last two
        have `kind` (capacity, quota, rate, auth, invalid, transient, unknown), the vendor's words
        as `said`, its `code`, and `after`, the seconds that it wants to be left alone.

        Args:
            name: Small letters, digits and '-'; unique among all machines that ever were.
            type: As an offer has it.
            region: As an offer has it.
            image: Such as debian-12, or what the vendor calls it.
            user_data: Script that cloud-init runs at the first start.
            tags: Words to find it by; `spinal` is the home.
            ssh_key: Key that may log in, as the vendor wants it named.
            disk: Bytes of disk at least, where the vendor rents disks by themselves.
            fresh: Nobody has asked for this name before, so that it cannot exist yet.
        """
        order = Order(
            name=name,
            type=type,
            region=region,
            image=image,
            user_data=user_data,
            tags={HOME: home_id, **tags} if home_id else tags,
            ssh_key=ssh_key or "",
            disk=disk,
        )
        return await for_caller(job).create(order, job.remaining, fresh=fresh)

    @agent.op("/provider/list", effects="reads", timeout="3m")
    async def list_(
        names: list[str] = [],  # noqa: B006
        also: list[str] = [],  # noqa: B006
        after: str = "",
    ) -> dict[str, Any]:
        """List the machines of this home at the vendor, or those of these names, by name.

        Fails if one of the regions does not answer, as one that is not listed would be taken for
        gone. If `more` is true there are more than one answer has room for: ask on with `after`.

        Args:
            names: Only these, tagged or not.
            also: These as well, tagged or not.
            after: Only those behind this name.
        """
        as_of = int(time.time() * 1000)
        shown = await rentals().machines(names, also, paging=bool(after))
        found = sorted(shown, key=lambda one: (one.name, one.id))
        behind = (one.row() for one in found if one.name > after)
        rows, more = fitting(behind, len(found), ROOM)
        return {"machines": rows, "as_of": as_of, "more": more}

    @agent.op("/provider/wait", effects="reads", timeout="30m")
    async def wait(
        name: Name, seconds: Annotated[float, msgspec.Meta(gt=0, le=1800)] = 300.0
    ) -> dict[str, Any]:
        """Wait until a machine runs, and give it; also once it has failed or the time is over.

        Args:
            name: Its name.
            seconds: How long.
        """
        found = await rentals().wait(name, seconds)
        if found is None:
            raise Refused(f"there is no machine {name!r}")
        return found.row()

    @agent.op("/provider/destroy", effects="deletes", safe=True, timeout="3m")
    async def destroy(job: Job, name: Name) -> dict[str, Any]:
        """Return a machine; one that is not there is `gone`, one that is being deleted `ending`.

        With `outcome` `failed` there are `kind` and the vendor's words as `said`.

        Args:
            name: Its name; if several have it, all of them go.
        """
        return await for_caller(job).destroy(name)

    @agent.op("/provider/freeze", effects="spends", safe=False, timeout="30m")
    async def freeze(job: Job, name: Name, label: Text) -> dict[str, Any]:
        """Keep what is on a machine's disk as an image, which may take a while at the vendor.

        `outcome` is `frozen` with the `image`, `failed`, or `unsupported`. The machine stays.

        Args:
            name: Its name.
            label: Name of the image.
        """
        return await for_caller(job).freeze(name, label)

    @agent.op("/provider/plan", effects="reads", timeout="3m")
    async def plan(
        cpu: Number = 0.0,
        ram: Bytes = 0,
        disk: Bytes = 0,
        arch: Arch = "any",
        regions: list[str] = [],  # noqa: B006
        image: Text = "debian-12",
        count: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1,
    ) -> dict[str, Any]:
        """Tell what this account would rent, with what its driver is called with; buys nothing.

        `rejected` counts what it would not rent, by the reason.

        Args:
            cpu: Processors, at least.
            ram: Bytes of memory, at least.
            disk: Bytes of disk, at least.
            arch: Kind of processor.
            regions: Regions as the vendor writes them, or areas such as eu; all without.
            image: Such as debian-12.
            count: How many machines.
        """
        found = await rentals().offers()
        dropped = Counter(found.dropped)
        fits = enough(
            found.offers, dropped, cpu=cpu, ram=ram, disk=disk, arch=arch, regions=regions
        )
        machines: list[dict[str, Json]] = []
        problems: list[str] = []
        room = count if account.limit is None else min(count, account.limit)
        if fits:
            best = fits[0]
            order = Order(
                name="planned", type=best.type, region=best.region, image=image, disk=disk
            )
            try:
                arguments = await rentals().arguments(order)
            except AgentError as exc:
                problems.append(f"{best.type} in {best.region}: {exc}")
            else:
                machines = [{**best.row(), "arguments": arguments}] * room
        if not fits:
            problems.append(_nearest(found.offers, cpu, ram) or "the vendor offers nothing")
        if room < count:
            problems.append(f"the account may have {account.limit} machines")
        dropped["dearer"] += max(0, len(fits) - 1)
        price = sum(float(one["price"]) for one in machines)
        return {
            "machines": machines,
            "price": price,
            "currency": account.currency,
            "rejected": dict(dropped),
            "problems": problems,
            "errors": list(found.errors),
        }

    @agent.op("/provider/quota", effects="reads", timeout="3m")
    async def quota() -> dict[str, Any]:
        """Tell how many machines the account has, whoever made them, and how many it may have."""
        found = await rentals().quota()
        return {"machines": found.machines, "limit": found.limit, **found.more}

    return agent


#: Bytes that rows may take in an answer; the rest of the 32 KiB is for what stands around them.
ROOM: Final = 28 * 1024


def _nearest(offers: Any, cpu: float, ram: int) -> str:
    """Name the offer that comes nearest to what nothing is enough for."""
    best = max(
        offers,
        key=lambda one: (
            (min(one.cpu / cpu, 1.0) if cpu else 1.0) + (min(one.ram / ram, 1.0) if ram else 1.0)
        ),
        default=None,
    )
    if best is None:
        return ""
    return (
        f"nothing is enough; nearest is {best.type} in {best.region} with {best.cpu:g} processors "
        f"and {best.ram / 1024**3:.1f} GiB"
    )


#: Most prices in one answer.
MAX_PRICES: Final = 1000


def _bounded(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Leave out the dearest where there are too many for one answer."""
    found: dict[str, dict[str, Any]] = {}
    room = MAX_PRICES
    for region, prices in table.items():
        kept = dict(list(prices.items())[: max(0, room)])
        room -= len(kept)
        found[region] = kept
    return found
