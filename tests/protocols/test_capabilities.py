from __future__ import annotations

import hashlib
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import (
    EFFECTS,
    Capabilities,
    Dumps,
    Json,
    LocalProtocolError,
    Operation,
    RemoteProtocolError,
    values,
)
from spinal.protocols.capabilities import MAX_OPERATIONS

DEFAULT = st.booleans() | st.text(max_size=8)
SCHEMA = st.dictionaries(st.text(max_size=8), DEFAULT | st.lists(DEFAULT, max_size=2), max_size=3)
OPERATION = st.builds(
    Operation,
    st.lists(st.text("abc1é", min_size=1, max_size=3), min_size=1, max_size=3).map(
        lambda found: "/" + "/".join(found)
    ),
    st.text(max_size=20),
    SCHEMA,
    SCHEMA,
    st.sampled_from(EFFECTS),
    st.booleans(),
    st.floats(0, 1e6),
    st.booleans(),
    st.none() | st.fixed_dictionaries({"count": st.integers(0, 100)}),
)
DUMPS = pytest.mark.parametrize("dumps", [values.dumps, orjson.dumps], ids=["json", "orjson"])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@DUMPS
@given(found=st.lists(OPERATION, max_size=4, unique_by=lambda op: op.path))
def test_what_is_described_is_read_back(dumps: Dumps, found: list[Operation]) -> None:
    ours = Capabilities.of(found, dumps)
    theirs = Capabilities.parse(ours.text, ours.hash)

    assert theirs.operations == {op.path: op for op in found}
    assert theirs.hash == ours.hash == _hash(ours.text)


@given(st.permutations([Operation(f"/op/{name}") for name in "abcd"]))
def test_equal_operations_in_any_order_have_one_hash(found: list[Operation]) -> None:
    assert Capabilities.of(found).hash == Capabilities.of(reversed(found)).hash


def test_the_hash_is_over_the_bytes_as_sent_and_not_over_their_meaning() -> None:
    text = Capabilities.of([Operation("/é")]).text
    spaced = json.dumps(json.loads(text), indent=1)

    assert Capabilities.parse(spaced, _hash(spaced)).operations["/é"].path == "/é"
    with pytest.raises(RemoteProtocolError, match="advertised hash"):
        Capabilities.parse(spaced, _hash(text))


def test_members_that_are_missing_have_defaults_and_unknown_ones_are_ignored() -> None:
    text = '{"ops": {"/a": {"colour": "red"}}, "more": 1}'

    assert Capabilities.parse(text, _hash(text)).operations == {"/a": Operation("/a")}


def test_a_number_of_tries_is_read_as_a_policy() -> None:
    text = '{"ops": {"/a": {"retry": 3}, "/b": {"retry": null}}}'

    found = Capabilities.parse(text, _hash(text)).operations

    assert (found["/a"].retry, found["/b"].retry) == ({"count": 3}, None)


def test_an_operation_without_a_policy_is_described_as_before_there_were_any() -> None:
    assert "retry" not in Capabilities.of([Operation("/a")]).text
    assert '"retry":{"count":3}' in Capabilities.of([Operation("/a", retry={"count": 3})]).text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"ops": []}',
        '{"ops": {"a": {}}}',
        '{"ops": {"/a": []}}',
        '{"ops": {"/a": {"effects": "explodes"}}}',
        '{"ops": {"/a": {"timeout": -1}}}',
        '{"ops": {"/a": {"timeout": NaN}}}',
        '{"ops": {"/a": {"safe": 1}}}',
        '{"ops": {"/a": {"retry": "often"}}}',
        '{"ops": {"/a": {"retry": {}}}}',
        '{"ops": {"/a": {"retry": {"count": 1, "backoff": -1}}}}',
        '{"ops": {"/a": {"args": [1]}}}',
        '{"ops": {"/a": {"args": {"default": 9007199254740992}}}}',
    ],
)
def test_what_is_not_a_description_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Capabilities.parse(text, _hash(text))


def test_more_operations_than_a_peer_reads_are_refused_on_both_sides() -> None:
    many: dict[str, Json] = {f"/op/{number}": {} for number in range(MAX_OPERATIONS + 1)}
    text = json.dumps({"ops": many})

    with pytest.raises(RemoteProtocolError, match="operations"):
        Capabilities.parse(text, _hash(text))
    with pytest.raises(LocalProtocolError, match="operations"):
        Capabilities.of([Operation(path) for path in many])


@DUMPS
@pytest.mark.parametrize("bad", [float("nan"), 2**53, "\ud800", {1: 2}])
def test_a_schema_that_is_not_i_json_is_refused_before_it_is_sent(dumps: Dumps, bad: Json) -> None:
    with pytest.raises(LocalProtocolError):
        Capabilities.of([Operation("/a", args={"default": bad})], dumps)
