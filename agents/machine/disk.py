"""Room on the disk: a plan of what the rules let go, and its execution if it still holds.

A plan names every file.  Its id holds the moment that ages are counted from and a hash over the
rule and over each file's path, number, size and time of change; ``clean`` makes the plan of that
moment again, and unless it is the same to the last byte, nothing is deleted.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from spinal.agents.agent import Agent
from spinal.agents.errors import Refused
from spinal.agents.results import fitting
from spinal.bus.blob import Blob
from spinal.protocols import duration

from .config import Rule
from .files import when
from .folder import Folder, Steps, told
from .texts import readable, shown

#: Most files of a plan, most names that are looked at for it, and how deep it goes.
MOST: Final = 20_000
MAX_NAMES: Final = 200_000
MAX_DEPTH: Final = 32

#: Seconds that a plan is good for.
GOOD_FOR: Final = 3600.0

_ID: Final = re.compile(r"([0-9]{1,19})-([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Doomed:
    """A file that a rule lets go."""

    path: str
    size: int
    modified: datetime


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rule lets go now."""

    rule: str
    #: What ``/machine/disk/clean`` wants; good for an hour.
    plan: str
    count: int
    #: The sum of their sizes.
    bytes: int
    #: The files, the oldest first, as many as fit.
    files: list[Doomed]
    #: All of them, one as JSON on each line, if not all are in ``files``.
    all: Blob | None


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What has been deleted."""

    rule: str
    count: int
    bytes: int
    #: Those of the plan that had changed since or could not be deleted, and why; the first hundred.
    left: list[str]


@dataclass(frozen=True, slots=True)
class _Found:
    steps: Steps
    device: int
    number: int
    size: int
    #: Nanoseconds.
    modified: int
    changed: int

    @classmethod
    def of(cls, steps: Steps, found: os.stat_result) -> _Found:
        return cls(
            steps,
            found.st_dev,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )


class Disk:
    """The rules of the configuration; what works on the disk blocks.

    Args:
        rules: by name.
        clock: nanoseconds since 1970.
    """

    def __init__(self, rules: Mapping[str, Rule], clock: Callable[[], int] = time.time_ns) -> None:
        self._rules = {name: (rule, Folder(rule.folder)) for name, rule in rules.items()}
        self._clock = clock

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules by name."""
        return {name: rule for name, (rule, _) in self._rules.items()}

    def _rule(self, name: str) -> tuple[Rule, Folder]:
        if name not in self._rules:
            known = ", ".join(self._rules)
            raise Refused(f"there is no rule {shown(name)}: there are {readable(known, 500)}")
        return self._rules[name]

    def plan(self, name: str) -> Plan:
        """Say what a rule lets go.

        Raises:
            Refused: no such rule, its folder cannot be read, or there is more than a plan holds.
        """
        rule, folder = self._rule(name)
        now = self._clock()
        found = self._find(rule, folder, now)
        doomed = [
            Doomed(readable(folder.join(one.steps)), one.size, when(one.modified / 1e9))
            for one in found
        ]
        files, more = fitting(doomed, len(doomed))
        every = b"".join(msgspec.json.encode(one) + b"\n" for one in doomed) if more else b""
        return Plan(
            name,
            f"{now}-{_hash(name, rule, now, found)}",
            len(found),
            sum(one.size for one in found),
            files,
            Blob.of(every, "application/jsonl") if more else None,
        )

    def clean(self, name: str, plan: str, stop: Callable[[], bool] = lambda: False) -> Cleaned:
        """Do what a plan says, file by file, until ``stop`` says so.

        Raises:
            Refused: the plan is none, too old, or not what would be planned now; nothing has been
                deleted.
        """
        rule, folder = self._rule(name)
        parts = _ID.fullmatch(plan)
        if parts is None:
            raise Refused(f"{shown(plan)} is no plan: /machine/disk/plan gives one")
        moment, now = int(parts[1]), self._clock()
        # A moment to come would let go what is not old enough yet.
        if not 0 <= now - moment <= GOOD_FOR * 1e9:
            raise Refused(
                f"the plan is not of the last {duration.write(GOOD_FOR)}: make another one"
            )
        found = self._find(rule, folder, moment)
        if _hash(name, rule, moment, found) != parts[2]:
            raise Refused("what is on the disk is not what was planned: make another plan")
        left: list[str] = []
        count = size = 0
        for one in found:
            why = "stopped" if stop() else _delete(folder, one)
            if why:
                left.append(f"{readable(folder.join(one.steps), 500)}: {why}")
            else:
                count += 1
                size += one.size
        return Cleaned(name, count, size, fitting(left, 100)[0])

    def _find(self, rule: Rule, folder: Folder, moment: int) -> list[_Found]:
        """Give the files that a rule lets go, the oldest first."""
        with told(rule.folder), folder.open() as held:
            device = os.fstat(held).st_dev
            found = [
                one
                for one in _walk(held, (), device, rule.deep, [MAX_NAMES])
                if fnmatch.fnmatchcase(one.steps[-1], rule.match)
            ]
        found.sort(key=lambda one: (one.modified, one.steps))
        old = moment - int(rule.older * 1e9)
        kept = found[: len(found) - rule.keep] if rule.keep else found
        doomed = [one for one in kept if one.modified <= old]
        if len(doomed) > MOST:
            raise Refused(f"more than {MOST} files: narrow the rule")
        return doomed


def _walk(held: int, above: Steps, device: int, deep: bool, left: list[int]) -> Iterator[_Found]:
    """Give the ordinary files of a folder; not what is behind a link or another file system's."""
    listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
    try:
        names = os.listdir(listed)
        left[0] -= len(names)
        if left[0] < 0:
            raise Refused(f"more than {MAX_NAMES} names: narrow the rule")
        for name in names:
            try:
                found = os.stat(name, dir_fd=listed, follow_symlinks=False)
            except FileNotFoundError:
                continue  # It went meanwhile.
            if found.st_dev != device:
                continue
            if stat.S_ISREG(found.st_mode):
                yield _Found.of((*above, name), found)
            elif stat.S_ISDIR(found.st_mode) and deep and len(above) < MAX_DEPTH:
                try:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                    inner = os.open(name, flags, dir_fd=listed)
                except OSError:
                    continue  # It went, or may not be read: nothing in it is planned.
                try:
                    if os.fstat(inner).st_dev == device:
                        yield from _walk(inner, (*above, name), device, deep, left)
                finally:
                    os.close(inner)
    finally:
        os.close(listed)


def _hash(name: str, rule: Rule, moment: int, found: list[_Found]) -> str:
    hashed = hashlib.sha256(json.dumps([name, repr(rule), moment]).encode())
    for one in found:
        facts = (one.device, one.number, one.size, one.modified, one.changed)
        hashed.update(b"\0".join(map(os.fsencode, one.steps)) + f"\0\0{facts}\n".encode())
    return hashed.hexdigest()


def _delete(folder: Folder, doomed: _Found) -> str:
    """Delete a file if it still is the one that is meant; give why not, else nothing."""
    *above, name = doomed.steps
    try:
        with folder.open(tuple(above)) as held:
            found = os.stat(name, dir_fd=held, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or _Found.of(doomed.steps, found) != doomed:
                return "it has changed"
            os.unlink(name, dir_fd=held)
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def offer(agent: Agent, rules: Mapping[str, Rule]) -> None:
    """Offer what the configuration allows."""
    if not rules:
        return
    disk = Disk(rules)
    # One cleaning at a time, and no plan in the midst of it.
    turn = asyncio.Lock()

    @agent.op("/machine/disk/rules", effects="reads")
    async def rules_of() -> dict[str, Rule]:
        """List the rules by which room may be made."""
        return disk.rules

    @agent.op("/machine/disk/plan", effects="reads", timeout="5m")
    async def plan(rule: Annotated[str, Meta(max_length=200)]) -> Plan:
        """Say which files a rule lets go: the plan that /machine/disk/clean can be told to do.

        Args:
            rule: name of a rule.
        """
        async with turn:
            return await asyncio.to_thread(disk.plan, rule)

    @agent.op("/machine/disk/clean", effects="deletes", timeout="10m")
    async def clean(
        rule: Annotated[str, Meta(max_length=200)], plan: Annotated[str, Meta(max_length=100)]
    ) -> Cleaned:
        """Delete exactly the files of a plan; nothing, if anything about them has changed.

        Args:
            rule: name of the rule.
            plan: as /machine/disk/plan gave it.
        """
        stop = threading.Event()
        async with turn:
            work = asyncio.ensure_future(asyncio.to_thread(disk.clean, rule, plan, stop.is_set))
            try:
                return await asyncio.shield(work)
            finally:
                # Cancelled, it has stopped before that is told.
                stop.set()
                await asyncio.wait([work])
