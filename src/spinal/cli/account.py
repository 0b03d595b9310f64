"""``spinal account``: who may log in, and as what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from spinal.protocols import Json

from .common import CONTEXT, home, json_option, print_json, run, say, show_home, table

if TYPE_CHECKING:
    from spinal.bus.home import Home


@click.group(context_settings=CONTEXT)
@show_home
def account() -> None:
    """Add, list and remove accounts of the home."""


@account.command(context_settings=CONTEXT)
@click.argument("name")
@click.option(
    "--role",
    required=True,
    type=click.Choice(["caller", "agent", "dispatcher", "owner", "gateway"]),
    help="What it may do: call; offer operations; dispatch; everything; ask for others.",
)
@click.option(
    "--password-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take this password (first line) instead of a random one: for accounts that an "
    "existing server has made.",
)
@json_option
@show_home
def add(name: str, role: str, password_file: Path | None, as_json: bool) -> None:
    """Add the account NAME, or show how to use it if it is there.

    Prints what a program in another language, a chat client or another machine needs to log in;
    with --json also the SPINAL_* variables that do it for an agent.
    """
    from spinal.bus.errors import HomeError
    from spinal.bus.home import read_password
    from spinal.bus.registration import tell_server

    place = home()
    given = None if password_file is None else read_password(password_file)
    if given is None and not place.managed and name not in place.accounts():
        raise HomeError(
            f"the server at {place.server} makes its own accounts: make {name!r} there, then "
            f"`spinal account add {name} --role {role} --password-file FILE`"
        )
    place.add_account(name, role, given)
    run(tell_server(place, name))
    shown = describe(place, name)
    if as_json:
        print_json(shown)
        return
    for key in ("address", "role", "password_file", "ca_file", "host", "port"):
        click.echo(f"{key.replace('_', ' '):14}{shown[key]}")
    if place.managed and place.holder() is None:
        say("It can log in once `spinal up` runs.")


@account.command(name="list", context_settings=CONTEXT)
@json_option
@show_home
def list_(as_json: bool) -> None:
    """List the accounts with their roles."""
    place = home()
    found = place.accounts()
    if as_json:
        print_json([describe(place, name) for name in found])
        return
    rows = [(f"{name}@{place.domain}", role) for name, role in found.items()]
    table(rows, ("account", "role"), "no accounts yet: `spinal account add NAME --role ROLE`")


@account.command(context_settings=CONTEXT)
@click.argument("name")
@json_option
@show_home
def remove(name: str, as_json: bool) -> None:
    """Remove the account NAME; its streams end at once."""
    from spinal.bus.registration import tell_server

    place = home()
    place.remove_account(name)
    run(tell_server(place, name))
    if as_json:
        print_json({"removed": f"{name}@{place.domain}"})
    else:
        click.echo(f"removed {name}@{place.domain}")


def describe(place: Home, name: str) -> dict[str, Json]:
    """Give what somebody elsewhere needs to log in as this account."""
    host, port = place.endpoint
    return {
        "address": f"{name}@{place.domain}",
        "role": place.accounts()[name],
        "password_file": str(place.password_file(name)),
        "ca_file": None if place.ca is None else str(place.ca),
        "host": place.public_host or host,
        "port": port,
        "env": place.environment(name),
    }
