"""``spinal job``: one job."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from .call import check_folder, give, out_option
from .common import (
    CONTEXT,
    Ended,
    client,
    folded,
    json_option,
    plain,
    print_json,
    run,
    say,
    show_home,
    timeout_option,
    titled,
)
from .jobview import FINAL, Row, facts, log_line, share, step, utc_now
from .submit import follow

if TYPE_CHECKING:
    from spinal.bus import Job
    from spinal.bus.jobs import JobUpdate, LogLine

T = TypeVar("T")

#: Characters of an id.
ID: Final = 20
#: Where the values of facts begin.
MARGIN: Final = 11

id_argument = click.argument("id_", metavar="ID")


@click.group(context_settings=CONTEXT)
@show_home
def job() -> None:
    """Show, explain, wait for, cancel or retry the job ID.

    An ID is exact, all 20 characters of it, as `spinal submit` and `spinal jobs` print it; the
    beginning of one is not taken. An unknown one is an error (exit 1).
    """


@job.command(context_settings=CONTEXT)
@id_argument
@json_option
@show_home
def show(id_: str, as_json: bool) -> None:
    """Show all that is known of the job ID.

    Its state and problem, its times, what it took (time waited and run, CPU, peak memory, cost),
    each attempt, arguments and value.
    """

    async def work(job: Job) -> dict[str, Any]:
        return await job.info()

    found = _about(id_, work)
    if as_json:
        print_json(plain(found))
        return
    titled(facts(found, utc_now()), MARGIN)


@job.command(context_settings=CONTEXT)
@id_argument
@json_option
@show_home
def why(id_: str, as_json: bool) -> None:
    """Say why the job ID is where it is.

    Who was chosen, who was passed over and for what reason, and how each attempt ended; or what it
    waits for.
    """

    async def work(job: Job) -> list[str]:
        return await job.why()

    lines = _about(id_, work)
    if as_json:
        print_json({"id": id_, "lines": list(lines)})
        return
    for line in lines:
        click.echo(folded(line, 2))


@job.command(context_settings=CONTEXT)
@id_argument
@click.option("--follow", "stay", is_flag=True, help="Stay, and print lines as they come.")
@json_option
@show_home
def log(id_: str, stay: bool, as_json: bool) -> None:
    """Print the log of the job ID.

    With --follow until the job ends; Ctrl-C leaves the job as it is. With --json one {"seq", "at",
    "level", "text"} per line.
    """

    async def work(job: Job) -> int:
        if not stay:
            found = await job.log()
            for line in found:
                _print_line(line, as_json)
            return found.dropped
        async with aclosing(job.watch()) as updates:
            async for update in updates:
                if update.log is not None:
                    _print_line(update.log, as_json)
        return 0

    dropped = _about(id_, work)
    if dropped:
        say(f"{dropped} lines more were not kept")


def _line(line: LogLine) -> dict[str, Any]:
    return {"seq": line.seq, "at": line.at, "level": line.level, "text": line.text}


def _print_line(line: LogLine, as_json: bool) -> None:
    if as_json:
        print_json(_line(line))
    else:
        click.echo(log_line(_line(line), utc_now()))
        sys.stdout.flush()


@job.command(context_settings=CONTEXT)
@id_argument
@json_option
@show_home
def cancel(id_: str, as_json: bool) -> None:
    """Cancel the job ID, and print the state that it is in then.

    Exit code 1 if it had ended already, in another state than "killed".
    """

    async def work(job: Job) -> str:
        return await job.cancel()

    state = _about(id_, work)
    if as_json:
        print_json({"id": id_, "state": state})
    else:
        click.echo(state)
    if state == "killed":
        return
    if state in FINAL:
        say(f"spinal: job {id_} had ended already: it is {state}")
        raise Ended(1)
    say(f"spinal: job {id_} is being stopped: `spinal job wait {id_}`")


@job.command(context_settings=CONTEXT)
@id_argument
@json_option
@show_home
def retry(id_: str, as_json: bool) -> None:
    """Submit what the job ID asked for once more, and print the id of the new job.

    The job must have ended. With --json: the new job.
    """

    async def work(job: Job) -> Row:
        return (await job.retry()).row

    new = _about(id_, work)
    if as_json:
        print_json(plain(dict(new)))
    else:
        click.echo(new["id"])


@job.command(context_settings=CONTEXT)
@id_argument
@timeout_option
@out_option
@json_option
@show_home
def wait(id_: str, timeout: float | None, out: Path | None, as_json: bool) -> None:
    """Wait until the job ID ends, and print its value.

    Shows its progress and log meanwhile. The exit code is that of the job; 4 if it had not ended
    within --timeout. Ctrl-C leaves the job as it is. With --json: {"id", "value"}.
    """
    if out is not None:
        check_folder(out.parent)

    async def work(job: Job) -> None:
        await give(await follow(job, f"job {id_}", timeout), out, as_json, id=id_)

    _about(id_, work)


@job.command(context_settings=CONTEXT)
@id_argument
@json_option
@show_home
def watch(id_: str, as_json: bool) -> None:
    """Print what happens to the job ID, one line each, until it ends.

    The exit code is that of the job. Ctrl-C leaves the job as it is. With --json the lines are
    {"state": ..., ...} with all that a list of jobs shows, {"progress": {"done", "total", "note"}}
    and {"log": {"seq", "at", "level", "text"}}; the last one has the value.
    """

    async def work(job: Job) -> None:
        async with aclosing(job.watch()) as updates:
            async for update in updates:
                _print_update(update, as_json)
        await job.result()

    _about(id_, work)


def _print_update(update: JobUpdate, as_json: bool) -> None:
    if as_json:
        print_json(told(update))
        return
    now = utc_now()
    if update.row is not None:
        click.echo(step(update.row, now))
    elif update.progress is not None:
        click.echo(f"{now.astimezone():%H:%M:%S}  {share(_progress(update))}")
    elif update.log is not None:
        click.echo(log_line(_line(update.log), now))
    sys.stdout.flush()


def told(update: JobUpdate) -> dict[str, Any]:
    """Give a piece of news as JSON."""
    if update.row is not None:
        row: Any = plain(dict(update.row))
        return dict(row)
    if update.log is not None:
        return {"log": _line(update.log)}
    return {"progress": _progress(update)}


def _progress(update: JobUpdate) -> dict[str, Any]:
    at = update.progress
    assert at is not None
    return {"done": at.done, "total": at.total, "note": at.note}


def _about(id_: str, work: Callable[[Job], Awaitable[T]]) -> T:
    """Do something with a job.

    Raises:
        CallError: there is no such job, or what the work raises.
    """
    from spinal.bus import CallError
    from spinal.protocols import Problem

    async def asking() -> T:
        async with client() as bus:
            try:
                found = bus.job(id_)
            except ValueError as error:
                raise CallError.of(unknown) from error
            return await work(found)

    unknown = Problem(
        "unknown-job", f"there is no job {id_}: an id has {ID} characters, all needed"
    )
    try:
        return run(asking())
    except CallError as error:
        if error.reason == "unknown-job" and len(id_) != ID:
            raise CallError.of(unknown) from error
        raise
