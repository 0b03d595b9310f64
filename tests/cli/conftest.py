import io
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from spinal.cli import main


@dataclass(frozen=True)
class Outcome:
    """How one run of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line that it said on stderr."""
        (found,) = self.err.splitlines()
        return found


Spinal = Callable[..., Outcome]


@contextmanager
def time_zone(name: str) -> Generator[None, None, None]:
    """Let this process be there for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", name)
        time.tzset()
        yield
    time.tzset()


COMMAND = (sys.executable, "-m", "spinal")


def environment(home: Path) -> dict[str, str]:
    """Give what a child process needs to find the package and the home."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("SPINAL_")}
    path = os.pathsep.join(filter(None, sys.path))
    return {**kept, "PYTHONPATH": path, "SPINAL_HOME": str(home)}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the home of the test is, or will be."""
    return tmp_path / "home"


@pytest.fixture
def spinal(place: Path) -> Spinal:
    """Run the command line in a process of its own."""
    return spinal_at(place)


def spinal_at(home: Path) -> Spinal:
    """Give a function that runs the command line with this home."""

    def run(*words: str, timeout: float = 60, **variables: str) -> Outcome:
        done = subprocess.run(
            [*COMMAND, *words],
            env={**environment(home), **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def spinal_here(home: Path) -> Spinal:
    """Give a function that runs the command line with this home in this process.

    That takes a tenth of the time of another process, and shows what it leaves open as warnings.
    """

    def run(*words: str, **variables: str) -> Outcome:
        out, err, code = io.StringIO(), io.StringIO(), 0
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in {"SPINAL_HOME": str(home), **variables}.items():
                patch.setenv(name, value)
            try:
                main(words)
            except SystemExit as ended:
                assert isinstance(ended.code, int)
                code = ended.code
            finally:
                root.handlers[:], root.level = handlers, level
                structlog.reset_defaults()
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


class Program:
    """One run of the command line that stays; its stdout is one JSON object per line."""

    def __init__(self, home: Path, *words: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            env={**environment(home), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.err = ""
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read_out, daemon=True),
            threading.Thread(target=self._read_err, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_out(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _read_err(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.err += line

    def next(self, timeout: float = 30) -> Any:
        """Give the next thing that it says."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(
                f"it said nothing for {timeout:g} s; its log:\n{self.err}"
            ) from None
        assert line, f"it ended with {self.process.wait()}; its log:\n{self.err}"
        return json.loads(line)

    def rest(self) -> list[str]:
        """Give the lines that it said before it ended."""
        found: list[str] = []
        while line := self._lines.get(timeout=5):
            found.append(line)
        return found

    def until(self, timeout: float = 30, **wanted: object) -> Any:
        """Give the next thing that it says with these members."""
        while True:
            said = self.next(timeout)
            if wanted.items() <= said.items():
                return said

    def end(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Send a signal and give the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            for reader in self._readers:
                reader.join(timeout=5)
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
        return code


WORKER = Path(__file__).with_name("worker.py")


def until(holds: Callable[[], Any], timeout: float = 30) -> Any:
    """Wait until something is so; what it asks takes its time, so this needs no pauses."""
    end = time.monotonic() + timeout
    while not (found := holds()):
        assert time.monotonic() < end, f"not within {timeout:g} s"
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a home with a platform and one agent that run."""
    home = tmp_path_factory.mktemp("platform") / "home"
    up = Program(home, "up", "--no-providers", "--json")
    try:
        up.until(event="ready")
        agent = Program(home, "agent", "run", str(WORKER), "--json")
        try:
            agent.until(event="ready")
            yield home
        finally:
            assert agent.end() == 0, agent.err
    finally:
        assert up.end() == 0, up.err
