"""``spinal limit``: what the jobs of an operation may take of the fleet together."""

from __future__ import annotations

from typing import Any

import click

from spinal.protocols import duration, path

from .common import (
    CONTEXT,
    Listing,
    client,
    json_option,
    option_of,
    print_json,
    run,
    say,
    show_home,
    table,
)
from .jobview import NONE
from .listing import by_offset, listed, narrowed
from .submission import read_rate


@click.group(cls=Listing, context_settings=CONTEXT)
@show_home
def limit() -> None:
    """Bound how much of an operation runs on all agents together; alone it lists the limits.

    Only the owner sets and removes limits. They hold for jobs, not for plain calls.
    """


@limit.command(name="set", context_settings=CONTEXT)
@click.argument("op")
@click.option(
    "--rate",
    metavar="10/s",
    callback=option_of(read_rate),
    help="Jobs that begin in a time: 10/s, 10/m, 100/30s.",
)
@click.option("--concurrent", type=click.IntRange(1), metavar="N", help="Jobs that run at once.")
@json_option
@show_home
def set_(op: str, rate: tuple[float, float] | None, concurrent: int | None, as_json: bool) -> None:
    """Bound the jobs of the operation OP, in place of what bounded them before.

    \b
    spinal limit set /mail/send --rate 10/s --concurrent 4
    """
    path.parts(op)
    if rate is None and concurrent is None:
        raise click.UsageError("give --rate, --concurrent or both")
    count, per = rate or (None, None)
    wanted = narrowed(rate=count, per=per, concurrent=concurrent)

    async def work() -> None:
        async with client() as bus:
            await bus.ask_dispatcher("/spinal/limits/set", op=op, **wanted)

    run(work())
    if as_json:
        print_json({"op": op, **wanted})
    else:
        say(f"{op}: {told({'op': op, **wanted})}")


@limit.command(name="list", context_settings=CONTEXT)
@json_option
@show_home
def list_(as_json: bool) -> None:
    """List the limits."""

    async def fetch() -> list[dict[str, Any]]:
        async with client() as bus:
            return (await listed(bus, "/spinal/limits/list", {}, None, by_offset))[0]

    found = run(fetch())
    if as_json:
        print_json({"items": found})
        return
    rows = [(one["op"], rate_of(one), str(one.get("concurrent") or NONE)) for one in found]
    table(rows, ("op", "rate", "concurrent"), "no limits: `spinal limit set OP --rate 10/s`")


@limit.command(context_settings=CONTEXT)
@click.argument("op")
@json_option
@show_home
def remove(op: str, as_json: bool) -> None:
    """Remove the limits of the operation OP."""
    path.parts(op)

    async def work() -> None:
        async with client() as bus:
            await bus.ask_dispatcher("/spinal/limits/remove", op=op)

    run(work())
    if as_json:
        print_json({"removed": op})
    else:
        say(f"removed the limits of {op}")


def rate_of(one: dict[str, Any]) -> str:
    """Write a rate as it is given."""
    if one.get("rate") is None:
        return NONE
    unit = {1.0: "s", 60.0: "m", 3600.0: "h", 86_400.0: "d"}.get(float(one["per"]))
    return f"{one['rate']:g}/{unit or duration.write(one['per'])}"


def told(one: dict[str, Any]) -> str:
    """Say what a limit lets through."""
    words: list[str] = []
    if one.get("rate") is not None:
        words.append(f"{rate_of(one)} begin")
    if one.get("concurrent") is not None:
        words.append(f"{one['concurrent']} at once")
    return ", ".join(words)
