"""What rows of the short version have in common."""

from __future__ import annotations

import pytest

from spinal.bus.server import available

from .faults import FAULTS
from .run import play
from .table import findings

#: Jobs of a row.
JOBS = 80
#: Seconds by which a bound may be missed on a machine that runs other tests at the same time.
SLACK = 4.0
#: Seconds that a row may take: one in which something is stuck says so only then.
LIMIT = 240.0


async def all_is_well(fault: str, server: str) -> None:
    """Play a row, and hold it to what is promised."""
    reason = available(server)
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    row = await play(FAULTS[fault], server, seed=1, jobs=JOBS)
    assert not row.faults(SLACK), findings([row], SLACK)
    assert row.verdict.accepted == JOBS
