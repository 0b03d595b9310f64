"""How long a service that has ended waits before it is started again; pure."""

from __future__ import annotations

from typing import Final

from spinal.protocols.retry import doubled

from .spec import Restart

#: Least seconds that a service runs before it counts as stable.
STABLE: Final = 10.0
#: The part of a wait that is chance, so that services that fell together do not rise together.
JITTER: Final = 0.25


def failures(before: int, ran: float, restart: Restart) -> int:
    """Count failures in a row, with this one.

    Args:
        before: those until now.
        ran: seconds that it was well before this one; a run longer than the longest wait, and
            than :data:`STABLE`, makes it the first again.
        restart: what the service says.
    """
    return 1 if ran >= max(STABLE, restart.most) else before + 1


def wait(failures: int, restart: Restart, chance: float) -> float:
    """Give the seconds to wait after so many failures in a row.

    Args:
        failures: from 1.
        restart: the first and the longest wait.
        chance: from 0 to 1.
    """
    return doubled(restart.backoff, failures - 1, restart.most) * (1 - JITTER * chance)
