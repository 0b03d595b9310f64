"""One operation of a manifest run here, without a bus: what ``spinal wrap test`` does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json

from .. import results
from ..errors import problem_of
from ..job import Facts, Job
from ..process import Guard
from ..schema import Signature
from . import argument
from .kind import Host
from .manifest import Manifest, function
from .rights import Rights


class _Channel:
    """Shows what a caller would be told."""

    def __init__(
        self,
        seconds: float,
        progress: Callable[[float | None, float | None, str], None],
        line: Callable[[str], None],
    ) -> None:
        self._until = time.monotonic() + seconds
        self._progress = progress
        self._line = line

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        self._progress(done, total, note)

    def log(self, text: str, level: str = "info") -> None:
        self._line(text)

    async def data(self, value: Json) -> None:
        self._line(str(value))

    def spent(self, cpu: float, memory: int) -> None:
        pass

    @property
    def remaining(self) -> float:
        return max(0.0, self._until - time.monotonic())


class Trial:
    """A manifest's operation, about to be run here.

    Args:
        manifest: where it is.
        op: its path.
        progress: told how far it is.
        line: told the lines that it logs.
    """

    def __init__(
        self,
        manifest: Manifest,
        op: str,
        progress: Callable[[float | None, float | None, str], None] = lambda done, total, note: (
            None
        ),
        line: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._manifest = manifest
        self._op = manifest.ops[op]
        self._progress = progress
        self._line = line

    async def run(self, values: Mapping[str, Any]) -> Any:
        """Run it as the agent would, and give its result; the path of a file stands for a blob.

        Cancelling it ends what it started.

        Raises:
            CallError: what a caller would get.
        """
        operation = self._op.operation
        blobs: dict[str, Blob] = {}
        given = dict(values)
        for name, one in self._op.arguments.items():
            if one.type == "file" and isinstance(given.get(name), Path):
                blobs[name] = Blob.of(given.pop(name))
        arguments = _convert(operation.signature, given, blobs)
        channel = _Channel(operation.timeout, self._progress, self._line)
        guard = Guard()
        try:
            async with self._manifest.open(Host(guard)):
                facts = Facts("test", self._op.path, "test@localhost")
                arguments[argument.JOB] = Job(facts, channel, None, guard)
                try:
                    async with asyncio.timeout(operation.timeout):
                        # Whoever can read the manifest may try it.
                        run = function(self._op.kind, self._op.arguments, Rights())
                        result = await run(**arguments)
                except TimeoutError as exc:
                    raise CallError.of(operation.late) from exc
                except CallError:
                    raise
                except Exception as exc:
                    raise CallError.of(problem_of(exc)) from exc
                value, found = results.plain(result)
                if not found:
                    results.check(value)
                return value
        finally:
            await guard.close()


def _convert(
    signature: Signature, given: Mapping[str, Any], blobs: Mapping[str, Blob]
) -> dict[str, Any]:
    """Check arguments as those of a call are, with the files in their places."""
    sha = "0" * 64
    refs = {
        name: {"blob": {"url": f"https://here/{name}", "sha256": sha, "size": 0, "media": "a/b"}}
        for name in blobs
    }
    return signature.convert({**given, **refs}, lambda ref: blobs[ref.url.rpartition("/")[2]])
