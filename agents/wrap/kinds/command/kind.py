"""A program that is run once for each call.

Its argument list is ``argv.py``; here is what goes in beside it, and what comes out.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from .... import process, secret
from ....document import DURATION, SIZE, members, seconds, size
from ....errors import AgentError, one_line
from ....process import Completed
from ... import outcome
from ...kind import Call, Kind, Site
from ...outcome import Outcome
from ...output import Output
from ...pattern import Pattern, TooLong
from ...template import Template
from . import argv
from .argv import MAX_ARGUMENT, Argv

#: Bytes of output that are taken if the manifest does not say, and of output that becomes a blob.
OUTPUT: Final = 1024 * 1024
BLOB_OUTPUT: Final = 64 * 1024 * 1024

#: Seconds between asking a program to end and killing it; within the 5 s after which it is gone.
GRACE: Final = 4.0

#: What a program gets of our environment; the rest may hold secrets of ours.
INHERITED: Final = re.compile(r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR")

#: Variable that each program has from us, to know by it what has left its group when it is to end.
MARK: Final = "SPINAL_CALL"


class Command(Kind):
    """Runs a program."""

    SCHEMA: ClassVar[Mapping[str, Json]] = argv.SCHEMA
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
        "stderr": {
            "enum": ["ignore", "refused", "error"],
            "default": "ignore",
            "description": "What it means that the program wrote to standard error although it ended "
            "well, as some old ones do.",
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
            "description": "Tell the caller of the lines that the program writes: as they are, or of "
            "those that match, by the groups done, total and note. Of many at once the last one counts.",
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
            "propertyNames": {
                "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
                "patternErrorMessage": "is no name of a variable: use letters, digits and '_'",
            },
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
            "description": "What it may use; needs prlimit(1) for all but output.",
            "examples": [{"memory": "512M", "cpu": "30s"}],
        },
    }

    def __init__(
        self,
        argv: Argv,
        *,
        output: Output,
        stdin: Template | None = None,
        file: Template | None = None,
        exits: Mapping[int | None, Outcome] | None = None,
        stderr: str = "ignore",
        progress: Pattern | None = None,
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
        self._stderr = stderr
        self._progress = progress
        self._folder = folder
        self._base = base
        self._env = env or {}
        limits = limits or {}
        default = BLOB_OUTPUT if output.form == "blob" else OUTPUT
        self._most = size(limits["output"]) if "output" in limits else default
        self._limiter = limiter(limits)
        templates = [argv, stdin, file, folder, *self._env.values()]
        self._names = list(
            dict.fromkeys(n for t in templates if isinstance(t, (Argv, Template)) for n in t.names)
        )

    @classmethod
    def read(cls, site: Site) -> Command:
        """Read it."""
        argv = Argv.read(site)
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
        variables: Mapping[str, Any] = op.get("env", {})
        for name, value in variables.items():
            if isinstance(value, dict):
                env[name] = secret.Secret.of(members(value), site.folder)
            else:
                said = site.text("env", name)
                env[name] = site.template(said, "env", name, also=("tmp",), files=True)
        return cls(
            argv,
            output=output,
            stdin=stdin,
            file=file,
            exits={
                None if code == "other" else int(code): Outcome.of(said)
                for code, said in op.get("exit", {}).items()
            },
            stderr=op.get("stderr", "ignore"),
            progress=progress,
            folder=folder,
            base=site.folder,
            env=env,
            limits=op.get("limits"),
        )

    @property
    def program(self) -> str:
        """The program as it is run: a path if the manifest gives one, relative to its folder."""
        return process.located(self.argv.program, self._base)

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say if the program is not here, or not to be run."""
        yield from lacking("command", self.program, self._limiter, self._env)
        if not self._folder.names and not (self._base / self._folder.fill({})).is_dir():
            yield ("folder",), f"{self._folder.fill({})} is no folder: make it first"

    async def run(self, call: Call) -> Any:
        """Run the program and map how it ended."""
        values = await call.texts(self._names)
        if "tmp" in self._names:
            values["tmp"] = str(call.folder)
        self._check_file(call)
        words = [*self._limiter, self.program, *self.argv.fill(call, values)]
        mark = secrets.token_hex(16)
        try:
            ended = await call.job.run(
                words,
                input=await self._input(call, values),
                cwd=self._base / self._folder.fill(values),
                env={**self._environment(call, values), MARK: mark},
                line=None if self._progress is None else self._teller(call),
                limit=self._most,
                strict=True,
                grace=GRACE,
            )
        except asyncio.CancelledError:
            await asyncio.to_thread(process.kill_marked, f"{MARK}={mark}")
            raise
        return await self._ended(ended, values)

    def _check_file(self, call: Call) -> None:
        """Keep the file that is the result where the manifest has it: we open it ourselves."""
        for name in [] if self._file is None else self._file.names:
            value = str(call.args.get(name) or "")
            if name in call.arguments and ("/" in value or "\0" in value or value in (".", "..")):
                raise call.bad(name, "it is part of a file's name, and has a '/', NUL or only dots")

    async def _input(self, call: Call, values: Mapping[str, str]) -> str | Path | None:
        if self._stdin is None:
            return None
        whole = self._stdin.whole
        if whole is not None and isinstance(call.args.get(whole), Blob):
            return await call.path(whole)
        return self._stdin.fill({name: values.get(name, "") for name in self._stdin.names})

    def _environment(self, call: Call, values: Mapping[str, str]) -> dict[str, str]:
        found = inherited()
        for name, value in self._env.items():
            if isinstance(value, secret.Secret):
                found[name] = value.read()
                continue
            found[name] = value.fill({given: values.get(given, "") for given in value.names})
            if "\0" in found[name]:
                culprit = next(n for n in value.names if "\0" in values.get(n, ""))
                raise call.bad(culprit, "it has a NUL character, which no variable can hold")
            if value.names and len(f"{name}={found[name]}".encode()) > MAX_ARGUMENT:
                longest = max(value.names, key=lambda given: len(values.get(given, "")))
                raise call.bad(longest, f"longer than the {MAX_ARGUMENT} bytes of a variable")
        return found

    def _teller(self, call: Call) -> Callable[[str], None]:
        assert self._progress is not None
        search = self._progress.search
        gave_up = False

        def tell(line: str) -> None:
            nonlocal gave_up
            try:
                match = None if gave_up else search(line)
            except TooLong:
                # News may be lost; one line that was made to take long must not be one of many.
                gave_up = True
                return
            if match is None or not line.strip():
                return
            said = match.groupdict()
            done, total = (_number(said.get(name)) for name in ("done", "total"))
            note = said.get("note") if said else line
            call.job.progress(done, total, one_line(note or "", 500))

        return tell

    async def _ended(self, ended: Completed, values: Mapping[str, str]) -> Any:
        if ended.stdout_cut or ended.stderr_cut:
            text = f"it wrote more than {self._most} bytes (limits: output)"
            raise CallError.of(Problem("too-large", text))
        ending = self._exits.get(ended.code, self._exits[None])
        if ended.code < 0:
            ending = Outcome("error", _KILLED.get(-ended.code, ""))
        elif ending.word == "done" and self._stderr != "ignore" and ended.stderr.strip():
            ending = Outcome(self._stderr)
        if ending.word != "done":
            ending.tell(_last_words(ended))
        if self._file is not None:
            return await asyncio.to_thread(self._written, values)
        return self._output.take(ended.stdout)

    def _written(self, values: Mapping[str, str]) -> Blob:
        assert self._file is not None
        path = Path(self._file.fill({name: values.get(name, "") for name in self._file.names}))
        if not path.is_file() or path.is_symlink():
            raise AgentError(f"it ended well and wrote no file {path.name}")
        with path.open("rb") as file:
            # What stat(2) says of its size is not true of every file.
            data = file.read(self._most + 1)
        if len(data) > self._most:
            text = f"it wrote a file of more than {self._most} bytes (limits: output)"
            raise CallError.of(Problem("too-large", text))
        # Read here, because the call's folder is gone before the result is sent.
        return Blob.of(data, self._output.media_type)


def _pattern(site: Site, said: str) -> Pattern | None:
    try:
        return Pattern(said)
    except ValueError as exc:
        site.wrong(str(exc), "progress", "regex")
        return None


def lacking(
    key: str, program: str, limiter: Sequence[str], env: Mapping[str, object]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Give what a program that stands under a key lacks here: itself, its limits, its secrets."""
    if why := process.unrunnable(program):
        yield (key, 0), why
    if limiter and shutil.which(limiter[0]) is None:
        yield ("limits",), "needs prlimit(1): install util-linux"
    for name, value in env.items():
        if isinstance(value, secret.Secret) and (why := value.missing()):
            yield ("env", name), why


def inherited() -> dict[str, str]:
    """Give the part of our environment that a program gets."""
    return {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}


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


#: What is said of a program that the kernel ended because of a limit.
_KILLED: Final[Mapping[int, str]] = {
    signal.SIGXCPU: "it used more CPU time than it may (limits: cpu)",
    signal.SIGXFSZ: "it wrote a file that is larger than it may be",
}


def limiter(limits: Mapping[str, Any]) -> list[str]:
    """Give the words that bound a program: prlimit(1) sets the limits and becomes the program.

    To set them in the child before exec is not safe with threads, and from outside comes late.
    """
    found: list[str] = []
    if "memory" in limits:
        found.append(f"--as={size(limits['memory'])}")
    if "cpu" in limits:
        # At the first limit it gets SIGXCPU, by which we know; a second later it is killed.
        most = max(1, round(seconds(limits["cpu"])))
        found.append(f"--cpu={most}:{most + 1}")
    if "files" in limits:
        found.append(f"--nofile={limits['files']}")
    if "processes" in limits:
        found.append(f"--nproc={limits['processes']}")
    return ["prlimit", *found, "--"] if found else []
