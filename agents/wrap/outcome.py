"""What an exit code or an answer means to the caller: done, refused, retry or error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from ..errors import Refused, Retry

_OUTCOMES: Final = ("done", "refused", "retry", "error")

#: How it stands in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "anyOf": [
        {"type": "string", "enum": list(_OUTCOMES)},
        {
            "type": "object",
            "properties": {word: {"type": "string", "minLength": 1} for word in _OUTCOMES[1:]},
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
        },
    ],
    "errorMessage": "write done, refused, retry or error, or one of the last three with words for "
    'the caller, as in {refused: "no such invoice"}',
    "examples": ["refused"],
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an exit code or an answer means."""

    word: str
    #: For the caller; without it, its own last words.
    text: str = ""

    def error(self, last_words: str) -> Exception:
        """Make what is to be raised, where it is not ``done``."""
        text = self.text or last_words
        match self.word:
            case "refused":
                return Refused(text)
            case "retry":
                return Retry(text)
            case _:
                return CallError.of(Problem("failed", text))


def read(said: Any) -> Outcome:
    """Read what fits :data:`SCHEMA`."""
    if isinstance(said, str):
        return Outcome(said)
    ((word, text),) = said.items()
    return Outcome(word, text)
