from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import spinal
from spinal.dispatcher.joining import wheel
from spinal.dispatcher.joining.ticket import JoiningError

PACKAGE = Path(spinal.__file__).parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> wheel.Wheel:
    return wheel.build(tmp_path_factory.mktemp("wheels"))


def test_the_same_files_give_the_same_wheel(built: wheel.Wheel, tmp_path: Path) -> None:
    again = wheel.build(tmp_path)

    assert again.sha256 == built.sha256 == hashlib.sha256(built.path.read_bytes()).hexdigest()
    assert wheel.kept(tmp_path, again.sha256) == again.path
    assert wheel.kept(tmp_path, "0" * 64) is None
    assert wheel.kept(tmp_path, "../..") is None


def test_it_holds_every_module_that_can_be_imported_here(built: wheel.Wheel) -> None:
    names = set(zipfile.ZipFile(built.path).namelist())
    found = {
        f"spinal/{part}{path.relative_to(folder).as_posix()}"
        for part, folder in (
            ("", PACKAGE),
            *((f"{one}/", PACKAGE / one) for one in ("agents", "bus", "dispatcher", "protocols")),
        )
        for path in folder.rglob("*.py")
    }

    assert found <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_pip_takes_it_and_what_it_says_of_itself_is_what_the_project_says(
    built: wheel.Wheel, tmp_path: Path
) -> None:
    # What is needed besides is here already; this is about our own files.
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(tmp_path), str(built.path)],
        check=True,
    )
    (info,) = tmp_path.glob("*.dist-info")
    about = Parser().parsestr((info / "METADATA").read_text())

    said = subprocess.run(
        [sys.executable, "-c", "import spinal; print(spinal.__file__, spinal.__version__)"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.split() == [str(tmp_path / "spinal/__init__.py"), spinal.__version__]
    assert about["Requires-Python"] == ">=3.11"
    needs = about.get_all("Requires-Dist") or []
    assert "slixmpp>=1.17,<1.18" in needs
    assert "uvloop>=0.20; (platform_system != 'Windows') and extra == 'speed'" in needs
    assert "speed" in (about.get_all("Provides-Extra") or [])
    assert "spinal = spinal.cli:main" in (info / "entry_points.txt").read_text()


def test_from_an_installed_package_comes_the_wheel_that_was_installed(
    built: wheel.Wheel, tmp_path: Path
) -> None:
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "-q"]
    site = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(built.path)],
        check=True,
    )
    program = (
        "import sys; from pathlib import Path; from spinal.dispatcher.joining import wheel; "
        "import spinal; assert spinal.__file__.startswith(sys.argv[2]), spinal.__file__; "
        "print(wheel.build(Path(sys.argv[1])).sha256)"
    )

    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "wheels"), str(site)],
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.strip() == built.sha256


def test_what_is_neither_installed_nor_a_checkout_is_said(tmp_path: Path) -> None:
    package = tmp_path / "src" / "spinal"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")

    with pytest.raises(JoiningError, match="install spinal with pip"):
        wheel.build(tmp_path / "wheels", package)


def test_few_old_wheels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "KEPT", 2)
    content = iter((b"1", b"2", b"3"))

    def files(package: Path) -> dict[str, bytes]:
        return {"a.dist-info/X": next(content)}

    monkeypatch.setattr(wheel, "_files", files)

    built = [wheel.build(tmp_path) for _ in range(3)]

    assert [one.path.exists() for one in built] == [False, True, True]
