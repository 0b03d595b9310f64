"""The contract of the kinds: what each way of doing an operation is made of, and is handed.

A kind is read from the manifest without any I/O (:class:`Site`), says what it lacks on this machine,
is open for as long as the agent is on the bus, and runs calls (:class:`Call`).  The modules in
``kinds/`` keep it, one each; ``SCHEMA`` there is what may stand under their key, ``BESIDE`` what
may stand beside it in the operation.
"""

from __future__ import annotations

import contextlib
import mimetypes
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json

from ..document import Document, Mistake
from ..job import Job
from ..process import Guard
from .argument import Argument, text
from .template import Template

T = TypeVar("T")


class Site:
    """Where in a manifest something is read: an operation, and the key of its kind.

    Mistakes are collected, so that all of them can be told at once.
    """

    def __init__(
        self,
        document: Document,
        steps: tuple[str | int, ...],
        op: Mapping[str, Json],
        key: str,
        arguments: Mapping[str, Argument],
        mistakes: list[Mistake],
    ) -> None:
        self.document = document
        self.steps = steps
        #: All that the manifest says about the operation.
        self.op = op
        #: Key of the kind.
        self.key = key
        self.arguments = arguments
        self._mistakes = mistakes
        #: The arguments that some placeholder uses.
        self.used: set[str] = set()

    @property
    def value(self) -> Any:
        """What stands under the key of the kind."""
        return self.op[self.key]

    @property
    def folder(self) -> Path:
        """Where the manifest is; relative paths start there."""
        return self.document.folder

    def text(self, *steps: str | int) -> str:
        """Give a plain value below the operation as it was written."""
        return self.document.text(*self.steps, *steps)

    def wrong(self, text: str, *steps: str | int) -> None:
        """Collect a mistake at a place below the operation."""
        self._mistakes.append(self.document.mistake((*self.steps, *steps), text))

    def template(
        self, said: str, *steps: str | int, also: Sequence[str] = (), files: bool = False
    ) -> Template:
        """Read a text with placeholders; a mistake in it is collected, and the text as it is given.

        Args:
            said: the text.
            steps: where it stands, below the operation.
            also: names that may be filled in beside the arguments.
            files: a file argument may stand in it, as the path of the file.
        """
        try:
            found = Template.of(said)
        except ValueError as exc:
            self.wrong(str(exc), *steps)
            return Template((said,))
        for name in found.names:
            if name in also:
                continue
            if name not in self.arguments:
                known = ", ".join(self.arguments) or "none"
                self.wrong(f"{{{name}}} is no argument of this operation (it has {known})", *steps)
                return Template((said,))
            kind = self.arguments[name].type
            if kind in ("array", "object") or (kind == "file" and not files):
                self.wrong(f"{{{name}}} is of type {kind}, which cannot be filled in here", *steps)
                return Template((said,))
            self.used.add(name)
        return found


@dataclass
class Call:
    """One run of an operation, as its kind sees it."""

    job: Job
    #: Every argument of the operation; nothing where it was left out and has no default.
    args: Mapping[str, Any]
    arguments: Mapping[str, Argument]
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _folder: Path | None = None
    _paths: dict[str, Path] = field(default_factory=dict[str, Path])

    @contextlib.contextmanager
    def running(self) -> Generator[Call]:
        """Have it for a block; its folder is gone afterwards."""
        with self._stack:
            yield self

    @property
    def folder(self) -> Path:
        """A folder of its own, made when it is first asked for."""
        if self._folder is None:
            made = tempfile.TemporaryDirectory(prefix="spinal-call-", ignore_cleanup_errors=True)
            self._folder = Path(self._stack.enter_context(made))
        return self._folder

    async def path(self, name: str) -> Path:
        """Give the file of a file argument, fetched once; its name is ours, not the caller's.

        Raises:
            BlobError: it could not be fetched.
        """
        if name not in self._paths:
            blob: Blob = self.args[name]
            # Programs tell by a file's name what it is.
            suffix = mimetypes.guess_extension(blob.media_type) or ""
            self._paths[name] = await blob.save(self.folder / f"{name}{suffix}")
        return self._paths[name]

    async def texts(self, names: Sequence[str]) -> dict[str, str]:
        """Give arguments as the texts that fill placeholders; a file's is its path.

        Those that are nothing are left out.
        """
        found: dict[str, str] = {}
        for name in names:
            value = self.args.get(name)
            if value is None:
                continue
            is_file = self.arguments[name].type == "file"
            found[name] = str(await self.path(name)) if is_file else text(value)
        return found

    def bad(self, name: str, why: str) -> CallError:
        """Make the refusal of an argument by name."""
        return self.arguments[name].bad(why)


class Bus(Protocol):
    """What a kind may do on the bus beside answering calls."""

    async def upload(self, source: Path, media_type: str) -> Blob:
        """Upload a file, and give the blob for an argument.

        Raises:
            BlobError: it cannot be read, or the transfer failed.
        """
        ...

    async def submit(
        self, op: str, args: Mapping[str, Any], key: str, labels: Sequence[str] = ()
    ) -> str:
        """Submit a job, once per key, and give its id once a dispatcher has accepted it.

        Raises:
            CallError, BusError: it was refused, or nobody answered; the same key may be tried again.
        """
        ...


@dataclass(frozen=True)
class Host:
    """What a kind has while its agent lives."""

    guard: Guard
    #: None in a test without a bus.
    bus: Bus | None = None
    #: What operations that say the same have together, by what they say.
    shared: dict[object, Any] = field(default_factory=dict[object, Any])

    @contextlib.asynccontextmanager
    async def share(
        self, key: object, make: Callable[[], AbstractAsyncContextManager[T]]
    ) -> AsyncGenerator[T]:
        """Have for a block what was made for the first who asked with that key.

        Kinds are closed in the opposite order, so the first one has it longest.
        """
        if key in self.shared:
            yield self.shared[key]
            return
        async with make() as made:
            self.shared[key] = made
            try:
                yield made
            finally:
                del self.shared[key]


class Kind(ABC):
    """One way of doing an operation."""

    #: JSON Schema of what stands under its key.
    SCHEMA: ClassVar[Mapping[str, Json]]
    #: Schemas of the keys that may stand beside it.
    BESIDE: ClassVar[Mapping[str, Mapping[str, Json]]] = {}

    #: Type of the result, as :mod:`msgspec` takes it.
    result: Any

    @classmethod
    @abstractmethod
    def read(cls, site: Site) -> Kind:
        """Read it; no I/O.  Mistakes go to :meth:`Site.wrong`, and whatever is returned then unused."""

    @abstractmethod
    async def run(self, call: Call) -> Any:
        """Do it.

        Raises:
            Refused, Retry, CallError: as the manifest maps what happened.
        """

    def lacks(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Give what is missing on this machine: where it is named below the operation, and words."""
        yield from ()

    @contextlib.asynccontextmanager
    async def open(self, host: Host) -> AsyncGenerator[None]:
        """Keep what is needed between calls, such as a pool, for a block."""
        yield
