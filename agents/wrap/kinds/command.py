"""A program that is run once for each call.

Its arguments are a list from the manifest to the kernel: no shell reads them, and what a caller gave
fills exactly one of them.  What a list cannot prevent is prevented here: a value that the program
would take for an option, one that no argument can hold, and a manifest that hands a placeholder to
an interpreter as part of a script.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from ... import secret
from ...document import DURATION, SIZE, seconds, size
from ...errors import AgentError, one_line
from ...process import Completed
from .. import outcome
from ..kind import Call, Kind, Site
from ..outcome import Outcome
from ..output import Output
from ..template import Template

#: Longest argument that Linux hands to a program, in bytes with its NUL (MAX_ARG_STRLEN).
MAX_ARGUMENT: Final = 128 * 1024 - 1

#: Bytes of output that are taken if the manifest does not say, and of output that becomes a blob.
OUTPUT: Final = 1024 * 1024
BLOB_OUTPUT: Final = 64 * 1024 * 1024

#: Seconds between asking a program to end and killing it; within the 5 s after which it is gone.
GRACE: Final = 4.0

#: What a program gets of our environment; the rest may hold secrets of ours.
INHERITED: Final = re.compile(r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR")

#: Programs that read one of their arguments as a script, and the options that say which.  Other
#: than these, a script is the first argument that is no option.
_INTERPRETERS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "su", "script"), "c"),
    **dict.fromkeys(("perl", "ruby", "node", "nodejs", "lua", "osascript", "php"), "eEpr"),
    "python": "c",
    "psql": "c",
    "sqlite3": "",
    "mysql": "e",
    "awk": "",
    "gawk": "",
    "mawk": "",
    "sed": "",
    "ssh": "",
    "eval": "",
}

_ARGUMENT: Final[Mapping[str, Json]] = {"type": ["string", "number"]}


@dataclass(frozen=True, slots=True)
class _Group:
    """Arguments that stand together, or not at all."""

    #: The argument that has to be true; without one all placeholders have to be given.
    condition: str | None
    items: tuple[Template, ...]

    def applies(self, values: Mapping[str, str]) -> bool:
        if self.condition is not None:
            return values.get(self.condition) == "true"
        return all(name in values for item in self.items for name in item.names)


class Command(Kind):
    """Runs a program."""

    SCHEMA: ClassVar[Mapping[str, Json]] = {
        "type": "array",
        "minItems": 1,
        "items": {
            "anyOf": [
                _ARGUMENT,
                {"type": "array", "items": _ARGUMENT, "minItems": 1},
                {
                    "type": "object",
                    "properties": {
                        "if": {"type": "string", "description": "A boolean argument."},
                        "argv": {"type": "array", "items": _ARGUMENT, "minItems": 1},
                    },
                    "required": ["if", "argv"],
                    "additionalProperties": False,
                },
            ]
        },
        "description": "The program and its arguments, a list and never a line for a shell. {name} is "
        "filled with an argument and stays within one argument of the program. An inner list is "
        "left out where an argument in it is not given; {if: flag, argv: [...]} where it is false. "
        "{tmp} is a folder of the call's own.",
        "examples": [["units", "--terse", "{from}", "{to}"]],
    }
    BESIDE: ClassVar[Mapping[str, Mapping[str, Json]]] = {
        "stdin": {
            "type": "string",
            "description": "What the program reads: a text with placeholders, or one of a file.",
            "examples": ["{expression}"],
        },
        "exit": {
            "type": "object",
            "patternProperties": {
                "^([0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])$": outcome.SCHEMA
            },
            "properties": {"other": outcome.SCHEMA},
            "additionalProperties": False,
            "description": "What each exit code means; 0 is done and any other error if not said.",
            "examples": [{"0": "done", "1": "refused"}],
        },
        "progress": {
            "anyOf": [
                {"type": "string", "enum": ["lines"]},
                {
                    "type": "object",
                    "properties": {"regex": {"type": "string", "minLength": 1}},
                    "required": ["regex"],
                    "additionalProperties": False,
                },
            ],
            "description": "Tell the caller of each line that the program writes: as it is, or of "
            "those that match, by the groups done, total and note.",
            "examples": ["lines", {"regex": r"(?P<done>\d+)/(?P<total>\d+)"}],
        },
        "folder": {
            "type": "string",
            "minLength": 1,
            "description": "Where the program runs; the manifest's own folder if not said.",
            "examples": ["/var/lib/billing"],
        },
        "env": {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"anyOf": [{"type": ["string", "number"]}, secret.SCHEMA]},
            "description": "Added to PATH, HOME, language and time zone, which is all that the "
            "program gets of our environment.",
            "examples": [{"MODE": "batch", "TOKEN": {"env": "BILLING_TOKEN"}}],
        },
        "limits": {
            "type": "object",
            "properties": {
                "output": {**SIZE, "description": "More than that is an error (1M; a blob 64M)."},
                "memory": {**SIZE, "description": "Address space of each of its processes."},
                "cpu": {**DURATION, "description": "CPU time of each of its processes."},
                "files": {"type": "integer", "minimum": 3, "description": "Open at once."},
                "processes": {"type": "integer", "minimum": 1, "description": "Of its user."},
            },
            "additionalProperties": False,
            "examples": [{"memory": "512M", "cpu": "30s"}],
        },
    }

    def __init__(
        self,
        argv: Sequence[Template | _Group],
        *,
        output: Output,
        stdin: Template | None = None,
        file: Template | None = None,
        exits: Mapping[int | None, Outcome] | None = None,
        progress: re.Pattern[str] | None = None,
        folder: Template,
        base: Path,
        env: Mapping[str, Template | secret.Secret] | None = None,
        limits: Mapping[str, Json] | None = None,
    ) -> None:
        self.argv = argv
        self.result = output.type
        self._output = output
        self._stdin = stdin
        self._file = file
        self._exits = {0: Outcome("done"), None: Outcome("error"), **(exits or {})}
        self._progress = progress
        self._folder = folder
        self._base = base
        self._env = env or {}
        limits = limits or {}
        default = BLOB_OUTPUT if output.form == "blob" else OUTPUT
        self._most = size(limits["output"]) if "output" in limits else default
        self._limiter = _limiter(limits)
        templates = [stdin, file, folder, *self._env.values()]
        self._names = list(
            dict.fromkeys(
                [n for item in argv for n in _names(item)]
                + [n for t in templates if isinstance(t, Template) for n in t.names if n != "tmp"]
            )
        )

    @classmethod
    def read(cls, site: Site) -> Command:
        """Read it."""
        argv = [_item(site, said, place) for place, said in enumerate(site.value)]
        _check_program(site, argv)
        op = site.op
        stdin = file = None
        if "stdin" in op:
            stdin = site.template(op["stdin"], "stdin", files=True)
            for name in stdin.names:
                if site.arguments[name].type == "file" and stdin.whole is None:
                    site.wrong(f"{{{name}}} is a file and must be all of it", "stdin")
        output = Output.of(site)
        if output.more and "file" in output.more:
            file = site.template(output.more["file"], "output", "file", also=("tmp",))
        progress = None
        if (said := op.get("progress")) is not None:
            progress = _pattern(site, ".*" if said == "lines" else said["regex"])
        folder = site.template(op.get("folder", "."), "folder", also=("tmp",))
        env: dict[str, Template | secret.Secret] = {}
        for name, value in op.get("env", {}).items():
            if isinstance(value, Mapping):
                env[name] = secret.Secret.of(value, site.folder)
            else:
                env[name] = site.template(str(value), "env", name, also=("tmp",), files=True)
        return cls(
            argv,
            output=output,
            stdin=stdin,
            file=file,
            exits={
                None if code == "other" else int(code): Outcome.of(said)
                for code, said in op.get("exit", {}).items()
            },
            progress=progress,
            folder=folder,
            base=site.folder,
            env=env,
            limits=op.get("limits"),
        )

    @property
    def program(self) -> str:
        """The program as it is run: a path if the manifest gives one, relative to its folder."""
        first = self.argv[0]
        name = first.fill({}) if isinstance(first, Template) else ""
        return str(self._base / name) if "/" in name else name

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say if the program is not here, or not to be run."""
        if shutil.which(self.program) is None:
            there = Path(self.program).exists()
            why = "may not be executed: chmod +x" if there else "is not here: install it, or give "
            yield ("command", 0), f"{self.program!r} {why}{'' if there else 'its path'}"
        if self._limiter and shutil.which(self._limiter[0]) is None:
            yield ("limits",), "needs prlimit(1): install util-linux"
        for name, value in self._env.items():
            if isinstance(value, secret.Secret):
                try:
                    value.read()
                except AgentError as exc:
                    yield ("env", name), str(exc)

    async def run(self, call: Call) -> Any:
        """Run the program and map how it ended."""
        values = await call.texts(self._names)
        values["tmp"] = ""
        if any("tmp" in _names(item) for item in (*self.argv, self._file, self._folder) if item):
            values["tmp"] = str(call.folder)
        argv = [*self._limiter, self.program, *self._arguments(call, values)]
        ended = await call.job.run(
            argv,
            input=await self._input(call, values),
            cwd=self._base / self._folder.fill(values),
            env=self._environment(call, values),
            line=None if self._progress is None else self._teller(call),
            limit=self._most,
            grace=GRACE,
        )
        return self._ended(ended, values)

    def _arguments(self, call: Call, values: Mapping[str, str]) -> Iterator[str]:
        literal = False
        for item in self.argv[1:]:
            group = item if isinstance(item, _Group) else _Group(None, (item,))
            if isinstance(item, _Group) and not item.applies(values):
                continue
            for template in group.items:
                missing = [name for name in template.names if name not in values]
                filled = template.fill({**values, **dict.fromkeys(missing, "")})
                self._check(call, template, filled, literal)
                literal = literal or filled == "--"
                yield filled

    def _check(self, call: Call, template: Template, filled: str, literal: bool) -> None:
        """Refuse what would not arrive as it was meant."""
        names = [name for name in template.names if name in call.arguments]
        if not names:
            return
        if "\0" in filled:
            name = next((n for n in names if "\0" in str(call.args[n])), names[0])
            raise call.bad(name, "it has a NUL character, which no program's argument can hold")
        if len(filled.encode()) > MAX_ARGUMENT:
            longest = max(names, key=lambda n: len(str(call.args[n])))
            raise call.bad(longest, f"longer than the {MAX_ARGUMENT} bytes of a program's argument")
        if filled.startswith("-") and not literal and template.leads is not None:
            # An empty value may stand before the one that brings the dash.
            name = next((n for n in names if str(call.args[n]).startswith("-")), names[0])
            one = call.arguments[name]
            if one.type == "string" and one.enum is None and not one.dashes:
                raise call.bad(
                    name, "it begins with '-', and the program would take it for an option"
                )

    async def _input(self, call: Call, values: Mapping[str, str]) -> str | Path | None:
        if self._stdin is None:
            return None
        whole = self._stdin.whole
        if whole is not None and isinstance(call.args.get(whole), Blob):
            return await call.path(whole)
        return self._stdin.fill({name: values.get(name, "") for name in self._stdin.names})

    def _environment(self, call: Call, values: Mapping[str, str]) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}
        for name, value in self._env.items():
            if isinstance(value, secret.Secret):
                found[name] = value.read()
                continue
            found[name] = value.fill({given: values.get(given, "") for given in value.names})
            if "\0" in found[name]:
                culprit = next(n for n in value.names if "\0" in values.get(n, ""))
                raise call.bad(culprit, "it has a NUL character, which no variable can hold")
        return found

    def _teller(self, call: Call) -> Callable[[str], None]:
        assert self._progress is not None
        search = self._progress.search

        def tell(line: str) -> None:
            match = search(line)
            if match is None or not line.strip():
                return
            said = match.groupdict()
            done, total = (_number(said.get(name)) for name in ("done", "total"))
            note = said.get("note") if said else line
            call.job.progress(done, total, one_line(note or "", 500))

        return tell

    def _ended(self, ended: Completed, values: Mapping[str, str]) -> Any:
        ending = self._exits.get(ended.code, self._exits[None])
        if ended.code < 0:
            ending = Outcome("error")
        if ending.word != "done":
            ending.tell(_last_words(ended))
        if self._file is not None:
            return self._written(values)
        if ended.stdout_cut:
            text = f"it wrote more than {self._most} bytes (limits: output)"
            raise CallError.of(Problem("too-large", text))
        return self._output.take(ended.stdout)

    def _written(self, values: Mapping[str, str]) -> Blob:
        assert self._file is not None
        path = Path(self._file.fill({name: values.get(name, "") for name in self._file.names}))
        if not path.is_file():
            raise AgentError(f"it ended well and wrote no file {path.name}")
        if path.stat().st_size > self._most:
            text = f"it wrote a file of more than {self._most} bytes (limits: output)"
            raise CallError.of(Problem("too-large", text))
        # Read here, because the call's folder is gone before the result is sent.
        return Blob.of(path.read_bytes(), self._output.media_type)


def _names(item: Template | _Group) -> list[str]:
    if isinstance(item, Template):
        return item.names
    names = [] if item.condition is None else [item.condition]
    return names + [name for template in item.items for name in template.names]


def _item(site: Site, said: Any, place: int) -> Template | _Group:
    def read(text: Any, *steps: int | str) -> Template:
        return site.template(str(text), "command", place, *steps, also=("tmp",), files=True)

    if isinstance(said, list):
        texts: list[Any] = said
        return _Group(None, tuple(read(text, inner) for inner, text in enumerate(texts)))
    if isinstance(said, Mapping):
        members: Mapping[str, Any] = said
        flag = members["if"]
        if flag not in site.arguments or site.arguments[flag].type != "boolean":
            site.wrong(f"{flag!r} is no boolean argument of this operation", "command", place, "if")
        site.used.add(flag)
        return _Group(
            flag, tuple(read(text, "argv", inner) for inner, text in enumerate(members["argv"]))
        )
    found = read(said)
    for name in found.names:
        one = site.arguments.get(name)
        if one is not None and not one.required and one.default is None:
            site.wrong(
                f"{{{name}}} may be missing: put this into an inner list, which is left out then, or "
                "give it a default",
                "command",
                place,
            )
    return found


def _check_program(site: Site, argv: Sequence[Template | _Group]) -> None:
    """Make sure that no argument decides what is run, and none becomes part of a script."""
    first = argv[0]
    if isinstance(first, _Group) or first.names:
        site.wrong("the program itself cannot come from an argument: write its name", "command", 0)
        return
    text = first.fill({})
    if not text or (" " in text and "/" not in text):
        site.wrong(
            f"{text!r} is no program: write one list entry for each argument, as in "
            f"[{', '.join(text.split()) or 'units, --terse'}]",
            "command",
            0,
        )
        return
    name = re.sub(r"[0-9.]+$", "", Path(text).name) or Path(text).name
    if name in ("env", "nice", "timeout", "sudo", "nohup", "xargs", "doas", "setsid", "stdbuf"):
        # They run one of their arguments: what counts is that one.
        for place, item in enumerate(argv[1:], 1):
            if isinstance(item, Template) and not item.names:
                inner = re.sub(r"[0-9.]+$", "", Path(item.fill({})).name)
                if inner in _INTERPRETERS:
                    _check_script(site, inner, argv[place:], place)
                    return
        if any(item.names for item in argv[1:2] if isinstance(item, Template)):
            site.wrong(
                "the program itself cannot come from an argument: write its name", "command", 1
            )
    elif name in _INTERPRETERS:
        _check_script(site, name, argv, 0)


def _check_script(site: Site, name: str, argv: Sequence[Template | _Group], offset: int) -> None:
    letters = _INTERPRETERS[name]
    after = False
    for place, item in enumerate(argv[1:], offset + 1):
        for template in item.items if isinstance(item, _Group) else (item,):
            text = "".join(piece for piece in template.pieces if isinstance(piece, str))
            is_script = after or (not letters and not text.startswith("-"))
            if is_script and template.names:
                site.wrong(
                    f"{{{template.names[0]}}} would become part of a script of {name}: hand it over "
                    "as an argument or in env, and let the script read that, as in "
                    '[sh, -c, \'units "$1" m\', sh, "{from}"]'
                    if name != "ssh"
                    else f"{{{template.names[0]}}} would reach a shell on the other machine: run an "
                    "agent there instead",
                    "command",
                    place,
                )
                return
            if is_script and name != "ssh":
                return
            after = bool(letters) and re.fullmatch(rf"-[A-Za-z]*[{letters}]", text) is not None


def _pattern(site: Site, said: str) -> re.Pattern[str] | None:
    try:
        return re.compile(said)
    except re.error as exc:
        site.wrong(f"no regular expression: {exc}", "progress", "regex")
        return None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _last_words(ended: Completed) -> str:
    for output in (ended.stderr, ended.stdout):
        lines = output.decode(errors="replace").strip().splitlines()
        if lines:
            return one_line(lines[-1], 300)
    how = f"signal {-ended.code}" if ended.code < 0 else f"exit code {ended.code}"
    return f"it ended with {how} and said nothing"


def _limiter(limits: Mapping[str, Any]) -> list[str]:
    """Give the words that bound a program: prlimit(1) sets the limits and becomes the program.

    To set them in the child before exec is not safe with threads, and from outside comes late.
    """
    found: list[str] = []
    if "memory" in limits:
        found.append(f"--as={size(limits['memory'])}")
    if "cpu" in limits:
        found.append(f"--cpu={max(1, round(seconds(limits['cpu'])))}")
    if "files" in limits:
        found.append(f"--nofile={limits['files']}")
    if "processes" in limits:
        found.append(f"--nproc={limits['processes']}")
    return ["prlimit", *found, "--"] if found else []
