"""``spinal conform``: does an agent keep the protocol?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import (
    CONTEXT,
    Ended,
    folded,
    home,
    json_option,
    print_json,
    run,
    say,
    show_home,
    table,
)

if TYPE_CHECKING:
    from spinal.conform import Check, Ops, Outcome, Report


@click.command(context_settings={**CONTEXT, "allow_interspersed_args": True})
@click.argument("address", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option(
    "--ops",
    "ops_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON: operations of its own to use in place of those of the protocol, as "
    '{"echo": {"op": "/mine/say", "args": {"words": "{value}"}}}.',
)
@click.option("--only", multiple=True, metavar="N[.N]", help="Only this check, or this chapter.")
@click.option("--list", "lists", is_flag=True, help="List the checks, and end.")
@click.option(
    "--junit",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the result there for a build server, too.",
)
@json_option
@show_home
def conform(
    address: str | None,
    command: tuple[str, ...],
    ops_file: Path | None,
    only: tuple[str, ...],
    lists: bool,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Try whether the agent at ADDRESS keeps the protocol, over the live bus.

    ADDRESS is a full address, or the name of its account, with the resource `agent`. The agent
    offers the operations of docs/protocol.md, section 18. With a COMMAND, which has the account ADDRESS
    (made if need be) in its SPINAL_* variables, the agent is started, killed and drained as well,
    and its advertisements are looked at; without one those checks are reported as not offered.

    Ends with 0 if every check that is its business passed, with 1 if one failed.

    With --json: a line for each check, {"check", "section", "title", "verdict", "seconds",
    "expected", "got", "sent"}, and a last one, {"agent", "conforms", "features", "passed",
    "failed", "not_offered", "not_run", "seconds"}.
    """
    from spinal.conform import CHECKS, on_home
    from spinal.conform import run as run_checks
    from spinal.conform.report import junit as as_junit
    from spinal.conform.report import row, summary

    chosen = _choose(CHECKS, only)
    if lists:
        _list(chosen, as_json)
        return
    if address is None:
        raise click.UsageError("give the ADDRESS of an agent, or --list")
    ops = None if ops_file is None else _ops(ops_file)
    place = home()
    if junit is not None and not junit.parent.is_dir():
        raise click.BadParameter(f"{junit.parent} is no folder", param_hint="--junit")

    def told(outcome: Outcome) -> None:
        if as_json:
            print_json(row(outcome))
        else:
            _show(outcome)

    async def work() -> Report:
        async with on_home(place, address, command, ops) as trial:
            return await run_checks(trial, chosen, told)

    found = run(work())
    if junit is not None:
        junit.write_bytes(as_junit(found))
    if as_json:
        print_json(summary(found))
    else:
        _conclude(found)
    raise Ended(0 if found.passed else 1)


def _choose(checks: tuple[Check, ...], only: tuple[str, ...]) -> list[Check]:
    if not only:
        return list(checks)
    found = [
        check for check in checks if check.number in only or check.number.split(".")[0] in only
    ]
    missing = [
        word
        for word in only
        if not any(word in (check.number, check.number.split(".")[0]) for check in checks)
    ]
    if missing:
        raise click.BadParameter(
            f"there is no check {missing[0]}: see `spinal conform --list`", param_hint="--only"
        )
    return found


def _list(checks: list[Check], as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "check": check.number,
                    "section": check.section,
                    "title": check.title,
                    "required": check.required,
                    "feature": check.feature or None,
                    "offer": check.offer or None,
                    "needs": check.needs or None,
                }
                for check in checks
            ]
        )
        return
    rows = [
        (c.number, c.section, c.feature or c.offer or c.needs or "core", c.title) for c in checks
    ]
    table(rows, ("check", "section", "of", "what it does that passes"), "")


def _ops(file: Path) -> Ops:
    """Read which operations to use.

    Raises :class:`click.BadParameter`.
    """
    from spinal.conform import Ops
    from spinal.conform.trial import CORE, EXTRA

    def wrong(why: str) -> click.BadParameter:
        return click.BadParameter(f"{file}: {why}", param_hint="--ops")

    try:
        raw: Any = json.loads(file.read_text("utf-8"))
    except OSError as exc:
        raise wrong(exc.strerror or "cannot be read") from exc
    except ValueError as exc:
        raise wrong(f"not JSON: {exc}") from exc
    if not isinstance(raw, dict) or not raw:
        raise wrong('an object is needed, such as {"echo": {"op": "/mine/say"}}')
    entries: dict[str, Any] = raw  # pyright: ignore[reportUnknownVariableType] - JSON
    paths: dict[str, str] = {}
    templates: dict[str, dict[str, Any]] = {}
    for role, entry in entries.items():
        if role not in (*CORE, *EXTRA):
            raise wrong(f"{role!r} is none of {', '.join((*CORE, *EXTRA))}")
        if not isinstance(entry, dict) or not isinstance(entry.get("op"), str):  # pyright: ignore
            raise wrong(f'{role!r} needs an "op"')
        said: dict[str, Any] = entry  # pyright: ignore[reportUnknownVariableType] - JSON
        paths[role] = said["op"]
        args = said.get("args")
        if isinstance(args, dict):
            templates[role] = args  # pyright: ignore[reportUnknownArgumentType] - JSON
        elif args is not None:
            raise wrong(f'"args" of {role!r} is no object')
    if "echo" not in paths:
        raise wrong('"echo" is needed: an operation that gives its text back')
    return Ops(paths, templates)


_MARKS = {"passed": "✓", "failed": "✗", "not-offered": "-", "not-run": "·"}


def _show(outcome: Outcome) -> None:
    mark = _MARKS[outcome.verdict.value]
    line = f"{mark} {outcome.number:5} {outcome.title} (section {outcome.section})"
    click.echo(folded(line, 8))
    if outcome.verdict.value == "passed":
        return
    if outcome.verdict.value != "failed":
        click.echo(folded(f"        {outcome.verdict.value}: {outcome.text}", 8))
        return
    for name, text in (
        ("expected", outcome.text),
        ("got", outcome.got or "nothing"),
        ("sent", outcome.sent),
    ):
        if text:
            click.echo(f"        {name:9}{text}")


def _conclude(found: Report) -> None:
    counted = summary_line(found)
    say(f"{found.agent}: {counted}")


def summary_line(found: Report) -> str:
    """Say in one line what a run came to."""
    from spinal.conform.report import summary

    counts = summary(found)
    parts = [
        f"{counts['passed']} passed",
        f"{counts['failed']} failed",
        f"{counts['not_offered']} not offered",
    ]
    if counts["not_run"]:
        parts.append(f"{counts['not_run']} not run")
    verdict = "conforms" if found.passed else "does not conform"
    return f"{verdict}; {', '.join(parts)} in {found.seconds:.0f} s"
