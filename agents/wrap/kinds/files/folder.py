"""A folder that others write into or read from: new files in it, and files put into it whole.

Everything is done below a descriptor of the folder, with names of one part, and no symbolic link is
followed: whoever may write into the folder cannot make us read or change a file elsewhere.  All
functions block, and belong into a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .... import errors

#: Most files that one look gives, and entries that it goes through.
MAX_FILES: Final = 10_000
MAX_ENTRIES: Final = 1_000_000

#: Longest name of a file in bytes (NAME_MAX).
MAX_NAME: Final = 255

#: Beginning of the names that are ours.
OURS: Final = ".spinal-"

#: Most bytes of what is noted of a folder.
MAX_JOURNAL: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """What a file is known by: another one of the same name has another mark."""

    inode: int
    size: int
    #: In nanoseconds.
    modified: int

    @classmethod
    def of(cls, found: os.stat_result) -> Mark:
        """Take it from what the system says of the file."""
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)

    def key(self, *where: str) -> str:
        """Give a text that is another one for every other file or place."""
        said = json.dumps([*where, self.inode, self.size, self.modified])
        return f"file-{hashlib.sha256(said.encode()).hexdigest()[:48]}"


@contextlib.contextmanager
def opened(folder: Path, follow: bool = True) -> Generator[int]:
    """Have a descriptor of a folder for a block; a link to one only with ``follow``.

    Raises:
        OSError: there is none.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(folder, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass
class Found:
    """The files that a look at a folder found."""

    #: Those that are not known, by name.
    new: dict[str, Mark] = field(default_factory=dict[str, Mark])
    #: Those that are, and are still there.
    known: set[tuple[str, Mark]] = field(default_factory=set[tuple[str, Mark]])
    #: There were no more.
    complete: bool = True


def look(folder: Path, match: str, known: Collection[tuple[str, Mark]] = ()) -> Found:
    """Give the plain files in a folder whose name matches.

    Hidden ones, links, folders and what else there may be are left out.  Of more than
    :data:`MAX_FILES` some are given, the others another time.

    Raises:
        OSError: the folder cannot be read.
    """
    found = Found()
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= MAX_ENTRIES or len(found.new) >= MAX_FILES:
                found.complete = False
                break
            if entry.name.startswith(".") or not fnmatch.fnmatchcase(entry.name, match):
                continue
            with contextlib.suppress(FileNotFoundError):  # It went away meanwhile.
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    mark = Mark.of(status)
                    if (entry.name, mark) in known:
                        found.known.add((entry.name, mark))
                    else:
                        found.new[entry.name] = mark
    return found


@contextlib.contextmanager
def reading(folder: Path, name: str) -> Generator[tuple[int, Mark]]:
    """Have a plain file open for a block: its descriptor and its mark.

    Raises:
        OSError: there is none, or it is not a plain file.
    """
    with opened(folder) as here:
        # Opening a FIFO would wait for its other end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=here)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", name)
        yield descriptor, Mark.of(status)
    finally:
        os.close(descriptor)


def mark_of(folder: Path, name: str) -> Mark | None:
    """Give the mark of a plain file, if there is one."""
    try:
        status = os.lstat(folder / name)
    except FileNotFoundError:
        return None
    return Mark.of(status) if stat.S_ISREG(status.st_mode) else None


def contents(folder: Path, name: str, most: int) -> bytes | None:
    """Give the bytes of a plain file; nothing if they are more.

    Raises:
        OSError: it cannot be read.
    """
    with reading(folder, name) as (descriptor, _), open(descriptor, "rb", closefd=False) as file:
        data = file.read(most + 1)
    return None if len(data) > most else data


def put(folder: Path, name: str, content: bytes | Path, replace: bool = False) -> int:
    """Write a file so that nobody sees a part of it, and give its size.

    Raises:
        FileExistsError: there is one, and it is not to be replaced.
        OSError: it cannot be written.
    """
    with opened(folder) as here:
        mine = f"{OURS}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(mine, flags, 0o666, dir_fd=here), "wb") as file:
            try:
                if isinstance(content, Path):
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 1024 * 1024)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
                if replace:
                    os.rename(mine, name, src_dir_fd=here, dst_dir_fd=here)
                else:
                    # Unlike a rename it does not replace.
                    os.link(mine, name, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(mine, dir_fd=here)
        os.fsync(here)
        return size


def take_away(folder: Path, name: str, mark: Mark) -> None:
    """Delete a file, unless another one has taken its name.

    Raises:
        OSError: it cannot be deleted.
    """
    with opened(folder) as here:
        if _same(here, name, mark):
            os.unlink(name, dir_fd=here)
        os.fsync(here)


def move(folder: Path, name: str, mark: Mark, to: Path) -> None:
    """Move a file into another folder, which is made if need be; nothing there is replaced.

    If its name is taken there, the new one is told by a part of its mark.  Done twice, as after a
    crash in the middle, it is done.

    Raises:
        OSError: it cannot be moved.
    """
    to.mkdir(exist_ok=True)
    # Beside the files, others may have put a link in its place.
    with opened(folder) as here, opened(to, follow=to.parent != folder) as there:
        if not _same(here, name, mark):
            return
        path = Path(name)
        for other in (name, f"{path.stem}-{mark.key(name)[5:13]}{path.suffix}"):
            try:
                os.link(name, other, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
            except FileExistsError:
                if not _same(there, other, mark):
                    continue
            break
        else:
            raise FileExistsError(errno.EEXIST, "the name is taken", str(to / name))
        os.fsync(there)
        if _same(here, name, mark):
            os.unlink(name, dir_fd=here)
        os.fsync(here)


def _same(folder: int, name: str, mark: Mark) -> bool:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return Mark.of(status) == mark


# -- what was submitted and is kept where it is


def journal(name: str) -> str:
    """Give the name of the file in which it is noted for an operation."""
    return f"{OURS}submitted-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def recall(folder: Path, name: str) -> set[str]:
    """Read the keys that were noted in a journal.

    Raises:
        AgentError: the journal is no such file.
    """
    try:
        data = contents(folder, name, MAX_JOURNAL)
    except FileNotFoundError:
        return set()
    except OSError as exc:
        raise errors.AgentError(f"{folder / name}: {exc.strerror}") from exc
    if data is None:
        raise errors.AgentError(f"{folder / name} has more than {MAX_JOURNAL} bytes")
    # The last line is not whole if we were killed while we wrote it.
    return set(data.decode(errors="replace").split("\n")[:-1])


def note(folder: Path, name: str, key: str) -> None:
    """Note a key, so that it is there after a crash.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        opened(folder) as here,
        open(os.open(name, flags, 0o600, dir_fd=here), "ab") as file,
    ):
        file.write(f"{key}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def forget(folder: Path, name: str, keys: Iterable[str]) -> None:
    """Note these keys and no others.

    Raises:
        OSError: they cannot be written.
    """
    put(folder, name, "".join(f"{key}\n" for key in sorted(keys)).encode(), replace=True)
