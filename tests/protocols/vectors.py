"""protocols/vectors, as the tests read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "protocols" / "vectors"

Case = Mapping[str, Any]


def cases(file: str) -> list[Case]:
    """Give the cases of a file."""
    found: list[Case] = json.loads((FOLDER / file).read_text())["cases"]
    return found


def each(file: str, kind: str | None = None) -> pytest.MarkDecorator:
    """Run a test with each case of a file, or of one kind in it."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case["name"].encode("unicode_escape").decode())
            for case in cases(file)
            if kind is None or case["kind"] == kind
        ],
    )


def text_of(said: str | Sequence[Any]) -> str:
    """Put a text together out of the pieces in which long ones are written."""
    return said if isinstance(said, str) else "".join(map(_piece, said))


def _piece(said: str | Mapping[str, Any]) -> str:
    match said:
        case {"repeat": [piece, times]}:
            return str(piece) * int(times)
        case {"count": [piece, times]}:
            return "".join(str(piece).replace("#", str(number)) for number in range(times))
        case str():
            return said
        case _:
            raise AssertionError(f"no piece of a text: {said}")
