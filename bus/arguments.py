"""From words, as a person types them, to the arguments of an operation, by its schema.

Pure but for ``key@=file``, which reads the file, unless there are none.  Every mistake is found
here, before anything is sent, and its text names the argument.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from spinal.protocols import LIMITS, Json, LocalProtocolError, values

#: Three ways to give an argument, as they are told in help and errors.
FORMS: Final = "key=value, key:=json or key@=file"

_WORD = re.compile(r"([^=:@\s][^=\s]*?)([:@]?)=(.*)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,17}")

Schema = Mapping[str, Json]


class ArgumentError(LocalProtocolError):
    """An argument that does not fit; nothing was sent."""

    def __init__(self, text: str, argument: str | None = None) -> None:
        super().__init__(text, "bad-arguments", argument)


@dataclass(frozen=True, slots=True)
class Given:
    """One argument as it was typed."""

    name: str
    #: Nothing (a value), ``:`` (JSON) or ``@`` (a file).
    form: str
    text: str


#: Finds the file that an argument names; raises :class:`ArgumentError`.
Files = Callable[[Given], Path]


def on_disk(given: Given) -> Path:
    """Give the file on this machine that an argument names.

    Raises:
        ArgumentError: it cannot be read.
    """
    if given.text.startswith(("http://", "https://")):
        raise ArgumentError(
            f"{given.name} takes a file: save {given.text[:60]} first, or give a blob's reference "
            f"as {given.name}:='{{\"blob\": ...}}'",
            given.name,
        )
    path = Path(given.text).expanduser()
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{given.name}: {given.text[:200]} is no ordinary file", given.name)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ArgumentError(
            f"{given.name}: {given.text[:200]} cannot be read: {error.strerror}", given.name
        ) from error
    return path


def parse(words: Iterable[str]) -> list[Given]:
    """Take ``key=value`` words apart.

    Raises:
        ArgumentError: a word has another form, or a key is there twice.
    """
    found: dict[str, Given] = {}
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None:
            raise ArgumentError(f"{word[:60]!r} is no argument: write {FORMS}")
        name, form, text = match.groups()
        if name in found:
            raise ArgumentError(f"{name} is given twice: for a list write {name}:='[...]'", name)
        found[name] = Given(name, form, text)
    return list(found.values())


def convert(given: Sequence[Given], schema: Schema, files: Files = on_disk) -> dict[str, Any]:
    """Give the arguments that were typed as values of an operation's argument schema.

    A blob comes out as the :class:`~pathlib.Path` of a file that can be read.

    Args:
        given: what was typed.
        schema: what the operation takes.
        files: finds files; by default on this machine.

    Raises:
        ArgumentError: one is unknown, missing, or not what the schema asks for.
    """
    properties: Mapping[str, Schema] = schema.get("properties", {})
    open_ended = schema.get("additionalProperties", not properties) is not False
    result: dict[str, Any] = {}
    for one in given:
        if one.name not in properties and not open_ended:
            raise ArgumentError(f"no argument {one.name}: {accepted(schema)}", one.name)
        result[one.name] = value(one, properties.get(one.name, {}), files)
    missing = [name for name in schema.get("required", ()) if name not in result]
    if missing:
        raise ArgumentError(f"{missing[0]} is missing: {accepted(schema)}", missing[0])
    return result


def accepted(schema: Schema) -> str:
    """List what an operation takes, in one line."""
    words = usages(schema)
    return f"it takes {' '.join(words)}" if words else "it takes no arguments"


def usages(schema: Schema) -> list[str]:
    """Write every argument of an operation as a command line would."""
    required = set(schema.get("required", ()))
    properties: Mapping[str, Schema] = schema.get("properties", {})
    return [usage(name, part, name in required) for name, part in properties.items()]


def usage(name: str, schema: Schema, required: bool) -> str:
    """Write one argument as a command line would: ``photo@=FILE``, ``[width=INTEGER]``."""
    kinds = kinds_of(schema)
    if "blob" in kinds:
        text = f"{name}@=FILE"
    elif "enum" in schema:
        text = f"{name}={'|'.join(_plain(choice) for choice in schema['enum'])}"
    elif kinds and not kinds & {"string", "integer", "number", "boolean"}:
        text = f"{name}:={'|'.join(sorted(kinds)).upper()}"
    elif kinds:
        text = f"{name}={'|'.join(sorted(kinds - {'null'})).upper()}"
    else:
        text = f"{name}=VALUE"
    return text if required else f"[{text}]"


def kinds_of(schema: Schema) -> frozenset[str]:
    """Give the JSON types that a schema lets through, with ``blob`` as one; none means any."""
    if is_blob(schema):
        return frozenset({"blob"})
    for key in ("anyOf", "oneOf"):
        if key in schema:
            branches = [kinds_of(branch) for branch in schema[key]]
            # A branch that takes anything makes the whole take anything.
            return (
                frozenset(kind for kinds in branches for kind in kinds) if all(branches) else _ANY
            )
    if "enum" in schema and "type" not in schema:
        return frozenset(_kind(choice) for choice in schema["enum"])
    found = schema.get("type", ())
    return frozenset((found,) if isinstance(found, str) else found)


_ANY: Final[frozenset[str]] = frozenset()


def is_blob(schema: Schema) -> bool:
    """Whether a schema asks for a blob."""
    return schema.get("format") == "blob"


def value(given: Given, schema: Schema, files: Files = on_disk) -> Any:
    """Convert one argument.

    Raises:
        ArgumentError: it does not fit; the text names it.
    """
    kinds = kinds_of(schema)
    if given.form == ":":
        found = _json(given)
    elif "blob" in kinds and (given.form == "@" or not kinds - {"blob", "null"}):
        if given.form == "" and given.text == "null" and "null" in kinds:
            return None
        return files(given)
    else:
        text = given.text if given.form == "" else _text(given, files(given))
        found = _scalar(given.name, text, kinds)
    choices = [found] if not _enum(schema) else _enum(schema)
    if not any(_same(found, choice) for choice in choices):
        raise ArgumentError(
            f"{given.name}: {_plain(found)} is none of "
            f"{', '.join(_plain(choice) for choice in choices)}",
            given.name,
        )
    return found


def _enum(schema: Schema) -> list[Json]:
    if "const" in schema:
        return [schema["const"]]
    return list(schema.get("enum", ()))


def _same(one: Json, other: Json) -> bool:
    return type(one) is type(other) and bool(one == other)


def _scalar(name: str, text: str, kinds: frozenset[str]) -> Json:
    """Read text as the narrowest of these types; as text where nothing is said."""
    if not kinds:
        return text
    for kind in ("null", "boolean", "integer", "number", "string"):
        if kind in kinds:
            found = _READ[kind](text)
            if found is not _NOT:
                return found
    if kinds <= {"array", "object", "null"}:
        raise ArgumentError(
            f"{name} takes {_article(kinds)}: write it as JSON, {name}:='{_EXAMPLE[min(kinds)]}'",
            name,
        )
    raise ArgumentError(f"{name}: {text[:60]!r} is not {_article(kinds)}", name)


_NOT: Final = object()


def _read_integer(text: str) -> Any:
    if not _INTEGER.fullmatch(text):
        return _NOT
    number = int(text)
    return number if abs(number) <= values.MAX_INTEGER else _NOT


def _read_number(text: str) -> Any:
    whole = _read_integer(text)
    if whole is not _NOT:
        return whole
    try:
        number = float(text)
    except ValueError:
        return _NOT
    return number if math.isfinite(number) and "_" not in text else _NOT


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "null": lambda text: None if text == "null" else _NOT,
    "boolean": lambda text: {"true": True, "false": False}.get(text.lower(), _NOT),
    "integer": _read_integer,
    "number": _read_number,
    "string": lambda text: text,
}
_EXAMPLE: Final = {"array": "[...]", "object": "{...}", "null": "null"}
_NOUN: Final = {
    "null": "null",
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "array": "a list",
    "object": "an object",
    "blob": "a file",
}


def _article(kinds: frozenset[str]) -> str:
    return " or ".join(_NOUN.get(kind, kind) for kind in sorted(kinds - {"null"}))


def _json(given: Given) -> Json:
    try:
        found = values.loads(given.text.encode())
    except ValueError as error:
        raise ArgumentError(
            f"{given.name}: not JSON ({error}): quote it, {given.name}:='...'",
            given.name,
        ) from error
    values.check(found, at=given.name)
    return found


def _text(given: Given, path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LIMITS.inline + 1)
    if len(content) > LIMITS.inline:
        raise ArgumentError(
            f"{given.name}: {path} is larger than {LIMITS.inline} bytes, and this argument is "
            f"not a blob: send less",
            given.name,
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"{given.name}: {path} is not text, and this argument is not a blob", given.name
        ) from error


def _kind(choice: Json) -> str:
    for kind, types in (
        ("null", type(None)),
        ("boolean", bool),
        ("integer", int),
        ("number", float),
        ("string", str),
        ("array", list),
    ):
        if isinstance(choice, types):
            return kind
    return "object"


def _plain(choice: Json) -> str:
    return choice if isinstance(choice, str) else json.dumps(choice)
