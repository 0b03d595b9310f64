"""An operation of the dispatcher itself: what it needs, what it reads, and what it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from spinal.bus.errors import CallError
from spinal.bus.requests import Request
from spinal.protocols import Json, Problem, RemoteProtocolError, readers
from spinal.protocols.readers import Reader

from .roles import Right

#: Arguments of an operation, read.
Arguments = Mapping[str, Any]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Own(Generic[T]):
    """One of the dispatcher's own operations."""

    right: Right
    reads: Mapping[str, Reader]
    run: Callable[[T, Request, Arguments], Awaitable[Json]]

    def read(self, args: Mapping[str, Json]) -> Arguments:
        """Read arguments; unknown ones are ignored.

        Raises:
            CallError: one of them is wrong.
        """
        try:
            return readers.members(dict(args), "arguments", self.reads)
        except RemoteProtocolError as exc:
            problem = Problem("bad-arguments", exc.problem.text, exc.problem.argument)
            raise CallError.of(problem) from exc


def needed(args: Arguments, name: str) -> str:
    """Give an argument that must be there.

    Raises:
        CallError: it is missing.
    """
    if name not in args:
        raise CallError.of(Problem("bad-arguments", f"'{name}' is missing", name))
    return str(args[name])
