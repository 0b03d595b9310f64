"""docs/guarantees.md and the harness name the same rows, and the same bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from . import wire
from .faults import FAULTS
from .judge import FINAL_WITHIN
from .scene import ROOT


def promises() -> Iterator[tuple[str, str, set[str]]]:
    """Each promise, its bound, and the rows that show it."""
    text = (ROOT / "docs" / "guarantees.md").read_text()
    section = text.partition("## What is promised")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 3:
            yield cells[0], cells[1], set(re.findall("`([^`]+)`", cells[2]))


def test_every_row_shows_a_promise_and_every_promise_has_a_row() -> None:
    named = set[str]().union(*(rows for _, _, rows in promises()))
    assert named == {*FAULTS, wire.NAME} - {"none"}


def test_the_bounds_are_those_that_the_rows_are_held_to() -> None:
    written = {(row, float(bound)) for _, bound, rows in promises() if bound for row in rows}
    held = {(fault.name, bound) for fault in FAULTS.values() for bound in fault.bounds.values()}
    assert written == held
    assert (FINAL_WITHIN,) == tuple(
        float(bound) for promise, bound, _ in promises() if "reaches a final state" in promise
    )
