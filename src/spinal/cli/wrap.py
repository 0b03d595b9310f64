"""``spinal wrap``: something that exists as an agent, from one YAML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spinal.bus.arguments import convert, parse, usages
from spinal.protocols import Json

from .agent import run_options, serve
from .call import check_folder, give, out_option
from .common import (
    CONTEXT,
    Ended,
    folded,
    json_option,
    print_json,
    run,
    say,
    show_home,
    start_logging,
)
from .common import text as write_text
from .init import init
from .install import install
from .progress import Progress

if TYPE_CHECKING:
    from spinal.agents.wrap import Manifest
    from spinal.protocols import Operation

manifest_argument = click.argument("file", type=click.Path(path_type=Path))


@click.group(context_settings=CONTEXT)
@show_home
def wrap() -> None:
    """Make an agent of something that exists, from one YAML FILE.

    A manifest names the operations and says how each is done: by a program that is run or kept
    running, an HTTP service, a line protocol, SQL, or files in a folder.
    """


wrap.add_command(init)
wrap.add_command(install)


def _load(file: Path, *, here: bool = True) -> Manifest:
    """Read a manifest; with ``here``, what it needs has to be on this machine."""
    from spinal.agents.document import BadDocument
    from spinal.agents.wrap import load

    found = load(file)
    if here and (missing := list(found.missing())):
        raise BadDocument(missing)
    return found


@wrap.command(context_settings=CONTEXT)
@manifest_argument
@json_option
@show_home
def check(file: Path, as_json: bool) -> None:
    """Check a manifest, and whether what it needs is on this machine.

    Nothing is run. Exit code 2 if there are mistakes.

    With --json: {"agent", "ops": [...], "mistakes": [{"file", "line", "key", "text"}]}.
    """
    from spinal.agents.document import BadDocument
    from spinal.agents.wrap import load

    found: Manifest | None = None
    try:
        found = load(file)
        mistakes = list(found.missing())
    except BadDocument as exc:
        mistakes = exc.mistakes
    # The same secret or program may be missing in many places.
    places = Counter(one.text for one in mistakes)
    for one in mistakes:
        others = places.pop(one.text, 0) - 1
        if others >= 0:
            more = f" (and in {others} more places)" if others > 1 else " (and in one more)"
            say(folded(f"{one}{more if others else ''}", 2))
    if as_json:
        print_json(
            {
                "agent": None if found is None else found.name,
                "ops": [] if found is None else list(found.ops),
                "mistakes": [
                    {"file": one.file, "line": one.line, "key": one.key, "text": one.text}
                    for one in mistakes
                ],
            }
        )
    if mistakes:
        count = "one mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        say(f"spinal: {count} in {file}")
        raise Ended(2)
    assert found is not None
    if not as_json:
        count = "one operation" if len(found.ops) == 1 else f"{len(found.ops)} operations"
        click.echo(f"{file}: agent {found.name}, {count}, no mistakes")


@wrap.command(context_settings=CONTEXT, short_help="Show the operations as callers will see them.")
@manifest_argument
@json_option
@show_home
def show(file: Path, as_json: bool) -> None:
    """Show the operations of a manifest and their help, as callers will see them.

    With --json: the description that goes over the bus.
    """
    found = _load(file, here=False)
    agent = found.agent()
    if as_json:
        print_json({path: op.public.to_json() for path, op in agent.operations.items()})
        return
    said: Mapping[str, Any] = found.document.value
    say(folded(_whole(found), 2))
    for place, (path, operation) in enumerate(agent.operations.items()):
        if place:
            click.echo("")
        _show(path, operation.public, said["ops"][path].get("rights") or said.get("rights"))


def _whole(found: Manifest) -> str:
    """Say what is true of all operations."""
    words = [f"agent {found.name}"]
    words += [
        f"at {place}" if key == "site" else f"{key} {place}" for key, place in found.place.items()
    ]
    if found.tags:
        words.append(f"tagged {' '.join(found.tags)}")
    if found.slots is not None:
        words.append("one call at once" if found.slots == 1 else f"{found.slots} calls at once")
    return ", ".join(words)


def _show(path: str, operation: Operation, rights: Mapping[str, Any] | None) -> None:
    from spinal.protocols import duration

    click.echo(folded(f"{path} {' '.join(usages(operation.args))}", 4))
    if operation.summary:
        click.echo(folded(f"  {operation.summary}", 2))
    properties: Mapping[str, Mapping[str, Json]] = operation.args.get("properties", {})
    for name, schema in properties.items():
        about = _about(schema)
        if about:
            click.echo(folded(f"    {name}: {about}", 6))
    safe = ", may run twice" if operation.safe and operation.effects != "reads" else ""
    most = f", at most {duration.write(operation.timeout)}"
    only = "" if rights is None else f", for {' and '.join(rights['call'])} only"
    click.echo(folded(f"  {operation.effects}{safe}{most}{only}", 4))


def _about(schema: Mapping[str, Any]) -> str:
    """Say what an argument may be, in one line."""
    part: Mapping[str, Any] = next(
        (one for one in schema.get("anyOf", ()) if one.get("type") != "null"), schema
    )
    words = [str(schema["description"]).rstrip(".")] if "description" in schema else []
    for key, text in (
        ("minimum", "at least {}"),
        ("maximum", "at most {}"),
        ("minLength", "at least {} characters"),
        ("maxLength", "at most {} characters"),
        ("pattern", "matches {}"),
    ):
        if key in part:
            words.append(text.format(_bare(part[key])))
    if schema.get("default") is not None:
        words.append(f"default {write_text(schema['default'])}")
    return "; ".join(words)


def _bare(limit: Any) -> Any:
    """Take off a pattern what says that all of a text has to match; that goes without saying."""
    if isinstance(limit, str) and limit.startswith("^(?:") and limit.endswith(")$"):
        return limit[4:-2]
    return limit


@wrap.command(
    context_settings=CONTEXT,
    short_help="Run one operation here, without a bus, and print its value.",
)
@manifest_argument
@click.argument("arguments", nargs=-1, metavar="[key=value | key:=json | key@=file]...")
@click.option("--op", help="Which operation; may be left out where there is one.")
@out_option
@json_option
@show_home
def test(
    file: Path, arguments: tuple[str, ...], op: str | None, out: Path | None, as_json: bool
) -> None:
    """Run one operation of a manifest here, without a bus, and print its value.

    With --json: {"value": ...}; a blob is {"size", "sha256", "media"}, --out keeps its bytes.
    """
    from spinal.agents.wrap.trial import Trial

    found = _load(file)
    if op is None:
        if len(found.ops) != 1:
            raise click.UsageError(f"say which operation: --op {' or --op '.join(found.ops)}")
        (op,) = found.ops
    elif op not in found.ops:
        raise click.UsageError(f"no operation {op}, only {', '.join(found.ops)}")
    if out is not None:
        check_folder(out.parent)
    operation = found.ops[op].operation
    values = convert(parse(arguments), operation.public.args)

    async def work() -> None:
        with Progress(op) as progress:
            trial = Trial(found, op, progress.at, progress.line)
            value = await trial.run(values)
        await give(value, out, as_json)

    run(work())


@wrap.command(name="run", context_settings=CONTEXT)
@manifest_argument
@run_options
@json_option
@show_home
def run_manifest(
    file: Path,
    name: str | None,
    slots: int | None,
    place: tuple[str, ...],
    tags: tuple[str, ...],
    cost: float | None,
    as_json: bool,
) -> None:
    """Run the agent of a manifest until Ctrl-C or SIGTERM.

    As `spinal agent run`: the first signal lets what runs end, the second one stops it.

    With --json: {"event": "ready", "agent", "slots", "ops"} once it is on the bus.
    """
    start_logging("info")
    serve(_load(file).agent(), name, slots, place, tags, cost, as_json)


@wrap.command(context_settings=CONTEXT)
@show_home
def schema() -> None:
    """Print the JSON Schema of a manifest, for editors.

    With YAML support in an editor, put this line first in a manifest: # yaml-language-server:
    $schema=manifest.schema.json
    """
    from spinal.agents.wrap.manifest import published

    print_json(published())
