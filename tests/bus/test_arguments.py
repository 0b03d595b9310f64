from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.bus.arguments import ArgumentError, Given, accepted, convert, parse

BLOB = {"type": "object", "format": "blob"}
RESIZE: dict[str, Any] = {
    "type": "object",
    "properties": {"photo": BLOB, "width": {"type": "integer", "default": 640}},
    "required": ["photo"],
    "additionalProperties": False,
}


def one(word: str, schema: dict[str, Any]) -> Any:
    """Convert the one argument ``x``."""
    return convert(parse([word]), {"properties": {"x": schema}})["x"]


class TestWords:
    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("a=b", Given("a", "", "b")),
            ("a=", Given("a", "", "")),
            ("a:=[1]", Given("a", ":", "[1]")),
            ("a@=b.txt", Given("a", "@", "b.txt")),
            ("a=b=c", Given("a", "", "b=c")),
            ("a=b:=c@=d", Given("a", "", "b:=c@=d")),
            ("a-b.c=\n", Given("a-b.c", "", "\n")),
        ],
    )
    def test_there_are_three_forms(self, word: str, expected: Given) -> None:
        assert parse([word]) == [expected]

    @pytest.mark.parametrize("word", ["", "a", "=b", ":=1", "@=f", "a b=c", "/op"])
    def test_anything_else_is_told_the_three_forms(self, word: str) -> None:
        with pytest.raises(ArgumentError, match=r"key=value, key:=json or key@=file"):
            parse([word])

    def test_a_key_that_is_there_twice_is_named(self) -> None:
        with pytest.raises(ArgumentError, match=r"a is given twice"):
            parse(["a=1", "b=2", "a:=3"])

    @given(st.text(min_size=1), st.text())
    def test_no_word_makes_it_stumble(self, key: str, text: str) -> None:
        try:
            found = parse([f"{key}={text}"])
        except ArgumentError:
            return
        assert len(found) == 1 and found[0].text.endswith(text)


class TestScalars:
    @pytest.mark.parametrize(
        ("word", "schema", "expected"),
        [
            ("x=5", {"type": "integer"}, 5),
            ("x=-5", {"type": "integer"}, -5),
            ("x=5", {"type": "number"}, 5),
            ("x=2.5e3", {"type": "number"}, 2500.0),
            ("x=true", {"type": "boolean"}, True),
            ("x=False", {"type": "boolean"}, False),
            ("x=5", {"type": "string"}, "5"),
            ("x=", {"type": "string"}, ""),
            ("x=5", {}, "5"),
            ("x=null", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
            ("x=7", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 7),
            ("x=abc", {"type": ["integer", "string"]}, "abc"),
            ("x=b", {"enum": ["a", "b"]}, "b"),
            ("x=2", {"enum": [1, 2]}, 2),
        ],
    )
    def test_text_becomes_what_the_schema_asks_for(
        self, word: str, schema: dict[str, Any], expected: Any
    ) -> None:
        found = one(word, schema)
        assert found == expected and type(found) is type(expected)

    @pytest.mark.parametrize(
        ("word", "schema", "message"),
        [
            ("x=five", {"type": "integer"}, "x: 'five' is not an integer"),
            ("x=1.5", {"type": "integer"}, "x: '1.5' is not an integer"),
            ("x=1_000", {"type": "integer"}, "is not an integer"),
            ("x=9007199254740993", {"type": "integer"}, "is not an integer"),
            ("x=NaN", {"type": "number"}, "x: 'NaN' is not a number"),
            ("x=1e999", {"type": "number"}, "is not a number"),
            ("x=1_0.5", {"type": "number"}, "is not a number"),
            ("x=yes", {"type": "boolean"}, "x: 'yes' is not true or false"),
            ("x=c", {"enum": ["a", "b"]}, "x: c is none of a, b"),
            ("x=1", {"type": "array"}, r"x takes a list: write it as JSON, x:='\[...\]'"),
            ("x=1", {"type": "object"}, r"x takes an object: write it as JSON, x:='{...}'"),
        ],
    )
    def test_what_does_not_fit_is_named(
        self, word: str, schema: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ArgumentError, match=message) as caught:
            one(word, schema)
        assert caught.value.problem.argument == "x"
        assert caught.value.exit_code == 2

    @given(st.integers(-(2**53) + 1, 2**53 - 1))
    def test_every_integer_comes_through(self, number: int) -> None:
        assert one(f"x={number}", {"type": "integer"}) == number

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_every_number_comes_through(self, number: float) -> None:
        assert one(f"x={number}", {"type": "number"}) == number


class TestJson:
    def test_it_is_taken_as_it_is(self) -> None:
        assert one('x:={"a": [1, null]}', {"type": "object"}) == {"a": [1, None]}

    @pytest.mark.parametrize("text", ["", "[1", "NaN", "[Infinity]", "'a'"])
    def test_what_is_no_json_is_named(self, text: str) -> None:
        with pytest.raises(ArgumentError, match=r"x: not JSON"):
            one(f"x:={text}", {})

    def test_deep_json_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"x: (nested|not JSON)"):
            one(f"x:={'[' * 100_000}{']' * 100_000}", {})
        with pytest.raises(ValueError, match=r"x: nested deeper"):
            one(f"x:={'[' * 100}{']' * 100}", {})

    def test_a_blob_may_be_given_by_reference(self) -> None:
        reference = '{"blob": {"url": "https://x/y", "size": 1}}'
        assert one(f"x:={reference}", BLOB)["blob"]["size"] == 1


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "a.txt"
        path.write_text("42")
        return path

    @pytest.mark.parametrize("form", ["x=", "x@="])
    def test_a_blob_is_a_path(self, file: Path, form: str) -> None:
        assert one(f"{form}{file}", BLOB) == file

    def test_a_blob_that_may_be_missing_is_one_too(self, file: Path) -> None:
        optional = {"anyOf": [BLOB, {"type": "null"}]}
        assert one(f"x={file}", optional) == file
        assert one("x=null", optional) is None

    def test_elsewhere_the_text_of_the_file_counts(self, file: Path) -> None:
        assert one(f"x@={file}", {"type": "string"}) == "42"
        assert one(f"x@={file}", {"type": "integer"}) == 42
        assert one(f"x@={file}", {}) == "42"

    def test_a_file_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ArgumentError, match=r"x: /no/such cannot be read: No such file"):
            one("x=/no/such", BLOB)

    def test_an_address_on_the_web_is_no_file(self) -> None:
        with pytest.raises(ArgumentError, match=r"x takes a file: save https://e.org/x first"):
            one("x=https://e.org/x", BLOB)

    def test_a_large_file_must_be_a_blob(self, file: Path) -> None:
        file.write_bytes(b"x" * 40_000)
        with pytest.raises(ArgumentError, match=r"x: .* is larger than 32768 bytes"):
            one(f"x@={file}", {"type": "string"})

    def test_bytes_must_be_a_blob(self, file: Path) -> None:
        file.write_bytes(b"\xff\xd8")
        with pytest.raises(ArgumentError, match=r"is not text, and this argument is not a blob"):
            one(f"x@={file}", {"type": "string"})


class TestAll:
    def test_an_unknown_argument_lists_those_there_are(self) -> None:
        with pytest.raises(ArgumentError, match=r"no argument size: it takes photo@=FILE \[width"):
            convert(parse(["size=3"]), RESIZE)

    def test_a_missing_argument_is_named(self) -> None:
        with pytest.raises(ArgumentError, match=r"photo is missing: it takes photo@=FILE"):
            convert(parse(["width=3"]), RESIZE)

    def test_an_operation_that_takes_anything_gets_text(self) -> None:
        assert convert(parse(["a=1", "b:=2"]), {}) == {"a": "1", "b": 2}

    def test_an_operation_without_arguments_says_so(self) -> None:
        schema: dict[str, Any] = {"properties": {}, "additionalProperties": False}
        with pytest.raises(ArgumentError, match="it takes no arguments"):
            convert(parse(["a=1"]), schema)

    def test_what_it_takes_is_told_as_one_would_type_it(self) -> None:
        schema = {
            "properties": {
                "mode": {"enum": ["fit", "fill"]},
                "tags": {"type": "array"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "any": {},
            },
            "required": ["mode"],
        }
        assert accepted(schema) == "it takes mode=fit|fill [tags:=ARRAY] [note=STRING] [any=VALUE]"
