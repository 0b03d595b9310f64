"""A program of a service, and how it is started: with its own environment, user and limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .. import process
from ..process import Completed, Guard, Process
from . import launch
from .config import Config, User

#: Where programs are looked for, after the release's own.
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Most bytes of output of a health check that are kept.
OUTPUT: Final = 4096


@dataclass(frozen=True, slots=True)
class Command:
    """What is to be started."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: Path
    #: Whom it becomes; the agent itself if none.
    user: User | None = None


class Launcher:
    """Starts programs of services.

    Args:
        config: limits of each process.
        guard: ends them if we are killed.
    """

    def __init__(self, config: Config, guard: Guard | None) -> None:
        self._limits = config.limits.of_process()
        self._guard = guard

    def start(self, command: Command) -> Process:
        """Start a program that goes on; both of its outputs are one pipe.

        A program that is not there ends with code 127, and says so in its output.

        Raises:
            CommandFailed: nothing can be started.
        """
        with tempfile.TemporaryFile() as orders:
            orders.write(self._orders(command))
            orders.seek(0)
            return Process.start(
                _LAUNCH,
                stdin=orders,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=_NOTHING,
                guard=self._guard,
            )

    async def run(self, command: Command, timeout: float) -> Completed:
        """Run a program to its end.

        Raises:
            CommandFailed: it cannot be started.
            TimeoutError: it ran longer.
        """
        return await process.run(
            _LAUNCH,
            input=self._orders(command),
            timeout=timeout,
            cwd="/",
            env=_NOTHING,
            limit=OUTPUT,
            guard=self._guard,
        )

    def _orders(self, command: Command) -> bytes:
        user = command.user
        orders = {
            "argv": command.argv,
            "env": dict(command.env),
            "cwd": str(command.cwd),
            "user": None
            if user is None or os.geteuid() != 0
            else (user.uid, user.gid, user.groups),
            "limits": self._limits,
        }
        return json.dumps(orders).encode()


#: Without the site's modules: it needs none.
_LAUNCH: Final = (sys.executable, "-I", "-S", launch.__file__)
_NOTHING: Final = {"PATH": PATH, "LANG": "C.UTF-8"}
