"""protocols/schemas says what docs/protocol.md says, and both what the code does.

``PYTHONPATH=src python -m tests.protocols.test_schemas`` writes events.json anew, from the tables
of the page.  So the page is the one place where a bound is written, and that the code has the same
one is tried here, at each bound and beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, parse, tostring

import pytest
from jsonschema import Draft202012Validator
from lxml import etree

from spinal.agents.schema import KEYWORDS
from spinal.bus.errors import CallError
from spinal.dispatcher.jobs import submission
from spinal.protocols import (
    EVENTS,
    LIMITS,
    NS,
    REASONS,
    Ack,
    Capabilities,
    Codec,
    Json,
    Problem,
    RemoteProtocolError,
    Stanza,
    Want,
    parse_reference,
    readers,
)
from spinal.protocols.capabilities import MAX_OPERATIONS
from spinal.protocols.codec import STANZA_ERRORS
from spinal.protocols.errors import CONDITIONS, TYPES

from .page import PAGE, blocks, sections, stanzas, table, words

FOLDER = Path(__file__).parents[2] / "protocols" / "schemas"
EVENTS_JSON = FOLDER / "events.json"
SPINAL_RNG = FOLDER / "spinal.rng"

Schema = dict[str, Any]

# -- from the page to JSON Schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _one_of(found: re.Match[str]) -> Schema:
    return {"enum": list(words(found[1]))}


def _number(found: re.Match[str]) -> Schema:
    kind = "integer" if found[1] == "int" else "number"
    low, high = found[2], found[3]
    bounds: Schema = {} if kind == "number" else {"minimum": 0, "maximum": 2**53 - 1}
    if low is not None:
        bounds["minimum"] = json.loads(low)
    if high is not None:
        bounds["maximum"] = json.loads(high)
    return {"type": kind, **bounds}


def _list(found: re.Match[str]) -> Schema:
    return {"type": "array", "maxItems": int(found[1]), "items": _typed(found[2])}


#: Control characters, which a line has none of.
_CONTROL = r"[\u0000-\u001f\u007f-\u009f]"

#: Type as the page writes it -> schema.
TYPES_OF_THE_PAGE: Sequence[tuple[str, Callable[[re.Match[str]], Schema]]] = (
    (r"list of at most (\d+) (.*?)", _list),
    (r"one of (.*)", _one_of),
    (r"(int|number)(?:, (?:from )?([-\d.]+)(?: to ([-\d.]+))?)?", _number),
    (r"text \((\d+)\)", lambda found: {"type": "string", "maxLength": int(found[1])}),
    (
        r"line \((\d+)\)(, without `\*`)?",
        lambda found: {
            "type": "string",
            "minLength": 1,
            "maxLength": int(found[1]),
            "not": {"pattern": f"{_CONTROL}|\\*" if found[2] else _CONTROL},
        },
    ),
    (r"boolean", lambda _: {"type": "boolean"}),
    (r"any", lambda _: {}),
    (r"objects?", lambda _: {"type": "object"}),
    (r"`\"(\w+)\"`", lambda found: {"const": found[1]}),
    (r"object of at most 32 keyed paths", lambda _: _ref("places")),
    (r"pairs `\[id, attempt\]`", lambda _: _ref("exchange")),
    (r"(id|path|want|problem|schema|time)", lambda found: _ref(found[1])),
    (r"job ids?", lambda _: _ref("job_id")),
    (r"list of reasons", lambda _: _ref("reasons")),
    (r"full address", lambda _: _ref("address")),
    (r"retry, or (int.*)", lambda found: {"anyOf": [_ref("retry"), _typed(found[1])]}),
    (r"as in `want`, section 5", lambda _: _ref("want")),
    (
        r"`https` URL, printable ASCII, at most (\d+) characters",
        lambda found: {
            "type": "string",
            "maxLength": int(found[1]),
            "pattern": "^https://.",
            "not": {"pattern": "[^!-~]"},
        },
    ),
    (
        r"64 lower-case hex digits",
        lambda _: {
            "type": "string",
            "minLength": 64,
            "maxLength": 64,
            "not": {"pattern": "[^0-9a-f]"},
        },
    ),
    (
        r"media type without parameters, each half at most 64 characters",
        lambda _: {
            "type": "string",
            "pattern": "^[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}$",
            "not": {"pattern": "[^!-~]"},
        },
    ),
)


def _typed(said: str) -> Schema:
    for pattern, make in TYPES_OF_THE_PAGE:
        found = re.fullmatch(pattern, said)
        if found is not None:
            return make(found)
    raise AssertionError(f"a type that has no schema: {said}")


def _object(rows: Sequence[Sequence[str]], nulls: bool = True) -> Schema:
    """Make the schema of an object of its table: member, type, default, meaning."""
    members: dict[str, Schema] = {}
    required: list[str] = []
    for names, said, default, meaning in rows:
        for name in words(names):
            member: Schema = _typed(said)
            if said.startswith("as in"):
                member = _ref(f"want/properties/{name}")
            elif default == "required":
                required.append(name)
            elif nulls and member:
                member = {"anyOf": [member, {"type": "null"}]}
            if meaning:
                member["description"] = meaning
            if default.startswith("`"):
                member["default"] = json.loads(default.strip("`"))
            members[name] = member
    made: Schema = {"type": "object", "properties": members}
    return made | {"required": required} if required else made


def _keywords() -> Mapping[str, Schema]:
    """What a schema may say about arguments and results (section 8.1)."""
    inner = _ref("schema")
    count: Schema = {"type": "integer", "minimum": 0}
    text: Schema = {"type": "string"}
    numbers = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    kinds = ["object", "array", "string", "integer", "number", "boolean", "null"]
    return {
        "type": {"enum": kinds},
        "properties": {"type": "object", "additionalProperties": inner},
        "required": {"type": "array", "items": text},
        "additionalProperties": {"anyOf": [inner, {"const": False}]},
        "items": inner,
        "minItems": count,
        "maxItems": count,
        "enum": {"type": "array"},
        "default": {},
        **{name: {"type": "number"} for name in numbers},
        "multipleOf": {"type": "number", "exclusiveMinimum": 0},
        "minLength": count,
        "maxLength": count,
        "pattern": {"type": "string", "format": "regex"},
        "format": text,
        "anyOf": {"type": "array", "minItems": 1, "items": inner},
        "description": text,
    }


#: Characters that no path has.  What is printable is not said here: it depends on Unicode.
_UNFIT = r"[\s\u0000-\u001f\u007f-\u009f*?{}\[\]<>\"'\\]"


def _words() -> Mapping[str, Schema]:
    """What the tables refer to: the types that section 5 and others describe in words."""
    return {
        "id": {"type": "string", "minLength": 1, "maxLength": 128, "not": {"pattern": "[^!-~]"}},
        "exchange": {
            "type": "array",
            "prefixItems": [_ref("id"), {"type": "integer", "minimum": 1, "maximum": 10**6}],
            "minItems": 2,
            "maxItems": 2,
        },
        "path": {
            "type": "string",
            "maxLength": 512,
            "pattern": "^/",
            "not": {"pattern": rf"{_UNFIT}|//|./$|/\.\.?(/|$)|(/[^/]+){{33}}"},
        },
        "places": {
            "type": "object",
            "maxProperties": 32,
            "additionalProperties": _ref("path"),
        },
        "job_id": {
            "type": "string",
            "minLength": 20,
            "maxLength": 20,
            "not": {"pattern": "[^0-9a-hjkmnp-tv-z]"},
        },
        "address": {"type": "string", "maxLength": 3071, "pattern": "^[^/]+/."},
        "time": {
            "type": "string",
            "format": "date-time",
            "pattern": r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)$",
            "not": {"pattern": r"\s"},
        },
        "reasons": {
            "type": "array",
            "maxItems": len(REASONS) - 1,
            "items": {"enum": sorted(set(REASONS) - {"cancelled"})},
        },
    }


def _together(one: str, other: str) -> Schema:
    """Say that who has one member, and does not have null there, has another."""
    there: Schema = {"required": [other], "not": {"properties": {other: {"type": "null"}}}}
    return {"anyOf": [{"properties": {one: {"type": "null"}}}, there]}


COMMENT = (
    "Made from the tables of docs/protocol.md. What fits may still be refused, because JSON Schema "
    "cannot say: that an integer is written without fraction or exponent and within 2^53 - 1 "
    "wherever it stands, that strings hold no lone surrogates, how many bytes, levels and members "
    "there are in all (section 11), and which characters of a path are printable (section 12)."
)


def fresh() -> str:
    """Give events.json as it should be."""
    page = sections(PAGE.read_text())
    events = {name: _object(table(page[name], "Member")) for name in EVENTS}
    for name, event in events.items():
        # Whatever else refers to it by its name already knows its type.
        event["properties"] = {"type": {"const": name}, **event["properties"]}
        event["required"] = ["type", *event.get("required", ())]
    events["description"]["properties"]["text"] |= {
        "contentMediaType": "application/json",
        "contentSchema": _ref("capabilities"),
    }
    cases: list[Schema] = [
        {"if": {"properties": {"type": {"const": name}}}, "then": _ref(name)} for name in EVENTS
    ]
    blob = _object(table(page["10. Blobs"], "Member of `blob`"), nulls=False)
    schema: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{NS}:events",
        "title": f"The JSON text of <x xmlns='{NS}'>: a list of events",
        "$comment": COMMENT,
        "type": "array",
        "maxItems": LIMITS.events,
        "items": _ref("event"),
        "$defs": {
            "event": {
                "description": "One thing said; one of unknown type is left out.",
                "type": "object",
                "properties": {"type": {"type": "string"}},
                "required": ["type"],
                "allOf": cases,
            },
            **events,
            "want": _object(table(page["op"], "Member of `want`")),
            "problem": _object(table(page["9.1 Problems"], "Member")),
            "blob": {
                "description": "A reference to a blob, wherever a value may stand.",
                "type": "object",
                "properties": {"blob": blob},
                "required": ["blob"],
                "maxProperties": 1,
            },
            "capabilities": {
                "description": "The text of a description, once it is read as JSON.",
                "type": "object",
                "properties": {
                    "ops": {
                        "type": "object",
                        "maxProperties": MAX_OPERATIONS,
                        "propertyNames": _ref("path"),
                        "additionalProperties": _ref("operation"),
                    }
                },
                "required": ["ops"],
            },
            "operation": _object(table(page["8. Descriptions"], "Member")),
            "schema": {"type": "object", "properties": _keywords()},
            "submission": {
                **_object(table(page["15.2 Submission"], "Argument")),
                "dependentSchemas": {
                    "parent": _together("parent", "position"),
                    "position": _together("position", "parent"),
                },
            },
            "retry": _object(table(page["15.3 Retries"], "Member of `retry`")),
            **_words(),
        },
    }
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def test_the_schema_is_what_the_tables_of_the_page_say() -> None:
    assert EVENTS_JSON.read_text() == fresh(), (
        "run PYTHONPATH=src python -m tests.protocols.test_schemas"
    )


def test_the_keywords_of_a_schema_are_those_of_the_page_and_of_the_code() -> None:
    rows = table(sections(PAGE.read_text())["8.1 Schemas"], "Keyword")
    shown = [word for keywords, _ in rows for word in words(keywords)]

    assert sorted(_keywords()) == sorted(shown) == sorted(KEYWORDS)


# -- schema and code


DOCUMENT: Schema = json.loads(EVENTS_JSON.read_text()) if EVENTS_JSON.exists() else {}


def _validator(name: str) -> Any:
    # Its own types leave open what an instance is.
    make: Any = Draft202012Validator
    if not name:
        return make(DOCUMENT)
    return make({"$defs": DOCUMENT["$defs"], "$ref": f"#/$defs/{name}"})


def complaints(value: Json, name: str = "") -> list[str]:
    """Say what a definition, or the whole, has against a value."""
    return [str(error) for error in _validator(name).iter_errors(value)]


def fits(value: Json, name: str = "") -> bool:
    return not complaints(value, name)


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(DOCUMENT)


def _follow(schema: Schema) -> Schema:
    """Give what a reference, or one of a schema and null, is."""
    while True:
        if "$ref" in schema:
            found: Schema = DOCUMENT
            for step in schema["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            schema = found
        elif schema.get("anyOf", [{}])[-1] == {"type": "null"}:
            schema = schema["anyOf"][0]
        else:
            return schema


def _good(schema: Schema) -> Json:
    """Give a value that fits."""
    schema = _follow(schema)
    for name, value in _GOOD.items():
        if schema == DOCUMENT["$defs"][name]:
            return value
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][-1]
    match schema.get("type"):
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "string":
            return "a"
        case "array":
            return []
        case "boolean":
            return True
        case "object":
            members = schema.get("properties", {})
            return {name: _good(members[name]) for name in schema.get("required", ())}
        case _:
            return "a" if "anyOf" not in schema else _good(schema["anyOf"][0])


#: One of each type that is described in words.
_GOOD: Mapping[str, Json] = {
    "id": "c1",
    "exchange": ["c1", 1],
    "path": "/a/b",
    "places": {"site": "/a"},
    "job_id": "01m7y7kg407zm76d34pn",
    "address": "a@b.example/c",
    "time": "2026-11-21T05:00:00Z",
    "reasons": ["failed"],
}

#: Something of each JSON type, for members that are of another one.
_ANY: Sequence[Json] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    "",
    "a",
    "/",
    [],
    [[]],
    ["a"],
    [None],
    [1],
    {},
    {"a": 1},
    {"a": "/a"},
    {"reason": "failed"},
    {"count": 1},
)


def _tried(schema: Schema) -> Iterator[Json]:
    """Give values at every bound of a schema, and beside it, and some that are of other types."""
    schema = _follow(schema)
    yield from _ANY
    yield from schema.get("enum", ())
    for branch in schema.get("anyOf", ()):
        yield from _tried(branch)
    step = 1 if schema.get("type") == "integer" else 0.001
    for bound in ("minimum", "maximum"):
        if bound in schema:
            yield from (schema[bound] - step, schema[bound], schema[bound] + step)
    if "maxItems" in schema and "prefixItems" not in schema:
        most, item = schema["maxItems"], _good(schema["items"])
        yield from ([item] * most, [item] * (most + 1))
        yield from ([one] for one in _tried(schema["items"]))
    if "maxLength" in schema:
        most = schema["maxLength"]
        for letter in ("a", "\U0001f600", "\u00e9", " ", "\n", "\x7f", "0", "F", "u", "*"):
            yield from (letter * most, letter * (most + 1), "a" + letter, letter)
    for name, values in _BESIDE.items():
        if schema == DOCUMENT["$defs"][name]:
            yield from values


#: What is nearly one of the types that are described in words, or just one.
_BESIDE: Mapping[str, Sequence[Json]] = {
    "id": ["c 1", "c\n", "\u00e9", "!~", "c" * 128, "c" * 129],
    "exchange": [["c1"], ["c1", 0], ["c1", 1, 1], ["", 1], ["c1", 10**6 + 1], ["c1", True], "c1"],
    "path": [
        *("/", "/a", "a", "", "//", "/a/", "/a//b", "/.", "/..", "/a/..", "/a/...", "/.a"),
        *("/a b", "/a\n", "/*", "/a*", "/a?", "/{a}", "/[a]", "/<a>", '/a"', "/'", "/\\"),
        *("/\u00e9", "/\u00a0", "/\u2028", "/a\x7f", "/a:b@c-d_e.f~g", "/" + "a" * 511),
        *("/" + "a" * 512, "/a" * 32, "/a" * 33),
    ],
    "places": [
        {f"k{n}": "/" for n in range(32)},
        {f"k{n}": "/" for n in range(33)},
        {"site": None},
        {"site": "a"},
        {"site": 1},
        {"": "/a"},
    ],
    "job_id": ["0" * 20, "0" * 19, "0" * 21, "i" * 20, "A" * 20, "0" * 20 + "\n"],
    "address": ["a@b/c", "b/c", "a@b", "/c", "", "b/"],
    "time": [
        *("2026-11-21T05:00:00+01:00", "2026-11-21t05:00:00.123z", "2026-11-21T05:00:00"),
        *("2026-11-21", "2026-11-21T05:00:00Z\n", "2026-11-21 05:00:00Z"),
    ],
    "reasons": [["lost", "busy"], ["cancelled"], ["dance"]],
    "problem": [
        {"reason": "dance"},
        {"reason": None},
        {"reason": "failed", "type": None, "after": None, "argument": None, "text": None},
        *({"reason": "failed", "type": kind} for kind in (*sorted(TYPES), "fatal", 1)),
        *({"reason": "failed", "after": after} for after in (0, -0.1, 1e9, True, "1")),
        *({"reason": "failed", "argument": "a" * most} for most in (256, 257)),
        *({"reason": "a" * most} for most in (64, 65)),
        *({"reason": "failed", "text": "a" * most} for most in (4096, 4097)),
        *({"reason": "failed", "condition": "a" * most} for most in (64, 65)),
    ],
}


def _members(name: str) -> list[tuple[str, str]]:
    return [(name, member) for member in DOCUMENT["$defs"][name]["properties"]]


def _differing(name: str, member: str, reads: Callable[[Json], object]) -> list[Json]:
    """Give the values of a member that only one of code and schema takes."""
    schema = DOCUMENT["$defs"][name]
    base = {n: _good(schema["properties"][n]) for n in schema.get("required", ())}
    if member in schema.get("dependentSchemas", ()):
        base |= {n: _good(schema["properties"][n]) for n in schema["dependentSchemas"]}
    differ: list[Json] = []
    for value in _tried(schema["properties"][member]):
        whole = {**base, member: value}
        try:
            reads(whole)
        except (RemoteProtocolError, CallError):
            taken = False
        else:
            taken = True
        if taken != fits(whole, name):
            differ.append(value)
    return differ


def _read_event(raw: Mapping[str, Json]) -> object:
    return EVENTS[raw["type"]].parse(raw)


#: Where the code takes more than the page lets others say.
LENIENT = {("advertisement", "holds"), ("submission", "kind")}


@pytest.mark.parametrize(
    ("event", "member"), [pair for name in EVENTS for pair in _members(name) if pair[1] != "type"]
)
def test_every_member_of_an_event_has_the_bounds_that_the_code_has(event: str, member: str) -> None:
    differing = _differing(event, member, _read_event)

    if (event, member) in LENIENT:
        good = {**_good(DOCUMENT["$defs"][event]), "type": event}
        assert all(_read_event({**good, member: value}) for value in differing)
    else:
        assert differing == []


def _read_want(raw: Json) -> object:
    return Want.read(raw, "want")


def _read_problem(raw: Json) -> object:
    return readers.problem(raw, "problem")


def _read_operation(raw: Json) -> object:
    text = json.dumps({"ops": {"/a": raw}})
    return Capabilities.parse(text, Capabilities(text, {}).hash)


def _read_retry(raw: Json) -> object:
    return _read_operation({"retry": raw})


def _read_submission(raw: Json) -> object:
    return submission.read(raw, "ann@example.org", 1_795_237_200_000, 0)


READERS: Mapping[str, Callable[[Json], object]] = {
    "want": _read_want,
    "problem": _read_problem,
    "operation": _read_operation,
    "retry": _read_retry,
    "submission": _read_submission,
}


@pytest.mark.parametrize(("name", "member"), [pair for name in READERS for pair in _members(name)])
def test_every_member_of_what_events_hold_has_the_bounds_that_the_code_has(
    name: str, member: str
) -> None:
    differing = _differing(name, member, READERS[name])

    assert differing == ([""] if (name, member) in LENIENT else [])


def test_a_reference_to_a_blob_has_the_bounds_that_the_code_has() -> None:
    good = {"url": "https://up.example.org/1", "sha256": "0" * 64, "size": 1}
    members: Mapping[str, Sequence[Json]] = {
        "url": [
            *("https://a", "http://a", "https://", "https://a b", "https://\u00e9", "https://a\n"),
            *("https://" + "a" * 2040, "https://" + "a" * 2041),
        ],
        "sha256": ["f" * 64, "F" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "g" * 64],
        "size": [0, 2**53 - 1, 2**53, -1],
        "media": ["a/b", "image/svg+xml", "a", "a/b; c=d", "/b", "a/b\n", f"a/{'b' * 65}"],
    }
    for name, values in members.items():
        for value in (*values, *_ANY):
            whole = {**good, name: value}
            try:
                parse_reference({"blob": whole})
            except RemoteProtocolError:
                taken = False
            else:
                taken = True
            assert taken == fits({"blob": whole}, "blob"), whole
    assert not fits({"blob": good, "more": 1}, "blob")


def test_what_is_unknown_fits_and_what_is_no_list_of_events_does_not() -> None:
    assert fits([])
    assert fits([{"type": "dance", "id": 7}])
    assert fits([{"type": "ack", "id": "c1", "colour": {"deep": [1]}, "attempt": None}])
    assert fits([{"type": "ack", "id": "c1"}] * LIMITS.events)
    assert not fits([{"type": "ack", "id": "c1"}] * (LIMITS.events + 1))
    others: Sequence[Json] = ({}, None, "op", [1], [None], [[]], [{}], [{"type": 1}])
    for wrong in (*others, [{"type": "op"}]):
        assert not fits(wrong), wrong


def test_a_schema_in_a_description_is_looked_into() -> None:
    assert fits({"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}]}}}, "schema")
    others: Sequence[Json] = (
        {"type": ["string", "null"]},
        {"properties": {"a": 1}},
        {"items": [{"type": "string"}]},
        {"additionalProperties": True},
        {"anyOf": []},
        {"multipleOf": 0},
    )
    for wrong in others:
        assert not fits(wrong, "schema"), wrong


# -- the examples of the page


BLOCKS = [
    pytest.param(element, id=f"{title}-{number}")
    for title, text in sections(PAGE.read_text()).items()
    for number, element in enumerate(stanzas(text), 1)
]


RELAXNG = etree.RelaxNG(etree.parse(str(SPINAL_RNG)))


def is_valid(stanza: bytes) -> bool:
    """Tell whether a stanza fits the RELAX NG."""
    return bool(RELAXNG.validate(etree.fromstring(stanza)))


@pytest.mark.parametrize("element", BLOCKS)
def test_every_example_of_the_page_fits_both_schemas(element: Element) -> None:
    assert is_valid(tostring(element))
    body = Codec.decode(element).body
    if body is not None:
        said = json.loads(body)
        assert complaints(said) == []
        for event in said:
            if event["type"] == "description":
                assert complaints(json.loads(event["text"]), "capabilities") == []


def test_the_page_has_no_xml_block_without_a_stanza() -> None:
    found = [block for text in sections(PAGE.read_text()).values() for block in blocks(text)]

    assert len(found) > 20
    assert all("<" in block for block in found)
    assert PAGE.read_text().count("```xml") == len(found)


# -- stanzas


X = f"<x xmlns='{NS}'>[]</x>"
FOREIGN = "<y xmlns='urn:other' a='1'><x xmlns='urn:spinal:1'/>text</y>"
GONE = f"<gone xmlns='{STANZA_ERRORS}'/>"


def _stanza(kind: str, attributes: str, inner: str, namespace: str = "jabber:client") -> bytes:
    return f"<{kind} xmlns='{namespace}' {attributes}>{inner}</{kind}>".encode()


@pytest.mark.parametrize("namespace", ["jabber:client", "jabber:server", "jabber:component:accept"])
@pytest.mark.parametrize(
    ("kind", "attributes", "inner"),
    [
        ("iq", "type='set' id='1' to='a@b/c'", X),
        ("iq", "type='set' id='1'", FOREIGN),
        ("iq", "type='get' id='1'", FOREIGN),
        ("iq", "type='result' id='1'", X),
        ("iq", "type='result' id='1' xml:lang='en'", ""),
        ("iq", "type='error' id='1'", f"{X}<error type='cancel'>{GONE}</error>"),
        (
            "iq",
            "type='error' id='1'",
            f"<error type='wait' by='b'>{GONE}{FOREIGN}</error>{FOREIGN}",
        ),
        ("message", "type='headline'", FOREIGN + X + FOREIGN),
        ("message", "type='chat'", "<body>hi</body>"),
        ("message", "", "<body>hi</body>"),
        ("presence", "", ""),
        ("presence", "to='a@b/c'", f"<priority>1</priority>{X}<x xmlns='urn:spinal:2'>[]</x>"),
        ("presence", "type='unavailable'", FOREIGN),
        (
            "presence",
            "type='error'",
            f"<error type='auth'><reason xmlns='{NS}'>busy</reason>{GONE}</error>",
        ),
    ],
)
def test_stanzas_as_xmpp_allows_them_fit(
    kind: str, attributes: str, inner: str, namespace: str
) -> None:
    assert is_valid(_stanza(kind, attributes, inner, namespace))


@pytest.mark.parametrize(
    ("kind", "attributes", "inner"),
    [
        ("iq", "type='set' id='1'", ""),
        ("iq", "type='set' id='1'", X + X),
        ("iq", "type='set' id='1'", X + FOREIGN),
        ("iq", "type='get' id='1'", X),
        ("iq", "type='set'", X),
        ("iq", "type='set' id='1'", f"<x xmlns='{NS}'><y/></x>"),
        ("iq", "type='set' id='1'", f"<x xmlns='{NS}' a='1'>[]</x>"),
        ("iq", "type='set' id='1'", f"<y xmlns='{NS}'>[]</y>"),
        ("iq", "type='ask' id='1'", X),
        ("iq", "type='set' id='1' colour='red'", X),
        ("iq", "type='error' id='1'", ""),
        ("iq", "type='error' id='1'", f"<error>{GONE}</error>"),
        ("iq", "type='error' id='1'", f"<error type='fatal'>{GONE}</error>"),
        ("iq", "type='error' id='1'", f"<error type='cancel'>{GONE}{GONE}</error>"),
        ("iq", "type='error' id='1'", "<error type='cancel'/>"),
        (
            "iq",
            "type='error' id='1'",
            f"<error type='cancel'><dance xmlns='{STANZA_ERRORS}'/></error>",
        ),
        (
            "iq",
            "type='error' id='1'",
            f"<error type='cancel'>{GONE}<reason xmlns='{NS}'/></error>",
        ),
        ("message", "type='chat'", X),
        ("message", "type='headline'", X + X),
        ("presence", "type='unavailable'", X),
        ("presence", "", X + X),
        ("stream", "", X),
    ],
)
def test_other_stanzas_do_not_fit(kind: str, attributes: str, inner: str) -> None:
    assert not is_valid(_stanza(kind, attributes, inner))


def test_the_conditions_and_types_of_errors_are_those_of_the_code() -> None:
    root = parse(SPINAL_RNG).getroot()
    space = "{http://relaxng.org/ns/structure/1.0}"
    defined = {found.get("name", ""): found for found in root.iter(f"{space}define")}

    conditions = [str(one.get("name")) for one in defined["condition"].iter(f"{space}element")]
    kinds = [str(one.text) for one in defined["wrong"].iter(f"{space}value")]

    assert sorted(conditions) == sorted(CONDITIONS)
    assert sorted(kinds) == sorted(TYPES)
    for condition in sorted(CONDITIONS):
        error = f"<error type='cancel'><{condition} xmlns='{STANZA_ERRORS}'/></error>"
        assert is_valid(_stanza("iq", "type='error' id='1'", error))


def test_what_the_codec_writes_fits() -> None:
    body = Codec().write([Ack("c1")])
    problem = Problem("bad-arguments", "no <such> thing", "a")
    for stanza in (
        Stanza("iq", "set", "a@b/c", id="1", body=body),
        Stanza("iq", "result", "a@b/c", id="1"),
        Stanza("message", "headline", "a@b/c", body=body),
        Stanza("presence", "", body=body),
        Stanza("iq", "error", "a@b/c", id="1", body=body, problem=problem),
    ):
        written = Codec.encode(stanza).decode()
        assert is_valid(
            written.replace(f"<{stanza.kind}", f"<{stanza.kind} xmlns='jabber:client'", 1).encode()
        )


if __name__ == "__main__":
    EVENTS_JSON.write_text(fresh())
