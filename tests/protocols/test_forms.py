"""Schemas become forms, and what is filled in becomes the arguments that it says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import LIMITS, MAX_INTEGER, Json, Operation, RemoteProtocolError, elements
from spinal.protocols.forms import FORMS, MAX_FIELDS, VALIDATE, Form, result

TEXT = st.text(
    st.sampled_from("ab&<>]'\" é😀")
    | st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Cn"]),
    min_size=1,
    max_size=12,
)
WORDS = ["red", "blue & <green>", "it's"]
#: A schema, and values that a form can say of it.
ROWS: Sequence[tuple[Mapping[str, Json], st.SearchStrategy[Json]]] = [
    ({"type": "string"}, TEXT),
    ({"type": "string", "enum": WORDS}, st.sampled_from(WORDS)),
    ({"enum": WORDS}, st.sampled_from(WORDS)),
    ({"enum": [1, 2, -4]}, st.sampled_from([1, 2, -4])),
    ({"enum": [None, "a", "b"]}, st.sampled_from(["a", "b"])),
    ({"type": "integer"}, st.integers(-MAX_INTEGER, MAX_INTEGER)),
    ({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False)),
    ({"type": "boolean"}, st.booleans()),
    (
        {"type": "array", "items": {"enum": WORDS}},
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=3),
    ),
    ({"type": "array", "items": {"type": "string"}}, st.lists(TEXT, min_size=1, max_size=4)),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, st.integers(0, 9)),
    ({"anyOf": [{"type": "null"}, {"enum": WORDS}]}, st.sampled_from(WORDS)),
]


def operation(properties: Mapping[str, Json], required: Sequence[str] = ()) -> Operation:
    args = {"type": "object", "properties": properties, "required": list(required)}
    return Operation("/a/b", "Do it.", args)


def form(properties: Mapping[str, Json], required: Sequence[str] = ()) -> Form:
    found = Form.of(operation(properties, required))
    assert found is not None
    return found


def one(schema: Mapping[str, Json], required: bool = False) -> Element:
    """Give the field of an argument, as it is read from the wire."""
    (field,) = fields(form({"x": schema}, ["x"] if required else []))
    return field


def fields(asked: Form) -> list[Element]:
    return fromstring(elements.write(asked.element())).findall(f"{{{FORMS}}}field")


def fill(said: Mapping[str, Sequence[str]]) -> Element:
    """Fill a form in as a client does."""
    filled = Element(f"{{{FORMS}}}x", {"type": "submit"})
    for var, values in said.items():
        field = elements.child(filled, "field", {"var": var})
        for value in values:
            elements.child(field, "value", text=value)
    return fromstring(elements.write(filled))


def typed(value: Json) -> list[str]:
    """Give what a person types for a value."""
    if isinstance(value, list):
        return [text for item in value for text in typed(item)]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, bool):
        return ["true" if value else "0"]
    return [f"{value:.400f}" if isinstance(value, float) else str(value)]


def arguments() -> st.SearchStrategy[tuple[dict[str, Json], dict[str, Json]]]:
    """Properties, and arguments for some of them."""

    def chosen(
        rows: list[tuple[Mapping[str, Json], st.SearchStrategy[Json]]],
    ) -> st.SearchStrategy[tuple[dict[str, Json], dict[str, Json]]]:
        properties = {f"arg_{n}": dict(schema) for n, (schema, _) in enumerate(rows)}
        values = {f"arg_{n}": value for n, (_, value) in enumerate(rows)}
        return st.tuples(st.just(properties), st.fixed_dictionaries({}, optional=values))

    return st.lists(st.sampled_from(ROWS), max_size=6).flatmap(chosen)


@given(arguments())
def test_what_is_filled_in_is_what_is_read(case: tuple[dict[str, Json], dict[str, Json]]) -> None:
    properties, args = case
    asked = form(properties, list(args))

    found = asked.read(fill({name: typed(value) for name, value in args.items()}))

    assert found == args
    assert {name: type(value) for name, value in found.items() if type(value) is bool} == {
        name: type(value) for name, value in args.items() if type(value) is bool
    }


@given(st.data(), st.sampled_from(ROWS))
def test_a_form_that_is_sent_back_as_it_came_gives_the_defaults(
    data: st.DataObject, row: tuple[Mapping[str, Json], st.SearchStrategy[Json]]
) -> None:
    schema, values = row
    default = data.draw(values)
    asked = form({"x": {**schema, "default": default}})

    (field,) = fields(asked)
    shown = [value.text or "" for value in field.findall(f"{{{FORMS}}}value")]

    assert asked.read(fill({"x": shown})) == {"x": default}


@given(
    st.dictionaries(
        st.text(max_size=4),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["type", "enum", "items", "anyOf", "default", "required"]),
                    inner | st.sampled_from(["string", "array", "integer", "number", "boolean"]),
                    max_size=4,
                )
            ),
        ),
        max_size=4,
    ),
    st.lists(st.text(max_size=4) | st.lists(st.integers(), max_size=1), max_size=3),
)
def test_whatever_a_description_says_a_form_is_made_or_none(
    properties: dict[str, Any], required: list[Any]
) -> None:
    found = Form.of(Operation("/a", args={"properties": properties, "required": required}))

    if found is not None:
        fromstring(elements.write(found.element()))


# -- the table of section 17


@pytest.mark.parametrize(
    ("schema", "kind", "datatype"),
    [
        ({"type": "string", "enum": ["a"]}, "list-single", None),
        ({"enum": [1, 2]}, "list-single", None),
        ({"type": "string", "format": "date-time"}, "text-single", None),
        ({"type": "integer", "minimum": 1}, "text-single", "xs:integer"),
        ({"type": "number"}, "text-single", "xs:decimal"),
        ({"type": "boolean"}, "boolean", None),
        ({"type": "array", "items": {"type": "string", "enum": ["a"]}}, "list-multi", None),
        ({"type": "array", "items": {"type": "string"}}, "text-multi", None),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "text-single", "xs:decimal"),
    ],
)
def test_a_schema_has_the_field_of_the_table(
    schema: dict[str, Json], kind: str, datatype: str | None
) -> None:
    field = one(schema)

    assert field.get("type") == kind
    check = field.find(f"{{{VALIDATE}}}validate")
    assert (None if check is None else check.get("datatype")) == datatype


NO_FIELD: Sequence[dict[str, Json]] = [
    {},
    {"type": "object"},
    {"type": "object", "format": "blob"},
    {"type": "array", "items": {"type": "integer"}},
    {"type": "array"},
    {"type": "null"},
    {"type": ["string", "null"]},
    {"enum": ["a", 1]},
    {"enum": [True, False]},
    {"enum": [1.5]},
    {"enum": [""]},
    {"enum": []},
    {"enum": ["a\x00"]},
    {"enum": [f"{n}" for n in range(1000)]},
    {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    {"anyOf": [{"type": "object"}, {"type": "null"}]},
]


@pytest.mark.parametrize("schema", NO_FIELD, ids=str)
def test_anything_else_has_no_field_and_nobody_who_requires_it_a_form(
    schema: dict[str, Json],
) -> None:
    properties: dict[str, Json] = {"x": schema, "y": {"type": "string"}}

    assert [field.get("var") for field in fields(form(properties))] == ["y"]
    assert Form.of(operation(properties, ["x"])) is None


def test_a_field_says_what_it_is_about() -> None:
    field = one(
        {"type": "integer", "default": 640, "description": "In <pixels>."},
        required=True,
    )

    assert field.get("label") == "x"
    assert field.findtext(f"{{{FORMS}}}desc") == "In <pixels>."
    assert field.findtext(f"{{{FORMS}}}value") == "640"
    assert field.find(f"{{{FORMS}}}required") is not None
    named = form({"max_file-size": {"type": "string"}})
    assert fields(named)[0].get("label") == "max file size"
    assert one({"enum": ["a", "b"]}).findall(f"{{{FORMS}}}option/{{{FORMS}}}value")[1].text == "b"


def test_a_form_has_a_title_and_says_what_it_is_for() -> None:
    found = form({}).element()

    assert [("".join(one.itertext())) for one in found] == ["/a/b", "Do it."]
    assert found.get("type") == "form"
    assert Form.of(Operation("/a")) == Form("/a", "", [])


@pytest.mark.parametrize(
    ("schema", "default"),
    [
        ({"type": "string"}, "two\nlines"),
        ({"type": "string"}, ""),
        ({"type": "integer"}, True),
        ({"type": "number"}, "much"),
        ({"enum": ["a"]}, "b"),
        ({"type": "array", "items": {"type": "string"}}, ["a\nb"]),
        ({"type": "array", "items": {"type": "string"}}, "a"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None),
    ],
)
def test_a_default_that_a_field_cannot_show_is_left_to_the_agent(
    schema: dict[str, Json], default: Json
) -> None:
    assert one({**schema, "default": default}).find(f"{{{FORMS}}}value") is None


def test_a_box_that_must_be_ticked_or_not_is_not_at_first() -> None:
    assert one({"type": "boolean"}, required=True).findtext(f"{{{FORMS}}}value") == "0"
    assert one({"type": "boolean"}).find(f"{{{FORMS}}}value") is None


def test_a_form_has_so_many_fields_and_no_more() -> None:
    many = {f"x{n}": {"type": "string"} for n in range(MAX_FIELDS + 1)}

    assert Form.of(operation(many)) is None


# -- empty fields


@pytest.mark.parametrize("said", [{}, {"x": []}, {"x": [""]}, {"x": ["", ""]}])
def test_an_empty_field_is_absent_or_nothing_or_a_problem(said: dict[str, list[str]]) -> None:
    text: dict[str, Json] = {"type": "string"}
    texts: dict[str, Json] = {"type": "array", "items": text}
    null: dict[str, Json] = {"anyOf": [text, {"type": "null"}]}

    assert form({"x": text}).read(fill(said)) == {}
    assert form({"x": texts}).read(fill(said)) == {}
    assert form({"x": texts}, ["x"]).read(fill(said)) == {"x": []}
    assert form({"x": null}, ["x"]).read(fill(said)) == {"x": None}
    with pytest.raises(RemoteProtocolError, match="'x' is required") as refused:
        form({"x": text}, ["x"]).read(fill(said))
    assert (refused.value.problem.reason, refused.value.problem.argument) == ("bad-arguments", "x")


# -- what does not fit


@pytest.mark.parametrize(
    ("schema", "said", "why"),
    [
        ({"type": "integer"}, ["1.0"], "an integer"),
        ({"type": "integer"}, ["٣"], "an integer"),
        ({"type": "integer"}, ["9007199254740992"], "an integer"),
        ({"type": "integer"}, ["1" * 10_000], "an integer"),
        ({"type": "number"}, ["1e3"], "a number"),
        ({"type": "number"}, ["NaN"], "a number"),
        ({"type": "number"}, ["9" * 310], "a number"),
        ({"type": "boolean"}, ["yes"], "1 or 0"),
        ({"enum": ["a", "b"]}, ["c"], "none of the choices"),
        ({"type": "array", "items": {"enum": ["a"]}}, ["a", "c"], "none of the choices"),
        ({"type": "string"}, ["a", "b"], "more than one value"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    schema: dict[str, Json], said: list[str], why: str
) -> None:
    with pytest.raises(RemoteProtocolError, match=f"'x' .*{why}") as refused:
        form({"x": schema}).read(fill({"x": said}))

    assert (refused.value.problem.reason, refused.value.problem.argument) == ("bad-arguments", "x")
    assert "\n" not in refused.value.problem.text


def test_what_is_no_argument_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="'y' is no argument"):
        form({"x": {"type": "string"}}).read(fill({"y": ["1"]}))


def test_a_field_that_is_there_twice_is_named() -> None:
    filled = fill({"x": ["1"]})
    filled.append(filled[0])

    with pytest.raises(RemoteProtocolError, match="'x' is there twice"):
        form({"x": {"type": "string"}}).read(filled)


def test_what_is_there_for_programs_or_to_be_read_is_no_argument() -> None:
    filled = fill({"FORM_TYPE": ["urn:x"], "x": ["1"], "words": ["read this"]})
    filled[2].set("type", "fixed")

    assert form({"x": {"type": "string"}}).read(filled) == {"x": "1"}


def test_a_form_is_bounded() -> None:
    asked = form({"x": {"type": "array", "items": {"type": "string"}}})

    for said in (["x" * LIMITS.inline], ["a"] * LIMITS.inline, ["é" * (LIMITS.inline // 2)]):
        with pytest.raises(RemoteProtocolError) as refused:
            asked.read(fill({"x": said}))
        assert refused.value.problem.reason == "too-large"


@pytest.mark.parametrize("value", [None, "hi", {"a": [1, "<&>\n\x00é\ufffe\uffff"]}, 1.5])
def test_a_result_stands_in_a_form_as_json(value: Json) -> None:
    written = fromstring(elements.write(result(value)))

    (field,) = written.findall(f"{{{FORMS}}}field")
    assert (written.get("type"), field.get("var")) == ("result", "value")
    assert json.loads(field.findtext(f"{{{FORMS}}}value") or "") == value
