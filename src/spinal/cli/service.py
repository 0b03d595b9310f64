"""``spinal service``: what shall run on some machine, and keeps running when that dies."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from .common import (
    CONTEXT,
    Listing,
    client,
    folded,
    json_option,
    plain,
    print_json,
    run,
    say,
    show_home,
    text,
    timeout_option,
    titled,
)
from .jobview import NONE, age, clock, name, one_line, utc_now
from .listing import by_offset, listed, show
from .submit import follow

if TYPE_CHECKING:
    from spinal.bus import Client

Row = Mapping[str, Any]

#: Where the values of facts begin.
MARGIN: Final = 13

name_argument = click.argument("name_", metavar="NAME")


@click.group(cls=Listing, context_settings=CONTEXT)
@show_home
def service() -> None:
    """Keep services running on machines that have a deployment agent; alone it lists them.

    The dispatcher chooses the machine, and another one when that is lost.
    """


@service.command(context_settings=CONTEXT)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--wait", is_flag=True, help="Wait until it runs, and print where it answers.")
@click.option("--again", is_flag=True, help="Deploy it anew although nothing in FILE has changed.")
@timeout_option
@json_option
@show_home
def deploy(file: Path, wait: bool, again: bool, timeout: float | None, as_json: bool) -> None:
    """Deploy the service that FILE describes, or what has changed in it.

    Prints the id of the job that places it. Where it runs already it is replaced on the same
    machine, and the old release runs until the new one is well. With --wait the exit code is that
    of the job; the service is tried again for ever in any case.

    \b
    spinal service deploy shop.yaml --wait
    """
    from spinal.agents.deployment import spec

    found = spec.load(file)

    async def work() -> None:
        async with client() as bus:
            row: Row = await bus.ask_dispatcher(
                "/spinal/services/deploy",
                name=found.name,
                arguments=dict(found.arguments),
                again=again,
                **found.want,
            )
            if not wait:
                _say_job(row, as_json)
                return
            if row["state"] != "placed":
                await _placed(bus, row, timeout)
                row = await _settled(bus, found.name, row["generation"])
            if as_json:
                print_json(plain(dict(row)))
            else:
                click.echo(endpoint(row))

    run(work())


async def _placed(bus: Client, row: Row, timeout: float | None) -> None:
    """Wait for the job that places a service; raises as :func:`~.submit.follow` does."""
    from spinal.bus import CallError

    try:
        await follow(bus.job(row["job"]), f"service {row['name']}", timeout)
    except CallError:
        say(f"it is tried again: `spinal service show {row['name']}`")
        raise


async def _settled(bus: Client, name_: str, generation: int) -> Row:
    """Give a service once the dispatcher has noticed that its job is done."""
    import asyncio

    while True:
        row: Row = await bus.ask_dispatcher("/spinal/services/show", name=name_)
        if row.get("running", 0) >= generation or row["generation"] > generation:
            return row
        await asyncio.sleep(0.1)


@service.command(name="list", context_settings=CONTEXT)
@json_option
@show_home
def list_(as_json: bool) -> None:
    """List the services, and where they run."""

    async def fetch() -> list[dict[str, Any]]:
        async with client() as bus:
            return (await listed(bus, "/spinal/services/list", {}, None, by_offset))[0]

    found = run(fetch())
    if as_json:
        print_json({"items": plain(found)})
        return
    now = utc_now()
    rows = [
        (
            one["name"],
            one["state"],
            name(one["agent"]) if "agent" in one else NONE,
            endpoint(one),
            age(one["since"], now),
            one_line(one.get("note", "")),
        )
        for one in found
    ]
    show(
        rows,
        ("name", "state", "agent", "where", "since", "note"),
        "no services yet: `spinal service deploy FILE`",
        ("since", "where"),
    )


@service.command(name="show", context_settings=CONTEXT)
@name_argument
@json_option
@show_home
def show_(name_: str, as_json: bool) -> None:
    """Show all that is known of the service NAME, with its last placements."""
    row = _ask("show", name_)
    if as_json:
        print_json(plain(dict(row)))
        return
    titled(facts(row), MARGIN)


@service.command(context_settings=CONTEXT)
@name_argument
@json_option
@show_home
def why(name_: str, as_json: bool) -> None:
    """Say why the service NAME is where it is.

    What made the dispatcher place it, which machine it chose, whom it passed over and for what
    reason; or what it waits for.
    """
    row = _ask("show", name_)
    lines = [told(one) for one in row["history"][-1:]] + row["why"]
    if as_json:
        print_json({"name": name_, "lines": lines})
        return
    for line in lines:
        click.echo(folded(line, 2))


@service.command(context_settings=CONTEXT)
@name_argument
@json_option
@show_home
def where(name_: str, as_json: bool) -> None:
    """Print where the service NAME answers, for instance 10.0.0.7:8080.

    This is what a name server would say. Exit code 4 while no machine has it.
    """
    row = _ask("where", name_)
    if as_json:
        print_json(plain(dict(row)))
    else:
        click.echo(endpoint(row))


@service.command(context_settings=CONTEXT)
@name_argument
@json_option
@show_home
def move(name_: str, as_json: bool) -> None:
    """Place the service NAME on another machine, and print the id of the job that does.

    It runs where it is until the other machine has it.
    """
    _say_job(_ask("move", name_), as_json)


@service.command(context_settings=CONTEXT)
@name_argument
@json_option
@show_home
def rollback(name_: str, as_json: bool) -> None:
    """Go back to what the service NAME ran with before, and print the id of the job that does.

    A second time undoes the first.
    """
    _say_job(_ask("rollback", name_), as_json)


@service.command(context_settings=CONTEXT)
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--forget", is_flag=True, help="Do not wait for machines that are away to come back.")
@json_option
@show_home
def remove(name_: str, yes: bool, forget: bool, as_json: bool) -> None:
    """End the service NAME on every machine, and forget it.

    A machine that is away is told when it comes back; until then the service is "removing".
    """
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("there is no terminal to ask at: add --yes")
        click.confirm(f"end {name_} on every machine?", abort=True, err=True)
    row = _ask("remove", name_, forget=forget)
    if as_json:
        print_json(plain(dict(row)))
    else:
        say(f"{name_} is being removed")


def _ask(what: str, name_: str, **arguments: Any) -> Row:
    async def work() -> Row:
        async with client() as bus:
            found: Row = await bus.ask_dispatcher(
                f"/spinal/services/{what}", name=name_, **arguments
            )
            return found

    return run(work())


def _say_job(row: Row, as_json: bool) -> None:
    if as_json:
        print_json(plain(dict(row)))
    else:
        click.echo(row["job"])


# -- words


def endpoint(row: Row) -> str:
    """Write where a service answers: host and port if its agent said them, else the agent."""
    if "agent" not in row:
        return NONE
    said, agent = _said(row), name(row["agent"])
    return agent if said.get("port") is None else f"{said.get('host') or agent}:{said['port']}"


def condition(row: Row) -> str:
    """Write how a service goes, as its agent says."""
    said = _said(row)
    return ": ".join(one_line(str(said[key])) for key in ("state", "why") if said.get(key))


def _said(row: Row) -> Row:
    result: Any = row.get("result")
    return cast("Row", result) if isinstance(result, dict) else {}


def facts(row: Row) -> list[tuple[str, str]]:
    """Give what is known of a service, line by line."""
    now = utc_now()
    found = [
        ("name", str(row["name"])),
        ("state", f"{row['state']} since {clock(row['since'], now)}"),
        ("agent", str(row.get("agent", NONE))),
        ("where", endpoint(row)),
        ("condition", condition(row)),
        ("note", one_line(row.get("note", ""))),
        ("next try", clock(row["due"], now) if "due" in row else ""),
        ("to end at", ", ".join(row.get("left", ()))),
        ("place", ", ".join(f"{key}={place}" for key, place in row.get("place", {}).items())),
        ("tags", ", ".join(row.get("tags", ()))),
        ("policy", str(row.get("policy", ""))),
        ("deployed by", str(row["caller"])),
        ("job", str(row.get("job", ""))),
    ]
    found += [("" if at else "placements", told(one)) for at, one in enumerate(row["history"])]
    if "arguments" in row:
        found += [("arguments", text(row["arguments"]))]
    return [(title, value) for title, value in found if value]


def told(placement: Row) -> str:
    """Tell of a placement in a line."""
    now = utc_now()
    said = f"{clock(placement['began'], now)} {placement['why']}"
    if "problem" in placement:
        return f"{said}; it was not placed: {one_line(placement['problem'])}"
    if "ended" not in placement:
        return f"{said}; under way"
    return f"{said}; placed at {placement['agent']}"
