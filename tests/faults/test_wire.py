"""Stanzas that are lost, doubled and overtaken, in virtual time: a few seeds of the many."""

from __future__ import annotations

import pytest

from . import wire


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_lost_stuck_or_doubled_on_a_bad_wire(seed: int) -> None:
    row = wire.play([seed], 25)
    assert row.faults() == [] and row.verdict.accepted == 25
