"""The replay of traces: what must be so of any of its runs, on the first days of each trace."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks import scaling
from benchmarks.scaling import BOOT, RULES, Job, Outcome, Replay, Workload, bitbrains, compare, lisa


@pytest.fixture(scope="module", params=["lisa", "bitbrains"])
def work(request: pytest.FixtureRequest) -> Workload:
    return {"lisa": lambda: lisa(4), "bitbrains": lambda: bitbrains(0.25)}[request.param]()


@pytest.fixture(scope="module")
def outcomes(work: Workload) -> list[Outcome]:
    return compare(work)


def test_every_strategy_does_every_job_and_none_before_it_was_submitted(
    work: Workload, outcomes: list[Outcome]
) -> None:
    for each in outcomes:
        assert len(each.waits) == len(each.responses) == len(work.jobs) > 100
        assert min(each.waits) >= 0
        # A job takes as long as it waits and runs.
        runs = sum(job.runs for job in work.jobs)
        assert sum(each.responses) == pytest.approx(sum(each.waits) + runs)


def test_no_strategy_does_the_work_with_less_than_it_takes(
    work: Workload, outcomes: list[Outcome]
) -> None:
    least = sum(job.runs for job in work.jobs) / work.slots
    for each in outcomes:
        assert sum(each.lives) >= least - 1e-6


def test_at_the_peak_nothing_waits_and_nobody_who_lets_nothing_wait_pays_less_than_the_bound(
    outcomes: list[Outcome],
) -> None:
    bound = outcomes[-1]
    assert outcomes[0].p95(outcomes[0].waits) == bound.p95(bound.waits) == 0
    assert outcomes[0].cost > bound.cost


def test_the_rules_change_less_than_what_reacts_at_once(
    outcomes: list[Outcome],
) -> None:
    (rules,) = (each for each in outcomes if each.name == RULES)
    reacting = outcomes[2]

    assert 0 < rules.ordered + rules.returned < reacting.ordered + reacting.returned


def test_a_job_for_an_empty_pool_waits_for_one_machine_to_boot() -> None:
    work = lisa(0)
    one = Workload(name="", jobs=[Job(60.0, 10.0)], slots=1, spec=work.spec, rules="")

    found = Replay(one, scaling.ours(one.spec)).run(RULES)
    assert found.waits == [BOOT]
    assert (found.ordered, found.returned) == (1, 0)


def test_a_report_is_written_with_its_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling.main(["--days", "0.5", "--out", str(tmp_path)])

    report = (tmp_path / "SCALING.md").read_text()
    printed = capsys.readouterr().out
    for name in ("SURF Lisa", "Bitbrains"):
        assert f"## {name}\n" in report and f"## {name}\n" in printed
        assert f"- {name}, static, at the peak" in report
    assert report.count(f"| {RULES} |") == 2
    assert ElementTree.parse(tmp_path / "scaling.svg").getroot().tag.endswith("svg")
