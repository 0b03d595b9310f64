"""What is done about a service, decided without a bus, a store or a clock."""

from __future__ import annotations

import itertools
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from spinal.dispatcher.jobs.job import FINAL, Job, JobState, Try
from spinal.dispatcher.placing import service as services
from spinal.dispatcher.placing.service import (
    DECISIONS,
    IN_VAIN,
    MAX_HISTORY,
    MAX_LEFT,
    MAX_PAUSE,
    MOVE_AFTER,
    RETURN,
    SILENT,
    Act,
    Placement,
    Seen,
    Service,
    State,
    decide,
    lost_at,
    to_tell,
)
from spinal.protocols import Problem

ONE, TWO, THREE = "one@home.test/agent", "two@home.test/agent", "three@home.test/agent"
NOW = 1_000_000


def a_service(state: State = State.PLACED, *, ended: int | None = 1, **members: Any) -> Service:
    asked: dict[str, Any] = {
        "name": "shop",
        "caller": "ann@home.test",
        "created": 0,
        "since": 0,
        "state": state,
        "generation": 5,
        "history": (
            Placement(generation=5, job="j5", began=NOW, why="deployed by ann", ended=ended),
        ),
    }
    return Service(**asked | members)


def a_job(state: JobState, *tried: str, **members: Any) -> Job:
    tries = [
        Try(number=n, agent=agent, epoch=1, began=1, ended=2, end="lost")
        for n, agent in enumerate(tried, 1)
    ]
    asked: dict[str, Any] = {"id": "j5", "caller": "ann@home.test", "op": "/d", "created": 0}
    asked |= {"state": state, "tries": tries, "agent": tried[-1] if tried else None}
    return Job(**asked | members)


PLACING = a_service(State.PLACING, ended=None, agent=ONE, running=4)
FOR_ONE = {"to": ONE}
NOT_ONE = {"avoid": [ONE]}
LATE = NOW + int(IN_VAIN * 1000)


@pytest.mark.parametrize(
    ("service", "seen", "act"),
    [
        # A placement is under way.
        (PLACING, Seen(NOW, a_job(JobState.QUEUED)), Act.NOTHING),
        (PLACING, Seen(NOW, a_job(JobState.PROCESSING, TWO)), Act.NOTHING),
        (PLACING, Seen(NOW, a_job(JobState.STALLED, TWO)), Act.NOTHING),
        (PLACING, Seen(NOW, a_job(JobState.WAITING)), Act.NOTHING),
        (PLACING, Seen(NOW, a_job(JobState.DONE, TWO)), Act.SETTLE),
        (PLACING, Seen(NOW, a_job(JobState.ERROR, TWO)), Act.FAIL),
        (PLACING, Seen(NOW, a_job(JobState.KILLED)), Act.FAIL),
        (PLACING, Seen(NOW, None), Act.FAIL),
        # The old agent is lost: the job goes to whoever is there, unless it is for that one.
        (PLACING, Seen(NOW, a_job(JobState.QUEUED), frozenset({ONE})), Act.NOTHING),
        (PLACING, Seen(NOW, a_job(JobState.QUEUED, want=FOR_ONE), frozenset({ONE})), Act.MOVE),
        (PLACING, Seen(NOW, a_job(JobState.STALLED, want=FOR_ONE), frozenset({ONE})), Act.MOVE),
        (PLACING, Seen(NOW, a_job(JobState.QUEUED, want=FOR_ONE), frozenset({TWO})), Act.NOTHING),
        (PLACING, Seen(NOW, a_job(JobState.DONE, want=FOR_ONE), frozenset({ONE})), Act.SETTLE),
        # It must not go to one, and there is no other.
        (PLACING, Seen(NOW, a_job(JobState.QUEUED, want=NOT_ONE)), Act.NOTHING),
        (PLACING, Seen(LATE - 1, a_job(JobState.QUEUED, want=NOT_ONE)), Act.NOTHING),
        (PLACING, Seen(LATE, a_job(JobState.QUEUED, want=NOT_ONE)), Act.RETRY),
        (PLACING, Seen(LATE, a_job(JobState.QUEUED)), Act.NOTHING),
        (PLACING, Seen(LATE, a_job(JobState.PROCESSING, TWO, want=NOT_ONE)), Act.NOTHING),
        # It is placed.
        (a_service(agent=ONE), Seen(NOW), Act.NOTHING),
        (a_service(agent=ONE), Seen(NOW, None, frozenset({TWO})), Act.NOTHING),
        (a_service(agent=ONE), Seen(NOW, None, frozenset({ONE})), Act.MOVE),
        (a_service(agent=ONE, epoch=1), Seen(NOW, epoch=1), Act.NOTHING),
        (a_service(agent=ONE, epoch=1), Seen(NOW, epoch=2), Act.CHECK),
        (a_service(agent=ONE, epoch=1), Seen(NOW, epoch=None), Act.NOTHING),
        (a_service(agent=ONE, epoch=1), Seen(NOW, None, frozenset({ONE}), epoch=2), Act.MOVE),
        # The last placement failed.
        (a_service(State.UNPLACED, due=NOW + 1), Seen(NOW), Act.NOTHING),
        (a_service(State.UNPLACED, due=NOW), Seen(NOW), Act.RETRY),
        # It is to go.
        (a_service(State.REMOVING, ended=None), Seen(NOW, a_job(JobState.QUEUED)), Act.STOP),
        (a_service(State.REMOVING, ended=None), Seen(NOW, a_job(JobState.STALLED)), Act.STOP),
        (a_service(State.REMOVING, ended=None), Seen(NOW, a_job(JobState.KILLED)), Act.CLOSE),
        (a_service(State.REMOVING, ended=None), Seen(NOW, None), Act.CLOSE),
        (a_service(State.REMOVING, left={ONE: 6}), Seen(NOW), Act.NOTHING),
        (a_service(State.REMOVING), Seen(NOW), Act.DROP),
    ],
)
def test_what_is_done(service: Service, seen: Seen, act: Act) -> None:
    assert decide(service, seen) is act


def everything() -> list[tuple[Service, Seen]]:
    """Every service in every situation, as far as decisions tell them apart."""
    jobs: list[Job | None] = [None]
    for at, want in itertools.product(JobState, ({}, FOR_ONE, NOT_ONE)):
        jobs.append(a_job(at, *([] if at is JobState.QUEUED else [ONE]), want=want))
    found: list[tuple[Service, Seen]] = []
    for state, job, agent, left, ended, due, lost, here in itertools.product(
        State,
        jobs,
        (None, ONE, TWO),
        ({}, {THREE: 5}),
        (None, 1),
        (0, LATE + 1),
        (frozenset[str](), frozenset({ONE}), frozenset({ONE, TWO})),
        (frozenset[str](), frozenset({THREE})),
    ):
        service = a_service(state, ended=ended, agent=agent, left=left, due=due, epoch=1)
        found += [(service, Seen(now, job, lost, here)) for now in (NOW, LATE)]
        found.append((service, Seen(NOW, job, lost, here, epoch=2)))
    return found


def test_nothing_is_done_without_its_reason() -> None:
    reached: set[tuple[State, Act]] = set()
    for service, seen in everything():
        act = decide(service, seen)
        reached.add((service.state, act))
        job = seen.job
        match act:
            case Act.SETTLE:
                assert job is not None and job.state is JobState.DONE
            case Act.FAIL:
                assert job is None or job.state in FINAL - {JobState.DONE}
            case Act.MOVE:
                target = service.agent if service.state is State.PLACED else None
                target = target or (None if job is None else str(job.want.get("to")))
                assert target in seen.lost
            case Act.CHECK:
                assert service.agent not in seen.lost and seen.epoch == 2
            case Act.RETRY:
                assert job is not None or service.due <= seen.now
            case Act.STOP:
                assert job is not None and not job.final
            case Act.CLOSE:
                assert service.last is not None and service.last.ended is None
            case Act.DROP:
                assert not service.left and service.last is not None and service.last.ended
            case Act.NOTHING:
                pass
    rows = {(state, act) for state, table in DECISIONS.items() for _, act in table}
    assert reached == rows | {(state, Act.NOTHING) for state in State}


def test_only_what_another_one_has_or_nobody_shall_have_is_ended() -> None:
    for service, seen in everything():
        told = to_tell(service, seen)
        assert told.keys() <= seen.here and told.items() <= service.left.items()
        if told:
            assert service.state in (State.PLACED, State.REMOVING)
            assert service.agent not in told


# -- when an agent is lost


@pytest.mark.parametrize(
    ("heard", "left", "since", "lost"),
    [
        pytest.param(100, None, 0, 100 + SILENT, id="it fell silent"),
        pytest.param(100, 101, 0, 101 + MOVE_AFTER, id="it left"),
        pytest.param(None, None, 50, 50 + RETURN, id="it was not seen since we started"),
        pytest.param(100, None, 150, 150 + RETURN, id="it was not heard since our stream is back"),
        pytest.param(100, 140, 150, 150 + RETURN, id="it left before our stream broke"),
        pytest.param(151, 160, 150, 160 + MOVE_AFTER, id="it came back and left"),
    ],
)
def test_an_agent_is_lost_after_a_time(
    heard: float | None, left: float | None, since: float, lost: float
) -> None:
    assert lost_at(heard, left, since) == lost


# -- what becomes of a service


def test_a_new_service_is_above_all_that_were_made_and_ended_under_its_name() -> None:
    first = services.new("shop", "ann", 10_000)
    for n in range(5):
        first = services.placed_anew(first, f"j{n}", 10_000, "again", None)
    assert services.new("shop", "ann", 20_000).generation > first.generation


def test_who_has_had_it_is_left_when_another_one_has_it() -> None:
    placed = services.settled(PLACING, a_job(JobState.DONE, THREE, TWO), NOW, {"port": 1})
    assert (placed.state, placed.agent, placed.running) == (State.PLACED, TWO, 5)
    assert placed.epoch == 1
    # Older ones are to end where it was, this one too where it was tried.
    assert placed.left == {ONE: 5, THREE: 6}
    assert placed.last is not None and placed.last.agent == TWO and not placed.last.problem
    again = services.settled(PLACING, a_job(JobState.DONE, ONE), NOW, None)
    assert again.left == {}


def test_a_failure_is_tried_again_after_a_pause_that_grows() -> None:
    service, pauses = PLACING, list[float]()
    for n in range(10):
        problem = Problem("refused", "no room")
        service = services.failed(service, a_job(JobState.ERROR, TWO, problem=problem), NOW)
        pauses.append((service.due - NOW) / 1000)
        assert service.state is State.UNPLACED and service.failed_at == {TWO}
        assert service.agent == ONE and service.running == 4
        service = services.placed_anew(service, f"k{n}", NOW, "tried again", None)
    assert pauses == [1, 2, 4, 8, 16, 32, *[MAX_PAUSE] * 4]
    assert len(service.history) == MAX_HISTORY and service.left == {TWO: 15}


def test_what_a_placement_that_is_given_up_may_have_reached_is_left() -> None:
    job = a_job(JobState.PROCESSING, THREE, want={"to": TWO})
    moved = services.placed_anew(PLACING, "j6", NOW, "two was lost", job)
    assert moved.left == {TWO: 6, THREE: 6} and moved.generation == 6
    given_up = moved.history[-2]
    assert given_up.ended == NOW and given_up.problem == "given up: two was lost"


def test_a_service_that_is_removed_is_to_end_wherever_it_may_be() -> None:
    gone = services.removed(replace(PLACING, left={TWO: 3}), NOW)
    assert gone.left == {TWO: 3, ONE: 6} and gone.agent is None
    gone = services.closed_at(gone, a_job(JobState.KILLED, THREE), NOW, "removed")
    assert gone.left == {TWO: 3, ONE: 6, THREE: 6}
    for agent in (ONE, TWO, THREE):
        gone = services.told(gone, agent, 6)
    assert decide(gone, Seen(NOW)) is Act.DROP


def test_what_an_agent_was_told_before_it_got_more_does_not_count_for_that() -> None:
    assert services.told(a_service(left={ONE: 9}), ONE, 8).left == {ONE: 9}


def test_of_too_many_that_are_left_those_are_kept_that_came_last() -> None:
    left = {f"a{n}@home.test/agent": 1 for n in range(MAX_LEFT)}
    placed = services.settled(replace(PLACING, left=left), a_job(JobState.DONE, TWO), NOW, None)
    assert len(placed.left) == MAX_LEFT and ONE in placed.left


# -- all together


@pytest.mark.parametrize("seed", range(100))
def test_whatever_happens_every_machine_that_runs_it_is_known_and_in_the_end_it_is_one(
    seed: int,
) -> None:
    random = Random(seed)
    machines = [f"m{n}@home.test/agent" for n in range(4)]
    runs: dict[str, int] = {}
    now = NOW
    service = services.new("shop", "ann", now)
    job = Job(id="0", caller="ann", op="/d", created=0)
    service = services.placed_anew(service, job.id, now, "deployed", None)

    def step(calm: bool) -> None:
        nonlocal service, job, now
        now += 70_000
        lost = frozenset[str]() if calm else frozenset(m for m in machines if random.random() < 0.4)
        here = frozenset(machines) - lost
        if not job.final and here:
            # It reaches a machine, which may do it, and may or may not live to say so.
            target = str(job.want.get("to") or random.choice(sorted(here)))
            if target in here:
                number = len(job.tries) + 1
                job.tries.append(Try(number=number, agent=target, epoch=1, began=now))
                job.agent = target
                job.state = JobState.DONE if calm else random.choice(list(JobState))
                if job.state is JobState.DONE or random.random() < 0.5:
                    runs[target] = max(service.generation, runs.get(target, 0))
        is_open = service.last is not None and service.last.ended is None
        seen = Seen(now, job if is_open else None, lost, here)
        act = decide(service, seen)
        match act:
            case Act.SETTLE:
                service = services.settled(service, job, now, None)
            case Act.FAIL:
                service = services.failed(service, job, now)
            case Act.MOVE | Act.RETRY:
                want = {"to": random.choice(machines)} if random.random() < 0.3 else {}
                service = services.placed_anew(service, "next", now, "anew", seen.job)
                job = Job(id="next", caller="ann", op="/d", created=0, want=want)
            case _:
                assert act is Act.NOTHING
        for agent, below in to_tell(service, replace(seen, here=here)).items():
            if runs.get(agent, below) < below:
                del runs[agent]
            service = services.told(service, agent, below)
        for machine, generation in runs.items():
            tried = {one.agent for one in job.tries}
            known = machine == service.agent or service.left.get(machine, 0) > generation
            assert known or (machine in tried and not _closed(service)), (machine, service)

    for _ in range(60):
        step(calm=False)
    for _ in range(6):
        step(calm=True)
    assert service.state is State.PLACED and service.left == {}
    assert service.agent is not None and runs == {service.agent: service.running}


def _closed(service: Service) -> bool:
    return service.last is None or service.last.ended is not None
