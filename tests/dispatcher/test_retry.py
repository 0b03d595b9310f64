from __future__ import annotations

import pytest

from spinal.dispatcher.retry import (
    History,
    Lesson,
    Loss,
    answered,
    ended,
    forgotten_for,
    lost,
    patience,
)
from spinal.protocols import REASONS, Again, Problem, Ran


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_a_call_moves_on_only_after_an_answer_that_says_that_nothing_ran(reason: str) -> None:
    verdict = answered(Problem(reason))
    meaning = REASONS[reason]

    moves = meaning.ran is Ran.NO and meaning.again is Again.ELSEWHERE
    assert (verdict.problem is None) == moves
    assert (verdict.lesson is not Lesson.NOTHING) == moves


@pytest.mark.parametrize(
    ("reason", "lesson"),
    [
        ("busy", Lesson.FULL),
        ("draining", Lesson.DRAINING),
        ("unreachable", Lesson.GONE),
        ("stale-epoch", Lesson.GONE),
        ("unknown-op", Lesson.UNABLE),
    ],
)
def test_a_refusal_teaches_something_about_the_agent(reason: str, lesson: Lesson) -> None:
    assert answered(Problem(reason)).lesson is lesson


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_the_problem_of_an_operation_is_its_result_unless_it_was_a_late_refusal(
    reason: str,
) -> None:
    problem = Problem(reason)

    assert ended(problem, False).problem is problem
    assert (ended(problem, True).problem is None) == (reason in ("busy", "draining"))


def test_a_lost_safe_attempt_moves() -> None:
    assert lost(Loss.GONE, "a@x/1", History(may_rerun=True)).problem is None


def test_a_lost_unsafe_attempt_ends_and_says_that_it_may_have_been_done() -> None:
    problem = lost(Loss.GONE, "a@x/1", History(may_rerun=False)).problem

    assert problem is not None
    assert problem.reason == "lost"
    assert problem.text == (
        "a@x/1 went offline; the operation is not safe to run twice, and may have been done"
    )


def test_the_third_lost_agent_ends_the_call() -> None:
    two = History(may_rerun=True, lost=("a@x/1", "b@x/1"))

    assert lost(Loss.SILENT, "b@x/1", History(True, ("a@x/1",))).problem is None
    problem = lost(Loss.SILENT, "c@x/1", two).problem
    assert problem is not None
    assert problem.text == "3 agents were lost on this call: a@x/1, b@x/1, c@x/1"


def test_a_call_whose_stream_was_read_does_not_start_again_from_the_first_piece() -> None:
    problem = lost(Loss.GONE, "a@x/1", History(may_rerun=True, passed_on=2)).problem

    assert problem is not None
    assert problem.reason == "lost"
    assert "after 2 pieces" in problem.text


def test_a_safe_attempt_is_given_a_second_and_an_unsafe_one_all_the_time_there_is() -> None:
    assert patience(True, 60.0) == 1.0
    assert patience(False, 60.0) == 60.0
    assert forgotten_for(True, 15.0) == 0.0
    assert forgotten_for(False, 15.0) == 15.0
