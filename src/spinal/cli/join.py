"""``spinal join``: making this machine part of a bus."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .common import CONTEXT, json_option, print_json, say, show_home, start_logging


def _folder() -> Path:
    data = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data) if data.startswith("/") else Path("~/.local/share").expanduser()
    return base / "spinal-machine"


@click.command(context_settings=CONTEXT)
@click.argument("url")
@click.option(
    "--ticket-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The ticket; deleted once it was used. Not needed to come back.",
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Authority that vouches for URL (PEM); by default those of the system.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where this machine keeps what it was given (default ~/.local/share/spinal-machine).",
)
@click.option("--name", help="Insist that the ticket is for this machine.")
@json_option
@show_home
def join(
    url: str,
    ticket_file: Path | None,
    ca: Path | None,
    folder: Path | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Join the bus whose desk is at URL with a one-time ticket, and run agents until SIGTERM.

    `spinal ticket create NAME` at the home makes the ticket and says what to paste here. The same
    command brings the machine back after a reboot, without a ticket: the folder has its
    credentials. SIGTERM or Ctrl-C lets what runs end; the second one stops it.

    Exit code 5 if the ticket was refused, or the machine is not wanted any more.

    With --json: {"event": "joined", "address", "run"}, then what `spinal agent run --json` prints.
    """
    start_logging("info")
    from .enrol import Folder, check_url, enrol

    check_url(url)
    place = Folder((folder or _folder()).expanduser().absolute())
    with place.held():
        from spinal.bus.loops import run

        from .crew import Crew, command, install, serve

        told = enrol(place, url, ticket_file, ca, name)
        if as_json:
            print_json({"event": "joined", "address": told.address, "run": list(told.run)})
        else:
            say(f"spinal: this machine is {told.address}")
        install(place, told.packages)
        commands = {
            one: (
                [*command(place, told, one), *(["--json"] if as_json else [])],
                place.environment(told, one),
            )
            for one in told.run
        }
        run(serve(Crew(commands, place.path)))
