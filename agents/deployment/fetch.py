"""Fetching a release by its URL: hashed while it comes, bounded, gone on with after a break.

What is fetched is kept by its hash, so a release that comes back is not fetched again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
import structlog
from yarl import URL

from ..errors import Refused, one_line
from .errors import DeployFailed
from .urls import Allowed

log = structlog.get_logger()

#: Bytes that are read or written at a time.
CHUNK: Final = 256 * 1024
#: Times that a transfer is begun or gone on with, and the seconds before the second one, doubled
#: for each further one.
TRIES: Final = 4
PAUSE: Final = 0.5
#: Redirects that are followed.
REDIRECTS: Final = 5
#: Seconds without a byte after which a transfer is broken off.
STALLED: Final = 30.0
#: A server that gives less than this many bytes a second after the first minute is given up.
SLOWEST: Final = 16 * 1024
PATIENCE: Final = 60.0

#: Told of bytes that have come, and of all that are to come, if known.
Progress = Callable[[int, int | None], None]


class _Broken(Exception):
    """A transfer that may be gone on with."""


class Fetcher:
    """Fetches files into a folder, where each is named by its hash.

    Args:
        folder: where to keep them.
        allowed: where they may come from.
        most: bytes of one of them.
        room: bytes of all of them; those that were not used for longest go.
        ca: certificate authority (PEM) to trust; the system's if none.
        stalled: seconds without a byte after which a transfer is broken off.
        patience: seconds before slowness counts.
    """

    def __init__(
        self,
        folder: Path,
        allowed: Allowed,
        *,
        most: int,
        room: int,
        ca: Path | None = None,
        stalled: float = STALLED,
        patience: float = PATIENCE,
    ) -> None:
        self._folder = folder
        self._allowed = allowed
        self._most = most
        self._room = room
        self._ca = ca
        self._stalled = stalled
        self._patience = patience

    def path(self, sha256: str) -> Path:
        """Give where the file of a hash is, if it is there."""
        return self._folder / sha256

    async def fetch(self, url: str, sha256: str, progress: Progress) -> Path:
        """Give the file with a hash, from the URL unless it is here already.

        Cancelled, it leaves nothing behind.

        Raises:
            Refused: the URL is not allowed, the file is larger than it may be, or another one than
                the hash says.
            DeployFailed: it could not be fetched.
        """
        found = self._allowed.url(url)
        path = self.path(sha256)
        if await asyncio.to_thread(_is_whole, path, sha256):
            return path
        await asyncio.to_thread(self._folder.mkdir, 0o700, parents=True, exist_ok=True)
        part = self._folder / f".{sha256}-{secrets.token_hex(4)}"
        try:
            transfer = _Transfer(part, self._most, progress)
            try:
                if found.scheme == "file":
                    await transfer.copy(self._allowed.file(found))
                else:
                    await self._get(found, transfer)
                await asyncio.to_thread(transfer.close, sha256, url)
            finally:
                transfer.abandon()
            await asyncio.to_thread(part.replace, path)
        except OSError as exc:
            raise DeployFailed(f"cannot keep {url}: {exc.strerror or exc}") from exc
        finally:
            part.unlink(missing_ok=True)
        await asyncio.to_thread(self._tidy, path)
        return path

    def _tidy(self, latest: Path) -> None:
        """Remove what was not used for longest, above the room that there is."""
        kept: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            if not path.name.startswith("."):
                with suppress(FileNotFoundError):
                    found = path.stat()
                    kept.append((found.st_mtime, found.st_size, path))
        total = 0
        for _, size, path in sorted(kept, reverse=True):
            total += size
            if total > self._room and path != latest:
                path.unlink(missing_ok=True)

    # -- HTTP

    async def _get(self, url: URL, transfer: _Transfer) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=self._stalled, sock_read=self._stalled)
        trust: ssl.SSLContext | bool = True
        if self._ca is not None:
            trust = await asyncio.to_thread(ssl.create_default_context, cafile=str(self._ca))
        async with aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "spinal"},
            # Never credentials out of ~/.netrc, nor a proxy that a variable names.
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            for count in range(TRIES):
                try:
                    return await self._try(session, url, trust, transfer)
                except (_Broken, aiohttp.ClientError, TimeoutError) as exc:
                    words = one_line(str(exc) or "no answer in time", 200)
                    log.info("fetch_broken", url=str(url), got=transfer.size, error=words)
                    # TLS that does not fit will not fit the next time.
                    last = count == TRIES - 1 or isinstance(exc, aiohttp.ClientSSLError)
                    if last:
                        got = f" after {transfer.size} bytes" if transfer.size else ""
                        raise DeployFailed(f"cannot fetch {url}{got}: {words}") from exc
                await asyncio.sleep(PAUSE * 2**count)

    async def _try(
        self,
        session: aiohttp.ClientSession,
        url: URL,
        trust: ssl.SSLContext | bool,
        transfer: _Transfer,
    ) -> None:
        """Take what is missing of a file."""
        for _ in range(REDIRECTS + 1):
            async with session.get(
                url, headers=transfer.wanted(), ssl=trust, allow_redirects=False
            ) as answer:
                if answer.status in (301, 302, 303, 307, 308) and "Location" in answer.headers:
                    # Each one is looked at: a host that is allowed may point anywhere.
                    url = self._allowed.url(str(url.join(URL(answer.headers["Location"]))))
                    if url.scheme == "file":
                        raise Refused(f"{answer.url} leads to a file of this machine")
                    continue
                if answer.status == 416:
                    transfer.begin_again()
                    raise _Broken("it cannot be gone on with")
                if answer.status >= 500 or answer.status == 429:
                    raise _Broken(f"{answer.status} {answer.reason}")
                if answer.status not in (200, 206):
                    raise DeployFailed(f"cannot fetch {url}: {answer.status} {answer.reason}")
                return await self._take(answer, transfer)
        raise DeployFailed(f"cannot fetch {url}: more than {REDIRECTS} redirects")

    async def _take(self, answer: aiohttp.ClientResponse, transfer: _Transfer) -> None:
        transfer.goes_on(answer)
        loop = asyncio.get_running_loop()
        began, before = loop.time(), transfer.size
        async for data in answer.content.iter_chunked(CHUNK):
            await transfer.take(data)
            late = loop.time() - began - self._patience
            if late > 0 and transfer.size - before < late * SLOWEST:
                raise DeployFailed(f"{answer.url} gives less than {SLOWEST} bytes a second")
        if transfer.total is not None and transfer.size < transfer.total:
            raise _Broken(f"it ended after {transfer.size} of {transfer.total} bytes")


class _Transfer:
    """A file that is on its way."""

    def __init__(self, path: Path, most: int, progress: Progress) -> None:
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._most = most
        self._progress = progress
        self._version = ""
        self.size = 0
        #: As announced.
        self.total: int | None = None

    def wanted(self) -> dict[str, str]:
        """Give the headers that ask for what is missing, of the same version (RFC 9110, 13.1.5)."""
        if not self.size or not self._version:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._version}

    def begin_again(self) -> None:
        """Forget what has come."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.size = 0

    def goes_on(self, answer: aiohttp.ClientResponse) -> None:
        """Take an answer's headers; unless it goes on where we are, all begins anew."""
        part = re.fullmatch(
            r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)",
            answer.headers.get("Content-Range", ""),
        )
        if answer.status == 206 and part is not None and int(part[1]) == self.size:
            self.total = None if part[2] == "*" else int(part[2])
        elif answer.status == 206:
            self.begin_again()
            self._version = ""
            raise _Broken("it gave another part than the one that was asked for")
        else:
            self.begin_again()
            self.total = answer.content_length
            version = answer.headers.get("ETag", "")
            # Only a strong one says that the bytes are the same.
            self._version = version if version.startswith('"') else ""
        self._bound(self.total or 0)

    def _bound(self, size: int) -> None:
        if size > self._most:
            raise Refused(f"it is larger than this agent fetches: {self._most} bytes")

    async def take(self, data: bytes) -> None:
        """Write what has come."""
        self._bound(self.size + len(data))
        await asyncio.to_thread(self._write, data)
        self.size += len(data)
        self._progress(self.size, self.total)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)

    async def copy(self, path: Path) -> None:
        """Take a file of this machine."""
        with path.open("rb") as source:
            self.total = os.fstat(source.fileno()).st_size
            while data := await asyncio.to_thread(source.read, CHUNK):
                await self.take(data)

    def close(self, sha256: str, url: str) -> None:
        """Have it on disk, if it is what was asked for."""
        found = self._hash.hexdigest()
        if found != sha256:
            raise Refused(f"{url} has the SHA-256 {found}, and not {sha256}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file, whatever came of it."""
        self._file.close()


def _is_whole(path: Path, sha256: str) -> bool:
    """Tell whether a file is there and has its hash; one that has not is removed."""
    try:
        with path.open("rb") as file:
            found: Any = hashlib.file_digest(file, "sha256")
    except FileNotFoundError:
        return False
    if found.hexdigest() != sha256:
        log.warning("cache_broken", file=str(path))
        path.unlink()
        return False
    os.utime(path)
    return True
