"""What can be asked of a job: the options of ``submit`` and ``schedule add``, and job files.

Pure but for :func:`read_file`.  Every mistake is found here or by the dispatcher, before there is
a job.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from spinal.bus.arguments import ArgumentError, is_blob
from spinal.protocols import duration, path

from .common import option_of, place_option, places, policy_option, tag_option, together

if TYPE_CHECKING:
    from spinal.bus.options import Options

#: Largest job file that is read, in bytes.
MAX_FILE: Final = 16 * 2**20


# Readers; each raises ValueError with a text that shows how to write it.


def read_retry(text: str) -> dict[str, Any]:
    """Read when to try again: ``3``, or ``3,backoff=2s,most=1m,on=failed+deadline,elsewhere``."""
    count, *words = text.split(",")
    if not (count.isascii() and count.isdigit()) or len(count) > 9:
        raise ValueError(f"{text!r} does not begin with how often: write 3, or 3,backoff=2s")
    policy: dict[str, Any] = {"count": int(count)}
    for word in words:
        name, equals, given = word.partition("=")
        if name not in _RETRY or bool(equals) == (name == "elsewhere"):
            raise ValueError(
                f"{word!r} is none of backoff=2s, most=1m, on=failed+deadline, elsewhere"
            )
        policy[name] = _RETRY[name](given)
    return policy


_RETRY: Final[Mapping[str, Callable[[str], Any]]] = {
    "backoff": duration.parse,
    "most": duration.parse,
    "on": lambda given: given.split("+"),
    "elsewhere": lambda _: True,
}


_HOUR: Final = re.compile(r"\d\d:\d\d(:\d\d)?")


def read_time(text: str, now: datetime | None = None) -> str:
    """Read a point in time as UTC: RFC 3339, or local without a zone; ``HH:MM`` is the next one."""
    here = now or datetime.now()
    try:
        if _HOUR.fullmatch(text):
            found = datetime.combine(here.date(), time.fromisoformat(text))
            if found <= here:
                found += timedelta(days=1)
        else:
            found = datetime.fromisoformat(text)
        return found.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        raise ValueError(
            f"not a time: {text!r} (write 2026-11-21T09:00:00Z, or 2026-11-21T09:00 or 09:00 for "
            "local time)"
        ) from None


def read_rate(text: str) -> tuple[float, float]:
    """Read a rate: ``10/s``, ``10/m``, ``100/30s``; gives how many, and in how many seconds."""
    count, _, unit = text.partition("/")
    try:
        number = float(count)
        per = duration.parse(unit if unit[:1].isdigit() else f"1{unit}")
    except ValueError:
        number = per = 0.0
    if not unit.strip("0123456789.") or not 0 < number < float("inf") or not per:
        raise ValueError(f"not a rate: {text!r} (write 10/s, 10/m or 100/30s)")
    return number, per


# Options.

#: Decorator: what a job may be asked for, whether it is submitted now or by a schedule;
#: :func:`asked` reads it.
job_options: Final = together(
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="WORD",
        help="A word to find it by; may be repeated.",
    ),
    click.option(
        "--priority",
        type=click.IntRange(-9, 9),
        metavar="N",
        help="From -9 to 9; higher ones go first (default 0).",
    ),
    click.option(
        "--deadline", metavar="2h", help="Give up so long after it could run (default 1h)."
    ),
    click.option(
        "--max-run",
        metavar="5m",
        help="Time that one attempt may run (default: what the operation says).",
    ),
    click.option(
        "--retry",
        metavar="N[,...]",
        callback=option_of(read_retry),
        help="Try N times more: 3, or 3,backoff=2s,most=1m,on=failed+deadline,elsewhere.",
    ),
    policy_option,
    place_option,
    tag_option,
    click.option(
        "--rerun",
        is_flag=True,
        default=None,
        help="Run it again after an attempt was lost, although it is not safe to.",
    ),
    click.option(
        "--on-done", metavar="OP", help="Tell this operation, with a job, when it is done."
    ),
    click.option("--on-error", metavar="OP", help="Tell this operation when it ended otherwise."),
)

#: Decorator: what only a job that is submitted now can be asked for.
now_options: Final = together(
    click.option("--key", help="The same key gives the same job, not another one."),
    click.option("--delay", metavar="10s", help="Let it wait so long."),
    click.option(
        "--at",
        metavar="TIME",
        callback=option_of(read_time),
        help="Let it wait until then: 2026-11-21T09:00:00Z; 2026-11-21T09:00 or 09:00 is local.",
    ),
    click.option(
        "--after", multiple=True, metavar="ID", help="Let it wait for this job; may be repeated."
    ),
    click.option(
        "--when",
        type=click.Choice(["done", "any", "ended"]),
        help="Go on when all of those are done (default), any is done, or all have ended.",
    ),
    click.option("--to", metavar="AGENT", help="This agent alone: its name or address."),
)


def asked(*, place: Sequence[str] = (), **given: Any) -> Options:
    """Read options as they were typed.

    Raises:
        LocalProtocolError: one cannot be what it is; the text begins with it.
    """
    from spinal.bus.options import Options

    wanted = {"place": places(place), **given}
    try:
        return Options().changed(**{name: value for name, value in wanted.items() if _said(value)})
    except ValueError as error:
        name, _, said = str(error).partition(":")
        raise ArgumentError(f"--{name.replace('_', '-')}:{said}", name) from error


def _said(value: Any) -> bool:
    return value is not None and value not in ((), {})


# Job files.

#: Members of a job in a file besides what it is; those with a reader may be texts for it.
_MEMBERS: Final[Mapping[str, Callable[[str], Any] | None]] = {
    **dict.fromkeys(
        ("key", "labels", "priority", "delay", "after", "when", "deadline", "max_run", "policy"),
    ),
    **dict.fromkeys(("place", "tags", "sticky", "rerun", "to", "on_done", "on_error")),
    "at": read_time,
    "retry": read_retry,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One job of a file."""

    name: str
    op: str
    args: Mapping[str, Any]
    options: Options


def read_file(file: Path) -> list[Wanted]:
    """Read the jobs of a file, ``-`` for standard input; see :func:`read_jobs`.

    Raises:
        OSError: the file cannot be read.
        LocalProtocolError: it is not a list of jobs; the text says where.
    """
    if str(file) == "-":
        content = sys.stdin.buffer.read(MAX_FILE + 1)
    else:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ArgumentError(f"{file} is larger than {MAX_FILE} bytes: split it")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{file} is not JSON: {error}") from error
    return read_jobs(found, str(file))


def read_jobs(found: Any, where: str) -> list[Wanted]:
    """Read a list of ``{"name", "op", "args", "after", ...}``.

    What an option of ``spinal submit`` reads from a text (``"10s"``) may be that text here.

    Raises:
        LocalProtocolError: it is none; the text says where.
    """
    if not isinstance(found, list) or not found:
        raise ArgumentError(f'{where} is no list of jobs: write [{{"name": "a", "op": "/x"}}, ...]')
    items: list[Any] = found  # pyright: ignore[reportUnknownVariableType] - of Any
    jobs: dict[str, Wanted] = {}
    for number, item in enumerate(items, 1):
        try:
            job = _read_job(item)
        except ValueError as error:
            raise ArgumentError(f"{where}: job {number}: {error}") from error
        if job.name in jobs:
            raise ArgumentError(f"{where}: job {number}: another one is named {job.name!r}", "name")
        jobs[job.name] = job
    return list(jobs.values())


def _read_job(item: Any) -> Wanted:
    from spinal.bus.options import Options

    if not isinstance(item, dict):
        raise ArgumentError("must be an object")
    members: dict[str, Any] = dict(item)  # pyright: ignore[reportUnknownArgumentType] - of Any
    name, op, args = members.pop("name", None), members.pop("op", None), members.pop("args", {})
    if not isinstance(name, str) or not name:
        raise ArgumentError("name: must be a text", "name")
    if not isinstance(op, str):
        raise ArgumentError("op: must be the path of an operation", "op")
    if not isinstance(args, dict):
        raise ArgumentError("args: must be an object", "args")
    path.parts(op)
    for member, value in members.items():
        if member not in _MEMBERS:
            known = ", ".join(("name", "op", "args", *_MEMBERS))
            raise ArgumentError(f"there is no member {member!r}, only {known}", member)
        reader = _MEMBERS[member]
        if reader is not None and isinstance(value, str):
            members[member] = reader(value)
    return Wanted(name, op, args, Options().changed(**members))  # pyright: ignore[reportUnknownArgumentType] - of Any


def with_files(args: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Make paths of those texts that the operation wants as blobs."""
    properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
    return {
        name: Path(value).expanduser()
        if isinstance(value, str) and is_blob(properties.get(name, {}))
        else value
        for name, value in args.items()
    }
