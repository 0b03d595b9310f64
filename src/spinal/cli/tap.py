"""``spinal tap``: watching the calls on the bus."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from .common import CONTEXT, client, json_option, print_json, run, say, show_home


@click.command(context_settings=CONTEXT)
@json_option
@show_home
def tap(as_json: bool) -> None:
    """Watch the calls on the bus until Ctrl-C: who asked whom for what, and how it ended.

    Shows no arguments or results. For the owner alone. With --json one object per line.
    """
    run(_watch(as_json))


async def _watch(as_json: bool) -> None:
    async with client() as bus:
        if not as_json:
            say("watching the bus; Ctrl-C stops")
        async for seen in bus.tap():
            if as_json:
                print_json(seen)
            else:
                click.echo(line(seen, datetime.now()))


def line(seen: dict[str, Any], now: datetime) -> str:
    """Write one event of a call for people."""
    words = [f"{now:%H:%M:%S.%f}"[:-3], f"{seen.get('what', ''):9}", seen.get("op", "")]
    if seen.get("caller"):
        words.append(seen["caller"])
    if seen.get("agent"):
        words.append(f"-> {seen['agent']}")
    if seen.get("state"):
        words.append(seen["state"])
    if seen.get("ran") is not None:
        words.append(f"{seen['ran']} ms")
    return "  ".join(word for word in words if word)
