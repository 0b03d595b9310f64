from __future__ import annotations

from itertools import pairwise, permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.jobs.dependencies import WHEN, Next, Verdict, cycle, verdict
from spinal.dispatcher.jobs.job import JobState

S = JobState
D, E, K, Q = S.DONE, S.ERROR, S.KILLED, S.QUEUED


def said(when: str, *states: JobState | None) -> Verdict:
    return verdict(when, {f"j{n}": state for n, state in enumerate(states)})


@pytest.mark.parametrize(
    ("when", "states", "expected"),
    [
        ("done", [D, D], Next.RUN),
        ("done", [D, Q], Next.WAIT),
        ("done", [E, Q], Next.FAIL),
        ("done", [K], Next.FAIL),
        ("done", [D, None], Next.FAIL),
        ("any", [D, Q], Next.RUN),
        ("any", [D, E], Next.RUN),
        ("any", [E, Q], Next.WAIT),
        ("any", [None, Q], Next.WAIT),
        ("any", [E, K, None], Next.FAIL),
        ("ended", [D, E, K, None], Next.RUN),
        ("ended", [D, Q], Next.WAIT),
        ("done", [], Next.RUN),
        ("any", [], Next.RUN),
        ("ended", [], Next.RUN),
    ],
)
def test_a_job_runs_waits_or_fails_by_the_states_of_those_before(
    when: str, states: list[JobState | None], expected: Next
) -> None:
    assert said(when, *states).next is expected


def test_a_failure_names_the_job_and_how_it_ended() -> None:
    problem = said("done", D, E, None).problem

    assert problem is not None
    assert problem.reason == "dependency"
    assert problem.text == (
        "it comes after job j1, which ended with an error; "
        "job j2, which has ended and is no longer kept"
    )


def test_when_none_was_done_the_text_says_so() -> None:
    problem = said("any", K, E).problem

    assert problem is not None
    assert problem.text == (
        "none of the jobs before it was done: job j0, which was killed; "
        "job j1, which ended with an error"
    )


def test_of_many_jobs_the_text_names_five() -> None:
    problem = said("done", *[E] * 1000).problem

    assert problem is not None
    assert problem.text.endswith("job j4, which ended with an error; and 995 more")


@pytest.mark.parametrize("when", WHEN)
def test_whoever_waits_waits_for_a_job_that_has_not_ended(when: str) -> None:
    for states in product([None, *JobState], repeat=2):
        found = said(when, *states)
        open = any(state is not None and not state.final for state in states)
        if found.next is Next.WAIT:
            assert open
        assert (found.problem is not None) == (found.next is Next.FAIL)


@pytest.mark.parametrize("when", WHEN)
def test_what_was_decided_is_not_changed_by_another_end(when: str) -> None:
    for first, second in product([None, *JobState], repeat=2):
        found = said(when, first, second).next
        if found is Next.WAIT or second is None or second.final:
            continue
        assert all(said(when, first, end).next is found for end in (D, E, K, None))


def test_jobs_that_wait_for_each_other_are_a_ring() -> None:
    assert cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert cycle({"a": ["a"]}) == ["a", "a"]


def test_two_ways_to_the_same_job_are_no_ring() -> None:
    assert cycle({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}) is None


def test_names_that_are_no_key_come_after_nothing() -> None:
    assert cycle({"a": ["x"], "b": ["a", "x"]}) is None


def test_a_chain_of_any_length_is_gone_through() -> None:
    edges = {str(n): [str(n + 1)] for n in range(50_000)}

    assert cycle(edges) is None
    ring = cycle({**edges, "50000": ["0"]})
    assert ring is not None
    assert len(ring) == 50_002


def _has_ring(edges: dict[int, list[int]]) -> bool:
    """Brute force: without a ring there is an order in which each comes after those it names."""
    return not any(
        all(order.index(b) < order.index(a) for a, below in edges.items() for b in below)
        for order in permutations(range(5))
    )


@given(st.dictionaries(st.integers(0, 4), st.lists(st.integers(0, 4), max_size=4)))
def test_a_ring_is_found_exactly_if_there_is_one(edges: dict[int, list[int]]) -> None:
    named = {str(a): [str(b) for b in below] for a, below in edges.items()}
    ring = cycle(named)

    assert (ring is not None) == _has_ring(edges)
    if ring is not None:
        assert ring[0] == ring[-1]
        assert len(set(ring)) == len(ring) - 1
        assert all(b in named[a] for a, b in pairwise(ring))
