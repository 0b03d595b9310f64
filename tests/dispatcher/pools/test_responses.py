"""The p95 of the last while."""

from __future__ import annotations

import time

from spinal.dispatcher.pools.responses import MAX_SAMPLES, WINDOW, Responses, quantile


def test_of_no_samples_there_is_none() -> None:
    assert Responses().p95(0) is None
    assert quantile([], 0.5) is None


def test_it_is_the_least_sample_that_95_of_100_do_not_exceed() -> None:
    responses = Responses()
    for number in reversed(range(1, 101)):
        responses.add(float(number), 0)

    assert responses.p95(0) == 95.0


def test_what_is_older_than_the_window_does_not_count() -> None:
    responses = Responses()
    responses.add(9.0, 0)
    responses.add(1.0, 60_000)

    assert responses.p95(60_000) == 9.0
    assert responses.p95(round(WINDOW * 1000)) == 1.0
    assert responses.p95(60_000 + round(WINDOW * 1000)) is None


def test_it_is_counted_at_most_once_a_second() -> None:
    responses = Responses()
    responses.add(1.0, 0)
    assert responses.p95(0) == 1.0

    responses.add(5.0, 0)
    assert responses.p95(999) == 1.0
    assert responses.p95(1000) == 5.0


def test_of_many_samples_the_latest_are_kept() -> None:
    responses = Responses()
    for _ in range(MAX_SAMPLES):
        responses.add(9.0, 0)
    for _ in range(MAX_SAMPLES):
        responses.add(1.0, 0)

    began = time.perf_counter()
    assert responses.p95(0) == 1.0
    assert time.perf_counter() - began < 0.1
