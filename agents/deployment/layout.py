"""Where a service is on disk.

``<root>/services/<name>/`` holds ``releases/<number>-<hash>/``, the link ``current`` to one of
them, ``data/`` that stays over releases, ``logs/`` and ``state.json``; ``<root>/cache/`` holds what
was fetched, by hash.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Hexadecimal digits of the hash in the name of a release.
DIGITS: Final = 12
_RELEASE: Final = re.compile(r"([1-9][0-9]{0,8})-[0-9a-f]{12}")


def release_name(number: int, sha256: str) -> str:
    """Name a release: its number, counted for each service, and the start of its hash."""
    return f"{number}-{sha256[:DIGITS]}"


def number_of(release: str) -> int:
    """Give the number in the name of a release; 0 for any other name."""
    found = _RELEASE.fullmatch(release)
    return int(found[1]) if found else 0


def surplus(releases: Collection[str], current: str, keep: int) -> list[str]:
    """Give the releases to remove: all but the current one and the latest others, ``keep`` in all."""
    others = sorted((one for one in releases if one != current), key=number_of, reverse=True)
    return others[max(0, keep - 1) :]


def before(releases: Collection[str], current: str) -> str | None:
    """Give the release to roll back to: the latest of those with a lower number."""
    older = [one for one in releases if number_of(one) < number_of(current)]
    return max(older, key=number_of, default=None)


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one service."""

    path: Path

    @property
    def releases(self) -> Path:
        """Folders of the releases."""
        return self.path / "releases"

    @property
    def current(self) -> Path:
        """Link to the release that runs."""
        return self.path / "current"

    @property
    def data(self) -> Path:
        """What stays over releases."""
        return self.path / "data"

    @property
    def logs(self) -> Path:
        """What the releases wrote, a file for each."""
        return self.path / "logs"

    @property
    def state(self) -> Path:
        """What the agent's next life goes on from."""
        return self.path / "state.json"

    def release(self, name: str) -> Path:
        """Folder of one release."""
        return self.releases / name

    def log(self, release: str) -> Path:
        """Where a release's output goes."""
        return self.logs / f"{release}.log"

    def make(self) -> None:
        """Make what is missing."""
        for path, mode in ((self.releases, 0o755), (self.data, 0o750), (self.logs, 0o700)):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
        # A user without rights passes through here.
        self.path.chmod(0o755)

    def on_disk(self) -> list[str]:
        """Give the releases that are there, by number."""
        try:
            found = [entry.name for entry in self.releases.iterdir() if number_of(entry.name)]
        except FileNotFoundError:
            return []
        return sorted(found, key=number_of)

    def switch(self, release: str) -> None:
        """Make a release the current one; whoever looks sees the one or the other."""
        fresh = self.path / f".current-{secrets.token_hex(4)}"
        fresh.symlink_to(Path("releases", release))
        try:
            fresh.replace(self.current)
        except OSError:
            fresh.unlink()
            raise
        sync(self.path)


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file that is there whole or not at all, even if the power fails."""
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
