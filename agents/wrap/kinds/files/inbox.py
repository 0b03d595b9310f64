"""A folder as an inbox: every new file in it becomes one job.

Theory of operation.  A file is taken once it has not changed for a while.  It is uploaded, submitted
under a key made of its place and its mark, and then moved, deleted, or noted.  The dispatcher makes
one job of one key, so a crash anywhere in between repeats a step and doubles nothing.  What fails
stays where it is, and is tried again after a pause that doubles.

One agent at a time watches a folder: it holds a lock on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mimetypes
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from spinal.bus.errors import BusError, CallError, NotConnected
from spinal.bus.tasks import Tasks
from spinal.protocols import Json
from spinal.protocols.retry import doubled

from ....errors import AgentError, Retry, describe, one_line
from ...kind import Bus, Host
from ...template import Template
from . import folder as folders
from .folder import Mark

log = structlog.get_logger()

#: Longest pause in seconds before a file that failed is tried again.
MOST_PAUSE: Final = 300.0

#: Files that are noted before those that are gone are forgotten.
MAX_NOTES: Final = 10_000

#: Most files of each sort that are named to whoever asks.
MAX_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a file."""

    folder: Path
    match: str
    #: The operation that gets a job, and its argument that gets the file.
    op: str
    argument: str
    #: Its other arguments: templates of the file's name, and plain values.
    args: Mapping[str, Template | Json]
    labels: Sequence[str]
    #: Seconds without a change, and between two looks.
    settled: float
    every: float
    #: ``delete``, ``keep``, or a folder to move it to.
    then: str | Path


@dataclass(slots=True)
class _File:
    """A file that waits."""

    mark: Mark
    since: float
    failures: int = 0
    again_at: float = 0.0
    why: str = ""
    #: Its job, if only what comes after it is left to do.
    job: str = ""


@dataclass
class Seen:
    """What one look found and did."""

    submitted: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    waiting: list[str] = field(default_factory=list[str])
    failed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def told(self) -> dict[str, Json]:
        """Give it for a caller; of many the first ones are named."""
        return {
            "submitted": [
                {"file": _shown(name), "job": job} for name, job in self.submitted[:MAX_NAMED]
            ],
            "waiting": [_shown(name) for name in self.waiting[:MAX_NAMED]],
            "failed": [
                {"file": _shown(name), "why": one_line(why, 200)}
                for name, why in self.failed[:MAX_NAMED]
            ],
            "more": max(len(self.submitted), len(self.waiting), len(self.failed)) > MAX_NAMED,
        }


def _shown(name: str) -> str:
    """Give a file's name as a text; one that is none has question marks in it."""
    return name.encode(errors="replace").decode()


class Inbox:
    """A watched folder.

    Args:
        rule: what becomes of its files.
        name: the operation that it belongs to, as a part of the keys.
        bus: where jobs are submitted; without one it is only looked at.
        lock: who has it may submit.
    """

    def __init__(self, rule: Rule, name: str, bus: Bus | None, lock: Lock | None) -> None:
        self._rule = rule
        self._lock = lock
        self._name = name
        self._journal = folders.journal(name)
        self._bus = bus
        self._files: dict[str, _File] = {}
        #: Keys of what an earlier life submitted and left where it is; until all have been seen.
        self._noted: set[str] | None = None
        #: The files that were submitted and stay, and how many were noted since the journal was
        #: written anew.
        self._known: set[tuple[str, Mark]] = set()
        self._notes = 0
        self._turn = asyncio.Lock()
        self._trouble = ""

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Look at it at intervals for a block."""
        tasks = Tasks(f"inbox {self._rule.folder}")
        tasks.spawn(self._watch(), "watch")
        try:
            yield
        finally:
            await tasks.close()

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
                self._say("")
            except (AgentError, OSError, Retry) as exc:
                self._say(describe(exc))
            await asyncio.sleep(self._rule.every)

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                log.warning("inbox_not_watched", folder=str(self._rule.folder), why=trouble)

    async def look(self) -> Seen:
        """Look at it now, and submit what is ready.

        Raises:
            Retry: another agent watches it.
            OSError: the folder cannot be read.
            AgentError: what was submitted before cannot be told.
        """
        async with self._turn:
            if self._lock is not None and not await asyncio.to_thread(self._lock.held):
                # Its jobs are of another account, so that keys would not be the same.
                raise Retry(f"another agent watches {self._rule.folder}")
            found = await asyncio.to_thread(self._new)
            now = asyncio.get_running_loop().time()
            self._files = {
                name: self._files[name]
                if name in self._files and self._files[name].mark == mark
                else _File(mark, now)
                for name, mark in found.items()
            }
            seen = Seen()
            for name, file in sorted(self._files.items(), key=lambda one: one[1].mark.modified):
                if self._bus is None or now - file.since < self._rule.settled:
                    seen.waiting.append(name)
                elif file.again_at > now:
                    seen.failed.append((name, file.why))
                else:
                    try:
                        await self._see_to(name, file, self._bus, seen)
                    except NotConnected:
                        # We are not on the bus yet, or not just now.
                        seen.waiting.append(name)
                        break
            return seen

    def _new(self) -> dict[str, Mark]:
        """Give the files that were not submitted."""
        rule = self._rule
        keeps = rule.then == "keep"
        if keeps and self._noted is None:
            self._noted = folders.recall(rule.folder, self._journal)
            self._notes = MAX_NOTES
        found = folders.look(rule.folder, rule.match, self._known)
        for name, mark in list(found.new.items()) if self._noted else ():
            if self._key(name, mark) in (self._noted or ()):
                del found.new[name]
                found.known.add((name, mark))
        if not found.complete:
            self._known |= found.known
            return found.new
        self._known = found.known
        self._noted = set()
        if keeps and self._notes >= MAX_NOTES:
            # Those of files that are gone are of no use any more.
            folders.forget(
                rule.folder, self._journal, (self._key(name, mark) for name, mark in self._known)
            )
            self._notes = 0
        return found.new

    def _key(self, name: str, mark: Mark) -> str:
        return mark.key(self._name, self._rule.op, str(self._rule.folder), os.fsencode(name).hex())

    async def _see_to(self, name: str, file: _File, bus: Bus, seen: Seen) -> None:
        rule, loop = self._rule, asyncio.get_running_loop()
        try:
            if not file.job:
                file.job = await self._submit(name, file.mark, bus)
                if not file.job:
                    # It changed while it was uploaded.
                    file.since = loop.time()
                    seen.waiting.append(name)
                    return
                log.info("file_submitted", file=str(rule.folder / name), job=file.job, op=rule.op)
            await asyncio.to_thread(self._finish, name, file.mark)
        except NotConnected:
            raise
        except (BusError, CallError, OSError, ValueError) as exc:
            pause = doubled(max(1.0, rule.every), file.failures, MOST_PAUSE)
            file.failures += 1
            file.again_at = loop.time() + pause
            file.why = describe(exc)
            seen.failed.append((name, file.why))
            log.warning("file_failed", file=str(rule.folder / name), why=file.why, pause=pause)
        else:
            seen.submitted.append((name, file.job))
            self._files.pop(name, None)

    async def _submit(self, name: str, mark: Mark, bus: Bus) -> str:
        """Submit a file and give the id of its job; nothing if it is not the one that was seen."""
        rule = self._rule
        try:
            name.encode()
        except UnicodeEncodeError as exc:
            raise ValueError("its name is not UTF-8: rename it") from exc
        values = {"name": name, "stem": Path(name).stem, "suffix": Path(name).suffix}
        args: dict[str, Any] = {
            key: value.fill(values) if isinstance(value, Template) else value
            for key, value in rule.args.items()
        }
        with folders.reading(rule.folder, name) as (descriptor, now):
            if now != mark:
                return ""
            media = mimetypes.guess_type(name)[0] or "application/octet-stream"
            # Through the descriptor, so that nobody can put another file in its place.
            args[rule.argument] = await bus.upload(Path(f"/dev/fd/{descriptor}"), media)
            if Mark.of(os.fstat(descriptor)) != mark:
                return ""
        return await bus.submit(rule.op, args, self._key(name, mark), rule.labels)

    def _finish(self, name: str, mark: Mark) -> None:
        rule = self._rule
        if isinstance(rule.then, Path):
            folders.move(rule.folder, name, mark, rule.then)
        elif rule.then == "delete":
            folders.take_away(rule.folder, name, mark)
        else:
            folders.note(rule.folder, self._journal, self._key(name, mark))
            self._known.add((name, mark))
            self._notes += 1


class Lock:
    """The right to watch a folder, which one process has; it ends with :meth:`release`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1

    def held(self) -> bool:
        """Take it, unless it is ours already or another's.

        Raises:
            OSError: there is no such folder.
        """
        if self._descriptor >= 0:
            return True
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        descriptor = os.open(self._folder, flags)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Leave it to others."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.asynccontextmanager
async def locked(folder: Path) -> AsyncGenerator[Lock]:
    """Have a lock for a block; it is taken by whoever needs it."""
    lock = Lock(folder)
    try:
        yield lock
    finally:
        lock.release()


@contextlib.asynccontextmanager
async def inbox(rule: Rule, name: str, host: Host) -> AsyncGenerator[Inbox]:
    """Have an inbox for a block, watched where there is a bus."""
    if host.bus is None:
        yield Inbox(rule, name, None, None)
        return
    async with host.share(("folder", rule.folder), lambda: locked(rule.folder)) as lock:
        found = Inbox(rule, name, host.bus, lock)
        async with found.watched():
            yield found
