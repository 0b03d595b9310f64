"""Services of systemd: what is written, what systemd is told, and that what a unit says runs.

No machine that tests run on is run by systemd; so its manager is a program that notes what it is
told, but where systemctl works on the image of a machine, it is the real one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.conftest import MISSING

from spinal.testing import eventually

from .conftest import Outcome, Spinal, environment, spinal_at, spinal_here

MANIFEST = """\
agent: numbers
ops:
  /numbers/factor:
    args: {number: {type: integer, minimum: 1}}
    command: [factor, "{number}"]
    effects: reads
"""
UNIT = "spinal-wrap-numbers.service"


@pytest.fixture
def here(place: Path) -> Spinal:
    return spinal_here(place)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.yaml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture
def booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that systemd runs, as far as we can tell; gives the file of what it was told."""
    told = tmp_path / "told"
    tool = tmp_path / "bin/systemctl"
    tool.parent.mkdir()
    tool.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "systemd 254 (254.1)" && exit\necho "$*" >> {told}\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("spinal.cli.install.BOOTED", tmp_path)
    monkeypatch.setattr("spinal.cli.install.UNITS", tmp_path / "etc/systemd/system")
    monkeypatch.setattr("spinal.cli.install.SECRETS", tmp_path / "etc/spinal")
    monkeypatch.setattr("spinal.cli.install.STORE", tmp_path / "etc/credstore")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    # So that it is a service of ours whoever runs the tests.
    monkeypatch.setattr("spinal.cli.install.os.geteuid", lambda: 1000)
    return told


def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spinal.cli.install.os.geteuid", lambda: 0)


def nothing(*_: object) -> None:
    pass


def login(tmp_path: Path) -> dict[str, str]:
    password = tmp_path / "password"
    password.write_text("secret words\n")
    password.chmod(0o600)
    return {
        "SPINAL_ADDRESS": "numbers@example.org",
        "SPINAL_PASSWORD_FILE": str(password),
        "SPINAL_SERVER": "bus.example.org:5222",
    }


def settings(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_without_systemd_nothing_is_written_and_one_line_says_so(
    here: Spinal, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spinal.cli.install.BOOTED", tmp_path / "none")
    before = sorted(tmp_path.rglob("*"))

    done = here("wrap", "install", str(manifest))

    assert done.code == 2
    assert "systemd does not run this machine, so nothing was written" in done.line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_unit_is_shown_without_touching_anything(
    here: Spinal, manifest: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))

    done = here("wrap", "install", str(manifest), "--print", **login(tmp_path))

    assert done.code == 0, done.err
    assert settings(done.out, "ExecStart") == [f"{sys.executable} -m spinal wrap run {manifest}"]
    assert "secret words" not in done.out
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "password"])


def test_a_manifest_with_mistakes_is_not_installed(
    here: Spinal, manifest: Path, booted: Path
) -> None:
    manifest.write_text(MANIFEST.replace("factor,", "no-such-program,"))

    done = here("wrap", "install", str(manifest))

    assert done.code == 2
    assert "numbers.yaml:5" in done.err and "is not here" in done.err
    assert not booted.exists()


def test_a_service_of_a_user_is_written_enabled_and_started(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path
) -> None:
    done = here("wrap", "install", str(manifest), **login(tmp_path))

    place = tmp_path / "config/systemd/user" / UNIT
    assert done.code == 0, done.err
    assert booted.read_text().splitlines() == [
        "--user daemon-reload",
        f"--user enable {UNIT}",
        f"--user restart {UNIT}",
    ]
    assert '"SPINAL_ADDRESS=numbers@example.org"' in settings(place.read_text(), "Environment")
    assert f"wrote {place}" in done.err
    assert f"systemctl --user status {UNIT}" in done.err
    assert f"journalctl --user --unit {UNIT}" in done.err


def test_it_may_be_left_for_the_next_start_of_the_machine(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path
) -> None:
    here("wrap", "install", str(manifest), "--no-start", **login(tmp_path))

    assert booted.read_text().splitlines() == ["--user daemon-reload", f"--user enable {UNIT}"]


def test_a_service_of_the_system_gets_its_password_from_systemd(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_root(monkeypatch)
    # Folders of a test are in /tmp and closed to others.
    for check in ("_check_place", "_check_readable"):
        monkeypatch.setattr(f"spinal.cli.install._Planner.{check}", nothing)

    folder = tmp_path / "a b"
    folder.mkdir()
    done = here("wrap", "install", str(manifest), "--write", str(folder), **login(tmp_path))

    assert done.code == 0, done.err
    text = (tmp_path / "etc/systemd/system" / UNIT).read_text()
    assert settings(text, "User") == ["spinal-numbers"]
    assert settings(text, "DynamicUser") == ["yes"]
    assert settings(text, "LoadCredential") == [f"spinal-password:{tmp_path}/password"]
    assert '"SPINAL_PASSWORD_FILE=%d/spinal-password"' in settings(text, "Environment")
    assert settings(text, "ReadWritePaths") == [f'"{folder}"']
    assert settings(text, "RestartMaxDelaySec") == ["2min"], "systemd is of version 254"
    assert booted.read_text().splitlines()[-1] == f"restart {UNIT}"


def test_a_user_of_its_own_has_to_be_able_to_read_the_manifest(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_root(monkeypatch)
    in_tmp = here("wrap", "install", "/tmp/x.yaml", **login(tmp_path))
    assert in_tmp.code == 2 and "No such file" in in_tmp.err
    manifest.chmod(0o600)
    monkeypatch.setattr("spinal.cli.install.PRIVATE", ())

    done = here("wrap", "install", str(manifest), **login(tmp_path))

    assert done.code == 2
    assert "spinal-numbers cannot read" in done.line
    assert not booted.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--user", "nobody-of-this-name"), "useradd --system nobody-of-this-name"),
        (("--write", "/no/such/folder"), "there is no such folder"),
    ],
)
def test_what_would_keep_it_from_starting_is_told_before(
    here: Spinal,
    manifest: Path,
    booted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, str],
    says: str,
) -> None:
    as_root(monkeypatch)
    monkeypatch.setattr("spinal.cli.install.PRIVATE", ())

    done = here("wrap", "install", str(manifest), *words, **login(tmp_path))

    assert done.code == 2
    assert says in done.line
    assert not booted.exists()


def test_a_manifest_in_tmp_would_not_be_seen(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_root(monkeypatch)
    monkeypatch.setattr("spinal.cli.install.PRIVATE", (str(tmp_path),))

    done = here("wrap", "install", str(manifest), **login(tmp_path))

    assert done.code == 2
    assert "has a /tmp of its own" in done.line


def test_secrets_of_the_environment_go_into_a_file_that_others_cannot_read(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path
) -> None:
    manifest.write_text(MANIFEST + "    env: {TOKEN: {env: NUMBERS_TOKEN}}\n")

    missing = here("wrap", "install", str(manifest), **login(tmp_path))
    done = here("wrap", "install", str(manifest), NUMBERS_TOKEN='a "b"', **login(tmp_path))

    kept = tmp_path / "config/spinal/wrap-numbers.env"
    assert missing.code == 2 and "NUMBERS_TOKEN" in missing.err
    assert done.code == 0, done.err
    assert kept.read_text() == 'NUMBERS_TOKEN="a \\"b\\""\n'
    assert mode(kept) == 0o600
    unit = (tmp_path / "config/systemd/user" / UNIT).read_text()
    assert settings(unit, "EnvironmentFile") == [str(kept)]
    assert 'a "b"' not in unit


def test_credentials_of_the_manifest_are_loaded_from_where_they_are_said_to_be(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path
) -> None:
    manifest.write_text(MANIFEST + "    env: {TOKEN: {credential: token}}\n")
    source = tmp_path / "token"
    words = ("wrap", "install", str(manifest))

    nowhere = here(*words, **login(tmp_path))
    unknown = here(*words, "--credential", f"other={source}", **login(tmp_path))
    source.write_text("x")
    done = here(*words, "--credential", f"token={source}", **login(tmp_path))

    assert nowhere.code == 2 and "--credential token=PATH" in nowhere.line
    assert unknown.code == 2 and "{credential: other}" in unknown.line
    assert done.code == 0, done.err
    unit = (tmp_path / "config/systemd/user" / UNIT).read_text()
    assert settings(unit, "LoadCredential") == [f"token:{source}"]


def test_it_is_taken_away_with_all_that_was_written(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path
) -> None:
    manifest.write_text(MANIFEST + "    env: {TOKEN: {env: NUMBERS_TOKEN}}\n")
    words = ("wrap", "install", str(manifest))
    here(*words, NUMBERS_TOKEN="x", **login(tmp_path))
    other = tmp_path / "config/spinal/wrap-numbers.two.env"
    other.write_text("")
    booted.unlink()

    done = here(*words, "--uninstall", "--json")
    again = here(*words, "--uninstall")

    assert done.json["removed"] == [
        f"{tmp_path}/config/systemd/user/{UNIT}",
        f"{tmp_path}/config/spinal/wrap-numbers.env",
    ]
    assert booted.read_text().splitlines() == [
        f"--user disable --now {UNIT}",
        "--user daemon-reload",
    ]
    assert other.exists()
    assert again.code == 2 and "is not installed" in again.line


def test_what_systemd_says_against_it_is_told(
    here: Spinal, manifest: Path, booted: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin/systemctl").write_text(
        '#!/bin/sh\necho "Failed to connect to bus" >&2\nexit 1\n'
    )

    done = here("wrap", "install", str(manifest), **login(tmp_path))

    assert done.code != 0
    assert "systemctl --user daemon-reload: Failed to connect to bus" in done.err


# -- into an image, and what the unit says, for real


@pytest.fixture
def image(tmp_path: Path) -> Path:
    if shutil.which("systemctl") is None:
        pytest.skip(f"{MISSING} systemctl (Debian: systemd)")
    folder = tmp_path / "image"
    (folder / "etc/spinal").mkdir(parents=True)
    (folder / "etc/spinal/numbers.yaml").write_text(MANIFEST)
    return folder


def installed(spinal: Spinal, image: Path, *more: str, **variables: str) -> Outcome:
    manifest = image / "etc/spinal/numbers.yaml"
    return spinal("wrap", "install", str(manifest), "--root", str(image), *more, **variables)


def test_an_image_gets_the_unit_its_secrets_and_is_told_to_start_it(
    here: Spinal, image: Path, tmp_path: Path
) -> None:
    done = installed(here, image, **login(tmp_path))

    unit = image / "etc/systemd/system" / UNIT
    password = image / "etc/spinal/wrap-numbers.spinal-password"
    assert done.code == 0, done.err
    assert settings(unit.read_text(), "ExecStart")[0].endswith(" wrap run /etc/spinal/numbers.yaml")
    assert settings(unit.read_text(), "LoadCredential") == [
        "spinal-password:/etc/spinal/wrap-numbers.spinal-password"
    ]
    assert (password.read_text(), mode(password)) == ("secret words\n", 0o600)
    assert (image / "etc/systemd/system/multi-user.target.wants" / UNIT).is_symlink()

    assert installed(here, image, "--uninstall").code == 0
    assert sorted(path.name for path in image.rglob("*") if not path.is_dir()) == ["numbers.yaml"]


@pytest.fixture
def agent(running: Path, image: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs what the unit of an image says, as systemd would: with its variables and no others."""
    done = installed(spinal_at(running), image)
    assert done.code == 0, done.err
    text = (image / "etc/systemd/system" / UNIT).read_text()
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for line in settings(text, "LoadCredential"):
        name, _, path = line.partition(":")
        shutil.copy(image / path.lstrip("/"), credentials / name)
    (command,) = settings(text, "ExecStart")
    argv = shlex.split(command.replace("/etc/spinal", f"{image}/etc/spinal"))
    process = subprocess.Popen(argv, env=variables(text, credentials), stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        assert process.wait(30) == 0


def variables(text: str, credentials: Path) -> Mapping[str, str]:
    said = dict(
        one.strip('"').replace("%d", str(credentials)).replace("%S", str(credentials)).split("=", 1)
        for one in settings(text, "Environment")
    )
    # The package of these tests is found by this one only.
    return {
        **said,
        "PATH": os.environ["PATH"],
        "PYTHONPATH": environment(credentials)["PYTHONPATH"],
    }


async def test_what_a_unit_says_logs_in_and_answers(
    running: Path, agent: subprocess.Popen[bytes]
) -> None:
    spinal = spinal_at(running)

    await eventually(lambda: "numbers" in spinal("agents").out, 30)
    done = spinal("call", "/numbers/factor", "number=91")

    assert done.out == "91: 7 13\n", done.err
    assert agent.poll() is None
