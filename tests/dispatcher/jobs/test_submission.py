from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.bus.errors import BadCall, CallError
from spinal.dispatcher.jobs.job import DEADLINE, Job, JobState, mint
from spinal.dispatcher.jobs.submission import is_id, read, read_all
from spinal.protocols import Json

NOW = 1_795_237_200_000  # 2026-11-21T05:00:00Z
STEADY = NOW - 7000
YEAR = 366 * 86_400
ID = mint(NOW)


def submit(**args: Any) -> Job:
    return read({"op": "/a", **args}, "me@x/home", NOW, STEADY)


def refused(**args: Any) -> tuple[str, str | None]:
    with pytest.raises(BadCall) as caught:
        submit(**args)
    assert caught.value.reason == "bad-arguments"
    assert "\n" not in caught.value.problem.text
    return caught.value.problem.text, caught.value.problem.argument


def batch(*jobs: Mapping[str, Json]) -> list[Job]:
    return read_all({"jobs": [{"op": "/a", **job} for job in jobs]}, "me@x/home", NOW, STEADY)


def batch_refused(*jobs: Mapping[str, Json]) -> tuple[str, str | None]:
    with pytest.raises(BadCall) as caught:
        batch(*jobs)
    assert caught.value.reason == "bad-arguments"
    return caught.value.problem.text, caught.value.problem.argument


def test_a_bare_submission_is_queued_at_once_with_the_usual_deadline() -> None:
    job = submit()

    assert job.state is JobState.QUEUED
    assert job.caller == "me@x"
    assert (job.created, job.runnable) == (STEADY, STEADY)
    assert job.ends == STEADY + DEADLINE * 1000
    assert (job.due, job.at, job.held) == (0, 0, False)
    assert job.want == {}
    assert job.closed
    assert is_id(job.id)


def test_everything_that_can_be_asked_is_kept() -> None:
    job = submit(
        args={"n": 1},
        key="k",
        labels=["x", "y", "x"],
        priority=-9,
        deadline=10,
        max_run=2.5,
        retry={"count": 3, "on": ["lost"]},
        policy="cheapest",
        place={"site": "/eu"},
        tags=["gpu"],
        sticky="s",
        rerun=True,
        to="w@x/1",
        on_done="/b",
        on_error="/c",
        parent=ID,
        position=0,
        trace="00-1-2-01",
    )

    assert job.args == {"n": 1}
    assert (job.key, list(job.labels), job.priority) == ("k", ["x", "y"], -9)
    assert (job.allowed, job.max_run, job.ends) == (10.0, 2.5, STEADY + 10_000)
    assert job.retry == {"count": 3, "on": ["lost"]}
    assert job.want == {
        "policy": "cheapest",
        "place": {"site": "/eu"},
        "tags": ["gpu"],
        "sticky": "s",
        "rerun": True,
        "to": "w@x/1",
    }
    assert (job.on_done, job.on_error) == ("/b", "/c")
    assert (job.parent, job.position, job.trace) == (ID, 0, "00-1-2-01")


def test_what_is_asked_of_the_agent_as_usual_is_not_kept() -> None:
    job = submit(policy="least-loaded", place={}, tags=[], sticky="", rerun=False)

    assert job.want == {}


def test_unknown_arguments_and_empty_ones_are_ignored() -> None:
    job = submit(colour="red", wait=3, key=None, after=[], delay=0)

    assert job.state is JobState.QUEUED
    assert job.key is None


def test_a_number_of_retries_is_kept_as_an_object() -> None:
    assert submit(retry=2).retry == {"count": 2}


def test_a_delay_waits_by_the_steady_clock() -> None:
    job = submit(delay=1.5)

    assert (job.state, job.due, job.at, job.held) == (JobState.WAITING, STEADY + 1500, 0, False)
    assert (job.runnable, job.ends) == (None, None)


@pytest.mark.parametrize(
    "at",
    ["2026-11-21T06:00:00Z", "2026-11-21t07:00:00.000+01:00", "2026-11-21T00:30:00.0000-05:30"],
)
def test_a_time_waits_by_the_clock_on_the_wall(at: str) -> None:
    job = submit(at=at)

    assert (job.state, job.due, job.at) == (JobState.WAITING, 0, NOW + 3_600_000)


def test_a_time_that_has_passed_asks_for_nothing() -> None:
    job = submit(at="1999-12-31T23:59:59Z")

    assert (job.state, job.at) == (JobState.QUEUED, 0)


def test_a_job_after_others_is_held() -> None:
    job = submit(after=[ID, ID], when="ended")

    assert (job.state, job.held, list(job.after), job.when) == (
        JobState.WAITING,
        True,
        [ID],
        "ended",
    )


def test_a_map_is_a_parent_that_is_under_way_and_still_open() -> None:
    job = submit(kind="map")

    assert (job.state, job.closed) == (JobState.PROCESSING, False)
    assert (job.runnable, job.started, job.ends) == (STEADY, STEADY, STEADY + DEADLINE * 1000)


@pytest.mark.parametrize(
    ("args", "argument", "says"),
    [
        ({"op": None}, "op", "the path of the operation"),
        ({"op": "resize"}, "op", "must start with '/'"),
        ({"op": 7}, "op", "a path"),
        ({"args": [1]}, "args", "an object"),
        ({"priority": 10}, "priority", "an integer from -9 to 9"),
        ({"priority": True}, "priority", "an integer from -9 to 9"),
        ({"labels": ["x"] * 17}, "labels", "a list of at most 16"),
        ({"labels": ["x" * 129]}, "labels", "1 to 128 characters"),
        ({"labels": [""]}, "labels", "1 to 128 characters"),
        ({"labels": ["a\nb"]}, "labels", "control characters"),
        ({"labels": ["a*"]}, "labels", "without '*'"),
        ({"key": "k" * 257}, "key", "1 to 256 characters"),
        ({"key": "a\0b"}, "key", "control character"),
        ({"key": "\ud800"}, "key", "control character"),
        ({"delay": -1}, "delay", "seconds from 0 to 31622400"),
        ({"delay": YEAR + 1}, "delay", "366 days"),
        ({"delay": "1m"}, "delay", "seconds"),
        ({"deadline": 0.05}, "deadline", "seconds from 0.1 to 31622400"),
        ({"deadline": float("nan")}, "deadline", "seconds from 0.1"),
        ({"max_run": 0}, "max_run", "seconds from 0.1"),
        ({"at": "2026-11-21T06:00:00"}, "at", "a time with its zone"),
        ({"at": "2026-02-30T06:00:00Z"}, "at", "a time with its zone"),
        ({"at": 1}, "at", "a time with its zone"),
        ({"at": "2027-11-23T06:00:00Z"}, "at", "at most 366 days from now"),
        ({"after": ["nope"]}, "after", "'nope' is neither"),
        ({"after": [7]}, "after", "ids of jobs"),
        ({"after": [ID] * 1001}, "after", "a list of at most 1000"),
        ({"when": "sometimes"}, "when", "one of done, any, ended"),
        ({"kind": "all"}, "kind", "'map', or left out"),
        ({"kind": "map", "delay": 1}, "kind", "let its children wait"),
        ({"kind": "map", "after": [ID]}, "kind", "let its children wait"),
        ({"parent": ID}, "position", "both 'parent' and 'position'"),
        ({"position": 1}, "parent", "both 'parent' and 'position'"),
        ({"parent": "x", "position": 1}, "parent", "the id of a job"),
        ({"parent": ID, "position": 2**53}, "position", "an integer from 0 to 9007199254740991"),
        ({"policy": "fastest"}, "policy", "one of least-loaded"),
        ({"place": {"site": "fra"}}, "place", "path"),
        ({"tags": "gpu"}, "tags", "a list of at most 64"),
        ({"rerun": 1}, "rerun", "true or false"),
        ({"to": "w@x"}, "to", "the full address of an agent"),
        ({"to": 3}, "to", "the full address of an agent"),
        ({"to": "@/1"}, "to", "the full address of an agent"),
        ({"retry": {"count": 101}}, "retry.count", "an integer from 0 to 100"),
        ({"retry": "often"}, "retry", "a number of further tries"),
        ({"on_done": "b"}, "on_done", "must start with '/'"),
        ({"on_error": ""}, "on_error", "must start with '/'"),
        ({"trace": "x" * 129}, "trace", "1 to 128 characters"),
    ],
)
def test_a_wrong_argument_is_named_with_what_it_may_be(
    args: dict[str, Json], argument: str, says: str
) -> None:
    text, named = refused(**args)

    assert named == argument
    assert f"'{argument}'" in text
    assert says in text


@given(
    st.dictionaries(
        st.sampled_from(
            ["op", "args", "key", "labels", "priority", "delay", "at", "after", "when", "retry"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
            max_leaves=5,
        ),
    )
)
def test_whatever_is_sent_gives_a_job_or_an_error_of_the_caller(args: dict[str, Json]) -> None:
    whole = {"op": "/a", "name": "n", **args}
    for sent in ([args], [whole], [whole, {"op": "/b", "name": "m", "after": ["n"]}]):
        try:
            jobs = [*read_all({"jobs": sent}, "me@x", NOW, STEADY), read(sent[0], "me@x", NOW, 0)]
        except CallError as exc:
            assert exc.reason == "bad-arguments"
        else:
            assert not any(job.final for job in jobs)


def test_names_of_a_batch_become_ids_in_its_order() -> None:
    first, second, third = batch(
        {"name": "load", "after": ["fetch", ID]},
        {"name": "fetch"},
        {"name": "tell", "after": ["load", "fetch"], "when": "any"},
    )

    assert first.id < second.id < third.id
    assert list(first.after) == [second.id, ID]
    assert list(third.after) == [first.id, second.id]
    assert (first.state, second.state) == (JobState.WAITING, JobState.QUEUED)


def test_a_ring_in_a_batch_is_refused_with_its_names() -> None:
    text, argument = batch_refused(
        {"name": "a", "after": ["b"]},
        {"name": "b", "after": ["c"]},
        {"name": "c", "after": ["a"]},
        {"name": "d"},
    )

    assert text == "these jobs wait for each other: a -> b -> c -> a"
    assert argument == "jobs"


def test_a_job_that_comes_after_itself_is_a_ring() -> None:
    assert batch_refused({"name": "a", "after": ["a"]})[0].endswith("a -> a")


def test_a_name_that_is_not_in_the_batch_is_named() -> None:
    text, argument = batch_refused({"name": "a"}, {"name": "b", "after": ["a", "nope"]})

    assert text.startswith("job 'b': ")
    assert "'nope' is neither" in text
    assert argument == "jobs[1].after"


@pytest.mark.parametrize(
    ("jobs", "says", "argument"),
    [
        ([{"name": "a"}, {"name": "a"}], "two jobs have the name 'a'", "jobs[1].name"),
        ([{"name": "a", "key": "k"}, {"name": "b", "key": "k"}], "the key 'k'", "jobs[1].key"),
        ([{"name": "a"}, {}], "'jobs[1].name' must be", "jobs[1].name"),
        ([{"name": "a", "priority": 99}], "job 'a': 'priority' must be", "jobs[0].priority"),
        ([{"name": "a"}] * 1001, "a list of at most 1000", "jobs"),
    ],
)
def test_a_wrong_job_in_a_batch_is_named(
    jobs: list[Mapping[str, Json]], says: str, argument: str
) -> None:
    text, named = batch_refused(*jobs)

    assert says in text
    assert named == argument


@pytest.mark.parametrize("args", [{}, {"jobs": None}, {"jobs": "a"}, {"jobs": ["a"]}])
def test_a_batch_is_a_list_of_objects(args: dict[str, Json]) -> None:
    with pytest.raises(BadCall, match="'jobs' must be"):
        read_all(args, "me@x", NOW, STEADY)


def test_an_empty_batch_is_no_jobs() -> None:
    assert batch() == []


def test_a_chain_as_long_as_a_batch_may_be_is_read() -> None:
    jobs = batch({"name": "0"}, *({"name": str(n), "after": [str(n - 1)]} for n in range(1, 1000)))

    assert list(jobs[999].after) == [jobs[998].id]
