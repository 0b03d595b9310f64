"""What tests ask of the system's processes, which may end while they are asked."""

from __future__ import annotations

from contextlib import suppress

import psutil

#: An entry that nobody has taken away yet, or that somebody is just taking away.
_REMAINS = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def alive(process: int | psutil.Process) -> bool:
    """Tell whether a process, or the one with this number, has not ended."""
    try:
        one = psutil.Process(process) if isinstance(process, int) else process
        return bool(one.is_running() and one.status() not in _REMAINS)
    except psutil.NoSuchProcess:
        return False


def gone(process: int | psutil.Process) -> bool:
    """Tell whether a process, or the one with this number, has ended."""
    return not alive(process)


def below(pid: int, word: str = "") -> list[psutil.Process]:
    """Give what a process and its children started, with that word on the command line."""
    found: list[psutil.Process] = []
    for one in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if not word or word in one.cmdline():
                found.append(one)
    return found
