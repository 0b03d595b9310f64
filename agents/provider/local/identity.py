"""Which process it is: its number, and what tells it from a later one with the same number."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """One process; also one that is no child of ours, and one that has ended long ago."""

    pid: int
    #: When it was started, in ticks since this machine was (proc(5), field 22 of ``stat``).
    start: int
    #: Which start of this machine that was.
    boot: str

    @staticmethod
    def of(pid: int) -> Identity:
        """Identify a process that is there.

        Raises:
            ProcessLookupError: it is not.
        """
        found = _stat(pid)
        if found is None:
            raise ProcessLookupError(f"no process {pid}")
        return Identity(pid, found[1], _boot())

    def lives(self) -> bool:
        """Tell whether it runs: one that is dead and not yet reaped does not."""
        found = _stat(self.pid) if self.boot == _boot() else None
        return found is not None and found[0] not in "ZX" and found[1] == self.start

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended, whoever has its number now."""
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                # In this order: the descriptor is of whoever is found to be the one.
                if self.lives():
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def gone(self, within: float) -> bool:
        """Wait for its end, at most so many seconds; tell whether it has ended."""
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.lives():
                    poll = select.poll()
                    poll.register(descriptor, select.POLLIN)
                    return bool(poll.poll(within * 1000))
            finally:
                os.close(descriptor)
        return True


def _stat(pid: int) -> tuple[str, int] | None:
    """Give state and start of a process; none if there is no such one."""
    try:
        # The name in brackets may itself hold brackets and blanks.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0].decode(), int(fields[19])


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
