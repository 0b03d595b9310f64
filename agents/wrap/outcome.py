"""What an ending means: done, refused, retry or error, with words for the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from ..errors import Refused, one_line

_WORDS: Final = ("done", "refused", "retry", "error")

#: How it stands in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "anyOf": [
        {"type": "string", "enum": list(_WORDS)},
        {
            "type": "object",
            "properties": {word: {"type": "string", "minLength": 1} for word in _WORDS[1:]},
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
    """What an exit code or a status means."""

    word: str
    #: For the caller; without it, the last words of what ended.
    text: str = ""

    @classmethod
    def of(cls, said: Any) -> Outcome:
        """Read what fits :data:`SCHEMA`."""
        if isinstance(said, str):
            return cls(said)
        ((word, text),) = said.items()
        return cls(word, text)

    def tell(self, words: str, after: float | None = None) -> NoReturn:
        """Tell the caller of what did not end well.

        Args:
            words: what ended said itself.
            after: seconds before which another try is useless, if that is known.

        Raises:
            Refused, CallError: as the word says.
        """
        text = one_line(self.text or words)
        match self.word:
            case "refused":
                raise Refused(text)
            case "retry":
                raise CallError.of(Problem("busy", text, after=after))
            case _:
                raise CallError.of(Problem("failed", text))
