"""A manifest whose kinds are open, as while its agent lives, without a bus."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from spinal.agents import document
from spinal.agents.document import BadDocument
from spinal.agents.errors import problem_of
from spinal.agents.job import Channel, Facts, Job
from spinal.agents.process import Guard
from spinal.agents.wrap import Manifest, argument, manifest
from spinal.agents.wrap.kind import Bus, Host
from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json


class Ears:
    """Hears what a caller would be told."""

    def __init__(self) -> None:
        self.progressed: list[tuple[float | None, float | None, str]] = []
        self.lines: list[tuple[str, str]] = []
        self.remaining = 60.0

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        self.progressed.append((done, total, note))

    def log(self, text: str, level: str = "info") -> None:
        self.lines.append((level, text))

    async def data(self, value: Json) -> None: ...
    def spent(self, cpu: float, memory: int) -> None: ...


class Opened:
    """Runs operations as often as is wanted."""

    def __init__(self, found: Manifest, guard: Guard) -> None:
        self.manifest = found
        self._guard = guard

    async def __call__(self, op: str, /, **values: Any) -> Any:
        """Run one; bytes and paths stand for files."""
        return await self.told(op, Ears(), values)

    async def told(self, op: str, ears: Channel, values: dict[str, Any]) -> Any:
        """Run one whose caller has ears."""
        one = self.manifest.ops[op]
        blobs = {
            name: Blob.of(values.pop(name))
            for name, about in one.arguments.items()
            if about.type == "file" and name in values
        }
        refs = {
            name: {
                "blob": {"url": f"https://a/{name}", "sha256": "0" * 64, "size": 0, "media": "a/b"}
            }
            for name in blobs
        }
        arguments: dict[str, Any] = one.operation.signature.convert(
            {**values, **refs}, lambda ref: blobs[ref.url.rpartition("/")[2]]
        )
        facts = Facts("test", op, "test@localhost")
        arguments[argument.JOB] = Job(facts, ears, None, self._guard)
        try:
            return await one.operation.function(**arguments)
        except CallError:
            raise
        except Exception as exc:
            raise CallError.of(problem_of(exc)) from exc


def read(text: str, folder: Path) -> Manifest:
    """Read a manifest that stands in a folder."""
    return manifest.of(document.read(text, str(folder / "m.yaml"), manifest.schema()))


@contextlib.asynccontextmanager
async def opened(text: str, folder: Path, bus: Bus | None = None) -> AsyncGenerator[Opened]:
    """Have a manifest open for a block."""
    found = read(text, folder)
    guard = Guard()
    try:
        async with found.open(Host(guard, bus)):
            yield Opened(found, guard)
    finally:
        await guard.close()


def op(lines: str, path: str = "/op") -> str:
    """Give a manifest of one operation."""
    indented = "\n".join(f"    {line}" for line in lines.strip().splitlines())
    return f"agent: test\nops:\n  {path}:\n{indented}\n"


def check_mistake(good: str, old: str, new: str, key: str, words: str) -> None:
    """Make sure that a changed manifest is refused for one mistake, with line, key and words."""
    read(good, Path("/"))
    assert good.count(old) == 1, f"{old!r} is there {good.count(old)} times"
    text = good.replace(old, new)
    with pytest.raises(BadDocument) as caught:
        read(text, Path("/"))
    told = caught.value.mistakes
    assert [one.key for one in told] == [key], str(caught.value)
    assert words in told[0].text, told[0].text
    last = key.rpartition(".")[2]
    assert last.isdigit() or last in text.splitlines()[told[0].line - 1], str(told[0])
    assert str(told[0]).startswith(f"/m.yaml:{told[0].line}: {key}: ")
