from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.needs import needs


def make(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spinal.agents.provider.local.image", *argv],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_system_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "usr" / "bin" / "cloud-init").touch()

    done = make(str(tmp_path))

    assert (done.returncode, done.stdout) == (0, f"{tmp_path}: is there already\n")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note").touch()

    done = make(str(tmp_path))

    assert done.returncode == 1
    assert done.stderr == (
        f"image: {tmp_path} is there, and is no system with cloud-init: give another folder\n"
    )
    assert (tmp_path / "note").exists()


@needs("mmdebstrap")
def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    done = make(str(tmp_path / "root"), "--mirror", "http://127.0.0.1:1/debian")

    assert done.returncode == 1
    assert done.stderr.startswith("image: mmdebstrap ended with ")
    assert list(tmp_path.iterdir()) == []
