"""Worker processes for plain functions.

Our own, and not :mod:`concurrent.futures`, because a pool there cannot do what an operation needs:
end one call by killing its process with all that it started, leaving the others alone; go on after
a process died, and say of which signal; carry progress, log lines and data back while the function
runs; and tell what a run cost.  Processes are started when work waits for them, used again, and
replaced when they died.  Whatever happens, each call ends, and no process outlives the pool.

A function must stand at the top of its file, because a worker loads the file (``worker.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog

import spinal
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem, duration

from . import frames, process
from .errors import AgentError, CommandFailed
from .job import Channel, Facts
from .process import Process

log = structlog.get_logger()

#: Seconds that a worker may take to load the agent's file.
START_WITHIN: Final = 60.0


class Died(Exception):
    """A worker ended by itself."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a function returned."""

    value: Json
    files: list[frames.File]


class Pool:
    """The worker processes of one agent's file; an async context manager.

    Args:
        file: the agent's file.
        agent: the agent's name, as in the file.
        size: most processes at once.
        grace: seconds between asking a cancelled function to end and killing it.
    """

    def __init__(self, file: Path, agent: str, size: int, *, grace: float = process.GRACE) -> None:
        self._file = file
        self._agent = agent
        self._grace = grace
        self._room = asyncio.Semaphore(size)
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def pids(self) -> list[int]:
        """Numbers of the process groups that are there."""
        return [worker.pid for worker in self._workers]

    async def run(
        self,
        facts: Facts,
        args: Mapping[str, Json],
        channel: Channel,
        *,
        folder: Path,
        files: Mapping[str, Path] | None = None,
        timeout: float | None = None,
    ) -> Outcome:
        """Run an operation's function in a worker.

        ``timeout`` counts from the moment a worker is ready.  On cancellation and after the
        timeout the worker and all it started are gone when this returns.

        Args:
            facts: which operation, for whom.
            args: arguments that fit its schema.
            channel: where its progress, log lines, data and cost go.
            folder: where to put blobs of the result; made on demand, removed by the caller.
            files: sha-256 of a blob in ``args`` -> the file it was fetched to.
            timeout: seconds it may run.

        Raises:
            CallError: it raised, ran too long, or its worker could not start or died.
        """
        call = frames.Call(
            facts.id,
            facts.op,
            facts.caller,
            facts.attempt,
            channel.remaining,
            dict(args),
            {sha256: str(path) for sha256, path in (files or {}).items()},
            str(folder),
        )
        async with self._room:
            while True:
                async with self._worker() as worker:
                    used = worker.used
                    bound = asyncio.timeout(timeout)
                    try:
                        async with bound:
                            return await worker.run(call, channel)
                    except TimeoutError as exc:
                        if not bound.expired():
                            raise
                        ran = duration.write(timeout or 0.0)
                        text = f"ran longer than its timeout of {ran}"
                        raise CallError.of(Problem("deadline", text)) from exc
                    except Died as exc:
                        if worker.began or not used:
                            raise CallError.of(Problem("failed", str(exc))) from exc
                        # It died while it was idle: nothing has run, so a new one may.

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncGenerator[_Worker]:
        """Lend a worker that is ready; one that is not idle afterwards is ended."""
        if self._closed:
            raise CallError.of(Problem("draining"))
        while self._idle:
            worker = self._idle.pop()
            if not worker.ended:
                break
            await self._end(worker)
        else:
            worker = await self._start()
        try:
            yield worker
        finally:
            if worker.idle and not self._closed:
                self._idle.append(worker)
            else:
                await self._end(worker)

    async def _start(self) -> _Worker:
        worker = _Worker.start()
        self._workers.add(worker)
        try:
            async with asyncio.timeout(START_WITHIN):
                await worker.load(self._file, self._agent)
        except TimeoutError as exc:
            await self._end(worker)
            text = f"{self._file} did not load in a worker within {START_WITHIN:g} s"
            raise CallError.of(Problem("failed", text)) from exc
        except (Died, AgentError) as exc:
            await self._end(worker)
            text = f"a worker process could not load the agent: {exc}"
            raise CallError.of(Problem("failed", text)) from exc
        except BaseException:
            await self._end(worker)
            raise
        return worker

    async def _end(self, worker: _Worker) -> None:
        try:
            await worker.end(self._grace)
        finally:
            self._workers.discard(worker)

    async def close(self) -> None:
        """End all processes; calls that run are killed with them."""
        self._closed = True
        self._idle.clear()
        if self._workers:
            await asyncio.gather(*(self._end(worker) for worker in list(self._workers)))


class _Worker:
    """One worker process, as the agent sees it."""

    def __init__(self, process: Process, connection: socket.socket) -> None:
        self._process = process
        self._connection = connection
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        #: It has run something before.
        self.used = False
        #: Its present call's function was started.
        self.began = False
        #: It waits for a call.
        self.idle = False

    @classmethod
    def start(cls) -> _Worker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        # Where this very package is, whatever sys.path says; the worker puts PYTHONPATH back.
        root = str(Path(spinal.__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with theirs:
            try:
                started = Process.start(
                    # -P: the current folder must not come before the library (sys.path[0]).
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "spinal.agents.worker",
                        str(theirs.fileno()),
                    ],
                    stdout=2,
                    env={**os.environ, "PYTHONPATH": path},
                    pass_fds=[theirs.fileno()],
                )
            except CommandFailed as exc:
                ours.close()
                raise CallError.of(Problem("failed", str(exc))) from exc
            except BaseException:
                ours.close()
                raise
        return cls(started, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.ended

    async def load(self, file: Path, agent: str) -> None:
        """Have it load the agent's file; raises AgentError or Died."""
        self._reader, self._writer = await asyncio.open_unix_connection(
            sock=self._connection, limit=2 * frames.MAX_FRAME
        )
        path = [entry or os.getcwd() for entry in sys.path]
        await self._tell(frames.Load(str(file), agent, path, os.environ.get("PYTHONPATH")))
        match await self._hear():
            case frames.Ready():
                self.idle = True
            case frames.Broken(text):
                raise AgentError(text)
            case said:
                raise Died(f"worker process said {said!r:.100} instead of loading")

    async def run(self, call: frames.Call, channel: Channel) -> Outcome:
        """Run a call to its end."""
        self.idle = self.began = False
        self.used = True
        await self._tell(call)
        while True:
            match await self._hear():
                case frames.Began():
                    self.began = True
                case frames.Progress(done, total, note):
                    channel.progress(done, total, note)
                case frames.Log(text, level):
                    channel.log(text, level)
                case frames.Data(value):
                    await channel.data(value)
                    await self._tell(frames.Taken())
                case frames.Value(value, files, cost):
                    self.idle = True
                    channel.spent(cost.cpu, cost.memory)
                    return Outcome(value, files)
                case frames.Failed(reason, text, traceback, cost):
                    self.idle = True
                    channel.spent(cost.cpu, cost.memory)
                    if traceback:
                        log.warning(
                            "function_raised",
                            op=call.op,
                            id=call.id,
                            error=text,
                            cpu=cost.cpu,
                            memory=cost.memory,
                            exception=traceback,
                        )
                    raise CallError.of(Problem(reason, text))
                case said:
                    raise Died(f"worker process said {said!r:.100} in the middle of a call")

    async def _tell(self, frame: frames.Frame) -> None:
        assert self._writer is not None
        try:
            self._writer.write(frames.write(frame))
            await self._writer.drain()
        except OSError as exc:
            raise await self._death() from exc

    async def _hear(self) -> frames.Said:
        assert self._reader is not None
        try:
            size = frames.length(await self._reader.readexactly(4))
            return frames.read_said(await self._reader.readexactly(size))
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise await self._death() from exc
        except (ValueError, msgspec.MsgspecError) as exc:
            raise Died(f"worker process said what is no frame: {exc}") from exc

    async def _death(self) -> Died:
        """Say how it died; what only closed its socket is ended first."""
        try:
            async with asyncio.timeout(2 * process.GONE_WITHIN):
                ended = await self._process.wait()
        except TimeoutError:
            return Died("worker process closed its connection")
        log.warning("worker_died", pid=self.pid, how=str(ended), cpu=ended.cpu, memory=ended.memory)
        return Died(f"worker process died ({ended})")

    async def end(self, grace: float) -> None:
        """End it with all that it started; when this returns it is gone."""
        self.idle = False
        try:
            await self._process.end(grace)
        finally:
            if self._writer is None:
                self._connection.close()
            else:
                self._writer.close()
                with contextlib.suppress(OSError):
                    await self._writer.wait_closed()
