"""Connections that are not logged in: some get on with it, the others wait unread.

After a restart everybody comes at once.  If all logged in side by side none would be done before
the first ones lose patience, and to turn some away would only have them back.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import structlog

from .limits import Limits

log = structlog.get_logger(__name__)


class Guest(Protocol):
    """A connection in the lobby."""

    peer: str
    ended: bool

    def wait(self) -> None:
        """Be read no further until :meth:`proceed`."""
        ...

    def proceed(self) -> None:
        """Log in, within the time for it that begins now."""
        ...

    def abort(self) -> None:
        """Be cut."""
        ...


class Lobby:
    """Gives turns in the order of arrival."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._busy: set[Guest] = set()
        #: In order.  Those that are gone stay here until it is their turn.
        self._waiting: deque[Guest] = deque()

    def enter(self, guest: Guest) -> None:
        """Take a new connection in, or cut it if there are too many."""
        if len(self._busy) + len(self._waiting) >= self._limits.login_connections:
            log.warning("connection_refused", peer=guest.peer, waiting=len(self._waiting))
            guest.abort()
        elif len(self._busy) < self._limits.logins:
            self._busy.add(guest)
            guest.proceed()
        else:
            self._waiting.append(guest)
            guest.wait()

    def leave(self, guest: Guest) -> None:
        """Let a connection go that is logged in or gone.  May be called again."""
        if guest not in self._busy:
            return
        self._busy.discard(guest)
        while self._waiting:
            following = self._waiting.popleft()
            if not following.ended:
                self._busy.add(following)
                following.proceed()
                return
