from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import (
    MAX_INTEGER,
    BlobRef,
    Json,
    LocalProtocolError,
    RemoteProtocolError,
    is_reference,
    parse_reference,
)

SHA = "0123456789abcdef" * 4
GOOD = {"url": "https://up.example.org/a/b.jpg", "sha256": SHA, "size": 10, "media": "image/jpeg"}


@given(
    st.text("abc/.?=%20-", max_size=50),
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.integers(0, MAX_INTEGER),
    st.sampled_from(["image/jpeg", "application/vnd.api+json"]),
)
def test_a_reference_survives_its_wire_form(url: str, sha: str, size: int, media: str) -> None:
    ref = BlobRef("https://up.example.org/" + url, sha, size, media)

    assert is_reference(ref.to_json())
    assert parse_reference(ref.to_json()) == ref


def test_the_media_type_has_a_default_and_unknown_members_are_ignored() -> None:
    raw = {"blob": {**{k: v for k, v in GOOD.items() if k != "media"}, "colour": "red"}}

    assert parse_reference(raw).media_type == "application/octet-stream"


@pytest.mark.parametrize(
    "change",
    [
        {"url": None},
        {"url": "http://up.example.org/a"},
        {"url": "https://"},
        {"url": "https://up.example.org/a b"},
        {"url": "https://up.example.org/\n"},
        {"url": "https://" + "x" * 2048},
        {"sha256": SHA.upper()},
        {"sha256": SHA + "0"},
        {"sha256": SHA + "\n"},
        {"size": -1},
        {"size": 1.0},
        {"size": True},
        {"size": MAX_INTEGER + 1},
        {"media": "jpeg"},
        {"media": "text/plain; charset=utf-8"},
        {"media": 3},
    ],
    ids=str,
)
def test_a_wrong_member_is_refused_with_the_error_asked_for(change: dict[str, Json]) -> None:
    for error in (RemoteProtocolError, LocalProtocolError):
        with pytest.raises(error, match="blob"):
            parse_reference({"blob": {**GOOD, **change}}, error)


@pytest.mark.parametrize("value", [None, 1, "blob", [], {}, {"blob": 1, "x": 2}, {"b": {}}])
def test_other_values_are_no_references(value: Json) -> None:
    assert not is_reference(value)
    with pytest.raises(RemoteProtocolError, match="not a reference"):
        parse_reference(value)
