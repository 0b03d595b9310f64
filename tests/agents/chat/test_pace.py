from __future__ import annotations

from spinal.agents.chat import pace
from spinal.agents.chat.pace import Pace, Verdict


def test_so_many_are_taken_at_once_then_one_is_warned_and_the_others_dropped() -> None:
    limit = Pace(3)
    found = [limit.take("ann", 0.0) for _ in range(6)]
    assert found == [Verdict.TAKE] * 3 + [Verdict.WARN] + [Verdict.DROP] * 2


def test_room_comes_back_with_time_and_the_next_excess_is_warned_again() -> None:
    limit = Pace(3)
    for _ in range(5):
        limit.take("ann", 0.0)
    assert limit.take("ann", 20.1) is Verdict.TAKE
    assert limit.take("ann", 20.2) is Verdict.WARN
    assert limit.take("ann", 20.3) is Verdict.DROP


def test_one_person_does_not_count_for_another() -> None:
    limit = Pace(1)
    assert limit.take("ann", 0.0) is limit.take("bob", 0.0) is Verdict.TAKE
    assert limit.take("ann", 0.0) is Verdict.WARN


def test_however_many_come_a_bounded_number_is_remembered() -> None:
    limit = Pace(1)
    for number in range(pace.MAX_PEOPLE + 10):
        limit.take(str(number), 0.0)
    assert len(limit) == pace.MAX_PEOPLE
