from __future__ import annotations

from pathlib import Path

import pytest

from spinal.agents.deployment import state
from spinal.agents.deployment.layout import Folder
from spinal.agents.deployment.state import Deployed, State

RELEASE = "3-9f86d081884c"


def folder_of(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "shop")
    folder.make()
    return folder


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    known = State(5, True, 3, RELEASE, 8080, {RELEASE: Deployed({"service": "shop"}, 17.5)})
    known.save(folder)
    assert state.load(folder) == known


def test_a_new_service_has_a_fresh_one(tmp_path: Path) -> None:
    assert state.load(Folder(tmp_path / "nothing")) == State()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"form": 9}',
        '{"form": 1}',
        '{"form": 1, "generation": 1, "wanted": true, "number": 1, "current": "x", "port": 1, '
        + '"releases": {}}',
    ],
)
def test_a_broken_one_is_put_aside_and_numbers_go_on(tmp_path: Path, text: str) -> None:
    folder = folder_of(tmp_path)
    folder.release(RELEASE).mkdir()
    folder.state.write_text(text)
    assert state.load(folder) == State(number=3)
    (aside,) = folder.path.glob("state.json.broken-*")
    assert aside.read_text() == text
