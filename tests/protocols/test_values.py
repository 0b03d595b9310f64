from __future__ import annotations

import json
from xml.etree.ElementTree import fromstring

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import (
    MAX_INTEGER,
    Dumps,
    Json,
    Limits,
    Loads,
    LocalProtocolError,
    RemoteProtocolError,
    values,
)
from spinal.protocols.values import check, escape, read, write

LIBRARIES = pytest.mark.parametrize(
    ("dumps", "loads"),
    [(values.dumps, values.loads), (orjson.dumps, orjson.loads)],
    ids=["json", "orjson"],
)

#: Text that a careless writer trips over: markup, controls, quotes, what XML forbids.
TEXT = st.text(
    st.sampled_from("a&<>]'\"\\\n\r\t\x00\x7f\ufffe\uffff\u2028é€😀")
    | st.characters(exclude_categories=["Cs"]),
    max_size=12,
)
SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
#: Anything that Python code could hand us by mistake.
ANYTHING = st.recursive(
    SCALAR | st.floats() | st.integers() | st.binary(max_size=2) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT | st.integers(), inner, max_size=4)
        | st.tuples(inner)
        | st.sets(st.integers(), max_size=2)
    ),
    max_leaves=8,
)


def nested(levels: int) -> Json:
    """Give a value of so many lists inside each other."""
    value: Json = 1
    for _ in range(levels):
        value = [value]
    return value


@LIBRARIES
@given(value=VALUE)
def test_a_value_survives_json_and_a_real_xml_parser(
    dumps: Dumps, loads: Loads, value: Json
) -> None:
    check(value)
    text = write(value, dumps)
    element = fromstring(b"<x>" + text + b"</x>")

    assert read((element.text or "").encode(), loads=loads) == value
    assert json.loads(text) == value


@pytest.mark.parametrize("character", ["\ufffe", "\uffff", "&", "<", ">", "\x00", "\x1f", "\x7f"])
def test_what_xml_cannot_hold_or_reads_as_markup_is_escaped_in_json(character: str) -> None:
    text = write({character: character + "]]>"})

    assert fromstring(b"<x>" + text + b"</x>").text == text.decode()
    assert read(text) == {character: character + "]]>"}


@given(st.text(st.characters(exclude_categories=["Cs"])).map(str.encode))
def test_text_without_such_characters_stays_as_it_is(text: bytes) -> None:
    harmful = any(c in text.decode() for c in "&<>\ufffe\uffff")

    assert (escape(text) == text) == (not harmful)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (float("nan"), "not a JSON number"),
        (float("inf"), "not a JSON number"),
        (-float("inf"), "not a JSON number"),
        (2**53, "2\\^53"),
        (-(2**53), "2\\^53"),
        (10**400, "2\\^53"),
        ("\ud800", "surrogate"),
        ({"\udfff": 1}, "surrogate"),
        ({1: 2}, "not a string"),
        (b"x", "bytes is not"),
        ({1, 2}, "set is not"),
        (object(), "object is not"),
        (nested(33), "deeper"),
    ],
)
def test_what_is_not_i_json_is_refused(value: Json, what: str) -> None:
    for error in (LocalProtocolError, RemoteProtocolError):
        with pytest.raises(error, match=what):
            check(value, error=error)
        with pytest.raises(error, match=f"size: .*{what}") as caught:
            check({"fine": 1, "size": value}, Limits(depth=33), error)
        assert caught.value.problem.argument == "size"
        assert caught.value.problem.reason == "bad-arguments"


@pytest.mark.parametrize(
    "value",
    [MAX_INTEGER, -MAX_INTEGER, 1e300, -0.0, 5e-324, "", [], {}, (), "😀", nested(32)],
    ids=repr,
)
def test_the_last_values_within_the_limits_pass(value: Json) -> None:
    check(value)


def test_members_are_counted_over_the_whole_value() -> None:
    limits = Limits(members=6)

    check({"a": [1, 2], "b": [3, 4]}, limits)
    with pytest.raises(LocalProtocolError, match="more than 6 members"):
        check({"a": [1, 2], "b": [3, 4, 5]}, limits)
    with pytest.raises(LocalProtocolError, match=r"^b: more than 6 members"):
        check({"a": [1, 2], "b": [0] * 7}, limits)


def test_a_value_that_holds_itself_ends_the_check() -> None:
    loop: list[Json] = []
    loop.append(loop)

    with pytest.raises(LocalProtocolError, match="deeper"):
        check(loop)


@given(ANYTHING)
def test_what_passes_the_check_is_written_alike_by_both_libraries(value: Json) -> None:
    try:
        check(value)
    except LocalProtocolError:
        return
    ours, theirs = values.dumps(value), orjson.dumps(value)

    assert json.loads(ours) == json.loads(theirs)


#: Text, and whether it can be read: what JSON libraries are known to disagree about.
TEXTS: dict[bytes, bool] = {
    b"null": True,
    b" [1.5, -0] ": True,
    b'{"a":1,"a":2}': True,
    b"[1e300]": True,
    b"[18446744073709551615]": False,
    b"[18446744073709551616]": False,
    b"[123456789012345678901234567890]": False,
    b"[-9223372036854775809]": False,
    b"9" * 5000: False,
    b"[1e400]": False,
    b"[NaN]": False,
    b"[Infinity]": False,
    b"[1,]": False,
    b"[01]": False,
    b"[1.]": False,
    b"{'a':1}": False,
    b"": False,
    b"[1] []": False,
    b'["\t"]': False,
    b'["\\ud800"]': False,
    b'["\xed\xa0\x80"]': False,
    b'["\xff"]': False,
    b"\xef\xbb\xbf[1]": False,
    "[1]".encode("utf-16"): False,
    "[1]".encode("utf-16-le"): False,
    b"[" * 100_000: False,
    b"[" * 200 + b"]" * 200: False,
}


@LIBRARIES
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
def test_both_libraries_take_and_refuse_the_same_text(
    dumps: Dumps, loads: Loads, text: bytes
) -> None:
    def read_and_check() -> Json:
        value = read(text, loads=loads)
        check(value, error=RemoteProtocolError)
        return value

    if TEXTS[text]:
        assert read_and_check() == json.loads(text)
    else:
        with pytest.raises(RemoteProtocolError):
            read_and_check()


def test_digits_in_a_string_are_no_long_integer() -> None:
    assert read(b'["00000000000000000000001"]', loads=orjson.loads) == ["00000000000000000000001"]


def test_a_text_above_the_limit_is_not_even_looked_at() -> None:
    limits = Limits(receive=10)

    assert read(b"1234567890", limits) == 1234567890
    with pytest.raises(RemoteProtocolError, match="10 bytes") as caught:
        read(b"12345678901", limits)
    assert caught.value.problem.reason == "too-large"
