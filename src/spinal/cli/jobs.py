"""``spinal jobs``: what became of what was submitted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from .common import (
    CONTEXT,
    client,
    drawn,
    json_option,
    plain,
    print_json,
    run,
    show_home,
)
from .jobview import FINAL, HEADINGS, SPARE, Row, cells, change, fitted, utc_now
from .listing import all_option, label_option, limit_option, narrowed, op_option, say_more, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from spinal.bus import Client

#: Seconds between two looks of ``--watch``.
LOOK: Final = 1.0
#: Lines of a terminal that a list needs besides its rows.
FRAME: Final = 5

STATES: Final = ("waiting", "queued", "processing", "stalled", "done", "error", "killed")


@click.command(context_settings=CONTEXT)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(STATES),
    help="Only those in this state; may be repeated.",
)
@label_option
@op_option
@click.option("--parent", metavar="ID", help="Only the children of this job.")
@limit_option
@all_option
@click.option("--watch", is_flag=True, help="Stay, and show what changes, until Ctrl-C.")
@json_option
@show_home
def jobs(
    states: tuple[str, ...],
    label: str | None,
    op: str | None,
    parent: str | None,
    limit: int,
    everything: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """List the jobs, newest first: your own, or everybody's for the owner.

    On a terminal, columns give way to its width; elsewhere there are tabs between all of them: id,
    operation, state, labels, agent, age, time waited/run, attempts, note.

    With --watch a terminal is drawn again every second; elsewhere there is one line per job and
    then one per change. With --json: {"items": [...], "more"}, with --watch one job per line.

    \b
    spinal jobs --state error --label 'nightly*'
    spinal jobs --op '/image/**' --watch
    """
    which = narrowed(state=list(states), label=label, op=op, parent=parent)
    if watch:
        run(_watch(which, limit, as_json))
        return
    found, more = run(_fetch(which, None if everything else limit))
    if as_json:
        print_json({"items": plain(list(found)), "more": more})
        return
    now = utc_now()
    show(
        [cells(job, now) for job in found],
        HEADINGS,
        "no such jobs" if which else "no jobs yet: `spinal submit OP key=value`",
        SPARE,
    )
    say_more(found, more)


async def _fetch(which: Mapping[str, Any], limit: int | None) -> tuple[list[Row], bool]:
    async with client() as bus:
        return await fetch(bus, which, limit)


async def fetch(bus: Client, which: Mapping[str, Any], limit: int | None) -> tuple[list[Row], bool]:
    """Fetch the newest jobs, and tell whether there are more."""
    asked = None if limit is None else limit + 1
    found: list[Row] = [job async for job in bus.jobs(**which, limit=asked)]
    return found[:limit], limit is not None and len(found) > limit


# Watching.


async def _watch(which: Mapping[str, Any], limit: int, as_json: bool) -> None:
    async with client() as bus:
        if as_json or not sys.stdout.isatty():
            await _tell(bus, which, limit, _print_job if as_json else _print_change)
        else:
            await _draw(bus, which, limit)


def _print_job(job: Row) -> None:
    print_json(plain(job))


def _print_change(job: Row) -> None:
    click.echo(change(job, utc_now()))
    sys.stdout.flush()


async def _tell(
    bus: Client, which: Mapping[str, Any], limit: int, tell: Callable[[Row], None]
) -> None:
    """Tell of each job, the oldest first, and then of each change."""
    known: dict[str, Row] = {}
    while True:
        found, _ = await fetch(bus, which, limit)
        here = {job["id"]: job for job in reversed(found)}
        # What fell off the list, because it is not in the wanted state any more, has changed too.
        gone = [
            await bus.job(id).info()
            for id, job in known.items()
            if id not in here and job["state"] not in FINAL
        ]
        for job in changed(known, [*gone, *here.values()]):
            tell(job)
        known = here
        await asyncio.sleep(LOOK)


def changed(known: Mapping[str, Row], now: Sequence[Row]) -> list[Row]:
    """Give the jobs that are new, or in another state, attempt or agent than they were."""
    return [job for job in now if job["id"] not in known or _mark(known[job["id"]]) != _mark(job)]


def _mark(job: Row) -> tuple[Any, ...]:
    return job["state"], job.get("attempt"), job.get("agent")


async def _draw(bus: Client, which: Mapping[str, Any], limit: int) -> None:
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while True:
            most = min(limit, max(1, live.console.height - FRAME))
            found, more = await fetch(bus, which, most)
            live.update(picture(found, more, live.console.width), refresh=True)
            await asyncio.sleep(LOOK)


def picture(found: Sequence[Row], more: bool, width: int) -> RenderableType:
    """Draw a list of jobs for a terminal that is so wide."""
    from rich.console import Group
    from rich.text import Text

    now = utc_now()
    told = f"{now.astimezone():%H:%M:%S}  "
    told += (
        f"the newest {len(found)}" if more else f"{len(found)} job{'' if len(found) == 1 else 's'}"
    )
    if not found:
        return Text(told)
    rows, headings = fitted([cells(job, now) for job in found], HEADINGS, width, SPARE)
    return Group(drawn(rows, headings), Text(f"{told}; Ctrl-C stops"))
