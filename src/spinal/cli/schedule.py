"""``spinal schedule``: jobs at the times of a cron line."""

from __future__ import annotations

from typing import Any

import click

from spinal.bus.arguments import parse
from spinal.protocols import path

from .common import (
    CONTEXT,
    Listing,
    client,
    json_option,
    print_json,
    run,
    say,
    show_home,
)
from .jobview import clock, moment, utc_now
from .listing import by_offset, listed, show
from .submission import asked, job_options
from .submit import prepared


@click.group(cls=Listing, context_settings=CONTEXT)
@show_home
def schedule() -> None:
    """Submit jobs at the times of a cron line; alone it lists the schedules."""


@schedule.command(context_settings=CONTEXT)
@click.argument("cron")
@click.argument("op")
@click.argument("arguments", nargs=-1, metavar="[key=value | key:=json | key@=file]...")
@click.option("--name", metavar="NAME", help="What to call it (default: a new id).")
@click.option(
    "--zone", default="UTC", metavar="ZONE", help="Time zone of the cron line, Europe/Paris."
)
@job_options
@json_option
@show_home
def add(
    cron: str,
    op: str,
    arguments: tuple[str, ...],
    name: str | None,
    zone: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit the operation OP whenever the line CRON says so.

    CRON has five fields, as for cron: minute, hour, day of month, month, day of week. Prints the
    schedule's id.

    \b
    spinal schedule add '*/5 * * * *' /report/totals day=today
    spinal schedule add '0 7 * * MON-FRI' /mail/digest --zone Europe/Paris --name digest
    """
    path.parts(op)
    given = parse(arguments)
    wanted = asked(**options)

    async def work() -> dict[str, Any]:
        async with client() as bus:
            args, _ = await prepared(bus, op, given)
            found: dict[str, Any] = await bus.ask_dispatcher(
                "/spinal/schedules/add",
                cron=cron,
                zone=zone,
                submission={"op": op, "args": args, **wanted.submission()},
                **({} if name is None else {"id": name}),
            )
            return found

    added = run(work())
    if as_json:
        print_json(added)
        return
    click.echo(added["id"])
    say(f"next at {moment(added['next']).astimezone():%Y-%m-%d %H:%M:%S %Z}")


@schedule.command(name="list", context_settings=CONTEXT)
@json_option
@show_home
def list_(as_json: bool) -> None:
    """List the schedules with the time of the next job."""

    async def fetch() -> list[dict[str, Any]]:
        async with client() as bus:
            return (await listed(bus, "/spinal/schedules/list", {}, None, by_offset))[0]

    found = run(fetch())
    if as_json:
        print_json({"items": found})
        return
    now = utc_now()
    rows = [
        (one["id"], one["cron"], one["zone"], clock(one["next"], now), one["caller"], one["op"])
        for one in found
    ]
    show(
        rows,
        ("id", "cron", "zone", "next", "caller", "op"),
        "no schedules yet: `spinal schedule add CRON OP`",
        ("caller", "zone"),
    )


@schedule.command(context_settings=CONTEXT)
@click.argument("name", metavar="ID")
@json_option
@show_home
def remove(name: str, as_json: bool) -> None:
    """Remove the schedule ID; jobs that it has submitted go on."""

    async def work() -> None:
        async with client() as bus:
            await bus.ask_dispatcher("/spinal/schedules/remove", id=name)

    run(work())
    if as_json:
        print_json({"removed": name})
    else:
        say(f"removed {name}")
