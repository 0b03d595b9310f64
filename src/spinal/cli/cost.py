"""``spinal cost``: what the machines cost, and what they will."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from spinal.protocols import duration

from .common import (
    CONTEXT,
    client,
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
from .pool import money

Row = Mapping[str, Any]

BY: Final = ("pool", "vendor", "label", "region", "type", "machine")


def _read_by(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in BY:
            raise ValueError(f"{word!r} is none of {', '.join(BY)}")
    return words


@click.command(context_settings=CONTEXT)
@click.option(
    "--by",
    callback=option_of(_read_by),
    default="pool",
    metavar="WORDS",
    help=f"Of {', '.join(BY)}.",
)
@click.option(
    "--since",
    callback=option_of(duration.parse),
    default="7d",
    metavar="7d",
    help="How far back.",
)
@json_option
@show_home
def cost(by: list[str], since: float, as_json: bool) -> None:
    """Say what rented machines cost, and what they will if they run on as they do.

    Reckoned from our records: by the second, and at least a minute, from when a machine came to be
    until it was gone, at the price of its offer. What vendors charge besides (traffic, images,
    started hours) is not in it.

    \b
    spinal cost --by vendor,label,pool --since 7d
    """

    async def work() -> Row:
        async with client() as bus:
            found: Row = await bus.ask_dispatcher("/spinal/cost", by=by, since=since)
            return found

    row = run(work())
    if as_json:
        print_json(plain(dict(row)))
        return
    currency = row["currency"]
    rows = [
        (
            *one["key"],
            span(one["hours"] * 3600),
            money(one["spent"], currency),
            money(one["hourly"], currency),
        )
        for one in row["rows"]
    ]
    table(rows, (*by, "time", "cost", "an hour now"), "nothing was rented in that time")
    say(
        f"in all {money(row['spent'], currency)}; this month so far "
        f"{money(row['month'], currency)}, by its end {money(row['forecast'], currency)}"
    )
    for one in row["budgets"]:
        limit = one["per_month"]
        if limit is not None:
            name = one["label"] or "all"
            say(f"budget of {name}: {money(one['spent'], currency)} of {money(limit, currency)}")
