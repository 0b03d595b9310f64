from __future__ import annotations

import os
from pathlib import Path

import pytest

from spinal.agents.errors import AgentError
from spinal.agents.provider.market import Market
from spinal.agents.provider.settings import FILE


def write(folder: Path, text: str, at: int) -> None:
    file = folder / FILE
    file.write_text(text)
    # Files that are written within one tick of the clock of the file system look alike.
    os.utime(file, ns=(at, at))


def test_what_the_file_says_now_holds_and_a_mistake_in_it_changes_nothing(tmp_path: Path) -> None:
    market = Market(tmp_path)
    assert list(market().accounts) == ["local"] and market().budgets == ()

    write(tmp_path, "currency: USD\nbudgets: [{per_month: 5}]\n", 1)
    assert market().currency == "USD" and market().budgets[0].per_month == 5
    assert market() is market()

    write(tmp_path, "currency: USD\nbudgets: [{per_month: 50\n", 2)
    assert market().budgets[0].per_month == 5

    write(tmp_path, "currency: USD\nbudgets: [{per_month: 7}]\n", 3)
    assert market().budgets[0].per_month == 7

    (tmp_path / FILE).unlink()
    assert market().currency == "EUR"


def test_a_file_that_has_mistakes_at_the_start_is_told(tmp_path: Path) -> None:
    write(tmp_path, "currncy: USD\n", 1)
    with pytest.raises(AgentError, match="currency"):
        Market(tmp_path)
