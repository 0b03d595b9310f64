"""Unpacking an archive that somebody else made, into a folder and nowhere else.

Nothing is taken over but regular files, folders, and links that stay inside.  Files are written
first and symbolic links are made last, so that nothing is ever written through one; then each link
is followed, and one that leads out refuses the whole archive.  Owners, times, set-uid bits,
devices and pipes are not taken over, or refused.

Everything is bounded while it is read: a compressed byte can stand for a thousand, so what a header
promises is not believed.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import IO, Final, cast

from ..errors import Refused, one_line

#: Bytes that are read or written at a time.
CHUNK: Final = 256 * 1024
#: Most bytes that a header of an archive may have: a name, or the table of contents of a ZIP file.
MAX_HEADER: Final = 16 * 1024 * 1024
#: Bytes of headers and padding that a tar file may have for each of its files.
HEADERS: Final = 2048
#: Memory that a decompressor may take.
MAX_DICTIONARY: Final = 256 * 1024 * 1024
#: Longest target of a symbolic link.
MAX_TARGET: Final = 4096

#: Raises if the work is to end.
Check = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may come out of an archive."""

    #: Bytes of all files.
    size: int
    #: Files, folders and links.
    files: int


def unpack(archive: Path, name: str, folder: Path, bounds: Bounds, check: Check) -> None:
    """Unpack an archive into a folder, which is made and must not exist.

    Args:
        archive: the file.
        name: its name, whose end says what it is.
        folder: where to; left as it is if this raises.
        bounds: how much may come out.
        check: called often; what it raises ends the work.

    Raises:
        Refused: it is no archive, broken, encrypted, too large, or would write elsewhere.
        OSError: the disk is full, or the like.
    """
    folder.mkdir()
    tree = _Tree(folder, bounds, check)
    try:
        with ExitStack() as stack:
            if name.endswith(".zip"):
                _unzip(archive, tree)
            else:
                most = bounds.size + bounds.files * HEADERS
                plain = stack.enter_context(_decompressed(archive, name, most, check))
                _untar(plain, tree)
        tree.link()
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as exc:
        raise Refused(f"{name!r} is broken, or no such archive: {one_line(str(exc), 200)}") from exc
    except (NotImplementedError, RuntimeError, UnicodeError, ValueError) as exc:
        # How zipfile says encrypted, an unknown method, and names that are none.
        raise Refused(f"{name!r} cannot be unpacked: {one_line(str(exc), 200)}") from exc


class _Tree:
    """What comes out of an archive."""

    def __init__(self, folder: Path, bounds: Bounds, check: Check) -> None:
        self._folder = folder
        self._bounds = bounds
        self._check = check
        self._left = bounds.size
        self._count = 0
        self._links: list[tuple[Path, str]] = []

    def take(self, count: int) -> None:
        """Count bytes that come out."""
        self._check()
        self._left -= count
        if self._left < 0:
            raise Refused(f"the archive holds more than {self._bounds.size} bytes")

    def _place(self, name: str) -> Path | None:
        """Give where a member goes; none for the folder itself."""
        self._check()
        self._count += 1
        if self._count > self._bounds.files:
            raise Refused(f"the archive holds more than {self._bounds.files} files")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise Refused(f"the archive holds {name[:200]!r}, which is outside of its folder")
        if not parts:
            return None
        place = self._folder.joinpath(*parts)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise _bad_name(name, exc) from exc
        return place

    def add_folder(self, name: str) -> None:
        """Make a folder."""
        place = self._place(name)
        if place is not None:
            try:
                place.mkdir(exist_ok=True)
            except OSError as exc:
                raise _bad_name(name, exc) from exc

    def add_file(self, name: str, mode: int, source: IO[bytes]) -> None:
        """Write a file."""
        place = self._place(name)
        if place is None:
            raise Refused(f"the archive holds a file without a name: {name[:200]!r}")
        # Whoever runs it need not own it, and nobody else changes it.
        mode = 0o755 if mode & 0o111 else 0o644
        try:
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        except OSError as exc:
            raise _bad_name(name, exc) from exc
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            while data := source.read(CHUNK):
                self.take(len(data))
                file.write(data)

    def add_copy(self, name: str, of: str) -> None:
        """Make a file that is the same as one that has come before (a hard link)."""
        self._check()
        parts = [part for part in of.split("/") if part not in ("", ".")]
        first = self._folder.joinpath(*parts)
        if of.startswith("/") or ".." in parts or first.is_symlink() or not first.is_file():
            raise Refused(f"{name[:200]!r} is a link to {of[:200]!r}, which is no file before it")
        with first.open("rb") as source:
            self.add_file(name, first.stat().st_mode, source)

    def add_link(self, name: str, target: str) -> None:
        """Note a symbolic link, which is made at the end."""
        place = self._place(name)
        if place is None or not target or target.startswith("/") or len(target) > MAX_TARGET:
            raise Refused(f"{name[:200]!r} is a link to {target[:200]!r}, which leads outside")
        self._links.append((place, target))

    def link(self) -> None:
        """Make the symbolic links, and see that none leads out."""
        for place, target in self._links:
            try:
                place.symlink_to(target)
            except OSError as exc:
                raise _bad_name(place.name, exc) from exc
        inside = self._folder.resolve()
        for place, target in self._links:
            self._check()
            try:
                found = place.resolve()
            except (OSError, RuntimeError) as exc:
                raise Refused(f"{place.name!r} is a link that leads to itself") from exc
            if not found.is_relative_to(inside):
                raise Refused(f"{place.name!r} is a link to {target[:200]!r}, which leads outside")


def _bad_name(name: str, error: OSError) -> Refused | OSError:
    # What is wrong with the archive, and not with the disk.
    if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
        return Refused(f"the archive holds {name[:200]!r} twice, or as a file and as a folder")
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP):
        return Refused(f"the archive holds a name that is none here: {name[:200]!r}")
    return error


class _Bounded(FileIO):
    """A file of which nobody reads much at once, whatever a header says."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        if size > MAX_HEADER:
            raise Refused(f"the archive has a header of more than {MAX_HEADER} bytes")
        return super().read(size) or b""


# -- tar


@contextmanager
def _decompressed(archive: Path, name: str, most: int, check: Check) -> Generator[Path]:
    """Give the plain tar file.

    On disk, because tarfile reads a header as long as it says it is, and only of a plain file can
    that be bounded.
    """
    opened = _open(archive, name)
    if opened is None:
        yield archive
        return
    with opened, tempfile.NamedTemporaryFile(dir=archive.parent, prefix=".tar-") as plain:
        size = 0
        try:
            while data := opened.read(CHUNK):
                check()
                size += len(data)
                if size > most:
                    raise Refused(f"the archive holds more than {most} bytes")
                plain.write(data)
        except OSError as exc:
            if exc.errno is not None:
                raise
            # How gzip and bz2 say that the file is none of theirs.
            raise Refused(f"{name!r} is broken: {one_line(str(exc), 200)}") from exc
        plain.flush()
        yield Path(plain.name)


def _open(archive: Path, name: str) -> IO[bytes] | None:
    end = name.rpartition(".")[2]
    if end in ("gz", "tgz"):
        return cast("IO[bytes]", gzip.open(archive))
    if end in ("bz2", "tbz2"):
        return cast("IO[bytes]", bz2.open(archive))
    if end in ("xz", "txz"):
        return cast("IO[bytes]", BufferedReader(_Xz(archive)))
    return None


def _new_stream() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_DICTIONARY)


class _Xz(FileIO):
    """Reads .xz with bounded memory, which lzma.open() does not."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._stream = _new_stream()

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(cast("bytearray", buffer)).cast("B")
        while True:
            if self._stream.eof:
                # Streams and padding in fours of zeros may follow one another (xz file format, 2).
                rest = self._stream.unused_data or super().read(CHUNK) or b""
                while not rest.strip(b"\0"):
                    rest = super().read(CHUNK) or b""
                    if not rest:
                        return 0
                self._stream, data = _new_stream(), rest.lstrip(b"\0")
            else:
                data = super().read(CHUNK) or b"" if self._stream.needs_input else b""
                if not data and self._stream.needs_input:
                    raise EOFError("it ends too early")
            found = self._stream.decompress(data, len(view))
            if found:
                view[: len(found)] = found
                return len(found)


def _untar(plain: Path, tree: _Tree) -> None:
    with _Bounded(plain) as file, tarfile.open(fileobj=cast("IO[bytes]", file), mode="r:") as tar:
        for member in tar:
            if member.isdir():
                tree.add_folder(member.name)
            elif member.issym():
                tree.add_link(member.name, member.linkname)
            elif member.islnk():
                tree.add_copy(member.name, member.linkname)
            elif member.isreg() and not member.issparse():
                source = tar.extractfile(member)
                assert source is not None, "a regular file"
                with source:
                    tree.add_file(member.name, member.mode, source)
            else:
                raise Refused(f"the archive holds {member.name[:200]!r}, which is no plain file")


# -- zip


def _unzip(archive: Path, tree: _Tree) -> None:
    with _Bounded(archive) as file, zipfile.ZipFile(cast("IO[bytes]", file)) as source:
        for member in source.infolist():
            mode = member.external_attr >> 16
            if member.is_dir():
                tree.add_folder(member.filename)
                continue
            with source.open(member) as opened:
                if stat.S_ISLNK(mode):
                    target = opened.read(MAX_TARGET + 1)
                    tree.add_link(member.filename, target.decode())
                elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                    tree.add_file(member.filename, mode, opened)
                else:
                    what = f"{member.filename[:200]!r}, which is no plain file"
                    raise Refused(f"the archive holds {what}")


def survey(wheel: Path, name: str, bounds: Bounds) -> None:
    """See that a wheel is a ZIP file within bounds; pip unpacks it.

    Raises:
        Refused: it is none, or larger.
    """
    try:
        with _Bounded(wheel) as file, zipfile.ZipFile(cast("IO[bytes]", file)) as source:
            members = source.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as exc:
        raise Refused(f"{name!r} is no wheel: {one_line(str(exc), 200)}") from exc
    if len(members) > bounds.files:
        raise Refused(f"the wheel holds more than {bounds.files} files")
    # zipfile gives no more of a member than its header says, and checks the sum.
    if sum(member.file_size for member in members) > bounds.size:
        raise Refused(f"the wheel holds more than {bounds.size} bytes")


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it; nothing if it is not there.

    Raises:
        OSError: something in it cannot be removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    if os.geteuid() != 0:
        # A service may have taken rights away from folders of its own.
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o700)
    shutil.rmtree(folder)
