"""Keeping parts of the platform running: starting, watching, restarting with back-off.

A part is a server or a child process.  It is watched for two things: that it ends, and that it
hangs, because a part that hangs ends no job either.  A child of ours proves that it lives by a
beat a second on a socket that it inherited, written by its event loop; the end of that socket
tells the child, in turn, that we are gone (:mod:`spinal.dispatcher.supervised` is its side).
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from spinal.bus.errors import BusError, HomeError, LoginRefused
from spinal.bus.server import Server, ServerConfig, ServerError, add_accounts, launch
from spinal.protocols import SpinalError

log = structlog.get_logger()

#: A child that is silent for longer has hung; it beats once a second.
SILENCE: Final = 3.0
#: How long a child may take until it is ready, and to end when it is asked to.
START_WITHIN: Final = 30.0
STOP_WITHIN: Final = 8.0
#: How often a server of somebody else's make is asked whether it answers, and how long it may take.
PROBE_EVERY: Final = 2.0
PROBE_WITHIN: Final = 5.0
#: How often it is looked which other parts are wanted.
LOOK_EVERY: Final = 2.0
#: A part that lived so long has recovered: the next restart is quick again.
STEADY: Final = 30.0
#: Restarts in a row after which it is called a crash loop.
LOOP: Final = 5

Report = Callable[[str, Mapping[str, object]], None]


class Part(Protocol):
    """Something that is kept running."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    async def start(self) -> None:
        """Start it and return when it is ready; nothing is left running if that fails."""
        ...

    async def ended(self) -> str:
        """Return why it has to be restarted, once it has."""
        ...

    async def stop(self) -> None:
        """End it, and wait for that, in bounded time; may be called when it does not run."""
        ...


class Others(Protocol):
    """Parts without which the platform is up as well, and which may change while it is."""

    def wanted(self) -> Mapping[str, object]:
        """Give those that are to run now, by what people call them, and what each is made by."""
        ...

    def make(self, name: str) -> Part:
        """Make one of them."""
        ...

    async def over(self, name: str, made_by: object) -> None:
        """Clean up after one that does not run any more, and that no other one follows."""
        ...


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next start; pure but for the dice."""

    first: float = 0.2
    longest: float = 10.0
    #: Restarts in a row of a part that did not live for :data:`STEADY` seconds.
    failures: int = 0
    dice: Callable[[float, float], float] = random.uniform

    def after(self, lived: float) -> float:
        """Give the pause after a life of so many seconds."""
        self.failures = 1 if lived >= STEADY else self.failures + 1
        ceiling = min(self.longest, self.first * 2 ** min(self.failures - 1, 20))
        return self.dice(ceiling / 2, ceiling)

    @property
    def looping(self) -> bool:
        """Whether it keeps dying at once."""
        return self.failures >= LOOP


async def keep(part: Part, report: Report, started: bool = True) -> None:
    """Watch a part, and start it again whenever it ends; runs until cancelled.

    Args:
        part: which.
        report: told what happens.
        started: that was done; else it is started now, and nobody waits for it.
    """
    backoff = Backoff()
    if not started:
        begun = time.monotonic()
        try:
            await part.start()
        except SpinalError as error:
            log.error("part_did_not_start", part=part.name, reason=str(error))
            await _start_again(part, report, backoff, begun, str(error))
    while True:
        begun = time.monotonic()
        why = await part.ended()
        await part.stop()
        report("died", {"part": part.name, "reason": why})
        await _start_again(part, report, backoff, begun, why)
        report("restarted", {"part": part.name})


async def _start_again(
    part: Part, report: Report, backoff: Backoff, begun: float, why: str
) -> None:
    while True:
        pause = backoff.after(time.monotonic() - begun)
        if backoff.looping:
            log.error("part_keeps_dying", part=part.name, reason=why, pause=round(pause, 1))
            report("crash-loop", {"part": part.name, "reason": why, "restarts": backoff.failures})
        await asyncio.sleep(pause)
        begun = time.monotonic()
        try:
            await part.start()
            return
        except SpinalError as error:
            why = str(error)
            log.error("part_did_not_start", part=part.name, reason=why)


class ChildProcess:
    """A part that is a child process of ours, which beats."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._name = name
        self._argv = argv
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._hung = False

    @property
    def name(self) -> str:
        """What people call it."""
        return self._name

    @property
    def pid(self) -> int | None:
        """Its process, if it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it and wait until it says that it is ready.

        Raises :class:`SpinalError` in the child's own words if it cannot.
        """
        self._hung = False
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                "--supervisor",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                env=dict(self._env),
                stdin=subprocess.DEVNULL,
                # Ours is for what we have to say; the child may only log.
                stdout=sys.stderr,
                # Ctrl-C in a terminal is for us, and we stop it in good order.
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
            async with asyncio.timeout(START_WITHIN):
                await self._ready(self._reader)
        except TimeoutError:
            self._hung = True
            await self.stop()
            raise BusError(
                f"the {self._name} was not ready within {START_WITHIN:g} s: look at its log above"
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def _ready(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            if word == "ready":
                return
            if word == "failed":
                code, _, text = rest.partition(" ")
                raise _error(code)(text)
        assert self._process is not None
        status = await self._process.wait()
        raise BusError(f"the {self._name} ended at start ({told(status)}): look at its log above")

    async def ended(self) -> str:
        """Return when the process has ended or hangs."""
        assert self._process is not None and self._reader is not None
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            try:
                async with asyncio.timeout(SILENCE):
                    line = await self._reader.readline()
            except TimeoutError:
                if loop.time() - asked > SILENCE + 1:
                    continue  # It was us who slept: the machine was suspended, or we were stopped.
                self._hung = True
                return f"it hung: nothing was heard of it for {SILENCE:g} s"
            except ConnectionError:
                line = b""
            if not line:
                return told(await self._process.wait())

    async def stop(self) -> None:
        """End it, by force if it hangs or takes longer than it may."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.returncode is None and not self._hung:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
                with suppress(TimeoutError):
                    async with asyncio.timeout(STOP_WITHIN):
                        await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            if self._writer is not None:
                self._writer.transport.abort()
                self._reader = self._writer = None
            await process.wait()


class ManagedServer:
    """A part that is an XMPP server of somebody else's make."""

    def __init__(
        self, kind: str, config: ServerConfig, accounts: Callable[[], Mapping[str, str]]
    ) -> None:
        self._kind = kind
        self._config = config
        self._accounts = accounts
        self._server: Server | None = None
        self._hung = False

    @property
    def name(self) -> str:
        """What people call it."""
        return self._kind

    async def start(self) -> None:
        """Start it and tell it all accounts; raises :class:`ServerError`."""
        self._server = await launch(self._kind, self._config)
        try:
            await add_accounts(self._kind, self._config, self._accounts())
        except BaseException:
            await self.stop()
            raise

    async def ended(self) -> str:
        """Return when it has ended, or has not answered twice in a row."""
        assert self._server is not None
        ended = asyncio.ensure_future(self._server.wait())
        misses = 0
        try:
            while True:
                done, _ = await asyncio.wait([ended], timeout=PROBE_EVERY)
                if done:
                    return told(ended.result())
                try:
                    await self._server.probe(PROBE_WITHIN)
                    misses = 0
                except ServerError as error:
                    misses += 1
                    if misses == 2:
                        self._hung = True
                        return f"it hung: {error}"
        finally:
            ended.cancel()

    async def stop(self) -> None:
        """End it; the launcher bounds how long that takes."""
        server, self._server = self._server, None
        hung, self._hung = self._hung, False
        if server is not None:
            await server.stop(hung=hung)


@dataclass(slots=True)
class Platform:
    """Parts that are started one after the other and stopped in the opposite order."""

    parts: Sequence[Part]
    report: Report
    #: They are started once it is up.
    others: Others | None = None
    _started: list[Part] = field(default_factory=list[Part])
    #: Of the others that run, by name: what it was made by, the part, and what keeps it running.
    _running: dict[str, tuple[object, Part, asyncio.Task[None]]] = field(
        default_factory=dict[str, tuple[object, Part, "asyncio.Task[None]"]]
    )

    async def start(self) -> None:
        """Start all of them.  Raises what the first one raises that cannot be started."""
        for part in self.parts:
            await part.start()
            self._started.append(part)

    async def watch(self) -> None:
        """Restart what ends; runs until cancelled."""
        work = [asyncio.create_task(keep(one, self.report), name=one.name) for one in self.parts]
        if self.others is not None:
            work.append(asyncio.create_task(self._watch_others(self.others), name="others"))
        try:
            await asyncio.gather(*work)
        finally:
            work += [keeper for _, _, keeper in self._running.values()]
            for task in work:
                task.cancel()
            await asyncio.wait(work)

    async def _watch_others(self, others: Others) -> None:
        before: Mapping[str, object] | None = None
        while True:
            wanted = self._wanted(others, before or {})
            # Somebody may be just writing what says so.
            settled, before = before in (None, wanted), wanted
            if settled:
                await self._adapt(others, wanted)
            await asyncio.sleep(LOOK_EVERY)

    @staticmethod
    def _wanted(others: Others, known: Mapping[str, object] = {}) -> Mapping[str, object]:
        try:
            return others.wanted()
        except SpinalError as error:
            log.error("parts_not_looked_at", reason=str(error))
            return known

    async def _adapt(self, others: Others, wanted: Mapping[str, object]) -> None:
        """Have those run that are wanted."""
        ends = [
            name
            for name, (made_by, _, _) in self._running.items()
            if name not in wanted or wanted[name] != made_by
        ]
        await asyncio.gather(*(self._end(name) for name in ends))
        gone = {name: self._running.pop(name)[0] for name in ends}
        await self._over(others, {k: made_by for k, made_by in gone.items() if k not in wanted})
        for name in wanted.keys() - self._running.keys():
            part = others.make(name)
            keeper = asyncio.create_task(keep(part, self.report, False), name=name)
            self._running[name] = wanted[name], part, keeper

    async def _end(self, name: str) -> None:
        """End one of the others, because it is not wanted any more, or not as it is."""
        log.info("part_changed", part=name)
        _, part, keeper = self._running[name]
        keeper.cancel()
        await asyncio.wait([keeper])
        await self._stop(part)

    @staticmethod
    async def _over(others: Others, gone: Mapping[str, object]) -> None:
        async def over(name: str, made_by: object) -> None:
            try:
                await others.over(name, made_by)
            except SpinalError as error:
                log.error("part_left_something", part=name, reason=str(error))

        await asyncio.gather(*(over(name, made_by) for name, made_by in gone.items()))

    async def stop(self) -> None:
        """Stop what was started; every part gets its turn whatever happens to the others."""
        await asyncio.gather(*(self._stop(part) for _, part, _ in self._running.values()))
        # Else it may be somebody else's platform that they belong to.
        if self.others is not None and len(self._started) == len(self.parts):
            gone = {name: made_by for name, (made_by, _, _) in self._running.items()}
            # Also what those left in a former life that had no time to start in this one.
            await self._over(self.others, {**self._wanted(self.others), **gone})
        self._running.clear()
        for part in reversed(self._started):
            await self._stop(part)
        self._started.clear()

    async def _stop(self, part: Part) -> None:
        try:
            await part.stop()
        except SpinalError as error:
            log.error("part_did_not_stop", part=part.name, reason=str(error))


def told(status: int) -> str:
    """Say in words how a process ended."""
    if status >= 0:
        return f"it ended with status {status}"
    try:
        return f"it was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"it was killed by signal {-status}"


_ERRORS: Final[Mapping[str, type[SpinalError]]] = {
    "1": SpinalError,
    "2": HomeError,
    "4": BusError,
    "5": LoginRefused,
}


def _error(code: str) -> type[SpinalError]:
    return _ERRORS.get(code, SpinalError)
