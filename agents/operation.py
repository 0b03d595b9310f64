"""A function as an operation: its path, its schema, and how it is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Literal, get_args

from spinal import protocols
from spinal.protocols import (
    Json,
    LocalProtocolError,
    Problem,
    RemoteProtocolError,
    RetryPolicy,
    duration,
)
from spinal.protocols import path as paths

from . import docstring
from .job import PlainJob
from .schema import Signature

Effects = Literal["reads", "writes", "deletes", "spends"]

Function = Callable[..., Any]


class Kind(Enum):
    """How a function runs."""

    #: On the event loop.
    COROUTINE = "coroutine"
    #: On the event loop; each value it yields is a piece of the stream.
    STREAM = "stream"
    #: In a worker process.
    PLAIN = "plain"
    #: In a worker process; each value it yields is a piece of the stream.
    PLAIN_STREAM = "plain stream"

    @property
    def in_process(self) -> bool:
        """Whether it runs in a worker process."""
        return self in (Kind.PLAIN, Kind.PLAIN_STREAM)

    @staticmethod
    def of(function: Function) -> Kind:
        """Tell how a function is to be run."""
        if inspect.isasyncgenfunction(function):
            return Kind.STREAM
        if inspect.iscoroutinefunction(function):
            return Kind.COROUTINE
        return Kind.PLAIN_STREAM if inspect.isgeneratorfunction(function) else Kind.PLAIN


@dataclass(frozen=True)
class Operation:
    """What an agent offers under one path."""

    #: As others see it.
    public: protocols.Operation
    function: Function
    signature: Signature
    kind: Kind
    #: How many run at once; the agent's slots bound it as well.
    slots: int | None = None

    @property
    def path(self) -> str:
        """Where it is."""
        return self.public.path

    @property
    def timeout(self) -> float:
        """Longest run in seconds."""
        return self.public.timeout

    @property
    def simple(self) -> bool:
        """Whether it is a coroutine that has its arguments and nothing else to do with its caller."""
        return self.kind is Kind.COROUTINE and self.signature.job is None

    @cached_property
    def late(self) -> Problem:
        """What a caller is told when it ran longer."""
        return Problem("deadline", f"ran longer than its timeout of {duration.write(self.timeout)}")

    @classmethod
    def of(
        cls,
        function: Function,
        path: str,
        *,
        timeout: str | float = "60s",
        effects: Effects = "writes",
        safe: bool | None = None,
        slots: int | None = None,
        retry: int | Mapping[str, Json] | None = None,
        signature: Signature | None = None,
        summary: str | None = None,
    ) -> Operation:
        """Make an operation of a function.

        ``signature`` and ``summary`` are what it takes and what it is for, where the function itself
        does not tell.

        Raises:
            TypeError: the function or its signature cannot be one; the text names what is wrong.
            ValueError: the path, timeout, effects, slots or retry are none.
        """
        if not inspect.isfunction(function):
            raise TypeError(f"an operation is a function, not {type(function).__name__}")
        name = f"{function.__qualname__}()"
        try:
            if not paths.parts(path):
                raise ValueError("'/' is no operation")
            seconds = duration.parse(timeout)
        except LocalProtocolError as exc:
            raise ValueError(f"{name}: {exc}") from exc
        except ValueError as exc:
            raise ValueError(f"{name}: timeout: {exc}") from exc
        if seconds <= 0:
            raise ValueError(f"{name}: timeout: it needs more than no time")
        if effects not in get_args(Effects):
            choices = ", ".join(get_args(Effects))
            raise ValueError(f"{name}: effects must be one of {choices}, not {effects!r}")
        if slots is not None and slots < 1:
            raise ValueError(f"{name}: slots must be at least 1, not {slots}")
        policy = None if retry is None else _policy(name, retry)
        kind = Kind.of(function)
        docs = docstring.read(inspect.getdoc(function))
        signature = Signature.of(function, docs) if signature is None else signature
        if kind.in_process and "<locals>" in function.__qualname__:
            raise TypeError(
                f"{name}: a plain function runs in a process that loads its file, so it must stand "
                "at the top of the file: move it there, or write 'async def'"
            )
        if not kind.in_process and signature.job_type is PlainJob:
            raise TypeError(f"{name}: an async operation takes a Job, not a PlainJob")
        public = protocols.Operation(
            path,
            docs.summary if summary is None else summary,
            signature.args,
            signature.result,
            effects,
            effects == "reads" if safe is None else safe,
            seconds,
            stream=kind in (Kind.STREAM, Kind.PLAIN_STREAM),
            retry=policy,
        )
        return cls(public, function, signature, kind, slots)


def _policy(name: str, retry: int | Mapping[str, Json]) -> dict[str, Json]:
    """Check what an operation says about retries, and give it as others see it."""
    if isinstance(retry, Mapping):
        retry = dict(retry)
        for member in retry:
            if member not in RetryPolicy.MEMBERS:
                known = ", ".join(RetryPolicy.MEMBERS)
                raise ValueError(f"{name}: 'retry.{member}' is unknown: there are {known}")
    try:
        return RetryPolicy.normal(retry)
    except RemoteProtocolError as exc:
        raise ValueError(f"{name}: {exc}") from exc
