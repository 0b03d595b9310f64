"""A MariaDB server for a test: of its own, in a folder of its own, gone when the test is over."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from spinal.bus.server import free_ports

#: Seconds that the server may take to start.
READY: Final = 60

#: Debian keeps servers where not everybody looks.
_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))


def available() -> str | None:
    """Say why there can be no server, or nothing."""
    if any(shutil.which(name, path=_PATH) is None for name in ("mariadbd", "mariadb-install-db")):
        return "MariaDB is not installed (Debian: apt install mariadb-server)"
    if find_spec("pymysql") is None:
        return "PyMySQL is not installed (pip install 'spinal[mysql]')"
    return None


class MariaDb:
    """A server with the user ``root`` without a password, on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_ports().c2s
        # It does not run as root unless it is told to.
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        found = shutil.which("mariadbd", path=_PATH)
        assert found is not None, available()
        self._base = Path(found).parent.parent
        install = shutil.which("mariadb-install-db", path=_PATH)
        assert install is not None, available()
        done = subprocess.run(
            [
                install,
                "--no-defaults",
                "--auth-root-authentication-method=normal",
                *self._options(),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=READY,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self._process: subprocess.Popen[bytes] | None = None

    def _options(self) -> list[str]:
        return [
            f"--basedir={self._base}",
            f"--datadir={self._folder / 'data'}",
            f"--user={self._user}",
        ]

    def url(self, database: str = "shop") -> str:
        """Give the URL of a database, as SQLAlchemy takes it."""
        return f"mysql+pymysql://root@127.0.0.1:{self._port}/{database}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        found = shutil.which("mariadbd", path=_PATH)
        assert found is not None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(found, "--no-defaults", *self._options(), "--skip-log-bin"),
                    *("--bind-address=127.0.0.1", f"--port={self._port}"),
                    f"--socket={self._folder / 'socket'}",
                    f"--pid-file={self._folder / 'pid'}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + READY
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.socket() as trying:
                trying.settimeout(0.1)
                trying.connect(("127.0.0.1", self._port))
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
        raise AssertionError((self._folder / "log").read_text())

    def kill(self) -> None:
        """SIGKILL it; nothing if it is down."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def server() -> Generator[MariaDb]:
    """Run a server."""
    with tempfile.TemporaryDirectory(prefix="spinal-maria-") as name:
        running = MariaDb(Path(name))
        try:
            running.start()
            yield running
        finally:
            running.kill()
