"""``spinal provider``: the vendors' accounts of a home, and their agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .agent import serve
from .common import (
    CONTEXT,
    Ended,
    Listing,
    client,
    folded,
    home,
    home_path,
    json_option,
    print_json,
    run,
    say,
    show_home,
    start_logging,
    table,
)

if TYPE_CHECKING:
    from spinal.agents.agent import Agent
    from spinal.agents.provider.settings import Account, Providers
    from spinal.agents.provider.vendors.vendor import Vendor

account_argument = click.argument("account", required=False)

#: Seconds that the bus may take to say which agents are on it.
BUS: Final = 5.0


@click.group(cls=Listing, context_settings=CONTEXT)
@show_home
def provider() -> None:
    """Rent machines of vendors: the accounts of providers.yaml in the home; alone it lists them.

    Without that file there is one account, local, whose machines are processes here.
    """


def _folder() -> Path:
    from spinal.bus.home import Home

    return Home.locate(home_path())


def _settings() -> Providers:
    from spinal.agents.provider.settings import Providers

    return Providers.find(_folder())


@provider.command(name="list", context_settings=CONTEXT)
@json_option
@show_home
def list_(as_json: bool) -> None:
    """List the accounts, and whether their agents are on the bus.

    With --json: a list of {"account", "driver", "regions", "currency", "limit", "agent", "on"}; "on"
    is null if the bus cannot be reached.
    """
    found = _settings()
    on = run(_on_the_bus())
    rows: list[dict[str, Any]] = [
        {
            "account": one.name,
            "driver": one.driver,
            "regions": list(one.regions),
            "currency": one.currency,
            "limit": one.limit,
            "agent": one.agent,
            "on": None if on is None else one.agent in on,
        }
        for one in found.accounts.values()
    ]
    if as_json:
        print_json(rows)
        return
    words = {True: "on the bus", False: "not running", None: "bus not reached"}
    table(
        [
            (
                one["account"],
                one["driver"],
                " ".join(one["regions"]) or "all",
                one["currency"],
                "" if one["limit"] is None else str(one["limit"]),
                words[one["on"]],
            )
            for one in rows
        ],
        ("account", "driver", "regions", "currency", "limit", "agent"),
        "no accounts",
    )


async def _on_the_bus() -> set[str] | None:
    """Give the names of the agents that are on the bus; none if it is not reached."""
    import asyncio

    from spinal.protocols import SpinalError
    from spinal.protocols import address as addresses

    try:
        async with asyncio.timeout(BUS):
            async with client() as bus:
                return {addresses.local(one["agent"]) for one in await bus.agents()}
    except (SpinalError, TimeoutError, OSError):
        return None


# -- check


@dataclass
class Report:
    """What was found of one account."""

    account: str
    driver: str
    #: What is wrong, and what to do.
    mistakes: list[str] = field(default_factory=list[str])
    #: What is good to know.
    notes: list[str] = field(default_factory=list[str])
    types: int | None = None
    offers: int | None = None
    images: int | None = None
    machines: int | None = None

    def row(self) -> dict[str, Any]:
        """Give it as JSON."""
        return {**vars(self), "ok": not self.mistakes}

    def line(self) -> str:
        """Say it in one line, if all is well."""
        counts = ", ".join(
            f"{count} {what}"
            for what, count in (
                ("types", self.types),
                ("priced offers", self.offers),
                ("images", self.images),
                ("machines", self.machines),
            )
            if count is not None
        )
        return f"{self.account}: {self.driver}: well: {counts}"

    def say(self) -> None:
        """Say it to people."""
        if not self.mistakes:
            click.echo(folded(self.line(), 2))
        for text in self.mistakes:
            say(folded(f"{self.account}: {self.driver}: {text}", 2))
        for text in self.notes:
            say(folded(f"{self.account}: note: {text}", 2))


@provider.command(context_settings=CONTEXT)
@account_argument
@json_option
@show_home
def check(account: str | None, as_json: bool) -> None:
    """Check providers.yaml, and log in to each vendor, or that of ACCOUNT; buys and changes nothing.

    Exit code 2 if the file has mistakes, 1 if an account cannot be used.

    With --json: {"mistakes": [{"file", "line", "key", "text"}], "accounts": [{"account", "driver",
    "ok", "mistakes", "notes", "types", "offers", "images", "machines"}]}.
    """
    from spinal.agents.document import BadDocument

    try:
        found = _settings()
        chosen = list(found.accounts.values()) if account is None else [found.account(account)]
    except BadDocument as exc:
        for one in exc.mistakes:
            say(folded(str(one), 2))
        if as_json:
            mistakes = [
                {"file": one.file, "line": one.line, "key": one.key, "text": one.text}
                for one in exc.mistakes
            ]
            print_json({"mistakes": mistakes, "accounts": []})
        raise Ended(2) from exc
    reports = run(_examine(chosen))
    if as_json:
        print_json({"mistakes": [], "accounts": [one.row() for one in reports]})
    else:
        for report in reports:
            report.say()
    if any(one.mistakes for one in reports):
        raise Ended(1)


async def _examine(accounts: list[Account]) -> list[Report]:
    import asyncio

    return list(await asyncio.gather(*map(_one, accounts)))


async def _one(account: Account) -> Report:
    """Look whether an account can be used, as far as that does no harm."""
    from spinal.agents.provider.desk import Desk, Failed
    from spinal.agents.provider.fault import SKEW
    from spinal.agents.provider.rentals import Rentals
    from spinal.agents.provider.vendors import FORMS

    report = Report(account.name, account.driver)
    for key, secret in account.secrets():
        if missing := secret.missing():
            report.mistakes.append(f"{key}: {missing}")
    if report.mistakes:
        return report
    if account.driver not in FORMS:
        report.notes.append(f"driver {account.driver} is used as configured, and is not tested")
    desk = Desk(account)
    rentals = Rentals(account, desk=desk)
    try:
        report.mistakes += await desk.call(_strange_regions)
        if report.mistakes:
            return report
        found = await rentals.offers()
        report.mistakes += [_about(one) for one in found.errors]
        report.offers = len(found.offers)
        unpriced = found.dropped.get("no price", 0)
        report.types = len({one.type for one in found.offers}) + unpriced
        if unpriced:
            report.notes.append(
                f"{unpriced} types have no price, and are never chosen: give them one in 'prices'"
            )
        seeds = [one.as_of for one in found.offers if one.source == "seed"]
        if seeds:
            report.notes.append(f"prices are from a table of {_day(min(seeds))}, not from the API")
        report.machines, skew = await desk.call(_count_machines)
        if abs(skew) > SKEW:
            way = "ahead of" if skew > 0 else "behind"
            report.notes.append(
                f"the clock of this machine is {abs(skew):.0f} s {way} the vendor's"
            )
        if account.driver != "ec2":  # It has thousands.
            report.images = await desk.call(_count_images)
    except Failed as exc:
        report.mistakes.append(str(exc))
    finally:
        await rentals.close()
    report.mistakes = list(dict.fromkeys(report.mistakes))
    return report


def _about(error: Mapping[str, Any]) -> str:
    where = f"{error['region']}: " if error["region"] else ""
    return f"{where}{error['kind']}: {error['said']}"


def _strange_regions(vendor: Vendor) -> list[str]:
    """Name the account's regions that its vendor does not have, and what they may be instead."""
    import difflib

    given = vendor.account.regions
    known = [str(one) for one in vendor.known_regions()]
    found: list[str] = []
    for region in given:
        if region in known or region.lower() in map(str.lower, known):
            continue
        near = difflib.get_close_matches(region, known, 3, 0.4)
        about = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:20])}"
        found.append(f"region {region!r} is not known to the vendor: {about}")
    return found


def _count_machines(vendor: Vendor) -> tuple[int, float]:
    """Count the machines, and say by how many seconds our clock is ahead of the vendor's."""
    from spinal.agents.provider import wire

    count = vendor.quota().machines
    answer = wire.last()
    return count, 0.0 if answer is None or answer.skew is None else answer.skew


def _count_images(vendor: Vendor) -> int:
    scope = vendor.scopes()[0]
    return len(list(vendor.driver(scope).list_images()))


def _day(milliseconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d")


# -- run, init


@provider.command(name="run", context_settings=CONTEXT)
@click.argument("account")
@click.option("--supervisor", "descriptor", type=int, hidden=True)
@json_option
@show_home
def run_(account: str, descriptor: int | None, as_json: bool) -> None:
    """Run the agent of ACCOUNT until Ctrl-C or SIGTERM; one at a time.

    The first signal lets what runs end, so that no machine is bought that nobody hears of.

    With --json: {"event": "ready", "agent", "slots", "ops"} once it is on the bus.
    """
    from spinal.agents.provider.agent import assemble

    start_logging("info")
    place = home()
    agent = assemble(_settings().account(account), place.id)
    # The dispatcher finds it by this name, and two of them could buy one machine twice.
    if descriptor is None:
        serve(agent, agent.declared, None, (), (), None, as_json)
        return
    from spinal.bus.loops import run as run_fast

    run_fast(_supervised(agent, place.path, descriptor))


async def _supervised(agent: Agent, home: Path, descriptor: int) -> None:
    """Run an agent for ``spinal up``."""
    import asyncio
    import os
    import signal

    from spinal.agents import runner
    from spinal.dispatcher.supervised import supervised
    from spinal.protocols import SpinalError

    gone = asyncio.Event()

    async def end_with_it() -> None:
        await gone.wait()
        os.kill(os.getpid(), signal.SIGTERM)

    async with supervised(descriptor, gone) as supervisor:
        watching = asyncio.create_task(end_with_it(), name="supervisor")
        try:
            await runner.serve(
                agent,
                log_in=lambda one: runner.log_in(one, home, name=one.declared),
                ready=lambda lives: supervisor.ready(),
            )
        except SpinalError as error:
            supervisor.failed(error)
            raise
        finally:
            watching.cancel()


@provider.command(context_settings=CONTEXT)
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@json_option
@show_home
def init(force: bool, as_json: bool) -> None:
    """Write a providers.yaml with comments into the home, to be filled in.

    With --json: {"file"}.
    """
    from spinal.agents.provider.settings import FILE
    from spinal.bus.server.files import write

    path = home().path / FILE
    if path.exists() and not force:
        raise click.UsageError(f"{path} is there already: edit it, or add --force")
    write(path, SAMPLE.encode(), 0o600)
    if as_json:
        print_json({"file": str(path)})
    else:
        say(f"wrote {path}: fill it in, then `spinal provider check`")


#: What ``init`` writes; as it stands it has the one account that is there without it.
SAMPLE: Final = """\
# Where machines can be rented; see docs/providers.md.  Check it with: spinal provider check

# All sums are counted in this currency; other currencies need a rate.
currency: EUR
rates: {USD: 0.92}              # what one of it costs in `currency`

# By which machines elsewhere reach this home; without it, the home's own public host.
# bus: {host: bus.example.org}

# What may be spent in a calendar month at most, in `currency`; never more, whatever is waiting.
# budgets:
#   - {per_month: 500}                # all together
#   - {label: shop, per_month: 200}   # what is booked under this label or pool

# How long things may take: docs/providers.md.
# pace: {order: 90s, look: 4s, rest: 60s, settle: 45s, unseen: 3, away: 90s, pauses: 1}

accounts:
  # Machines that are processes on this machine.  Their prices are yours to choose.
  local:
    driver: local
    limit: 8
    sizes:
      small: {cpu: 1, ram: 1G, price: 0.01}
      medium: {cpu: 2, ram: 2G, price: 0.02}
      large: {cpu: 4, ram: 8G, price: 0.05}

  # Secrets stand here by reference: {env: NAME}, {file: PATH} or {credential: NAME}.
  # ocean: {driver: digitalocean, token: {file: /etc/spinal/ocean}, regions: [fra1, ams3], limit: 10}
  # linode: {driver: linode, token: {env: LINODE_TOKEN}, regions: [eu-central]}
  # vultr: {driver: vultr, token: {env: VULTR_KEY}, regions: [ams, fra]}
  # aws:
  #   driver: ec2
  #   key: AKIA...
  #   secret: {env: AWS_SECRET_ACCESS_KEY}
  #   regions: [eu-west-1, eu-central-1]
  #   limit: 20
  # cloud:
  #   driver: openstack
  #   endpoint: https://keystone.example.org:5000
  #   user: spinal
  #   password: {env: OS_PASSWORD}
  #   tenant: project
  #   regions: [RegionOne]
  #   networks: [private]
  #   currency: EUR
  #   prices: {m1.small: 0.02, m1.medium: 0.04}
"""
