"""Data forms out of schemas, and arguments out of forms that were filled in (XEP-0004, XEP-0122).

What a form can ask for is a table (:data:`_SCALARS`, and lists of strings).  An argument that is in
none of its rows has no field; if it is required, the operation has no form.

An empty field means that there is no such argument: its default holds, as in a call that leaves it
out.  Only a required list may be empty, and only a required argument that may be null is null then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final
from xml.etree.ElementTree import Element

from . import values
from .capabilities import Operation
from .elements import child, plain
from .errors import RemoteProtocolError
from .values import LIMITS, MAX_INTEGER, Json

FORMS: Final = "jabber:x:data"
VALIDATE: Final = "http://jabber.org/protocol/xdata-validate"

#: Most fields of a form, and most options of a field; with more there is none.
MAX_FIELDS: Final = 64
MAX_OPTIONS: Final = 256
#: Most characters that are shown of a text that is for people.
MAX_TEXT: Final = 1000

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,16}")
#: As many digits as the largest finite number takes, on either side of the point.
_DECIMAL: Final = re.compile(r"[+-]?([0-9]{1,310}(\.[0-9]{0,400})?|\.[0-9]{1,400})")
_BOOLEAN: Final[Mapping[str, bool]] = {"1": True, "true": True, "0": False, "false": False}


def _read_integer(said: str) -> int:
    number = int(said) if _INTEGER.fullmatch(said.strip()) else MAX_INTEGER + 1
    if abs(number) > MAX_INTEGER:
        raise ValueError("must be an integer, in decimal digits")
    return number


def _read_number(said: str) -> float:
    said = said.strip()
    if not _DECIMAL.fullmatch(said) or abs(number := float(said)) == float("inf"):
        raise ValueError("must be a number, in decimal digits")
    # What looks like an integer is one, unless JSON could not hold it as such.
    return int(said) if "." not in said and abs(number) <= MAX_INTEGER else number


def _read_boolean(said: str) -> bool:
    if (found := _BOOLEAN.get(said.strip())) is None:
        raise ValueError("must be 1 or 0")
    return found


def _write_number(value: Any) -> str:
    return format(Decimal(repr(value)), "f")


@dataclass(frozen=True, slots=True)
class _Scalar:
    """How one value of a type stands in a field."""

    kind: str
    #: XEP-0122; none is a string.
    datatype: str
    read: Callable[[str], Json]
    write: Callable[[Any], str]


#: ``type`` of a schema -> how it is asked for.
_SCALARS: Final[Mapping[str, _Scalar]] = {
    "string": _Scalar("text-single", "", str, str),
    "integer": _Scalar("text-single", "xs:integer", _read_integer, str),
    "number": _Scalar("text-single", "xs:decimal", _read_number, _write_number),
    "boolean": _Scalar("boolean", "", _read_boolean, lambda value: "1" if value else "0"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One argument, as a form asks for it."""

    name: str
    kind: str
    scalar: _Scalar
    required: bool
    #: It may be null.
    nullable: bool
    #: The values to choose from, as they are written.
    options: Mapping[str, Json]
    default: Sequence[str]
    description: str

    @property
    def many(self) -> bool:
        """Whether it is a list."""
        return self.kind.endswith("-multi")

    def element(self) -> Element:
        """Give it as a field of a form that is to be filled in."""
        label = " ".join(re.split(r"[\s_-]+", self.name)).strip() or self.name
        field = Element(
            f"{{{FORMS}}}field", {"var": self.name, "type": self.kind, "label": plain(label)}
        )
        if self.description:
            child(field, "desc", text=self.description[:MAX_TEXT])
        if self.required:
            child(field, "required")
        if self.scalar.datatype and not self.options:
            field.append(Element(f"{{{VALIDATE}}}validate", {"datatype": self.scalar.datatype}))
            child(field[-1], "basic")
        for value in self.default:
            child(field, "value", text=value)
        for option in self.options:
            child(child(field, "option", {"label": option}), "value", text=option)
        return field

    def read(self, said: Sequence[str]) -> Json:
        """Give the argument that was filled in, or :data:`ABSENT`.

        Raises:
            RemoteProtocolError: it is none; says which and why.
        """
        if not any(said):
            if not self.required:
                return ABSENT
            if self.many:
                return []
            if self.nullable:
                return None
            raise _bad(self.name, "is required")
        if self.many:
            return [self._one(value) for value in said]
        if len(said) > 1:
            raise _bad(self.name, "has more than one value")
        return self._one(said[0])

    def _one(self, said: str) -> Json:
        if not self.options:
            try:
                return self.scalar.read(said)
            except ValueError as exc:
                raise _bad(self.name, str(exc)) from exc
        if said not in self.options:
            raise _bad(self.name, "is none of the choices")
        return self.options[said]


#: The argument is left out.
ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Form:
    """What is asked before an operation is run."""

    title: str
    instructions: str
    fields: Sequence[Field]

    @classmethod
    def of(cls, operation: Operation) -> Form | None:
        """Make the form of an operation; none if it needs what no form can ask for."""
        properties = _mapping(operation.args.get("properties"))
        needed = _list(operation.args.get("required"))
        fields: list[Field] = []
        for name, member in properties.items():
            field = _field(name, _mapping(member), name in needed)
            if field is not None:
                fields.append(field)
            elif name in needed:
                return None
        if len(fields) > MAX_FIELDS or not all(
            isinstance(name, str) and name in properties for name in needed
        ):
            return None
        return cls(operation.path, operation.summary, fields)

    def element(self) -> Element:
        """Give it to be filled in."""
        form = Element(f"{{{FORMS}}}x", {"type": "form"})
        child(form, "title", text=self.title)
        if self.instructions:
            child(form, "instructions", text=self.instructions[:MAX_TEXT])
        form.extend(field.element() for field in self.fields)
        return form

    def read(self, filled: Element) -> dict[str, Json]:
        """Give the arguments out of a form that was submitted.

        Raises:
            RemoteProtocolError: it does not fit, with the reason ``bad-arguments`` and the name of
                the argument, or ``too-large``.
        """
        said: dict[str, list[str]] = {}
        size = 0
        for field in filled.findall(f"{{{FORMS}}}field"):
            var = field.get("var", "")
            found = [value.text or "" for value in field.findall(f"{{{FORMS}}}value")]
            size += len(var) + sum(map(len, found)) + 2 * len(found)
            if var in said:
                raise _bad(var, "is there twice")
            if var and var != "FORM_TYPE" and field.get("type") != "fixed":
                said[var] = found
        if size > LIMITS.inline:
            raise RemoteProtocolError(f"a form holds at most {LIMITS.inline} bytes", "too-large")
        args: dict[str, Json] = {}
        for one in self.fields:
            value = one.read(said.pop(one.name, ()))
            if value is not ABSENT:
                args[one.name] = value
        for var in said:
            raise _bad(var, "is no argument")
        if len(values.write(args)) > LIMITS.inline:
            raise RemoteProtocolError(f"arguments take at most {LIMITS.inline} bytes", "too-large")
        return args


def result(value: Json, dumps: values.Dumps = values.dumps) -> Element:
    """Give the form that holds the result of an operation, as JSON text.

    ``ValueError`` for what is not JSON.
    """
    form = Element(f"{{{FORMS}}}x", {"type": "result"})
    # A label, because there are programs that show nothing else, or "(null)".
    said = {"var": "value", "type": "text-single", "label": "value"}
    field = child(form, "field", said)
    text = dumps(value).decode()
    # What XML cannot hold at all stands in strings only, where the escape means the same.
    child(field, "value", text=text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff"))
    return form


def _field(name: str, schema: Mapping[str, Any], required: bool) -> Field | None:
    """Find the row of the table for an argument."""
    if not name or name == "FORM_TYPE" or plain(name) != name:
        return None
    branch, nullable = _without_null(schema)
    listed = branch.get("type") == "array"
    one = _mapping(branch.get("items")) if listed else branch
    type = one.get("type", "string" if "enum" in one else "")
    scalar = _SCALARS.get(type) if isinstance(type, str) else None
    if scalar is None:
        return None
    options: Mapping[str, Json] = {}
    if "enum" in one:
        options = _options(one["enum"])
        if not options:
            return None
        kind = "list-multi" if listed else "list-single"
    elif listed and type != "string":
        return None
    else:
        kind = "text-multi" if listed else scalar.kind
    words = schema.get("description") or branch.get("description") or ""
    field = Field(name, kind, scalar, required, nullable, options, (), str(words))
    return replace(field, default=_default(field, schema.get("default")))


def _without_null(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Give a schema as it is without null, and whether it was with it."""
    if "anyOf" in schema:
        found = [_mapping(branch) for branch in _list(schema["anyOf"])]
        others = [branch for branch in found if branch.get("type") != "null"]
        return (others[0] if len(others) == 1 else {}), len(others) < len(found)
    choices = _list(schema.get("enum"))
    if None in choices:
        return {**schema, "enum": [choice for choice in choices if choice is not None]}, True
    return schema, False


def _options(choices: Json) -> Mapping[str, Json]:
    """Give the values to choose from, as they are written; none if a form cannot offer them."""
    found = _list(choices)
    options = {str(choice): choice for choice in found if choice != ""}
    alike = {type(choice) for choice in found} in ({str}, {int})
    writable = all(plain(said) == said and "\r" not in said for said in options)
    return options if alike and writable and len(options) <= MAX_OPTIONS else {}


def _default(field: Field, value: Json) -> Sequence[str]:
    """Write what stands in a field at first; nothing if it would not be read as that again."""
    if value is None:
        # Where nothing is filled in, many programs show a box that is not ticked.
        return ("0",) if field.required and field.kind == "boolean" else ()
    found = _list(value) if field.many else [value]
    try:
        written = [field.scalar.write(one) for one in found]
        if any(plain(one) != one or set("\r\n") & set(one) for one in written):
            return ()
        return tuple(written) if field.read(written) == value else ()
    except (ArithmeticError, RemoteProtocolError):
        return ()


def _mapping(raw: Json) -> Mapping[str, Any]:
    return raw if isinstance(raw, dict) else {}  # pyright: ignore[reportUnknownVariableType] - JSON keys are strings


def _list(raw: Json) -> list[Json]:
    return raw if isinstance(raw, list) else []  # pyright: ignore[reportUnknownVariableType] - JSON items


def _bad(name: str, what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"argument '{name[:60]}' {what}", "bad-arguments", name[:60])
