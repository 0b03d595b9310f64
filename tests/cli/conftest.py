import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Outcome:
    """How one run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line that it said on stderr."""
        (found,) = self.err.splitlines()
        return found


Spinal = Callable[..., Outcome]


def environment(home: Path) -> dict[str, str]:
    """Give what a child process needs to find the package and the home."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("SPINAL_")}
    path = os.pathsep.join(filter(None, sys.path))
    return {**kept, "PYTHONPATH": path, "SPINAL_HOME": str(home)}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the home of the test is, or will be."""
    return tmp_path / "home"


@pytest.fixture
def spinal(place: Path) -> Spinal:
    """Run the command line in a process of its own."""

    def run(*words: str, timeout: float = 60, **variables: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "spinal", *words],
            env={**environment(place), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run
