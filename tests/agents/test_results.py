from __future__ import annotations

import datetime
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from spinal.agents import Blob, results
from spinal.bus.errors import CallError

from .conftest import Shelf


@dataclass
class Photo:
    name: str
    when: datetime.date
    picture: Blob


async def test_dataclasses_dates_and_decimals_become_json() -> None:
    value = {"a": (1, Decimal("1.5")), "b": datetime.date(2026, 1, 2), 3: {"x"}, "c": b"\x00"}

    assert await results.pack(value, None) == {
        "a": (1, "1.5"),
        "b": "2026-01-02",
        "3": ["x"],
        "c": "AA==",
    }


async def test_blobs_anywhere_in_a_result_are_uploaded(shelf: Shelf, tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    file.write_bytes(b"png")
    value = [Photo("x", datetime.date(2026, 1, 2), Blob.of(file)), (Blob.of(b"raw"),)]
    found: Any = await results.pack(value, shelf)

    assert found[0]["picture"]["blob"]["media"] == "image/png"
    assert found[1][0]["blob"]["size"] == 3
    assert sorted(shelf.kept.values()) == [b"png", b"raw"]


async def test_a_blob_that_is_uploaded_already_is_only_named(shelf: Shelf) -> None:
    ref = shelf.put(b"x")
    blob = Blob(None, ref.media_type, ref=ref, store=shelf)

    assert await results.pack(blob, None) == ref.to_json()


@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (object(), "failed", "the result cannot be sent: object is not a JSON value"),
        (float("inf"), "failed", "not a JSON number"),
        ("\ud800", "failed", "lone surrogate"),
        (2**60, "failed", "2^53"),
        ("&" * 10_000, "too-large", "60002 bytes"),
        (Blob.of(b"x"), "blob", "no place to upload"),
    ],
)
async def test_what_cannot_travel_is_a_problem(value: object, reason: str, words: str) -> None:
    with pytest.raises(CallError) as caught:
        await results.pack(value, None)

    assert caught.value.reason == reason
    assert words in str(caught.value)


def test_a_list_is_cut_where_it_would_be_too_large() -> None:
    assert results.fitting(["a", "b", "c"], 2) == (["a", "b"], True)
    assert results.fitting(["a", "b"], 2) == (["a", "b"], False)
    kept, more = results.fitting(["x" * 98] * 10, 10, 500)
    assert (len(kept), more) == (4, True)
