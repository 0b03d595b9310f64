"""``spinal sweep``: machines that nobody remembers, and records without a machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .common import (
    CONTEXT,
    Ended,
    client,
    json_option,
    plain,
    print_json,
    run,
    say,
    show_home,
    table,
)

Row = Mapping[str, Any]


@click.command(context_settings=CONTEXT)
@click.option("--yes", is_flag=True, help="Delete the machines, and close the records.")
@json_option
@show_home
def sweep(yes: bool, as_json: bool) -> None:
    """Find machines with our tag that no record owns, and records whose machine is gone.

    Every vendor is asked now. Nothing is changed without --yes; with it, exactly what was found
    is deleted and closed. Exit code 1 if a vendor could not be asked, or something could not be
    deleted.

    With --json: {"orphans", "missing", "deleted", "errors"}.
    """

    async def work() -> Row:
        async with client() as bus:
            found: Row = await bus.ask_dispatcher("/spinal/sweep")
            names = [one["name"] for one in (*found["orphans"], *found["missing"])]
            if yes and names:
                return {
                    **await bus.ask_dispatcher("/spinal/sweep", delete=True, names=names),
                    "errors": found["errors"],
                }
            return found

    row = run(work())
    if as_json:
        print_json(plain(dict(row)))
    else:
        _tell(row, yes)
    if row["errors"] or any(outcome == "failed" for outcome in row["deleted"].values()):
        raise Ended(1)


def _tell(row: Row, yes: bool) -> None:
    deleted: Mapping[str, str] = row["deleted"]
    rows = [
        ("orphan", one["name"], one["vendor"], one["region"], one["type"], _end(one, deleted))
        for one in row["orphans"]
    ]
    rows += [
        ("missing", one["name"], one["vendor"], "", "", _end(one, deleted))
        for one in row["missing"]
    ]
    empty = "nothing to sweep: every machine has a record, and every record its machine"
    table(rows, ("what", "machine", "vendor", "region", "type", "now"), empty)
    for vendor, why in row["errors"].items():
        say(f"{vendor} could not be asked: {why}")
    if rows and not yes:
        say("`spinal sweep --yes` deletes the orphans and closes the records")


def _end(one: Row, deleted: Mapping[str, str]) -> str:
    return deleted.get(one["name"], "")
