"""``spinal submit``: a call that is stored and seen through."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spinal.bus.arguments import Given, convert, parse
from spinal.protocols import path

from .call import check_folder, describe, give, out_option, show_news
from .common import CONTEXT, client, json_option, plain, print_json, run, say, show_home
from .jobview import FINAL, Row, clock, note, utc_now
from .progress import Progress
from .submission import Wanted, asked, job_options, now_options, read_file, with_files

if TYPE_CHECKING:
    from spinal.bus import Client, Job


@click.command(context_settings=CONTEXT)
@click.argument("op", required=False)
@click.argument("arguments", nargs=-1, metavar="[key=value | key:=json | key@=file]...")
@now_options
@job_options
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Submit the jobs of a JSON file, all of them or none; - is standard input.",
)
@click.option("--wait", is_flag=True, help="Wait for its end and print the value.")
@out_option
@json_option
@show_home
def submit(
    op: str | None,
    arguments: tuple[str, ...],
    file: Path | None,
    wait: bool,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit the operation OP as a job, and print its id.

    A job is stored, and ends: it waits until an agent can do it, goes on after a restart of
    anything, is tried again as --retry says, and is given up at its deadline. Arguments are those
    of `spinal call`.

    With --wait the value is printed as `spinal call` does, and the exit code is that of the job;
    Ctrl-C leaves the job as it is. With --json: the job, with --wait {"id", "value"}.

    A FILE is a list of jobs, {"name", "op", "args", "after", ...}; "after" takes names of the same
    list, the other members are the options above with _ for -, in the plural "labels" and "tags".
    Each name is printed with its id.

    \b
    id=$(spinal submit /image/resize photo@=cat.jpg --label cats --retry 3)
    spinal submit /mail/digest --after "$id" --at 09:00
    spinal submit --wait --max-run 5m /report/year year=2026
    spinal submit --file nightly.json
    """
    wanted = asked(**options)
    if file is not None:
        if op is not None or wanted != asked() or wait or out:
            raise click.UsageError("--file goes alone: what is asked of a job stands in the file")
        _print_all(run(_submit_all(read_file(file))), as_json)
        return
    if op is None:
        raise click.UsageError("Missing argument 'OP', or --file")
    path.parts(op)
    given = parse(arguments)
    if out is not None:
        if not wait:
            raise click.UsageError("--out goes with --wait")
        check_folder(out.parent)

    async def work() -> None:
        async with client() as bus:
            args, offered = await prepared(bus, op, given)
            job = await bus.with_options(wanted).submit(op, **args)
            if wait:
                say(f"job {job.id}")
            elif as_json:
                print_json(plain(dict(job.row)))
            else:
                click.echo(job.id)
            for line in remarks(job.row, offered):
                say(line)
            if wait:
                await give(await follow(job, op), out, as_json, id=job.id)

    run(work())


async def follow(job: Job, title: str, timeout: float | None = None) -> Any:
    """Wait until a job ends, and give its value; show its progress and log on stderr meanwhile.

    Raises:
        NotEnded: not within so many seconds; it goes on, as it does when we are cancelled.
        CallError: it did not end well.
    """
    from spinal.bus.jobs import outcome

    with Progress(title) as progress:
        try:
            row = await job.followed(timeout, lambda item: show_news(item, progress))
        except asyncio.CancelledError:
            progress.line(f"job {job.id} goes on: `spinal job wait {job.id}`")
            raise
    return outcome({"id": job.id, **row}, timeout)


async def prepared(bus: Client, op: str, given: Sequence[Given]) -> tuple[dict[str, Any], bool]:
    """Make values of what was typed, by the operation's schema where somebody offers it.

    Also tells whether somebody does; if not, and that makes a difference, says so.
    """
    described = await describe(bus, op, may_miss=True)
    offered = "op" in described
    if not offered and any(one.form != ":" for one in given):
        say(f"nobody offers {op} now, so its arguments go as text: key:=json sends anything else")
    return convert(given, described["args"]), offered


def remarks(job: Row, offered: bool) -> list[str]:
    """Say what somebody who has just submitted a job should know of it."""
    now = utc_now()
    if job["state"] in FINAL:
        return [f"this key has a job already, which has ended: it is {job['state']}"]
    lines: list[str] = []
    if job["state"] == "waiting" and (said := note(job, now)):
        lines.append(f"it waits {said}")
    if not offered or job.get("offered") is False:
        until = f"; it waits until {clock(job['ends'], now)}" if "ends" in job else ""
        lines.append(f"nobody offers {job['op']} now{until}")
    return lines


async def _submit_all(jobs: Sequence[Wanted]) -> dict[str, str]:
    async with client() as bus:
        ops = {job.op for job in jobs}
        schemas = {op: (await describe(bus, op, may_miss=True))["args"] for op in ops}
        plan = {
            job.name: bus.with_options(job.options).planned(
                job.op, **with_files(job.args, schemas[job.op])
            )
            for job in jobs
        }
        return {name: job.id for name, job in (await bus.submit_all(plan)).items()}


def _print_all(accepted: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        print_json({"jobs": [{"name": name, "id": id_} for name, id_ in accepted.items()]})
        return
    for name, id_ in accepted.items():
        click.echo(f"{name}\t{id_}")
