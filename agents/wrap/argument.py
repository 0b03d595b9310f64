"""What an operation of a manifest takes: typed arguments, checked before anything is filled in."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union

import msgspec

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import Json, Problem

from ..docstring import Docs
from ..document import SIZE, size
from ..errors import one_line
from ..job import Job
from ..schema import Signature
from .pattern import Pattern, TooLong

#: A name that an argument may have.
NAMES: Final[Mapping[str, Json]] = {
    "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,63}$",
    "patternErrorMessage": "is no name of an argument: use letters, digits and '_'",
}

#: Name of the parameter that takes the job; no argument can have it.
JOB: Final = "job "

#: How an argument stands in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "type": ["object", "null"],
    "description": "One argument; without a type it is a string.",
    "properties": {
        "type": {
            "enum": ["string", "integer", "number", "boolean", "file", "array", "object"],
            "default": "string",
            "description": "What it is; a file travels as a blob and is at hand as a file while the "
            "operation runs.",
        },
        "summary": {"type": "string", "maxLength": 1000, "description": "What it is for."},
        "default": {"description": "What it is if the caller leaves it out; null for nothing."},
        "optional": {
            "type": "boolean",
            "default": False,
            "description": "It may be left out, and then is nothing.",
        },
        "pattern": {
            "type": "string",
            "minLength": 1,
            "description": "Regular expression that all of a string has to match.",
            "examples": ["[0-9]{6,10}"],
        },
        "min_length": {"type": "integer", "minimum": 0, "description": "In characters."},
        "max_length": {
            "type": "integer",
            "minimum": 1,
            "description": "In characters.",
            "examples": [80],
        },
        "minimum": {"type": "number", "examples": [1]},
        "maximum": {"type": "number", "examples": [100]},
        "enum": {
            "type": "array",
            "minItems": 1,
            "uniqueItems": True,
            "items": {"type": ["string", "integer"]},
            "description": "All that it may be.",
            "examples": [["EUR", "USD"]],
        },
        "media": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "string",
                "pattern": r"^[a-z]+/(\*|[A-Za-z0-9.+-]+)$",
                "patternErrorMessage": "is no media type",
                "examples": ["image/png"],
            },
            "description": "Media types that a file may have; any if not said.",
            "examples": [["image/jpeg", "image/*"]],
        },
        "max_size": {**SIZE, "description": "Of a file (64M)."},
        "dashes": {
            "type": "boolean",
            "default": False,
            "description": "It may begin with a dash although it stands alone in a command line: the "
            "program is known not to take it for an option.",
        },
    },
    "additionalProperties": False,
    "examples": [{"type": "string", "max_length": 80}],
}

#: Which keys belong to which types; the others go with any.
_ONLY: Final[Mapping[str, tuple[str, ...]]] = {
    "pattern": ("string",),
    "min_length": ("string",),
    "max_length": ("string",),
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "enum": ("string", "integer"),
    "dashes": ("string", "integer", "number"),
    "media": ("file",),
    "max_size": ("file",),
}

#: Bytes of a file if nothing is said.
MAX_SIZE: Final = 64 * 1024 * 1024

_TYPES: Final[Mapping[str, Any]] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "file": Blob,
    "array": list[Any],
    "object": dict[str, Any],
}


@dataclass(frozen=True)
class Argument:
    """One argument of an operation.

    Raises:
        ValueError: what is said about it does not go together; the first word is the key.
    """

    name: str
    type: str = "string"
    summary: str = ""
    default: Json = None
    #: It has to be given.
    required: bool = True
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    enum: tuple[str | int, ...] | None = None
    dashes: bool = False
    media: tuple[str, ...] | None = None
    max_size: int = MAX_SIZE

    @classmethod
    def of(cls, name: str, said: Mapping[str, Json] | None) -> Argument:
        """Read what a manifest says about an argument, which fits :data:`SCHEMA`."""
        said = dict(said or {})
        kind = said.get("type", "string")
        for key, kinds in _ONLY.items():
            if key in said and kind not in kinds:
                raise ValueError(f"{key} is for the type {' or '.join(kinds)}, and this is {kind}")
        optional = said.pop("optional", False)
        required = not optional and "default" not in said
        for key in ("enum", "media"):
            if key in said:
                said[key] = tuple(said[key])
        if "max_size" in said:
            said["max_size"] = size(said["max_size"])
        return cls(name, required=required, **said)

    def __post_init__(self) -> None:
        for low, high in (("min_length", "max_length"), ("minimum", "maximum")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"{low} {least} is more than {high} {most}")
        if self.enum is not None:
            kind = _TYPES[self.type]
            for choice in self.enum:
                if type(choice) is not kind:
                    raise ValueError(
                        f"enum holds {choice!r}, which is no {self.type}: "
                        + ("put it in quotes" if kind is str else "leave the quotes out")
                    )
        try:
            self._compiled  # noqa: B018 - tried here
        except ValueError as exc:
            raise ValueError(f"pattern {self.pattern!r}: {exc}") from exc
        if self.default is not None:
            if self.type == "file":
                raise ValueError("default: a file has none; write optional: true")
            try:
                if isinstance(self.default, str):
                    self.check(self.default)
                msgspec.convert(self.default, self.hint, strict=True)
            except (msgspec.ValidationError, CallError) as exc:
                why = str(exc).replace("`", "").removeprefix(f"argument '{self.name}': ")
                raise ValueError(f"default {self.default!r} does not fit: {why}") from exc

    @functools.cached_property
    def _compiled(self) -> Pattern | None:
        return None if self.pattern is None else Pattern(self.pattern)

    @functools.cached_property
    def hint(self) -> Any:
        """Its type as :mod:`msgspec` takes it."""
        if self.enum is not None:
            return Literal[self.enum]
        limits: dict[str, Any] = {
            "min_length": self.min_length,
            "max_length": self.max_length,
            "ge": self.minimum,
            "le": self.maximum,
        }
        if self.pattern is not None:
            # For those who read the schema; it is seen to in check(), in bounded time.
            limits["extra_json_schema"] = {"pattern": f"^(?:{self.pattern})$"}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        kind = _TYPES[self.type]
        return Annotated[kind, msgspec.Meta(**given)] if given else kind

    def check(self, value: object) -> None:
        """Make sure of what the schema cannot say.

        Raises:
            CallError: ``bad-arguments``, by name.
        """
        if isinstance(value, Blob):
            kind = value.media_type.partition(";")[0].strip().lower()
            if self.media is not None and not any(_fits(kind, one) for one in self.media):
                raise self.bad(f"{one_line(kind, 60)} is none of {', '.join(self.media)}")
            if value.size > self.max_size:
                raise self.bad(f"{value.size} bytes are more than {self.max_size}")
        if not isinstance(value, str):
            return
        try:
            value.encode()
        except UnicodeEncodeError as exc:
            # Nothing on the bus can bring it; a kind must not be the first to notice.
            raise self.bad(f"character {exc.start} is half of a surrogate pair") from exc
        try:
            fits = self._compiled is None or self._compiled.fullmatch(value)
        except TooLong as exc:
            raise self.bad(str(exc)) from exc
        if not fits:
            raise self.bad(f"all of it must match {self.pattern}")

    def bad(self, text: str) -> CallError:
        """Make the refusal of a value."""
        return CallError.of(
            Problem("bad-arguments", f"argument '{self.name}': {text}", argument=self.name)
        )


def _fits(kind: str, wanted: str) -> bool:
    family, _, one = wanted.partition("/")
    return kind.startswith(f"{family}/") if one == "*" else kind == wanted.lower()


def signature(about: str, arguments: Mapping[str, Argument], result: Any) -> Signature:
    """Make the signature of an operation that takes these arguments, and the job as ``job_``."""
    fields: list[tuple[str, Any, Any]] = []
    for name, one in arguments.items():
        if one.required:
            fields.append((name, one.hint, msgspec.NODEFAULT))
        else:
            maybe: Any = Union[one.hint, msgspec.UnsetType]  # noqa: UP007 - a value
            if one.default is None:
                maybe = Union[maybe, None]  # noqa: UP007
            fields.append((name, maybe, msgspec.UNSET))
    help = Docs(args={name: one.summary for name, one in arguments.items() if one.summary})
    defaults = {name: one.default for name, one in arguments.items() if not one.required}
    return Signature.made(about, fields, defaults, help, result, JOB, Job)


def text(value: Json) -> str:
    """Write a value as a program, a URL or a line takes it: text as it is, true, 4.5, JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
