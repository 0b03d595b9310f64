"""Decisions about writes, without a database."""

from __future__ import annotations

from spinal.dispatcher.store.contract import Line, Retention, Wait
from spinal.dispatcher.store.plan import Bucket, Kept, Seen, decide
from spinal.dispatcher.store.records import Standing


def bucket(
    rate: float | None = None, concurrent: int | None = None, tokens: float = 0.0, running: int = 0
) -> Bucket:
    return Bucket(rate, 10.0, concurrent, tokens, running)


def test_a_bucket_fills_with_time_and_not_beyond_its_rate() -> None:
    assert bucket(rate=5, tokens=1).filled(2).tokens == 2
    assert bucket(rate=5, tokens=1).filled(1e9).tokens == 5
    assert bucket(rate=0.5).filled(1e9).tokens == 1


def test_a_clock_that_was_set_back_takes_nothing_away() -> None:
    assert bucket(rate=5, tokens=3).filled(-1000).tokens == 3


def test_an_empty_bucket_says_when_there_is_one_again() -> None:
    assert bucket(rate=5, tokens=0.5).begin() == Wait(1.0)
    assert bucket(rate=0).begin() == Wait(0.0)


def test_a_beginning_takes_a_token_and_a_place() -> None:
    assert bucket(rate=5, concurrent=2, tokens=3, running=1).begin() == bucket(5, 2, 2, 2)
    assert bucket(rate=5, concurrent=2, tokens=3, running=2).begin() == Wait(0.0)


def test_a_log_takes_nothing_after_its_first_gap() -> None:
    seen = Seen(jobs={"a": Standing("done", None, 1)}, logs={"a": Kept(1, 4)})
    lines = [Line("a", 1, "info", text) for text in ("12", "12345", "1")]
    plan = decide([lines], seen, 1, Retention(lines=9, log_size=8))
    assert plan.results == [[2, 0, 0]]
    assert plan.logs == {"a": Kept(2, 6, 2)}
