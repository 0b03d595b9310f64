"""What becomes of the bytes that a program or service answered: the ``output`` of an operation."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from spinal.bus.blob import Blob
from spinal.protocols import Json, values

from ..errors import AgentError, one_line
from .pattern import Pattern

if TYPE_CHECKING:
    from .kind import Site

_CONVERT: Final[Mapping[str, Callable[[str], Json]]] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": lambda text: text.lower() in ("true", "yes", "1", "on"),
}

#: How it stands in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "anyOf": [
        {"type": "string", "enum": ["text", "json", "lines", "csv", "blob", "none"]},
        {
            "type": "object",
            "properties": {
                "regex": {
                    "type": "string",
                    "minLength": 1,
                    "description": "Searched in the output; its named groups are the result.",
                },
                "fields": {
                    "type": "object",
                    "additionalProperties": {"enum": list(_CONVERT)},
                    "description": "Types of the groups; without one a group is a string.",
                },
                "all": {
                    "type": "boolean",
                    "description": "A list of all that match, and not the first one.",
                },
                "sample": {
                    "type": "string",
                    "description": "An output that it has to match; `spinal wrap check` tries.",
                },
            },
            "required": ["regex"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "json": {
                    "type": "string",
                    "pattern": "^(/.*)?$",
                    "patternErrorMessage": "is no JSON pointer, which begins with '/'",
                    "description": "JSON pointer (RFC 6901) to the part that is the result.",
                    "examples": ["/data/items"],
                }
            },
            "required": ["json"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "csv": {
                    "type": "object",
                    "properties": {
                        "delimiter": {"type": "string", "minLength": 1, "maxLength": 1},
                        "header": {
                            "anyOf": [
                                {"type": "boolean"},
                                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                            ],
                            "description": "Whether the first line names the columns, or their "
                            "names.",
                        },
                    },
                    "additionalProperties": False,
                }
            },
            "required": ["csv"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "blob": {
                    "type": "string",
                    "pattern": "^[a-z]+/[A-Za-z0-9.+-]+$",
                    "patternErrorMessage": "is no media type",
                    "examples": ["image/png"],
                },
                "file": {
                    "type": "string",
                    "minLength": 1,
                    "description": "The file that the program wrote, if not its standard output.",
                    "examples": ["{tmp}/out.png"],
                },
            },
            "required": ["blob"],
            "additionalProperties": False,
        },
    ],
    "default": "text",
    "description": "What becomes of the output: text, json, lines, csv, blob, none, or a mapping that "
    "says more.",
    "examples": ["json"],
}

#: What the result of each form is.
_TYPES: Final[Mapping[str, Any]] = {
    "text": str,
    "json": Any,
    "lines": list[str],
    "csv": list[Any],
    "regex": Any,
    "blob": Blob,
    "none": None,
}


@dataclass(frozen=True)
class Output:
    """How the result is made of bytes."""

    form: str = "text"
    #: What stands beside the form.
    more: Mapping[str, Json] | None = None

    @classmethod
    def of(cls, site: Site) -> Output:
        """Read the ``output`` of an operation; mistakes are collected."""
        said: Any = site.op.get("output", "text")
        if isinstance(said, str):
            return cls(said)
        form = next(name for name in _TYPES if name in said)
        if form == "regex":
            _check_regex(site, said)
        return cls(form, said)

    @property
    def type(self) -> Any:
        """Type of the result."""
        return _TYPES[self.form]

    @property
    def media_type(self) -> str | None:
        """Of a blob, if it is said."""
        return None if self.more is None else self.more.get("blob")

    def take(self, data: bytes) -> Any:
        """Make the result.

        Raises:
            AgentError: the bytes are not what they should be; the text shows their beginning.
        """
        return _TAKE[self.form](data, self.more or {})


def _check_regex(site: Site, said: Mapping[str, Any]) -> None:
    try:
        compiled = Pattern(said["regex"], lines=True)
    except ValueError as exc:
        site.wrong(str(exc), "output", "regex")
        return
    if not compiled.groups:
        site.wrong(
            r"has no group: name what is to come out, as in (?P<pages>\d+)", "output", "regex"
        )
        return
    for name in said.get("fields", {}):
        if name not in compiled.names:
            site.wrong("is no named group of the regex", "output", "fields", name)
            return
    if "sample" in said:
        try:
            _regex(said["sample"].encode(), said)
        except AgentError as exc:
            site.wrong(str(exc), "output", "sample")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise AgentError(
            f"the output is not UTF-8 text (byte {exc.start}): say output: blob in the manifest"
        ) from exc


def _start(data: bytes) -> str:
    return one_line(data[:200].decode(errors="replace"), 120) or "nothing"


def _json(data: bytes, more: Mapping[str, Json]) -> Json:
    try:
        found = values.loads(data)
    except ValueError as exc:
        raise AgentError(f"the output is no JSON ({exc}), it begins with: {_start(data)}") from exc
    return pointed(found, more.get("json", ""))


def pointed(value: Any, pointer: str) -> Any:
    """Give the part of a value that a JSON pointer names (RFC 6901).

    Raises:
        AgentError: there is no such part.
    """
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        try:
            # By its type, because a text has an item 0 as well.
            value = value[_INDEX[type(value)](key)]
        except (KeyError, IndexError, ValueError, TypeError) as exc:
            raise AgentError(f"the answer has nothing at {pointer} (no {key!r})") from exc
    return value


_INDEX: Final[Mapping[type, Callable[[str], Any]]] = {dict: str, list: int}


@functools.cache
def _pattern(said: str) -> Pattern:
    return Pattern(said, lines=True)


def _regex(data: bytes, more: Mapping[str, Any]) -> Json:
    kinds: Mapping[str, str] = more.get("fields", {})
    found: list[Json] = []
    for match in _pattern(more["regex"]).all(_text(data)):
        groups = match.groupdict()
        if not groups:
            found.append(match[1] if len(match.groups()) == 1 else list(match.groups()))
        else:
            found.append({k: _converted(v, kinds.get(k, "string"), k) for k, v in groups.items()})
        if not more.get("all"):
            return found[0]
    if more.get("all"):
        return found
    raise AgentError(f"the output does not match {more['regex']}, it begins with: {_start(data)}")


def _converted(text: str | None, kind: str, name: str) -> Json:
    if text is None:
        return None
    try:
        return _CONVERT[kind](text)
    except ValueError as exc:
        raise AgentError(f"field {name}: {text[:60]!r} is no {kind}") from exc


def _csv(data: bytes, more: Mapping[str, Any]) -> Json:
    how: Mapping[str, Any] = more.get("csv", {})
    try:
        rows = list(csv.reader(io.StringIO(_text(data)), delimiter=how.get("delimiter", ",")))
    except csv.Error as exc:
        raise AgentError(f"the output is no CSV ({exc}), it begins with: {_start(data)}") from exc
    header = how.get("header", True)
    if header is False:
        return rows
    names: list[str] = (rows.pop(0) if rows else []) if header is True else header
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise AgentError(f"row {number} has {len(row)} columns, and there are {len(names)}")
    return [dict(zip(names, row, strict=True)) for row in rows]


_TAKE: Final[Mapping[str, Callable[[bytes, Mapping[str, Json]], Any]]] = {
    "text": lambda data, more: _text(data).removesuffix("\n"),
    "json": _json,
    "lines": lambda data, more: _text(data).splitlines(),
    "csv": _csv,
    "regex": _regex,
    "blob": lambda data, more: Blob.of(data, more.get("blob")),
    "none": lambda data, more: None,
}
