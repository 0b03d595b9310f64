"""Listings of the dispatcher, page by page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from .common import say, table
from .jobview import fitted

if TYPE_CHECKING:
    from spinal.bus import Client

#: Most items that the dispatcher gives at once.
PAGE: Final = 500

#: Options of what lists jobs.
limit_option = click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    default=50,
    help="The newest N alone (default 50).",
)
all_option = click.option("--all", "everything", is_flag=True, help="However many there are.")
label_option = click.option(
    "--label", metavar="WORD", help="Only those with this label; x* for all that begin with x."
)
op_option = click.option(
    "--op", metavar="OP", help="Only those of this operation; /a/** for all below /a."
)


def narrowed(**which: Any) -> dict[str, Any]:
    """Give the arguments of a listing: what was not asked for is left out."""
    return {name: value for name, value in which.items() if value not in (None, [], False)}


def by_id(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Go on in a listing of jobs, newest first."""
    return {"limit": PAGE, **({"before": found[-1]["id"]} if found else {})}


def by_offset(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Go on in any other listing."""
    return {"offset": len(found)}


async def listed(
    bus: Client,
    op: str,
    which: Mapping[str, Any],
    limit: int | None,
    following: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] = by_id,
) -> tuple[list[dict[str, Any]], bool]:
    """Fetch up to so many items of a listing, and tell whether there are more."""
    found: list[dict[str, Any]] = []
    more = True
    while more and (limit is None or len(found) < limit):
        page = await bus.ask_dispatcher(op, **following(found), **which)
        found += page["items"]
        more = page["more"]
    return found[:limit], more or (limit is not None and len(found) > limit)


def show(
    rows: Sequence[Sequence[str]],
    headings: Sequence[str],
    empty: str,
    spare: Sequence[str],
) -> None:
    """Print a table; columns to spare give way where the terminal is narrow."""
    if rows and sys.stdout.isatty():
        from rich.console import Console

        rows, headings = fitted(rows, headings, Console().width, spare)
    table(rows, headings, empty)


def say_more(found: Sequence[object], more: bool) -> None:
    """Say that a listing was cut."""
    if more:
        say(f"these are the newest {len(found)}: --limit N or --all shows more")
