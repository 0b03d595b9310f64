"""What really happened: one line for whatever an operation begins, ends or stops.

Workers append to one file, and whoever judges reads it; Spinal knows nothing of it.  A line is one
write with ``O_APPEND``, so it is there whole or not at all, also when its writer is killed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

What = Literal["begun", "ended", "failed", "stopped"]


class Line(NamedTuple):
    """One thing that an operation did."""

    #: Seconds on the monotonic clock, which all processes of this machine share.
    at: float
    #: Name of the agent's process, as the harness knows it.
    worker: str
    pid: int
    job: str
    attempt: int
    op: str
    #: Ours, from the arguments, not the idempotency key that Spinal was told.
    key: str
    what: What


class Ledger:
    """The file."""

    def __init__(self, file: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.file = file
        self._now = now

    def add(self, worker: str, job: str, attempt: int, op: str, key: str, what: What) -> None:
        """Append a line."""
        line = Line(self._now(), worker, os.getpid(), job, attempt, op, key, what)
        data = json.dumps(line).encode() + b"\n"
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)
        assert written == len(data), "the ledger's own disk is full: nothing can be judged"

    def read(self) -> list[Line]:
        """Give all lines, in the order in which they were written."""
        try:
            text = self.file.read_text()
        except FileNotFoundError:
            return []
        return [Line(*json.loads(line)) for line in text.splitlines()]
