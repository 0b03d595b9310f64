"""The processes of one contender: started, asked, accounted for, and gone at the end."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

ROOT = Path(__file__).resolve().parent.parent
#: Seconds that a process may take to be ready, and to answer a question.
READY = 60.0
ANSWER = 600.0
#: Seconds that it may take to end: one that serves, and one that measures, perhaps in a round.
END = 15.0
LEAVE = 3.0

_C = TypeVar("_C", bound="Child")


class ContenderError(Exception):
    """A contender did not do what it should; the text says what, with its last words."""


@dataclass
class Child:
    """A process of a contender; what it says goes into a file."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        """Process id; also that of its process group."""
        return self.process.pid

    def failed(self, what: str) -> ContenderError:
        """Make the error that ends its contender."""
        words = self.log.read_text("utf-8", "replace").splitlines()[-12:]
        return ContenderError("\n".join([f"{self.name} {what}", *words]))


@dataclass
class Asked(Child):
    """A child that measures: see :mod:`benchmarks.rounds`."""

    #: Trips that it can make, by name.
    trips: Sequence[str] = ()

    async def answer(self, timeout: float) -> dict[str, Any]:
        """Give the next line that it says."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise self.failed(f"said nothing for {timeout:g} s") from None
        if not line:
            await self.process.wait()
            raise self.failed(f"ended with {self.process.returncode}")
        found: dict[str, Any] = json.loads(line)
        return found

    async def ask(self, measure: str, **question: Any) -> tuple[float, int]:
        """Have it measure one round; gives what it measured and how many trips that took."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"measure": measure, **question}).encode() + b"\n")
        found = await self.answer(ANSWER)
        return found["value"], found["count"]


@dataclass
class Children:
    """Starts processes in a folder of their own; all end with the block, the latest first."""

    #: The commands as they were started, in order.
    commands: list[str] = field(default_factory=list[str])

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        held = tempfile.TemporaryDirectory(prefix="spinal-bench-")
        self.folder = Path(self._stack.enter_context(held))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def start(
        self, name: str, *argv: str | Path, environ: Mapping[str, str] | None = None
    ) -> Child:
        """Start a process that serves."""
        return await self._start(Child, name, argv, environ, signal.SIGTERM)

    async def asked(
        self, name: str, *argv: str | Path, environ: Mapping[str, str] | None = None
    ) -> Asked:
        """Start a process that measures, and wait until it is ready."""
        child = await self._start(Asked, name, argv, environ)
        child.trips = (await child.answer(READY))["trips"]
        return child

    async def output(
        self, name: str, *argv: str | Path, environ: Mapping[str, str] | None = None
    ) -> str:
        """Run a program to its end and give what it printed."""
        child = await self._start(Child, name, argv, environ, signal.SIGINT, piped=True)
        printed, _ = await child.process.communicate()
        if child.process.returncode:
            raise child.failed(f"ended with {child.process.returncode}")
        return printed.decode()

    async def port(self, child: Child, port: int) -> None:
        """Wait until a process takes connections on a port of the loopback address."""
        loop = asyncio.get_running_loop()
        end = loop.time() + READY
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                if child.process.returncode is not None or loop.time() > end:
                    raise child.failed(f"does not listen on port {port}") from None
                await asyncio.sleep(0.05)
            else:
                writer.close()
                await writer.wait_closed()
                return

    async def _start(
        self,
        kind: type[_C],
        name: str,
        argv: Sequence[str | Path],
        environ: Mapping[str, str] | None,
        end: signal.Signals | None = None,
        piped: bool = False,
    ) -> _C:
        words = [str(word) for word in argv]
        said = shlex.join(words).replace(str(self.folder), "$TMP")
        self.commands.append(said.replace(f"{ROOT}/", ""))
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL if end else asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE if piped or not end else output,
                stderr=output,
                env=plain() if environ is None else dict(environ),
                cwd=ROOT,
                # An interrupt from the keyboard is for us alone, who end them in order.
                start_new_session=True,
            )
        child = kind(name, process, log)
        self._stack.push_async_callback(_end, child, end)
        return child


def plain() -> dict[str, str]:
    """Give our environment without what points to our own packages and home."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith("SPINAL_")
    }


async def _end(child: Child, how: signal.Signals | None) -> None:
    """Ask it to end, make it so if it does not, and leave nothing of its group.

    It is asked by a signal, or by the end of its standard input.
    """
    process = child.process
    if how is None:
        assert process.stdin is not None
        process.stdin.close()
    elif process.returncode is None:
        process.send_signal(how)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(END if how else LEAVE):
                await process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await process.wait()
