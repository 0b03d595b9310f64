from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spinal.bus.errors import BusError
from spinal.cli import crew
from spinal.cli.enrol import Folder


def test_a_package_that_is_here_is_not_installed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/python/at/all")
    folder = Folder(tmp_path)
    crew.install(folder, ["click", "structlog"])
    assert not folder.packages.exists()


def test_one_that_is_not_here_or_must_be_of_a_version_is_left_to_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(crew, "INSTALLS", 1)
    for package in ("no-such-package-anywhere", "click>=8", "/etc/passwd"):
        with pytest.raises(BusError, match=package):
            crew.install(Folder(tmp_path), [package])
