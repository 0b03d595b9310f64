"""What all verbs have in common: options, how values are shown, how errors end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from spinal.protocols import POLICIES, Json, SpinalError

if TYPE_CHECKING:
    from rich.table import Table

    from spinal.bus import Client
    from spinal.bus.home import Home

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

CONTEXT: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_HOME: Final = "spinal.home"


class Ended(Exception):
    """A verb has said all there is to say, and ends with this exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


# Options.


def option_of(read: Callable[[str], Any]) -> Callable[..., Any]:
    """Make a callback of an option out of a reader, of which a ValueError is a mistake in it."""

    def callback(ctx: click.Context, param: click.Parameter, given: str | None) -> Any:
        try:
            return None if given is None else read(given)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    """Make one decorator of several; ``--help`` shows their options in this order."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _keep_home(ctx: click.Context, _: click.Parameter, given: Path | None) -> None:
    if given is not None:
        ctx.meta[_HOME] = given


#: Option ``--home``; taken by ``spinal`` itself and by every verb, the inner one counts.
show_home = click.option(
    "--home",
    type=click.Path(path_type=Path),
    expose_value=False,
    is_eager=True,
    callback=_keep_home,
    metavar="DIR",
    help="The home folder; else $SPINAL_HOME, else the XDG data folder.",
)

#: Option ``--json``; gives ``as_json`` to the verb.
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout, errors too."
)


def home_path() -> Path | None:
    """Give the folder that was named with ``--home``."""
    found: Path | None = click.get_current_context().meta.get(_HOME)
    return found


def home() -> Home:
    """Open the home; raises :class:`~spinal.bus.errors.HomeError`."""
    from spinal.bus.home import Home

    return Home.find(home_path())


def _read_timeout(text: str) -> float:
    from spinal.protocols import duration

    seconds = duration.parse(text)
    if seconds == 0:
        raise ValueError("a call needs more time than none")
    return seconds


#: Option ``--timeout``; gives ``timeout`` to the verb, in seconds.
timeout_option = click.option(
    "--timeout",
    metavar="30s",
    callback=option_of(_read_timeout),
    help="Give up after this time (default: what the operation says).",
)


place_option = click.option(
    "--place",
    "place",
    multiple=True,
    metavar="KEY=/PATH",
    help="Only agents at this place; without a key it is the site.",
)
tag_option = click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="Only agents that have this tag."
)
policy_option = click.option(
    "--policy",
    type=click.Choice(POLICIES),
    help="How agents are ranked (default least-loaded).",
)


def places(words: Sequence[str]) -> dict[str, str]:
    """Read ``key=/path`` and ``/path`` words as keyed places.

    Raises :class:`~spinal.protocols.LocalProtocolError` for one that is no path.
    """
    from spinal.protocols import path

    keyed: dict[str, str] = {}
    for word in words:
        key, equals, place = word.partition("=")
        keyed.update({key: place} if equals else {path.DEFAULT_KEY: word})
    return path.check_places(keyed)


# Running.


def start_logging(level: str = "warning") -> None:
    """Send log events to stderr; raises :class:`click.UsageError` if ``$SPINAL_LOG`` is no level."""
    from spinal import logs

    try:
        logs.configure(level)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's coroutine.  Ctrl-C cancels it, waits for its cleaning up, and ends with 130."""
    import asyncio

    try:
        start_logging()
    except click.UsageError:
        work.close()
        raise
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise Ended(130) from None


def client() -> Client:
    """Make a client for the home that was named, else by the environment, else for the home."""
    from spinal.bus import Client

    return Client(home_path())


# Output.


def print_json(value: Json) -> None:
    """Print one JSON value as a line on stdout, at once."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Json:
    """Give a value that the bus returned as JSON; blobs as their references."""
    from spinal.bus import Blob

    if isinstance(value, Blob):
        assert value.ref is not None
        return value.ref.to_json()
    if isinstance(value, dict):
        members: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        return {key: plain(inner) for key, inner in members.items()}
    if isinstance(value, list):
        items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        return [plain(inner) for inner in items]
    return value


def text(value: Any) -> str:
    """Write a value that the bus returned for people: text as it is, the rest as JSON."""
    from spinal.bus import Blob

    if isinstance(value, Blob):
        assert value.ref is not None
        return f"{value.ref.url}  {size(value.size)}  {value.media_type}  sha256:{value.sha256}"
    if isinstance(value, str):
        return value
    return json.dumps(plain(value), ensure_ascii=False, indent=2)


def say(line: str) -> None:
    """Print a line for people on stderr."""
    click.echo(line, err=True)


def folded(words: str, indent: int = 0) -> str:
    """Fold a line between words, and indent what follows, where it is for a terminal."""
    if not sys.stdout.isatty():
        return words
    import shutil
    import textwrap

    width = shutil.get_terminal_size().columns
    return textwrap.fill(
        words,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def titled(rows: Iterable[tuple[str, str]], margin: int) -> None:
    """Print titles and their values, which may have lines, with the values below each other."""
    for title, value in rows:
        for line in value.split("\n"):
            click.echo(folded(f"{title:{margin}}{line}", margin + 2))
            title = ""


def size(count: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(rows: Sequence[Sequence[str]], headings: Sequence[str], empty: str) -> None:
    """Print a table on stdout: drawn on a terminal, tab-separated elsewhere."""
    if not rows:
        say(empty)
    elif not sys.stdout.isatty():
        for row in rows:
            click.echo("\t".join(cell.replace("\n", " ") for cell in row))
    else:
        from rich.console import Console

        Console().print(drawn(rows, headings))


#: Columns that people copy from.
WHOLE: Final = frozenset({"id", "type", "region", "machine"})


def drawn(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> Table:
    """Draw a table for a terminal; what is copied from it, such as an ``id``, is never broken."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        found.add_column(heading, no_wrap=heading in WHOLE)
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))
    return found


class Listing(click.Group):
    """A group of verbs that lists when it is not told what to do."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` where a verb is missing."""
        first = 2 if args[:1] == ["--home"] else int(args[:1] != [] and "--home=" in args[0])
        if not args[first:] or (
            args[first].startswith("-") and args[first] not in ctx.help_option_names
        ):
            args = [*args[:first], "list", *args[first:]]
        return super().parse_args(ctx, args)


# Errors.


def report(error: Exception, *, as_json: bool = False) -> int:
    """Say in one line what went wrong and what to do next, and give the exit code."""
    words, code = _told(error)
    line = " ".join(words.split())
    agent = getattr(error, "agent", None)
    # A file's mistakes are a line each.
    for one in getattr(error, "mistakes", None) or [f"{line} (at {agent})" if agent else line]:
        say(f"spinal: {one}")
    if as_json:
        detail: dict[str, Json] = {"text": line, "exit": code}
        problem = getattr(error, "problem", None)
        if problem is not None:
            detail = {**problem.to_json(), **detail}
        if agent:
            detail["agent"] = agent
        print_json({"error": detail})
    return code


def _told(error: Exception) -> tuple[str, int]:
    while isinstance(error, ExceptionGroup):
        # Out of a task group: the first one is what went wrong, the others followed from it.
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    if isinstance(error, SpinalError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; check the path", 1
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "spinal"
        return f"{error.format_message()} (see `{command} --help`)", 2
    line = f"unexpected {type(error).__name__}: {error}; this is a bug: run it again with"
    return f"{line} SPINAL_DEBUG=1 and report the traceback", 1
