from __future__ import annotations

import pytest

from spinal.agents.deployment.backoff import failures, wait
from spinal.agents.deployment.spec import Restart

USUAL = Restart(1.0, 60.0)


def test_waits_double_up_to_the_longest() -> None:
    assert [wait(n, USUAL, 0) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_ten_thousand_failures_are_no_more_than_many() -> None:
    assert wait(10_000, USUAL, 0) == 60


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_chance_only_shortens_and_by_a_quarter_at_most(chance: float) -> None:
    assert 3.0 <= wait(3, USUAL, chance) <= 4.0


def test_failures_count_until_it_was_stable() -> None:
    assert failures(4, 0.0, USUAL) == 5
    assert failures(4, 59.0, USUAL) == 5
    assert failures(4, 60.0, USUAL) == 1


def test_a_short_longest_wait_does_not_make_a_short_run_stable() -> None:
    assert failures(4, 2.0, Restart(0.1, 1.0)) == 5
    assert failures(4, 10.0, Restart(0.1, 1.0)) == 1
