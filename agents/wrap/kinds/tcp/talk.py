"""A talk over a connection: steps of saying something and expecting an answer, one after the other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ....errors import one_line
from ...outcome import Outcome
from ...template import Template
from .connection import Broken, Connection
from .steps import Expect, Others, Read, Send, Step, Until

#: Longest line in bytes that is taken.
MAX_LINE: Final = 64 * 1024

#: How lines end: what is sent, and what is looked for.
ENDS: Final[Mapping[str, tuple[bytes, bytes]]] = {
    "crlf": (b"\r\n", b"\n"),
    "lf": (b"\n", b"\n"),
    "cr": (b"\r", b"\r"),
    "nul": (b"\0", b"\0"),
}


@dataclass(frozen=True, slots=True)
class Wire:
    """How a service writes."""

    #: A key of :data:`ENDS`.
    line_end: str
    encoding: str
    #: Most bytes of an answer.
    most: int

    def line(self, said: str) -> bytes:
        """Give a line as it is sent."""
        return said.encode(self.encoding) + ENDS[self.line_end][0]

    def block(self, template: Template, values: Mapping[str, str | bytes]) -> bytes:
        """Give a block as it is sent, without a line end behind it."""
        whole = template.whole
        if whole is not None and isinstance(value := values.get(whole, ""), bytes):
            return value
        return _filled(template, values).encode(self.encoding)

    def dotted(self, template: Template, values: Mapping[str, str | bytes]) -> bytes:
        """Give lines as they are sent, with the dot that ends them."""
        lines = re.split("\r\n|\n", _filled(template, values))
        if lines[-1] == "":
            lines.pop()
        stuffed = [f".{line}" if line.startswith(".") else line for line in lines]
        return b"".join(map(self.line, [*stuffed, "."]))

    async def answer(self, connection: Connection) -> str:
        """Wait for a line."""
        line = await connection.line(ENDS[self.line_end][1], MAX_LINE)
        if self.line_end == "crlf":
            line = line.removesuffix(b"\r")
        return line.decode(self.encoding, "surrogateescape")

    def encoded(self, line: str) -> bytes:
        """Give back the bytes of a line that came."""
        return line.encode(self.encoding, "surrogateescape")


class Late(Broken):
    """No answer came in time."""


class Ended(Exception):
    """The service said what ends the talk."""

    def __init__(self, meant: Outcome, words: str) -> None:
        super().__init__(words)
        self.meant = meant
        self.words = words


class Talk:
    """One talk over a connection, step by step."""

    def __init__(
        self, wire: Wire, connection: Connection, values: Mapping[str, str | bytes]
    ) -> None:
        self._wire = wire
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
            Ended: an answer was another one than expected, and the manifest says what it means.
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
                self._add(await self._connection.rest(self._wire.most))
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
        wire, values = self._wire, dict(self._values)
        block = None if step.data is None else wire.block(step.data, values)
        if block is not None:
            values["size"] = str(len(block))
        self._unsent += wire.line(
            step.line.fill({name: str(values.get(name, "")) for name in step.line.names})
        )
        if block is not None:
            self._unsent += block + wire.line("")
        if step.dotted is not None:
            self._unsent += wire.dotted(step.dotted, values)

    async def _expect(self, step: Expect) -> None:
        lines: list[bytes] = []
        taken = 0
        while True:
            line = await self._wire.answer(self._connection)
            lines.append(self._wire.encoded(line))
            taken += len(line) + 1
            if taken > self._wire.most:
                raise Broken(f"it sent more than {self._wire.most} bytes")
            found = step.pattern.fullmatch(line)
            if found is not None:
                break
            if step.more is None or not step.more.fullmatch(line):
                self._other(line, step.others)
        self._last = b"\n".join(lines)
        for name, text in found.groupdict().items():
            if text and any(end in text for end in "\r\n\0"):
                # It may be filled into a line of ours.
                raise Broken(f"{name} in its answer holds a line end or NUL")
            self._values[name] = text or ""

    async def _until(self, step: Until) -> None:
        taken = 0
        lines: list[bytes] = []
        while not step.pattern.fullmatch(line := await self._wire.answer(self._connection)):
            if not lines:
                self._other(line, step.others, known=True)
            if step.dots and line.startswith("."):
                line = line[1:]
            lines.append(self._wire.encoded(line))
            taken += len(lines[-1]) + 1
            if taken > self._wire.most:
                raise Broken(f"it sent more than {self._wire.most} bytes")
        self._add(b"\n".join(lines) + (b"\n" if lines else b""))

    def _other(self, line: str, others: Others, known: bool = False) -> None:
        words = one_line(line.encode(errors="replace").decode(), 300)
        for pattern, meant in others:
            if (found := pattern.fullmatch(line)) is not None:
                self._last = self._wire.encoded(line)
                raise Ended(meant, found.groupdict().get("text") or words)
        if not known:
            raise Broken(f"it answered: {words or 'an empty line'}")

    def _count(self, template: Template) -> int:
        said = template.fill({name: str(self._values.get(name, "")) for name in template.names})
        digits = said.isascii() and said.isdigit() and len(said) <= 20
        if not digits or int(said) > self._wire.most:
            raise Broken(
                f"it announced {said[:20] or 'no'} bytes, and at most {self._wire.most} go"
            )
        return int(said)

    def _add(self, data: bytes) -> None:
        self._block = (self._block or b"") + data
        if len(self._block) > self._wire.most:
            raise Broken(f"it sent more than {self._wire.most} bytes")


def _filled(template: Template, values: Mapping[str, str | bytes]) -> str:
    return template.fill({name: str(values.get(name, "")) for name in template.names})
