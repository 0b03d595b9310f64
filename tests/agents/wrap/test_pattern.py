from __future__ import annotations

import time

import pytest

from spinal.agents.wrap.argument import Argument
from spinal.agents.wrap.pattern import Pattern, TooLong
from spinal.bus.errors import CallError

#: Takes for ever on :data:`HOSTILE` where nobody stops it.
SLOW = r"(a|aa)+(b|c)?d?$"
HOSTILE = "a" * 60 + "!"


def test_it_matches_as_pythons_own() -> None:
    assert Pattern("[0-9]+").fullmatch("12") and not Pattern("[0-9]+").fullmatch("12\n")
    assert [found[1] for found in Pattern(r"^(\w)", lines=True).all("a1\nb2")] == ["a", "b"]
    found = Pattern(r"(?P<done>\d+)/(?P<total>\d+)").search("at 3/4")
    assert found is not None and found.groupdict() == {"done": "3", "total": "4"}
    assert Pattern("(?P<a>x)(y)").names == {"a": 1}
    assert Pattern("(?P<a>x)(y)").groups == 2


def test_what_is_none_says_why() -> None:
    with pytest.raises(ValueError, match="no regular expression: "):
        Pattern("(")


@pytest.mark.parametrize("how", ["fullmatch", "search", "all"])
def test_a_match_that_takes_too_long_is_given_up(how: str) -> None:
    began = time.monotonic()
    with pytest.raises(TooLong, match="make it simpler"):
        found = getattr(Pattern(SLOW), how)(HOSTILE)
        if how == "all":
            list(found)

    assert time.monotonic() - began < 5


def test_an_argument_that_would_take_for_ever_is_refused_by_name() -> None:
    with pytest.raises(CallError, match=r"argument .word.: matching .* takes longer") as caught:
        Argument("word", pattern=SLOW).check(HOSTILE)

    assert caught.value.reason == "bad-arguments"
