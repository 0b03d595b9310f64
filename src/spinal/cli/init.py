"""``spinal wrap init``: a draft of a manifest, from what a program or a service says of itself."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from spinal.protocols import LocalProtocolError

from .common import CONTEXT, folded, json_option, print_json, run, say, show_home

if TYPE_CHECKING:
    from spinal.agents.wrap.draft.help import Help
    from spinal.agents.wrap.draft.write import Draft, Op

#: Seconds that a program may take to print its help, and bytes that are read of it.
HELP_WITHIN: Final = 10.0
MAX_HELP: Final = 1024 * 1024

#: Bytes of a program in which its parser is looked for.
MAX_PROGRAM: Final = 64 * 1024 * 1024

#: Seconds in which a service's document has to arrive, and its most bytes.
FETCH_WITHIN: Final = 30.0
MAX_DOCUMENT: Final = 16 * 1024 * 1024

#: What a program that prints its help gets of our environment, and what makes the text plain.
_KEPT: Final = ("PATH", "HOME", "USER", "TMPDIR")
_PLAIN: Final = {
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TERM": "dumb",
    "NO_COLOR": "1",
    "COLUMNS": "200",
    "MANWIDTH": "160",
    **dict.fromkeys(("PAGER", "MANPAGER", "GIT_PAGER", "SYSTEMD_PAGER"), "cat"),
}


@click.command(context_settings=CONTEXT, short_help="Write a draft of a manifest.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--program",
    metavar="NAME",
    help="Read the help of this program; may hold words, as in 'python3 -m json.tool'.",
)
@click.option(
    "--sub",
    "subs",
    multiple=True,
    metavar="NAME",
    help="One operation for this sub-command; repeat.",
)
@click.option(
    "--help-option",
    "help_options",
    multiple=True,
    metavar="WORD",
    help="What makes the program print its help (default --help, then what it advises).",
)
@click.option("--openapi", metavar="FILE|URL", help="Read this OpenAPI or Swagger document.")
@click.option("--server", metavar="URL", help="Where the service is, if its document does not say.")
@click.option(
    "--only",
    multiple=True,
    metavar="'GET /PATH'",
    help="Only this operation of the document, or all of a path; repeat.",
)
@click.option("--agent", "name", metavar="NAME", help="Name of the agent.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@json_option
@show_home
def init(
    file: Path,
    program: str | None,
    subs: tuple[str, ...],
    help_options: tuple[str, ...],
    openapi: str | None,
    server: str | None,
    only: tuple[str, ...],
    name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a draft of a manifest to FILE ("-" prints it).

    With --program from what a program's help says: it is run with --help, with no input, in an empty
    folder, for at most 10 s. With --openapi from the document of an HTTP service. With neither, a
    short example to fill in. A draft passes `spinal wrap check`; what to look at first is marked with
    LOOK in it.

    With --json: {"file", "agent", "ops": [...], "needs": [...]}, which are the variables to be set.
    """
    if program is not None and openapi is not None:
        raise click.UsageError("give --program or --openapi, not both")
    if (subs or help_options) and program is None:
        raise click.UsageError("--sub and --help-option go with --program")
    if (server or only) and openapi is None:
        raise click.UsageError("--server and --only go with --openapi")
    prints = str(file) == "-"
    if not prints and file.exists() and not force:
        raise LocalProtocolError(f"{file} exists: give another name, or --force to overwrite it")
    if program is not None:
        draft = _of_program(program, subs, help_options)
    elif openapi is not None:
        draft = run(_of_document(openapi, server, only))
    else:
        draft = None
    if name is not None and draft is not None:
        draft.agent = name
    from spinal.agents.wrap.draft import write

    text = write.TEMPLATE if draft is None else write.write(draft)
    if draft is None:
        text = text.replace("agent: NAME ", f"agent: {name or _name_of(file):<5}", 1)
    found = _check(text, str(file))
    if prints:
        click.echo(text, nl=False)
        return
    _write(file, text, force)
    needs = [] if draft is None else draft.needs
    if as_json:
        print_json({"file": str(file), "agent": found.name, "ops": list(found.ops), "needs": needs})
        return
    say(
        f"{file}: agent {found.name}, {' '.join(list(found.ops)[:8])}{' ...' if len(found.ops) > 8 else ''}"
    )
    for variable in needs:
        say(f"it needs the variable {variable}")
    looks = text.count("# LOOK:")
    if looks:
        places = "place" if looks == 1 else f"{looks} places"
        say(f"look at the {places} marked LOOK, then: spinal wrap check {shlex.quote(str(file))}")


def _check(text: str, file: str) -> Any:
    """Make sure that a draft is a manifest."""
    from spinal.agents import document
    from spinal.agents.wrap import manifest

    return manifest.of(document.read(text, file, manifest.schema()))


def _write(file: Path, text: str, force: bool) -> None:
    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as exc:
        raise LocalProtocolError(f"{file} exists: --force overwrites it") from exc
    except OSError as exc:
        raise LocalProtocolError(f"{file} cannot be written: {exc.strerror}") from exc


def _name_of(file: Path) -> str:
    from spinal.agents.wrap.draft.write import agent_name

    return agent_name(file.stem if str(file) != "-" else "units")


# -- a program


def _of_program(said: str, subs: Sequence[str], help_options: Sequence[str]) -> Draft:
    from spinal.agents.wrap.draft import program as programs
    from spinal.agents.wrap.draft.write import Draft, agent_name

    try:
        words = shlex.split(said)
    except ValueError as exc:
        raise click.UsageError(f"--program: {exc}") from exc
    if not words or words[0].startswith("-"):
        raise click.UsageError("--program: give the name of a program")
    found = _find(words[0])
    if "/" in words[0]:
        # In a manifest it would be taken from the manifest's folder.
        words[0] = str(found.absolute())
    getopt = _uses_getopt(found)
    last = Path(words[-1]).name
    name = agent_name(last)
    ops: list[Op] = []
    for sub in subs or ("",):
        argv = (*words, *sub.split())
        help = run(_help_of(argv, help_options))
        if not help.found:
            said = f" (it says: {help.summary})" if help.summary else ""
            raise LocalProtocolError(
                f"{shlex.join(argv)} prints no help that can be read{said}: say how it does with "
                "--help-option, or begin with `spinal wrap init FILE` alone"
            )
        steps = [agent_name(word) for word in (last, *sub.split())]
        ops.append(programs.operation(programs.Program(argv, getopt), help, "/" + "/".join(steps)))
        if help.commands and not sub:
            known = ", ".join(list(help.commands)[:12]) + (
                " ..." if len(help.commands) > 12 else ""
            )
            say(folded(f"{last} has commands: {known}: name those that are wanted with --sub", 2))
    told = " ".join(help_options) or "--help"
    return Draft(name, f"what {shlex.join(words)} says of itself ({told})", ops)


def _find(name: str) -> Path:
    import shutil

    found = shutil.which(name)
    if found is None:
        raise LocalProtocolError(f"{name!r} is not here: install it, or give its path")
    return Path(found)


def _uses_getopt(program: Path) -> bool:
    """Tell whether a program calls getopt_long(3): the name stands in its table of symbols."""
    try:
        with program.open("rb") as file:
            data = file.read(MAX_PROGRAM)
    except OSError:
        # Then it is only not known.
        return False
    return data.startswith(b"\x7fELF") and b"\0getopt_long\0" in data


async def _help_of(argv: Sequence[str], given: Sequence[str]) -> Help:
    """Get the help of a program, and read it; without any, its summary is what the program said."""
    from spinal.agents.errors import one_line
    from spinal.agents.wrap.draft import help as reader

    words = [Path(argv[0]).name, *argv[1:]]
    asked: list[list[str]] = [[*argv, *given]] if given else [[*argv, "--help"]]
    manual = ["man", "--", "-".join([words[0], *[w for w in words[1:] if not w.startswith("-")]])]
    first = ""
    for attempt in range(3):
        if attempt == len(asked):
            break
        text = await _output(asked[attempt])
        first = first or text
        # What some show for --help is a page of their manual; -h is shorter then.
        is_manual = re.match(r"\s*[A-Z0-9_.-]+\([1-9a-z]+\)", text) is not None
        found = reader.read(text, words)
        if found.found and (given or not is_manual):
            return found
        if given:
            break
        asked += _advised(text, argv, is_manual)
    found = reader.Help() if given else reader.read(await _output(manual), words)
    return found if found.found else reader.Help(one_line(first.strip().partition("\n")[0], 200))


def _advised(text: str, argv: Sequence[str], is_manual: bool) -> Iterator[list[str]]:
    """Give other ways to ask for help.

    ``-h`` and ``help`` may mean something else (shutdown -h halts, touch help makes a file); so they
    are tried only where the program has said that it knows them, or does not know ``--help``.
    """
    program = re.escape(Path(argv[0]).name)
    if re.search(rf"['\"`]?{program} help\b", text):
        yield [argv[0], "help", *argv[1:]]
    refused = re.search(
        r"(?i)(?:un(?:known|recogni[sz]ed)|invalid|illegal|bad) (?:option|argument|flag)", text
    )
    if is_manual or refused is not None or re.search(r"(?:^|\s)-h\b", text):
        yield [*argv, "-h"]


async def _output(argv: Sequence[str]) -> str:
    """Run a program for its words: no input, in an empty folder, for a bounded time."""
    import os
    import tempfile

    from spinal.agents import process
    from spinal.agents.errors import CommandFailed

    environ = {name: os.environ[name] for name in _KEPT if name in os.environ} | _PLAIN
    with tempfile.TemporaryDirectory(prefix="spinal-init-") as folder:
        try:
            ended = await process.run(
                list(argv), timeout=HELP_WITHIN, cwd=folder, env=environ, limit=MAX_HELP, grace=1.0
            )
        except TimeoutError:
            say(f"{shlex.join(argv)} was still running after {HELP_WITHIN:g} s, and was ended")
            return ""
        except CommandFailed:
            return ""
    # Help that was not asked for comes on the other output.
    both = (ended.stdout, ended.stderr)
    return max(both, key=lambda one: len(one.strip())).decode(errors="replace")


# -- a service


async def _of_document(where: str, server: str | None, only: Sequence[str]) -> Draft:
    from spinal.agents.wrap.draft import openapi

    is_url = re.match(r"https?://", where) is not None
    data = await _fetch(where) if is_url else _read(Path(where))
    return openapi.draft(data, where, base=where if is_url else None, server=server, only=only)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
    except OSError as exc:
        raise LocalProtocolError(f"{path} cannot be read: {exc.strerror}") from exc
    return _bounded(data, str(path))


def _bounded(data: bytes, where: str) -> bytes:
    if len(data) > MAX_DOCUMENT:
        raise LocalProtocolError(f"{where} has more than {MAX_DOCUMENT} bytes")
    return data


async def _fetch(url: str) -> bytes:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=FETCH_WITHIN)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(
                url, headers={"Accept": "application/json, application/yaml, */*;q=0.5"}
            ) as answer,
        ):
            answer.raise_for_status()
            data = bytearray()
            async for piece in answer.content.iter_chunked(64 * 1024):
                data += piece
                if len(data) > MAX_DOCUMENT:
                    break
            return _bounded(bytes(data), url)
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise LocalProtocolError(f"{url} cannot be fetched: {exc or 'it took too long'}") from exc
