from __future__ import annotations

import pytest

from spinal.agents.deployment.elsewhere import superseded
from spinal.protocols import Json

OURS, THEIRS = "berlin@x/agent", "paris@x/agent"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"state": "placed", "agent": THEIRS, "generation": 8, "running": 8}, "generation 8 runs"),
        ({"state": "removing", "agent": OURS, "generation": 7, "running": 7}, "being removed"),
        # It is ours, or about to be.
        ({"state": "placed", "agent": OURS, "generation": 8, "running": 8}, ""),
        ({"state": "placed", "agent": THEIRS, "generation": 7, "running": 7}, ""),
        # Nobody has it yet: it may come to us.
        ({"state": "placing", "agent": OURS, "generation": 8, "running": 7}, ""),
        ({"state": "placing", "generation": 8}, ""),
        ({"state": "unplaced", "generation": 9, "agent": None, "running": None}, ""),
        ({}, ""),
    ],
)
def test_only_who_has_it_now_counts(row: dict[str, Json], why: str) -> None:
    found = superseded(row, 7, OURS)
    assert why in found and bool(found) == bool(why)
