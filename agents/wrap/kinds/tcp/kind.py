"""A service that speaks in lines over TCP: what is said to it, and what it is expected to answer.

Everything that a caller gives stays where the manifest puts it.  A line is a line: no value brings a
line end or a NUL into it.  A placeholder among others is a word: a value with white space, which
would be several, is refused, as is an empty one, which would be none.  Bytes that may be anything go
into a block whose length the line before it says.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from .... import secret
from ....document import DURATION, SIZE, seconds, size
from ....errors import AgentError
from ...kind import Call, Host, Kind, Site
from ...output import Output
from ...template import Slot, Template
from .connection import Broken, Connection, Place, Pool
from .steps import LINE_ENDS, OTHERS, STEP, Read, Reader, Send, Step, read_others
from .talk import ENDS, Ended, Late, Talk, Wire

#: Seconds for each step, bytes of an answer, and connections, if the manifest does not say.
WITHIN: Final = 10.0
MOST: Final = 1024 * 1024
CONNECTIONS: Final = 4

#: Longest line in bytes that is sent.
MAX_SENT: Final = 8 * 1024

#: Characters that quote or escape in many protocols; refused where a placeholder is not in quotes.
SPECIAL: Final = "\"'\\"

#: What operations may say differently and still use the same connections.
_OF_A_TALK: Final = ("talk", "special", "keep", "most")


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
                "items": STEP,
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
                "items": STEP,
                "minItems": 1,
                "description": "The steps of a call, in order.",
                "examples": [[{"send": "get {key}"}, {"expect": ".*"}]],
            },
            "errors": {**OTHERS, "description": "As else, for every answer of greeting and talk."},
            "goodbye": {
                "type": "string",
                "minLength": 1,
                "description": "A line that is sent before a connection is closed.",
                "examples": ["QUIT"],
            },
            "line_end": {"enum": list(ENDS), "default": "crlf"},
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
                "description": "Most that are open at once; operations that say the same of the "
                "service share them.",
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
        key: str = "",
    ) -> None:
        self.place = place
        #: Operations with the same one share their connections.
        self._key = key
        self.result = output.type
        self._talk = talk
        self._output = output
        self._greeting = greeting
        self._secrets = secrets or {}
        self._wire = Wire(line_end, encoding, most)
        self._encoding = encoding
        self._goodbye = self._wire.line(goodbye) if goodbye else b""
        self._special = special
        self._keep = keep and not any(isinstance(s, Read) and s.count is None for s in talk)
        sends = [step for step in talk if isinstance(step, Send)]
        #: One line is all that is said.  After another answer than the expected one it is known then
        #: that the service waits for the next line, and is not in the middle of something.
        self._simple = len(sends) == 1 and sends[0].data is None and sends[0].dotted is None
        self._connections = connections
        self._within = within
        self._most = most
        #: It may be said twice.
        self._safe = safe
        self._pool: Pool | None = None
        self._names = list(
            dict.fromkeys(
                name for step in sends for template in step.templates for name in template.names
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
        reader = Reader(site, within, read_others(site, said.get("errors", {}), "tcp", "errors"))
        goodbye = said.get("goodbye", "")
        if any(end in goodbye for end in LINE_ENDS):
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
            greeting=reader.steps(said.get("greeting", ()), "greeting", secrets=list(secrets)),
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
            key=json.dumps(
                ["tcp", str(site.folder), {k: v for k, v in said.items() if k not in _OF_A_TALK}]
            ),
        )

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Say if its socket, a file or a secret is not here; nobody is connected to."""
        if self.place.path and not Path(self.place.path).is_socket():
            yield ("tcp", "connect"), f"no socket at {self.place.path}: start the service"
        if self.place.ca and not Path(self.place.ca).is_file():
            yield ("tcp", "tls", "ca"), f"no file {self.place.ca}: give a PEM file"
        for name, one in self._secrets.items():
            if why := one.missing():
                yield ("tcp", "secrets", name), why

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        """Keep connections for a block."""
        async with host.share(self._key, self._connected) as self._pool:
            try:
                yield
            finally:
                self._pool = None

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncGenerator[Pool]:
        pool = Pool(self.place, self._connections, self._within, self._greet, self._goodbye)
        try:
            yield pool
        finally:
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
                talk = Talk(self._wire, connection, values)
                try:
                    await talk.run(self._talk)
                except Ended as exc:
                    pool.give(connection, self._keep and self._simple)
                    if exc.meant.word != "done":
                        exc.meant.tell(exc.words)
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
            if any(end in one.read() for end in LINE_ENDS):
                raise AgentError(f"the secret {one} has a line end or NUL in it")
        try:
            await Talk(self._wire, connection, values).run(self._greeting)
        except Ended as exc:
            if exc.meant.word != "done":
                exc.meant.tell(exc.words)

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
            for end, noun in LINE_ENDS.items():
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
        quote = _quote(step.line, place)
        if quote:
            if quote in value or "\\" in value:
                raise call.bad(name, f"it has {quote} or \\, which would end or change the quotes")
            return
        if name not in step.spaces:
            if not value:
                raise call.bad(name, "it is empty, and has to be a word of a line")
            if any(one.isspace() for one in value):
                raise call.bad(name, "it has white space, which would make several words of it")
        found = next((one for one in value if one in self._special), None)
        if found is not None:
            raise call.bad(name, f"it has {found}, which may mean something to the service")


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


def _quote(template: Template, place: int) -> str:
    """Give the quote that a placeholder stands in, alone; nothing where it does not."""
    pieces = template.pieces
    before = "".join(piece for piece in pieces[:place] if isinstance(piece, str))
    after = pieces[place + 1] if place + 1 < len(pieces) else ""
    quote = before[-1:]
    if place == 0 or not isinstance(pieces[place - 1], str) or quote not in ('"', "'"):
        return ""
    closed = isinstance(after, str) and after.startswith(quote)
    return quote if closed and before.count(quote) % 2 else ""


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _is_file(call: Call, name: str) -> bool:
    one = call.arguments.get(name)
    return one is not None and one.type == "file"
