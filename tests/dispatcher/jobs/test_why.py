from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.jobs.job import Job, JobState, Try
from spinal.dispatcher.jobs.why import PASSED, lines
from spinal.dispatcher.resolver import RULES
from spinal.protocols import POLICIES, REASONS, Problem

NOW = 1_795_262_400_000  # 2026-11-21T12:00:00Z
T1, T2, T3 = "thumb-1@x/1", "thumb-2@x/1", "thumb-3@x/1"
IDLE = ("0 of 2 slots busy", "load 0.00", "cost unknown")
HALF = ("1 of 2 slots busy", "load 0.50", "cost unknown")


def job(state: JobState = JobState.QUEUED, **members: Any) -> Job:
    return Job(id="j", caller="me@x", op="/image/resize", created=NOW, state=state, **members)


def attempt(number: int = 1, agent: str = T3, **members: Any) -> Try:
    return Try(number=number, agent=agent, epoch=1, began=NOW + 1000, **members)


def present(subject: Job, now: int = NOW + 10_000, **known: Any) -> list[str]:
    """What is said after the submission and the attempts."""
    said = lines(subject, now=now, **known)
    ended = sum(item.ended is not None for item in subject.tries)
    return said[1 + len(subject.tries) + ended :]


def test_the_story_of_a_job_that_moved_after_its_agent_was_lost() -> None:
    first = attempt(
        chosen=IDLE,
        runners=[{"agent": T1, "reasons": list(HALF)}],
        passed={"busy": 2, "place": 1},
        ended=NOW + 5100,
        end="lost",
        text=f"{T3} went offline",
        uncounted=True,
        may_rerun=True,
    )
    second = Try(
        number=2,
        agent=T1,
        epoch=4,
        began=NOW + 5100,
        chosen=HALF,
        passed={"gone": 1},
        ended=NOW + 7000,
        end="done",
    )
    done = job(JobState.DONE, tries=[first, second], ended=NOW + 7000)

    assert lines(done, now=NOW + 60_000) == [
        "/image/resize was submitted by me@x at 2026-11-21 12:00:00 UTC",
        (
            "attempt 1 went to thumb-3@x/1 at 12:00:01: least loaded (0 of 2 slots busy, load 0.00, "
            "cost unknown); next best thumb-1@x/1 (1 of 2 slots busy); "
            "3 passed over: 2 busy, 1 at another place"
        ),
        "it ended after 4.1s: lost, thumb-3@x/1 went offline; it may run twice, so it ran again",
        (
            "attempt 2 went to thumb-1@x/1 at 12:00:05: the only one that could take it "
            "(1 of 2 slots busy, load 0.50, cost unknown); 1 passed over: 1 offline"
        ),
        "it answered after 1.9s",
        "it was done at 12:00:07, 7s after it was submitted",
    ]


def test_the_story_of_a_job_that_failed_until_its_retries_were_used() -> None:
    tries = [
        attempt(1, chosen=IDLE, ended=NOW + 2000, end="failed", text="no such\nfile"),
        attempt(2, chosen=IDLE, ended=NOW + 3000, end="failed", text="still not"),
    ]
    failed = job(
        JobState.ERROR,
        tries=tries,
        failures=2,
        retry={"count": 1},
        ended=NOW + 3000,
        problem=Problem("failed", "still not"),
    )

    assert [line for line in lines(failed, now=NOW + 3000) if line.startswith("it ")] == [
        "it ended after 1s: failed, no such file; it was tried again",
        "it ended after 2s: failed, still not",
        "it ended with an error at 12:00:03, 3s after it was submitted: failed",
        "it was not tried again: all of its 1 retries are used",
    ]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, "its caller asked for no retries"),
        ({"retry": {"count": 3, "on": ["busy"]}}, "lost is not a reason for which it is"),
        ({"retry": {"count": 3}}, "it must not run twice, and may have been done"),
        ({"retry": {"count": 3, "on": ["lost"]}}, "its deadline comes before its next try"),
    ],
)
def test_it_is_said_why_nothing_was_tried_again(members: dict[str, Any], says: str) -> None:
    lost = attempt(ended=NOW + 2000, end="lost", text="gone")
    failed = job(
        JobState.ERROR, tries=[lost], failures=1, problem=Problem("lost", "gone"), **members
    )

    assert present(failed)[-1] == f"it was not tried again: {says}"


def test_a_job_that_never_ran_says_nothing_of_retries() -> None:
    problem = Problem("dependency", "it comes after job 0, which was killed")
    failed = job(JobState.ERROR, ended=NOW + 500, problem=problem)

    assert present(failed) == [
        (
            "it ended with an error at 12:00:00, 500ms after it was submitted: "
            "dependency, it comes after job 0, which was killed"
        )
    ]


@pytest.mark.parametrize(
    ("origin", "says"),
    [
        ("retry:abc", ", a retry of job abc"),
        ("schedule:abc", ", fired by schedule abc"),
        ("callback:abc", ", told of the end of job abc"),
        ("later:abc", ""),
        (None, ""),
    ],
)
def test_it_is_said_where_a_job_comes_from(origin: str | None, says: str) -> None:
    assert lines(job(origin=origin), now=NOW)[0] == (
        f"/image/resize was submitted by me@x at 2026-11-21 12:00:00 UTC{says}"
    )


def test_a_child_names_its_parent() -> None:
    assert lines(job(parent="p", position=3), now=NOW)[0].endswith(", number 3 of job p")


def test_a_job_that_waits_for_others_names_those_that_have_not_ended() -> None:
    held = job(JobState.WAITING, held=True, after=["a", "b", "c", "d", "e", "f"], when="any")
    states = {"a": "done", "b": "queued", "c": "processing", "d": "waiting", "e": "stalled"}

    assert present(held, blockers=states) == [
        (
            "it waits for job b (queued), job c (processing), job d (waiting) and 1 more; "
            "it asks for one of them to be done"
        ),
        "once it can run, it may take 1h",
    ]


def test_a_job_whose_predecessors_have_ended_is_about_to_be_looked_at() -> None:
    held = job(JobState.WAITING, held=True, after=["a", "b"])

    assert present(held, blockers={"a": "error"})[0] == (
        "the jobs that it comes after have ended, and it is about to be looked at"
    )


def test_a_job_that_waits_for_a_time_says_which_and_how_long() -> None:
    tomorrow = job(JobState.WAITING, at=NOW + 86_400_000)

    assert present(tomorrow, NOW)[0] == "it waits for its time, 2026-11-22 12:00:00, in 1d"


def test_a_job_between_two_tries_says_when_and_how_many_are_left() -> None:
    failed = attempt(ended=NOW + 2000, end="failed", text="boom")
    deferred = job(
        JobState.WAITING,
        tries=[failed],
        failures=1,
        retry={"count": 3},
        due=NOW + 12_500,
        ends=NOW + 3_600_000,
    )

    assert present(deferred) == [
        "it waits for its next try, 12:00:12, in 2.5s",
        "2 of 3 retries are left",
        "its deadline is 13:00:00, in 59m50s",
    ]


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"agents": 0}, "no agent offers /image/resize now: start one with `spinal agent run`"),
        (
            {"agents": 3, "waits_for": {"busy": 2, "place": 1}},
            "it waits for an agent: 3 of 3 cannot take it now: 2 busy, 1 at another place",
        ),
        (
            {"waits_for": {"suspect": 1}},
            "it waits for an agent: 1 cannot take it now: 1 silent",
        ),
        (
            {"agents": 1, "waits_for": {}},
            "it waits for its turn; there may be limits for /image/resize: see `spinal limit list`",
        ),
    ],
)
def test_a_queued_job_says_what_is_in_its_way(known: dict[str, Any], says: str) -> None:
    assert present(job(), **known)[0] == says


def test_a_running_job_says_where_and_for_how_long() -> None:
    assert present(job(JobState.PROCESSING, tries=[attempt()]))[0] == (
        "attempt 1 has been running at thumb-3@x/1 for 9s"
    )


@pytest.mark.parametrize(
    ("may_rerun", "then"),
    [(True, "runs elsewhere"), (False, "ends as lost, because it must not run twice")],
)
def test_a_stalled_job_says_what_follows(may_rerun: bool, then: str) -> None:
    stalled = job(JobState.STALLED, tries=[attempt(may_rerun=may_rerun)])

    assert present(stalled)[0].endswith(f"before its lease is over, the job {then}")


def test_a_parent_says_that_its_children_are_under_way() -> None:
    parent = job(JobState.PROCESSING, kind="map", closed=False)

    assert present(parent)[0] == "its children are under way, and more may come"


def test_a_deadline_that_has_just_passed_is_said_to_have() -> None:
    assert present(job(ends=NOW + 1000))[-1] == (
        "its deadline passed at 12:00:01, and it is about to be ended"
    )


def test_a_cancelled_job_says_when() -> None:
    assert present(job(JobState.KILLED, ended=NOW + 2000)) == [
        "it was cancelled at 12:00:02, 2s after it was submitted"
    ]


def test_an_attempt_that_was_sent_back_does_not_count() -> None:
    sent_back = attempt(ended=NOW + 1100, end="busy", text="no slot", uncounted=True)

    assert lines(job(tries=[sent_back]), now=NOW + 2000)[2] == (
        "it ended after 100ms: busy, no slot; it was only sent back, which does not count"
    )


def test_attempts_that_are_not_kept_are_counted() -> None:
    assert lines(job(tries=[attempt(4)]), now=NOW)[1] == (
        "3 attempts before that are not kept: they were only sent back"
    )


def test_the_agent_that_was_asked_for_is_said_to_be_it() -> None:
    asked = job(tries=[attempt(chosen=IDLE)], want={"to": T3})

    assert "thumb-3@x/1 at 12:00:01: the one that was asked for (" in lines(asked, now=NOW)[1]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_has_a_word_for_its_first(policy: str) -> None:
    chosen = attempt(chosen=IDLE, runners=[{"agent": T1, "reasons": list(HALF)}] * 5)
    line = lines(job(tries=[chosen], want={"policy": policy}), now=NOW)[1]

    assert "first by its policy" not in line
    assert line.endswith("and 2 more")


def test_every_rule_of_the_resolver_has_a_word() -> None:
    assert set(PASSED) == {rule.name for rule in RULES} | {"sticky"}


tries = st.lists(
    st.builds(
        Try,
        number=st.integers(1, 30),
        agent=st.just(T1),
        epoch=st.just(1),
        began=st.integers(NOW - 10**9, NOW + 10**9),
        ended=st.none() | st.integers(NOW - 10**9, NOW + 10**9),
        end=st.sampled_from(["", "done", *REASONS]),
        text=st.text(max_size=600),
        uncounted=st.booleans(),
        may_rerun=st.booleans(),
        passed=st.dictionaries(st.sampled_from([*PASSED, "new-rule"]), st.integers(1, 9)),
    ),
    max_size=4,
)


@given(
    st.builds(
        job,
        st.sampled_from(JobState),
        tries=tries,
        held=st.booleans(),
        after=st.lists(st.text(max_size=3), max_size=4),
        failures=st.integers(0, 5),
        retry=st.none() | st.just({"count": 2}),
        ends=st.none() | st.integers(NOW - 10**9, NOW + 10**9),
        ended=st.none() | st.integers(NOW - 10**9, NOW + 10**9),
        problem=st.none() | st.builds(Problem, st.sampled_from([*REASONS, "x"]), st.text()),
    )
)
def test_whatever_a_job_went_through_each_line_is_one_line_of_bounded_length(subject: Job) -> None:
    for line in lines(subject, now=NOW):
        assert line == " ".join(line.splitlines())
        assert 0 < len(line) < 1000
