"""What the peers need: an environment of their own, and programs of the system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ..children import ROOT

#: Made by ``make bench`` from ``peers.txt``; another one can be named.
FOLDER = Path(os.environ.get("PEERS", ROOT / ".venv-peers"))
PYTHON = FOLDER / "bin" / "python"

_LIST = (
    "import importlib.metadata, json;"
    "print(json.dumps({d.name.lower(): d.version for d in importlib.metadata.distributions()}))"
)


def missing(packages: Sequence[str] = (), programs: Sequence[str] = ()) -> str | None:
    """Give None if all of them are there, else one line that says what is not."""
    for name in packages:
        if name not in versions():
            return f"{name} is not in {FOLDER.name}: `make bench` installs benchmarks/peers.txt"
    for name in programs:
        if program(name) is None:
            return f"{name} is not installed: `make bench-deps`, or `apt install {name}`"
    return None


def program(name: str) -> str | None:
    """Find a program of the system, also among the administrator's."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


@cache
def versions() -> dict[str, str]:
    """Give the versions of the packages in the peers' environment, by name in lower case."""
    if not PYTHON.exists():
        return {}
    found: dict[str, str] = json.loads(subprocess.check_output([PYTHON, "-c", _LIST], text=True))
    return found


@cache
def version(name: str) -> str:
    """Give the first line that a program of the system says of its version."""
    found = program(name)
    if found is None:
        return "not installed"
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return (said.stdout or said.stderr).strip().partition("\n")[0]
