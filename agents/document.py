"""A YAML file whose mistakes are told with file, line, key, and what to write instead.

What may stand in a file is a JSON Schema, which editors can use as well; this module finds the line
of a mistake and puts it in words.  They come from the schema itself: ``examples`` show what to
write, ``patternErrorMessage`` says what a text must be (VS Code's YAML server shows both), and
``description`` is the help.

YAML is read by the rules of version 1.2, in which ``no`` is a text and not false, and a key that
stands twice is a mistake.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import yaml

from spinal.protocols import Json, duration

from .errors import AgentError, one_line

#: Most bytes of a file, most values in it with those that an alias repeats, and the greatest depth.
MAX_BYTES: Final = 1024 * 1024
MAX_VALUES: Final = 100_000
MAX_DEPTH: Final = 32

#: Most mistakes that are told at once.
MAX_TOLD: Final = 20

#: Where something stands in a document: keys and places in lists, from the outside.
Steps = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in a file."""

    file: str
    #: From 1.
    line: int
    #: Such as ``ops./units/convert.timeout``; empty for the file as a whole.
    key: str
    #: What is wrong, and what to write.
    text: str

    def __str__(self) -> str:
        about = f"{self.key}: " if self.key else ""
        return f"{self.file}:{self.line}: {about}{self.text}"


class BadDocument(AgentError):
    """A file has mistakes; all of them are told."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda one: one.line)[:MAX_TOLD]
        super().__init__("\n".join(map(str, self.mistakes)))


class Document:
    """What a YAML file says, and where it says it.

    Args:
        file: its name, as mistakes give it.
        value: its content.
        lines: line of each key and list item.
        texts: what stands there for each that is a number, true, false or null.
    """

    def __init__(
        self,
        file: str,
        value: Json,
        lines: Mapping[Steps, int],
        texts: Mapping[Steps, str] | None = None,
    ) -> None:
        self.file = file
        self.value = value
        self._lines = lines
        self._texts = texts or {}

    def __repr__(self) -> str:
        return f"<Document {self.file}>"

    @property
    def folder(self) -> Path:
        """Where the file is; relative paths in it start there."""
        return Path(self.file).resolve().parent

    def line(self, *steps: str | int) -> int:
        """Give the line, from 1, of what stands there, or else of what it would stand in."""
        while steps not in self._lines and steps:
            steps = steps[:-1]
        return self._lines.get(steps, 1)

    def text(self, *steps: str | int) -> str:
        """Give a plain value as it was written: ``-0``, ``010`` and ``1.50`` stay what they are."""
        if steps in self._texts:
            return self._texts[steps]
        value: Any = self.value
        for step in steps:
            value = value[step]
        return str(value)

    def mistake(self, steps: Sequence[str | int], text: str) -> Mistake:
        """Make a mistake about what stands somewhere."""
        key = ".".join(map(str, steps))
        return Mistake(self.file, self.line(*steps), key, one_line(text, 400))


def load(path: Path | str, schema: Mapping[str, Json] | None = None) -> Document:
    """Read a YAML file.

    Raises:
        BadDocument: it is no YAML, or does not fit the schema; every mistake with its line.
        AgentError: there is no such file, or it is too large.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise AgentError(f"{path}: {exc.strerror}: give the path of a YAML file") from exc
    if len(data) > MAX_BYTES:
        raise AgentError(f"{path}: larger than {MAX_BYTES} bytes")
    return read(data, str(path), schema)


def read(data: bytes | str, file: str, schema: Mapping[str, Json] | None = None) -> Document:
    """Read YAML from memory; as :func:`load`."""
    try:
        # Bytes so that a wrong encoding is found by the reader, which tells where.
        root = yaml.compose(data, Loader=_Loader)
    except yaml.YAMLError as exc:
        raise BadDocument([_syntax(file, exc)]) from exc
    except RecursionError as exc:
        raise BadDocument([Mistake(file, 1, "", f"deeper than {MAX_DEPTH} levels")]) from exc
    reader = _Reader(file)
    value = None if root is None else reader.value(root, ())
    if reader.wrong:
        raise BadDocument(reader.wrong)
    document = Document(file, value, reader.lines, reader.texts)
    if schema is not None and (wrong := list(check(document, schema))):
        raise BadDocument(wrong)
    return document


# -- YAML


class _Loader(yaml.SafeLoader):
    """Reads plain scalars by the core schema of YAML 1.2 (10.3.2)."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", [*"nN~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        [*"-+.0123456789"],
    ),
):
    cast("Any", _Loader).add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )

_SCALARS: Final[Mapping[str, Callable[[str], Json]]] = {
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": lambda text: text[0] in "tT",
    "tag:yaml.org,2002:int": lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10),
    "tag:yaml.org,2002:float": lambda text: float(text.replace(".inf", "inf").lower()),
    "tag:yaml.org,2002:str": str,
}

#: What an escape in quotes can make, and nobody can write down again.
_HALF: Final = re.compile("[\ud800-\udfff]")
_HALF_TEXT: Final = "holds half of a surrogate pair: write the character itself"

_KNOWN: Final = {*_SCALARS, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


def _syntax(file: str, error: yaml.YAMLError) -> Mistake:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = getattr(error, "problem", None) or str(error).partition("\n")[0]
    if "found character '\\t'" in said:
        said = "a tab: indent with spaces"
    elif "mapping values are not allowed" in said:
        said = "a second ': ' in this line: put the value in quotes, or on lines of its own"
    elif "unacceptable character" in said:
        said = f"{said}: write plain UTF-8 text"
    else:
        said = f"no YAML: {said}: check indentation, quotes and brackets here"
    return Mistake(file, 1 if mark is None else mark.line + 1, "", one_line(said, 300))


class _Reader:
    """Turns nodes into values, and notes their lines."""

    def __init__(self, file: str) -> None:
        self.lines: dict[Steps, int] = {}
        self.texts: dict[Steps, str] = {}
        self.wrong: list[Mistake] = []
        self._file = file
        self._count = 0

    def value(self, node: yaml.Node, steps: Steps) -> Json:
        """Give what a node says."""
        self.lines.setdefault(steps, node.start_mark.line + 1)
        self._count += 1
        if self._count > MAX_VALUES or len(steps) > MAX_DEPTH:
            if not self.wrong:
                self._tell(node, steps, f"more than {MAX_VALUES} values or {MAX_DEPTH} levels")
            return None
        if node.tag not in _KNOWN:
            self._tell(node, steps, f"the tag {node.tag!r} is not known here: leave it out")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, steps)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(item, (*steps, place))
                for place, item in enumerate(self._children(node.value))
            ]
        if _HALF.search(node.value):
            self._tell(node, steps, _HALF_TEXT)
            return None
        try:
            found = _SCALARS[node.tag](node.value)
        except ValueError:
            self._tell(node, steps, f"{node.value[:40]!r} is no number: put it in quotes")
            return None
        if not isinstance(found, str):
            self.texts[steps] = node.value
        return found

    def _children(self, nodes: list[Any]) -> Iterator[Any]:
        for node in nodes:
            if len(self.wrong) >= MAX_TOLD or self._count > MAX_VALUES:
                return
            yield node

    def _mapping(self, node: yaml.MappingNode, steps: Steps) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for key_node, value_node in self._children(node.value):
            if not isinstance(key_node, yaml.ScalarNode):
                self._tell(key_node, steps, "a key must be a word: put it in quotes")
                continue
            if _HALF.search(key_node.value):
                self._tell(key_node, steps, _HALF_TEXT)
                continue
            key = key_node.value
            if key in found:
                first = self.lines[(*steps, key)]
                self._tell(key_node, (*steps, key), f"stands twice, first in line {first}")
                continue
            self.lines[(*steps, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*steps, key))
        return found

    def _tell(self, node: yaml.Node, steps: Steps, text: str) -> None:
        line = node.start_mark.line + 1
        self.wrong.append(Mistake(self._file, line, ".".join(map(str, steps)), text))


# -- schemas


@dataclass(frozen=True, slots=True)
class _Fault:
    """What a schema finds, in types of ours."""

    steps: Steps
    #: The keyword that is not met, what it asks for, and all that the schema says there.
    keyword: str
    wanted: Any
    schema: Mapping[str, Any]
    value: Any


def check(document: Document, schema: Mapping[str, Json]) -> Iterator[Mistake]:
    """Give what does not fit a schema, each place once."""
    import jsonschema

    validator: Any = jsonschema.Draft202012Validator(dict(schema))
    told: set[Steps] = set()
    for error in validator.iter_errors(document.value):
        for inner in _meant(error):
            for steps, text in _explain(_fault(inner)):
                if steps not in told:
                    told.add(steps)
                    yield document.mistake(steps, text)


def _fault(error: Any) -> _Fault:
    steps = tuple(error.absolute_path)
    if "propertyNames" in error.schema_path:
        steps = (*steps, error.instance)
    return _Fault(
        steps,
        error.validator,
        error.validator_value,
        members(error.schema),
        error.instance,
    )


def members(value: Any) -> Mapping[str, Any]:
    """Give the members of a mapping; none of whatever else it is."""
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _meant(error: Any) -> Iterator[Any]:
    """Out of several alternatives take the one that was meant: by its type, or the nearest."""
    # Branches of another type were not meant.
    others = {inner.schema_path[0] for inner in error.context or () if _other_type(inner, error)}
    found = [inner for inner in error.context or () if inner.schema_path[0] not in others]
    if not found or "errorMessage" in error.schema:
        yield error
        return
    # Of mappings, the one that shares most keys with what is there; else the deepest mistake.
    best = max(found, key=lambda inner: (_shared(inner, error), len(inner.absolute_path)))
    for inner in found:
        if inner.schema_path[0] == best.schema_path[0]:
            yield from _meant(inner)


def _other_type(inner: Any, outer: Any) -> bool:
    return bool(inner.validator == "type" and inner.absolute_path == outer.absolute_path)


def _shared(inner: Any, outer: Any) -> int:
    """Count the keys that stand in the file and are known to a branch."""
    known = members(outer.validator_value[inner.schema_path[0]]).get("properties", {})
    return sum(key in known for key in members(outer.instance))


def _explain(fault: _Fault) -> Iterator[tuple[Steps, str]]:
    """Say what is wrong where, and what to write."""
    steps, schema, wanted, value = fault.steps, fault.schema, fault.wanted, fault.value
    # What is only ever written is no longer a secret once it stands in a log.
    said = "this" if schema.get("writeOnly") else _shown(value)
    properties: Mapping[str, Any] = schema.get("properties", {})
    match fault.keyword:
        case _ if "errorMessage" in schema:
            yield steps, f"{said}: {schema['errorMessage']}"
        case "additionalProperties":
            known = list(properties)
            patterns = members(schema.get("patternProperties"))
            for key in value:
                if key not in known and not any(re.search(pattern, key) for pattern in patterns):
                    yield (*steps, key), f"is not known here{_near(key, known)}"
        case "required":
            unknown = [key for key in value if key not in properties]
            for key in wanted:
                # A name that was misspelt is told as such.
                if key not in value and not difflib.get_close_matches(key, unknown, 1):
                    shown = _example(key, properties.get(key, {}))
                    yield steps, f"'{key}' is missing: write {shown}"
        case "type":
            kinds = [wanted] if isinstance(wanted, str) else wanted
            nouns = " or ".join(_NOUNS[kind] for kind in kinds)
            yield steps, f"{said} is not {nouns}{_instead(steps, schema)}"
        case "enum":
            choices = [_shown(choice) for choice in wanted]
            yield steps, f"{said} is none of {', '.join(choices)}{_closest(value, wanted)}"
        case "pattern":
            meant = schema.get("patternErrorMessage", f"must match {wanted}")
            yield steps, f"{said} {meant}{_instead(steps, schema)}"
        case "oneOf" | "anyOf":
            kinds = [kind for branch in wanted for kind in _kinds(branch)]
            nouns = " or ".join(dict.fromkeys(_NOUNS[kind] for kind in kinds))
            yield steps, f"{said} is not {nouns or 'what may stand here'}{_instead(steps, schema)}"
        case "minProperties" | "minItems" | "minLength" if not value:
            yield steps, f"is empty{_instead(steps, schema)}"
        case keyword:
            limit = _LIMITS.get(keyword, "does not fit {}")
            yield steps, f"{said} {limit.format(wanted)}{_instead(steps, schema)}"


_NOUNS: Final = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "a mapping",
    "string": "a text",
}
_LIMITS: Final = {
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "minItems": "needs at least {} entries",
    "maxItems": "may have at most {} entries",
    "maxProperties": "may have at most {} keys",
    "uniqueItems": "has an entry twice",
    "const": "must be {}",
}


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    found: str | list[str] = schema.get("type", [])
    return [found] if isinstance(found, str) else found


def _shown(value: Any) -> str:
    """Write a value as it would stand in the file, shortened."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:57]}...")
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value)


def _example(key: str, schema: Mapping[str, Any]) -> str:
    for example in schema.get("examples", schema.get("enum", []))[:1]:
        return f"{key}: {_flow(example)}"
    return f"{key}: ..."


def _instead(steps: Steps, schema: Mapping[str, Any]) -> str:
    if "examples" not in schema:
        return ""
    example = _flow(schema["examples"][0])
    key = steps[-1] if steps and isinstance(steps[-1], str) else None
    return f": write for example {example if key is None else f'{key}: {example}'}"


def _flow(value: Any) -> str:
    """Write a value in one line of YAML."""
    text: str = cast("Any", yaml).safe_dump(
        value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    if near:
        return f": did you mean '{near[0]}'?"
    return f": leave it out, or write one of {', '.join(known)}" if known else ": leave it out"


def _closest(value: Any, choices: Sequence[Any]) -> str:
    words = [choice for choice in choices if isinstance(choice, str)]
    near = difflib.get_close_matches(value, words, 1) if isinstance(value, str) else []
    return f": did you mean {near[0]}?" if near else ""


# -- common parts of schemas

_NUMBER: Final = r"[0-9]+(\.[0-9]+)?"

#: A length of time, to be read with :func:`seconds`.
DURATION: Final[Mapping[str, Json]] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {
            "type": "string",
            "pattern": "^(?=.)" + "".join(f"({_NUMBER}{unit})?" for unit in duration.UNITS) + "$",
        },
    ],
    "errorMessage": "write a length of time such as 5s, 500ms, 2m or 1h30m",
    "examples": ["5s"],
}

#: A number of bytes, to be read with :func:`size`.
SIZE: Final[Mapping[str, Json]] = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": r"^[1-9][0-9]*\s*([KMGT]i?)?B?$"},
    ],
    "errorMessage": "write a size such as 64K, 256M or 2G",
    "examples": ["256M"],
}

_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def seconds(value: Json) -> float:
    """Read a length of time that fits :data:`DURATION`."""
    return duration.parse(value)


def size(value: Json) -> int:
    """Read a number of bytes that fits :data:`SIZE`; K, M, G and T are powers of 1024.

    Raises:
        ValueError: it does not fit.
    """
    if isinstance(value, int):
        return value
    found = re.fullmatch(r"([0-9]+)\s*([KMGT]?)i?B?", str(value))
    if found is None:
        raise ValueError(f"'{value}' is no size")
    digits, unit = found.groups()
    return int(digits) * _UNITS[unit]
