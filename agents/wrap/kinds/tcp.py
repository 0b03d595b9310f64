"""A service that speaks in lines over TCP: what is said to it, and what it is expected to answer.

Everything that a caller gives stays where the manifest puts it.  A line is a line: no value brings a
line end or a NUL into it.  A placeholder among others is a word: a value with white space, which
would be several, is refused, as is an empty one, which would be none.  Bytes that may be anything go
into a block whose length the line before it says.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from ... import secret
from ...document import DURATION, SIZE, seconds, size
from ...errors import AgentError, one_line
from ..connection import Broken, Connection, Place, Pool
from ..kind import Call, Host, Kind, Site
from ..output import Output
from ..template import Slot, Template
from .command import OUTCOME, Outcome, outcome

#: Seconds for each step, bytes of an answer, and connections, if the manifest does not say.
WITHIN: Final = 10.0
MOST: Final = 1024 * 1024
CONNECTIONS: Final = 4

#: Longest line in bytes that is sent, and that is taken.
MAX_SENT: Final = 8 * 1024
MAX_LINE: Final = 64 * 1024

#: Characters that quote or escape in many protocols; refused where a placeholder is not in quotes.
SPECIAL: Final = "\"'\\"

#: How lines end: what is sent, and what is looked for.
_ENDS: Final[Mapping[str, tuple[bytes, bytes]]] = {
    "crlf": (b"\r\n", b"\n"),
    "lf": (b"\n", b"\n"),
    "cr": (b"\r", b"\r"),
    "nul": (b"\0", b"\0"),
}

#: No value of a line holds one of these, whichever of them ends it.
_LINE_ENDS: Final[Mapping[str, str]] = {
    "\r": "a line end",
    "\n": "a line end",
    "\0": "a NUL character",
}

_OTHERS: Final[Mapping[str, Json]] = {
    "type": "object",
    "additionalProperties": OUTCOME,
    "description": "What other answers mean: a regular expression for the whole line, and done, "
    "refused, retry or error, or one of the last three with words for the caller.",
    "examples": [{"END": {"refused": "no such key"}}],
}

_STEP: Final[Mapping[str, Json]] = {
    "type": "object",
    "properties": {
        "send": {
            "type": "string",
            "description": "One line, without its end. {name} is filled with an argument, which is "
            "one word of it.",
            "examples": ["get {key}"],
        },
        "spaces": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "description": "The arguments in send that may be several words, or none.",
            "examples": [["text"]],
        },
        "data": {
            "type": "string",
            "description": "A block of bytes after the line, and a line end; {size} in send is how "
            "many they are.",
            "examples": ["{value}"],
        },
        "dotted": {
            "type": "string",
            "description": "Lines after the line, and one with a lone dot; dots at the start of a "
            "line are doubled (RFC 5321, 4.5.2).",
            "examples": ["{body}"],
        },
        "expect": {
            "type": "string",
            "description": "A line that all of this regular expression matches; what its named "
            "groups matched fills placeholders of the steps after it.",
            "examples": [r"VALUE \S+ \d+ (?P<size>\d+)"],
        },
        "more": {
            "type": "string",
            "description": "Regular expression of lines that may come before the expected one.",
            "examples": ["250-.*"],
        },
        "else": _OTHERS,
        "read": {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}],
            "description": "So many bytes, which are the output: a number, a group of an expected "
            "line, or all until the service closes the connection.",
            "examples": ["{size}", "all"],
        },
        "until": {
            "type": "string",
            "description": "Lines, which are the output, until one that matches.",
            "examples": ["END"],
        },
        "dots": {
            "type": "boolean",
            "description": "The service doubles dots at the start of a line; they are taken off.",
        },
        "within": {**DURATION, "description": "Longest time of this step."},
    },
    "additionalProperties": False,
    "examples": [{"send": "get {key}"}],
}

#: What a step does, and what may stand beside it.
_BESIDE: Final[Mapping[str, tuple[str, ...]]] = {
    "send": ("spaces", "data", "dotted"),
    "expect": ("more", "else"),
    "read": (),
    "until": ("else", "dots"),
}

Others = Sequence[tuple[re.Pattern[str], Outcome]]


@dataclass(frozen=True, slots=True)
class Send:
    """A line, and what follows it."""

    line: Template
    within: float
    spaces: frozenset[str] = frozenset()
    data: Template | None = None
    dotted: Template | None = None

    @property
    def templates(self) -> Iterator[Template]:
        """All that is filled in."""
        yield from (one for one in (self.line, self.data, self.dotted) if one is not None)


@dataclass(frozen=True, slots=True)
class Expect:
    """A line that is to come."""

    pattern: re.Pattern[str]
    within: float
    others: Others
    more: re.Pattern[str] | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes that are to come; all until the end without a count."""

    count: Template | None
    within: float


@dataclass(frozen=True, slots=True)
class Until:
    """Lines that are to come."""

    pattern: re.Pattern[str]
    within: float
    others: Others
    dots: bool = False


Step = Send | Expect | Read | Until


class Late(Broken):
    """No answer came in time."""


class _Ended(Exception):
    """The service said what ends the talk."""

    def __init__(self, meant: Outcome, words: str) -> None:
        super().__init__(words)
        self.meant = meant
        self.words = words


class Tcp(Kind):
    """Talks with a service."""

    SCHEMA: ClassVar[Mapping[str, Json]] = {
        "type": "object",
        "properties": {
            "connect": {
                "type": "string",
                "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$|^\.{0,2}/.+$",
                "patternErrorMessage": "is neither HOST:PORT nor the path of a Unix socket",
                "description": "HOST:PORT, or the path of a Unix socket.",
                "examples": ["127.0.0.1:11211", "/run/cache.sock"],
            },
            "tls": {
                "anyOf": [
                    {"type": "boolean"},
                    {
                        "type": "object",
                        "properties": {
                            "ca": {"type": "string", "minLength": 1},
                            "name": {"type": "string", "minLength": 1},
                        },
                        "additionalProperties": False,
                    },
                ],
                "description": "Speak TLS. Its certificate is verified: by the system's authorities "
                "or a file (ca), for the host or a name.",
                "examples": [True, {"ca": "ca.pem"}],
            },
            "greeting": {
                "type": "array",
                "items": _STEP,
                "description": "Steps on a new connection.",
                "examples": [[{"expect": "220 .*"}]],
            },
            "secrets": {
                "type": "object",
                "additionalProperties": secret.SCHEMA,
                "description": "What only placeholders of the greeting may use.",
                "examples": [{"password": {"env": "CACHE_PASSWORD"}}],
            },
            "talk": {
                "type": "array",
                "items": _STEP,
                "minItems": 1,
                "description": "The steps of a call, in order.",
                "examples": [[{"send": "get {key}"}, {"expect": ".*"}]],
            },
            "errors": {**_OTHERS, "description": "As else, for every answer of greeting and talk."},
            "goodbye": {
                "type": "string",
                "minLength": 1,
                "description": "A line that is sent before a connection is closed.",
                "examples": ["QUIT"],
            },
            "line_end": {"enum": list(_ENDS), "default": "crlf"},
            "encoding": {
                "enum": ["utf-8", "ascii", "latin-1", "cp1252", "cp437", "cp850"],
                "default": "utf-8",
            },
            "special": {
                "type": "string",
                "description": "Characters that quote or escape in this protocol, which no argument "
                "may hold where it does not stand in quotes; quotes and backslash if not said.",
            },
            "keep": {
                "type": "boolean",
                "default": True,
                "description": "Use a connection for further calls.",
            },
            "connections": {
                "type": "integer",
                "minimum": 1,
                "maximum": 1000,
                "default": CONNECTIONS,
                "description": "Most that are open at once.",
            },
            "within": {**DURATION, "description": "Longest time of each step (10s)."},
            "most": {**SIZE, "description": "Most bytes of an answer, and of data (1M)."},
        },
        "required": ["connect", "talk"],
        "additionalProperties": False,
        "description": "A service that speaks in lines: what is sent to it and what it answers.",
        "examples": [
            {"connect": "127.0.0.1:11211", "talk": [{"send": "get {key}"}, {"expect": ".*"}]}
        ],
    }

    def __init__(
        self,
        place: Place,
        talk: Sequence[Step],
        *,
        output: Output,
        greeting: Sequence[Step] = (),
        secrets: Mapping[str, secret.Secret] | None = None,
        goodbye: str = "",
        line_end: str = "crlf",
        encoding: str = "utf-8",
        special: str = SPECIAL,
        keep: bool = True,
        connections: int = CONNECTIONS,
        within: float = WITHIN,
        most: int = MOST,
        safe: bool = False,
    ) -> None:
        self.place = place
        self.result = output.type
        self._talk = talk
        self._output = output
        self._greeting = greeting
        self._secrets = secrets or {}
        self._end, self._ends = _ENDS[line_end]
        self._encoding = encoding
        self._goodbye = goodbye.encode(encoding) + self._end if goodbye else b""
        self._special = special
        self._keep = keep and not any(isinstance(s, Read) and s.count is None for s in talk)
        self._connections = connections
        self._within = within
        self._most = most
        #: It may be said twice.
        self._safe = safe
        self._pool: Pool | None = None
        self._names = list(
            dict.fromkeys(
                name
                for step in talk
                if isinstance(step, Send)
                for template in step.templates
                for name in template.names
            )
        )

    @classmethod
    def read(cls, site: Site) -> Tcp:
        """Read it."""
        said: Mapping[str, Any] = site.value
        output = Output.of(site)
        if output.more and "file" in output.more:
            site.wrong("goes with command: leave it out", "output", "file")
        within = seconds(said["within"]) if "within" in said else WITHIN
        encoding = said.get("encoding", "utf-8")
        reader = _Reader(site, within, _others(site, said.get("errors", {}), "errors"))
        goodbye = said.get("goodbye", "")
        if any(end in goodbye for end in _LINE_ENDS):
            site.wrong("is one line: leave its end out", "tcp", "goodbye")
        elif not _encodes(goodbye, encoding):
            site.wrong(
                f"cannot be written in {encoding}: choose another encoding", "tcp", "goodbye"
            )
            goodbye = ""
        secrets = {
            name: secret.Secret.of(one, site.folder)
            for name, one in said.get("secrets", {}).items()
        }
        return cls(
            _place(site, said),
            reader.steps(said["talk"], "talk"),
            output=output,
            greeting=reader.steps(said.get("greeting", ()), "greeting", secrets=tuple(secrets)),
            secrets=secrets,
            goodbye=goodbye,
            line_end=said.get("line_end", "crlf"),
            encoding=encoding,
            special=said.get("special", SPECIAL),
            keep=said.get("keep", True),
            connections=said.get("connections", CONNECTIONS),
            within=within,
            most=size(said["most"]) if "most" in said else MOST,
            safe=site.op.get("safe", site.op.get("effects") == "reads"),
        )

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say if its socket, a file or a secret is not here; nobody is connected to."""
        if self.place.path and not Path(self.place.path).is_socket():
            yield ("tcp", "connect"), f"no socket at {self.place.path}: start the service"
        if self.place.ca and not Path(self.place.ca).is_file():
            yield ("tcp", "tls", "ca"), f"no file {self.place.ca}: give a PEM file"
        for name, one in self._secrets.items():
            try:
                one.read()
            except AgentError as exc:
                yield ("tcp", "secrets", name), str(exc)

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        """Keep connections for a block."""
        self._pool = Pool(self.place, self._connections, self._within, self._greet, self._goodbye)
        try:
            yield
        finally:
            pool, self._pool = self._pool, None
            await pool.close()

    async def run(self, call: Call) -> Any:
        """Talk, and give what was answered.

        A connection that was kept and turns out to be dead before it has said anything is replaced
        once, if nothing was sent over it or the operation may run twice.
        """
        values = await self._values(call)
        assert self._pool is not None, "it is not open"
        pool = self._pool
        async with pool.room():
            for fresh in (False, True):
                connection = await pool.take(fresh)
                talk = _Talk(self, connection, values)
                try:
                    await talk.run(self._talk)
                except _Ended as exc:
                    # With a block on its way it is not known what the service makes of that.
                    keep = self._keep and not any(
                        isinstance(s, Send) and s.data for s in self._talk
                    )
                    pool.give(connection, keep)
                    if exc.meant.word != "done":
                        raise exc.meant.error(exc.words) from exc
                    return self._taken(talk.output)
                except Broken as exc:
                    connection.abort()
                    died = not isinstance(exc, Late) and not connection.heard
                    again = died and connection.idle is not None and not fresh
                    if again and (self._safe or not connection.wrote):
                        continue
                    raise CallError.of(Problem("failed", f"{self.place.text}: {exc}")) from exc
                except BaseException:
                    connection.abort()
                    raise
                pool.give(connection, self._keep)
                return self._taken(talk.output)
        raise AssertionError("the second connection is fresh")

    def _taken(self, data: bytes) -> Any:
        if self._output.form != "blob" and self._encoding not in ("utf-8", "ascii"):
            data = data.decode(self._encoding, "replace").encode()
        return self._output.take(data)

    async def _greet(self, connection: Connection) -> None:
        values: dict[str, str | bytes] = {}
        for name, one in self._secrets.items():
            values[name] = one.read()
            if any(end in one.read() for end in _LINE_ENDS):
                raise AgentError(f"the secret {one} has a line end or NUL in it")
        try:
            await _Talk(self, connection, values).run(self._greeting)
        except _Ended as exc:
            if exc.meant.word != "done":
                raise exc.meant.error(exc.words) from exc

    # -- arguments

    async def _values(self, call: Call) -> dict[str, str | bytes]:
        """Give what fills placeholders, and refuse what would not stay in its place."""
        found: dict[str, str | bytes] = dict(
            await call.texts([n for n in self._names if not _is_file(call, n)])
        )
        for name in self._names:
            if _is_file(call, name) and (blob := call.args.get(name)) is not None:
                if blob.size > self._most:
                    raise call.bad(name, f"larger than {self._most} bytes")
                found[name] = await blob.read()
        for step in self._talk:
            if isinstance(step, Send):
                self._check(call, step, found)  # Before anything is sent.
        return found

    def _check(self, call: Call, step: Send, values: Mapping[str, str | bytes]) -> None:
        for template in step.templates:
            for name in (one for one in template.names if one in call.arguments):
                value = values.get(name, "")
                if isinstance(value, str) and not _encodes(value, self._encoding):
                    raise call.bad(name, f"it cannot be written in {self._encoding}")
        whole = step.line.whole
        for place, piece in enumerate(step.line.pieces):
            if not isinstance(piece, Slot) or piece.name not in call.arguments:
                continue
            value = values.get(piece.name, "")
            assert isinstance(value, str), "no file stands in a line"
            for end, noun in _LINE_ENDS.items():
                if end in value:
                    raise call.bad(piece.name, f"it has {noun}, and has to stay within one line")
            if whole is None:
                self._check_word(call, step, place, piece.name, value)
        fixed = {name: str(values.get(name, "")) for name in step.line.names}
        if len(step.line.fill(fixed).encode(self._encoding)) > MAX_SENT:
            longest = max(step.line.names, key=lambda name: len(fixed[name]))
            raise call.bad(longest, f"it makes a line of more than {MAX_SENT} bytes")
        for name in step.dotted.names if step.dotted is not None else ():
            value = str(values.get(name, ""))
            if re.search(r"\0|\r(?!\n)", value):
                raise call.bad(name, "it has a NUL character or a carriage return alone")
        for block in (step.data, step.dotted):
            for name in block.names if block is not None else ():
                if len(values.get(name, "")) > self._most:
                    raise call.bad(name, f"longer than {self._most} bytes")

    def _check_word(self, call: Call, step: Send, place: int, name: str, value: str) -> None:
        before, after = _neighbours(step.line, place)
        if before and before == after and before in "\"'":
            if before in value or "\\" in value:
                raise call.bad(name, f"it has {before} or \\, which would end or change the quotes")
            return
        if name not in step.spaces:
            if not value:
                raise call.bad(name, "it is empty, and has to be a word of a line")
            if any(one.isspace() for one in value):
                raise call.bad(name, "it has white space, which would make several words of it")
        found = next((one for one in value if one in self._special), None)
        if found is not None:
            raise call.bad(name, f"it has {found}, which may mean something to the service")

    # -- for a talk

    def line(self, said: str) -> bytes:
        """Give a line as it is sent."""
        return said.encode(self._encoding) + self._end

    def block(self, template: Template, values: Mapping[str, str | bytes]) -> bytes:
        """Give a block as it is sent, without a line end behind it."""
        whole = template.whole
        if whole is not None and isinstance(value := values.get(whole, ""), bytes):
            return value
        texts = {name: str(values.get(name, "")) for name in template.names}
        return template.fill(texts).encode(self._encoding)

    def dotted(self, template: Template, values: Mapping[str, str | bytes]) -> bytes:
        """Give lines as they are sent, with the dot that ends them."""
        text = template.fill({name: str(values.get(name, "")) for name in template.names})
        lines = re.split("\r\n|\n", text)
        if lines[-1] == "":
            lines.pop()
        stuffed = [f".{line}" if line.startswith(".") else line for line in lines]
        return b"".join(map(self.line, [*stuffed, "."]))

    async def answer(self, connection: Connection) -> str:
        """Wait for a line."""
        line = await connection.line(self._ends, MAX_LINE)
        if self._end == b"\r\n":
            line = line.removesuffix(b"\r")
        return line.decode(self._encoding, "surrogateescape")

    def encoded(self, line: str) -> bytes:
        """Give back the bytes of a line that came."""
        return line.encode(self._encoding, "surrogateescape")

    @property
    def most(self) -> int:
        """Most bytes of an answer."""
        return self._most


class _Talk:
    """One talk over a connection, step by step."""

    def __init__(self, tcp: Tcp, connection: Connection, values: Mapping[str, str | bytes]) -> None:
        self._tcp = tcp
        self._connection = connection
        self._values: dict[str, str | bytes] = dict(values)
        self._block: bytes | None = None
        self._last = b""
        self._unsent = bytearray()

    @property
    def output(self) -> bytes:
        """What was answered: the bytes and lines that were read, else the last line."""
        return self._last if self._block is None else self._block

    async def run(self, steps: Sequence[Step]) -> None:
        """Do all steps.

        Raises:
            _Ended: an answer was another one than expected, and the manifest says what it means.
            Broken: the connection is of no use any more: it ended, no answer came in time, or one
                that the manifest does not know.
        """
        for step in steps:
            try:
                async with asyncio.timeout(step.within):
                    await self._step(step)
            except TimeoutError as exc:
                raise Late(f"no answer within {step.within:g} s") from exc
        await self._flush()

    async def _step(self, step: Step) -> None:
        if isinstance(step, Send):
            self._send(step)
            return
        await self._flush()
        match step:
            case Expect():
                await self._expect(step)
            case Read() if step.count is None:
                self._add(await self._connection.rest(self._tcp.most))
            case Read():
                assert step.count is not None
                self._add(await self._connection.read(self._count(step.count)))
            case Until():
                await self._until(step)

    async def _flush(self) -> None:
        """Send what waits, in one piece, so that a line and its block are one packet."""
        if self._unsent:
            data = bytes(self._unsent)
            self._unsent.clear()
            await self._connection.write(data)

    def _send(self, step: Send) -> None:
        tcp, values = self._tcp, dict(self._values)
        block = None if step.data is None else tcp.block(step.data, values)
        if block is not None:
            values["size"] = str(len(block))
        self._unsent += tcp.line(
            step.line.fill({name: str(values.get(name, "")) for name in step.line.names})
        )
        if block is not None:
            self._unsent += block + tcp.line("")
        if step.dotted is not None:
            self._unsent += tcp.dotted(step.dotted, values)

    async def _expect(self, step: Expect) -> None:
        lines: list[bytes] = []
        taken = 0
        while True:
            line = await self._tcp.answer(self._connection)
            lines.append(self._tcp.encoded(line))
            taken += len(line) + 1
            if taken > self._tcp.most:
                raise Broken(f"it sent more than {self._tcp.most} bytes")
            found = step.pattern.fullmatch(line)
            if found is not None:
                break
            if step.more is None or not step.more.fullmatch(line):
                self._other(line, step.others)
        self._last = b"\n".join(lines)
        self._values.update({name: text or "" for name, text in found.groupdict().items()})

    async def _until(self, step: Until) -> None:
        taken = 0
        lines: list[bytes] = []
        while not step.pattern.fullmatch(line := await self._tcp.answer(self._connection)):
            if not lines:
                self._other(line, step.others, known=True)
            if step.dots and line.startswith("."):
                line = line[1:]
            lines.append(self._tcp.encoded(line))
            taken += len(lines[-1]) + 1
            if taken > self._tcp.most:
                raise Broken(f"it sent more than {self._tcp.most} bytes")
        self._add(b"\n".join(lines) + (b"\n" if lines else b""))

    def _other(self, line: str, others: Others, known: bool = False) -> None:
        words = one_line(line.encode(errors="replace").decode(), 300)
        for pattern, meant in others:
            if (found := pattern.fullmatch(line)) is not None:
                self._last = self._tcp.encoded(line)
                raise _Ended(meant, found.groupdict().get("text") or words)
        if not known:
            raise Broken(f"it answered: {words or 'an empty line'}")

    def _count(self, template: Template) -> int:
        said = template.fill({name: str(self._values.get(name, "")) for name in template.names})
        if not (said.isascii() and said.isdigit()) or int(said[:20]) > self._tcp.most:
            raise Broken(f"it announced {said[:20] or 'no'} bytes, and at most {self._tcp.most} go")
        return int(said)

    def _add(self, data: bytes) -> None:
        self._block = (self._block or b"") + data
        if len(self._block) > self._tcp.most:
            raise Broken(f"it sent more than {self._tcp.most} bytes")


# -- reading


class _Reader:
    """Reads the steps of a manifest."""

    def __init__(self, site: Site, within: float, others: Others) -> None:
        self._site = site
        self._within = within
        self._others = others

    def steps(
        self, said: Sequence[Mapping[str, Any]], key: str, secrets: tuple[str, ...] | None = None
    ) -> list[Step]:
        """Read a list of them; in a greeting ``secrets`` take the place of arguments."""
        groups: list[str] = []
        found: list[Step] = []
        for place, step in enumerate(said):
            made = self._step(step, ("tcp", key, place), groups, secrets)
            if made is None:
                continue
            found.append(made)
            if isinstance(made, Expect):
                groups += made.pattern.groupindex
        return found

    def _step(
        self,
        said: Mapping[str, Any],
        steps: tuple[str | int, ...],
        groups: Sequence[str],
        secrets: tuple[str, ...] | None,
    ) -> Step | None:
        site = self._site
        does = [key for key in _BESIDE if key in said]
        if len(does) != 1:
            has = f"has {' and '.join(does)}: make two steps of it" if does else "does nothing"
            site.wrong(f"{has}; a step has one of {', '.join(_BESIDE)}", *steps)
            return None
        for key in said:
            owners = [one for one, keys in _BESIDE.items() if key in keys]
            if owners and does[0] not in owners:
                site.wrong(f"goes with {' or '.join(owners)}, and this is {does[0]}", *steps, key)
                return None
        within = seconds(said["within"]) if "within" in said else self._within
        match does[0]:
            case "send":
                return self._send(said, steps, within, groups, secrets)
            case "read":
                if said["read"] == "all":
                    return Read(None, within)
                count = self._template(str(said["read"]), (*steps, "read"), groups, ())
                if not re.fullmatch("[0-9]*", _literal(count)) or not count.pieces:
                    site.wrong(
                        'write a number of bytes, a group such as "{size}", or all', *steps, "read"
                    )
                return Read(count, within)
            case key:
                pattern = _pattern(site, said[key], *steps, key)
                for name in pattern.groupindex:
                    if name in site.arguments or name in (secrets or ()):
                        site.wrong(
                            f"the group {name} has the name of an argument: call it otherwise",
                            *steps,
                            key,
                        )
                others = [*_others(site, said.get("else", {}), *steps[1:], "else"), *self._others]
                if key == "until":
                    return Until(pattern, within, others, said.get("dots", False))
                more = _pattern(site, said["more"], *steps, "more") if "more" in said else None
                return Expect(pattern, within, others, more)

    def _send(
        self,
        said: Mapping[str, Any],
        steps: tuple[str | int, ...],
        within: float,
        groups: Sequence[str],
        secrets: tuple[str, ...] | None,
    ) -> Send:
        site = self._site
        also = [*groups, "size"] if "data" in said else groups
        line = self._template(said["send"], (*steps, "send"), also, secrets)
        if any(end in _literal(line) for end in _LINE_ENDS):
            site.wrong(
                "is one line: leave its end out, line_end says how lines end", *steps, "send"
            )
        if "data" in said and "size" not in line.names:
            site.wrong("{size} is missing: how many bytes the data are", *steps, "send")
        if "data" in said and "size" in site.arguments:
            site.wrong(
                "{size} is the number of bytes of data here: call the argument otherwise",
                *steps,
                "send",
            )
        for name in line.names:
            one = site.arguments.get(name)
            if one is None or name in groups:
                continue
            if not one.required and one.default is None:
                site.wrong(f"{{{name}}} may be missing: give it a default", *steps, "send")
            bounded = one.pattern or one.max_length or one.enum or one.type != "string"
            if "data" in said and not bounded:
                # A service that refuses the line reads the block as the lines of further commands.
                site.wrong(
                    f"{{{name}}} stands before a block of data, which a service that does not like "
                    f"the line takes for commands: give {name} a max_length or a pattern",
                    *steps,
                    "send",
                )
        for name in said.get("spaces", ()):
            if name not in line.names:
                site.wrong(f"{name!r} is no argument in send", *steps, "spaces")
        data = dotted = None
        if "data" in said:
            data = self._template(said["data"], (*steps, "data"), groups, secrets, files=True)
            for name in data.names:
                one = site.arguments.get(name)
                if one is not None and one.type == "file" and data.whole is None:
                    site.wrong(f"{{{name}}} is a file and must be all of it", *steps, "data")
        if "dotted" in said:
            dotted = self._template(said["dotted"], (*steps, "dotted"), groups, secrets)
        return Send(line, within, frozenset(said.get("spaces", ())), data, dotted)

    def _template(
        self,
        said: str,
        steps: tuple[str | int, ...],
        also: Sequence[str],
        secrets: tuple[str, ...] | None,
        files: bool = False,
    ) -> Template:
        site = self._site
        if secrets is None:
            return site.template(said, *steps, also=also, files=files)
        # A greeting is said once for many calls, so it has no arguments; a count never has.
        try:
            found = Template.of(said)
        except ValueError as exc:
            site.wrong(str(exc), *steps)
            return Template((said,))
        for name in found.names:
            if name not in (*also, *secrets):
                site.wrong(
                    f"{{{name}}} is not known here: write one of {', '.join((*also, *secrets))}"
                    if (*also, *secrets)
                    else f"{{{name}}} is not known here: there is no group of an expected line",
                    *steps,
                )
                return Template((said,))
        return found


def _place(site: Site, said: Mapping[str, Any]) -> Place:
    text: str = said["connect"]
    tls: Any = said.get("tls", False)
    more: Mapping[str, str] = {} if isinstance(tls, bool) else tls
    ca = str(site.folder / more["ca"]) if "ca" in more else ""
    if "/" in text:
        if tls and "name" not in more:
            site.wrong(
                "needs the name in the certificate: write {name: cache.example}", "tcp", "tls"
            )
        path = str(site.folder / text)
        return Place(text, path=path, tls=bool(tls), ca=ca, name=more.get("name", ""))
    host, _, port = text.rpartition(":")
    if not 0 < int(port) < 65536:
        site.wrong(f"{port} is no port: write one from 1 to 65535", "tcp", "connect")
    host = host.strip("[]")
    return Place(text, host, int(port), tls=bool(tls), ca=ca, name=more.get("name", ""))


def _others(site: Site, said: Mapping[str, Any], *steps: str | int) -> Others:
    return [
        (_pattern(site, regex, "tcp", *steps, regex), outcome(meant))
        for regex, meant in said.items()
    ]


def _pattern(site: Site, said: str, *steps: str | int) -> re.Pattern[str]:
    try:
        return re.compile(said)
    except re.error as exc:
        site.wrong(f"{said!r} is no regular expression: {exc}: escape . ( [ * + ? with \\", *steps)
        return re.compile("")


def _literal(template: Template) -> str:
    return "".join(piece for piece in template.pieces if isinstance(piece, str))


def _neighbours(template: Template, place: int) -> tuple[str, str]:
    """Give the characters right before and after a placeholder; empty where there is none."""
    pieces = template.pieces
    before = pieces[place - 1] if place > 0 else ""
    after = pieces[place + 1] if place + 1 < len(pieces) else ""
    return (
        before[-1:] if isinstance(before, str) else "",
        after[:1] if isinstance(after, str) else "",
    )


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _is_file(call: Call, name: str) -> bool:
    one = call.arguments.get(name)
    return one is not None and one.type == "file" and isinstance(call.args.get(name), Blob | None)
