"""The short version, which says that it works; ``make storms`` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.clouds.fixtures import needs_clouds

from .run import run
from .table import findings

#: Of these one has two pools, one goes down at once, and all have killed dispatchers and agents.
SEEDS = (3, 9, 14)


@needs_clouds
@pytest.mark.timeout(300)
async def test_nothing_leaks_or_is_bought_twice_or_too_dear_and_every_pool_converges(
    tmp_path: Path,
) -> None:
    runs = await run(SEEDS, 1, tmp_path)
    assert [one.seed for one in runs] == list(SEEDS)
    assert not any(one.verdict.findings for one in runs), findings(runs)
    assert all(one.counts["created"] and one.counts["joined"] for one in runs)
    assert sum(one.kills.total() for one in runs) and sum(one.faults.total() for one in runs)
