"""The harness can fail: in a run in which all is well, each thing that must not be is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from .judge import EVERYBODY, FINAL_WITHIN, Strike, Told, Verdict, judge
from .ledger import Ledger, Line, What
from .model import DEADLINE, KINDS, RETRIES, Asked, script
from .table import Row, findings, table

STRIKE = Strike(10.0, 12.0, "w1")


def line(at: float, what: What, asked: Asked, attempt: int = 1, worker: str = "w2") -> Line:
    return Line(at, worker, 1, f"id-{asked.key}", attempt, asked.kind.op, asked.key, what)


class Run:
    """A run without faults, to be doctored."""

    def __init__(self, script: Sequence[Asked]) -> None:
        self.script = script
        self.told = {asked.key: self._told(asked) for asked in script}
        self.ledger = [line for asked in script for line in self._lines(asked)]

    @staticmethod
    def _told(asked: Asked) -> Told:
        state, reason = asked.kind.state, next(iter(asked.kind.reasons), None)
        if asked.fails > RETRIES:
            state, reason = "error", "failed"
        value = asked.key if state == "done" else None
        return Told({f"id-{asked.key}"}, 1.0, 1.1, 20.0, state, reason, value, later=state)

    @staticmethod
    def _lines(asked: Asked) -> list[Line]:
        lines: list[Line] = []
        for attempt in range(1, asked.runs + 1):
            lines.append(line(9.0 + attempt, "begun", asked, attempt))
            what: What = "failed" if attempt <= asked.fails else "ended"
            if asked.kind.state != "done":
                what = "stopped"
            lines.append(line(9.5 + attempt, what, asked, attempt))
        return lines

    def one(self, kind: str) -> Asked:
        """The first job of a kind that is done the first time."""
        return next(a for a in self.script if a.kind.name == kind and not a.fails)

    def without(self, asked: Asked, what: What) -> None:
        self.ledger = [x for x in self.ledger if (x.key, x.what) != (asked.key, what)]

    def judge(self, losses: bool = False, strikes: Sequence[Strike] = (STRIKE,)) -> Verdict:
        return judge(self.script, self.told, self.ledger, strikes, losses=losses)


@pytest.fixture
def run() -> Run:
    return Run(script(1, 300))


def counts(verdict: Verdict) -> tuple[int, int, int, int]:
    return verdict.lost, verdict.stuck, verdict.doubled, verdict.wrong


def test_a_run_in_which_all_is_well_has_no_findings_and_every_kind(run: Run) -> None:
    verdict = run.judge()
    assert verdict.findings == [] and counts(verdict) == (0, 0, 0, 0)
    assert verdict.accepted == verdict.done + verdict.error + verdict.killed == 300
    assert {asked.kind.name for asked in run.script} == set(KINDS)
    assert {asked.fails for asked in run.script} == {0, 1, 2, 3}


def test_the_same_seed_asks_for_the_same(run: Run) -> None:
    assert script(1, 300) == run.script != script(2, 300)


def test_a_job_that_is_not_known_any_more_is_lost(run: Run) -> None:
    run.told[run.one("safe short").key].known = False
    assert counts(run.judge()) == (1, 0, 0, 0)


@pytest.mark.parametrize("kind", ["safe short", "unsafe short", "safe long", "failing"])
def test_a_job_that_is_done_although_nothing_of_it_happened_is_lost(run: Run, kind: str) -> None:
    run.without(run.one(kind), "ended")
    assert counts(run.judge()) == (1, 0, 0, 0)


def test_a_job_without_an_end_is_stuck(run: Run) -> None:
    told = run.told[run.one("unsafe long").key]
    told.ended, told.state = None, "processing"
    verdict = run.judge()
    assert counts(verdict) == (0, 1, 0, 0)
    assert "is processing" in verdict.findings[0]


@pytest.mark.parametrize(("seconds", "stuck"), [(-1.0, 0), (1.0, 1)])
def test_a_job_that_ends_too_long_after_its_deadline_is_stuck(
    run: Run, seconds: float, stuck: int
) -> None:
    asked = run.one("safe short")
    told = run.told[asked.key]
    told.ended = told.accepted + asked.deadline + FINAL_WITHIN + seconds
    verdict = run.judge()
    assert counts(verdict) == (0, stuck, 0, 0)
    assert verdict.late == pytest.approx(FINAL_WITHIN + seconds)


def test_the_time_of_a_fault_is_not_held_against_a_job(run: Run) -> None:
    asked = run.one("safe short")
    told = run.told[asked.key]
    told.ended = told.accepted + asked.deadline + FINAL_WITHIN + 5.0
    over = told.accepted + DEADLINE + 10.0
    assert counts(run.judge(strikes=[Strike(5.0, over)])) == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", ["unsafe short", "unsafe long"])
def test_a_second_run_of_an_unsafe_job_is_doubled_whatever_attempt_it_was(
    run: Run, kind: str
) -> None:
    asked = run.one(kind)
    run.ledger.append(line(30.0, "begun", asked, 1))
    assert counts(run.judge()) == (0, 0, 1, 0)
    run.ledger[-1] = line(30.0, "begun", asked, 2)
    assert counts(run.judge(losses=True)) == (0, 0, 1, 0)


def test_a_second_run_under_another_id_is_doubled(run: Run) -> None:
    asked = run.one("unsafe short")
    run.ledger.append(replace_job(line(30.0, "begun", asked), "id-other"))
    assert counts(run.judge()) == (0, 0, 1, 0)


def replace_job(line: Line, job: str) -> Line:
    return line._replace(job=job)


def test_a_failing_job_may_run_as_often_as_its_retries_allow_and_no_more(run: Run) -> None:
    asked = next(a for a in run.script if a.fails == RETRIES + 1)
    run.ledger.append(line(30.0, "begun", asked, RETRIES + 2))
    assert counts(run.judge()) == (0, 0, 1, 0)


def test_a_safe_job_may_run_twice(run: Run) -> None:
    run.ledger.append(line(30.0, "begun", run.one("safe long"), 2))
    assert counts(run.judge()) == (0, 0, 0, 0)


def test_a_second_job_of_a_key_is_doubled(run: Run) -> None:
    asked = run.one("safe short")
    run.told[asked.key].ids.add("id-other")
    assert counts(run.judge()) == (0, 0, 1, 0)


def test_a_second_job_of_a_key_that_only_the_store_knows_is_doubled(run: Run) -> None:
    asked = run.one("safe short")
    stored = {asked.key: {f"id-{asked.key}", "id-other"}}
    verdict = judge(run.script, run.told, run.ledger, (), stored=stored)
    assert counts(verdict) == (0, 0, 1, 0)


def test_a_job_that_was_never_accepted_is_wrong(run: Run) -> None:
    del run.told[run.one("safe short").key]
    verdict = run.judge()
    assert counts(verdict) == (0, 0, 0, 1) and verdict.accepted == 299


def test_a_value_that_is_not_the_operations_is_wrong(run: Run) -> None:
    run.told[run.one("safe short").key].value = "something else"
    assert counts(run.judge()) == (0, 0, 0, 1)


def test_a_final_state_that_changes_is_wrong(run: Run) -> None:
    run.told[run.one("safe short").key].later = "error"
    assert counts(run.judge()) == (0, 0, 0, 1)


def test_only_unsafe_jobs_of_struck_workers_may_end_as_lost_and_only_if_the_fault_takes_them(
    run: Run,
) -> None:
    unsafe, safe = run.one("unsafe long"), run.one("safe long")
    for asked in (unsafe, safe):
        told = run.told[asked.key]
        told.state, told.reason, told.value, told.later = "error", "lost", None, "error"
    run.without(unsafe, "ended")
    # Both ran at a worker that was not struck.
    assert counts(run.judge(losses=True)) == (0, 0, 0, 2)
    run.ledger = [x._replace(worker="w1") for x in run.ledger]
    assert counts(run.judge(losses=True)) == (0, 0, 0, 1)
    assert counts(run.judge(losses=False)) == (0, 0, 0, 2)


def test_a_safe_job_may_end_as_lost_once_three_agents_were_lost_on_it(run: Run) -> None:
    told = run.told[run.one("safe long").key]
    told.state, told.reason, told.value, told.later = "error", "lost", None, "error"
    strikes = [Strike(at, at + 1.0, "w1") for at in (3.0, 6.0, 9.0)]
    assert counts(run.judge(losses=True, strikes=strikes)) == (0, 0, 0, 0)
    assert counts(run.judge(losses=True, strikes=strikes[1:])) == (0, 0, 0, 1)


def test_a_fault_that_strikes_everybody_may_lose_any_unsafe_job(run: Run) -> None:
    told = run.told[run.one("unsafe long").key]
    told.state, told.reason, told.value, told.later = "error", "lost", None, "error"
    assert counts(run.judge(losses=True)) == (0, 0, 0, 1)
    assert counts(run.judge(losses=True, strikes=[Strike(3.0, 9.0, EVERYBODY)])) == (0, 0, 0, 0)


def test_what_goes_on_after_it_was_cancelled_is_wrong(run: Run) -> None:
    run.without(run.one("cancelled"), "stopped")
    verdict = run.judge()
    assert counts(verdict) == (0, 0, 0, 1) and "goes on at w2" in verdict.findings[0]


def test_a_job_that_begins_before_its_delay_is_over_is_wrong(run: Run) -> None:
    number, asked = next((n, a) for n, a in enumerate(run.script) if a.kind.name == "safe short")
    run.script = [*run.script[:number], replace(asked, delay=60.0), *run.script[number + 1 :]]
    assert counts(run.judge()) == (0, 0, 0, 1)


def test_how_long_a_safe_job_needed_to_move_counts_from_the_strike(run: Run) -> None:
    asked = run.one("safe long")
    run.ledger = [x for x in run.ledger if x.key != asked.key]
    run.ledger += [
        line(9.0, "begun", asked, 1, "w1"),
        line(11.5, "begun", asked, 2, "w2"),
        line(12.5, "ended", asked, 2, "w2"),
    ]
    verdict = run.judge()
    assert verdict.moved == pytest.approx(1.5) and counts(verdict) == (0, 0, 0, 0)


def test_a_row_with_a_missed_bound_or_a_finding_is_not_as_promised(run: Run) -> None:
    row = Row("fault", "embedded", "", run.judge(), {"back": 5.5}, {"back": 5.0, "seen": 1.0})
    assert row.faults() == ["back 5.5 s, bound 5 s"] and row.faults(slack=1.0) == []
    run.told[run.one("safe short").key].known = False
    row = replace(row, verdict=run.judge(), measures={"back": 4.5})
    assert len(row.faults()) == 1
    assert "lost" in findings([row]) and "| 300 |" in table([row])


def test_the_ledger_keeps_what_several_wrote(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    assert Ledger(file).read() == []
    Ledger(file).add("w1", "id", 1, "/fault/read", "key", "begun")
    Ledger(file).add("w2", "id", 2, "/fault/read", "key", "ended")
    first, second = Ledger(file).read()
    assert (first.worker, first.what, second.worker, second.attempt) == ("w1", "begun", "w2", 2)
    assert first.at <= second.at
