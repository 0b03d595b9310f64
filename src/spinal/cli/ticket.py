"""``spinal ticket``: letting new machines join."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from .common import (
    CONTEXT,
    Listing,
    client,
    json_option,
    places,
    print_json,
    run,
    say,
    show_home,
)
from .jobview import clock, utc_now
from .listing import by_offset, listed, show

#: Most bytes of agent files that go with one ticket: a call takes 32 KiB.
MAX_FILES: Final = 24 * 1024


@click.group(cls=Listing, context_settings=CONTEXT)
@show_home
def ticket() -> None:
    """Let new machines join the bus; alone it lists the tickets."""


@ticket.command(context_settings=CONTEXT)
@click.argument("name")
@click.option(
    "--expires", default="1h", metavar="1h", help="How long it is good (default 1h, at most 7d)."
)
@click.option("--run", "runs", multiple=True, metavar="machine", help="Agents that need no file.")
@click.option(
    "--agent",
    "agents",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="An agent's Python file, or a manifest, that the machine gets and runs.",
)
@click.option("--package", "packages", multiple=True, help="What pip installs for them.")
@click.option("--place", "place", multiple=True, metavar="KEY=/PATH", help="Where its agents are.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag of its agents.")
@click.option("--cost", type=click.FloatRange(0), help="Price of an hour of the machine.")
@click.option(
    "--script", is_flag=True, help="Print the user-data for a vendor instead of what to paste."
)
@json_option
@show_home
def create(
    name: str,
    expires: str,
    runs: tuple[str, ...],
    agents: tuple[Path, ...],
    packages: tuple[str, ...],
    place: tuple[str, ...],
    tags: tuple[str, ...],
    cost: float | None,
    script: bool,
    as_json: bool,
) -> None:
    """Make a one-time ticket for the machine NAME, and print what to paste there.

    The machine gets an account of this name, with the role agent. Without --agent and --run it runs
    the machine agent. Who has the ticket can join in its place: keep it like a password until it
    was used.

    With --json: {"name", "ticket", "url", "ca", "expires", "run", "place", ...}, with --script
    "script" as well.
    """
    from spinal.bus.errors import HomeError
    from spinal.protocols import duration

    try:
        seconds = duration.parse(expires)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--expires") from error
    files = {file.name: file.read_text() for file in agents}
    if len(files) < len(agents):
        raise click.UsageError("two --agent files have one name")
    if sum(len(content.encode()) for content in files.values()) > MAX_FILES:
        raise HomeError(
            f"agent files of a ticket are at most {MAX_FILES} bytes together: put the rest into a "
            f"package, and name it with --package"
        )
    wanted: dict[str, Any] = {
        "files": files,
        "packages": list(packages),
        "run": [*runs, *files],
        "place": places(place),
        "tags": list(tags),
        "cost": cost,
        "script": script,
    }

    async def work() -> dict[str, Any]:
        async with client() as bus:
            found: dict[str, Any] = await bus.ask_dispatcher(
                "/spinal/tickets/create",
                name=name,
                expires=seconds,
                **{key: value for key, value in wanted.items() if value not in (None, [], {})},
            )
            return found

    made = run(work())
    if as_json:
        print_json(made)
    elif script:
        click.echo(made["script"], nl=False)
    else:
        click.echo(command(made))
        say(f"Paste that on {name} before {made['expires']}; it works once.")


def command(made: dict[str, Any]) -> str:
    """Give what is to be pasted into a shell on the new machine."""
    return "\n".join(
        [
            "umask 077",
            "cat > desk.pem <<'END'",
            made["ca"].rstrip(),
            "END",
            f"echo {made['ticket']} > ticket",
            f"spinal join {made['url']} --ca desk.pem --ticket-file ticket --name {made['name']}",
        ]
    )


@ticket.command(name="list", context_settings=CONTEXT)
@json_option
@show_home
def list_(as_json: bool) -> None:
    """List the tickets, also those that were used or have expired lately."""

    async def fetch() -> list[dict[str, Any]]:
        async with client() as bus:
            return (await listed(bus, "/spinal/tickets/list", {}, None, by_offset))[0]

    found = run(fetch())
    if as_json:
        print_json({"items": found})
        return
    now = utc_now()
    rows = [
        (one["name"], one["state"], clock(one["expires"], now), " ".join(one["run"]))
        for one in found
    ]
    show(
        rows,
        ("machine", "state", "expires", "runs"),
        "no tickets: `spinal ticket create NAME` makes one",
        ("runs",),
    )


@ticket.command(context_settings=CONTEXT)
@click.argument("name")
@json_option
@show_home
def revoke(name: str, as_json: bool) -> None:
    """Make the ticket of the machine NAME good for nothing.

    A machine that has joined with it stays: `spinal account remove NAME` takes it off the bus.
    """

    async def work() -> None:
        async with client() as bus:
            await bus.ask_dispatcher("/spinal/tickets/revoke", name=name)

    run(work())
    if as_json:
        print_json({"revoked": name})
    else:
        say(f"revoked the ticket of {name}")
