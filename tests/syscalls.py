"""What a process asks of the kernel, in its order: to show what was on disk before what was said."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYNCS: Final = ("fsync", "fdatasync")
WRITES: Final = ("write", "writev", "pwrite64", "pwritev")
SENDS: Final = ("write", "writev", "sendto", "sendmsg")

_NAMES: Final = sorted({*SYNCS, *WRITES, *SENDS})
_CALL: Final = re.compile(r"(\d+) +(\w+)\(([^\s,)<]*)(?:<([^>]*)>)?(.*)")
_RESUMED: Final = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_UNFINISHED: Final = "<unfinished ...>"


@dataclass(slots=True)
class Syscall:
    """One call on a file or a socket.  ``began`` and ``ended`` are lines of the trace."""

    thread: int
    name: str
    #: Path of the file, or what strace says of a socket.
    path: str
    #: What was written, as strace shows it: printable ASCII is itself.
    data: str
    began: int
    ended: int


def available() -> str | None:
    """Say why nothing can be traced, or nothing."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt install strace)"
    tried = subprocess.run(
        ["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, check=False
    )
    if tried.returncode:
        return f"strace may not trace here: {tried.stderr.decode(errors='replace').strip()[:200]}"
    return None


def traced(command: Sequence[str], to: Path) -> list[str]:
    """Give a command that runs another one and writes what it and its children do to a file."""
    # Long strings, so that the page of a log shows all of its rows.
    options = [
        "-f",
        "-qq",
        "-y",
        "-s",
        "8192",
        "-e",
        f"trace={','.join(_NAMES)}",
        "-e",
        "signal=none",
    ]
    return ["strace", *options, "-o", str(to), *command]


def read(trace: Path) -> list[Syscall]:
    """Read what was traced, in the order in which the calls began."""
    calls: list[Syscall] = []
    open_: dict[int, Syscall] = {}
    with trace.open(encoding="ascii", errors="replace") as lines:
        for at, line in enumerate(lines):
            if (resumed := _RESUMED.match(line)) is not None:
                call = open_.pop(int(resumed[1]), None)
                if call is not None and call.name == resumed[2]:
                    call.ended = at
            elif (begun := _CALL.match(line)) is not None:
                call = Syscall(int(begun[1]), begun[2], begun[4] or "", begun[5], at, at)
                calls.append(call)
                if line.rstrip().endswith(_UNFINISHED):
                    open_[call.thread] = call
    return calls


def first(
    calls: Iterable[Syscall],
    names: Sequence[str],
    *,
    data: str = "",
    path: str = "",
    after: Syscall | None = None,
) -> Syscall:
    """Give the first call of these names, on a path that ends so, with this in its data.

    Args:
        calls: what :func:`read` gave.
        names: names of calls.
        data: what was written must have this in it.
        path: what the path must end with.
        after: it must have begun after this one had ended.

    Raises:
        AssertionError: there is none.
    """
    for call in calls:
        if (
            call.name in names
            and call.path.endswith(path)
            and data in call.data
            and (after is None or call.began > after.ended)
        ):
            return call
    raise AssertionError(f"no {'/'.join(names)} of {data!r} on {path!r} after {after}")


def on_disk(calls: Sequence[Syscall], data: str, path: str) -> Syscall:
    """Give the sync with which something that was written to a file came to be on disk."""
    return first(calls, SYNCS, path=path, after=first(calls, WRITES, data=data, path=path))
