"""What an operation gets and gives when bytes are too big for a stanza.

One class for both directions and both kinds of functions.  Its bytes are either *here* (made by
:meth:`Blob.of`, or fetched for a plain function) or at an upload host (what an ``async`` operation
is handed).  :meth:`Blob.read` and :meth:`Blob.save` are coroutines and work for either; the
properties :attr:`Blob.data` and :attr:`Blob.path` are for plain functions, and work for what is
here.  A coroutine that reads without ``await``, or a function that blocks the event loop on the
network, is not possible by design.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol, Self

from spinal.protocols import BlobRef

#: What bytes are when nobody says what they are.
UNKNOWN = "application/octet-stream"

#: Bytes that are read at a time.
CHUNK = 256 * 1024


class Store(Protocol):
    """Where blobs are fetched from and uploaded to; ``bus/blobs.py`` is one."""

    async def upload(self, source: bytes | Path, media_type: str) -> BlobRef:
        """Upload bytes or a file."""
        ...

    async def fetch(self, ref: BlobRef) -> bytes:
        """Fetch the bytes and check their hash."""
        ...

    async def fetch_to(self, ref: BlobRef, path: Path) -> None:
        """Fetch into a file and check the hash."""
        ...


class Blob:
    """Bytes with a media type.  Made by :meth:`of`; an operation's arguments are made for it."""

    def __init__(
        self,
        source: bytes | Path | None,
        media_type: str,
        *,
        ref: BlobRef | None = None,
        store: Store | None = None,
    ) -> None:
        if source is None and (ref is None or store is None):
            raise TypeError("make a blob with Blob.of(bytes or path)")
        self._source = source
        self._store = store
        #: Where it was uploaded, if it was.
        self.ref = ref
        self.media_type = media_type

    def __repr__(self) -> str:
        where = self.ref.url if self.ref is not None else "here"
        return f"<Blob {self.media_type} {self.size} bytes, {where}>"

    @classmethod
    def of(cls, data: bytes | Path | str, media_type: str | None = None) -> Self:
        """Make a blob of bytes, or of the file at a path; it is uploaded when it is returned.

        Without ``media_type`` a file's name decides.

        Raises:
            ValueError: there is no such file.
        """
        if isinstance(data, (bytes, bytearray, memoryview)):
            return cls(bytes(data), media_type or UNKNOWN)
        path = Path(data)
        if not path.is_file():
            raise ValueError(f"no file at {path}")
        return cls(path, media_type or mimetypes.guess_type(path.name)[0] or UNKNOWN)

    # -- what is known without its bytes

    @property
    def size(self) -> int:
        """Number of bytes."""
        if self.ref is not None:
            return self.ref.size
        assert self._source is not None
        return len(self._source) if isinstance(self._source, bytes) else self._source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of its bytes in hex."""
        if self.ref is not None:
            return self.ref.sha256
        if isinstance(self._source, bytes):
            return hashlib.sha256(self._source).hexdigest()
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    # -- in coroutines

    async def read(self) -> bytes:
        """Give its bytes, fetched if they are not here.

        Raises:
            BlobError: they cannot be fetched, or are not what was announced.
        """
        if self._source is None:
            assert self._store is not None and self.ref is not None
            return await self._store.fetch(self.ref)
        if isinstance(self._source, bytes):
            return self._source
        return await asyncio.to_thread(self._source.read_bytes)

    async def save(self, path: Path | str) -> Path:
        """Write its bytes into a file and give the path.

        Raises:
            BlobError: they cannot be fetched, or are not what was announced; there is no file then.
        """
        path = Path(path)
        if self._source is None:
            assert self._store is not None and self.ref is not None
            await self._store.fetch_to(self.ref, path)
        elif isinstance(self._source, bytes):
            await asyncio.to_thread(path.write_bytes, self._source)
        else:
            await asyncio.to_thread(shutil.copyfile, self._source, path)
        return path

    # -- in plain functions

    @property
    def data(self) -> bytes:
        """Its bytes, if they are here.

        Raises:
            TypeError: they are at an upload host: ``await blob.read()`` fetches them.
        """
        source = self._here("read")
        return source if isinstance(source, bytes) else source.read_bytes()

    @property
    def path(self) -> Path:
        """The file that holds its bytes, if there is one; it is there for the length of the call.

        Raises:
            TypeError: they are at an upload host, or were given as bytes.
        """
        source = self._here("save")
        if isinstance(source, bytes):
            raise TypeError("this blob has no file: use its .data")
        return source

    def _here(self, coroutine: str) -> bytes | Path:
        if self._source is None:
            raise TypeError(f"the blob has not been fetched: await blob.{coroutine}(...) does it")
        return self._source

    # -- for the kit

    @property
    def source(self) -> bytes | Path | None:
        """Bytes or file to upload; none for what is at an upload host."""
        return self._source


class LocalBlob(Blob):
    """A blob as a plain function gets it: fetched beforehand, into a file."""

    def read(self) -> NoReturn:
        """Say what to use in a plain function instead of a coroutine that would never run."""
        raise TypeError("in a plain function a blob has .data (bytes) and .path; read() is async")

    def save(self, path: Path | str) -> NoReturn:
        """Say what to use in a plain function instead of a coroutine that would never run."""
        raise TypeError("in a plain function a blob has .data (bytes) and .path; save() is async")


#: Where in a value a blob stands: keys and indexes from the outside in.
Steps = tuple[str | int, ...]


def blobs_in(value: Any) -> list[tuple[Steps, Blob]]:
    """Find the blobs in a value of lists and dicts."""
    found: list[tuple[Steps, Blob]] = []
    stack: list[tuple[Steps, Any]] = [((), value)]
    while stack:
        steps, item = stack.pop()
        if isinstance(item, Blob):
            found.append((steps, item))
        elif isinstance(item, dict):
            members: dict[str, Any] = item  # pyright: ignore[reportUnknownVariableType] - of Any
            stack.extend(((*steps, key), inner) for key, inner in members.items())
        elif isinstance(item, (list, tuple)):
            items: list[Any] = list(item)  # pyright: ignore[reportUnknownArgumentType] - of Any
            stack.extend(((*steps, index), inner) for index, inner in enumerate(items))
    return found


def put(value: Any, steps: Steps, item: Any) -> Any:
    """Put something in the place of what stands there; gives the changed value."""
    if not steps:
        return item
    inner = value
    for step in steps[:-1]:
        inner = inner[step]
    inner[steps[-1]] = item
    return value
