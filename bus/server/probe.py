"""Asking a server whether it takes logins."""

from __future__ import annotations

import asyncio
from typing import Final
from xml.sax.saxutils import quoteattr

from .errors import ServerError

#: A server that says more than this before its features is none of ours.
LIMIT: Final = 16 * 1024


async def probe(host: str, port: int, domain: str, timeout: float = 3.0) -> None:
    """Open a stream for the domain and wait for its features (RFC 6120, 4.3.2).

    Raises :class:`ServerError` if they do not come within ``timeout`` seconds.
    """
    try:
        async with asyncio.timeout(timeout):
            await _features(host, port, domain)
    except TimeoutError:
        raise ServerError(
            f"the server at {host}:{port} did not answer within {timeout:g} s: "
            f"look whether it hangs, and restart it"
        ) from None
    except OSError as error:
        raise ServerError(
            f"the server at {host}:{port} cannot be reached ({error.strerror or error}): "
            f"look whether it runs"
        ) from error


async def _features(host: str, port: int, domain: str) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            (
                "<?xml version='1.0'?><stream:stream xmlns='jabber:client' version='1.0'"
                f" xmlns:stream='http://etherx.jabber.org/streams' to={quoteattr(domain)}>"
            ).encode()
        )
        answer = b""
        while b"<stream:features" not in answer:
            data = await reader.read(4096)
            answer += data
            if not data or len(answer) > LIMIT or b"<stream:error" in answer:
                raise ServerError(
                    f"what listens at {host}:{port} is no XMPP server for {domain}: "
                    f"check the port and the domain"
                )
        writer.write(b"</stream:stream>")
    finally:
        # Aborted, not closed: a server that hangs must not hold up whoever asks.
        writer.transport.abort()
