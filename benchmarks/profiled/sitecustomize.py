"""Lets a child be profiled: SIGUSR1 begins, SIGUSR2 ends and writes ``$BENCH_PROFILES/PID``.

Python imports a module of this name at its start where it finds one; ``costs.py`` puts this folder
on the path of the processes that it looks into.  Time is that of the thread on a processor, so that
who waits, or is made to wait, takes none.
"""

from __future__ import annotations

import cProfile
import os
import signal
import time
from pathlib import Path

_profile = cProfile.Profile(time.thread_time)


def _begin(number: int, frame: object) -> None:
    _profile.enable()


def _end(number: int, frame: object) -> None:
    _profile.disable()
    _profile.create_stats()
    file = Path(os.environ["BENCH_PROFILES"]) / str(os.getpid())
    _profile.dump_stats(file.with_suffix(".part"))
    file.with_suffix(".part").rename(file)
    _profile.clear()


if "BENCH_PROFILES" in os.environ:
    signal.signal(signal.SIGUSR1, _begin)
    signal.signal(signal.SIGUSR2, _end)
