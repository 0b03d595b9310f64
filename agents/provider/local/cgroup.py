"""A control group of its own for a machine that has its own systemd, which takes it for the root.

Without one systemd-nspawn would give all machines the same, below the group that we are in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger()

#: Seconds until a group whose processes have ended can be removed, and between two attempts.
GONE_WITHIN: Final = 1.0
PAUSE: Final = 0.02


def make(name: str) -> list[Path]:
    """Make the groups, and give the files to which a process writes ``0`` to enter them.

    Where we may not make any there are none, and machines share one.
    """
    entries: list[Path] = []
    for folder in _folders(name):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as exc:
            log.info("no_cgroup", folder=str(folder), error=str(exc))
        else:
            entries.append(folder / "cgroup.procs")
    return entries


def remove(name: str) -> None:
    """Remove the groups, in which nothing runs any more, with those that were made below them."""
    for folder in _folders(name):
        until = time.monotonic() + GONE_WITHIN
        while folder.exists():
            for path, _, _ in os.walk(folder, topdown=False):
                with suppress(OSError):  # Busy: what was in it is just vanishing.
                    os.rmdir(path)
            if folder.exists():
                if time.monotonic() > until:
                    log.warning("cgroup_not_removed", folder=str(folder))
                    break
                time.sleep(PAUSE)


def _folders(name: str) -> Iterator[Path]:
    """Give the folder of a group in each hierarchy that systemd uses (cgroups(7))."""
    for mount, controllers in _hierarchies():
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, of, ours = line.split(":", 2)
            if of == controllers:
                yield mount / ours.lstrip("/") / name


def _hierarchies() -> Iterator[tuple[Path, str]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc(5): mount point is the fifth field; type and options follow a lone hyphen.
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mount = Path(before.split(" ")[4])
        if kind == "cgroup2":
            yield mount, ""
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            yield mount, "name=systemd"
