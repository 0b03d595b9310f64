"""A folder between us and something that knows only files: each new one a job, and the reverse.

``watch`` makes a job of every new file (:mod:`~..inbox`).  ``write`` puts what a caller gives into
a folder as one whole file, and can wait for the file that answers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import unicodedata
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json, LocalProtocolError, Problem
from spinal.protocols import path as paths

from ....document import DURATION, SIZE, seconds, size
from ....errors import AgentError, Refused, Retry
from ...argument import text
from ...kind import Call, Host, Kind, Site
from ...output import Output
from ...template import Template
from . import folder as folders
from .folder import MAX_NAME, OURS, Mark
from .inbox import Inbox, Rule, inbox

#: What the manifest need not say, in seconds.
SETTLED: Final = 2.0
EVERY: Final = 1.0
WITHIN: Final = 60.0
ANSWER_SETTLED: Final = 0.5

#: Seconds between two looks for an answer.
POLL: Final = 0.1

#: Bytes of an answer that are taken.
MOST: Final = 1024 * 1024
BLOB_MOST: Final = 64 * 1024 * 1024

#: What placeholders of ``args`` there are.
_OF_A_FILE: Final = ("name", "stem", "suffix")

_FOLDER: Final[Mapping[str, Json]] = {"type": "string", "minLength": 1}


class Files(Kind):
    """Watches a folder, or writes into one."""

    SCHEMA: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "watch": {
                **_FOLDER,
                "description": "Folder of which each new file becomes a job. Called, the "
                "operation looks at once and tells what it found.",
                "examples": ["/srv/scans"],
            },
            "match": {
                "type": "string",
                "minLength": 1,
                "default": "*",
                "description": "Names of the files, with * ? and [a-z]; hidden ones never are.",
                "examples": ["*.pdf"],
            },
            "submit": {
                "type": "string",
                "description": "The operation that gets the jobs.",
                "examples": ["/ocr/read"],
            },
            "argument": {
                "type": "string",
                "minLength": 1,
                "description": "Its argument that gets the file.",
                "examples": ["document"],
            },
            "args": {
                "type": "object",
                "description": "Its other arguments; in a text {name}, {stem} and {suffix} are "
                "those of the file.",
                "examples": [{"title": "{stem}"}],
            },
            "labels": {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": 128},
                "maxItems": 16,
                "description": "Words to find the jobs by.",
                "examples": [["scans"]],
            },
            "settled": {**DURATION, "description": "Time without a change of the file (2s)."},
            "every": {**DURATION, "description": "Time between two looks (1s)."},
            "then": {
                "anyOf": [
                    {"type": "string", "enum": ["delete", "keep"]},
                    {
                        "type": "object",
                        "properties": {"move": _FOLDER},
                        "required": ["move"],
                        "additionalProperties": False,
                    },
                ],
                "errorMessage": "write {move: FOLDER}, delete or keep",
                "default": {"move": "done"},
                "description": "What becomes of a file once its job is accepted; a folder is "
                "taken from the one that is watched.",
                "examples": [{"move": "done"}],
            },
            "write": {
                **_FOLDER,
                "description": "Folder into which a file is written, whole or not at all.",
                "examples": ["/srv/out"],
            },
            "name": {
                "type": "string",
                "minLength": 1,
                "description": "Its name; what fills it can never lead out of the folder.",
                "examples": ["{number}.pdf"],
            },
            "content": {
                "type": "string",
                "description": "What is in it: a file, or a text with placeholders.",
                "examples": ["{document}"],
            },
            "replace": {
                "type": "boolean",
                "default": False,
                "description": "A file of that name is replaced; else it is refused.",
            },
            "answer": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 1, "examples": ["{number}.txt"]},
                    "folder": {**_FOLDER, "description": "Where it is, if elsewhere."},
                    "within": {**DURATION, "description": "Longest wait for it (60s)."},
                    "settled": {
                        **DURATION,
                        "description": "Time without a change after which it is whole (500ms).",
                    },
                    "then": {"enum": ["delete", "keep"], "default": "delete"},
                    "most": {**SIZE, "description": "Most bytes of it (1M; a blob 64M)."},
                },
                "required": ["name"],
                "additionalProperties": False,
                "description": "The file that answers it, of which output makes the result.",
                "examples": [{"name": "{number}.txt"}],
            },
        },
        "additionalProperties": False,
        "description": "A folder that is watched, or one that is written into.",
        "examples": [{"watch": "/srv/scans", "submit": "/ocr/read", "argument": "document"}],
    }

    @classmethod
    def read(cls, site: Site) -> Kind:
        """Read it."""
        said: Mapping[str, Any] = site.value
        does = [key for key in _KEYS if key in said]
        if len(does) != 1:
            has = "has watch and write: make two operations of it" if does else "does nothing"
            site.wrong(
                f"{has}; write watch: FOLDER to make jobs of files, or write: FOLDER", "files"
            )
            return cls()
        needed, more = _KEYS[does[0]]
        for key in said:
            if key not in (does[0], *needed, *more):
                other = next(one for one, keys in _KEYS.items() if key in (*keys[0], *keys[1]))
                site.wrong(f"goes with {other}, and this is {does[0]}", "files", key)
        missing = [key for key in needed if key not in said]
        for key in missing:
            example = cls.SCHEMA["properties"][key]["examples"][0]
            site.wrong(f"'{key}' is missing: write {key}: \"{example}\"", "files")
        if missing:
            return cls()
        return _Watch.read(site) if does[0] == "watch" else _Write.read(site)

    async def run(self, call: Call) -> Any:
        """Do it; the two that :meth:`read` gives do."""
        raise NotImplementedError


#: What has to, and what may stand beside each of the two.
_KEYS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "watch": (
        ("submit", "argument"),
        ("match", "args", "labels", "settled", "every", "then"),
    ),
    "write": (("name", "content"), ("replace", "answer")),
}


# -- from files to jobs


class _Watch(Files):
    """Makes jobs of files."""

    result = dict[str, Any]

    def __init__(self, rule: Rule, op: str) -> None:
        self._rule = rule
        self._op = op
        self._inbox: Inbox | None = None

    @classmethod
    def read(cls, site: Site) -> Kind:
        said: Mapping[str, Any] = site.value
        folder = site.folder / said["watch"]
        if "output" in site.op:
            site.wrong("goes with write and an answer: leave it out", "output")
        try:
            if not paths.parts(said["submit"]):
                raise LocalProtocolError("'/' is no operation")
        except LocalProtocolError as exc:
            site.wrong(f"{exc}: write a path such as /ocr/read", "files", "submit")
        if said["submit"] == site.steps[-1]:
            site.wrong("is this operation: name the one that works on the file", "files", "submit")
        if "/" in said.get("match", ""):
            site.wrong("matches names in the folder: leave the / out", "files", "match")
        args: dict[str, Template | Json] = {}
        for name, value in said.get("args", {}).items():
            if name == said["argument"]:
                site.wrong(
                    "is the argument that gets the file: leave it out", "files", "args", name
                )
            args[name] = _of_a_file(site, value, name) if isinstance(value, str) else value
        then: Any = said.get("then", {"move": "done"})
        if not isinstance(then, str):
            to: str = then["move"]
            then = folder / to
            if then.resolve() == folder.resolve():
                site.wrong(
                    "is the folder that is watched: write another one", "files", "then", "move"
                )
        rule = Rule(
            folder,
            said.get("match", "*"),
            said["submit"],
            said["argument"],
            args,
            tuple(said.get("labels", ())),
            seconds(said["settled"]) if "settled" in said else SETTLED,
            seconds(said["every"]) if "every" in said else EVERY,
            then,
        )
        return cls(rule, str(site.steps[-1]))

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        rule = self._rule
        if not (yield from _lacks_folder(rule.folder, "watch")):
            return
        mode = os.R_OK | os.X_OK | os.W_OK
        if not os.access(rule.folder, mode):
            yield ("files", "watch"), f"{rule.folder} has to be readable and writable for this user"
        if isinstance(rule.then, Path):
            beside = rule.then if rule.then.exists() else rule.then.parent
            if not beside.is_dir():
                yield ("files", "then", "move"), f"no folder {beside}: make it"
            elif beside.stat().st_dev != rule.folder.stat().st_dev:
                yield (
                    ("files", "then", "move"),
                    f"{rule.then} is on another file system: write a folder beside the files",
                )

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        async with inbox(self._rule, self._op, host) as self._inbox:
            try:
                yield
            finally:
                self._inbox = None

    async def run(self, call: Call) -> Any:
        assert self._inbox is not None, "it is not open"
        return (await self._inbox.look()).told()


def _of_a_file(site: Site, said: str, name: str) -> Template:
    steps = ("files", "args", name)
    try:
        found = Template.of(said)
    except ValueError as exc:
        site.wrong(str(exc), *steps)
        return Template((said,))
    for one in found.names:
        if one not in _OF_A_FILE:
            known = ", ".join("{" + known + "}" for known in _OF_A_FILE)
            site.wrong(f"{{{one}}} is nothing of a file: write one of {known}", *steps)
            return Template((said,))
    return found


# -- from arguments to files


@dataclass(frozen=True, slots=True)
class _Answer:
    """The file that answers."""

    folder: Path
    name: Template
    within: float
    settled: float
    delete: bool
    most: int


class _Write(Files):
    """Makes a file of arguments."""

    def __init__(
        self,
        folder: Path,
        name: Template,
        content: Template,
        replace: bool,
        answer: _Answer | None,
        output: Output,
    ) -> None:
        self._folder = folder
        self._name = name
        self._content = content
        self._replace = replace
        self._answer = answer
        self._output = output
        self.result: Any = dict[str, Any] if answer is None else output.type
        #: Names of answers that are waited for: one cannot be told from another's.
        self._awaited: set[str] = set()

    @classmethod
    def read(cls, site: Site) -> Kind:
        said: Mapping[str, Any] = site.value
        folder = site.folder / said["write"]
        output = Output.of(site)
        if output.more and "file" in output.more:
            site.wrong("goes with command: leave it out", "output", "file")
        content = site.template(said["content"], "files", "content", files=True)
        for name in content.names:
            one = site.arguments.get(name)
            if one is not None and one.type == "file" and content.whole is None:
                site.wrong(f"{{{name}}} is a file and must be all of it", "files", "content")
        answer = None
        if "answer" in said:
            more: Mapping[str, Any] = said["answer"]
            default = BLOB_MOST if output.form == "blob" else MOST
            answer = _Answer(
                folder / more.get("folder", "."),
                _name(site, more["name"], "files", "answer", "name"),
                seconds(more["within"]) if "within" in more else WITHIN,
                seconds(more["settled"]) if "settled" in more else ANSWER_SETTLED,
                more.get("then", "delete") == "delete",
                size(more["most"]) if "most" in more else default,
            )
        elif "output" in site.op:
            site.wrong(
                "is made of an answer, and there is none: leave it out, or write files.answer",
                "output",
            )
        made = _name(site, said["name"], "files", "name")
        if answer is not None and answer.folder == folder and answer.name == made:
            site.wrong(
                "is the file that is written: give the answer another name",
                "files",
                "answer",
                "name",
            )
        return cls(folder, made, content, said.get("replace", False), answer, output)

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        there = yield from _lacks_folder(self._folder, "write")
        if there and not os.access(self._folder, os.W_OK | os.X_OK):
            yield ("files", "write"), f"{self._folder} has to be writable for this user"
        if self._answer is not None and self._answer.folder != self._folder:
            yield from _lacks_folder(self._answer.folder, "answer", "folder")

    async def run(self, call: Call) -> Any:
        name = _filled(call, self._name)
        content = await self._bytes(call)
        if self._answer is None:
            written = await self._put(name, content)
            return {"file": name, "size": written}
        wanted = _filled(call, self._answer.name)
        if wanted in self._awaited:
            raise Retry(f"another call waits for {wanted}")
        self._awaited.add(wanted)
        try:
            old = await asyncio.to_thread(folders.mark_of, self._answer.folder, wanted)
            await self._put(name, content)
            return await self._answered(self._answer, wanted, old)
        finally:
            self._awaited.discard(wanted)

    async def _bytes(self, call: Call) -> bytes | Path:
        whole = self._content.whole
        if whole is not None and isinstance(call.args.get(whole), Blob):
            return await call.path(whole)
        values = await call.texts(self._content.names)
        for name, value in values.items():
            if not _encodes(value):
                raise call.bad(name, "it cannot be written in UTF-8")
        return self._content.fill({n: values.get(n, "") for n in self._content.names}).encode()

    async def _put(self, name: str, content: bytes | Path) -> int:
        try:
            return await asyncio.to_thread(folders.put, self._folder, name, content, self._replace)
        except FileExistsError as exc:
            raise Refused(f"there is a file {name} already") from exc
        except OSError as exc:
            raise AgentError(f"{self._folder / name}: {exc.strerror}") from exc

    async def _answered(self, answer: _Answer, name: str, old: Mark | None) -> Any:
        """Wait until there is an answer that is another one than before, and does not change."""
        loop = asyncio.get_running_loop()
        last, since = old, loop.time()
        try:
            async with asyncio.timeout(answer.within):
                while True:
                    now = await asyncio.to_thread(folders.mark_of, answer.folder, name)
                    if now != last:
                        last, since = now, loop.time()
                    elif now not in (None, old) and loop.time() - since >= answer.settled:
                        break
                    await asyncio.sleep(POLL)
        except TimeoutError as exc:
            text = f"no answer {name} within {answer.within:g} s"
            raise CallError.of(Problem("failed", text)) from exc
        try:
            data = await asyncio.to_thread(folders.contents, answer.folder, name, answer.most)
            if answer.delete and last is not None:
                await asyncio.to_thread(folders.take_away, answer.folder, name, last)
        except OSError as exc:
            raise AgentError(f"{answer.folder / name}: {exc.strerror}") from exc
        if data is None:
            text = f"the answer {name} has more than {answer.most} bytes (answer: most)"
            raise CallError.of(Problem("too-large", text))
        return self._output.take(data)


def _name(site: Site, said: str, *steps: str) -> Template:
    """Read the template of a file's name."""
    found = site.template(said, *steps)
    fixed = "".join(piece for piece in found.pieces if isinstance(piece, str))
    if "/" in fixed or "\0" in fixed or (fixed in (".", "..") and not found.names):
        site.wrong("is the name of a file, without a folder: leave the / out", *steps)
    for name in found.names:
        one = site.arguments.get(name)
        if one is not None and not one.required and one.default is None:
            site.wrong(f"{{{name}}} may be missing: give it a default", *steps)
    return found


def _filled(call: Call, template: Template) -> str:
    """Give the name of a file, if it is one, and one of this folder."""
    values = {name: text(call.args[name]) for name in template.names}
    for name, value in values.items():
        if "/" in value:
            raise call.bad(name, "it has a '/', and has to be a part of a file's name")
        if any(unicodedata.category(one) == "Cc" for one in value):
            raise call.bad(name, "it has a control character, which no name of a file may have")
        if not _encodes(value):
            raise call.bad(name, "it cannot be written in UTF-8")
    filled = template.fill(values)
    culprit = max(values, key=lambda name: len(values[name]), default="")
    if len(filled.encode()) > MAX_NAME:
        raise call.bad(culprit, f"it makes a file's name of more than {MAX_NAME} bytes")
    if not template.names:
        return filled
    if filled.startswith(OURS) or not filled.strip(". "):
        raise call.bad(culprit, "it makes no name of a file")
    if template.leads is not None and filled[0] in ".-":
        # An empty value may stand before the one that brings it.
        name = next((n for n in template.names if values[n][:1] == filled[0]), template.leads)
        one = call.arguments[name]
        if filled[0] == ".":
            raise call.bad(name, "a file's name would begin with '.', which hides it")
        if one.type == "string" and one.enum is None and not one.dashes:
            raise call.bad(
                name, "a file's name would begin with '-', which programs take for an option"
            )
    return filled


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lacks_folder(
    folder: Path, *steps: str
) -> Generator[tuple[tuple[str | int, ...], str], None, bool]:
    if not folder.is_dir():
        yield ("files", *steps), f"no folder {folder}: make it"
        return False
    return True
