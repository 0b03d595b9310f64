"""What looks after the services of a machine: systemd, or scripts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, Protocol

#: What a name looks like, without ``.service``.  The backslash is systemd's, as in ``a\x2db``.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._:+\\-]{0,199}", re.ASCII)

Verb = Literal["start", "stop", "restart", "enable", "disable"]
State = Literal["running", "stopped", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class Service:
    """A service in a list."""

    name: str
    state: State
    #: Whether it starts with the machine; none if it cannot be told.
    enabled: bool | None
    about: str = ""


class Manager(Protocol):
    """What looks after services."""

    #: How it is called.
    name: str

    async def all(self) -> list[Service]:
        """Give all services, by name."""
        ...

    async def show(self, name: str) -> tuple[Service, dict[str, str]]:
        """Tell about one, which is known to be there."""
        ...

    async def names(self) -> set[str]:
        """Give the names of all services."""
        ...

    async def change(self, name: str, verb: Verb, timeout: float) -> None:
        """Do something to one, which is known to be there.

        Raises:
            CommandFailed: it did not work.
            TimeoutError: it took too long.
        """
        ...
