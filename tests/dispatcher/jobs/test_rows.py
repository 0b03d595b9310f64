from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.jobs.job import Job, JobState, Try
from spinal.dispatcher.jobs.rows import row, stamp
from spinal.dispatcher.jobs.submission import read
from spinal.protocols import Json, Problem

NOW = 1_795_237_200_000  # 2026-11-21T05:00:00Z


def job(**members: Any) -> Job:
    return Job(id="1", caller="me@x", op="/a", created=NOW, **members)


def test_times_are_utc_to_the_millisecond() -> None:
    assert stamp(NOW) == "2026-11-21T05:00:00.000Z"
    assert stamp(NOW + 7) == "2026-11-21T05:00:00.007Z"


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_that_was_written_can_be_submitted(ms: int) -> None:
    submitted = read({"op": "/a", "at": stamp(ms)}, "me@x", ms - 1, 0)

    assert submitted.at == ms


def test_members_without_content_are_left_out() -> None:
    assert row(job(), whole=True) == {
        "id": "1",
        "op": "/a",
        "caller": "me@x",
        "state": "queued",
        "priority": 0,
        "created": "2026-11-21T05:00:00.000Z",
    }


def full() -> Job:
    return job(
        state=JobState.ERROR,
        args={"n": 1},
        key="k",
        labels=["l"],
        priority=2,
        after=["0"],
        when="any",
        ends=NOW + 60_000,
        started=NOW + 1500,
        ended=NOW + 4000,
        agent="w@x/1",
        attempt=2,
        tries=[
            Try(
                number=1,
                agent="v@x/1",
                epoch=3,
                began=NOW + 1500,
                ended=NOW + 2000,
                end="busy",
                text="no slot",
                uncounted=True,
            ),
            Try(number=2, agent="w@x/1", epoch=4, began=NOW + 2000),
        ],
        problem=Problem("failed", "it broke"),
        ran=2500,
        cpu=1250,
        memory=4096,
        cost=0.25,
        parent="9",
        position=0,
        kind="map",
        origin="retry:8",
        looked=True,
    )


def test_a_listing_leaves_out_arguments_value_and_attempts() -> None:
    assert row(full(), whole=False) == {
        "id": "1",
        "op": "/a",
        "caller": "me@x",
        "state": "error",
        "priority": 2,
        "key": "k",
        "labels": ["l"],
        "created": "2026-11-21T05:00:00.000Z",
        "after": ["0"],
        "when": "any",
        "ends": "2026-11-21T05:01:00.000Z",
        "started": "2026-11-21T05:00:01.500Z",
        "ended": "2026-11-21T05:00:04.000Z",
        "agent": "w@x/1",
        "attempt": 2,
        "problem": {
            "reason": "failed",
            "type": "cancel",
            "condition": "undefined-condition",
            "text": "it broke",
        },
        "wait": 1.5,
        "run": 2.5,
        "cpu": 1.25,
        "memory": 4096,
        "cost": 0.25,
        "parent": "9",
        "position": 0,
        "kind": "map",
        "origin": "retry:8",
        "looked": True,
    }


def test_the_whole_row_has_them() -> None:
    found = row(full(), whole=True)

    assert found["args"] == {"n": 1}
    assert found["attempts"] == [
        {
            "number": 1,
            "agent": "v@x/1",
            "epoch": 3,
            "began": "2026-11-21T05:00:01.500Z",
            "ended": "2026-11-21T05:00:02.000Z",
            "end": "busy",
            "text": "no slot",
            "uncounted": True,
        },
        {"number": 2, "agent": "w@x/1", "epoch": 4, "began": "2026-11-21T05:00:02.000Z"},
    ]
    assert set(found) - set(row(full(), whole=False)) == {"args", "attempts"}


@pytest.mark.parametrize("value", [0, False, "", [], {}])
def test_an_empty_value_is_a_value(value: Json) -> None:
    assert row(job(state=JobState.DONE, value=value), whole=True)["value"] == value


def test_what_a_waiting_job_waits_for_is_said_only_while_it_waits() -> None:
    members = {"due": NOW + 5, "at": NOW + 9, "held": True}
    waiting = row(job(state=JobState.WAITING, **members), whole=False)

    assert (waiting["due"], waiting["held"]) == ("2026-11-21T05:00:00.009Z", True)
    assert not {"due", "held"} & set(row(job(**members), whole=False))


def test_progress_and_an_unknown_operation_are_said_of_live_jobs_only() -> None:
    live = row(job(), whole=False, progress={"done": 1, "total": 2}, offered=False)
    ended = row(job(state=JobState.DONE), whole=False, progress={"done": 1}, offered=False)

    assert (live["progress"], live["offered"]) == ({"done": 1, "total": 2}, False)
    assert not {"progress", "offered"} & set(ended)
    assert "offered" not in row(job(), whole=False, offered=True)


def test_the_children_of_a_parent_are_counted_by_state() -> None:
    counts = {JobState.DONE: 3, JobState.QUEUED: 0}

    assert row(job(kind="map"), whole=False, children=counts)["children"] == {"done": 3}
    assert row(job(kind="map"), whole=False, children={})["children"] == {}


def test_a_clock_that_was_set_back_gives_no_negative_wait() -> None:
    assert row(job(started=NOW - 500), whole=False)["wait"] == 0
