"""Tools for tests of programs on the bus; our own tests use nothing else.

* :class:`MemoryBus` and :class:`Faults`: a bus inside the process that loses, delays, doubles and
  reorders stanzas to order.
* :func:`virtual_time`: a coroutine test in which time jumps to the next thing that is due whenever
  everybody waits, so that an hour of time-outs takes milliseconds and nothing sleeps.
* :func:`platform`: a whole platform of real processes in a temporary home, on free ports.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import selectors
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from spinal.bus import Client, Home
from spinal.bus.transports.memory import Faults, MemoryBus, MemoryConnection

__all__ = [
    "Faults",
    "ManualClock",
    "MemoryBus",
    "MemoryConnection",
    "Platform",
    "Process",
    "eventually",
    "platform",
    "virtual_time",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Seconds that a platform or an agent may take to be ready on a busy machine.
READY = 60.0


class ManualClock:
    """The time of a loop made by :meth:`run`: stands still while there is something to do.

    When every task waits, the clock jumps to the earliest timer; while a thread of an executor
    works, it stands still as well.  Real sockets are not waited for, so this is for the memory bus.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start

    def run(self, story: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine to its end in virtual time."""
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(self)) as runner:
            return runner.run(story)

    async def advance(self, seconds: float) -> None:
        """Let that much time pass for everybody."""
        await asyncio.sleep(seconds)


class _VirtualSelector(selectors.DefaultSelector):
    clock: ManualClock
    #: How many calls threads have in hand.
    threads: Callable[[], int]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if self.threads():
            return super().select(1.0)
        if timeout is None:
            return super().select(None)
        self.clock.now += max(0.0, timeout)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: ManualClock) -> None:
        selector = _VirtualSelector()
        selector.clock = clock
        selector.threads = lambda: self._in_threads
        self._clock = clock
        self._in_threads = 0
        super().__init__(selector)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        self._in_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._returned)
        return future

    def _returned(self, _: asyncio.Future[Any]) -> None:
        self._in_threads -= 1

    def time(self) -> float:
        return self._clock.now


def virtual_time(
    story: Callable[_P, Coroutine[Any, Any, None]],
) -> Callable[_P, None]:
    """Make an ordinary test of a coroutine function, run under a :class:`ManualClock`."""

    @functools.wraps(story)
    def test(*args: _P.args, **kwargs: _P.kwargs) -> None:
        ManualClock().run(story(*args, **kwargs))

    return test


async def eventually(holds: Callable[[], Any], timeout: float = 10.0, what: str = "") -> Any:
    """Wait until something is so, and give what it returned; looks 50 times a second.

    ``holds`` may be a coroutine function.

    Raises:
        AssertionError: it was not so in time.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        found = holds()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if loop.time() >= end:
            raise AssertionError(f"not within {timeout:g} s: {what or holds}")
        await asyncio.sleep(0.02)


@dataclass
class Process:
    """A child process of a test: its output is kept, and it is gone when its platform ends."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing if it has ended."""
        if self.process.returncode is None:
            self.process.send_signal(how)

    async def wait(self, timeout: float = READY) -> int:
        """Give its exit status."""
        async with asyncio.timeout(timeout):
            return await self.process.wait()

    async def line(self, holds: Callable[[str], bool], timeout: float = READY) -> str:
        """Wait for a line of its standard output."""

        def found() -> str | None:
            ended = self.process.returncode is not None
            match = next((line for line in self.lines if holds(line)), None)
            if match is None and ended:
                raise AssertionError(
                    f"ended with {self.process.returncode}:\n" + "\n".join(self.errors[-20:])
                )
            return match

        line: str = await eventually(found, timeout, "a line of output")
        return line


@dataclass
class Platform:
    """A platform that runs: ``spinal up`` in a process of its own, and who is on the bus."""

    home: Home
    #: Logged in as the owner.
    client: Client
    #: For child processes: finds the home.
    environ: Mapping[str, str]
    up: Process
    _owner: _Processes

    async def start(self, *argv: str, environ: Mapping[str, str] | None = None) -> Process:
        """Start a program with the environment of the platform."""
        return await self._owner.start(argv, environ or self.environ)

    async def spinal(self, *argv: str) -> Process:
        """Start a ``spinal`` command."""
        return await self.start(sys.executable, "-m", "spinal", *argv)

    async def agent(self, file: Path | str, *argv: str) -> Process:
        """Start ``spinal agent run FILE`` and wait until the dispatcher knows a new agent.

        For a manifest, which is a YAML file, it is ``spinal wrap run FILE``.
        """
        before = {agent["agent"] for agent in await self.client.agents()}
        verb = "wrap" if Path(file).suffix in (".yaml", ".yml") else "agent"
        process = await self.spinal(verb, "run", str(file), *argv)

        async def known() -> bool:
            if process.process.returncode is not None:
                raise AssertionError("the agent ended:\n" + "\n".join(process.errors[-20:]))
            return any(agent["agent"] not in before for agent in await self.client.agents())

        await eventually(known, READY, f"agent {file} is known")
        return process


class _Processes:
    """Children of a test with their readers; all end with it."""

    def __init__(self) -> None:
        self._children: list[Process] = []
        self._readers: list[asyncio.Task[None]] = []

    async def start(self, argv: Sequence[str], environ: Mapping[str, str]) -> Process:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environ),
            limit=4 * 1024 * 1024,
        )
        child = Process(process)
        self._children.append(child)
        assert process.stdout is not None and process.stderr is not None
        for stream, lines in ((process.stdout, child.lines), (process.stderr, child.errors)):
            self._readers.append(asyncio.create_task(_read(stream, lines)))
        return child

    async def close(self) -> None:
        """Ask every child to end, the latest first, and make it so after 15 s."""
        for child in reversed(self._children):
            child.kill(signal.SIGCONT)
            child.kill(signal.SIGTERM)
        for child in reversed(self._children):
            try:
                await child.wait(15.0)
            except TimeoutError:
                child.kill()
                await child.wait()
        for reader in self._readers:
            await reader
        for child in self._children:
            child.process._transport.close()  # type: ignore[attr-defined]  # pyright: ignore


async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode("utf-8", "replace").rstrip("\n"))
        del lines[:-10_000]


@asynccontextmanager
async def platform(
    server: str = "embedded",
    *options: str,
    folder: Path | None = None,
    environ: Mapping[str, str] = {},
    providers: bool = False,
) -> AsyncGenerator[Platform]:
    """Start a whole platform in a temporary home on free ports, and end it.

    Args:
        server: ``embedded``, ``prosody`` or ``ejabberd``.
        options: more options for ``spinal up``.
        folder: the home, if it is to be kept.
        environ: more variables for its processes.
        providers: run the provider agents of the home as well.

    Raises:
        AssertionError: it was not ready in time; the text has what it said.
    """
    async with AsyncExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spinal-")))
            folder = folder / "home"
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("SPINAL_")
        }
        environ = {**inherited, **environ, "SPINAL_HOME": str(folder)}
        # Children find the package where we did, installed or not.
        found = [str(Path(__file__).absolute().parent.parent), environ.get("PYTHONPATH", "")]
        environ = {**environ, "PYTHONPATH": os.pathsep.join(filter(None, found))}
        processes = _Processes()
        stack.push_async_callback(processes.close)
        up = await processes.start(
            [
                *(sys.executable, "-m", "spinal", "up", "--json", "--server", server),
                *([] if providers else ["--no-providers"]),
                *options,
            ],
            environ,
        )
        ready = json.loads(await up.line(lambda line: '"ready"' in line))
        home = Home.find(Path(ready["home"]))
        client = await stack.enter_async_context(Client(home.path))
        yield Platform(home, client, environ, up, processes)
