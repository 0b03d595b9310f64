"""``spinal ops``: what can be asked for."""

from __future__ import annotations

from typing import Any

import click

from spinal.bus import arguments

from .common import CONTEXT, client, json_option, print_json, run, show_home, table


@click.command(context_settings=CONTEXT)
@json_option
@show_home
def ops(as_json: bool) -> None:
    """List the operations and what they take.

    With --json each has its "op" (path), "summary", "effects" and the JSON schemas of its
    arguments ("args") and result.
    """
    found = run(_fetch())
    if as_json:
        print_json(found)
        return
    table(
        [_row(one) for one in found],
        ("operation", "arguments", "effects", "summary"),
        "no operations yet: start an agent with `spinal agent run FILE.py`",
    )


async def _fetch() -> list[dict[str, Any]]:
    async with client() as bus:
        return await bus.ops()


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    takes = " ".join(arguments.usages(one["args"]))
    return one["op"], takes, one["effects"], one["summary"]
