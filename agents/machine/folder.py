"""A folder that nothing leads out of: no ``..``, no link, not even one that is made meanwhile.

Theory of operation.  A path is taken apart into names, and each is opened in the folder that was
opened before it (openat(2)) with ``O_NOFOLLOW``, from the root of the file system down.  So there
is no moment between a check and a use in which somebody could put a link in the way.  Where the
configuration itself names a path with links in it, they are resolved once, at the start.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Final

from spinal.agents.errors import Refused

from .texts import shown

#: Longest path and longest name in bytes (limits.h).
MAX_PATH: Final = 4096
MAX_NAME: Final = 255

#: How a folder is held on the way down: without the right to list it, where the system can do that.
_PASS: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW

#: Names from a folder down.
Steps = tuple[str, ...]


class Folder:
    """A folder that the configuration names, and what is in it.

    Args:
        path: absolute, without ``..``.
    """

    def __init__(self, path: str) -> None:
        self.path = str(PurePosixPath(path))
        self._real = PurePosixPath(os.path.realpath(path)).parts[1:]

    def __repr__(self) -> str:
        return f"<Folder {self.path}>"

    @property
    def parts(self) -> Steps:
        """Names on the way from the root, as the configuration has them."""
        return PurePosixPath(self.path).parts[1:]

    @contextmanager
    def open(self, steps: Steps = ()) -> Generator[int]:
        """Hold this folder or one in it: a descriptor for ``dir_fd``, for the length of a block.

        Raises:
            OSError: it is not there, is no folder, or a link stands in the way.
        """
        held = os.open("/", _PASS)
        try:
            for name in (*self._real, *steps):
                inner = os.open(name, _PASS, dir_fd=held)
                os.close(held)
                held = inner
            yield held
        finally:
            os.close(held)

    def join(self, steps: Steps) -> str:
        """Give the path of something in it, as callers write it."""
        return str(PurePosixPath(self.path, *steps))


def split(path: str) -> Steps:
    """Take a caller's path apart.

    Raises:
        Refused: it is not absolute, holds ``..`` or NUL, or is too long.
    """
    try:
        if len(path) > MAX_PATH or len(path.encode()) > MAX_PATH:
            raise Refused(f"the path is longer than {MAX_PATH} bytes")
    except UnicodeEncodeError as exc:
        raise Refused(f"{shown(path)} is not Unicode text") from exc
    if not path.startswith("/"):
        raise Refused(f"{shown(path)} is not a path from the root: it must start with '/'")
    if "\0" in path:
        raise Refused(f"{shown(path)} holds a NUL, which no path can")
    steps = tuple(name for name in path.split("/") if name not in ("", "."))
    if ".." in steps:
        raise Refused(f"{shown(path)} holds '..': write the path without it")
    if any(len(name.encode()) > MAX_NAME for name in steps):
        raise Refused(f"a name in the path is longer than {MAX_NAME} bytes")
    return steps


def find(path: str, folders: Sequence[Folder], what: str) -> tuple[Folder, Steps]:
    """Give the innermost allowed folder that a path is in, and the way from there.

    Raises:
        Refused: the path is none, or in no folder in which ``what`` is allowed.
    """
    steps = split(path)
    found = [one for one in folders if steps[: len(one.parts)] == one.parts]
    if not found:
        raise Refused(f"{shown(path)} is in no folder in which this agent may {what}")
    folder = max(found, key=lambda one: len(one.parts))
    return folder, steps[len(folder.parts) :]


#: Error -> what it means to who gave the path.
_WORDS: Final = {
    errno.ELOOP: "is a link, or behind one, and links are not followed",
    errno.ENOTDIR: "is not in a folder, or behind a link, and links are not followed",
    errno.ENOENT: "is not there",
    errno.ENXIO: "is not a file",
}


@contextmanager
def told(path: str) -> Generator[None]:
    """Tell a caller in one line what the system said about a path.

    Raises:
        Refused: it could not be done, and was not.
    """
    try:
        yield
    except OSError as exc:
        words = _WORDS.get(exc.errno or 0) or f"cannot be used: {exc.strerror or exc}"
        raise Refused(f"{shown(path)} {words}") from exc
    except ValueError as exc:  # What no path can hold, by the system's library.
        raise Refused(f"{shown(path)} is no path: {exc}") from exc


def open_file(folder: int, name: str) -> int:
    """Open an ordinary file in a folder for reading; never waits, as for a pipe without a writer.

    Raises:
        OSError: it is not there, a link, or something else than a file (``ENXIO``).
    """
    # Before it is opened, because to open a device can do something.
    _check_file(os.stat(name, dir_fd=folder, follow_symlinks=False))
    found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        _check_file(os.fstat(found))
    except OSError:
        os.close(found)
        raise
    return found


def _check_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.ELOOP if stat.S_ISLNK(found.st_mode) else errno.ENXIO, "not a file")
