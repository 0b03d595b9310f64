from __future__ import annotations

import pytest

from spinal.agents.machine.texts import readable, shown
from spinal.agents.results import weight


@pytest.mark.parametrize(
    "text",
    ["short", "ünï", b"\xff\xfe bytes", "half \ud800 of one", "name \udcff", "\0\1\n", "x" * 10**6],
)
def test_any_text_becomes_one_that_can_travel(text: str | bytes) -> None:
    found = readable(text, 1000)

    found.encode()
    assert weight(found) <= 1002


def test_what_fits_stays_as_it_is() -> None:
    assert readable("a <b> & ü\n") == "a <b> & ü\n"
    assert readable("x" * 100, 100) == "x" * 100


def test_what_is_cut_says_so() -> None:
    assert readable("x" * 101, 100) == "x" * 97 + "..."
    # Each of these takes six bytes as JSON.
    assert readable("\1" * 100, 100) == "\1" * 16 + "..."


def test_what_was_said_is_shown_in_one_short_line() -> None:
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("\0" * 10**6)) < 200
