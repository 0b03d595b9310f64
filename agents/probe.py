"""Asking something whether it is well: a program, a URL or a port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from spinal.protocols import Json, duration

from . import process
from .document import DURATION, seconds
from .errors import CommandFailed, one_line
from .process import Guard

#: Seconds that an answer may take if nothing is said.
TIMEOUT: Final = 10.0

#: What a probe asks, and how it stands in a file.
PROPERTIES: Final[Mapping[str, Mapping[str, Json]]] = {
    "run": {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string"},
        "description": "A program that ends with 0 while all is well; a list, no shell.",
        "examples": [["units", "--version"]],
    },
    "http": {
        "type": "string",
        "pattern": "^https?://",
        "patternErrorMessage": "is no URL of http or https",
        "description": "A URL that answers with less than 400 while all is well.",
        "examples": ["http://127.0.0.1:8080/health"],
    },
    "tcp": {
        "type": "string",
        "pattern": "^(.+):([0-9]{1,5}|\\{port\\})$",
        "patternErrorMessage": "is no host and port",
        "description": "A host and port that takes connections while all is well.",
        "examples": ["127.0.0.1:11211"],
    },
    "timeout": {**DURATION, "description": "How long an answer may take (10s)."},
}


@dataclass(frozen=True)
class Probe:
    """One question."""

    #: ``run``, ``http`` or ``tcp``.
    kind: str
    what: Any
    timeout: float = TIMEOUT
    folder: Path = field(default_factory=Path)

    @classmethod
    def of(cls, said: Mapping[str, Any], folder: Path = Path()) -> Probe:
        """Read what fits :data:`PROPERTIES`.

        Raises:
            ValueError: it asks nothing, or more than one thing.
        """
        kinds = [kind for kind in _ASK if kind in said]
        if len(kinds) != 1:
            has = f"{' and '.join(kinds)} stand together" if kinds else "asks nothing"
            raise ValueError(f"{has}: write one of {', '.join(_ASK)}")
        timeout = seconds(said["timeout"]) if "timeout" in said else TIMEOUT
        return cls(kinds[0], said[kinds[0]], timeout, folder)

    @property
    def program(self) -> str | None:
        """The program that it runs, if it does."""
        if self.kind != "run":
            return None
        return process.located(self.what[0], self.folder)

    def lacks(self) -> Iterator[str]:
        """Say if its program is not here."""
        if self.program is not None and (why := process.unrunnable(self.program)):
            yield why

    async def ask(self, guard: Guard | None = None) -> str:
        """Give why it is not well; empty if it is.  Whatever goes wrong is such a reason."""
        try:
            async with asyncio.timeout(self.timeout):
                return one_line(await _ASK[self.kind](self, guard), 300)
        except TimeoutError:
            return f"no answer within {duration.write(self.timeout)}"


async def _run(probe: Probe, guard: Guard | None) -> str:
    argv = [probe.program or "", *probe.what[1:]]
    try:
        await process.run(argv, cwd=probe.folder, check=True, grace=1.0, guard=guard)
    except CommandFailed as exc:
        return str(exc)
    return ""


async def _http(probe: Probe, guard: Guard | None) -> str:
    return await http(probe.what)


async def _tcp(probe: Probe, guard: Guard | None) -> str:
    host, _, port = probe.what.rpartition(":")
    return await tcp(host.strip("[]"), int(port))


async def http(url: str) -> str:
    """Give why a URL is not well; empty if it answers with less than 400.  Follows no redirects."""
    import aiohttp

    options: dict[str, Any] = {"trust_env": False, "cookie_jar": aiohttp.DummyCookieJar()}
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True), **options
            ) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            return "" if answer.status < 400 else f"{url} answers {answer.status} {answer.reason}"
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        return one_line(f"{url}: {exc or type(exc).__name__}", 300)


async def tcp(host: str, port: int) -> str:
    """Give why a port is not well; empty if it takes a connection."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as exc:
        return f"{host}:{port} takes no connection: {exc.strerror or exc}"
    writer.close()
    with contextlib.suppress(OSError):
        # It took the connection; how it ends it does not matter.
        await writer.wait_closed()
    return ""


_ASK: Final = {"run": _run, "http": _http, "tcp": _tcp}
