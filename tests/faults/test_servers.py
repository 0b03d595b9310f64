"""The short version on servers of somebody else's make, which are processes of their own."""

from __future__ import annotations

import pytest

from .short import LIMIT, all_is_well

ROWS = (
    ("server killed", "prosody"),
    ("dispatcher hangs", "prosody"),
    ("server killed", "ejabberd"),
)


@pytest.mark.timeout(LIMIT)
@pytest.mark.parametrize(("fault", "server"), ROWS)
async def test_nothing_is_lost_stuck_or_doubled_when(fault: str, server: str) -> None:
    await all_is_well(fault, server)
