from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import MAX_INTEGER, Json, Problem, RemoteProtocolError, readers
from spinal.protocols.readers import Reader

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)

#: Reader, what it takes (with what it gives, if that differs), what it refuses.
CASES: dict[str, tuple[Reader, list[Json], list[Json]]] = {
    "identifier": (
        readers.identifier,
        ["a", "~!", "x" * 128],
        ["", "a b", "é", "a\n", "\x7f", "x" * 129, 1, None, ["a"]],
    ),
    "text": (readers.text(3), ["", "é€x"], ["abcd", 1, None]),
    "one_of": (readers.one_of("a", "b"), ["a", "b"], ["c", "", None, 1, ["a"], {}]),
    "integer": (readers.integer(), [0, MAX_INTEGER], [-1, 2**53, 1.0, True, "1", None]),
    "number": (readers.number(0), [0, 1.5], [-0.1, True, "1", float("inf"), float("nan")]),
    "flag": (readers.flag, [True, False], [0, 1, "true", None]),
    "mapping": (readers.mapping, [{}, {"a": 1}], [[], "a", None]),
    "list_of": (readers.list_of(readers.flag, 2), [], [[1], [True] * 3, {}, "ab", None]),
    "operation": (readers.operation, ["/a/b"], ["a", "/a b", 1, None]),
    "places": (
        readers.places,
        [{}, {"site": "/eu"}],
        [{"site": "eu"}, {"site": 1}, {str(n): "/a" for n in range(33)}, [], "/eu"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_reader_gives_what_is_right_and_names_what_is_wrong(name: str) -> None:
    read, right, wrong = CASES[name]

    for value in right:
        assert read(value, "member") == value
    for value in wrong:
        with pytest.raises(RemoteProtocolError, match="'member'") as caught:
            read(value, "member")
        assert caught.value.problem.argument == "member"


@pytest.mark.parametrize("name", CASES)
@given(value=ANYTHING)
def test_a_reader_never_raises_anything_else(name: str, value: Json) -> None:
    try:
        CASES[name][0](value, "member")
    except RemoteProtocolError:
        pass


def test_a_list_is_given_as_a_tuple_and_numbers_as_floats() -> None:
    assert readers.list_of(readers.flag, 2)([True], "x") == (True,)
    assert type(readers.number()(1, "x")) is float


def test_members_that_are_null_or_unknown_are_left_out() -> None:
    table = {"a": readers.flag, "b": readers.flag}

    assert readers.members({"a": True, "b": None, "c": 1}, "x", table) == {"a": True}


def test_a_problem_needs_a_reason_and_nothing_else() -> None:
    assert readers.problem({"reason": "busy"}, "problem") == Problem("busy")
    with pytest.raises(RemoteProtocolError, match="reason"):
        readers.problem({"text": "?"}, "problem")
    with pytest.raises(RemoteProtocolError, match="type"):
        readers.problem({"reason": "busy", "type": "fatal"}, "problem")
