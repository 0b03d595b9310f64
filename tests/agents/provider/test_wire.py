from __future__ import annotations

from email.utils import formatdate

import pytest

from spinal.agents.provider.wire import Answer

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    "text, after",
    [
        ("120", 120.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (formatdate(NOW + 30, usegmt=True), 30.0),
        (formatdate(NOW - 30, usegmt=True), 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, after: float | None) -> None:
    assert Answer.of(429, {"retry-after": text}, NOW).after == after


def test_the_clock_is_compared_with_the_vendors() -> None:
    assert Answer.of(200, {"date": formatdate(NOW - 90, usegmt=True)}, NOW).skew == 90.0
    assert Answer.of(200, {"date": "yesterday"}, NOW).skew is None
    assert Answer.of(200, {}, NOW).skew is None
