from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from spinal.bus.errors import BlobError
from spinal.protocols import BlobRef, Json

FILES = Path(__file__).parent / "files"


class Recorder:
    """A channel that keeps what it is told, and can be waited for."""

    def __init__(self, remaining: float = 30.0) -> None:
        self.said: list[object] = []
        self.remaining = remaining
        self.costs: list[tuple[float, int]] = []
        self._more = asyncio.Event()

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        self._say((done, total, note))

    def log(self, text: str, level: str = "info") -> None:
        self._say(text)

    async def data(self, value: Json) -> None:
        self._say({"data": value})

    def spent(self, cpu: float, memory: int) -> None:
        self.costs.append((cpu, memory))

    def _say(self, item: object) -> None:
        self.said.append(item)
        self._more.set()

    async def heard(self, wanted: object, within: float = 20.0) -> None:
        """Wait until something was said."""
        async with asyncio.timeout(within):
            while wanted not in self.said:
                self._more.clear()
                await self._more.wait()


class Shelf:
    """A store of blobs in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def put(self, data: bytes, media_type: str = "text/plain") -> BlobRef:
        sha256 = hashlib.sha256(data).hexdigest()
        url = f"https://shelf.test/{sha256}"
        self.kept[url] = data
        return BlobRef(url, sha256, len(data), media_type)

    async def upload(self, source: bytes | Path, media_type: str) -> BlobRef:
        data = source if isinstance(source, bytes) else source.read_bytes()
        return self.put(data, media_type)

    async def fetch(self, ref: BlobRef) -> bytes:
        if ref.url not in self.kept:
            raise BlobError("the blob is not there")
        return self.kept[ref.url]

    async def fetch_to(self, ref: BlobRef, path: Path) -> None:
        path.write_bytes(await self.fetch(ref))


@pytest.fixture
def recorder() -> Callable[[], Recorder]:
    return Recorder


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def files() -> Path:
    return FILES
