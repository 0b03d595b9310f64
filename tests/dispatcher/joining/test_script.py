from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spinal.bus.server.certificates import Certificates, ensure
from spinal.dispatcher.joining.script import MAX_BYTES, Boot, script
from spinal.dispatcher.joining.ticket import JoiningError

WHEEL = b"the bytes of a wheel"


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return ensure(tmp_path / "authority", "bus.test")


@pytest.fixture
def boot(files: Certificates) -> Boot:
    return Boot(
        name="web-1",
        ticket="web-1/abcdef",
        url="https://127.0.0.1:2",
        ca=files.ca.read_text(),
        version="0.1.0",
        wheel="spinal-0.1.0-py3-none-any.whl",
        sha256=hashlib.sha256(WHEEL).hexdigest(),
    )


#: A program that notes what it was called with, in the place of an interpreter.
NOTER = """#!/bin/sh
if [ "$1" = -c ]; then echo {version}; exit; fi
for word in "$@"; do printf '%s\\n' "$word"; done > called
"""


def run(
    text: str, folder: Path, shell: str = "sh", **environ: str
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    (folder / "user-data").write_text(text)
    return subprocess.run(
        [*shell.split(), str(folder / "user-data")],
        env={"PATH": os.environ["PATH"], "SPINAL_MACHINE_DIR": str(folder), **environ},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def noter(folder: Path, version: str = "0.1.0") -> str:
    path = folder / "python of ours"
    path.write_text(NOTER.format(version=version))
    path.chmod(0o755)
    return str(path)


SHELLS = ["sh", "dash", "bash --posix", "busybox sh"]


def there(shell: str) -> str:
    if shutil.which(shell.split()[0]) is None:
        pytest.skip(f"MISSING: {shell.split()[0]}")
    return shell


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_reads_it(boot: Boot, shell: str, tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text(script(boot))

    subprocess.run([*there(shell).split(), "-n", str(tmp_path / "user-data")], check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_with_an_interpreter_that_has_spinal_it_joins_at_once(
    boot: Boot, shell: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a machine's folder"

    ended = run(script(boot), folder, there(shell), SPINAL_PYTHON=noter(tmp_path))

    assert ended.returncode == 0, ended.stderr
    assert (folder / "called").read_text().splitlines() == [
        *("-m", "spinal", "join", "https://127.0.0.1:2", "--name", "web-1"),
        *("--folder", str(folder), "--ca", "desk.pem", "--ticket-file", "ticket"),
    ]
    assert (folder / "ticket").read_text() == "web-1/abcdef\n"
    assert (folder / "desk.pem").read_text() == boot.ca
    assert {(folder / name).stat().st_mode & 0o077 for name in ("ticket", "desk.pem")} == {0}


def test_a_machine_that_has_joined_gets_no_ticket_again(boot: Boot, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "machine.json").write_text('{"address":"web-1@bus.test","servers":[]}')

    ended = run(script(boot), tmp_path / "m", SPINAL_PYTHON=noter(tmp_path))

    assert ended.returncode == 0
    assert not (tmp_path / "m" / "ticket").exists()


@pytest.mark.parametrize("other", ["web-2", "web-11", "eb-1"])
def test_one_whose_disk_is_another_machines_shows_its_ticket(
    boot: Boot, other: str, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    known = tmp_path / "m" / "machine.json"
    known.write_text(f'{{"address":"{other}@bus.test","place":{{"machine":"/web-1"}}}}')

    ended = run(script(boot), tmp_path / "m", SPINAL_PYTHON=noter(tmp_path))

    assert ended.returncode == 0
    assert (tmp_path / "m" / "ticket").read_text() == "web-1/abcdef\n"
    assert known.exists()


def test_an_interpreter_with_another_version_is_not_used(boot: Boot, tmp_path: Path) -> None:
    ended = run(script(boot), tmp_path / "m", SPINAL_PYTHON=noter(tmp_path, "0.0.9"))

    assert ended.returncode == 1
    assert ended.stderr == "spinal: SPINAL_PYTHON has Spinal 0.0.9, and the home has 0.1.0\n"


def test_nothing_of_a_value_is_run(boot: Boot, tmp_path: Path) -> None:
    # None of this gets past the checks of a ticket; the script must not depend on that.
    evil = "x'; touch hit; '\"$(touch hit)`touch hit`\\;@ticket@"

    ended = run(
        script(replace(boot, name=evil, ticket=evil, wheel=evil)),
        tmp_path / "m",
        SPINAL_PYTHON=noter(tmp_path),
    )

    assert ended.returncode == 0, ended.stderr
    assert not (tmp_path / "m" / "hit").exists()
    assert evil in (tmp_path / "m" / "called").read_text().splitlines()
    assert (tmp_path / "m" / "ticket").read_text() == f"{evil}\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a\nb"}, "cannot stand"),
        ({"name": "ä"}, "cannot stand"),
        ({"url": "http://127.0.0.1:1"}, "no address of a desk"),
        ({"ca": "END OF CA\ntouch hit\n"}, "no certificate"),
        ({"index": "https://x/' ; touch hit"}, "no package index"),
        ({"index": "file:///etc"}, "no package index"),
        ({"name": "a" * MAX_BYTES}, "longer than"),
    ],
)
def test_what_cannot_stand_in_a_script_is_refused(
    boot: Boot, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(JoiningError, match=said):
        script(replace(boot, **changes))


def test_it_is_small_and_its_only_secret_is_the_ticket(boot: Boot) -> None:
    text = script(boot)

    assert len(text) < 6000
    assert text.count(boot.ticket) == 1
    assert "PRIVATE" not in text
    assert "@" not in text.replace('"$@"', "").replace('$name@"', "")


class _Handler(http.server.BaseHTTPRequestHandler):
    asked: list[str]
    content: bytes

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if len(type(self).asked) == 1:
            self.send_error(503)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(type(self).content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def desk(files: Certificates, content: bytes) -> Generator[tuple[str, list[str]]]:
    """A server whose first answer is an error."""

    class Handler(_Handler):
        pass

    handler = Handler
    handler.asked, handler.content = [], content
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}", handler.asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


#: What stands between the functions of the script and what it does with them.
_DOES = '\nif [ -n "${SPINAL_PYTHON:-}" ]; then'


def only(text: str, does: str) -> str:
    """The functions of a script, and something else to do with them."""
    head, found, _ = text.partition(_DOES)
    assert found
    return f"{head}\n{does}\n"


def path_with(folder: Path, **programs: str) -> str:
    """A search path on which a few programs are others."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    os.symlink(sys.executable, folder / "python3")
    return f"{folder}:{os.environ['PATH']}"


def test_the_wheel_is_fetched_with_patience_and_its_hash_compared(
    boot: Boot, files: Certificates, tmp_path: Path
) -> None:
    path = path_with(tmp_path / "bin", sleep='echo "$1" >> "$SPINAL_MACHINE_DIR/slept"')
    with desk(files, WHEEL) as (url, asked):
        text = only(script(replace(boot, url=url)), "again fetch")
        ended = run(text, tmp_path / "m", PATH=path)

    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "m" / boot.wheel).read_bytes() == WHEEL
    assert asked == [f"/wheels/{boot.sha256}"] * 2
    assert (tmp_path / "m" / "slept").read_text() == "1\n"


def test_another_wheel_than_the_one_that_was_promised_is_not_kept(
    boot: Boot, files: Certificates, tmp_path: Path
) -> None:
    path = path_with(tmp_path / "bin", sleep='echo "$1" >> "$SPINAL_MACHINE_DIR/slept"')
    with desk(files, WHEEL + b"!") as (url, _):
        text = only(script(replace(boot, url=url)), "fetch || fetch || echo refused >&2")
        ended = run(text, tmp_path / "m", PATH=path)

    assert "not the wheel that was promised" in ended.stderr
    assert ended.stderr.endswith("refused\n")
    assert not (tmp_path / "m" / boot.wheel).exists()


def test_a_desk_of_another_authority_gets_nothing(
    boot: Boot, files: Certificates, tmp_path: Path
) -> None:
    other = ensure(tmp_path / "other", "bus.test").ca.read_text()
    with desk(files, WHEEL) as (url, asked):
        text = only(script(replace(boot, url=url, ca=other)), "fetch || echo refused >&2")
        ended = run(text, tmp_path / "m")

    assert "CERTIFICATE_VERIFY_FAILED" in ended.stderr
    assert ended.stderr.endswith("refused\n")
    assert not asked


def test_trying_ends_and_says_what_was_tried(boot: Boot, tmp_path: Path) -> None:
    path = path_with(tmp_path / "bin", sleep='echo "$1" >> "$SPINAL_MACHINE_DIR/slept"')

    ended = run(only(script(boot), "again false it"), tmp_path / "m", PATH=path)

    assert ended.returncode == 1
    assert ended.stderr.endswith("spinal: gave up after 34 tries: false it\n")
    slept = [int(line) for line in (tmp_path / "m" / "slept").read_text().split()]
    assert slept[:6] == [1, 2, 4, 8, 16, 30]
    assert sum(slept) < 900


def test_under_systemd_it_is_a_service_that_is_back_after_a_reboot(
    boot: Boot, tmp_path: Path
) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("MISSING: systemd-analyze")
    (tmp_path / "run").mkdir()
    (tmp_path / "etc").mkdir()
    folder = tmp_path / "m"
    path = path_with(
        tmp_path / "bin", systemctl='echo "$@" >> "$SPINAL_MACHINE_DIR/systemctl"', id="echo 0"
    )
    interpreter = folder / "venv/bin/python"
    interpreter.parent.mkdir(parents=True)
    interpreter.symlink_to(sys.executable)
    (folder / "installed").write_text("0.1.0\n")
    text = script(boot).replace("/run/systemd/system", str(tmp_path / "run"))

    text = text.replace("/etc/systemd/system", str(tmp_path / "etc"))
    asked = folder / "systemctl"

    ended = run(text, folder, PATH=path)

    assert ended.returncode == 0, ended.stderr
    steps = ["daemon-reload", "enable spinal-machine.service"]
    # On a disk that was frozen, the service of another machine may have been started already.
    assert asked.read_text().splitlines() == [*steps, "restart --no-block spinal-machine.service"]
    (folder / "machine.json").write_text('{"address":"web-1@bus.test"}')
    asked.unlink()
    run(text, folder, PATH=path)
    assert asked.read_text().splitlines() == [*steps, "start --no-block spinal-machine.service"]
    unit = tmp_path / "etc" / "spinal-machine.service"
    start = f"ExecStart={interpreter} -m spinal join https://127.0.0.1:2 --name web-1"
    assert start in unit.read_text()
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "spinal-machine" not in verified.stderr, verified.stderr
