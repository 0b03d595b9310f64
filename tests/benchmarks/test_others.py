"""What programs of their own tell becomes rows and tables of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import others
from benchmarks.bench import Bench

from .test_results import STAMP, canned


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(canned(), STAMP, tmp_path, ["embedded"], 2)


def telling(monkeypatch: pytest.MonkeyPatch, told: dict[str, Any]) -> list[tuple[str, ...]]:
    asked: list[tuple[str, ...]] = []

    async def tell(bench: Bench, name: str, *options: str) -> dict[str, Any] | None:
        asked.append((name, *options))
        return told

    monkeypatch.setattr(others, "_told", tell)
    return asked


async def test_resolving_is_run_as_often_as_there_are_runs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "resolve": [{"agents": 100, "p50_us": 20.0}, {"agents": 100_000, "p50_us": 40.0}],
        "reports": {"reports_a_second": 9000, "resolve_p99_us": 500.0},
    }
    asked = telling(monkeypatch, told)
    await others.resolve(bench)

    assert len(asked) == 2
    values = {key: row["values"] for key, row in bench.results["rows"].items()}
    assert values == {
        "resolve-p50": [40.0, 40.0],
        "resolve-growth": [2.0, 2.0],
        "reports-rate": [9000, 9000],
        "reports-p99": [0.5, 0.5],
    }
    assert bench.results["tables"]["Resolving"]["rows"] == [["100", "20"], ["100,000", "40"]]


async def test_live_agents_count_as_far_as_they_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "agents": 5000,
        "answered": 100,
        "asked": 200,
        "answered_after": 200,
        "back_s": 30.5,
        "kb_per_agent": {"server": 20.5},
        "cores_by_second": [{"server": 1.0}, {"server": 0.5, "swarm": 0.25}],
    }
    asked = telling(monkeypatch, told)
    await others.scale(bench)

    assert [words[-1] for words in asked] == ["1000", "5000"]
    rows = bench.results["rows"]
    assert rows["agents-embedded"]["values"] == [2500.0]
    assert "server 20.5" in rows["agents-embedded"]["note"]
    assert rows["back-5000-embedded"]["values"] == [30.5]
    (_, table) = bench.results["tables"].values()
    assert table["rows"][1] == ["2", "0.500", "0.250"]


async def test_blobs_take_turns_with_curl_in_the_program_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {"upload": {"mb_a_second": 80.0}, "download": {"mb_a_second": 100.0}}
    ratios = {"upload": [0.8, 0.9], "download": [1.0, 1.1]}
    asked = telling(monkeypatch, {"spinal": rates, "curl": rates, "spinal_over_curl": ratios})
    await others.blob(bench)

    assert asked == [("blob", "--runs", "2")]
    values = {key: row["values"] for key, row in bench.results["rows"].items()}
    assert values == {"blob-upload": [0.8, 0.9], "blob-download": [1.0, 1.1]}


async def test_a_program_that_is_not_there_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> None:
        assert name == "benchmarks.blob"

    monkeypatch.setattr(others, "find_spec", find)
    await others.blob(bench)

    notes = {key: row["note"] for key, row in bench.results["rows"].items()}
    why = "benchmarks.blob is not there"
    assert notes == {"blob-upload": why, "blob-download": why}
