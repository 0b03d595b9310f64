"""Files that are replaced in one step and never readable by more people than meant."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Replace the file; whoever reads it sees the old content or all of the new one.

    ``owner`` is a user and group id.  A link that somebody put in its place is replaced, not
    followed.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            if owner is not None:
                os.fchown(file.fileno(), *owner)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
