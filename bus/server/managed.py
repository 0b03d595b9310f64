"""What the servers that run as programs of their own have in common.

Each lives in a folder of its own below the home.  Its configuration names that folder
``/proc/self/cwd``, and it is started there: so paths never get too long for a socket, and a user
without rights can run it although the home lies where only root may go.
"""

from __future__ import annotations

import asyncio
import os
import time
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import structlog

from . import certificates, ports
from .child import LINUX, POLL, Child, Owner, end_leftover
from .contract import ServerConfig
from .errors import ServerError, ServerMissing
from .files import write
from .launched import Launched

log = structlog.get_logger()

#: What an account's name may not contain (RFC 7622, 3.3.1), besides white space.
_FORBIDDEN: Final = frozenset("\"&'/:<>@")


class ManagedServer(Launched):
    """A :class:`~spinal.bus.server.contract.Server` in a child process.

    ``name`` is that of its folder and of its Debian package as well.
    """

    def __init__(self, config: ServerConfig, ca: Path, child: Child) -> None:
        self.config = config
        self._ca = ca
        self._child = child

    @classmethod
    async def start(cls, config: ServerConfig) -> Self:
        """Start it and return when it takes logins.

        Raises :class:`PortTaken` or :class:`ServerMissing`, and :class:`ServerError` with the
        server's own words if it does not come up.  Nothing is left running then, nor when the
        call is cancelled.
        """
        program = cls.find()
        if program is None:
            raise cls._not_installed()
        config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await end_leftover(cls.name, config.folder)
        ports.check(config)
        owner = Owner.choose()
        names = [config.upload_host, config.upload_domain, *config.components]
        if ports.reachable(config.listen) == config.listen:
            names.append(config.listen)
        files = certificates.ensure(config.folder, config.domain, names)
        cwd = cls.place(config)
        cwd.mkdir(exist_ok=True, mode=0o700)
        cls._fill(config, cwd, files, owner)
        if owner is not None:
            owner.give(cwd)
        base = "/proc/self/cwd" if LINUX else str(cwd)
        argv, extra = cls._command(program, base)
        # Nothing else of ours: it may hold secrets.
        path = os.environ.get("PATH", os.defpath)
        env = {"PATH": path, "LANG": "C.UTF-8", "HOME": base, **extra}
        begun = time.monotonic()
        child = await Child.start(
            cls.name, argv, folder=config.folder, cwd=cwd, env=env, owner=owner
        )
        server = cls(config, files.ca, child)
        try:
            await server._ready()
        except BaseException:
            await child.stop(grace=0)
            raise
        took = round(time.monotonic() - begun, 3)
        log.info("server_started", server=cls.name, pid=child.pid, took=took)
        return server

    # What differs from server to server.

    @classmethod
    @abstractmethod
    def find(cls) -> Path | None:
        """Give where its program is on this machine, None if it is not installed."""

    @classmethod
    @abstractmethod
    def _command(cls, program: Path, base: str) -> tuple[Sequence[str], Mapping[str, str]]:
        """Give the arguments, and what comes to the environment, of a server in ``base``."""

    @classmethod
    @abstractmethod
    def _configuration(cls, config: ServerConfig, base: str) -> tuple[str, str]:
        """Give name and text of the configuration file."""

    # What does not.

    @classmethod
    def missing(cls) -> ServerMissing | None:
        """Give None if it can be started here, else the error that says how to install it."""
        return cls._not_installed() if cls.find() is None else None

    @classmethod
    def _not_installed(cls) -> ServerMissing:
        return ServerMissing(
            f"{cls.name} is not installed: run `make test-deps` or `apt-get install {cls.name}`"
        )

    @classmethod
    def place(cls, config: ServerConfig) -> Path:
        """Give the folder that the server itself writes to."""
        return config.folder / cls.name

    @classmethod
    def admin_socket(cls, config: ServerConfig) -> Path:
        """Give the socket that takes orders; who may enter the folder may give them."""
        return cls.place(config) / "admin.sock"

    @property
    def ca(self) -> Path:
        """The certificate authority (PEM) that clients of this server trust."""
        return self._ca

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._child.pid

    async def wait(self) -> int:
        """Return the exit status once the process has ended by itself or was killed."""
        return await self._child.wait()

    async def stop(self, *, hung: bool = False) -> None:
        """End it and wait until its ports are free; one that hangs is not asked, but killed.

        Calling it again does nothing.
        """
        await self._child.stop(0.0 if hung else self.stop_within)
        self.admin_socket(self.config).unlink(missing_ok=True)

    @classmethod
    def _fill(
        cls,
        config: ServerConfig,
        cwd: Path,
        files: certificates.Certificates,
        owner: Owner | None,
    ) -> None:
        """Write what the server reads at start."""
        ids = None if owner is None else (owner.uid, owner.gid)
        base = "/proc/self/cwd" if LINUX else str(cwd)
        name, text = cls._configuration(config, base)
        write(cwd / name, text.encode(), 0o600, ids)
        write(cwd / "tls.pem", files.combined.read_bytes(), 0o600, ids)
        write(cwd / "ca.pem", files.ca.read_bytes(), 0o644, ids)
        cls.admin_socket(config).unlink(missing_ok=True)

    async def _ready(self) -> None:
        deadline = time.monotonic() + self.start_within
        while True:
            if self._child.ended:
                status = await self._child.wait()
                raise ServerError(
                    f"{self.name} ended at start (status {status}): {self._child.last_words()}"
                )
            try:
                for what, host, port in ports.endpoints(self.config):
                    if what == "components" and not self.config.components:
                        continue  # Where none may come, nobody listens.
                    _, writer = await asyncio.open_connection(ports.reachable(host), port)
                    writer.transport.abort()
                if self.admin_socket(self.config).exists():
                    await self.probe(timeout=max(0.1, deadline - time.monotonic()))
                    return
            except (OSError, ServerError) as error:
                last = error
            else:
                last = ServerError("its admin socket is not there")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.name} was not ready within {self.start_within:g} s ({last}): "
                    f"{self._child.last_words()}"
                )
            await asyncio.sleep(POLL)


def checked(name: str) -> str:
    """Give the account's name back, or raise :class:`ServerError` if it can be none."""
    if not name or len(name.encode()) > 1023 or any(c in _FORBIDDEN or c.isspace() for c in name):
        raise ServerError(f"{name!r} cannot be an account's name: use letters, digits, - _ .")
    return name


@contextmanager
def short_path(socket: Path) -> Generator[str]:
    """Give another name of the socket that is short enough to connect to (unix(7), 108 bytes)."""
    if not LINUX:
        yield str(socket)
        return
    folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        os.close(folder)
