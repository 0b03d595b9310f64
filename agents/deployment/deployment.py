"""All services of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Final

import structlog

from spinal.bus.tasks import Tasks
from spinal.protocols import SpinalError

from ..errors import AgentError, Refused, one_line
from ..process import Guard
from . import elsewhere, unpack
from .command import Launcher
from .config import Config
from .elsewhere import Rows
from .fetch import Fetcher
from .kinds import kinds
from .layout import Folder
from .ports import Ports
from .service import Means, Service
from .spec import NAME

if TYPE_CHECKING:
    from ..life import Life

log = structlog.get_logger()

#: Names that may be under way besides the services that are here.
MAX_NEW: Final = 100


class Deployment:
    """The services under a root folder, which nobody else uses meanwhile.

    Args:
        config: what may be done.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._services: dict[str, Service] = {}
        self._users: Counter[str] = Counter()
        self._means: Means | None = None
        self._life: Life | None = None

    @property
    def draining(self) -> bool:
        """Whether the agent takes nothing new, and is to end soon."""
        return self._life is not None and self._life.state == "draining"

    def load(self) -> float:
        """Give how full this machine is: of services, or of changes that are under way.

        By changes alone all machines would look alike most of the time, and all services would
        go to one of them.
        """
        wanted = sum(service.wanted for service in self._services.values())
        changes = 0.0 if self._life is None else self._life.slots.load
        return round(max(changes, wanted / self._config.limits.services), 3)

    @asynccontextmanager
    async def live(self, life: Life) -> AsyncGenerator[None]:
        """Keep the services running for a life of the agent: its lifespan.

        Raises:
            AgentError: the root folder cannot be used, or another agent uses it.
        """

        async def ask() -> Rows:
            return await elsewhere.ask(life, elsewhere.WITHIN)

        self._life = life
        try:
            async with self.run(life.guard, lambda: life.address, ask):
                yield
        finally:
            self._life = None

    @asynccontextmanager
    async def run(
        self,
        guard: Guard | None,
        address: Callable[[], str],
        ask: Callable[[], Awaitable[Rows]],
    ) -> AsyncGenerator[None]:
        """Keep the services running for the length of a block.

        Args:
            guard: ends what runs if we are killed.
            address: gives ours on the bus.
            ask: gives what a dispatcher knows of services, before those that are here are started.
        """
        with self._root():
            limits = self._config.limits
            fetcher = Fetcher(
                self._config.root / "cache",
                self._config.allowed,
                most=limits.fetched,
                room=limits.cache,
                ca=self._config.ca,
            )
            self._means = Means(
                self._config,
                kinds(self._config, fetcher, guard),
                Launcher(self._config, guard),
                Ports(*self._config.ports),
            )
            await asyncio.to_thread(self._load)
            tasks = Tasks("deployment")
            tasks.spawn(self._resume(address, ask), "resume")
            try:
                yield
            finally:
                await tasks.close()
                # Together, because each may take 5 seconds to end.
                ends = (service.close() for service in self._services.values())
                for one in await asyncio.gather(*ends, return_exceptions=True):
                    if isinstance(one, BaseException):
                        log.error("service_not_ended", exc_info=one)
                self._services.clear()
                self._means = None

    @contextmanager
    def _root(self) -> Generator[None]:
        """Hold the root folder."""
        root = self._config.root
        try:
            for path in (root, root / "services"):
                path.mkdir(parents=True, exist_ok=True)
            if self._config.user is not None:
                # Services pass through, and see nothing.
                for path in (root, root / "services"):
                    path.chmod(0o711)
            (root / "cache").mkdir(0o700, exist_ok=True)
            descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise AgentError(f"cannot use {root}: {exc.strerror}: give another 'root'") from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(descriptor)
            raise AgentError(f"another deployment agent uses {root}: give each its own") from exc
        try:
            yield
        finally:
            os.close(descriptor)

    def _load(self) -> None:
        """Find the services of former lives."""
        assert self._means is not None
        for path in (self._config.root / "cache").glob(".*"):
            path.unlink()  # Half of a fetch that nobody goes on with.
        for path in sorted((self._config.root / "services").iterdir()):
            if fullmatch(NAME, path.name) and path.is_dir() and not path.is_symlink():
                self._services[path.name] = Service(path.name, Folder(path), self._means)

    async def _resume(self, address: Callable[[], str], ask: Callable[[], Awaitable[Rows]]) -> None:
        """Start again what ran, unless a newer generation runs elsewhere."""
        rows: Rows = {}
        if any(service.wanted and service.generation for service in self._services.values()):
            rows = await ask()
        async with asyncio.TaskGroup() as group:
            for name, service in list(self._services.items()):
                row = rows.get(name) if service.wanted else None
                why = elsewhere.superseded(row, service.generation, address()) if row else ""
                if why:
                    service.hold("superseded", why)
                    log.warning("service_superseded", service=name, why=why)
                else:
                    group.create_task(self._resume_one(service))

    async def _resume_one(self, service: Service) -> None:
        try:
            await service.resume()
        except (OSError, SpinalError) as exc:
            service.hold("failed", one_line(str(exc), 300))
            log.error("service_not_resumed", service=service.name, exc_info=exc)

    @contextmanager
    def at(self, name: str) -> Generator[Service]:
        """Give a service to change, which may be a new one.

        Raises:
            Refused: the name is none, or there are too many services.
        """
        assert self._means is not None, "the agent is on the bus"
        service = self._services.get(name)
        if service is None:
            if not fullmatch(NAME, name):
                raise Refused(f"{name[:100]!r} is no name of a service")
            if len(self._services) >= self._config.limits.services + MAX_NEW:
                raise Refused("too many services are being deployed here")
            folder = Folder(self._config.root / "services" / name)
            service = self._services[name] = Service(name, folder, self._means)
        self._users[name] += 1
        try:
            yield service
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]
                if service.forgettable:
                    self._services.pop(name, None)
                    with contextlib.suppress(OSError):  # What is left is found by the next life.
                        unpack.remove(service.folder.path)

    def admit(self, name: str) -> None:
        """See that there is room for a service.

        Raises:
            Refused: there are as many as there may be.
        """
        most = self._config.limits.services
        known = self._services.get(name)
        if known is not None and known.wanted:
            return
        if sum(service.wanted for service in self._services.values()) >= most:
            raise Refused(f"there are {most} services here already")

    def find(self, name: str) -> Service:
        """Give a service that is here.

        Raises:
            Refused: there is none of that name.
        """
        service = self._services.get(name)
        if service is None:
            known = ", ".join(one.name for one in self.all()) or "none"
            raise Refused(f"there is no service {name[:100]!r} here: there is {known}")
        return service

    def all(self) -> list[Service]:
        """Give the services that are to run here, by name."""
        return [service for _, service in sorted(self._services.items()) if service.wanted]

    @property
    def root(self) -> Path:
        """Where they are."""
        return self._config.root
