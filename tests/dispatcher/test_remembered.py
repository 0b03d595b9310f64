from __future__ import annotations

import json
from pathlib import Path

import pytest

from spinal.dispatcher.remembered import Remembered


def test_what_was_saved_is_loaded_by_the_next_life(tmp_path: Path) -> None:
    path = tmp_path / "agents.json"
    Remembered(path).save({"w@x/2", "w@x/1"})

    assert Remembered(path).load() == {"w@x/1", "w@x/2"}
    assert json.loads(path.read_text()) == {"agents": ["w@x/1", "w@x/2"]}
    assert [file.name for file in tmp_path.iterdir()] == ["agents.json"]


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "{}", '{"agents": 3}', '{"agents": ["@"]}', '{"agents": [7, ""]}']
)
def test_a_broken_file_counts_as_empty_and_is_written_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agents.json"
    path.write_text(text)
    remembered = Remembered(path)

    assert remembered.load() == frozenset()
    remembered.save({"w@x/1"})
    assert Remembered(path).load() == {"w@x/1"}


def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "agents.json"
    remembered = Remembered(path)
    remembered.save({"w@x/1"})
    path.unlink()

    remembered.save({"w@x/1"})

    assert not path.exists()


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    Remembered(tmp_path / "missing" / "agents.json").save({"w@x/1"})


def test_without_a_path_nothing_is_remembered() -> None:
    remembered = Remembered(None)
    remembered.save({"w@x/1"})

    assert remembered.load() == frozenset()
