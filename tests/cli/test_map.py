from pathlib import Path

import pytest

from spinal.bus import Blob
from spinal.bus.arguments import ArgumentError, Given, convert, parse
from spinal.cli.map import matches, names, suffix, unknown


def over(word: str) -> Given:
    (found,) = parse([word])
    return found


def test_files_come_in_order_and_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", "c.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "d.jpg").mkdir()
    (tmp_path / "d.jpg" / "deep.jpg").write_text("")
    found = matches(over(f"photo={tmp_path}/*.jpg"))
    assert [file.name for file in found] == ["a.jpg", "b.jpg"]
    found = matches(over(f"photo={tmp_path}/**/*.jpg"))
    assert [file.name for file in found] == ["a.jpg", "b.jpg", "deep.jpg"]


def test_no_match_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"no file matches /no/such/\*: check the path"):
        matches(over("photo=/no/such/*"))


def test_json_is_no_set_of_files() -> None:
    with pytest.raises(ArgumentError, match=r"--over takes files: write photo=GLOB"):
        matches(over("photo:=[1]"))


def test_results_are_named_after_inputs_each_once() -> None:
    files = [Path(name) for name in ("a/x.jpg", "b/x.jpg", "b/x.png", "y.jpg", "x-2.jpg")]
    assert list(names(files)) == ["x", "x-2", "x-3", "y", "x-2-2"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Blob.of(b"", "image/jpeg"), ".jpg"),
        (Blob.of(b"", "image/png"), ".png"),
        (Blob.of(b"", "application/octet-stream"), ".bin"),
        (Blob.of(b"", "x-odd/thing"), ".bin"),
        ("text", ".txt"),
        ({"a": 1}, ".json"),
        (None, ".json"),
    ],
)
def test_a_result_ends_as_its_kind_does(value: object, expected: str) -> None:
    assert suffix(value) == expected


def test_where_nobody_offers_the_operation_files_go_as_files_and_the_rest_as_it_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    each = over(f"photo={tmp_path}/a.jpg")
    given = [each, *parse(["width:=320", "name=a"])]
    assert convert(given, unknown(each)) == {
        "photo": tmp_path / "a.jpg",
        "width": 320,
        "name": "a",
    }
