"""A function's signature as JSON Schema, and arguments checked against it.

Theory of operation.  A signature becomes a :class:`msgspec.Struct`; msgspec then does the
conversion (strictly: no number out of a string) and writes the schema.  A parameter with a default
becomes a field that may be unset, so that the function's own default is used, and never a copy.

The schema that goes out keeps to the subset of docs/protocol.md, so that whoever reads it in
another language needs no library: :data:`KEYWORDS`, no references (they are put in place), and no
types that contain themselves.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.protocols import (
    LIMITS,
    BlobRef,
    Json,
    LocalProtocolError,
    Problem,
    parse_reference,
    values,
)

from . import docstring
from .errors import one_line
from .job import Job

#: What a schema of ours may say.
KEYWORDS: Final = frozenset(
    {
        "additionalProperties",
        "anyOf",
        "default",
        "description",
        "enum",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "multipleOf",
        "pattern",
        "properties",
        "required",
        "type",
    }
)

#: How a reference to a blob is described.
BLOB: Final[Mapping[str, Json]] = {"type": "object", "format": "blob"}

Function = Callable[..., Any]
#: Makes the blob that the function gets out of the reference that the caller sent.
MakeBlob = Callable[[BlobRef], Blob]


@dataclass(frozen=True)
class Signature:
    """What a function takes and gives."""

    #: JSON Schema of the argument object and of the result.
    args: Mapping[str, Json]
    result: Mapping[str, Json]
    #: Name of the parameter that takes the job, if there is one.
    job: str | None
    #: The annotation of that parameter.
    job_type: type[Job] | None
    struct: type[msgspec.Struct]

    @classmethod
    def of(cls, function: Function, help: docstring.Docs | None = None) -> Signature:
        """Read a function's signature.

        Raises:
            TypeError: something in it cannot be an operation's; the text names the parameter.
        """
        name = function.__qualname__
        help = docstring.read(inspect.getdoc(function)) if help is None else help
        hints = _hints(function)
        fields: list[tuple[str, Any, Any]] = []
        defaults: dict[str, Any] = {}
        job: str | None = None
        job_type: type[Job] | None = None
        for parameter in inspect.signature(function).parameters.values():
            about = f"parameter '{parameter.name}' of {name}()"
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{about} must be an ordinary one: callers name every argument")
            if parameter.name not in hints:
                raise TypeError(f"{about} needs a type, such as '{parameter.name}: str'")
            hint = hints[parameter.name]
            if (kind := _job_kind(hint)) is not None:
                if job is not None:
                    raise TypeError(f"{about}: there is one job, and '{job}' has it")
                job, job_type = parameter.name, kind
                continue
            _schema(hint, about)
            if parameter.default is parameter.empty:
                fields.append((parameter.name, hint, msgspec.NODEFAULT))
            else:
                defaults[parameter.name] = _default(parameter.default, about)
                unset: Any = typing.Union[hint, msgspec.UnsetType]  # noqa: UP007 - hint is a value
                fields.append((parameter.name, unset, msgspec.UNSET))
        return cls.made(
            f"{name}()", fields, defaults, help, _result(function, hints), job, job_type
        )

    @classmethod
    def made(
        cls,
        about: str,
        fields: Sequence[tuple[str, Any, Any]],
        defaults: Mapping[str, Json],
        help: docstring.Docs,
        result: Any,
        job: str | None = None,
        job_type: type[Job] | None = None,
    ) -> Signature:
        """Make one without a function.

        Args:
            about: what it is of, for errors.
            fields: name, type and msgspec's default of each argument; an argument that the function
                has a default for is a union with ``UnsetType``, and ``UNSET`` by default.
            defaults: those defaults, as the schema shows them.
            help: what each argument is.
            result: its type.
            job: name of the parameter that takes the job.
            job_type: the annotation of that parameter.

        Raises:
            TypeError: a type has no schema.
        """
        struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
        args = _schema(struct, about)
        properties: dict[str, dict[str, Json]] = args.get("properties", {})
        for key, member in properties.items():
            if key in help.args:
                member.setdefault("description", help.args[key])
            if key in defaults:
                member["default"] = defaults[key]
        return cls(args, _schema(result, f"result of {about}"), job, job_type, struct)

    def convert(self, args: Mapping[str, Json], blob: MakeBlob) -> dict[str, Any]:
        """Turn what a caller sent into the function's arguments.

        Raises:
            BadCall: they do not fit; the problem's text names the argument in plain words.
        """

        def hook(kind: type[Any], raw: Any) -> Any:
            return raw if kind is object else blob(parse_reference(raw, LocalProtocolError))

        try:
            made = msgspec.convert(args, self.struct, strict=True, dec_hook=hook, str_keys=True)
        except Exception as exc:
            # Names first: who meant another argument is not helped by what is wrong with its value.
            self._check_names(args)
            if not isinstance(exc, msgspec.ValidationError):
                raise
            raise self._explain(str(exc), args) from exc
        for name in self._decimals:
            if name in args and not _exact(self.args["properties"][name], args[name]):
                raise _bad(f"argument '{name}': expected decimals as in \"-12.50\"", name)
        return {
            name: value
            for name in self.struct.__struct_fields__
            if (value := getattr(made, name)) is not msgspec.UNSET
        }

    @functools.cached_property
    def _decimals(self) -> list[str]:
        """The arguments that have decimals in them, which msgspec also takes from numbers and words."""
        properties: Mapping[str, Json] = self.args.get("properties", {})
        return [name for name, schema in properties.items() if _has_decimals(schema)]

    def _check_names(self, args: Mapping[str, Json]) -> None:
        names: tuple[str, ...] = self.struct.__struct_fields__
        for name in args:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f" (did you mean '{near[0]}'?)" if near else _list(names)
                raise _bad(f"unknown argument '{one_line(name, 60)}'{hint}", name)
        for name in typing.cast("list[str]", self.args.get("required", [])):
            if name not in args:
                raise _bad(f"missing argument '{name}'", name)

    def _explain(self, said: str, args: Mapping[str, Json]) -> CallError:
        """Say in plain words what msgspec found."""
        words, _, where = said.partition(" - at ")
        path = _AT.search(where)
        at = path[1] if path else ""
        name = _NAME.match(at)
        argument = name[0] if name else ""
        if words.startswith("Invalid enum value") and argument == at:
            schema = typing.cast("Mapping[str, Any]", self.args["properties"])[argument]
            choices = _choices(schema)
            words = f"{args[argument]!r} is not one of {', '.join(map(str, choices))}"
        for word, plain in _PLAIN.items():
            words = re.sub(rf"\b{word}\b(?=[^`]*`)", plain, words)
        words = words.replace(" | ", " or ").replace("`", "")
        if where.startswith("`key`"):
            words = f"a key: {words}"
        words = words[:1].lower() + words[1:]
        return _bad(one_line(f"argument '{at}': {words}", 300), argument or at)


_DECIMAL: Final = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}


def _inner(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = [*schema.get("properties", {}).values(), *schema.get("anyOf", ())]
    return found + [schema[name] for name in ("items", "additionalProperties") if schema.get(name)]


def _has_decimals(schema: Mapping[str, Any]) -> bool:
    return schema.get("format") == "decimal" or any(map(_has_decimals, _inner(schema)))


def _exact(schema: Mapping[str, Any], value: Json) -> bool:
    """Tell whether the decimals in a value, which fits otherwise, are written as such."""
    if "anyOf" in schema:
        return any(_exact(branch, value) for branch in schema["anyOf"])
    if "type" in schema and not isinstance(value, _KINDS[schema["type"]]):
        return False
    if schema.get("format") == "decimal":
        return isinstance(value, str) and _DECIMAL.fullmatch(value) is not None
    if isinstance(value, list):
        items: list[Json] = value  # pyright: ignore[reportUnknownVariableType] - JSON items
        return all(_exact(schema.get("items", {}), item) for item in items)
    if isinstance(value, dict):
        members: dict[str, Json] = value  # pyright: ignore[reportUnknownVariableType] - JSON keys
        known: Mapping[str, Any] = schema.get("properties", {})
        others: Mapping[str, Any] = schema.get("additionalProperties") or {}
        return all(_exact(known.get(name, others), item) for name, item in members.items())
    return True


_AT: Final = re.compile(r"`\$\.?([^`]*)`")
_NAME: Final = re.compile(r"\w+")

#: Names of types as msgspec writes them, in the words of JSON.
_PLAIN: Final = {"int": "integer", "float": "number", "str": "string", "bool": "boolean"}


def _bad(text: str, argument: str) -> CallError:
    return CallError.of(Problem("bad-arguments", text, argument=one_line(argument, 60)))


def _list(names: tuple[str, ...]) -> str:
    return f" (it takes {', '.join(names)})" if names else " (it takes none)"


def _choices(schema: Mapping[str, Any]) -> list[Json]:
    found = list(schema.get("enum", []))
    for branch in schema.get("anyOf", []):
        found += _choices(branch)
    return found


# -- types


def _job_kind(hint: object) -> type[Job] | None:
    return hint if isinstance(hint, type) and issubclass(hint, Job) else None


def _hints(function: Function) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as exc:
        raise TypeError(
            f"{function.__qualname__}(): its annotations use {exc.name!r}, which its module does "
            "not have (an import under TYPE_CHECKING is not enough)"
        ) from exc


_STREAMS: Final = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
)


def _result(function: Function, hints: Mapping[str, Any]) -> Any:
    hint = hints.get("return", Any)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        if hint is not Any and typing.get_origin(hint) not in _STREAMS:
            raise TypeError(f"{function.__qualname__}() yields: its result must be an Iterator")
        return None
    return hint


def _hook(kind: type[Any]) -> dict[str, Any]:
    if kind is Blob:
        return dict(BLOB)
    if kind is object:
        return {"title": "anything"}  # Left out later; msgspec takes no empty one.
    raise NotImplementedError(kind)


def _schema(hint: Any, about: str) -> dict[str, Json]:
    """Write the schema of a type within our subset."""
    try:
        raw = msgspec.json.schema(hint, schema_hook=_hook)
    except TypeError as exc:
        reason = str(exc).splitlines()[-1]
        raise TypeError(f"{about}: {reason}") from exc
    definitions: Mapping[str, Json] = raw.pop("$defs", {})
    found = _inline(raw, definitions, (), about)
    assert isinstance(found, dict)
    values.check(found, LIMITS, LocalProtocolError, about)
    return typing.cast("dict[str, Json]", found)


def _inline(
    schema: Any, definitions: Mapping[str, Json], inside: tuple[str, ...], about: str
) -> Json:
    """Put references in place and leave out what is not in the subset."""
    if not isinstance(schema, dict):
        return schema
    raw = typing.cast("dict[str, Any]", schema)
    into = functools.partial(_inline, definitions=definitions, inside=inside, about=about)
    if "$ref" in raw:
        name = str(raw["$ref"]).rpartition("/")[2]
        if name in inside:
            raise TypeError(f"{about}: type {name} contains itself; use a plain dict")
        target = _inline(definitions[name], definitions, (*inside, name), about)
        rest = {key: value for key, value in raw.items() if key in KEYWORDS}
        return {**typing.cast("dict[str, Json]", target), **rest}
    out: dict[str, Json] = {key: value for key, value in raw.items() if key in KEYWORDS}
    if "prefixItems" in raw:
        # Positions are not in the subset: any of their types at any of them.
        kinds = [into(item) for item in raw["prefixItems"]]
        out["items"] = kinds[0] if all(kind == kinds[0] for kind in kinds) else {"anyOf": kinds}
    elif "items" in raw:
        out["items"] = into(raw["items"])
    if "contentEncoding" in raw:
        out["format"] = str(raw["contentEncoding"])
    if "anyOf" in raw:
        out["anyOf"] = [into(branch) for branch in raw["anyOf"]]
    if "properties" in raw:
        out["properties"] = {key: into(value) for key, value in raw["properties"].items()}
    if "additionalProperties" in raw:
        out["additionalProperties"] = into(raw["additionalProperties"])
    return out


def _default(value: Any, about: str) -> Json:
    try:
        found = msgspec.to_builtins(value, str_keys=True)
        values.check(found)
    except (TypeError, ValueError) as exc:
        raise TypeError(f"{about}: its default {value!r:.60} has no JSON form ({exc})") from exc
    return found
