"""The life of a job; ``PYTHONPATH=src python tests/dispatcher/jobs/test_job.py`` draws it anew."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.jobs.job import (
    FINAL,
    LIVE,
    TRANSITIONS,
    Happening,
    Job,
    JobMoved,
    JobState,
    Try,
    mint,
    mint_many,
)
from spinal.dispatcher.jobs.submission import is_id

S, H = JobState, Happening
NEW = (S.WAITING, S.QUEUED)

#: Story -> the states and happenings of it.  Each row of the table is the last step of one story
#: alone, so that whoever deletes the row learns from the story's name what would be lost.
STORIES: dict[str, tuple[JobState | Happening, ...]] = {
    "a job whose time has come is queued": (S.WAITING, H.DUE, S.QUEUED),
    "a job that waited may begin at once": (S.WAITING, H.BEGUN, S.PROCESSING),
    "a job fails while it waits, because of another one": (S.WAITING, H.FAILED, S.ERROR),
    "a job is cancelled while it waits": (S.WAITING, H.CANCELLED, S.KILLED),
    "an attempt of a queued job begins": (S.QUEUED, H.BEGUN, S.PROCESSING),
    "a queued job goes back to wait for room": (S.QUEUED, H.DEFERRED, S.WAITING),
    "a result comes late, for a job that is queued again": (S.QUEUED, H.DONE, S.DONE),
    "the deadline of a queued job passes": (S.QUEUED, H.FAILED, S.ERROR),
    "a job is cancelled while it is queued": (S.QUEUED, H.CANCELLED, S.KILLED),
    "the agent of a running job falls silent": (S.PROCESSING, H.SILENT, S.STALLED),
    "a busy agent sends a job back": (S.PROCESSING, H.RETURNED, S.QUEUED),
    "a running job fails and is tried again later": (S.PROCESSING, H.DEFERRED, S.WAITING),
    "a running job is done": (S.PROCESSING, H.DONE, S.DONE),
    "a running job fails": (S.PROCESSING, H.FAILED, S.ERROR),
    "a running job is cancelled": (S.PROCESSING, H.CANCELLED, S.KILLED),
    "the silent agent of a job is heard again": (S.STALLED, H.HEARD, S.PROCESSING),
    "a job of a lost agent runs elsewhere": (S.STALLED, H.RETURNED, S.QUEUED),
    "a job of a lost agent is tried again later": (S.STALLED, H.DEFERRED, S.WAITING),
    "the result of a silent agent arrives": (S.STALLED, H.DONE, S.DONE),
    "a job of a lost agent must not run twice": (S.STALLED, H.FAILED, S.ERROR),
    "a stalled job is cancelled": (S.STALLED, H.CANCELLED, S.KILLED),
}

#: What moves a job -> how the page says it.
SAID = {
    H.DUE: "its time has come, or the jobs before it have ended",
    H.BEGUN: "an attempt begins",
    H.SILENT: "its agent falls silent",
    H.HEARD: "its agent is heard again",
    H.RETURNED: "the attempt is sent back, or is lost and may run elsewhere",
    H.DEFERRED: "the attempt failed, and there is another try after a pause; or a limit holds it back",
    H.DONE: "a result arrives",
    H.FAILED: "an error is its end, or its deadline passes",
    H.CANCELLED: "somebody cancels it",
}

PAGE = Path(__file__).parents[3] / "docs" / "jobs.md"


def job(state: JobState) -> Job:
    return Job(id="1", caller="me@x", op="/a", created=0, state=state)


def rows() -> set[tuple[JobState, Happening, JobState]]:
    return {(state, on, to) for state, row in TRANSITIONS.items() for on, to in row.items()}


def reachable(starts: Iterable[JobState]) -> set[JobState]:
    found: set[JobState] = set()
    left = set(starts)
    while left:
        state = left.pop()
        found.add(state)
        left |= set(TRANSITIONS[state].values()) - found
    return found


@pytest.mark.parametrize("story", STORIES)
def test_the_table_allows(story: str) -> None:
    first, happening, last = STORIES[story]
    assert isinstance(first, JobState)
    assert isinstance(happening, Happening)
    moved = job(first)

    moved.move(happening)

    assert moved.state is last


def test_every_row_of_the_table_has_one_story() -> None:
    assert set(STORIES.values()) == rows()
    assert len(STORIES) == len(rows())


def test_every_state_is_in_the_table_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert reachable(NEW) == set(JobState)


@pytest.mark.parametrize("state", sorted(LIVE, key=str))
def test_every_live_state_has_a_way_to_each_end(state: JobState) -> None:
    assert reachable([state]) >= FINAL


@pytest.mark.parametrize("state", sorted(LIVE, key=str))
def test_every_live_job_can_be_cancelled_and_given_up_at_once(state: JobState) -> None:
    assert TRANSITIONS[state][H.CANCELLED] is S.KILLED
    assert TRANSITIONS[state][H.FAILED] is S.ERROR


@pytest.mark.parametrize("state", sorted(FINAL, key=str))
def test_final_is_final(state: JobState) -> None:
    assert TRANSITIONS[state] == {}
    assert job(state).final
    assert state.final


def test_everything_that_can_happen_moves_some_job() -> None:
    assert {happening for _, happening, _ in rows()} == set(Happening)


@pytest.mark.parametrize(("state", "happening"), list(product(JobState, Happening)))
def test_what_the_table_does_not_have_does_not_happen(
    state: JobState, happening: Happening
) -> None:
    subject = job(state)
    if happening in TRANSITIONS[state]:
        return subject.move(happening)

    with pytest.raises(JobMoved, match=f"job 1 is {state.value} and cannot be {happening.value}"):
        subject.move(happening)
    assert subject.state is state


@given(st.lists(st.sampled_from(Happening), max_size=30), st.sampled_from(NEW))
def test_whatever_happens_nothing_follows_an_end(
    happenings: list[Happening], first: JobState
) -> None:
    subject = job(first)
    end: JobState | None = None
    for happening in happenings:
        try:
            subject.move(happening)
        except JobMoved:
            continue
        assert end is None
        end = subject.state if subject.final else None


def test_the_current_try_is_the_last_one_that_has_not_ended() -> None:
    subject = job(S.PROCESSING)
    assert subject.current is None

    first = Try(number=1, agent="a@x/1", epoch=1, began=0)
    subject.tries.append(first)
    assert subject.current is first

    first.ended = 5
    assert subject.current is None


def test_ids_sort_by_the_time_of_their_making() -> None:
    ids = [mint(now) for now in (0, 1, 31, 32, 1_795_237_200_000, 1_795_237_200_001, 2**50 - 1)]

    assert ids == sorted(ids)
    assert all(map(is_id, ids))


@given(st.lists(st.integers(0, 2**50 - 1), min_size=2, max_size=10))
def test_an_id_of_an_earlier_moment_is_smaller(moments: list[int]) -> None:
    ordered = sorted(set(moments))

    assert all(mint(one) < mint(next) for one, next in pairwise(ordered))


def test_ids_of_one_moment_differ() -> None:
    assert len({mint(7) for _ in range(10_000)}) == 10_000


def test_many_ids_of_one_moment_increase_strictly() -> None:
    ids = mint_many(1_700_000_000_000, 1000)

    assert all(a < b for a, b in pairwise(ids))
    assert len(ids) == 1000
    assert mint_many(1_700_000_000_000, 0) == []


def test_an_id_without_a_moment_is_of_now() -> None:
    before, now = mint(), mint()

    assert before[:7] == now[:7]


# -- the page


def table() -> str:
    """Draw the table of a job's life as the page has it."""
    lines = ["| state | what happens | next state |", "| --- | --- | --- |"]
    for state, row in TRANSITIONS.items():
        for happening, after in row.items():
            lines.append(f"| `{state.value}` | {SAID[happening]} | `{after.value}` |")
        if not row:
            lines.append(f"| `{state.value}` | nothing: it is final | |")
    return "\n".join(lines)


def written(text: str) -> str:
    """Give the page with the table as it should be."""
    marked = re.compile(r"(<!-- generated: states -->\n).*?(<!-- end -->)", re.DOTALL)
    fresh, found = marked.subn(lambda match: f"{match[1]}{table()}\n{match[2]}", text)
    assert found == 1, "docs/jobs.md has no place for the table of states"
    return fresh


def test_the_page_has_the_table_of_the_code() -> None:
    text = PAGE.read_text()

    assert written(text) == text, f"run PYTHONPATH=src python {Path(__file__).name}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
