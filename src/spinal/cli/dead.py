"""``spinal dead``: jobs that failed and that nobody has looked at."""

from __future__ import annotations

from typing import Any

import click

from .common import (
    CONTEXT,
    Ended,
    Listing,
    client,
    json_option,
    plain,
    print_json,
    run,
    say,
    show_home,
    table,
)
from .jobview import clock, one_line, utc_now
from .listing import (
    all_option,
    label_option,
    limit_option,
    listed,
    narrowed,
    op_option,
    say_more,
)

everyone_option = click.option(
    "--all", "everyone", is_flag=True, help="All of the list, or those with --label and --op."
)


@click.group(cls=Listing, context_settings=CONTEXT)
@show_home
def dead() -> None:
    """List, retry or delete the jobs that failed; alone it lists them.

    A job leaves the list when it is retried or deleted.
    """


@dead.command(name="list", context_settings=CONTEXT)
@label_option
@op_option
@limit_option
@all_option
@json_option
@show_home
def list_(label: str | None, op: str | None, limit: int, everything: bool, as_json: bool) -> None:
    """List the jobs that failed, newest first, and why they did."""

    async def fetch() -> tuple[list[dict[str, Any]], bool]:
        async with client() as bus:
            which = narrowed(label=label, op=op)
            return await listed(bus, "/spinal/dead/list", which, None if everything else limit)

    found, more = run(fetch())
    if as_json:
        print_json({"items": plain(found), "more": more})
        return
    now = utc_now()
    rows = [
        (
            job["id"],
            job["op"],
            clock(job["ended"], now),
            job["problem"]["reason"],
            one_line(job["problem"]["text"]),
        )
        for job in found
    ]
    table(rows, ("id", "op", "ended", "reason", "text"), "no job is dead")
    say_more(found, more)


@dead.command(context_settings=CONTEXT)
@click.argument("ids", nargs=-1, metavar="ID...")
@everyone_option
@label_option
@op_option
@json_option
@show_home
def retry(
    ids: tuple[str, ...], everyone: bool, label: str | None, op: str | None, as_json: bool
) -> None:
    """Submit the dead jobs ID... once more, and print the old and the new id of each."""
    found = _ask("/spinal/dead/retry", ids, everyone, label, op)
    if as_json:
        print_json({"jobs": found})
    else:
        table([(job["id"], job["new"]) for job in found], ("id", "new"), "no job is dead")
    _check(ids, found)


@dead.command(context_settings=CONTEXT)
@click.argument("ids", nargs=-1, metavar="ID...")
@everyone_option
@label_option
@op_option
@json_option
@show_home
def delete(
    ids: tuple[str, ...], everyone: bool, label: str | None, op: str | None, as_json: bool
) -> None:
    """Delete the dead jobs ID..., with their logs."""
    found = _ask("/spinal/dead/delete", ids, everyone, label, op)
    if as_json:
        print_json({"jobs": found})
    else:
        say(f"deleted {len(found)} job{'' if len(found) == 1 else 's'}")
    _check(ids, found)


def _ask(
    asked: str, ids: tuple[str, ...], everyone: bool, label: str | None, op: str | None
) -> list[dict[str, Any]]:
    if bool(ids) == everyone:
        raise click.UsageError("name the jobs, or give --all")
    if ids and (label or op):
        raise click.UsageError("--label and --op go with --all")

    async def work() -> list[dict[str, Any]]:
        which = narrowed(ids=list(ids), all=everyone, label=label, op=op)
        done: list[dict[str, Any]] = []
        async with client() as bus:
            if everyone:
                newest = (await bus.ask_dispatcher("/spinal/dead/list", limit=1))["items"]
                # Those alone that are dead now: one that is retried may soon be dead again.
                which["before"] = f"{newest[0]['id']}0" if newest else "0"
            while True:
                # All of them are done page by page, and leave the list as they are.
                found: list[dict[str, Any]] = (await bus.ask_dispatcher(asked, **which))["jobs"]
                done += found
                if ids or not found:
                    return done

    return run(work())


def _check(ids: tuple[str, ...], found: list[dict[str, Any]]) -> None:
    """Name those that were left as they are."""
    left = set(ids) - {job["id"] for job in found}
    if left:
        say(f"spinal: left as they are: {' '.join(sorted(left))}: see `spinal job show ID`")
        raise Ended(1)
