"""The chart: well-formed, its text text, one bar for each row that has values and a goal."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from benchmarks import chart

from .test_results import canned, row


def test_each_measured_goal_has_its_words_and_how_good_it_is(tmp_path: Path) -> None:
    found = canned(jobs_rate=row(20.0), jobs_p50=row(1.0), blob_upload=row(note="no curl"))
    chart.draw(found, tmp_path / "chart.svg")

    texts = ["".join(each.itertext()) for each in ElementTree.parse(tmp_path / "chart.svg").iter()]
    assert any(text.startswith("durable jobs/s") and "(>= 10 x)" in text for text in texts)
    assert "2.00" in texts and "0.50" in texts
    assert not any("blob" in text for text in texts[1:] if "\n" not in text)


def test_the_same_results_give_the_same_file(tmp_path: Path) -> None:
    found = canned(jobs_rate=row(20.0, 25.0))
    for name in ("one.svg", "two.svg"):
        chart.draw(found, tmp_path / name)

    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_no_results_give_a_chart_without_bars(tmp_path: Path) -> None:
    chart.draw(canned(), tmp_path / "chart.svg")

    assert ElementTree.parse(tmp_path / "chart.svg").getroot().tag.endswith("svg")
