from __future__ import annotations

import math

from spinal.agents.chat import alerts
from spinal.agents.chat.alerts import AFTER, BACK, PAUSE, QUIET, RESTLESS, TOGETHER, Alerts, Batch


def told(one: Alerts, now: float) -> Batch:
    """Give what is told at that time, which must be the earliest."""
    assert one.next() <= now and one.batch(now - 0.01) is None
    batch = one.batch(now)
    assert batch is not None
    one.told(batch, now)
    return batch


def names(batch: Batch) -> list[str]:
    return [gone.agent for gone in batch.gone]


def test_one_that_stays_away_is_told_once() -> None:
    one = Alerts()
    one.gone("a", "gone", 10.0)
    one.gone("a", "silent", 11.0)
    assert names(told(one, 10.0 + AFTER)) == ["a"]
    assert one.next() == math.inf


def test_one_that_is_back_at_once_is_not_told() -> None:
    one = Alerts()
    one.gone("a", "gone", 10.0)
    one.here("a", 10.0 + AFTER - 1)
    assert one.next() == math.inf and one.batch(1e6) is None


def test_one_that_was_told_is_told_when_it_is_back_to_stay() -> None:
    one = Alerts()
    one.gone("a", "gone", 0.0)
    told(one, AFTER)
    one.here("a", 100.0)
    one.gone("a", "gone", 101.0)
    assert one.next() == math.inf
    one.here("a", 200.0)
    batch = told(one, 200.0 + BACK)
    assert batch.back == [("a", 200.0)] and not batch.gone


def test_those_that_die_together_are_told_together() -> None:
    one = Alerts()
    for number in range(500):
        one.gone(str(number), "gone", number * 0.01)
    assert len(told(one, 4.99 + AFTER).gone) == 500


def test_those_that_go_on_dying_do_not_keep_the_first_from_being_told() -> None:
    one = Alerts()
    waited = 0.0
    while one.batch(waited) is None:
        waited += 1.0
        one.gone(str(waited), "gone", waited)
    assert waited <= AFTER + TOGETHER + 1


def test_between_two_messages_there_is_a_pause() -> None:
    one = Alerts()
    one.gone("a", "gone", 0.0)
    told(one, AFTER)
    one.gone("b", "gone", AFTER + 1)
    assert names(told(one, AFTER + PAUSE)) == ["b"]


def test_one_that_was_told_and_dies_again_soon_is_told_only_if_it_stays_away() -> None:
    one = Alerts()
    one.gone("a", "gone", 0.0)
    told(one, AFTER)
    one.here("a", 10.0)
    told(one, AFTER + PAUSE)
    one.gone("a", "gone", 30.0)
    assert one.next() == AFTER + QUIET
    one.here("a", 31.0)
    assert one.next() == math.inf
    one.gone("a", "gone", 40.0)
    assert names(told(one, AFTER + QUIET)) == ["a"]


def test_one_that_keeps_dying_is_told_as_that() -> None:
    one = Alerts()
    for number in range(RESTLESS + 3):
        one.gone("a", "gone", float(number))
        one.here("a", number + 0.5)
        batch = one.batch(number + 0.5)
        if batch is not None:
            assert batch.restless == [("a", RESTLESS)]
            one.told(batch, number + 0.5)
            assert number == RESTLESS - 1
    assert one.next() == math.inf


def test_of_more_than_are_remembered_the_number_is_told() -> None:
    one = Alerts()
    for number in range(alerts.MAX_AGENTS + 5):
        one.gone(str(number), "gone", 0.0)
    one.missed(2)
    batch = one.batch(AFTER)
    assert batch is not None and batch.more == 7 and len(batch.gone) == alerts.MAX_AGENTS
    one.told(batch, AFTER)
    assert one.next() == math.inf
