"""A PostgreSQL server for a test: of its own, in a folder of its own, gone when the test is over."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from spinal.bus.server import free_ports

#: Seconds that the server may take to start.
READY: Final = 60

_NEEDED: Final = ("initdb", "pg_ctl", "postgres")


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found is not None:
        return found
    # Debian keeps all but the clients out of the way, one folder per version.
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else None


def available() -> str | None:
    """Say why there can be no server, or nothing."""
    if any(_program(name) is None for name in _NEEDED):
        return "PostgreSQL is not installed (Debian: apt install postgresql)"
    return None


class Postgres:
    """A server with the user ``spinal``, on loopback and on a socket in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._data, self._log = folder, folder / "data", folder / "log"
        self._port = free_ports().c2s
        # It does not run as root.
        self._user = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._run("initdb", "-U", "spinal", "-A", "trust", "-E", "UTF8", "--no-sync")

    def url(self, database: str = "postgres") -> str:
        """Give the URL of a database."""
        return f"postgresql://spinal@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Start it, also after :meth:`kill`: it mends its data first."""
        self._run(
            "pg_ctl",
            *("start", "-w", "-t", str(READY), "-l", str(self._log), "-o"),
            f"-p {self._port} -c listen_addresses=127.0.0.1"
            f" -c unix_socket_directories={self._folder}",
        )

    def stop(self) -> None:
        """Shut it down in order, without waiting for clients to go."""
        self._run("pg_ctl", "stop", "-m", "fast", "-w", "-t", str(READY))

    def kill(self) -> None:
        """SIGKILL all of it; nothing if it is down."""
        processes = self._processes()
        for process in processes:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=READY)

    def freeze(self) -> None:
        """SIGSTOP all of it."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Let it go on."""
        for process in self._processes():
            # One whose client has gone ends as soon as it can.
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        try:
            first = int((self._data / "postmaster.pid").read_text().split()[0])
            server = psutil.Process(first)
            return [server, *server.children(recursive=True)]
        except (FileNotFoundError, psutil.NoSuchProcess):
            return []

    def _run(self, program: str, *words: str) -> None:
        found = _program(program)
        assert found is not None, available()
        done = subprocess.run(
            [found, *words, "-D", str(self._data)],
            user=self._user,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            # pg_ctl would hand a pipe on to the server, and we would wait for its end.
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=READY + 10,
            check=False,
        )
        said = done.stdout or (self._log.read_text() if self._log.exists() else "")
        assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{said}"


@contextmanager
def server() -> Generator[Postgres]:
    """Run a server."""
    with tempfile.TemporaryDirectory(prefix="spinal-pg-") as name:
        running = Postgres(Path(name))
        running.start()
        try:
            yield running
        finally:
            running.kill()


@contextmanager
def postgres() -> Generator[str]:
    """Run a server, and give the URL of a database."""
    with server() as running:
        yield running.url()
