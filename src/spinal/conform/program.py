"""The agent's process, where the run starts and ends it itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from spinal.agents.errors import AgentError

#: Lines of its output that are kept for an error's text.
KEPT: Final = 20
#: Seconds that it may take to end when the run is over.
GRACE: Final = 5.0


class Program:
    """A command that is an agent; an async context manager that leaves no process behind.

    It is started in a process group of its own, which is killed with it.

    Args:
        argv: the command and its arguments.
        environ: its environment.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self._argv = argv
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        #: What it said last, on either stream.
        self.lines: deque[str] = deque(maxlen=KEPT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            self._signal(signal.SIGTERM)
            try:
                await self.ended(GRACE)
            except TimeoutError:
                pass  # It is killed below.
        await self.kill()

    async def start(self) -> None:
        """Start it.

        Raises:
            AgentError: there is no such program.
        """
        await self.kill()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(self._environ),
                start_new_session=True,
                limit=1024 * 1024,
            )
        except OSError as exc:
            name = Path(self._argv[0]).name
            raise AgentError(f"cannot start {name}: {exc.strerror}; check the command") from exc
        self._reader = asyncio.create_task(self._read(self._process), name="read the agent")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(65536):
            self.lines.extend(data.decode("utf-8", "replace").splitlines())

    async def kill(self) -> None:
        """Kill it with all that it started, and wait for its end."""
        process = self._process
        if process is None:
            return
        self._signal(signal.SIGKILL)
        await process.wait()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        process._transport.close()  # type: ignore[attr-defined]  # pyright: ignore
        self._process = self._reader = None

    async def stop(self) -> None:
        """Ask it to drain and end."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def ended(self, within: float) -> int:
        """Wait for its end and give its exit status.

        Raises:
            TimeoutError: it goes on.
        """
        assert self._process is not None
        async with asyncio.timeout(within):
            return await self._process.wait()

    def said(self) -> str:
        """Give its last words."""
        return " | ".join(list(self.lines)[-3:])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass  # It has ended, and nobody of its group is left.
