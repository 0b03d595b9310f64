"""``spinal call``: one operation, and its value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from spinal.bus.arguments import convert, parse
from spinal.protocols import Data, Json, Log, path
from spinal.protocols import Progress as ProgressEvent

from .common import (
    CONTEXT,
    client,
    json_option,
    place_option,
    places,
    plain,
    policy_option,
    print_json,
    run,
    say,
    show_home,
    size,
    tag_option,
    text,
    timeout_option,
)
from .progress import Progress

if TYPE_CHECKING:
    from spinal.bus import Client
    from spinal.bus.call import Item

#: Seconds that a call may take at least, and what it may wait beyond the operation's own time.
TIMEOUT: Final = 60.0
MARGIN: Final = 10.0
#: Pieces of a stream that may be under way.
WINDOW: Final = 32

#: Option ``--out``; gives ``out`` to the verb.
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the value there: a blob's bytes, else text or JSON.",
)


@click.command(context_settings=CONTEXT)
@click.argument("op")
@click.argument("arguments", nargs=-1, metavar="[key=value | key:=json | key@=file]...")
@click.option("--to", metavar="AGENT", help="Ask this agent directly: its name or address.")
@policy_option
@place_option
@tag_option
@timeout_option
@out_option
@json_option
@show_home
def call(
    op: str,
    arguments: tuple[str, ...],
    to: str | None,
    policy: str | None,
    place: tuple[str, ...],
    tags: tuple[str, ...],
    timeout: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Call the operation OP and print its value.

    key=value is converted by the operation's schema (a path where it wants a blob), key:=json is
    taken as it is, key@=file gives a file: as a blob where the operation wants one, else its text.

    With --json: {"value": ...}; a blob is {"blob": {"url", "sha256", "size", "media"}}; pieces of
    a stream come before it, one {"data": ...} per line. Progress goes to stderr.
    """
    path.parts(op)
    given = parse(arguments)
    wanted = places(place)
    if out is not None:
        check_folder(out.parent)

    async def work() -> None:
        async with client() as bus:
            # The dispatcher's own operations are not listed among those of agents.
            own = op.startswith("/spinal/")
            described = await describe(bus, op, may_miss=own or to is not None)
            values = convert(given, described["args"])
            chosen = bus.options(
                to=to,
                policy=policy,
                place=wanted or None,
                tags=tags or None,
                timeout=timeout or patience(described),
            )
            await give(await _follow(chosen, op, values, as_json), out, as_json)

    run(work())


async def describe(bus: Client, op: str, *, may_miss: bool = False) -> dict[str, Any]:
    """Fetch what the dispatcher knows of an operation.

    Raises :class:`~spinal.bus.NoAgent` if nobody offers it; with ``may_miss`` it is then taken to
    take anything.
    """
    from spinal.bus import NoAgent

    try:
        found: dict[str, Any] = await bus.ask_dispatcher("/spinal/op", op=op)
    except NoAgent:
        if not may_miss:
            raise
        found = {}
    return {"args": {}, "timeout": TIMEOUT, **found}


def patience(described: dict[str, Any]) -> float:
    """Say how long to wait for an operation if nobody says so."""
    return max(TIMEOUT, float(described["timeout"]) + MARGIN)


def check_folder(folder: Path) -> None:
    """Make sure that files can be put there, before anything is sent.

    Raises :class:`click.BadParameter`.
    """
    if not folder.is_dir():
        raise click.BadParameter(f"{folder} is no folder: make it first", param_hint="--out")


async def give(value: Any, out: Path | None, as_json: bool, **more: Json) -> None:
    """Print a value, or write it to a file and say so; JSON is ``{**more, "value": ...}``."""
    if out is not None:
        await save(value, out)
    if as_json:
        print_json({**more, "value": plain(value)})
    elif out is not None:
        say(f"wrote {out} ({size(out.stat().st_size)})")
    elif value is not None:
        click.echo(text(value))


async def save(value: Any, out: Path) -> None:
    """Write a value into a file: a blob's bytes, text as it is, anything else as JSON."""
    from spinal.bus import Blob

    if isinstance(value, Blob):
        await value.save(out)
    elif isinstance(value, str):
        out.write_text(value, encoding="utf-8")
    else:
        out.write_text(json.dumps(plain(value), ensure_ascii=False, indent=2) + "\n", "utf-8")


async def _follow(bus: Client, op: str, values: dict[str, Any], as_json: bool) -> Any:
    """Make the call, show what comes, and give its value."""
    call = await bus.start(op, values, window=WINDOW)
    with Progress(op) as progress:
        async for item in call:
            _show(item, progress, as_json, bus)
        result: Json = await call.result()
    return bus.value(result)


def _show(item: Item, progress: Progress, as_json: bool, bus: Client) -> None:
    if not isinstance(item, Data):
        show_news(item, progress)
    elif as_json:
        print_json({"data": item.value})
    else:
        click.echo(text(bus.value(item.value)))


def show_news(item: Item, progress: Progress) -> None:
    """Show how far something is, or a line of its log."""
    match item:
        case ProgressEvent():
            progress.at(item.done, item.total, item.note)
        case Log():
            progress.line(item.text)
        case Data():
            pass  # Not news, but what it gives.
