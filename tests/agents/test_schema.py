from __future__ import annotations

import datetime
import decimal
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import msgspec
import pytest

from spinal.agents import Blob, Job
from spinal.agents.schema import KEYWORDS, Signature
from spinal.bus.errors import BadCall
from spinal.protocols import BlobRef, Json


class Mode(enum.Enum):
    FAST = "fast"
    GOOD = "good"


@dataclass
class Crop:
    left: int
    top: int = 0
    tags: list[str] = field(default_factory=list[str])


@dataclass
class Tree:
    children: list[Tree]


async def resize(
    job: Job,
    photo: Blob,
    width: int = 640,
    mode: Mode = Mode.GOOD,
    crop: Crop | None = None,
) -> Blob:
    """Scale a photo.

    Args:
        width: In pixels.
    """
    raise NotImplementedError


async def everything(
    when: datetime.datetime,
    price: decimal.Decimal,
    raw: bytes,
    counts: dict[str, int],
    kind: Literal["a", "b"],
    share: Annotated[float, msgspec.Meta(ge=0, le=1)],
    name: Annotated[str, msgspec.Meta(pattern="^[a-z]+$", max_length=5)],
    pair: tuple[int, str],
    numbers: list[int],
    anything: object,
    more: Any = None,
) -> list[Crop]:
    raise NotImplementedError


GOOD: Mapping[str, Json] = {
    "when": "2026-01-02T03:04:05Z",
    "price": "1.10",
    "raw": "AAE=",
    "counts": {"x": 1},
    "kind": "a",
    "share": 1,
    "name": "abc",
    "pair": [1, "x"],
    "numbers": [1, 2],
    "anything": {"x": [None]},
}


def made(ref: BlobRef) -> Blob:
    return Blob(b"", ref.media_type, ref=ref)


def reference() -> dict[str, Json]:
    return BlobRef("https://h/x", "0" * 64, 3, "image/png").to_json()


def problem(function: Any, args: Mapping[str, Json]) -> tuple[str, str | None]:
    with pytest.raises(BadCall) as caught:
        Signature.of(function).convert(args, made)
    assert caught.value.reason == "bad-arguments"
    assert "\n" not in str(caught.value)
    return str(caught.value), caught.value.problem.argument


def test_a_signature_becomes_json_schema_without_references_and_without_the_job() -> None:
    signature = Signature.of(resize)

    assert signature.job == "job"
    assert signature.args == {
        "type": "object",
        "properties": {
            "photo": {"type": "object", "format": "blob"},
            "width": {"type": "integer", "default": 640, "description": "In pixels."},
            "mode": {"enum": ["fast", "good"], "default": "good"},
            "crop": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {
                            "left": {"type": "integer"},
                            "top": {"type": "integer", "default": 0},
                            "tags": {"type": "array", "items": {"type": "string"}},
                        },
                        "required": ["left"],
                    },
                    {"type": "null"},
                ],
                "default": None,
            },
        },
        "required": ["photo"],
        "additionalProperties": False,
    }
    assert signature.result == {"type": "object", "format": "blob"}


def test_dates_decimals_and_bytes_are_strings_with_a_format() -> None:
    properties = Signature.of(everything).args["properties"]

    assert properties["price"] == {"type": "string", "format": "decimal"}
    assert properties["raw"] == {"type": "string", "format": "base64"}
    assert properties["share"] == {"type": "number", "minimum": 0, "maximum": 1}
    assert properties["name"] == {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5}
    assert properties["anything"] == {}


def test_a_schema_uses_only_the_words_of_the_subset() -> None:
    def words(schema: Any) -> set[str]:
        if not hasattr(schema, "items"):
            return set()
        inside = [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]
        inside += [schema.get("items"), schema.get("additionalProperties")]
        return set(schema).union(*map(words, inside))

    signature = Signature.of(everything)

    assert words(signature.args) | words(signature.result) <= KEYWORDS


def test_arguments_are_converted_to_what_the_function_wants() -> None:
    found = Signature.of(everything).convert(GOOD, made)

    assert found["when"] == datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    assert found["price"] == decimal.Decimal("1.10")
    assert found["raw"] == b"\x00\x01"
    assert found["pair"] == (1, "x")
    assert found["anything"] == {"x": [None]}
    assert "more" not in found


def test_a_reference_becomes_a_blob_and_an_object_a_dataclass() -> None:
    args = {"photo": reference(), "crop": {"left": 3}, "mode": "fast"}
    found = Signature.of(resize).convert(args, made)

    assert found["photo"].media_type == "image/png"
    assert found["crop"] == Crop(3)
    assert found["mode"] is Mode.FAST
    assert "width" not in found


@pytest.mark.parametrize(
    ("args", "text", "argument"),
    [
        ({"width": "x"}, "argument 'width': expected integer, got string", "width"),
        ({"width": True}, "argument 'width': expected integer, got boolean", "width"),
        ({"width": 1.5}, "argument 'width': expected integer, got number", "width"),
        (
            {"widht": 3},
            "unknown argument 'widht' (did you mean 'width'?)",
            "widht",
        ),
        (
            {"zzz": 3},
            "unknown argument 'zzz' (it takes photo, width, mode, crop)",
            "zzz",
        ),
        ({"mode": "slow"}, "argument 'mode': 'slow' is not one of fast, good", "mode"),
        ({"photo": {"url": "x"}}, "argument 'photo': not a reference to a blob", "photo"),
        ({"crop": {"left": "x"}}, "argument 'crop.left': expected integer, got string", "crop"),
        (
            {"crop": {"left": 1, "tags": [1]}},
            "argument 'crop.tags[0]': expected string, got integer",
            "crop",
        ),
        (
            {"crop": {}},
            "argument 'crop': object missing required field left",
            "crop",
        ),
    ],
)
def test_an_error_names_the_argument_in_plain_words(
    args: dict[str, Json], text: str, argument: str
) -> None:
    assert problem(resize, {"photo": reference(), **args}) == (text, argument)


def test_a_missing_argument_is_named() -> None:
    assert problem(resize, {}) == ("missing argument 'photo'", "photo")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("when", "yesterday", "argument 'when': invalid RFC3339 encoded datetime"),
        ("share", 2, "argument 'share': expected number <= 1.0"),
        ("name", "ABC", "argument 'name': expected string matching regex '^[a-z]+$'"),
        ("counts", {"x": "y"}, "argument 'counts[...]': expected integer, got string"),
        ("kind", "c", "argument 'kind': 'c' is not one of a, b"),
        ("numbers", 1, "argument 'numbers': expected array, got integer"),
    ],
)
def test_an_error_says_what_was_expected(name: str, value: Json, text: str) -> None:
    assert problem(everything, {**GOOD, name: value}) == (text, name)


@dataclass
class Bill:
    total: decimal.Decimal
    parts: list[decimal.Decimal] = field(default_factory=list[decimal.Decimal])


async def pay(
    amount: decimal.Decimal | None = None,
    either: decimal.Decimal | int = 0,
    rates: dict[str, decimal.Decimal] = {},  # noqa: B006 - never changed
    bill: Bill | None = None,
) -> None:
    raise NotImplementedError


@pytest.mark.parametrize(
    "args",
    [
        {"amount": None, "either": 3, "rates": {}, "bill": None},
        {"amount": "-12.50", "either": "1", "rates": {"a": "0.1"}},
        {"bill": {"total": "+3", "parts": ["1", "2.50"], "more": 1e5}},
    ],
)
def test_decimals_are_digits_in_a_string(args: dict[str, Json]) -> None:
    assert set(Signature.of(pay).convert(args, made)) == set(args)


@pytest.mark.parametrize(
    "value", ["1e5", "NaN", "Infinity", ".5", "5.", " 1", "1_0", "\u0663", 1.5]
)
def test_a_decimal_in_another_form_is_refused_wherever_it_stands(value: Json) -> None:
    places: list[dict[str, Json]] = [
        {"amount": value},
        {"either": value},
        {"rates": {"a": "1", "b": value}},
        {"bill": {"total": value}},
        {"bill": {"total": "1", "parts": ["1", value]}},
    ]
    for args in places:
        (name,) = args
        assert problem(pay, args) == (
            f"argument '{name}': expected decimals as in \"-12.50\"",
            name,
        )


def test_the_default_of_a_function_is_used_and_not_a_copy() -> None:
    shared: list[int] = [1]

    async def function(numbers: list[int] = shared) -> None: ...

    signature = Signature.of(function)

    assert signature.convert({}, made) == {}
    assert signature.args["properties"]["numbers"]["default"] == [1]


def bad_star(*names: str) -> None: ...
def bad_stars(**names: str) -> None: ...
def bad_positional(name: str, /) -> None: ...
def bad_untyped(name) -> None: ...  # type: ignore[no-untyped-def]  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
def bad_type(name: complex) -> None: ...
def bad_result(name: str) -> complex:
    return 1j


def bad_two_jobs(one: Job, two: Job) -> None: ...
def bad_tree(tree: Tree) -> None: ...
def bad_default(name: Any = complex(1)) -> None: ...


BAD: list[tuple[Any, str]] = [
    (bad_star, "parameter 'names' of bad_star() must be an ordinary one"),
    (bad_stars, "parameter 'names' of bad_stars() must be an ordinary one"),
    (bad_positional, "parameter 'name' of bad_positional() must be an ordinary one"),
    (bad_untyped, "parameter 'name' of bad_untyped() needs a type"),
    (bad_type, "parameter 'name' of bad_type(): type <class 'complex'> is not supported"),
    (bad_result, "result of bad_result(): type <class 'complex'> is not supported"),
    (bad_two_jobs, "parameter 'two' of bad_two_jobs(): there is one job, and 'one' has it"),
    (bad_tree, "parameter 'tree' of bad_tree(): type Tree contains itself"),
    (bad_default, "parameter 'name' of bad_default(): its default (1+0j) has no JSON form"),
]


@pytest.mark.parametrize(("function", "words"), BAD)
def test_what_cannot_be_an_operation_is_named_with_its_parameter(function: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        Signature.of(function)

    assert str(caught.value).startswith(words)


def test_an_annotation_that_is_imported_for_type_checkers_only_is_explained() -> None:
    async def function(name: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]

    odd = cast(Any, function)
    with pytest.raises(TypeError, match="annotations use 'Nowhere'"):
        Signature.of(odd)
