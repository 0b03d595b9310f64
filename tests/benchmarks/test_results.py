"""The report: every goal has its row, and says how it stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import results
from benchmarks.goals import GOALS, ROWS
from benchmarks.results import Results, Row, Stamp

STAMP: Stamp = {"date": "2026-01-02", "commit": "abc1234", "command": "python -m benchmarks.run"}
MACHINE = {"machine": "a quiet one"}


def canned(**rows: Row) -> Results:
    return {
        "machine": MACHINE,
        "versions": {"celery": "5.7.0"},
        "rows": {key.replace("_", "-"): row for key, row in rows.items()},
        "tables": {},
        "contenders": {},
        "missing": {},
    }


def row(*values: float, note: str = "", ours: Sequence[float] = ()) -> Row:
    return {"values": values, "ours": ours, "theirs": ours, "note": note, "stamp": STAMP}


def line(report: str, goal: str, server: str = "embedded") -> str:
    """Give the line of a goal."""
    wanted = ROWS[goal]
    lines = report.splitlines()
    return next(
        each
        for each in lines
        if each.startswith(f"| {wanted.what} | {wanted.against} |") and f"| {server} |" in each
    )


def test_a_goal_that_nobody_measured_has_a_row_too() -> None:
    report = results.markdown(canned(), "chart.svg")

    told = [each for each in report.splitlines() if "| not measured |" in each]
    assert len(told) == len(GOALS)
    assert f"Of {len(GOALS)}: {len(GOALS)} not measured." in report


def test_a_row_tells_median_least_most_runs_and_conditions() -> None:
    report = results.markdown(canned(jobs_rate=row(11.0, 14.0, 12.0, ours=[5000.0])), "chart.svg")

    told = line(report, "jobs-rate")
    assert "| >= 10 x | 12.0 (11.0 - 14.0) x | 3 | met | yes | adaptive | yes | embedded |" in told
    assert "| 5,000 | 5,000 | 2026-01-02, abc1234 |" in told


def test_a_median_outside_its_bound_is_not_met_whatever_the_best_run_was() -> None:
    report = results.markdown(canned(jobs_rate=row(9.0, 9.9, 30.0)), "chart.svg")

    assert "| **not met** |" in line(report, "jobs-rate")


def test_times_are_bounded_from_above() -> None:
    report = results.markdown(canned(jobs_p50=row(0.5), start_help=row(0.26)), "chart.svg")

    assert "| met |" in line(report, "jobs-p50")
    assert "| **not met** |" in line(report, "start-help", "none")


def test_what_is_missing_is_named_with_the_reason() -> None:
    found = canned(jobs_rate=row(note="Celery is missing"))
    found["missing"]["Celery"] = "redis-server is not installed: `make bench-deps`"
    report = results.markdown(found, "chart.svg")

    assert "- **Celery**: redis-server is not installed" in report
    assert "| Celery is missing | - | missing |" in line(report, "jobs-rate")


def test_an_unmet_goal_tells_its_limit_and_a_met_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = replace(ROWS["jobs-rate"], limit="the disk")
    fast = replace(ROWS["jobs-p50"], limit="nothing")
    monkeypatch.setattr(results, "GOALS", (slow, fast))
    report = results.markdown(canned(jobs_rate=row(1.0), jobs_p50=row(0.1)), "chart.svg")

    assert "(embedded): the disk" in report
    assert "(embedded): nothing" not in report


def test_what_was_measured_before_stays_on_the_same_machine(tmp_path: Path) -> None:
    results.save(tmp_path, canned(jobs_rate=row(12.0)))
    file = tmp_path / "results.json"

    again = results.load(file, MACHINE, {"celery": "6"})
    assert list(again["rows"]) == ["jobs-rate"]
    assert again["versions"] == {"celery": "6"}
    assert results.load(file, {"machine": "another"}, {})["rows"] == {}


def test_the_results_are_json(tmp_path: Path) -> None:
    results.save(tmp_path, canned(jobs_rate=row(12.0)))

    told = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert told["rows"]["jobs-rate"]["values"] == [12.0]


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0123, "0.0123"), (0.5, "0.500"), (12.0, "12.0"), (123.4, "123"), (123456.7, "123,457")],
)
def test_a_figure_has_three_digits_that_count(value: float, told: str) -> None:
    assert results.number(value) == told


def test_every_row_has_a_key_of_its_own_and_a_part_that_there_is() -> None:
    from benchmarks.run import PARTS

    assert {goal.part for goal in ROWS.values()} <= PARTS.keys()
    assert set(GOALS) < set(ROWS.values())
    assert all(goal.bound for goal in GOALS)
