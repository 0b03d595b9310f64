"""Machines with a system of their own: systemd and real cloud-init, by systemd-nspawn.

What a vendor's image does with user-data, it does as well: cloud-init reads it from a NoCloud seed.
The system's root (:mod:`.image`) is shared and never written; what a machine changes lies over it
(overlayfs).  All mounts are in a mount namespace of the warden, and so vanish with it however it
ends.  The network is this machine's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from spinal.bus.server.files import write

from ...process import unrunnable
from . import cgroup
from .isolation import Isolation, Plan

#: Folder of what a machine changes in its system; it is what an image holds.
UPPER: Final = "upper"
#: Where a machine's script finds its own folder.
HOME: Final = "/root"

#: What is put into a machine's system, which cannot change it: file or folder here, and place there.
PUT: Final = {
    "seed": "/var/lib/cloud/seed/nocloud",
    "manager.conf": "/etc/systemd/system.conf.d/spinal.conf",
    "cloud.cfg": "/etc/cloud/cloud.cfg.d/99-spinal.cfg",
}

#: What cloud-init is not to do: look for other clouds; set up a network that is not the machine's
#: own; make what the programs are not there for.
CLOUD: Final = """\
datasource_list: [NoCloud, None]
network: {config: disabled}
locale: C.UTF-8
ssh_genkeytypes: []
"""

#: Where systemd-nspawn keeps a folder for each machine.
PROPAGATED: Final = "/run/systemd/nspawn/propagate"

#: What separates in options of mount(8) and in arguments of systemd-nspawn(1).
_SEPARATORS: Final = frozenset(",:\\")


class Nspawn(Isolation):
    """See the module.

    Args:
        root: the system.
    """

    name = "nspawn"
    grace = 8.0
    # systemd-nspawn alone, which asks the system inside to shut down (SIGRTMIN+3).
    asked = (0, 1)
    wrapper = ("unshare", "--mount", "--propagation", "slave", "--")
    kept = UPPER
    image = "root"

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def missing(self) -> str:
        """See :meth:`Isolation.missing`."""
        if os.geteuid() != 0:
            return "it takes root"
        for program in ("systemd-nspawn", "unshare", "mount"):
            if why := unrunnable(program):
                return why
        if self._root is None:
            return "give the root of a system"
        if not (self._root / "usr" / "bin" / "cloud-init").exists():
            return f"{self._root} has no cloud-init: make it by python -m {__package__}.image"
        return ""

    def refuses(self, user_data: bytes) -> str:
        """See :meth:`Isolation.refuses`: cloud-init takes more than scripts."""
        return ""

    def prepare(self, plan: Plan) -> Sequence[Path]:
        """See :meth:`Isolation.prepare`."""
        for path in (plan.place, self._root):
            if _SEPARATORS.intersection(str(path)):
                raise OSError(f"the path {str(path)!r} has one of , : \\ in it")
        for name in (UPPER, "work", "system", "seed"):
            (plan.place / name).mkdir(mode=0o755)
        about = {"instance-id": plan.id, "local-hostname": plan.name}
        write(plan.place / "seed" / "meta-data", json.dumps(about).encode(), 0o600)
        os.link(plan.place / "user-data", plan.place / "seed" / "user-data")
        own = super().environment(plan)
        for outside in ("PATH", "LANG", "SPINAL_PYTHON"):
            # Unless somebody has said what it is inside.
            if outside not in plan.environment:
                del own[outside]
        own |= {"HOME": HOME, "SPINAL_MACHINE_DIR": HOME}
        words = " ".join(_word(f"{name}={value}") for name, value in own.items())
        content = f"[Manager]\nDefaultEnvironment={words}\n"
        write(plan.place / "manager.conf", content.encode(), 0o644)
        write(plan.place / "cloud.cfg", CLOUD.encode(), 0o644)
        return cgroup.make(plan.id)

    @staticmethod
    def clear(id: str) -> None:
        """See :meth:`Isolation.clear`."""
        with suppress(OSError):  # Only one that was killed has left it.
            os.rmdir(f"{PROPAGATED}/{id}")
        cgroup.remove(id)

    def steps(self, plan: Plan) -> list[list[str]]:
        """See :meth:`Isolation.steps`."""
        layers = (
            f"lowerdir={self._root},upperdir={plan.place / UPPER},workdir={plan.place / 'work'}"
        )
        mount = ["mount", "-t", "overlay", "overlay", "-o", layers, str(plan.place / "system")]
        *before, last = super().steps(plan)
        return [*before, mount, last]

    def argv(self, plan: Plan) -> list[str]:
        """See :meth:`Isolation.argv`."""
        argv = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"]
        argv += ["--directory", str(plan.place / "system")]
        argv += ["--machine", plan.id, "--hostname", plan.name, "--link-journal=no"]
        # Of its first process, which outlives a killed systemd-nspawn, and by this is found.
        argv += [f"--setenv=SPINAL_MACHINE_ID={plan.id}"]
        return argv + [f"--bind-ro={plan.place / here}:{there}" for here, there in PUT.items()]

    def environment(self, plan: Plan) -> dict[str, str]:
        """Give the variables of systemd-nspawn; those of the machine are in its system."""
        return {"PATH": plan.path, "LANG": "C.UTF-8", "SPINAL_MACHINE_ID": plan.id}

    def limits(self, plan: Plan) -> dict[str, int]:
        """See :meth:`Isolation.limits`: none, as the system inside sets its own."""
        return {}


def _word(text: str) -> str:
    """Write one word as systemd reads it (systemd.syntax(7))."""
    return '"' + "".join(_escaped(text)) + '"'


def _escaped(text: str) -> Iterable[str]:
    special = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "%": "%%"}
    return (special.get(letter, letter) for letter in text)
