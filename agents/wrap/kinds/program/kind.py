"""A program in any language that is kept running: one request a line, as JSON, and its answers.

What goes over its pipes is described in docs/wrap-program.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from .... import process, secret
from ....document import DURATION, seconds, size
from ....errors import AgentError, Refused, Retry, one_line
from ...kind import Call, Host, Kind, Site
from ...output import Output
from ...template import Template
from ..command.kind import BLOB_OUTPUT, OUTPUT, Command, inherited, lacking, limiter
from .kept import Died, Team, TooLong, Way, team

#: What the results of the outputs are that a program may have.
_RESULTS: Final[Mapping[str, Any]] = {"json": Any, "text": str, "blob": Blob, "none": None}

_LEVELS: Final = ("debug", "info", "warning", "error")


class Program(Kind):
    """Asks a program that runs."""

    SCHEMA: ClassVar[Mapping[str, Json]] = {
        "type": "array",
        "minItems": 1,
        "items": {"type": ["string", "number"]},
        "description": "The program and its arguments, a list. It is kept running and takes one "
        "request a line as JSON, in which the arguments of the call are; see "
        "docs/wrap-program.md. Operations that say the same of it share its processes.",
        "examples": [["perl", "report.pl"]],
    }
    BESIDE: ClassVar[Mapping[str, Mapping[str, Json]]] = {
        **{key: Command.BESIDE[key] for key in ("folder", "env", "limits")},
        "processes": {
            "type": "integer",
            "minimum": 1,
            "maximum": 1000,
            "default": 1,
            "description": "Most processes of it; each does one request at a time.",
        },
        "ready": {
            **DURATION,
            "description": 'It says {"ready": true} once it can take requests, within this time.',
            "examples": ["10s"],
        },
    }

    def __init__(
        self,
        argv: tuple[str, ...],
        *,
        output: Output,
        base: Path,
        folder: str = ".",
        env: Mapping[str, str | secret.Secret] | None = None,
        limits: Mapping[str, Any] | None = None,
        processes: int = 1,
        ready: float | None = None,
        safe: bool = False,
    ) -> None:
        limits = limits or {}
        self.result = _RESULTS.get(output.form, Any)
        self._argv = argv
        self._output = output
        self._env = env or {}
        self._limiter = limiter(limits)
        self._most = size(limits["output"]) if "output" in limits else OUTPUT
        self._blob = size(limits["output"]) if "output" in limits else BLOB_OUTPUT
        self._processes = processes
        #: It may be asked twice.
        self._safe = safe
        self._way = Way(
            (*self._limiter, *argv), base / folder, self._environment, self._most, ready
        )
        self._key = (
            "program", argv, self._way.folder, repr(sorted(self._env.items(), key=lambda e: e[0])),
            repr(limits), processes, ready,
        )  # fmt: skip
        self._team: Team | None = None

    @classmethod
    def read(cls, site: Site) -> Program:
        """Read it."""
        argv = tuple(site.text("program", place) for place in range(len(site.value)))
        if not argv[0] or (" " in argv[0] and "/" not in argv[0]):
            site.wrong(
                f"{argv[0]!r} is no program: write one list entry for each argument, as in "
                f"[{', '.join(argv[0].split()) or 'perl, report.pl'}]",
                "program",
                0,
            )
        for place, word in enumerate(argv):
            for name in site.arguments:
                if "{" + name + "}" in word:
                    site.wrong(
                        f"{{{name}}} cannot stand here: the program is kept running, and gets the "
                        "arguments with each request as JSON; leave it out",
                        "program",
                        place,
                    )
        site.used.update(site.arguments)
        output = Output("json") if "output" not in site.op else Output.of(site)
        if output.form not in _RESULTS or (output.more and set(output.more) - {"blob"}):
            site.wrong(
                "a program answers with JSON already: write json, text, none, blob or "
                "{blob: image/png}, or leave it out",
                "output",
            )
        op = site.op
        return cls(
            (process.located(argv[0], site.folder), *argv[1:]),
            output=output,
            base=site.folder,
            folder=_fixed(site, op.get("folder", "."), "folder"),
            env={
                name: _fixed(site, site.text("env", name), "env", name)
                if isinstance(value, str | int | float)
                else secret.Secret.of(value, site.folder)
                for name, value in op.get("env", {}).items()
            },
            limits=op.get("limits"),
            processes=op.get("processes", 1),
            ready=seconds(op["ready"]) if "ready" in op else None,
            safe=op.get("safe", op.get("effects") == "reads"),
        )

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say if the program, its folder or a secret is not here."""
        yield from lacking("program", self._argv[0], self._limiter, self._env)
        if not self._way.folder.is_dir():
            yield ("folder",), f"no folder {self._way.folder}: make it"

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        """Have its processes for a block; they are started when they are needed."""
        async with host.share(
            self._key, lambda: team(self._way, self._processes, host.guard)
        ) as self._team:
            try:
                yield
            finally:
                self._team = None

    async def run(self, call: Call) -> Any:
        """Ask it."""
        assert self._team is not None, "it is not open"
        request = await self._request(call)
        tries = 2 if self._safe else 1
        for left in reversed(range(tries)):
            try:
                answer = await self._team.ask(request, self._teller(call))
            except Died as exc:
                if left:
                    continue
                # It may have been done.
                reason = "failed" if self._safe else "lost"
                text = f"the program died while it worked on this: {exc}"
                raise CallError.of(Problem(reason, one_line(text))) from exc
            except TooLong as exc:
                text = f"the program was stopped: {exc} (limits: output)"
                raise CallError.of(Problem("too-large", text)) from exc
            return self._answered(call, answer)
        raise AssertionError("the last try returns or raises")

    async def _request(self, call: Call) -> dict[str, Json]:
        files: dict[str, Json] = {}
        args: dict[str, Json] = {}
        for name, one in call.arguments.items():
            if one.type != "file":
                args[name] = call.args[name]
            elif call.args[name] is not None:
                blob: Blob = call.args[name]
                path = await call.path(name)
                files[name] = {"path": str(path), "media": blob.media_type, "size": blob.size}
        request: dict[str, Json] = {"op": call.job.op, "args": args}
        if files:
            request["files"] = files
        if files or self._output.form == "blob":
            request["folder"] = str(call.folder)
        return request

    def _environment(self) -> dict[str, str]:
        found = inherited()
        for name, value in self._env.items():
            found[name] = value.read() if isinstance(value, secret.Secret) else value
        return found

    def _teller(self, call: Call) -> Callable[[Mapping[str, Any]], None]:
        def tell(message: Mapping[str, Any]) -> None:
            progress: Any = message.get("progress")
            if isinstance(progress, Mapping):
                said: Mapping[str, Any] = progress  # pyright: ignore[reportUnknownVariableType]
                done, total = (_number(said.get(name)) for name in ("done", "total"))
                call.job.progress(done, total, one_line(str(said.get("note") or ""), 500))
            if "log" in message:
                level = message.get("level")
                call.job.log(str(message["log"]), level if level in _LEVELS else "info")

        return tell

    def _answered(self, call: Call, answer: Mapping[str, Any]) -> Any:
        for key, make in (("refused", Refused), ("retry", Retry)):
            if key in answer:
                raise make(one_line(str(answer[key])))
        if "error" in answer:
            raise CallError.of(Problem("failed", one_line(str(answer["error"]))))
        if self._output.form == "blob":
            return self._file(call, answer)
        value = answer.get("value")
        if self._output.form == "none":
            return None
        if self._output.form == "text" and not isinstance(value, str):
            raise AgentError(f"the program answered with {type(value).__name__}, not with a text")
        return value

    def _file(self, call: Call, answer: Mapping[str, Any]) -> Blob:
        said = answer.get("file")
        if not isinstance(said, str):
            raise AgentError('the program answered without a file: write {"id", "file": "out.png"}')
        try:
            path = (call.folder / said).resolve(strict=True)
        except (OSError, ValueError) as exc:
            raise AgentError(f"the program named a file that is not there: {said[:200]!r}") from exc
        if not path.is_relative_to(call.folder.resolve()) or not path.is_file():
            raise AgentError("the program named a file outside of the folder of the request")
        if path.stat().st_size > self._blob:
            text = f"it wrote a file of more than {self._blob} bytes (limits: output)"
            raise CallError.of(Problem("too-large", text))
        media = answer.get("media")
        # Read here, because the call's folder is gone before the result is sent.
        return Blob.of(
            path.read_bytes(), media if isinstance(media, str) else self._output.media_type
        )


def _fixed(site: Site, said: str, *steps: str | int) -> str:
    """Read a text that is the same for all calls."""
    try:
        found = Template.of(said)
    except ValueError as exc:
        site.wrong(str(exc), *steps)
        return said
    if found.names:
        site.wrong(
            f"{{{found.names[0]}}} cannot stand here: the program is kept running for many calls; "
            "write what holds for all",
            *steps,
        )
        return said
    return found.fill({})


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
