from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spinal.agents import document
from spinal.agents.document import DURATION, MAX_BYTES, MAX_DEPTH, MAX_TOLD, SIZE, BadDocument
from spinal.agents.errors import AgentError


def read(text: str | bytes, schema: Any = None) -> document.Document:
    return document.read(text, "f.yaml", schema)


def told(text: str | bytes, schema: Any = None) -> list[str]:
    with pytest.raises(BadDocument) as caught:
        read(text, schema)
    return [str(one) for one in caught.value.mistakes]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("FALSE", False),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        ("1.5", 1.5),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("2026-11-28", "2026-11-28"),
        ("<<", "<<"),
    ],
)
def test_plain_words_are_read_by_yaml_1_2(written: str, value: object) -> None:
    found = read(f"a: {written}\n").value

    assert found == {"a": value}
    assert type(found["a"]) is type(value)


@pytest.mark.parametrize("written", ["-0", "010", "1.50", "0x1F", "true", "~"])
def test_a_plain_value_is_also_had_as_it_was_written(written: str) -> None:
    assert read(f"a: [x, {written}]\n").text("a", 1) == written


def test_a_line_is_that_of_the_key_or_item() -> None:
    found = read("a: 1\nb:\n  c: 2\n  d:\n    - x\n    - y\n")

    assert [found.line("a"), found.line("b", "c"), found.line("b", "d", 1)] == [1, 3, 6]
    assert found.line("b", "d", 7, "z") == 4


def test_what_an_alias_repeats_is_counted() -> None:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]

    assert "more than 100000 values" in told("\n".join(lines))[0]


def test_depth_is_bounded() -> None:
    assert f"{MAX_DEPTH} levels" in told("[" * 40 + "]" * 40)[0]
    assert f"{MAX_DEPTH} levels" in told("[" * 100_000)[0]


def test_an_alias_that_contains_itself_ends() -> None:
    assert "levels" in told("a: &a [*a]\n")[0]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2\n", "f.yaml:2: no YAML: "),
        ("a: 'x\n", "f.yaml:2: no YAML: "),
        ("a: *nowhere\n", "f.yaml:1: no YAML: found undefined alias"),
        (b"a: \xff\n", "f.yaml:1: unacceptable character #x00ff"),
        ("a: \x07\n", "f.yaml:1: unacceptable character #x0007"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: no YAML: "),
        ('a: "\\ud800"\n', "f.yaml:1: a: holds half of a surrogate pair"),
        ('"\\ud800": 1\n', "f.yaml:1: holds half of a surrogate pair"),
        ("a: 1\na: 2\n", "f.yaml:2: a: stands twice, first in line 1"),
        ("a: !!python/object:os.system x\n", "f.yaml:1: a: the tag "),
    ],
)
def test_what_is_no_yaml_is_one_line(text: str | bytes, line: str) -> None:
    (found,) = told(text)

    assert found.startswith(line)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(AgentError, match="larger than 1048576 bytes"):
        document.load(path)


def test_no_more_mistakes_are_told_than_can_be_read() -> None:
    schema = {"type": "array", "items": {"type": "integer"}}

    assert len(told("\n".join(["- x"] * 1000), schema)) == MAX_TOLD


EITHER = {
    "anyOf": [
        {"type": "string", "enum": ["on", "off"]},
        {
            "type": "object",
            "properties": {"file": {"type": "string"}, "field": {"type": "integer"}},
            "required": ["file"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"url": {"type": "string"}},
            "required": ["url"],
            "additionalProperties": False,
        },
    ],
    "examples": ["on"],
}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("onn", ["f.yaml:1: 'onn' is none of 'on', 'off': did you mean on?"]),
        ("file: 3", ["f.yaml:1: file: 3 is not a text"]),
        (
            "url: x\nfile2: y",
            ["f.yaml:2: file2: is not known here: leave it out, or write one of url"],
        ),
        ("field: 1", ["f.yaml:1: 'file' is missing: write file: ..."]),
        ("5", ["f.yaml:1: 5 is not a text or a mapping: write for example 'on'"]),
    ],
)
def test_of_alternatives_the_one_that_was_meant_is_explained(text: str, lines: list[str]) -> None:
    assert told(text, EITHER) == lines


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("1h30m", 5400), ("250ms", 0.25), ("2", 2), ("1.5", 1.5)]
)
def test_lengths_of_time_are_seconds(text: str, seconds: float) -> None:
    assert document.seconds(read(text, DURATION).value) == seconds


@pytest.mark.parametrize("text", ["0", "-5s", "5 s", "5x", "1s1h", "''", "s", "true"])
def test_what_is_no_length_of_time_is_told(text: str) -> None:
    assert "5s, 500ms, 2m or 1h30m" in told(text, DURATION)[0]


@pytest.mark.parametrize(
    ("text", "size"),
    [("10", 10), ("64K", 65536), ("64KiB", 65536), ("2M", 2 << 20), ("1 G", 1 << 30)],
)
def test_sizes_are_bytes(text: str, size: int) -> None:
    assert document.size(read(text, SIZE).value) == size


@pytest.mark.parametrize("text", ["0", "-1", "lots", "1.5M", "5X"])
def test_what_is_no_size_is_told(text: str) -> None:
    assert "64K, 256M or 2G" in told(text, SIZE)[0]


def test_what_is_only_written_is_not_shown() -> None:
    schema = {
        "properties": {"a": {"type": "object", "writeOnly": True, "examples": [{"env": "A"}]}}
    }

    assert told("a: geheim", schema) == [
        "f.yaml:1: a: this is not a mapping: write for example a: {env: A}"
    ]
