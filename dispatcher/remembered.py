"""The agents of former lives of the dispatcher, in a small file, so that it can greet them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog

from spinal.protocols import LocalProtocolError
from spinal.protocols.address import check

log = structlog.get_logger()

#: Most addresses that are kept.
MAX_REMEMBERED = 200_000


class Remembered:
    """Addresses of agents in a file; without a path it remembers nothing.

    The file is a convenience: one that is missing or broken costs a restarted dispatcher up to one
    heartbeat, so it is never an error.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written: frozenset[str] = frozenset()

    def load(self) -> frozenset[str]:
        """Read the addresses."""
        if self._path is None:
            return frozenset()
        try:
            raw: Any = json.loads(self._path.read_bytes())
            self._written = frozenset(check(str(one)) for one in raw["agents"][:MAX_REMEMBERED])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, LocalProtocolError) as exc:
            log.warning("known_agents_unreadable", path=str(self._path), problem=str(exc))
        return self._written

    def save(self, agents: Iterable[str]) -> None:
        """Write the addresses if they have changed; a reader sees the old file or the new one."""
        now = frozenset(agents)
        if self._path is None or now == self._written:
            return
        fresh = self._path.with_name(f"{self._path.name}.new")
        try:
            fresh.write_text(json.dumps({"agents": sorted(now)[:MAX_REMEMBERED]}))
            os.replace(fresh, self._path)
        except OSError as exc:
            log.warning("known_agents_not_written", path=str(self._path), problem=str(exc))
        self._written = now
