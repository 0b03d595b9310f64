from __future__ import annotations

import random
from itertools import pairwise

from spinal.bus.reconnect import Backoff


def test_pauses_lie_between_nothing_and_a_ceiling_that_doubles() -> None:
    backoff = Backoff(first=0.5, most=10.0, rng=random.Random(1))
    for failures in range(200):
        ceiling = min(10.0, 0.5 * 2.0**failures)
        assert 0.0 <= backoff.pause() <= ceiling


def test_a_thousand_do_not_come_at_once() -> None:
    pauses = sorted(Backoff(rng=random.Random(n)).pause() for n in range(1000))
    assert max(b - a for a, b in pairwise(pauses)) < 0.02
    assert pauses[0] < 0.01 and pauses[-1] > 0.49


def test_only_a_stream_that_lasted_begins_the_count_anew() -> None:
    backoff = Backoff(lasted=5.0)
    for _ in range(5):
        backoff.pause()
    backoff.ended(4.9)
    assert backoff.failures == 5
    backoff.ended(5.0)
    assert backoff.failures == 0
