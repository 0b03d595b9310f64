"""What goes over the wire: a request, what it asks for, and a reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    #: Path and query as they came.
    target: str

    def object(self) -> dict[str, Any]:
        """Read the body, of which nothing is an empty object; ValueError if it is no object."""
        value: Any = json.loads(self.body) if self.body else {}
        if not isinstance(value, dict):
            raise ValueError("the body is no JSON object")  # noqa: TRY004 - it is a bad request
        found: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        return found


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request is for, in words that hold for every vendor."""

    operation: str
    region: str = ""
    type: str = ""
    name: str = ""
    #: The machine (or image) that it is about.
    id: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, status: int, value: Any = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Make one of JSON; without a value the body is empty."""
        body = b"" if value is None else json.dumps(value).encode()
        return cls(status, body, {"Content-Type": JSON, **(headers or {})})


@dataclass(frozen=True, slots=True)
class View:
    """How a vendor is to answer, other than truthfully."""

    #: Show the machines as they were at this time; None is now.
    at: float | None = None
    #: Show no price of this type, or of any ("*").
    unpriced: str = ""
    #: The machine that is made will never run, because of this kind of fault.
    broken: str = ""

    def priced(self, type: str) -> bool:
        """Say whether this type is shown with its price."""
        return self.unpriced not in ("*", type)


TRUTH: Final = View()
