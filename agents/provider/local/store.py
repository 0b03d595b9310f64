"""What is on disk about local machines and images; several processes may work on one folder.

::

    lock                 held (flock) by whoever changes what there is, for milliseconds
    ID/meta.json         the record of one machine, there before the machine is
    ID/user-data         its script
    ID/disk/             its own folder
    ID/console.log       what it writes; the older part is console.log.1
    ID/ended.json        how it ended
    .ID*                 being made (by who holds the lock) or being deleted
    images/ID.tar.gz     content of one image
    images/ID.json       its record; without one the image is being made, and the content locked

Only folders that are complete have a name without a dot.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Final, TypeVar

import structlog

from spinal.bus.server.files import write

from .identity import Identity

log = structlog.get_logger()

_T = TypeVar("_T", "Record", "Image")

#: What the names of machines and images on disk, and on the wire, begin with.
MACHINE: Final = "machine-"
IMAGE: Final = "image-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One machine, as it was asked for; and its process, once it has one."""

    id: str
    name: str
    region: str
    size: str
    image: str
    isolation: str
    #: Milliseconds since 1970 UTC: when it was asked for, and when it begins.
    created: int
    begins: int
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    #: Number, start and boot of its warden.
    pid: int | None = None
    start: int | None = None
    boot: str | None = None

    @property
    def warden(self) -> Identity | None:
        """Its process; none if it never had one."""
        if self.pid is None or self.start is None or self.boot is None:
            return None
        return Identity(self.pid, self.start, self.boot)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a machine may begin with: another one's folder as it was."""

    id: str
    name: str
    description: str
    #: Name of the folder that it holds (:attr:`.isolation.Isolation.kept`).
    kept: str
    #: Milliseconds since 1970 UTC.
    created: int


class Store:
    """See the module.  All of it blocks, and may be used by several threads.

    Args:
        folder: made when it is needed first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def at(self, id: str) -> Path:
        """Give the folder of one machine."""
        return self.folder / id

    def archive(self, id: str) -> Path:
        """Give the content of one image."""
        return self.folder / "images" / f"{id}.tar.gz"

    @contextmanager
    def locked(self, *, shared: bool = False) -> Generator[None]:
        """Keep others from changing what there is; with ``shared`` only from changing it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    # -- machines

    def records(self) -> list[Record]:
        """Give all machines, oldest first; hold the lock."""
        found = [
            record
            for path in self.folder.glob(f"{MACHINE}*/meta.json")
            if (record := _read(path, Record)) is not None
        ]
        return sorted(found, key=lambda record: (record.created, record.id))

    def add(self, record: Record, user_data: bytes) -> None:
        """Make the folder of a new machine; hold the lock."""
        draft = self.folder / f".{record.id}"
        (draft / "disk").mkdir(parents=True, mode=0o700)
        write(draft / "user-data", user_data, 0o600)
        _write(draft / "meta.json", record)
        draft.rename(self.at(record.id))

    def put(self, record: Record) -> None:
        """Write the record of a machine that is there."""
        _write(self.at(record.id) / "meta.json", record)

    def ended(self, id: str) -> dict[str, Any] | None:
        """Say how a machine ended, as its warden noted; none if there is no note."""
        try:
            note: Any = json.loads((self.at(id) / "ended.json").read_bytes())
            code = note["code"]
            # A machine that is not kept apart can write there.
            return note if isinstance(code, int) else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError) as exc:
            log.warning("note_not_read", machine=id, error=str(exc))
            return None

    def remove(self, id: str) -> None:
        """Delete what is left of a machine that has ended; nothing happens if that is nothing."""
        doomed = self.folder / f".{id}.{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):
            self.at(id).rename(doomed)
            _delete(doomed)

    def sweep(self) -> None:
        """Delete what others left half made or half deleted when they were killed; hold the lock."""
        for path in self.folder.glob(f".{MACHINE}*"):
            _delete(path)
        for path in self.folder.glob(f"images/{IMAGE}*.tar.gz"):
            if not self._about(path.name.removesuffix(".tar.gz")).exists() and _abandoned(path):
                path.unlink(missing_ok=True)

    # -- images

    def _about(self, id: str) -> Path:
        return self.folder / "images" / f"{id}.json"

    @contextmanager
    def draft(self, image: Image) -> Generator[IO[bytes]]:
        """Give the file that takes the content of a new image, which is there when that is done.

        It is locked, also by those programs that write it for us, as long as it is nobody else's
        to delete.
        """
        path = self.archive(image.id)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with path.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
                _write(self._about(image.id), image)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def delete(self, id: str) -> None:
        """Delete an image; nothing happens if there is no such one."""
        # In this order, so that none is left that has no content.
        self._about(id).unlink(missing_ok=True)
        self.archive(id).unlink(missing_ok=True)

    def images(self) -> list[Image]:
        """Give all images, oldest first."""
        found = [
            image
            for path in self.folder.glob(f"images/{IMAGE}*.json")
            if (image := _read(path, Image)) is not None
        ]
        return sorted(found, key=lambda image: (image.created, image.id))


def new_id(kind: str) -> str:
    """Give a new name for a machine or an image."""
    return f"{kind}{secrets.token_hex(6)}"


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return kind(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as exc:
        # Somebody has written there; the other machines are none the worse.
        log.error("record_not_read", file=str(path), error=str(exc))
        return None


def _write(path: Path, row: Record | Image) -> None:
    write(path, json.dumps(asdict(row)).encode(), 0o600)


def _abandoned(path: Path) -> bool:
    """Tell whether nobody writes a file any more."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        # Folders that their owner may not change, as some package managers leave them.
        for path, names, _ in os.walk(folder):
            for name in names:
                inner = Path(path, name)
                with suppress(OSError):
                    if not inner.is_symlink():
                        inner.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.warning("not_deleted", folder=str(folder))
