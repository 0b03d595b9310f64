"""What an agent offers: operations with their schemas, and the hash that names the whole.

The description is one JSON text.  Its hash is the SHA-256 of the bytes as sent, so a receiver
checks it without knowing how to write JSON canonically, and a thousand equal workers have one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from . import readers, values
from .errors import LocalProtocolError, RemoteProtocolError
from .readers import Reader
from .retry import RetryPolicy
from .values import LIMITS, Dumps, Json, Limits, check

#: What an operation does to the world; decides about confirmation and running again.
EFFECTS = ("reads", "writes", "deletes", "spends")

#: Most operations of one agent.
MAX_OPERATIONS = 2000


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation as others see it."""

    path: str
    summary: str = ""
    #: JSON Schema of the argument object; the subset of docs/protocol.md.
    args: Mapping[str, Json] = field(default_factory=dict[str, Json])
    #: JSON Schema of the result.
    result: Mapping[str, Json] = field(default_factory=dict[str, Json])
    effects: str = "writes"
    #: May run twice without harm.
    safe: bool = False
    #: Longest run in seconds.
    timeout: float = 60.0
    #: Gives data before its result.
    stream: bool = False
    #: How a job is tried again whose caller does not say (:class:`RetryPolicy`); by default never.
    retry: Mapping[str, Json] | None = None

    def to_json(self) -> dict[str, Json]:
        """Give its entry in the description."""
        found: dict[str, Json] = {
            "summary": self.summary,
            "args": self.args,
            "result": self.result,
            "effects": self.effects,
            "safe": self.safe,
            "timeout": self.timeout,
            "stream": self.stream,
        }
        if self.retry is not None:
            found["retry"] = self.retry
        return found


_OPERATION: Mapping[str, Reader] = {
    "summary": readers.text(4096),
    "args": readers.mapping,
    "result": readers.mapping,
    "effects": readers.one_of(*EFFECTS),
    "safe": readers.flag,
    "timeout": readers.number(0),
    "stream": readers.flag,
    "retry": RetryPolicy.normal,
}


@dataclass(frozen=True)
class Capabilities:
    """A capability description: its operations and the text that was or will be sent."""

    text: str
    operations: Mapping[str, Operation] = field(repr=False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the text's UTF-8 bytes, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def of(cls, operations: Iterable[Operation], dumps: Dumps = values.dumps) -> Capabilities:
        """Describe these operations; equal ones in any order give equal text.

        Raises:
            LocalProtocolError: a schema is not I-JSON, or there is more than a peer would read.
        """
        by_path = {op.path: op for op in sorted(operations, key=lambda op: op.path)}
        raw = {"ops": {path: op.to_json() for path, op in by_path.items()}}
        if len(by_path) > MAX_OPERATIONS:
            raise LocalProtocolError(f"more than {MAX_OPERATIONS} operations", "too-large")
        check(raw)
        return cls(dumps(raw).decode(), by_path)

    @classmethod
    def parse(cls, text: str, expected: str, limits: Limits = LIMITS) -> Capabilities:
        """Read a description that a peer sent.

        Raises:
            RemoteProtocolError: it is not the text that was advertised, or not a description.
        """
        found = cls(text, {})
        if found.hash != expected:
            raise RemoteProtocolError("the description does not have the advertised hash")
        raw = values.read(text.encode(), limits)
        check(raw, limits, RemoteProtocolError)
        ops = readers.mapping(readers.mapping(raw, "description").get("ops", {}), "ops")
        if len(ops) > MAX_OPERATIONS:
            raise RemoteProtocolError(f"more than {MAX_OPERATIONS} operations", "too-large")
        operations = {
            readers.operation(path, "ops"): Operation(
                path, **readers.members(entry, path, _OPERATION)
            )
            for path, entry in ops.items()
        }
        return cls(text, operations)
