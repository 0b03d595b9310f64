"""``spinal offers``: what all vendors rent, the cheapest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from spinal.protocols import Json

from .common import (
    CONTEXT,
    client,
    folded,
    json_option,
    option_of,
    plain,
    print_json,
    run,
    say,
    show_home,
    table,
)
from .jobview import span
from .pool import money, passed_over

Row = Mapping[str, Any]

#: Bytes that are too few for anything: the unit was forgotten.
LEAST = 1024**2


def _read_size(text: str) -> int:
    from spinal.agents import document

    try:
        found = document.size(text)
    except ValueError as error:
        raise ValueError(f"{error}: {document.SIZE['errorMessage']}") from error
    if 0 < found < LEAST:
        raise ValueError(f"'{text}' is {found} bytes: write a unit, such as {text}G")
    return found


_size = option_of(_read_size)


@click.command(context_settings=CONTEXT)
@click.option("--cpu", type=click.FloatRange(0), default=1.0, help="Processors at least.")
@click.option("--ram", callback=_size, default="1G", metavar="8G", help="Memory at least.")
@click.option("--disk", callback=_size, default="0", metavar="20G", help="Disk at least.")
@click.option("--arch", type=click.Choice(["any", "x86_64", "arm64"]), default="any")
@click.option(
    "--region", multiple=True, metavar="R", help="Only this region or area (eu, us, ...)."
)
@click.option("--count", type=click.IntRange(1), default=1, help="For so many machines.")
@click.option("--refresh", is_flag=True, help="Ask the vendors anew, whatever was known.")
@click.option("--explain", is_flag=True, help="Show as well what was passed over, and why.")
@json_option
@show_home
def offers(
    cpu: float,
    ram: int,
    disk: int,
    arch: str,
    region: Sequence[str],
    count: int,
    refresh: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """List what all vendors rent that is large enough, the cheapest first. Nothing is rented.

    Prices are of an hour, in the currency of the home. A price that is not known is never taken
    for a low one: such an offer is passed over.

    With --json: a list of {"rank", "vendor", "region", "type", "price", "currency", "source",
    "age", ...}; with --explain, an object with that list as "offers", and "rejected".

    \b
    spinal offers --cpu 4 --ram 8G --region eu --count 3 --explain
    """

    async def work() -> Row:
        async with client() as bus:
            found: Row = await bus.ask_dispatcher(
                "/spinal/offers",
                cpu=cpu,
                ram=ram,
                disk=disk,
                arch=arch,
                region=list(region),
                count=count,
                refresh=refresh,
            )
            return found

    row = run(work())
    if as_json:
        value: Json = plain(dict(row) if explain else row["offers"])
        print_json(value)
        return
    table(
        [_cells(one) for one in row["offers"]],
        ("rank", "vendor", "region", "type", "cpu", "ram", "an hour", "source", "age", "cap"),
        row.get("nearest") or "no vendor offers that: `spinal provider list` shows who is asked",
    )
    if row["offers"] and count > 1:
        cheapest = row["offers"][0]
        whole = money(cheapest["price"] * count, cheapest["currency"])
        say(f"{count} of the cheapest: {whole} an hour, if that many are to be had")
    for vendor, why in row["errors"].items():
        say(f"{vendor}: {why}")
    if explain:
        click.echo()
        for line in passed_over(row["rejected"]):
            click.echo(folded(f"passed over: {line}", 2))


def _cells(one: Row) -> tuple[str, ...]:
    stale = " (old)" if one.get("stale") else ""
    return (
        str(one["rank"]),
        one["vendor"],
        one["region"],
        one["type"],
        f"{one['cpu']:g}",
        f"{one['ram'] / 1024**3:.4g}G",
        money(one["price"], one["currency"]),
        one["source"],
        span(one["age"]) + stale,
        "" if one.get("cap") is None else str(one["cap"]),
    )
