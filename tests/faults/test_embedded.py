"""The short version of the harness, on the embedded server; ``make faults`` is the long one."""

from __future__ import annotations

import pytest

from .short import LIMIT, all_is_well

ROWS = ("worker killed", "worker hangs", "cable cut", "dispatcher killed", "full disk")


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize("fault", ROWS)
async def test_nothing_is_lost_stuck_or_doubled_when(fault: str) -> None:
    await all_is_well(fault, "embedded")
