from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.jobs.retries import (
    MAX_PAUSE,
    NEVER,
    USUAL,
    RetryPolicy,
    combined,
    decide,
    longest_pause,
)
from spinal.protocols import REASONS, Again, Json, Problem, Ran, RemoteProtocolError

policies = st.builds(
    RetryPolicy,
    count=st.integers(0, 100),
    backoff=st.floats(0, MAX_PAUSE),
    most=st.floats(0, MAX_PAUSE),
    on=st.none() | st.frozensets(st.sampled_from(sorted(REASONS))),
)
problems = st.builds(
    Problem,
    st.sampled_from(sorted(REASONS)) | st.just("of-their-own"),
    after=st.none() | st.floats(0, 1e12),
)


def again(
    problem: str | Problem = "failed",
    policy: RetryPolicy | None = None,
    failures: int = 1,
    may_rerun: bool = False,
) -> float | None:
    policy = RetryPolicy(5) if policy is None else policy
    problem = Problem(problem) if isinstance(problem, str) else problem
    return decide(policy, problem, failures, may_rerun, Random(1))


def test_a_number_is_a_policy_with_the_usual_rest() -> None:
    assert RetryPolicy.read(3) == RetryPolicy(3, 1.0, 60.0, None, False)


def test_an_object_is_read_member_by_member_and_unknown_ones_are_ignored() -> None:
    raw = {"count": 2, "backoff": 0.5, "most": 3, "on": ["busy"], "elsewhere": True, "x": 1}

    assert RetryPolicy.read(raw) == RetryPolicy(2, 0.5, 3.0, frozenset({"busy"}), True)


def test_an_empty_list_of_reasons_stands_for_the_usual_ones() -> None:
    assert RetryPolicy.read({"count": 2, "on": []}) == RetryPolicy(2)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (-1, "'retry.count' must be an integer from 0 to 100"),
        (101, "'retry.count' must be an integer from 0 to 100"),
        (True, "'retry' must be a number of further tries"),
        ("3", "'retry' must be a number of further tries"),
        ([], "'retry' must be a number of further tries"),
        ({}, "'retry.count' is missing"),
        ({"count": 1.5}, "'retry.count' must be an integer"),
        ({"count": 1, "backoff": 86_401}, "'retry.backoff' must be seconds from 0 to 86400"),
        ({"count": 1, "most": -1}, "'retry.most' must be seconds from 0 to 86400"),
        ({"count": 1, "most": float("nan")}, "'retry.most' must be seconds"),
        ({"count": 1, "on": "lost"}, "'retry.on' must be a list"),
        ({"count": 1, "on": ["lots"]}, "'retry.on' must be one of already-done, "),
        ({"count": 1, "on": ["cancelled"]}, "'retry.on' must be one of "),
        ({"count": 1, "elsewhere": 1}, "'retry.elsewhere' must be true or false"),
    ],
)
def test_a_wrong_policy_is_refused_with_what_it_may_be(raw: Json, says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"^'retry") as caught:
        RetryPolicy.read(raw)
    assert str(caught.value).startswith(says)


def test_the_policy_of_the_job_wins_whole() -> None:
    job, op = RetryPolicy(1), RetryPolicy(9, on=frozenset({"busy"}))

    assert combined(job, op) is job
    assert combined(None, op) is op
    assert combined(None, None) is NEVER


def test_nobody_who_did_not_ask_gets_a_retry() -> None:
    assert all(again(reason, NEVER, may_rerun=True) is None for reason in REASONS)


def test_a_job_is_tried_again_as_often_as_was_asked() -> None:
    policy = RetryPolicy(2)

    assert again(policy=policy, failures=2) is not None
    assert again(policy=policy, failures=3) is None


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_only_reasons_that_may_be_better_next_time_are_usual(reason: str) -> None:
    assert (again(reason, may_rerun=True) is not None) == (reason in USUAL)
    meaning = REASONS[reason]
    if meaning.ran is Ran.NO and meaning.again is Again.NEVER:
        assert reason not in USUAL


@pytest.mark.parametrize("reason", sorted(set(REASONS) - {"cancelled"}))
def test_a_reason_that_was_asked_for_is_tried_again_and_no_other(reason: str) -> None:
    policy = RetryPolicy(5, on=frozenset({reason}))

    assert [other for other in sorted(REASONS) if again(other, policy) is not None] == [reason]


def test_a_reason_that_nobody_knows_is_read_as_failed() -> None:
    assert again("of-their-own") is not None
    assert again("of-their-own", RetryPolicy(5, on=frozenset({"lost"}))) is None


def test_what_was_cancelled_is_never_tried_again() -> None:
    assert again("cancelled", RetryPolicy(5, on=frozenset(REASONS)), may_rerun=True) is None


@pytest.mark.parametrize("reason", ["lost", "no-answer"])
def test_what_may_be_going_on_unseen_is_run_again_only_if_it_may_be(reason: str) -> None:
    assert again(reason, may_rerun=False) is None
    assert again(reason, may_rerun=True) is not None
    assert again(reason, RetryPolicy(5, on=frozenset({reason})), may_rerun=False) is not None


def test_the_pause_doubles_up_to_its_bound() -> None:
    policy = RetryPolicy(100, backoff=2, most=60)

    assert [longest_pause(policy, n) for n in (1, 2, 3, 5, 6, 100)] == [2, 4, 8, 32, 60, 60]


def test_the_pause_is_drawn_from_all_of_its_range() -> None:
    policy = RetryPolicy(1, backoff=10)
    random = Random(7)
    drawn = [decide(policy, Problem("failed"), 1, False, random) or 0.0 for _ in range(1000)]

    assert min(drawn) < 1
    assert max(drawn) > 9
    assert 4.5 < sum(drawn) / len(drawn) < 5.5


def test_a_peer_that_knows_when_to_come_back_is_heeded() -> None:
    assert again(Problem("failed", after=30)) == 30
    assert again(Problem("failed", after=1e12)) == MAX_PAUSE


@given(policies, problems, st.integers(1, 200), st.booleans(), st.randoms())
def test_a_pause_is_within_its_bounds_whatever_happened(
    policy: RetryPolicy, problem: Problem, failures: int, may_rerun: bool, random: Random
) -> None:
    pause = decide(policy, problem, failures, may_rerun, random)

    if failures > policy.count or problem.reason == "cancelled":
        assert pause is None
    if pause is None:
        return
    assert 0 <= pause <= MAX_PAUSE
    assert pause <= max(longest_pause(policy, failures), problem.after or 0.0)
    assert pause >= min(problem.after or 0.0, MAX_PAUSE)
    assert longest_pause(policy, failures) <= policy.most
