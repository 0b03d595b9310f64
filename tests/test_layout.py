"""The four folders at the root are the package, and under no other name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("agents", "bus", "dispatcher", "protocols")


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_the_package(name: str) -> None:
    module = import_module(f"spinal.{name}")

    assert module.__file__ is not None
    assert Path(module.__file__).resolve().parent == ROOT / name


def test_no_folder_is_imported_bare() -> None:
    for name in FOLDERS:
        import_module(f"spinal.{name}")

    assert not set(FOLDERS) & set(sys.modules)


def test_a_checkout_without_links_says_so_in_one_line(tmp_path: Path) -> None:
    package = tmp_path / "spinal"
    package.mkdir()
    shutil.copy(ROOT / "src/spinal/__init__.py", package)
    for name in FOLDERS:
        # What git writes for a link where it may not make one.
        (package / name).write_text(f"../../{name}")

    ended = subprocess.run(
        [sys.executable, "-c", "import spinal.bus"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        check=False,
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 1
    assert "core.symlinks" in ended.stderr.splitlines()[-1]
