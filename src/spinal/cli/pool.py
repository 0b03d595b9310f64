"""``spinal pool``: machines that are rented where they are cheapest, and returned."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .common import (
    CONTEXT,
    Listing,
    client,
    json_option,
    plain,
    print_json,
    run,
    say,
    show_home,
    table,
    timeout_option,
    titled,
    together,
)
from .jobview import NONE, age, clock, one_line, utc_now
from .listing import by_offset, listed, show

if TYPE_CHECKING:
    from spinal.bus import Client
    from spinal.dispatcher.pools.spec import PoolSpec

Row = Mapping[str, Any]

#: Where the values of facts begin.
MARGIN: Final = 13

#: Seconds between two looks at a pool that is being waited for.
LOOK: Final = 0.5

#: Events of a pool that are told.
MAX_EVENTS: Final = 15

file_argument = click.argument("file", type=click.Path(path_type=Path))
which_argument = click.argument("which", metavar="FILE|NAME")
machines_argument = click.argument("machines", nargs=-1, metavar="[MACHINE]...")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
no_wait_option = click.option("--no-wait", is_flag=True, help="Do not wait until it is so.")
change_options = together(yes_option, no_wait_option, timeout_option, json_option, show_home)


@click.group(cls=Listing, context_settings=CONTEXT)
@show_home
def pool() -> None:
    """Keep machines of one kind, rented where they are cheapest; alone it lists the pools.

    A pool is a YAML FILE (docs/pools.md). Verbs but `plan` and `apply` also take its name.
    """


@pool.command(context_settings=CONTEXT)
@file_argument
@click.option("--refresh", is_flag=True, help="Ask the vendors anew, whatever was known.")
@json_option
@show_home
def plan(file: Path, refresh: bool, as_json: bool) -> None:
    """Show exactly what applying FILE would rent, for how much, and what was passed over and why.

    Nothing is rented. With --json: {"hash", "machines", "price", "bound", "rejected", ...}.
    """
    spec = _load(file)
    row = _ask("plan", spec=_sent(spec), refresh=refresh)
    if as_json:
        print_json(plain(dict(row)))
    else:
        show_plan(row)


@pool.command(context_settings=CONTEXT)
@file_argument
@yes_option
@click.option("--hash", "hash_", metavar="HASH", help="Refuse unless this is still the plan.")
@no_wait_option
@timeout_option
@json_option
@show_home
def apply(
    file: Path, yes: bool, hash_: str | None, no_wait: bool, timeout: float | None, as_json: bool
) -> None:
    """Make the pool as FILE says, or change it, and wait until it is so.

    Shows the plan and asks before anything is rented; if the plan has changed by then, it refuses.
    """
    spec = _load(file)

    async def work() -> None:
        async with client() as bus:
            arguments: dict[str, Any] = {"spec": _sent(spec)}
            if hash_ is not None:
                arguments["hash"] = await _whole_hash(bus, spec, hash_)
            elif not yes:
                planned: Row = await bus.ask_dispatcher("/spinal/pools/plan", **arguments)
                if not as_json:
                    show_plan(planned)
                confirm(f"rent this for pool {spec.pool}?")
                arguments["hash"] = planned["hash"]
            row: Row = await bus.ask_dispatcher("/spinal/pools/apply", **arguments)
            if not no_wait:
                row = await converged(bus, row, timeout)
            _say_pool(row, as_json)

    run(work())


async def _whole_hash(bus: Client, spec: PoolSpec, given: str) -> str:
    """Complete a hash of which people copied the beginning."""
    if len(given) >= 64:
        return given
    row: Row = await bus.ask_dispatcher("/spinal/pools/plan", spec=_sent(spec))
    return str(row["hash"]) if len(given) >= 8 and row["hash"].startswith(given) else given


@pool.command(name="list", context_settings=CONTEXT)
@json_option
@show_home
def list_(as_json: bool) -> None:
    """List the pools, and how many machines they have."""

    async def fetch() -> list[dict[str, Any]]:
        async with client() as bus:
            return (await listed(bus, "/spinal/pools/list", {}, None, by_offset))[0]

    found = run(fetch())
    if as_json:
        print_json({"items": plain(found)})
        return
    rows = [
        (
            one["name"],
            one["phase"],
            f"{one['ready']}/{one['wanted']}",
            str(one["exist"]),
            money(one["price"], one["currency"]),
            one_line(one["short"] or one["why"]),
        )
        for one in found
    ]
    headings = ("name", "phase", "ready", "exist", "an hour", "note")
    show(rows, headings, "no pools yet: `spinal pool apply FILE`", ("exist",))


@pool.command(name="show", context_settings=CONTEXT)
@which_argument
@json_option
@show_home
def show_(which: str, as_json: bool) -> None:
    """Show a pool, its machines, and what happened to it lately."""
    name = _name(which)

    async def work() -> Row:
        async with client() as bus:
            return await _shown(bus, name)

    row = run(work())
    if as_json:
        print_json(plain(dict(row)))
        return
    titled(_facts(row), MARGIN)
    now = utc_now()
    machines = [
        (
            one["name"],
            one["state"] + (" (retiring)" if one.get("retiring") else ""),
            age(one["since"], now),
            f"{one['vendor']} {one['region']}",
            one["type"],
            money(one["price"], one["currency"]),
            one_line(one.get("why") or one.get("said") or ""),
        )
        for one in row["machines"]
    ]
    if machines:
        headings = ("machine", "state", "since", "where", "type", "an hour", "note")
        click.echo()
        show(machines, headings, "", ("since",))


@pool.command(context_settings=CONTEXT)
@which_argument
@machines_argument
@change_options
def drain(
    which: str,
    machines: Sequence[str],
    yes: bool,
    no_wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Have machines finish what they run, and return them.

    With MACHINEs these, and the pool wants so many fewer, though not fewer than its least. Without,
    all of them, and the pool takes no new ones until it is applied again.
    """
    name = _name(which)
    if machines:
        confirm(f"drain and return {', '.join(machines)}?", yes)
        _act("drain", name, no_wait, timeout, as_json, machines=list(machines))
    else:
        _wind_down(
            name, "drained", "drain and return every machine", yes, no_wait, timeout, as_json
        )


@pool.command(context_settings=CONTEXT)
@which_argument
@machines_argument
@change_options
def replace(
    which: str,
    machines: Sequence[str],
    yes: bool,
    no_wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Replace machines by new ones: those named, else all.

    An old one goes once a new one is ready and the old one has finished what it runs.
    """
    name = _name(which)
    confirm(f"replace {', '.join(machines) or 'every machine'} of pool {name}?", yes)
    _act("replace", name, no_wait, timeout, as_json, machines=list(machines))


@pool.command(context_settings=CONTEXT)
@which_argument
@change_options
def freeze(which: str, yes: bool, no_wait: bool, timeout: float | None, as_json: bool) -> None:
    """Drain every machine, keep its disk as an image at its vendor, and return it.

    `spinal pool show` names the images, which the vendor charges for.
    """
    _wind_down(_name(which), "frozen", "freeze every machine", yes, no_wait, timeout, as_json)


@pool.command(context_settings=CONTEXT)
@which_argument
@change_options
def down(which: str, yes: bool, no_wait: bool, timeout: float | None, as_json: bool) -> None:
    """Return every machine, once it has finished what it runs, and forget the pool.

    Returns when the vendors have shown that all of them are gone.
    """
    _wind_down(_name(which), "down", "return every machine", yes, no_wait, timeout, as_json)


# -- asking


def _wind_down(
    name: str,
    phase: str,
    what: str,
    yes: bool,
    no_wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    confirm(f"{what} of pool {name}?", yes)
    _act("wind-down", name, no_wait, timeout, as_json, phase=phase)


def _act(
    what: str,
    name: str,
    no_wait: bool,
    timeout: float | None,
    as_json: bool,
    **arguments: Any,
) -> None:
    async def work() -> None:
        async with client() as bus:
            row: Row = await bus.ask_dispatcher(f"/spinal/pools/{what}", name=name, **arguments)
            if not no_wait:
                row = await converged(bus, row, timeout)
            _say_pool(row, as_json)

    run(work())


def _ask(what: str, **arguments: Any) -> Row:
    async def work() -> Row:
        async with client() as bus:
            found: Row = await bus.ask_dispatcher(f"/spinal/pools/{what}", **arguments)
            return found

    return run(work())


async def _shown(bus: Client, name: str) -> Row:
    """Fetch a pool with all of its machines."""
    row: Row = await bus.ask_dispatcher("/spinal/pools/show", name=name)
    machines, more = list(row["machines"]), row.get("more")
    while more:
        page = await bus.ask_dispatcher("/spinal/pools/show", name=name, offset=len(machines))
        machines, more = [*machines, *page["machines"]], page["more"]
    return {**{key: value for key, value in row.items() if key != "more"}, "machines": machines}


async def converged(bus: Client, row: Row, timeout: float | None) -> Row:
    """Wait until a pool is as it is to be, and say what happens meanwhile.

    Args:
        bus: where it is.
        row: what is known of it; one without machines that goes down is forgotten at once.
        timeout: seconds to wait; none waits for ever.
    """
    import asyncio

    from spinal.bus import CallError
    from spinal.protocols import Problem

    name: str = row["name"]
    told: str | None = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    row = await _shown(bus, name)
                except CallError as exc:
                    if exc.reason == "refused" and row["phase"] == "down":
                        return {
                            **row,
                            "exist": 0,
                            "ready": 0,
                            "in_doubt": 0,
                            "price": 0.0,
                            "converged": True,
                        }
                    raise
                new = row["events"] if told is None else _since(row["events"], told)
                if told is not None:
                    for one in new:
                        say(event(one))
                told = row["events"][-1]["at"] if row["events"] else ""
                if row["converged"] and row["phase"] != "down":
                    return row
                await asyncio.sleep(LOOK)
    except TimeoutError:
        note = row["short"] or f"{row['ready']} of {row['wanted']} are ready"
        text = f"pool {name} is not there yet: {note}; it goes on, see `spinal pool show {name}`"
        raise CallError.of(Problem("expired", text)) from None


def _since(events: Sequence[Row], at: str) -> list[Row]:
    return [one for one in events if one["at"] > at]


def confirm(question: str, yes: bool = False) -> None:
    """Ask before money is spent or machines go.

    Raises:
        click.UsageError: there is nobody to ask.
        click.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask at: add --yes")
    click.confirm(question, abort=True, err=True)


def _load(file: Path) -> PoolSpec:
    from spinal.dispatcher.pools import document

    return document.load(file)


def _sent(spec: PoolSpec) -> Any:
    from spinal.dispatcher.pools import document

    return document.to_json(spec)


def _name(which: str) -> str:
    """Give the name of a pool, of which a file may be named instead."""
    if Path(which).suffix in (".yaml", ".yml") or "/" in which:
        return _load(Path(which)).pool
    return which


# -- words


def money(amount: float, currency: str) -> str:
    """Write an amount with as many digits as it needs."""
    return f"{amount:.4f}".rstrip("0").rstrip(".") + f" {currency}"


def show_plan(row: Row) -> None:
    """Show a plan: what is to be rented, for how much, and what was passed over."""
    rows = [
        (
            str(one.get("count", 1)),
            one["vendor"],
            one["region"],
            one["type"],
            money(one["price"], one["currency"]),
        )
        for one in row["machines"]
    ]
    table(rows, ("count", "vendor", "region", "type", "an hour"), "nothing is to be rented")
    titled(_plan_facts(row), MARGIN)


def _plan_facts(row: Row) -> list[tuple[str, str]]:
    currency = row["currency"]
    kept = f", with {len(row['keep'])} that are kept" if row["keep"] else ""
    found = [
        ("price", f"{money(row['price'], currency)} an hour{kept}"),
        ("at least", f"{money(row['bound'], currency)} (gap {row['gap'] * 100:.1f} %)"),
        ("found by", row["method"]),
        *(("note", note) for note in row["notes"]),
        *(("passed over", line) for line in passed_over(row["rejected"])),
        *(row["errors"].items()),
    ]
    return [*found, ("hash", row["hash"][:12])]


def passed_over(rejected: Sequence[Row]) -> list[str]:
    """Say what was passed over: how many for each reason, and some of them."""
    return [
        ": ".join(filter(None, (f"{one['count']} {one['reason']}", "; ".join(one["examples"]))))
        for one in rejected
    ] or ["nothing"]


def _facts(row: Row) -> list[tuple[str, str]]:
    now = utc_now()
    doubt = f", {row['in_doubt']} in doubt" if row["in_doubt"] else ""
    found = [
        ("pool", row["name"]),
        ("phase", row["phase"]),
        (
            "machines",
            f"{row['ready']} ready of {row['wanted']} wanted, {row['exist']} exist{doubt}",
        ),
        ("why", one_line(row["why"])),
        ("short", one_line(row["short"])),
        ("price", f"{money(row['price'], row['currency'])} an hour"),
        (
            "so far",
            ", ".join(
                f"{row[key]} {key.replace('_', ' ')}"
                for key in ("joined", "refused", "never_joined", "lost")
            ),
        ),
        ("applied by", row["caller"]),
        ("plan", row["hash"][:12] or NONE),
    ]
    events = [f"{clock(one['at'], now)} {event(one)}" for one in row["events"][-MAX_EVENTS:]]
    found += [("" if at else "events", line) for at, line in enumerate(events)]
    return [(title, value) for title, value in found if value]


def event(one: Row) -> str:
    """Write what happened to a pool in one line."""
    about = (
        f"scaled to {one['about']}" if one["what"] == "scaled" else f"{one['about']} {one['what']}"
    )
    said = f": {one_line(one['said'])}" if one["said"] else ""
    return f"{about}{said}"


def _say_pool(row: Row, as_json: bool) -> None:
    if as_json:
        print_json(plain(dict(row)))
        return
    price = money(row["price"], row["currency"])
    click.echo(f"{row['name']}: {row['ready']} of {row['wanted']} ready, {price} an hour")
