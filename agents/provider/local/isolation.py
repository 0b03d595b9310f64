"""What keeps local machines apart from this machine and from each other."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

import structlog

import spinal

from ...process import unrunnable

log = structlog.get_logger()

#: Where programs are looked for if our environment does not say.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Seconds that an attempt to use bubblewrap may take.
TRY_WITHIN: Final = 10.0

#: What a machine without user-data does.
IDLE: Final = b"#!/bin/sh\nexec sleep infinity\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that it needs to say how a machine is started."""

    id: str
    name: str
    #: Where its files are (:mod:`.store`).
    place: Path
    #: Folder of all machines.
    folder: Path
    #: Bytes.
    ram: int
    #: Variables besides those that every machine has.
    environment: Mapping[str, str]
    #: Search path of programs.
    path: str
    #: Content of the image that it is made from, if it is.
    archive: Path | None = None

    @property
    def disk(self) -> Path:
        """The machine's own folder."""
        return self.place / "disk"


class Isolation(ABC):
    """One way to run machines."""

    #: As it is written in settings.
    name: ClassVar[str]
    #: Seconds that a machine may take to end by itself when it is destroyed.
    grace: ClassVar[float] = 3.0
    #: Which generations below the warden are asked to end, by SIGTERM.
    asked: ClassVar[tuple[int, int | None]] = (0, None)
    #: Put before the warden's own arguments.
    wrapper: ClassVar[tuple[str, ...]] = ()
    #: Name of the folder that an image holds, in the machine's own.
    kept: ClassVar[str] = "disk"
    #: The image that there is from the beginning.
    image: ClassVar[str] = "host"

    @abstractmethod
    def missing(self) -> str:
        """Say why it cannot be used here, and what to do; empty if it can."""

    def refuses(self, user_data: bytes) -> str:
        """Say why it cannot boot with this user-data; empty if it can."""
        return (
            ""
            if user_data.startswith(b"#!")
            else "user-data must be a script: begin with #!/bin/sh"
        )

    def steps(self, plan: Plan) -> list[list[str]]:
        """Give the programs that prepare the machine, and the one that it is."""
        before = [] if plan.archive is None else [unpacking(plan.archive, plan.place)]
        return [*before, self.argv(plan)]

    @abstractmethod
    def argv(self, plan: Plan) -> list[str]:
        """Give the program that the machine is."""

    def prepare(self, plan: Plan) -> Sequence[Path]:
        """Make what the machine needs to find; give the ``joins`` of the warden's orders."""
        return ()

    @staticmethod  # noqa: B027 - most leave nothing
    def clear(id: str) -> None:
        """Remove what outside of its folder is left of a machine that has ended."""

    def environment(self, plan: Plan) -> dict[str, str]:
        """Give the variables of the machine: nothing of our environment but these."""
        return {
            "PATH": plan.path,
            "LANG": "C.UTF-8",
            "HOME": str(plan.disk),
            "SPINAL_PYTHON": sys.executable,
            **plan.environment,
            "SPINAL_MACHINE_ID": plan.id,
            "SPINAL_MACHINE_NAME": plan.name,
            "SPINAL_MACHINE_DIR": str(plan.disk),
        }

    def limits(self, plan: Plan) -> dict[str, int]:
        """Give limits of each process of the machine.

        Not RLIMIT_AS, which counts what is reserved and never used: a thread's stack, an arena of
        malloc(3), a Java heap.  RLIMIT_DATA counts what can be written.
        """
        return {"RLIMIT_DATA": plan.ram, "RLIMIT_CORE": 0}

    def orders(self, plan: Plan, delay: float, most: int) -> dict[str, Any]:
        """Prepare a machine, and give the orders for its warden (:mod:`.warden`).

        Raises:
            OSError: it cannot be prepared.
        """
        joins = self.prepare(plan)
        return {
            "steps": self.steps(plan),
            "env": self.environment(plan),
            "cwd": str(plan.disk),
            "limits": self.limits(plan),
            "joins": [str(path) for path in joins],
            "delay": delay,
            "grace": self.grace,
            "asked": self.asked,
            "console": str(plan.place / "console.log"),
            "most": most,
            "ended": str(plan.place / "ended.json"),
        }


class Plain(Isolation):
    """Processes beside ours, of our user: kept apart by nothing, and to be had everywhere."""

    name = "process"

    def missing(self) -> str:
        """See :meth:`Isolation.missing`."""
        return "" if Path("/proc/self/stat").exists() else "there is no /proc, which Linux has"

    def argv(self, plan: Plan) -> list[str]:
        """See :meth:`Isolation.argv`."""
        return ["/bin/sh", str(plan.place / "user-data")]


#: All that does not depend on the machine.  The parent with which bwrap dies is the warden, which
#: lives as long as the machine.
_BWRAP: Final = (
    *("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
    *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--cap-drop", "ALL", "--die-with-parent"),
)


class Bubblewrap(Isolation):
    """bubblewrap: own host name, processes and /tmp; of the rest of this machine it can write nothing.

    The network is this machine's.  It does not see the folders of other machines, nor those that
    are hidden.

    Args:
        hidden: folders that machines do not see.
    """

    name = "bubblewrap"
    # Neither bwrap outside nor its first process inside, with which the rest would end at once.
    asked = (2, None)

    def __init__(self, hidden: Sequence[Path] = ()) -> None:
        self._hidden = [path.resolve() for path in hidden if path.is_dir()]

    def missing(self) -> str:
        """See :meth:`Isolation.missing`."""
        return _tried()

    def argv(self, plan: Plan) -> list[str]:
        """See :meth:`Isolation.argv`."""
        covered = [Path("/tmp"), *self._hidden, plan.folder]
        script = str(plan.place / "user-data")
        mounts = {path: ["--tmpfs", str(path)] for path in covered}
        # The Python and the Spinal that are here are to be used, wherever they are.
        for path in _own():
            if any(path.is_relative_to(cover) for cover in covered):
                mounts[path] = ["--ro-bind", str(path), str(path)]
        argv = [*_BWRAP]
        # What lies in another one comes after it: it is hidden in what is shown, or shown in what is
        # hidden.
        for path in sorted(mounts, key=lambda path: len(path.parts)):
            argv += mounts[path]
        argv += ["--ro-bind", script, script, "--bind", str(plan.disk), str(plan.disk)]
        return [*argv, "--hostname", plan.name, "--chdir", str(plan.disk), "--", "/bin/sh", script]


def _own() -> list[Path]:
    """Give the folders that hold our Python and Spinal."""
    packages = [Path(place) for place in spinal.__path__]
    real = {path.resolve().parent for place in packages for path in [place, *place.iterdir()]}
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), *(place.parent for place in packages)}
    return sorted(prefixes | real)


@cache
def _tried() -> str:
    """Use bubblewrap once, because being there says little: a container may forbid what it needs."""
    if why := unrunnable("bwrap"):
        return why
    argv = [*_BWRAP, "--tmpfs", "/tmp", "--hostname", "machine", "--", "true"]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRY_WITHIN, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"bubblewrap does not work here: {exc}"
    said = done.stderr.decode(errors="replace").strip()
    return "" if done.returncode == 0 else f"bubblewrap does not work here: {said or done}"


def unpacking(archive: Path, place: Path) -> list[str]:
    """Give the program that unpacks an image into a machine's place."""
    attributes = ["--xattrs", "--xattrs-include=*"]
    return ["tar", "--extract", "--gzip", "--file", str(archive), *attributes, "-C", str(place)]


def packing(place: Path, kept: str) -> list[str]:
    """Give the program that packs a machine's own folder; it ends with 1 if that changed meanwhile."""
    attributes = ["--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner"]
    ignored = [
        "--warning=no-file-changed",
        "--warning=no-file-removed",
        "--warning=no-file-ignored",
    ]
    return [
        "tar",
        "--create",
        "--gzip",
        "--file",
        "-",
        *attributes,
        *ignored,
        "-C",
        str(place),
        kept,
    ]
