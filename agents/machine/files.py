"""Files in the folders that the configuration allows: listed, read, written and removed.

Contents travel as blobs.  A file is written beside the old one and takes its place when it is
complete, so that whoever reads it has either the one or the other.
"""

from __future__ import annotations

import asyncio
import fnmatch
import grp
import mimetypes
import os
import pwd
import secrets
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from spinal.agents.agent import Agent
from spinal.agents.errors import Refused
from spinal.agents.job import Job
from spinal.agents.results import fitting
from spinal.bus.blob import UNKNOWN, Blob

from .config import FilesConfig
from .folder import MAX_PATH, Folder, Steps, find, open_file, told
from .texts import readable, shown

#: Most names of one folder that are looked at.
MAX_NAMES: Final = 100_000

#: Most that one listing gives.
MOST: Final = 500

#: Bytes that are copied at a time.
CHUNK: Final = 256 * 1024

PathText = Annotated[str, Meta(min_length=1, max_length=MAX_PATH)]
Pattern = Annotated[str, Meta(min_length=1, max_length=255)]
Mode = Annotated[str, Meta(max_length=4, pattern="^(0?[0-7]{3})?$")]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something in a folder."""

    name: str
    #: ``file``, ``folder``, ``link`` or ``other``.
    kind: str
    size: int
    modified: datetime
    #: In octal, such as ``0644``.
    mode: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a folder, by name."""

    entries: list[Entry]
    #: Whether there are more: ask again with ``after`` set to the last name.
    more: bool


@dataclass(frozen=True, slots=True)
class Root:
    """A folder of the configuration."""

    path: str
    read: bool
    write: bool


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of a path without opening it."""

    path: str
    kind: str
    size: int
    modified: datetime
    mode: str
    owner: str
    group: str
    links: int


@dataclass(frozen=True, slots=True)
class Written:
    """What has been written."""

    path: str
    size: int
    #: Whether there was a file before.
    replaced: bool


_KINDS: Final = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


def kind(found: os.stat_result) -> str:
    """Say what something is."""
    return _KINDS.get(stat.S_IFMT(found.st_mode), "other")


def when(seconds: float) -> datetime:
    """Give a time of the system's as callers get it: UTC, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC)


class Files:
    """What may be done with files; every method blocks, and raises ``Refused``."""

    def __init__(self, config: FilesConfig) -> None:
        self._read = [Folder(path) for path in config.read]
        self._write = [Folder(path) for path in config.write]
        self.largest = config.largest

    @property
    def roots(self) -> list[Root]:
        """The allowed folders."""
        read = {one.path for one in self._read}
        write = {one.path for one in self._write}
        return [Root(path, path in read, path in write) for path in sorted(read | write)]

    def page(self, path: str, match: str, after: str, limit: int) -> Listing:
        """Give a page of a folder."""
        folder, steps = find(path, self._read, "read")
        with told(path), folder.open(steps) as held:
            names = self._names(path, held, match, after)
            entries = (entry for name in names if (entry := _entry(held, name)) is not None)
            return Listing(*fitting(entries, limit))

    def _names(self, path: str, held: int, match: str, after: str) -> list[str]:
        found: list[str] = []
        # The one that is held cannot be listed, and this is the same folder.
        listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
        try:
            with os.scandir(listed) as entries:
                for count, entry in enumerate(entries):
                    if count >= MAX_NAMES:
                        raise Refused(f"{shown(path)} holds more than {MAX_NAMES} names")
                    if readable(entry.name) > after and fnmatch.fnmatchcase(entry.name, match):
                        found.append(entry.name)
        finally:
            os.close(listed)
        return sorted(found, key=readable)

    def stat(self, path: str) -> Stat:
        """Tell what something is; of a link, the link itself."""
        folder, steps = find(path, self._read, "read")
        with told(path):
            if steps:
                with folder.open(steps[:-1]) as held:
                    found = os.stat(steps[-1], dir_fd=held, follow_symlinks=False)
            else:
                with folder.open() as held:
                    found = os.fstat(held)
        return Stat(
            readable(path),
            kind(found),
            found.st_size,
            when(found.st_mtime),
            f"{stat.S_IMODE(found.st_mode):04o}",
            _user(found.st_uid),
            _group(found.st_gid),
            found.st_nlink,
        )

    def read(self, path: str, offset: int, length: int, target: Path) -> None:
        """Copy a part of a file, or all of it with a length of 0."""
        folder, steps = find(path, self._read, "read")
        if not steps:
            raise Refused(f"{shown(path)} is a folder")
        with told(path):
            with folder.open(steps[:-1]) as held:
                descriptor = open_file(held, steps[-1])
            with open(descriptor, "rb", buffering=0) as file, target.open("wb") as copy:
                left = length or self.largest
                if not length and os.fstat(descriptor).st_size - offset > self.largest:
                    raise Refused(
                        f"{shown(path)} is larger than the {self.largest} bytes that are read at "
                        "once: give offset and length"
                    )
                file.seek(offset)
                while left > 0 and (data := file.read(min(CHUNK, left))):
                    copy.write(data)
                    left -= len(data)

    def writable(self, path: str, size: int) -> tuple[Folder, Steps]:
        """Find where a file is to be written, before it is fetched."""
        folder, steps = find(path, self._write, "write")
        if not steps:
            raise Refused(f"{shown(path)} is a folder")
        if size > self.largest:
            raise Refused(f"{size} bytes are more than the {self.largest} that a file may have")
        return folder, steps

    def write(self, path: str, source: Path, mode: str) -> Written:
        """Put a file in the place of the old one, whose owner and mode it takes over."""
        folder, steps = self.writable(path, source.stat().st_size)
        name = steps[-1]
        with told(path), folder.open(steps[:-1]) as held:
            old: os.stat_result | None = None
            with suppress(FileNotFoundError):
                old = os.stat(name, dir_fd=held, follow_symlinks=False)
            if old is not None and not stat.S_ISREG(old.st_mode):
                raise Refused(f"{shown(path)} is there already, and is a {kind(old)}")
            new = f".{secrets.token_hex(8)}.new"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            descriptor = os.open(new, flags, 0o600, dir_fd=held)
            try:
                with open(descriptor, "wb") as file, source.open("rb") as data:
                    shutil.copyfileobj(data, file, CHUNK)
                    size = file.tell()
                    if old is not None and os.geteuid() == 0:
                        os.fchown(descriptor, old.st_uid, old.st_gid)
                    # Never more than the rights proper: no set-user-id.
                    rights = int(mode, 8) if mode else 0o644 if old is None else old.st_mode & 0o777
                    os.fchmod(descriptor, rights)
                    file.flush()
                    os.fsync(descriptor)
                os.rename(new, name, src_dir_fd=held, dst_dir_fd=held)
            except BaseException:
                os.unlink(new, dir_fd=held)
                raise
            _settle(held)
        return Written(readable(path), size, old is not None)

    def remove(self, path: str) -> str:
        """Remove a file, a link or an empty folder, and say which it was."""
        folder, steps = find(path, self._write, "write")
        if not steps:
            raise Refused(f"{shown(path)} is the allowed folder itself")
        with told(path), folder.open(steps[:-1]) as held:
            found = kind(os.stat(steps[-1], dir_fd=held, follow_symlinks=False))
            if found == "other":
                raise Refused(f"{shown(path)} is neither a file, a link nor a folder")
            (os.rmdir if found == "folder" else os.unlink)(steps[-1], dir_fd=held)
            _settle(held)
        return found


def _settle(held: int) -> None:
    """Have the disk know of a changed folder."""
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=held)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _entry(held: int, name: str) -> Entry | None:
    try:
        found = os.stat(name, dir_fd=held, follow_symlinks=False)
    except FileNotFoundError:  # It went meanwhile.
        return None
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    return Entry(readable(name), kind(found), found.st_size, when(found.st_mtime), mode)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def offer(agent: Agent, config: FilesConfig) -> None:
    """Offer what the configuration allows."""
    files = Files(config)
    if config.read:
        _offer_reading(agent, files)
    if config.write:
        _offer_writing(agent, files)


def _offer_reading(agent: Agent, files: Files) -> None:
    @agent.op("/machine/files/roots", effects="reads")
    async def roots() -> list[Root]:
        """List the folders whose files this agent may read or write."""
        return files.roots

    @agent.op("/machine/files/list", effects="reads")
    async def list(
        path: PathText,
        match: Pattern = "*",
        after: Annotated[str, Meta(max_length=1024)] = "",
        limit: Annotated[int, Meta(ge=1, le=MOST)] = 100,
    ) -> Listing:
        """List a folder by name, in pages.

        Args:
            path: the folder, from the root.
            match: pattern for the names, such as *.log.
            after: go on behind this name.
            limit: most names at once.
        """
        return await asyncio.to_thread(files.page, path, match, after, limit)

    @agent.op("/machine/files/stat", effects="reads")
    async def stat(path: PathText) -> Stat:
        """Tell what stands at a path; of a link, the link itself.

        Args:
            path: from the root.
        """
        return await asyncio.to_thread(files.stat, path)

    @agent.op("/machine/files/read", effects="reads", timeout="5m")
    async def read(
        job: Job,
        path: PathText,
        offset: Annotated[int, Meta(ge=0)] = 0,
        length: Annotated[int, Meta(ge=0)] = 0,
    ) -> Blob:
        """Give a file, or a part of it.

        Args:
            path: the file, from the root.
            offset: where to begin, in bytes.
            length: how many bytes; 0 is up to the end.
        """
        if length > files.largest:
            raise Refused(f"length {length}: at most {files.largest} bytes are read at once")
        with tempfile.TemporaryDirectory(prefix="spinal-machine-") as folder:
            copy = Path(folder, "content")
            await asyncio.to_thread(files.read, path, offset, length, copy)
            return await job.store(copy, mimetypes.guess_type(path)[0] or UNKNOWN)


def _offer_writing(agent: Agent, files: Files) -> None:
    @agent.op("/machine/files/write", effects="writes", timeout="5m")
    async def write(path: PathText, content: Blob, mode: Mode = "") -> Written:
        """Write a file; one that is there is replaced when the new one is complete.

        Args:
            path: the file, from the root; its folder must be there.
            content: what is to be in it.
            mode: its rights in octal, such as 0640; by default those of the old file, or 0644.
        """
        files.writable(path, content.size)
        with tempfile.TemporaryDirectory(prefix="spinal-machine-") as folder:
            copy = await content.save(Path(folder, "content"))
            return await asyncio.to_thread(files.write, path, copy, mode)

    @agent.op("/machine/files/remove", effects="deletes")
    async def remove(path: PathText) -> str:
        """Remove a file, a link or an empty folder, and say which it was.

        Args:
            path: from the root.
        """
        return await asyncio.to_thread(files.remove, path)
