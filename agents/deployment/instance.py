"""One release that is kept running.

Theory of operation.  :meth:`Instance.begin` is one start, and raises unless the service becomes
well.  :meth:`Instance.keep` hands it to a task that watches it, ends what is not well any longer,
waits by ``backoff.py`` and starts it again, for ever: a service that keeps failing stays in
back-off, and says so.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

import structlog

from spinal.protocols import SpinalError, duration

from ..errors import describe, one_line
from ..process import Process
from . import backoff, health
from .command import Launcher
from .errors import DeployFailed
from .finish import finish
from .kinds import Kind, Site
from .logs import LogFile
from .ports import is_free
from .spec import Spec

log = structlog.get_logger()

#: Bytes that are read of a service's output at a time.
CHUNK: Final = 64 * 1024
#: Bytes of the end of its output that are told when a start fails.
LAST_WORDS: Final = 4096
#: Seconds that a service without a check must run to count as well.
ALIVE: Final = 1.0
#: Seconds between two looks at one that is to become well, at first; then as the service says.
EAGER: Final = 0.1
#: Failures in a row after which the release is made anew, once for each row.
RENEW_AFTER: Final = 4
#: Restarts that are remembered.
MAX_RESTARTS: Final = 20
#: Seconds that its last output may take to arrive once it has ended.
OUTPUT_WITHIN: Final = 1.0


@dataclass(frozen=True, slots=True)
class Restart:
    """One time that a service was started anew."""

    #: Seconds since 1970.
    at: float
    why: str


class Instance:
    """A release, its process, and how it goes.

    Args:
        spec: what is to run.
        release: name of the release.
        port: the one that it was given.
        make: gives where and how it runs, with secrets read; called before each start.
        renew: makes the release anew on disk; called when it keeps failing.
        kind: how releases of its kind are started.
        launcher: starts programs.
        log_file: takes what it writes.
    """

    def __init__(
        self,
        spec: Spec,
        release: str,
        port: int | None,
        make: Callable[[], Site],
        renew: Callable[[], Awaitable[None]],
        kind: Kind,
        launcher: Launcher,
        log_file: LogFile,
    ) -> None:
        self.spec = spec
        self.release = release
        self.port = port
        self._make = make
        self._renew = renew
        self._kind = kind
        self._launcher = launcher
        self.log = log_file
        #: ``stopped``, ``starting``, ``running`` or ``backing off``; ``failed`` by our own mistake.
        self.state = "stopped"
        #: Why it is not well; empty while it is.
        self.ailment = ""
        #: Seconds since 1970 of its latest start.
        self.since: float | None = None
        #: Failures in a row.
        self.failures = 0
        self.restarts: deque[Restart] = deque(maxlen=MAX_RESTARTS)
        #: Seconds since 1970 when the release was last made anew because it kept failing.
        self.renewed: float | None = None
        #: How many there were, with those that are forgotten.
        self.restarted = 0
        self._site: Site | None = None
        self._process: Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._words = bytearray()
        #: It is not just starting.
        self._settled = asyncio.Event()
        self._settled.set()

    async def settled(self) -> None:
        """Wait until a start that is under way has come to an end, good or bad."""
        await self._settled.wait()

    @property
    def pid(self) -> int | None:
        """Number of its process, while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def last_words(self) -> list[str]:
        """The last lines that it wrote since its latest start."""
        return self._words.decode("utf-8", "replace").splitlines()[-20:]

    async def begin(self) -> None:
        """Start it and see it become well; then :meth:`keep` it.

        Cancelled or failed, its process is gone when this raises.

        Raises:
            DeployFailed: it does not run, or is not well in time; with the end of its log.
            Refused: it asks for what it may not have.
            AgentError: a secret cannot be read.
        """
        try:
            await self._start()
            await self._become_well()
        except BaseException as exc:
            self.ailment = one_line(str(exc), 300)
            await finish(self._end())
            self.state = "stopped"
            self._settled.set()
            raise

    def keep(self) -> None:
        """Watch over it from now on; start it first if it does not run."""
        assert self._keeper is None, "it is kept already"
        self._keeper = asyncio.create_task(self._keep(), name="keeps a service")
        self._keeper.add_done_callback(self._left_alone)

    async def stop(self) -> None:
        """End it: SIGTERM, after 5 seconds SIGKILL, the whole group.

        It is gone when this returns, and also when this is cancelled.
        """
        await finish(self._stop())

    async def _stop(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        await self._end()
        self.state = "stopped"
        self._settled.set()

    def _left_alone(self, keeper: asyncio.Task[None]) -> None:
        """Say so if nobody keeps it any more, which is a mistake of ours."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            log.error("keeper_died", service=self.spec.service, exc_info=error)
            self.state, self.ailment = "failed", describe(error)
            self._settled.set()

    # -- one run

    async def _start(self) -> None:
        self.state = "starting"
        self._settled.clear()
        self._words.clear()
        site = self._site = await asyncio.to_thread(self._make)
        if site.port is not None and not is_free(site.port):
            # Else whoever has it would be taken for the service.
            raise DeployFailed(f"port {site.port} is taken by another program")
        await self._kind.clear(site)
        command = await asyncio.to_thread(self._kind.command, site)
        self._process = self._launcher.start(command)
        self.since = time.time()
        pipe, _ = self._process.pipes
        assert pipe is not None, "asked for by the launcher"
        self._pump = asyncio.create_task(self._drain(pipe), name="reads a service's output")

    async def _become_well(self) -> None:
        """Wait until it is well.

        Raises:
            DeployFailed: it ended, or was not well in time.
        """
        process, site, spec = self._process, self._site, self.spec
        assert process is not None and site is not None, "it was started"
        loop = asyncio.get_running_loop()
        began = loop.time()
        pause = EAGER
        while True:
            if spec.health.how == "alive":
                wait, why = min(ALIVE, spec.health.within), ""
            else:
                wait, why = 0.0, await self._look(site)
            if await self._ends(process, wait):
                raise DeployFailed(f"it ended at once: {await self._obituary(process)}")
            if not why:
                self._well()
                return
            self.ailment = why
            if loop.time() - began >= spec.health.within:
                within = duration.write(spec.health.within)
                said = await self._said()
                raise DeployFailed(f"it was not well within {within}: {why}{said}")
            await self._ends(process, pause)
            pause = min(pause * 1.5, spec.health.every)

    def _well(self) -> None:
        self.state, self.ailment = "running", ""
        self._settled.set()

    async def _watch(self) -> str:
        """Watch one that is well, and give why it has to be started anew."""
        process, site, spec = self._process, self._site, self.spec
        assert process is not None and site is not None, "it was started"
        failed = 0
        while not await self._ends(process, spec.health.every):
            why = await self._look(site)
            failed = failed + 1 if why else 0
            self.ailment = why
            if failed >= spec.health.fail_after:
                return f"not well {failed} times: {why}"
        return f"it ended: {await self._obituary(process)}"

    async def _look(self, site: Site) -> str:
        return await health.look(site, self._kind, self._launcher)

    async def _ends(self, process: Process, within: float) -> bool:
        if not process.ended:
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await process.wait()
        return process.ended

    async def _obituary(self, process: Process) -> str:
        ended = await process.wait()
        return f"{ended}{await self._said()}"

    async def _said(self) -> str:
        """Give the end of what it wrote, for an error."""
        if self._process is not None and self._process.ended and self._pump is not None:
            await asyncio.wait([self._pump], timeout=OUTPUT_WITHIN)
        words = " | ".join(line.strip() for line in self.last_words if line.strip())
        return f"; its last words: {words[-600:]}" if words else "; it said nothing"

    async def _end(self) -> None:
        """End its process and all that came with it."""
        process, pump, site = self._process, self._pump, self._site
        self._process = self._pump = None
        try:
            if process is not None:
                await process.end()
        finally:
            if pump is not None:
                await asyncio.wait([pump], timeout=OUTPUT_WITHIN)
                pump.cancel()
                await asyncio.wait([pump])
            await asyncio.to_thread(self.log.close)
            if process is not None and site is not None:
                try:
                    await self._kind.clear(site)
                except SpinalError as exc:
                    log.warning("not_cleared", service=self.spec.service, error=str(exc))

    async def _drain(self, pipe: IO[bytes]) -> None:
        """Write what the service writes; it waits while the disk does."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(CHUNK)
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        broken = False
        try:
            while data := await reader.read(CHUNK):
                self._words += data[-LAST_WORDS:]
                del self._words[:-LAST_WORDS]
                try:
                    # To the end, so that nothing writes once this task has ended.
                    await finish(asyncio.to_thread(self.log.append, data))
                except OSError as exc:
                    # A full disk is no reason to stop a service; what it says is lost.
                    if not broken:
                        log.error("log_not_written", file=str(self.log.path), error=str(exc))
                    broken = True
                self.log.tell(data)
        finally:
            transport.close()

    # -- for ever

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            ran = 0.0
            if self._process is None:
                why = await self._try()
            else:
                began = loop.time()
                why = await self._watch()
                ran = loop.time() - began
            if why:
                await finish(self._end())
                await self._back_off(why, ran)

    async def _try(self) -> str:
        """Start it again; give why that failed, or nothing."""
        renewed = self.failures == RENEW_AFTER
        try:
            if renewed:
                # Somebody may have damaged it.
                await self._renew()
                self.renewed = time.time()
            await self._start()
            await self._become_well()
        except (SpinalError, OSError) as exc:
            return f"also when made anew: {exc}" if renewed else str(exc)
        return ""

    async def _back_off(self, why: str, ran: float) -> None:
        restart = self.spec.restart
        self.ailment = why = one_line(why, 500)
        self.failures = backoff.failures(self.failures, ran, restart)
        wait = backoff.wait(self.failures, restart, random.random())
        self.state = "backing off"
        self._settled.set()
        log.warning(
            "service_failed",
            service=self.spec.service,
            release=self.release,
            why=why,
            failures=self.failures,
            starts_again_in=round(wait, 3),
        )
        await asyncio.sleep(wait)
        self.restarts.append(Restart(time.time(), why))
        self.restarted += 1
