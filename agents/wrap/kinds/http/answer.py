"""What an HTTP service answered: read within bounds, and its own words about what went wrong."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, cast

from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem, values

from ....errors import AgentError, one_line

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

#: Where an answer of JSON says in words what went wrong, in this order.
_WORDS: Final = (
    *(
        "error",
        "message",
        "detail",
        "error_description",
        "errors",
        "title",
        "reason",
        "description",
    ),
)

_PLAIN: Final = re.compile("[!-~]+")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered."""

    url: URL
    status: int
    reason: str
    headers: Mapping[str, str]
    data: bytes
    #: The next page as the header Link says.
    link: str | None = None

    @property
    def after(self) -> float | None:
        """Seconds to wait, if it says (RFC 9110, 10.2.3)."""
        said = self.headers.get("Retry-After", "").strip()
        if said.isascii() and said.isdigit() and len(said) < 10:
            return float(said)
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None

    def words(self) -> str:
        """Give its own words in one line: what its JSON says, or its first line of text."""
        words = _said(self.data[:65_536].decode(errors="replace"))
        status = f"{self.status} {self.reason}".strip()
        return one_line(f"{words} ({status})" if words else f"it answered {status}", 400)


def _said(text: str) -> str:
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _member(values.loads(text.encode()), 4)
        except ValueError:
            pass  # Cut off, or no JSON after all.
    if "<html" in text[:1000].lower():
        title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
        return "" if title is None else title[1].strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:300]


def _member(value: Json, depth: int) -> str:
    if isinstance(value, str):
        return value[:300]
    if isinstance(value, list) and value and depth:
        items: list[Json] = value  # pyright: ignore[reportUnknownVariableType]
        return _member(items[0], depth - 1)
    if isinstance(value, Mapping) and depth:
        members = cast("Mapping[str, Json]", value)
        for key in _WORDS:
            if (found := _member(members.get(key), depth - 1)) != "":
                return found
    return ""


async def bounded(found: aiohttp.ClientResponse, most: int) -> bytes:
    """Read a body, and no more of it than that, before and after it is unpacked.

    Raises:
        CallError: ``too-large``.
        AgentError: it is not packed as it says.
    """
    data = bytearray()
    unpack = _unpacker(found.headers.get("Content-Encoding", "").strip().lower())
    async for chunk in found.content.iter_any():
        data += chunk if unpack is None else unpack(chunk, most + 1 - len(data))
        if len(data) > most:
            text = f"the answer is longer than {most} bytes (limits: answer)"
            raise CallError.of(Problem("too-large", text))
    if unpack is not None:
        unpack(None, 0)
    return bytes(data)


def _unpacker(coding: str) -> Callable[[bytes | None, int], bytes] | None:
    """Give what unpacks a content coding (RFC 9110, 8.4.1), at most so many bytes at a time."""
    if coding in ("", "identity"):
        return None
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise AgentError(f"the answer is packed as {one_line(coding, 40)!r}, which we do not take")
    stream = zlib.decompressobj(wbits=47)
    begun = False

    def unpack(chunk: bytes | None, most: int) -> bytes:
        nonlocal stream, begun
        if chunk is None:
            if begun and not stream.eof:
                raise AgentError("the answer is cut off: its packed data has no end")
            return b""
        found = b""
        while chunk and len(found) < most:
            if stream.eof:
                stream = zlib.decompressobj(wbits=47)
            begun = True
            try:
                found += stream.decompress(chunk, most - len(found))
            except zlib.error as exc:
                raise AgentError(f"the answer is not {coding}, as it says: {exc}") from exc
            chunk = stream.unused_data if stream.eof else stream.unconsumed_tail
        return found

    return unpack


def beside(here: URL, there: str, what: str) -> URL:
    """Give a URL that a service names.

    Raises:
        AgentError: it is none, or not its own: our secrets go to no other service.
    """
    from yarl import URL

    try:
        # As it is if it can stand in a request, because to quote it again would change it.
        found = here.join(URL(there, encoded=_PLAIN.fullmatch(there) is not None))
        same = found.origin() == here.origin()
    except ValueError as exc:
        raise AgentError(f"its {what} is no URL") from exc
    if not same:
        # Without its query, which may hold a secret of ours.
        where = one_line(f"{found.scheme}://{found.authority}", 100)
        raise AgentError(f"its {what} is at another service: {where}")
    return found.with_fragment(None)
