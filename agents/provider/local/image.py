"""Makes the system that nspawn machines begin with: Debian with systemd, cloud-init and Python.

``python -m spinal.agents.provider.local.image DIR``.  Takes root, mmdebstrap, and half a minute.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from ...errors import AgentError
from ...process import unrunnable

SUITE: Final = "bookworm"
MIRROR: Final = "http://deb.debian.org/debian"
PACKAGES: Final = ("systemd", "systemd-sysv", "cloud-init", "ca-certificates", "python3-venv")


def build(folder: Path, *, suite: str = SUITE, mirror: str = MIRROR) -> bool:
    """Make the system in a folder; tell whether that had to be done.

    The folder is there when it is complete, and not before.

    Raises:
        AgentError: it cannot be made; with the last words of mmdebstrap.
    """
    if (folder / "usr" / "bin" / "cloud-init").exists():
        return False
    if folder.exists():
        raise AgentError(
            f"{folder} is there, and is no system with cloud-init: give another folder"
        )
    if why := unrunnable("mmdebstrap"):
        raise AgentError(why)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as draft:
        system = Path(draft) / "root"
        argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "--mode=root"]
        done = subprocess.run(
            [*argv, suite, str(system), mirror],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
            raise AgentError(f"mmdebstrap ended with {done.returncode}: {' | '.join(last)}")
        # Its own for each machine, and made at its first start.
        (system / "etc" / "machine-id").write_text("")
        (system / "etc" / "hostname").unlink(missing_ok=True)
        shutil.move(system, folder)
    return True


def main() -> int:
    """Make it, and say so."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.image", description=__doc__)
    parser.add_argument("folder", type=Path, help="where it is to be; must not exist yet")
    parser.add_argument("--suite", default=SUITE, help="release of Debian")
    parser.add_argument("--mirror", default=MIRROR)
    given = parser.parse_args()
    try:
        made = build(given.folder.absolute(), suite=given.suite, mirror=given.mirror)
    except (AgentError, OSError) as exc:
        print(f"image: {exc}", file=sys.stderr)
        return 1
    print(f"{given.folder}: {'made' if made else 'is there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
