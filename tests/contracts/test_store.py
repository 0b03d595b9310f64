"""What ``dispatcher/store/contract.py`` promises, held against every database."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.postgres import Postgres, available, server

from spinal.dispatcher.jobs.job import Happening, Job, JobState, Try, mint
from spinal.dispatcher.placing import record
from spinal.dispatcher.placing.service import Asked, Placement, Service, State
from spinal.dispatcher.store import store_for
from spinal.dispatcher.store.contract import (
    FENCED,
    SAVED,
    Change,
    Filter,
    Fire,
    Forget,
    Keep,
    LifeOver,
    Limit,
    Line,
    Look,
    New,
    NotAStore,
    Record,
    Retention,
    Save,
    Schedule,
    Store,
    StoreError,
    Wait,
)
from spinal.protocols import LocalProtocolError, Problem
from spinal.testing import eventually

HERE, THERE = "one@home.test/dispatcher", "two@home.test/dispatcher"
#: Seconds of a lease that nobody waits for.
LONG = 1000.0
ALICE, BOB = "alice@home.test", "bob@home.test"
KINDS = ("sqlite", "postgresql")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    reason = available()
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    with server() as running:
        yield running


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.db"
    running: Postgres = request.getfixturevalue("postgres")
    with psycopg.connect(running.url(), autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS spinal CASCADE")
    return running.url()


@asynccontextmanager
async def opened(
    url: str, address: str = HERE, lease: float = LONG, **retention: Any
) -> AsyncGenerator[tuple[Store, int]]:
    store = store_for(url, Retention(**retention))
    life = await store.open(address, lease)
    try:
        yield store, life
    finally:
        await store.close()


def a_job(**members: Any) -> Job:
    asked: dict[str, Any] = {"id": mint(), "caller": ALICE, "op": "/image/resize", "created": 1}
    return Job(**asked | members)


def finish(job: Job, happening: Happening = Happening.DONE, now: int = 100, **members: Any) -> Job:
    """Give the job as it is when it has ended."""
    job = replace(job, tries=list(job.tries), ended=now, **members)
    if job.state is JobState.QUEUED:
        job.move(Happening.BEGUN)
    job.move(happening)
    return job


async def add(store: Store, *jobs: Job) -> None:
    assert await store.write(*map(New, jobs)) == [job.id for job in jobs]


def same(one: Job | None, other: Job) -> bool:
    return one is not None and all(
        getattr(one, name) == getattr(other, name) for name in Job.__slots__
    )


def ids(jobs: list[Job]) -> list[str]:
    return [job.id for job in jobs]


# -- what is kept


async def test_a_job_is_read_as_it_was_written(url: str) -> None:
    async with opened(url) as (store, life):
        job = a_job(
            args={"photo": {"deep": [1, 2.5, None, True, 'ä"\\\u0000\U0001f600']}},
            want={"policy": "cheapest", "tags": ["gpu"]},
            key="k",
            labels=("one", "two"),
            priority=-3,
            after=("x", "y"),
            when="ended",
            allowed=0.5,
            max_run=2.0,
            retry={"count": 3},
            on_done="/told",
            on_error="/told/badly",
            kind="map",
            parent="p",
            position=7,
            origin="retry:1",
            trace="00-aa-bb-01",
            state=JobState.WAITING,
            due=10,
            at=20,
            held=True,
            runnable=5,
            ends=2**53,
            closed=False,
        )
        await add(store, job)
        assert same(await store.get(job.id), job)

        claimed = (await store.claim(0, 0, 1, [job.id]))[0]
        assert same(claimed, replace(job, owner=life))

        claimed.move(Happening.BEGUN)
        claimed.tries.append(
            Try(
                number=1,
                agent="w@home.test/1",
                epoch=9,
                began=6,
                ended=8,
                end="failed",
                text="it did",
                uncounted=True,
                may_rerun=True,
                chosen=("nearest",),
                runners=({"agent": "w@home.test/2", "load": 0.5},),
                passed={"place": 3},
            )
        )
        # Lists, as JSON has no tuples.
        claimed.tries[0].chosen, claimed.tries[0].runners = ["nearest"], [{"agent": "b"}]
        claimed.agent, claimed.attempt, claimed.failures, claimed.started = "w", 1, 1, 6
        claimed.ran, claimed.cpu, claimed.memory, claimed.cost = 5, 4, 2**33, 0.25
        claimed.value = {"ok": [False, {}]}
        claimed.problem = Problem("failed", "so it is", "photo", 2.5, "wait", "conflict")
        claimed.closed = claimed.looked = True
        claimed.ended = 77
        claimed.move(Happening.FAILED)
        assert await store.write(Save(claimed)) == [SAVED]
        assert same(await store.get(job.id), claimed)


async def test_a_job_that_is_not_there_is_none(url: str) -> None:
    async with opened(url) as (store, _):
        assert await store.get("nothing") is None
        assert await store.states(["nothing"]) == {}
        assert await store.states([]) == {}


async def test_a_change_is_copied_when_it_is_given(url: str) -> None:
    async with opened(url) as (store, _):
        job = a_job(args={"width": 1})
        writing = asyncio.ensure_future(store.write(New(job)))
        await asyncio.sleep(0)
        job.priority, job.args = 9, {"width": 2}
        await writing
        found = await store.get(job.id)
        assert found is not None
        assert (found.priority, found.args) == (0, {"width": 1})


async def test_nothing_is_lost_when_the_store_is_opened_again(url: str) -> None:
    job = a_job()
    async with opened(url) as (store, first):
        await add(store, job)
    async with opened(url) as (store, second):
        assert same(await store.get(job.id), job)
    assert second > first


async def test_a_job_that_is_not_json_is_the_callers_mistake(url: str) -> None:
    async with opened(url) as (store, _):
        for bad in ({"x": object()}, {"x": "\ud800"}):
            with pytest.raises(LocalProtocolError):
                await store.write(New(a_job(args=bad)))


async def test_a_final_job_has_a_time_of_its_end_and_no_other_has(url: str) -> None:
    async with opened(url) as (store, _):
        for bad in (a_job(state=JobState.DONE), a_job(ended=1)):
            with pytest.raises(LocalProtocolError, match="time of its end"):
                await store.write(New(bad))


# -- writes


async def test_writes_of_one_turn_share_a_transaction_and_none_is_lost(url: str) -> None:
    async with opened(url) as (store, _):
        jobs = [a_job(key=str(n)) for n in range(300)]
        results = await asyncio.gather(*(store.write(New(job)) for job in jobs))
        assert results == [[job.id] for job in jobs]
        assert len(await store.states(ids(jobs))) == 300


async def test_a_write_of_more_than_a_transaction_is_still_one(url: str) -> None:
    async with opened(url) as (store, _):
        jobs = [a_job() for _ in range(2500)]
        await add(store, *jobs)
        assert len(await store.states(ids(jobs))) == 2500


async def test_cancelling_a_write_does_not_take_it_back(url: str) -> None:
    async with opened(url) as (store, _):
        job = a_job()
        writing = asyncio.ensure_future(store.write(New(job)))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await store.write(New(a_job()))
        assert same(await store.get(job.id), job)


async def test_closing_waits_for_writes(url: str) -> None:
    job = a_job()
    store = store_for(url)
    await store.open(HERE, LONG)
    writing = asyncio.ensure_future(store.write(New(job)))
    await asyncio.sleep(0)
    await store.close()
    assert await writing == [job.id]
    await store.close()
    async with opened(url) as (again, _):
        assert same(await again.get(job.id), job)


async def test_a_write_that_cannot_be_stored_does_not_fail_its_neighbours(url: str) -> None:
    async with opened(url) as (store, _):
        good, bad, other = a_job(), a_job(due=2**70), a_job()
        results = await asyncio.gather(
            *(store.write(New(job)) for job in (good, bad, other)), return_exceptions=True
        )
        assert results[0] == [good.id] and results[2] == [other.id]
        assert isinstance(results[1], LocalProtocolError)
        assert set(await store.states(ids([good, bad, other]))) == {good.id, other.id}


async def test_an_empty_write_is_nothing(url: str) -> None:
    async with opened(url) as (store, _):
        assert await store.write() == []


# -- keys


async def test_a_key_gives_the_job_that_has_it_also_in_one_batch(url: str) -> None:
    async with opened(url) as (store, _):
        first, second, third = (a_job(key="k") for _ in range(3))
        other = a_job(key="k", caller=BOB)
        results = await asyncio.gather(*(store.write(New(j)) for j in (first, second, other)))
        assert results == [[first.id], [first.id], [other.id]]
        assert await store.write(New(third)) == [first.id]
        assert set(await store.states(ids([first, second, third, other]))) == {first.id, other.id}


async def test_a_key_holds_after_a_restart_and_is_free_after_the_job_is_forgotten(
    url: str,
) -> None:
    first = a_job(key="k")
    async with opened(url) as (store, life):
        await add(store, replace(first, owner=life))
    async with opened(url) as (store, _):
        second = a_job(key="k")
        assert await store.write(New(second)) == [first.id]
        (found,) = await store.take_over()
        assert await store.write(Save(finish(found))) == [SAVED]
        assert await store.write(New(second)) == [first.id]
        assert await store.write(Forget(first.id)) == [True]
        assert await store.write(New(second)) == [second.id]


async def test_two_dispatchers_that_insert_one_key_at_once_make_one_job(url: str) -> None:
    async with opened(url) as (one, _), opened(url, THERE) as (two, _):
        for n in range(20):
            jobs = [a_job(key=f"{n}/{m}") for m in range(10)]
            twins = [replace(job, id=mint()) for job in reversed(jobs)]
            here, there = await asyncio.gather(
                one.write(*map(New, jobs)), two.write(*map(New, twins))
            )
            assert list(here) == list(reversed(there))


async def test_a_new_job_that_is_there_already_is_left_as_it_is(url: str) -> None:
    # Who is not told of his commit, because a connection broke, writes again.
    async with opened(url) as (store, _):
        job = a_job()
        await add(store, job)
        assert await store.write(New(replace(job, priority=3))) == [job.id]
        assert same(await store.get(job.id), job)


# -- fences


async def test_only_the_life_that_owns_a_job_saves_it(url: str) -> None:
    async with opened(url) as (one, mine), opened(url, THERE) as (two, yours):
        job = a_job(owner=mine)
        await add(one, job)
        assert await two.write(Save(replace(job, owner=yours, priority=1))) == [FENCED]
        job.move(Happening.BEGUN)
        assert await one.write(Save(job)) == [SAVED]
        assert same(await two.get(job.id), job)


async def test_a_job_that_nobody_owns_is_claimed_before_it_is_saved(url: str) -> None:
    async with opened(url) as (store, life):
        job = a_job()
        await add(store, job)
        assert await store.write(Save(replace(job, owner=life))) == [FENCED]
        (claimed,) = await store.claim(0, 0, 1, [job.id])
        assert claimed.owner == life
        assert await store.write(Save(replace(claimed, owner=None, due=50))) == [SAVED]
        found = await store.get(job.id)
        assert found is not None and (found.owner, found.due) == (None, 50)
        assert await store.write(Save(claimed)) == [FENCED]


async def test_a_job_that_is_not_there_is_not_saved(url: str) -> None:
    async with opened(url) as (store, life):
        assert await store.write(Save(a_job(owner=life))) == [FENCED]


async def test_final_is_final(url: str) -> None:
    async with opened(url) as (store, life):
        job = a_job(owner=life)
        await add(store, job)
        done = finish(job, value=1)
        assert await store.write(Save(done)) == [SAVED]
        for late in (
            finish(job, Happening.CANCELLED),
            finish(job, now=101),
            job,
        ):
            assert await store.write(Save(late)) == [FENCED]
        assert same(await store.get(job.id), done)


async def test_the_same_end_saved_again_is_no_other_end(url: str) -> None:
    # Who is not told of his commit, because a connection broke, writes again.
    async with opened(url) as (store, life):
        job, told = a_job(owner=life), a_job(op="/told")
        await add(store, job)
        done = finish(job, value=1)
        for _ in range(2):
            assert await store.write(Save(done), New(told)) == [SAVED, told.id]


async def test_a_write_happens_whole_or_not_at_all(url: str) -> None:
    async with opened(url) as (one, mine), opened(url, THERE) as (_, yours):
        ours, theirs, new = a_job(owner=mine), a_job(owner=yours), a_job(key="n")
        await add(one, ours, theirs)
        begun = replace(ours)
        begun.move(Happening.BEGUN)
        assert (
            await one.write(New(new), Save(begun), Save(theirs), Line(ours.id, 1, "info", "x"))
            == [FENCED] * 4
        )
        assert same(await one.get(ours.id), ours)
        assert await one.get(new.id) is None
        assert (await one.log(ours.id, 0, 9)).lines == []
        assert await one.write(New(replace(new, id=new.id)), Save(begun)) == [new.id, SAVED]


async def test_a_write_sees_those_before_it_in_its_batch(url: str) -> None:
    async with opened(url) as (store, life):
        job = a_job(owner=life)
        begun = replace(job, state=JobState.PROCESSING)
        done = finish(begun)
        changes: list[Change] = [New(job), Save(begun), Save(done), Save(begun)]
        results = await asyncio.gather(*map(store.write, changes))
        assert results == [[job.id], [SAVED], [SAVED], [FENCED]]
        assert same(await store.get(job.id), done)


# -- lives


async def test_jobs_of_a_life_that_is_over_are_taken_over_once(url: str) -> None:
    async with opened(url) as (one, mine), opened(url, THERE) as (two, yours):
        live = [a_job(owner=mine, priority=n) for n in range(3)]
        done, lone = a_job(owner=mine), a_job()
        await add(one, *live, done, lone)
        assert await one.write(Save(finish(done))) == [SAVED]
        peers = await two.renew()
        assert peers.addresses == {HERE, THERE} and not peers.orphans
        assert await two.take_over() == []

        await one.close()
        peers = await two.renew()
        assert peers.addresses == {THERE} and peers.orphans
        taken = await two.take_over()
        assert ids(taken) == ids(live[::-1])
        assert {job.owner for job in taken} == {yours}
        assert not (await two.renew()).orphans
        assert await two.take_over() == []
        assert await two.write(*(Save(finish(job)) for job in taken)) == [SAVED] * 3


async def test_a_dispatcher_that_starts_again_takes_what_its_former_life_had(url: str) -> None:
    async with opened(url) as (one, mine):
        job = a_job(owner=mine)
        await add(one, job)
        async with opened(url) as (again, life):
            assert life > mine
            assert ids(await again.take_over()) == [job.id]
            with pytest.raises(LifeOver):
                await one.write(Save(job))
            with pytest.raises(LifeOver):
                await one.get(job.id)
            with pytest.raises(LifeOver):
                await one.renew()


async def test_roles_are_told_to_the_others_and_outlive_who_told_them(url: str) -> None:
    async with opened(url) as (one, _), opened(url, THERE) as (two, _):
        assert (await two.renew()).roles == {}
        await one.share_roles({ALICE: "caller", BOB: "agent"})
        await one.share_roles({ALICE: "caller"})
        assert (await two.renew()).roles == {ALICE: "caller"}
        assert (await one.renew()).roles == {}, "we know our own"
        await two.share_roles({ALICE: "owner", BOB: "agent"})
        async with opened(url, "three@home.test/dispatcher") as (three, _):
            await one.close()
            # Of two who disagree the one whose address comes first.
            assert (await three.renew()).roles == {ALICE: "caller", BOB: "agent"}


async def test_who_owns_a_job_is_asked_to_stop_it(url: str) -> None:
    async with opened(url) as (one, mine), opened(url, THERE) as (two, yours):
        job, other, lone = a_job(owner=mine), a_job(owner=yours), a_job()
        await add(one, job, other, lone)
        for id in (job.id, job.id, other.id, lone.id, "nobody"):
            await two.ask_to_stop(id)
        assert await one.asked_to_stop() == [job.id]
        assert await two.asked_to_stop() == [other.id]

        assert await one.write(Save(finish(job))) == [SAVED]
        assert await one.asked_to_stop() == []
        await two.ask_to_stop(job.id)
        assert await one.asked_to_stop() == [], "it has ended"

        # Whoever takes it over is asked.
        await two.close()
        assert ids(await one.take_over()) == [other.id]
        assert await one.asked_to_stop() == [other.id]


async def test_a_lease_that_is_not_renewed_ends_and_its_holder_is_told(url: str) -> None:
    async with opened(url, lease=0.05) as (one, mine), opened(url, THERE) as (two, _):
        job = a_job(owner=mine)
        await add(one, job)

        async def orphaned() -> bool:
            return (await two.renew()).orphans

        await eventually(orphaned)
        assert ids(await two.take_over()) == [job.id]
        for what in (one.write(New(a_job())), one.claim(0, 0, 1), one.renew(), one.take_over()):
            with pytest.raises(LifeOver):
                await what
        assert await one.open(HERE, LONG) > mine
        assert await one.write(Save(job)) == [FENCED]


async def test_a_late_renewal_keeps_a_life_that_nobody_has_ended(url: str) -> None:
    async with opened(url, lease=0.01) as (one, mine), opened(url, THERE) as (two, _):
        job = a_job(owner=mine)
        await add(one, job)

        async def orphaned() -> bool:
            return (await two.renew()).orphans

        await eventually(orphaned)
        assert HERE in (await one.renew()).addresses
        assert await one.write(Save(finish(job))) == [SAVED]


async def test_without_handing_over_the_lease_runs_out_first(url: str) -> None:
    async with opened(url, THERE) as (two, _):
        one = store_for(url)
        await one.open(HERE, LONG)
        await one.close(hand_over=False)
        assert not (await two.renew()).orphans


async def test_two_that_take_over_at_once_share_what_there_is(url: str) -> None:
    async with AsyncExitStack() as stack:
        stores = [
            (await stack.enter_async_context(opened(url, f"{n}@home.test/d")))[0] for n in range(3)
        ]
        async with opened(url) as (dying, life):
            jobs = [a_job(owner=life) for _ in range(20)]
            await add(dying, *jobs)
        taken = await asyncio.gather(*(store.take_over() for store in stores))
        assert sorted(id for part in taken for id in ids(part)) == sorted(ids(jobs))


async def test_dispatchers_can_start_at_once_on_an_empty_store(url: str) -> None:
    stores = [store_for(url) for _ in range(4)]
    lives = await asyncio.gather(
        *(store.open(f"{n}@home.test/d", LONG) for n, store in enumerate(stores))
    )
    assert len(set(lives)) == 4
    assert len((await stores[0].renew()).addresses) == 4
    for store in stores:
        await store.close()


# -- claims


async def test_what_is_due_is_claimed_the_most_urgent_first(url: str) -> None:
    waiting = JobState.WAITING
    async with opened(url) as (store, life):
        now = a_job()
        urgent = a_job(priority=5)
        due = a_job(state=waiting, due=10, at=20)
        later = a_job(state=waiting, due=11, at=20)
        wall = a_job(state=waiting, due=10, at=21)
        held = a_job(state=waiting, held=True)
        owned = a_job(owner=life)
        over = a_job(state=waiting, held=True, ends=10, priority=-1)
        parent = a_job(state=JobState.PROCESSING, kind="map")
        everything = [now, urgent, due, later, wall, held, owned, over, parent]
        await add(store, *everything)
        assert ids(await store.claim(10, 20, 1)) == [urgent.id]
        claimed = await store.claim(10, 20, 100)
        assert ids(claimed) == [*sorted([now.id, due.id]), over.id]
        assert {job.owner for job in claimed} == {life}
        assert await store.claim(10, 20, 100) == []
        assert ids(await store.claim(11, 21, 100)) == sorted([later.id, wall.id])


async def test_a_job_is_claimed_by_its_id_whatever_it_waits_for(url: str) -> None:
    async with opened(url) as (store, life):
        held = a_job(state=JobState.WAITING, held=True, at=2**50)
        parent = a_job(state=JobState.PROCESSING, kind="map")
        owned, done = a_job(owner=life), a_job(owner=life)
        await add(store, held, parent, owned, done)
        await store.write(Save(replace(finish(done), owner=None)))
        wanted = ids([held, parent, owned, done])
        assert ids(await store.claim(0, 0, 9, wanted)) == sorted([held.id, parent.id])
        assert await store.claim(0, 0, 9, wanted) == []
        assert await store.claim(0, 0, 9, []) == []


async def test_two_that_claim_at_once_get_different_jobs(url: str) -> None:
    async with opened(url) as (one, _), opened(url, THERE) as (two, _):
        await add(one, *(a_job() for _ in range(40)))
        found: list[str] = []
        while True:
            parts = await asyncio.gather(one.claim(0, 0, 7), two.claim(0, 0, 7))
            if not any(parts):
                break
            found += [id for part in parts for id in ids(part)]
        assert len(found) == len(set(found)) == 40


async def test_what_is_due_next_is_known(url: str) -> None:
    async with opened(url) as (store, _):
        assert await store.next_due() is None
        await add(
            store,
            a_job(),
            a_job(state=JobState.WAITING, held=True),
            a_job(state=JobState.WAITING, due=5, at=90),
            a_job(state=JobState.WAITING, due=50, at=3),
        )
        assert await store.next_due() == (50, 3)


# -- limits


async def test_no_more_begin_than_a_limit_allows_at_once(url: str) -> None:
    async with opened(url) as (one, mine), opened(url, THERE) as (two, yours):
        await one.set_limit(Limit("/image/resize", concurrent=2))
        jobs = [a_job(owner=mine) for _ in range(3)] + [a_job(owner=yours)]
        parent = a_job(owner=mine, kind="map")
        free = a_job(owner=mine, op="/free")
        await add(one, *jobs, parent, free)
        for job in (*jobs, parent, free):
            job.move(Happening.BEGUN)
        assert await one.write(Save(parent, begins=True)) == [SAVED]
        assert await asyncio.gather(*(one.write(Save(job, True)) for job in jobs[:3])) == [
            [SAVED],
            [SAVED],
            [Wait(0.0)],
        ]
        assert await two.write(Save(jobs[3], True)) == [Wait(0.0)]
        assert await one.write(Save(free, True)) == [SAVED]
        left = await one.get(jobs[2].id)
        assert left is not None and left.state is JobState.QUEUED
        # One that processes already begins nothing; one that is silent still counts.
        jobs[0].move(Happening.SILENT)
        assert await one.write(Save(jobs[0], True)) == [SAVED]
        assert await two.write(Save(jobs[3], True)) == [Wait(0.0)]
        assert await one.write(Save(finish(jobs[0]))) == [SAVED]
        assert await two.write(Save(jobs[3], True)) == [SAVED]
        assert await one.write(Save(jobs[2], True)) == [Wait(0.0)]


async def test_no_more_begin_than_a_limit_allows_in_a_time(url: str) -> None:
    async with opened(url) as (store, life):
        await store.set_limit(Limit("/image/resize", rate=2, per=3600))
        jobs = [a_job(owner=life) for _ in range(3)]
        await add(store, *jobs)
        for job in jobs:
            job.move(Happening.BEGUN)
        first, second, third = await asyncio.gather(*(store.write(Save(job, True)) for job in jobs))
        assert (first, second) == ([SAVED], [SAVED])
        (wait,) = third
        assert isinstance(wait, Wait) and 1700 < wait.after <= 1800
        # The bucket is in the store, and not filled by a look at it.
        (again,) = await store.write(Save(jobs[2], True))
        assert isinstance(again, Wait) and again.after <= wait.after
        await store.set_limit(Limit("/image/resize", rate=1e6, per=1))
        assert await store.write(Save(jobs[2], True)) == [SAVED]


async def test_a_write_that_must_wait_does_nothing_at_all(url: str) -> None:
    async with opened(url) as (store, life):
        await store.set_limit(Limit("/image/resize", concurrent=1))
        one, two, new = a_job(owner=life), a_job(owner=life), a_job()
        await add(store, one, two)
        for job in (one, two):
            job.move(Happening.BEGUN)
        assert await store.write(Save(one, True), Save(two, True), New(new)) == [Wait(0.0)] * 3
        assert await store.get(new.id) is None
        assert await store.write(Save(one, True)) == [SAVED]


async def test_a_new_job_that_begins_at_once_is_bound_by_limits_like_any_other(url: str) -> None:
    async with opened(url) as (store, life):
        await store.set_limit(Limit("/image/resize", concurrent=2))
        first, second, third, fourth = (a_job(owner=life, key=f"k{n}") for n in range(4))
        for job in (first, second, third, fourth):
            job.move(Happening.BEGUN)
        # Together one more than there is room for: none of them.
        together = [New(first, True), New(second, True), New(third, True)]
        assert await store.write(*together) == [Wait(0.0)] * 3
        assert await store.get(first.id) is None
        assert await store.write(New(first, True), New(second, True)) == [first.id, second.id]
        there = await store.get(first.id)
        assert there is not None and there.state is JobState.PROCESSING
        assert await store.write(New(third, True)) == [Wait(0.0)]
        # One that is known takes no room.
        assert await store.write(New(replace(third, key="k0"), True)) == [first.id]
        assert await store.write(Save(finish(first))) == [SAVED]
        results = await asyncio.gather(*(store.write(New(job, True)) for job in (third, fourth)))
        assert results == [[third.id], [Wait(0.0)]]


async def test_what_is_posted_is_told_of_later_and_once(url: str) -> None:
    async with opened(url) as (store, life):
        told: list[Any] = []
        job, bad = a_job(owner=life), a_job(priority=2**70)
        store.post([New(job)], told.append)
        assert told == []
        store.post([New(bad)], told.append)
        store.post([Save(finish(job))], told.append)
        await eventually(lambda: len(told) == 3)
        assert told[0] == [job.id] and told[2] == [SAVED]
        assert isinstance(told[1], LocalProtocolError)
        with pytest.raises(LocalProtocolError):
            store.post([New(a_job(args={"x": object()}))], told.append)
    with pytest.raises(StoreError):
        store.post([New(a_job())], told.append)
    assert len(told) == 3


async def test_any_number_of_rows_is_written_and_found(url: str) -> None:
    async with opened(url) as (store, life):
        jobs = [a_job(owner=life, key=f"k{n}", labels=("x",), args={"n": n}) for n in range(300)]
        await add(store, *jobs)
        assert await store.write(*map(New, jobs)) == [job.id for job in jobs]
        ended = [finish(job, value=job.args["n"]) for job in jobs[:299]]
        assert await store.write(*map(Save, ended)) == [SAVED] * 299
        for job in (ended[0], ended[150], ended[298], jobs[299]):
            assert same(await store.get(job.id), job)
        assert len(await store.find(Filter(label="x"), 1000)) == 300


async def test_limits_are_kept_replaced_and_removed(url: str) -> None:
    async with opened(url) as (store, _):
        await store.set_limit(Limit("/b", rate=1.5, per=2.0))
        await store.set_limit(Limit("/a", concurrent=3))
        await store.set_limit(Limit("/b", concurrent=1))
        assert await store.limits() == [Limit("/a", concurrent=3), Limit("/b", concurrent=1)]
        assert await store.remove_limit("/a") is True
        assert await store.remove_limit("/a") is False
        assert await store.limits() == [Limit("/b", concurrent=1)]


# -- listings


async def test_jobs_are_found_newest_first_by_all_that_is_given(url: str) -> None:
    async with opened(url) as (store, life):
        jobs = [
            a_job(op="/image", labels=("red", "x%y"), key="k"),
            a_job(op="/image/resize", labels=("redder", "rEd")),
            a_job(op="/image/resize/fast", labels=("x_y",), caller=BOB),
            a_job(op="/images", labels=("xzy",), owner=life, parent="p", position=0),
        ]
        await add(store, *jobs)
        await store.write(Save(finish(jobs[3], Happening.FAILED)))
        order = sorted(ids(jobs), reverse=True)

        async def found(limit: int = 10, **which: Any) -> set[int]:
            return {ids(jobs).index(job.id) for job in await store.find(Filter(**which), limit)}

        assert ids(await store.find(Filter(), 10)) == order
        assert ids(await store.find(Filter(), 2)) == order[:2]
        assert ids(await store.find(Filter(before=order[1]), 10)) == order[2:]
        assert await found(caller=BOB) == {2}
        assert await found(label="red") == {0}
        assert await found(label="red*") == {0, 1}
        assert await found(label="*") == {0, 1, 2, 3}
        assert await found(label="x%*") == {0}
        assert await found(label="x_y") == {2}
        assert await found(label="R*") == set()
        assert await found(op="/image/resize") == {1}
        assert await found(op="/image/**") == {0, 1, 2}
        assert await found(op="/**") == {0, 1, 2, 3}
        assert await found(key="k") == {0}
        assert await found(parent="p") == {3}
        assert await found(states=frozenset({JobState.ERROR, JobState.DONE})) == {3}
        assert await found(dead=True) == {3}
        assert await found(dead=True, caller=BOB) == set()


async def test_listings_leave_out_arguments_and_values(url: str) -> None:
    async with opened(url) as (store, life):
        job = a_job(owner=life, args={"a": 1}, labels=("l",))
        await add(store, job)
        await store.write(Save(finish(job, value="big")))
        (found,) = await store.find(Filter(), 1)
        assert (found.args, found.value, found.labels, found.ended) == ({}, None, ("l",), 100)


async def test_children_are_given_whole_in_order(url: str) -> None:
    async with opened(url) as (store, life):
        parent = a_job(kind="map", state=JobState.PROCESSING)
        children = [
            a_job(parent=parent.id, position=n, owner=life, args={"n": n}) for n in (2, 0, 1)
        ]
        await add(store, parent, *children)
        await store.write(Save(finish(children[1], value="zero")))
        first, second = await store.children(parent.id, -1, 2)
        assert (first.position, first.value, second.position) == (0, "zero", 1)
        assert [job.position for job in await store.children(parent.id, 1, 9)] == [2]
        assert [
            job.position
            for job in await store.children(parent.id, -1, 9, frozenset({JobState.QUEUED}))
        ] == [1, 2]
        assert await store.count_children(parent.id) == {JobState.DONE: 1, JobState.QUEUED: 2}
        assert await store.count_children("none") == {}


async def test_dependents_are_held_jobs_that_come_after(url: str) -> None:
    async with opened(url) as (store, life):
        first, second = a_job(owner=life), a_job(owner=life)
        both = a_job(state=JobState.WAITING, held=True, after=(first.id, second.id))
        gone = a_job(state=JobState.WAITING, held=True, after=("gone",))
        free = a_job(state=JobState.WAITING, held=False, after=(first.id,))
        await add(store, first, second, both, gone, free)
        assert await store.dependents([first.id]) == [both.id]
        assert await store.dependents([first.id, second.id, "x"]) == [both.id]
        assert await store.dependents(["x"]) == []
        assert await store.dependents([]) == [gone.id]
        await store.write(Save(finish(first)))
        assert await store.dependents([]) == sorted([both.id, gone.id])


async def test_the_overview_counts_states_and_the_dead(url: str) -> None:
    async with opened(url) as (store, life):
        assert (await store.overview()).states == {}
        jobs = [a_job(owner=life) for _ in range(4)]
        await add(store, *jobs)
        await store.write(
            *(Save(finish(job, Happening.FAILED)) for job in jobs[:2]), Save(finish(jobs[2]))
        )
        view = await store.overview()
        assert view.states == {JobState.ERROR: 2, JobState.DONE: 1, JobState.QUEUED: 1}
        assert view.dead == 2
        assert await store.write(Look(jobs[0].id)) == [True]
        assert (await store.overview()).dead == 1


async def test_a_job_is_looked_at_once_and_only_if_it_is_dead(url: str) -> None:
    async with opened(url) as (store, life):
        job, done = a_job(owner=life), a_job(owner=life)
        await add(store, job, done)
        assert await store.write(Look(job.id), Look("none")) == [False, False]
        await store.write(Save(finish(job, Happening.FAILED)), Save(finish(done)))
        assert await store.write(Look(job.id), Look(job.id), Look(done.id)) == [True, False, False]
        assert await store.find(Filter(dead=True), 9) == []
        found = await store.get(job.id)
        assert found is not None and found.looked


async def test_only_ended_jobs_are_forgotten_with_all_they_had(url: str) -> None:
    async with opened(url) as (store, life):
        job = a_job(owner=life, labels=("l",), after=("x",))
        await add(store, job)
        await store.write(Line(job.id, 1, "info", "x"))
        assert await store.write(Forget(job.id), Forget("none")) == [False, False]
        await store.write(Save(finish(job)))
        assert await store.write(Forget(job.id), Forget(job.id)) == [True, False]
        assert await store.get(job.id) is None
        assert (await store.log(job.id, 0, 9)).lines == []
        assert await store.find(Filter(label="l"), 9) == []


# -- logs


async def test_lines_are_numbered_and_given_in_pages(url: str) -> None:
    async with opened(url) as (store, _):
        job = a_job()
        await add(store, job)
        results = await asyncio.gather(
            *(store.write(Line(job.id, n, "info", f"line {n}")) for n in range(1, 6))
        )
        assert results == [[n] for n in range(1, 6)]
        page = await store.log(job.id, 1, 2)
        assert [(line.seq, line.at, line.text) for line in page.lines] == [
            (2, 2, "line 2"),
            (3, 3, "line 3"),
        ]
        assert page.dropped == 0
        assert await store.write(Line("none", 1, "info", "x")) == [0]


async def test_of_a_log_that_is_too_long_the_rest_is_counted(url: str) -> None:
    async with opened(url, lines=3, log_size=10) as (store, _):
        many, long = a_job(), a_job()
        await add(store, many, long)
        assert await store.write(*(Line(many.id, 1, "info", "x") for _ in range(5))) == [
            1,
            2,
            3,
            0,
            0,
        ]
        # Nothing after a gap, though it would fit.
        assert await store.write(
            *(Line(long.id, 1, "info", text) for text in ("12345", "1234567", "1"))
        ) == [1, 0, 0]
        assert (await store.log(many.id, 0, 9)).dropped == 2
        assert (await store.log(long.id, 0, 9)).dropped == 2


# -- schedules


async def test_a_schedule_is_fired_by_one_of_two(url: str) -> None:
    schedule = Schedule(
        id="s",
        caller=ALICE,
        cron="* * * * *",
        zone="Europe/Berlin",
        submission={"op": "/a", "args": {"x": [1]}},
        created=1,
        next=60,
    )
    async with opened(url) as (one, _), opened(url, THERE) as (two, _):
        await one.add_schedule(schedule)
        await one.add_schedule(replace(schedule, id="r", next=30))
        assert await two.schedules() == [replace(schedule, id="r", next=30), schedule]
        jobs = [a_job(), a_job()]
        results = await asyncio.gather(
            one.write(Fire("s", 60, 120), New(jobs[0])), two.write(Fire("s", 60, 120), New(jobs[1]))
        )
        winner = 0 if results[0][0] is True else 1
        assert list(results[winner]) == [True, jobs[winner].id]
        assert list(results[1 - winner]) == [FENCED, FENCED]
        assert set(await one.states(ids(jobs))) == {jobs[winner].id}
        assert [found.next for found in await one.schedules()] == [30, 120]
        assert await one.remove_schedule("s") is True
        assert await one.remove_schedule("s") is False
        assert await one.write(Fire("s", 120, 180)) == [FENCED]


# -- services


def keep(service: Service, drop: bool = False) -> Keep:
    return Keep(record.written(service), drop)


async def services(store: Store, names: list[str]) -> list[Service]:
    return [record.read(one) for one in await store.records(record.KIND, names)]


def a_service(**members: Any) -> Service:
    asked: dict[str, Any] = {"name": "shop", "caller": ALICE, "created": 1, "since": 1}
    return Service(**asked | members)


async def test_a_service_is_read_as_it_was_written(url: str) -> None:
    service = a_service(
        arguments={"release": {"url": "https://example.org/ä.tar.gz"}, "port": "auto"},
        want={"place": {"site": "/eu"}, "tags": ["ssd"]},
        generation=3,
        state=State.UNPLACED,
        agent="one@home.test/agent",
        running=2,
        result={"port": 8080},
        ran=Asked(arguments={"port": 1}, want={}),
        ran_before=Asked(arguments={}, want={"tags": ["ssd"]}),
        epoch=2**40,
        left={"two@home.test/agent": 2},
        failures=1,
        due=2**40,
        history=(
            Placement(generation=2, job="j", began=5, why="by alice", agent="a", ended=6),
            Placement(generation=3, job="k", began=7, why="again", ended=8, problem="no room"),
        ),
    )
    async with opened(url) as (store, _):
        other = Record("pool", "mail", 0, {"size": 1})
        changes = keep(service), keep(a_service(name="mail")), Keep(other)
        assert await store.write(*changes) == [True, True, True]
        assert await store.versions("service") == {"mail": 1, "shop": 1}
        assert await store.versions("pool") == {"mail": 1}
        assert await services(store, ["shop", "none"]) == [replace(service, version=1)]
        assert [one.name for one in await services(store, ["shop", "mail"])] == ["mail", "shop"]
        assert await store.records("pool") == [replace(other, version=1)]
        assert [one.name for one in await store.records("service")] == ["mail", "shop"]


async def test_a_service_is_changed_and_dropped_by_who_knows_its_version(url: str) -> None:
    async with opened(url) as (store, _):
        await store.write(keep(a_service()))
        job = a_job()
        assert await store.write(keep(a_service()), New(job)) == [FENCED, FENCED]
        assert await store.write(keep(a_service(version=2)), New(job)) == [FENCED, FENCED]
        assert await store.get(job.id) is None
        moved = a_service(version=1, state=State.PLACED, agent="a")
        assert await store.write(keep(moved), New(job)) == [True, job.id]
        assert await services(store, ["shop"]) == [replace(moved, version=2)]
        assert await store.write(keep(moved, drop=True)) == [FENCED]
        assert await store.write(keep(replace(moved, version=2), drop=True)) == [True]
        assert await store.versions("service") == {}
        assert await store.write(keep(replace(moved, version=2))) == [FENCED]


@pytest.mark.parametrize("version", [0, 1], ids=["new", "known"])
async def test_one_of_two_who_place_a_service_at_once_makes_a_job(url: str, version: int) -> None:
    async with opened(url) as (one, _), opened(url, THERE) as (two, _):
        if version:
            await one.write(keep(a_service()))
        for _ in range(20):
            jobs = [a_job(), a_job()]
            service = a_service(version=version)
            results = await asyncio.gather(
                *(s.write(keep(service), New(j)) for s, j in zip((one, two), jobs, strict=True))
            )
            winner = 0 if results[0][0] is True else 1
            assert list(results[winner]) == [True, jobs[winner].id]
            assert list(results[1 - winner]) == [FENCED, FENCED]
            assert set(await one.states(ids(jobs))) == {jobs[winner].id}
            assert await two.versions("service") == {"shop": version + 1}
            if version:
                version += 1
            else:
                await one.write(keep(replace(service, version=1), drop=True))


async def test_a_service_that_no_file_can_hold_is_refused(url: str) -> None:
    async with opened(url) as (store, _):
        with pytest.raises(LocalProtocolError):
            await store.write(keep(a_service(result={"odd": object()})))
        assert await store.versions("service") == {}


# -- what dispatchers tell each other


async def test_a_job_of_another_is_asked_to_stop(url: str) -> None:
    async with opened(url) as (one, mine), opened(url, THERE) as (two, _):
        job, done = a_job(owner=mine), a_job(owner=mine)
        await add(one, job, done)
        await one.write(Save(finish(done)))
        for id in (job.id, job.id, done.id, "none"):
            await two.ask_to_stop(id)
        assert await two.asked_to_stop() == []
        assert await one.asked_to_stop() == [job.id]
        await one.write(Save(finish(job, Happening.CANCELLED)))
        assert await one.asked_to_stop() == []


async def test_roles_are_told_to_the_others(url: str) -> None:
    async with opened(url) as (one, _), opened(url, THERE) as (two, _):
        await one.share_roles({ALICE: "owner"})
        await one.share_roles({ALICE: "caller", BOB: "agent"})
        await two.share_roles({ALICE: "agent"})
        assert (await one.renew()).roles == {ALICE: "agent"}
        assert (await two.renew()).roles == {ALICE: "caller", BOB: "agent"}


# -- retention


async def ended(store: Store, life: int, *jobs: Job, at: int = 1000, value: Any = None) -> None:
    for n, job in enumerate(jobs):
        job.owner = life
        await store.write(New(job), Save(finish(job, now=at + n, value=value)))


async def test_jobs_that_ended_long_ago_are_pruned_and_live_ones_never(url: str) -> None:
    async with opened(url, age=10.0) as (store, life):
        old, live = [a_job() for _ in range(5)], a_job()
        await add(store, live)
        await ended(store, life, *old)
        assert await store.prune(11_001, most=1) == 1
        assert await store.prune(11_001) == 1
        assert await store.prune(11_001) == 0
        assert await store.prune(10**12, most=2) == 2
        assert await store.prune(10**12) == 1
        assert set(await store.states(ids([*old, live]))) == {live.id}


async def test_a_blob_that_expires_bounds_what_is_kept(url: str) -> None:
    blob = {"blob": {"url": "https://x/y", "sha256": "0" * 64, "size": 1}}
    async with opened(url, age=1000.0, blobs=10.0) as (store, life):
        with_blob, like_one, plain = a_job(), a_job(), a_job()
        await ended(store, life, with_blob, value=[{"deep": blob}])
        await ended(store, life, like_one, value={"blob": 1, "and": 2})
        await ended(store, life, plain)
        assert await store.prune(10_999) == 0
        assert await store.prune(11_000) == 1
        assert await store.get(with_blob.id) is None


async def test_the_oldest_go_when_there_are_too_many_or_they_are_too_big(url: str) -> None:
    async with opened(url, count=2) as (store, life):
        jobs = [a_job() for _ in range(5)]
        await ended(store, life, *jobs)
        assert await store.prune(2000) == 3
        assert set(await store.states(ids(jobs))) == set(ids(jobs[3:]))
    async with opened(url, size=1015) as (store, life):
        big = a_job(args={"x": "y" * 1000})
        await ended(store, life, big, at=5000)
        assert await store.prune(6000) == 2
        assert set(await store.states(ids([*jobs, big]))) == {big.id}


async def test_what_somebody_needs_is_not_pruned(url: str) -> None:
    async with opened(url, age=0.0) as (store, life):
        needed, parent, idle = a_job(), a_job(kind="map"), a_job(kind="map")
        child = a_job(parent=parent.id, position=0)
        ended_child = a_job(parent=idle.id, position=0)
        later = a_job(state=JobState.WAITING, held=True, after=(needed.id, ended_child.id))
        await add(store, later)
        # A live parent keeps its children, whatever they are.
        await add(store, replace(parent, owner=life, state=JobState.PROCESSING))
        await ended(store, life, needed, child, idle, ended_child)
        assert await store.prune(10**12) == 0
        (claimed,) = await store.claim(0, 0, 1, [later.id])
        await store.write(Save(finish(claimed, Happening.CANCELLED)))
        assert await store.prune(10**12) == 4
        assert set(await store.states(ids([needed, parent, idle, child, ended_child, later]))) == {
            parent.id,
            child.id,
        }


async def test_children_go_with_their_parent_in_slices(url: str) -> None:
    async with opened(url, age=100.0) as (store, life):
        parent = a_job(kind="map")
        children = [a_job(parent=parent.id, position=n) for n in range(10)]
        await ended(store, life, *children)
        await ended(store, life, parent, at=50_000)
        # The children are old enough, and their parent is not.
        assert await store.prune(140_000) == 0
        counts = [await store.prune(150_000, most=4) for _ in range(4)]
        assert counts == [4, 4, 3, 0]


# -- the store as a whole


async def test_a_store_of_a_newer_version_is_refused(url: str) -> None:
    async with opened(url):
        pass
    _newer(url)
    with pytest.raises(NotAStore, match="version 9999") as caught:
        await store_for(url).open(HERE, LONG)
    assert "\n" not in str(caught.value)


def _newer(url: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.execute("UPDATE alembic_version SET version_num = '9999'")
            file.commit()
    else:
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE spinal.alembic_version SET version_num = '9999'")


def test_an_unknown_kind_of_store_is_refused_in_one_line() -> None:
    for bad in ("mysql://x/y", "nonsense", "sqlite:///jobs.db", "sqlite://", ""):
        with pytest.raises(NotAStore) as caught:
            store_for(bad)
        assert "\n" not in str(caught.value)
