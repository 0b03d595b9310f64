"""Moving blobs: upload to the server's HTTP upload service (XEP-0363), fetch with the hash checked.

Bytes never travel through the dispatcher.  A blob is fetched only from a host that our credentials
name, over TLS that our certificate authority vouches for, into bounded memory or a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from spinal.protocols import BlobRef

from .errors import BlobError, CallError

if TYPE_CHECKING:
    import aiohttp

    from .connection import Connection

UPLOAD = "urn:xmpp:http:upload:0"
DISCO_INFO = "http://jabber.org/protocol/disco#info"
DISCO_ITEMS = "http://jabber.org/protocol/disco#items"

#: Bytes that are read or written at a time.
CHUNK = 256 * 1024
#: Most bytes that :meth:`Blobs.fetch` holds in memory; more goes into a file.
MAX_MEMORY = 256 * 1024 * 1024
#: Seconds without a byte after which a transfer is given up.
STALLED = 30.0
#: Headers that an upload slot may ask for (XEP-0363, 5).
_HEADERS = {"authorization": "Authorization", "cookie": "Cookie", "expires": "Expires"}


class Blobs:
    """Uploads and fetches for one address on the bus.

    Args:
        connection: asks the upload service for places.
        uploads: hosts (``host`` or ``host:port``) that blobs may be fetched from.
        ca: certificate authority (PEM) to trust; the system's if none.
        service: address of the upload service; found by service discovery if none.
    """

    def __init__(
        self,
        connection: Connection,
        domain: str,
        uploads: Collection[str],
        ca: Path | None = None,
        service: str | None = None,
    ) -> None:
        self._connection = connection
        self._domain = domain
        self._uploads = frozenset(host.lower() for host in uploads)
        self._ca = ca
        self._service = service
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End the HTTP connections; may be called again."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def upload(
        self, source: bytes | Path, media_type: str = "application/octet-stream"
    ) -> BlobRef:
        """Upload bytes or a file, and give the reference.

        Raises:
            BlobError: the file cannot be read, is larger than the server takes, or the transfer
                failed.
        """
        try:
            size, sha256 = await asyncio.to_thread(_measure, source)
        except OSError as exc:
            raise BlobError(f"cannot read {source!s}: {exc.strerror or exc}") from exc
        name = source.name if isinstance(source, Path) else "blob"
        put, get, headers = await self._slot(name, size, media_type)
        import aiohttp

        headers = {**headers, "Content-Length": str(size), "Content-Type": media_type}
        try:
            async with self._session().put(
                put, data=_chunks(source), headers=headers, allow_redirects=False
            ) as response:
                if response.status not in (200, 201, 204):
                    raise BlobError(
                        f"the upload of {name} was refused: {response.status} {response.reason}"
                    )
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise BlobError(f"the upload of {name} failed: {_words(exc)}") from exc
        return BlobRef(get, sha256, size, media_type)

    async def fetch(self, ref: BlobRef) -> bytes:
        """Fetch the bytes of a blob.

        Raises:
            BlobError: not a host of ours, gone, too large for memory, or not what was announced.
        """
        if ref.size > MAX_MEMORY:
            raise BlobError(f"a blob of {ref.size} bytes goes into a file: use save(path)")
        found = bytearray()
        digest = hashlib.sha256()
        async with aclosing(self._stream(ref)) as chunks:
            async for chunk in chunks:
                found += chunk
                digest.update(chunk)
        _check(ref, len(found), digest.hexdigest())
        return bytes(found)

    async def fetch_to(self, ref: BlobRef, path: Path) -> None:
        """Fetch a blob into a file, which appears only when it is complete and right.

        Raises:
            BlobError: as for :meth:`fetch`, or the file cannot be written.
        """
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        digest = hashlib.sha256()
        size = 0
        try:
            with part.open("wb") as file:
                async with aclosing(self._stream(ref)) as chunks:
                    async for chunk in chunks:
                        size += len(chunk)
                        digest.update(chunk)
                        await asyncio.to_thread(file.write, chunk)
            _check(ref, size, digest.hexdigest())
            part.replace(path)
        except OSError as exc:
            raise BlobError(f"cannot write {path}: {exc.strerror or exc}") from exc
        finally:
            part.unlink(missing_ok=True)

    # -- HTTP

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            import aiohttp

            context = ssl.create_default_context(cafile=self._ca)
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=16),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED),
                auto_decompress=False,
                trust_env=False,
            )
        return self._http

    async def _stream(self, ref: BlobRef) -> AsyncGenerator[bytes]:
        """Give the bytes as they come, never more than announced."""
        import aiohttp

        self._allow(ref.url)
        seen = 0
        try:
            async with self._session().get(ref.url, allow_redirects=False) as response:
                if response.status != 200:
                    raise BlobError(
                        f"the blob is not there: {response.status} {response.reason} "
                        "(blobs expire; send it again)"
                    )
                async for chunk in response.content.iter_chunked(CHUNK):
                    seen += len(chunk)
                    if seen > ref.size:
                        raise BlobError(f"the blob is larger than its announced {ref.size} bytes")
                    yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise BlobError(f"the blob could not be fetched: {_words(exc)}") from exc

    def _allow(self, url: str) -> None:
        place = urlsplit(url)
        host = (place.hostname or "").lower()
        shown = f"[{host}]" if ":" in host else host
        if place.scheme != "https" or not {shown, f"{shown}:{place.port or 443}"} & self._uploads:
            raise BlobError(
                f"blobs are not fetched from {place.scheme}://{place.netloc}: only from "
                f"{', '.join(sorted(self._uploads)) or 'nowhere'}"
            )

    # -- XEP-0363

    async def _slot(self, name: str, size: int, media_type: str) -> tuple[str, str, dict[str, str]]:
        """Ask for a place: URL to put, URL to get, headers to send."""
        service = self._service or await self._discover()
        request = Element(
            f"{{{UPLOAD}}}request",
            {"filename": name, "size": str(size), "content-type": media_type},
        )
        try:
            slot = await self._connection.ask("get", service, request)
        except CallError as exc:
            raise BlobError(f"no place to upload {name} ({size} bytes): {exc}") from exc
        put = slot.find(f"{{{UPLOAD}}}put") if slot is not None else None
        get = slot.find(f"{{{UPLOAD}}}get") if slot is not None else None
        if put is None or get is None or not put.get("url") or not get.get("url"):
            raise BlobError(f"{service} gave no upload slot")
        headers: dict[str, str] = {}
        for header in put.findall(f"{{{UPLOAD}}}header"):
            known = _HEADERS.get(header.get("name", "").lower())
            if known is not None:
                headers[known] = (header.text or "").replace("\r", "").replace("\n", "")
        self._allow(put.get("url", ""))
        return put.get("url", ""), get.get("url", ""), headers

    async def _discover(self) -> str:
        """Find the upload service among the items of the domain (XEP-0363, 3)."""
        try:
            items = await self._connection.ask(
                "get", self._domain, Element(f"{{{DISCO_ITEMS}}}query")
            )
            for item in [] if items is None else items.findall(f"{{{DISCO_ITEMS}}}item"):
                address = item.get("jid", "")
                if address and await self._is_upload(address):
                    self._service = address
                    return address
        except CallError as exc:
            raise BlobError(f"cannot ask {self._domain} for its upload service: {exc}") from exc
        raise BlobError(f"{self._domain} has no HTTP upload service (XEP-0363): blobs need one")

    async def _is_upload(self, address: str) -> bool:
        try:
            info = await self._connection.ask("get", address, Element(f"{{{DISCO_INFO}}}query"))
        except CallError:
            # One item that is down does not hide the others.
            return False
        return info is not None and any(
            feature.get("var") == UPLOAD for feature in info.findall(f"{{{DISCO_INFO}}}feature")
        )


def _measure(source: bytes | Path) -> tuple[int, str]:
    if isinstance(source, bytes):
        return len(source), hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


async def _chunks(source: bytes | Path) -> AsyncIterator[bytes]:
    if isinstance(source, bytes):
        for start in range(0, len(source), CHUNK):
            yield source[start : start + CHUNK]
        return
    with source.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


def _check(ref: BlobRef, size: int, sha256: str) -> None:
    if size != ref.size:
        raise BlobError(f"the blob has {size} bytes instead of the announced {ref.size}")
    if sha256 != ref.sha256:
        raise BlobError("the blob's SHA-256 is not the announced one")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
