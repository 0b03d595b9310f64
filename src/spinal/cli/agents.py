"""``spinal agents``: who is on the bus."""

from __future__ import annotations

from typing import Any

import click

from .common import CONTEXT, client, json_option, print_json, run, show_home, table


@click.command(context_settings=CONTEXT)
@json_option
@show_home
def agents(as_json: bool) -> None:
    """List the agents and how busy they are."""
    found = run(_fetch())
    if as_json:
        print_json(found)
        return
    table(
        [_row(one) for one in found],
        ("agent", "state", "busy", "load", "cost/h", "operations"),
        "no agents yet: start one with `spinal agent run FILE.py`",
    )


async def _fetch() -> list[dict[str, Any]]:
    async with client() as bus:
        return await bus.agents()


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        one["agent"],
        one["state"],
        f"{one['busy']}/{one['slots']}",
        f"{one['load']:.2f}",
        "-" if one["cost"] is None else f"{one['cost']:g}",
        " ".join(one["ops"]),
    )
