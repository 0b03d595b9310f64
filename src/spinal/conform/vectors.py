"""The test vectors of the protocol (``protocols/vectors``, whose README says what they mean)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from spinal import protocols

FOLDER: Final = Path(protocols.__file__).parent / "vectors"

Case = Mapping[str, Any]


def cases(file: str) -> list[Case]:
    """Give the cases of a file."""
    found: list[Case] = json.loads((FOLDER / file).read_text("utf-8"))["cases"]
    return found


def text_of(said: str | Sequence[Any]) -> str:
    """Put a text together out of the pieces in which long ones are written.

    Raises:
        ValueError: one of them is none.
    """
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
            raise ValueError(f"no piece of a text: {said}")
