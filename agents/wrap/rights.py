"""Who may call an operation, as its manifest says; beside what the home allows."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem
from spinal.protocols.address import bare

#: How they stand in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "type": "object",
    "properties": {
        "call": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "string",
                "pattern": "^[^@/ ]+@[^@/ ]+$",
                "patternErrorMessage": "is no address of an account: write ann@example.org, or "
                "*@example.org for all of a domain",
            },
            "description": "Accounts that may call it.",
            "examples": [["ann@example.org", "*@example.org"]],
        }
    },
    "required": ["call"],
    "additionalProperties": False,
    "description": "Who may call it; everybody whom the home allows to call, if not said.",
    "examples": [{"call": ["ann@example.org"]}],
}


@dataclass(frozen=True, slots=True)
class Rights:
    """Who may call; without a list, everybody."""

    call: tuple[str, ...] | None = None

    @classmethod
    def of(cls, said: Mapping[str, Any] | None) -> Rights:
        """Read what fits :data:`SCHEMA`."""
        return cls() if said is None else cls(tuple(said["call"]))

    def __bool__(self) -> bool:
        return self.call is not None

    def check(self, caller: str) -> None:
        """Let a caller pass.

        Raises:
            CallError: ``not-allowed``.
        """
        if self.call is None:
            return
        who = bare(caller)
        if not any(fnmatch.fnmatchcase(who, pattern) for pattern in self.call):
            raise CallError.of(Problem("not-allowed", f"{who} may not call this operation"))
