"""What ``providers.yaml`` says as it is now: accounts, currency, rates, budgets."""

from __future__ import annotations

from pathlib import Path

import structlog

from spinal.agents.errors import AgentError

from .settings import FILE, Providers

log = structlog.get_logger()


class Market:
    """Reads the file of a home again whenever it has changed.

    While it cannot be read, what it said before holds; so a mistake in it does not change a budget.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen: tuple[int, int] | None = None
        self._said = Providers.find(home)
        self._seen = self._stamp()

    def __call__(self) -> Providers:
        """Give what it says."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._said = Providers.find(self._home)
            except AgentError as exc:
                log.error("providers_not_read", error=str(exc))
        return self._said

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = (self._home / FILE).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size
