from __future__ import annotations

import os
from pathlib import Path

import pytest

from spinal.agents.deployment.layout import (
    Folder,
    before,
    number_of,
    release_name,
    surplus,
    write,
)

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def names(*numbers: int) -> list[str]:
    return [release_name(number, HASH) for number in numbers]


def test_a_release_is_named_by_its_number_and_hash() -> None:
    assert release_name(7, HASH) == "7-9f86d081884c"
    assert number_of("7-9f86d081884c") == 7


@pytest.mark.parametrize("other", ["", "7", "7-xyz", "../7-9f86d081884c", "0-9f86d081884c", ".tmp"])
def test_other_names_are_no_releases(other: str) -> None:
    assert number_of(other) == 0


def test_the_latest_stay_and_the_current_one_always() -> None:
    assert surplus(names(1, 2, 3, 10), names(10)[0], 3) == names(1)
    assert surplus(names(1, 2, 3, 10), names(1)[0], 3) == names(2)
    assert surplus(names(1, 2), names(1)[0], 1) == names(2)
    assert surplus(names(1), names(1)[0], 3) == []


def test_rolling_back_goes_to_the_one_before_by_number() -> None:
    assert before(names(2, 9, 10), names(10)[0]) == names(9)[0]
    assert before(names(2, 9, 10), names(2)[0]) is None


def test_switching_changes_the_link_in_one_step(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "shop")
    folder.make()
    for name in names(1, 2):
        folder.release(name).mkdir()
        folder.switch(name)
        assert folder.current.resolve() == folder.release(name)
        assert os.readlink(folder.current) == f"releases/{name}"
    assert [one.name for one in folder.path.iterdir() if one.name.startswith(".")] == []
    assert folder.on_disk() == names(1, 2)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write(file, b"one")
    with pytest.raises(TypeError):
        write(file, "two")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert file.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o600
