"""Moving blobs: upload to the server's HTTP upload service (XEP-0363), fetch with the hash checked.

Bytes never travel through the dispatcher.  A blob is fetched only from a host that our credentials
name, over TLS that our certificate authority vouches for, into bounded memory or a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from http.client import HTTPResponse, HTTPSConnection, IncompleteRead
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlsplit
from xml.etree.ElementTree import Element

from spinal.protocols import BlobRef
from spinal.protocols.discovery import INFO, ITEMS

from .errors import BlobError, CallError
from .https import FAILURES, Https

if TYPE_CHECKING:
    from .connection import Connection

T = TypeVar("T")

UPLOAD = "urn:xmpp:http:upload:0"

#: Bytes that are read or written at a time.
CHUNK = 256 * 1024
#: Most bytes that :meth:`Blobs.fetch` holds in memory; more goes into a file.
MAX_MEMORY = 256 * 1024 * 1024
#: Most bytes that :meth:`Blobs.fetch_to` writes into a file; what servers of ours take, as shipped.
MAX_FILE = 1024 * 1024 * 1024
#: Uploads of one client at once; further ones wait.  Servers promise each account only so many places,
#: and a map of files would ask for hundreds before it has used any.
UPLOADS = 32
#: A fetch that takes longer than :data:`PATIENCE` seconds and this many bytes a second is given up:
#: a host that says a byte now and then would keep one of our threads for ever.
SLOWEST = 64 * 1024
PATIENCE = 60.0
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
        self._service = service
        self._https = Https(ca)
        self._room = asyncio.Semaphore(UPLOADS)

    async def close(self) -> None:
        """End the HTTP connections; may be called again."""
        self._https.close()

    async def upload(
        self, source: bytes | Path, media_type: str = "application/octet-stream"
    ) -> BlobRef:
        """Upload bytes or a file, and give the reference.

        Raises:
            BlobError: the file cannot be read, is larger than the server takes, or the transfer
                failed.
        """
        try:
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
        except OSError as exc:
            raise _unreadable(source, exc) from exc
        name = source.name if isinstance(source, Path) else "blob"
        async with self._room:
            put, get, headers = await self._slot(name, size, media_type)
            headers = {**headers, "Content-Length": str(size), "Content-Type": media_type}

            def send(connection: HTTPSConnection) -> str:
                return _put(connection, _target(put), headers, source, size)

            try:
                sha256 = await self._https.transfer(put, send)
            except FAILURES as exc:
                raise BlobError(f"the upload of {name} failed: {_words(exc)}") from exc
        return BlobRef(get, sha256, size, media_type)

    async def fetch(self, ref: BlobRef) -> bytes:
        """Fetch the bytes of a blob.

        Raises:
            BlobError: not a host of ours, gone, announced as larger than :data:`MAX_MEMORY`, not
                what was announced, or slower than :data:`SLOWEST`.
        """
        if ref.size > MAX_MEMORY:
            raise BlobError(f"a blob of {ref.size} bytes goes into a file: use save(path)")
        return await self._get(ref, _whole)

    async def fetch_to(self, ref: BlobRef, path: Path) -> None:
        """Fetch a blob into a file, which appears only when it is complete and right.

        Raises:
            BlobError: as for :meth:`fetch`, with :data:`MAX_FILE`, or the file cannot be written.
        """
        if ref.size > MAX_FILE:
            raise BlobError(f"a blob of {ref.size} bytes is not fetched: at most {MAX_FILE} are")
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")

        def save(response: HTTPResponse, ref: BlobRef) -> None:
            try:
                _save(response, ref, part)
                part.replace(path)
            except OSError as exc:
                raise BlobError(f"cannot write {path}: {exc.strerror or exc}") from exc

        try:
            await self._get(ref, save)
        finally:
            part.unlink(missing_ok=True)

    async def _get(self, ref: BlobRef, take: Callable[[HTTPResponse, BlobRef], T]) -> T:
        self._allow(ref.url)

        def receive(connection: HTTPSConnection) -> T:
            connection.request("GET", _target(ref.url))
            response = connection.getresponse()
            if response.status != 200:
                raise BlobError(
                    f"the blob is not there: {response.status} {response.reason} "
                    "(blobs expire; send it again)"
                )
            return take(response, ref)

        limit = PATIENCE + ref.size / SLOWEST
        timer = asyncio.timeout(limit)
        try:
            async with timer:
                return await self._https.transfer(ref.url, receive)
        except FAILURES as exc:
            if timer.expired():
                raise BlobError(f"the blob was not here within {limit:.0f} s") from exc
            raise _unfetched(exc) from exc

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
            items = await self._connection.ask("get", self._domain, Element(f"{{{ITEMS}}}query"))
            for item in [] if items is None else items.findall(f"{{{ITEMS}}}item"):
                address = item.get("jid", "")
                if address and await self._is_upload(address):
                    self._service = address
                    return address
        except CallError as exc:
            raise BlobError(f"cannot ask {self._domain} for its upload service: {exc}") from exc
        raise BlobError(f"{self._domain} has no HTTP upload service (XEP-0363): blobs need one")

    async def _is_upload(self, address: str) -> bool:
        try:
            info = await self._connection.ask("get", address, Element(f"{{{INFO}}}query"))
        except CallError:
            # One item that is down does not hide the others.
            return False
        return info is not None and any(
            feature.get("var") == UPLOAD for feature in info.findall(f"{{{INFO}}}feature")
        )


# -- in the thread of a transfer


def _put(
    connection: HTTPSConnection,
    target: str,
    headers: Mapping[str, str],
    source: bytes | Path,
    size: int,
) -> str:
    """Send bytes or a file, and give the hash of what was sent."""
    digest = hashlib.sha256()
    connection.putrequest("PUT", target)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    sent = 0
    try:
        for piece in _pieces(source):
            sent += len(piece)
            if sent > size:
                break
            digest.update(piece)
            connection.send(piece)
    except ConnectionError:
        pass  # Whoever refuses an upload may not read it to its end; it says so before it closes.
    else:
        if sent != size:
            raise BlobError(f"{source!s} changed while it was uploaded")
    response = connection.getresponse()
    if response.status not in (200, 201, 204):
        raise BlobError(f"the upload was refused: {response.status} {response.reason}")
    response.read()
    return digest.hexdigest()


def _pieces(source: bytes | Path) -> Iterator[memoryview]:
    if isinstance(source, bytes):
        whole = memoryview(source)
        for start in range(0, len(source), CHUNK):
            yield whole[start : start + CHUNK]
        return
    piece = memoryview(bytearray(CHUNK))
    try:
        with source.open("rb", buffering=0) as file:
            while count := file.readinto(piece):
                yield piece[:count]
    except OSError as exc:
        raise _unreadable(source, exc) from exc


def _whole(response: HTTPResponse, ref: BlobRef) -> bytes:
    """Take all into memory."""
    found = response.read(ref.size + 1)
    _check_end(response)
    _check(ref, len(found), hashlib.sha256(found).hexdigest())
    return found


def _save(response: HTTPResponse, ref: BlobRef, path: Path) -> None:
    """Take all into a file."""
    digest = hashlib.sha256()
    size = 0
    piece = memoryview(bytearray(CHUNK))
    with path.open("wb") as file:
        while size <= ref.size:
            try:
                count = response.readinto(piece)
            except FAILURES as exc:
                raise _unfetched(exc) from exc
            if not count:
                break
            size += count
            digest.update(piece[:count])
            file.write(piece[:count])
    _check_end(response)
    _check(ref, size, digest.hexdigest())


def _check_end(response: HTTPResponse) -> None:
    if response.isclosed() and response.length:
        raise IncompleteRead(b"", response.length)


def _check(ref: BlobRef, size: int, sha256: str) -> None:
    if size > ref.size:
        raise BlobError(f"the blob is larger than its announced {ref.size} bytes")
    if size != ref.size:
        raise BlobError(f"the blob has {size} bytes instead of the announced {ref.size}")
    if sha256 != ref.sha256:
        raise BlobError("the blob's SHA-256 is not the announced one")


def _target(url: str) -> str:
    """Give what stands in the request for a URL."""
    place = urlsplit(url)
    return quote(f"{place.path or '/'}{place.query and '?'}{place.query}", safe="/?%:@!$&'()*+,;=~")


def _unreadable(source: bytes | Path, error: OSError) -> BlobError:
    return BlobError(f"cannot read {source!s}: {error.strerror or error}")


def _unfetched(error: Exception) -> BlobError:
    return BlobError(f"the blob could not be fetched: {_words(error)}")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
