"""What becomes of jobs: everybody may die, and every job ends, with no effect done twice.

The wire and the clock are virtual; the store is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from spinal.agents import Job as Running
from spinal.agents import Refused
from spinal.bus.errors import CallError
from spinal.bus.jobs import Job
from spinal.dispatcher.agent import LEASE
from spinal.dispatcher.jobs.keeper import CANCEL
from spinal.dispatcher.store.contract import Change, New, Save, Told
from spinal.dispatcher.store.database import Database
from spinal.protocols import Final
from spinal.testing import Faults, eventually, virtual_time

from .conftest import DISPATCHER, QUICK, READ, WRITE, Worker, World, counted, world


@asynccontextmanager
async def jobs(folder: Path, faults: Faults | None = None) -> AsyncGenerator[World]:
    """A world whose dispatcher takes jobs."""
    async with world(file=folder / "jobs.db", faults=faults) as home:
        yield home


async def restart(home: World) -> None:
    """Kill the dispatcher, as a power cut would, and start another life of it."""
    home.bus.kill(DISPATCHER)
    await home.dispatch()


async def problem_of(job: Job) -> Any:
    with pytest.raises(CallError) as caught:
        await job.result()
    assert "\n" not in str(caught.value)
    return caught.value.problem


def runs(home: World, op: str) -> int:
    return counted(home.ledger, lambda effect: effect.op).get(op, 0)


async def begun(worker: Worker, count: int = 1) -> None:
    await eventually(lambda: len(worker.running) == count, what=f"{count} run")


# -- what is written


@virtual_time
async def test_a_job_whose_agent_is_free_is_written_twice_and_no_task_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        written = writes(monkeypatch)

        submitted = [await home.client.submit(READ, n=n) for n in range(2)]
        await begun(worker, 2)

        tasks = {task.get_name() for task in asyncio.all_tasks()}
        assert not tasks & {f"job {job.id}" for job in submitted}
        worker.free.set()
        assert [await job.result() for job in submitted] == [[worker.name, 0], [worker.name, 1]]
        assert written == {job.id: ["New", "Save"] for job in submitted}


def writes(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What is written of each job from now on."""
    found: dict[str, list[str]] = {}
    post = Database.post

    def noted(store: Database, changes: Sequence[Change], told: Told) -> None:
        for change in changes:
            if isinstance(change, New | Save):
                found.setdefault(change.job.id, []).append(type(change).__name__)
        post(store, changes, told)

    monkeypatch.setattr(Database, "post", noted)
    return found


@virtual_time
async def test_a_known_key_begins_nothing_and_takes_no_slot(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker(slots=2)
        keyed = home.client.options(key="once")

        first, second, third = await asyncio.gather(*(keyed.submit(READ, n=n) for n in range(3)))
        await begun(worker)
        assert first.id == second.id == third.id
        other = await home.client.submit(READ, n=9)
        await begun(worker, 2)

        worker.free.set()
        assert await other.result() == [worker.name, 9]
        assert runs(home, READ) == 2


@virtual_time
async def test_a_job_that_begins_at_once_heeds_a_limit_that_its_dispatcher_has_not_heard_of(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker(slots=8)
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as file, file:
            file.execute("INSERT INTO limits VALUES (?, NULL, 1.0, 1, 1.0, 0)", [READ])

        submitted = [await home.client.submit(READ, n=n) for n in range(3)]
        await begun(worker)
        await asyncio.sleep(30)
        assert len(worker.running) == 1

        worker.free.set()
        assert len([await job.result() for job in submitted]) == 3
        assert runs(home, READ) == 3


@virtual_time
async def test_a_job_that_is_cancelled_while_its_end_is_written_stays_done(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(READ, n=1)
        await begun(worker)
        cancelled = asyncio.ensure_future(job.cancel())
        worker.free.set()

        assert await cancelled in ("done", "killed")
        assert (await job.info())["state"] == await cancelled
        assert await home.client.job(job.id).cancel() == await cancelled


# -- an end, whoever dies


@virtual_time
async def test_a_job_is_done_by_an_agent_and_its_row_says_so(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker(free=True)

        job = await home.client.submit(QUICK, n=7)

        assert await job.result() == [worker.name, 7]
        row = await job.info()
        assert (row["state"], row["attempt"], row["agent"]) == ("done", 1, worker.address)
        assert row["attempts"][0]["end"] == "done"


@virtual_time
async def test_a_job_waits_for_an_agent_that_offers_its_operation(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        job = await home.client.submit(QUICK, n=1)
        assert job.row["offered"] is False
        await asyncio.sleep(600)

        worker = await home.worker(free=True)

        assert await job.result() == [worker.name, 1]


@virtual_time
async def test_a_job_that_nobody_can_do_ends_at_its_deadline(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        began = home.now
        job = await home.client.options(deadline="1h").submit(QUICK)

        problem = await problem_of(job)

        assert problem.reason == "no-agent"
        assert 3590 <= home.now - began <= 3620


@virtual_time
async def test_a_safe_job_of_an_agent_that_dies_ends_elsewhere_within_two_seconds(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        first = await home.worker("agent1")
        job = await home.client.submit(READ, n=1)
        await begun(first)
        await home.worker("agent2", free=True)

        home.bus.kill(first.address)
        died = home.now

        assert await job.result() == ["agent2", 1]
        assert home.now - died <= 2.0
        tries = (await job.info())["attempts"]
        assert [item["end"] for item in tries] == ["lost", "done"]


@virtual_time
async def test_an_unsafe_job_of_an_agent_that_dies_is_dead_after_the_lease_and_never_repeated(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        first = await home.worker("agent1")
        job = await home.client.submit(WRITE, n=1)
        await begun(first)
        await home.worker("agent2", free=True)

        home.bus.kill(first.address)
        died = home.now
        problem = await problem_of(job)

        assert problem.reason == "lost" and "may have been done" in problem.text
        assert home.now - died <= LEASE + 6
        dead = await home.client.ask_dispatcher("/spinal/dead/list")
        assert [row["id"] for row in dead["items"]] == [job.id]
        await asyncio.sleep(300)
        assert runs(home, WRITE) == 1


@virtual_time
async def test_an_unsafe_job_whose_caller_allows_it_runs_elsewhere(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        first = await home.worker("agent1")
        job = await home.client.options(rerun=True).submit(WRITE, n=1)
        await begun(first)
        await home.worker("agent2", free=True)

        home.bus.kill(first.address)

        assert await job.result() == ["agent2", 1]


@virtual_time
@pytest.mark.parametrize("op", [READ, WRITE])
async def test_what_an_agent_does_goes_on_while_the_dispatcher_is_restarted(
    op: str, tmp_path: Path
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(op, n=1)
        await begun(worker)

        await restart(home)
        await asyncio.sleep(60)
        worker.free.set()

        assert await job.result() == [worker.name, 1]
        assert runs(home, op) == 1


@virtual_time
@pytest.mark.parametrize("op", [READ, WRITE])
async def test_a_result_that_came_while_there_was_no_dispatcher_is_not_lost(
    op: str, tmp_path: Path
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(op, n=1)
        await begun(worker)

        home.bus.kill(DISPATCHER)
        assert home.dispatcher.keeper is not None
        await home.dispatcher.keeper.close()  # Else it would think on, cut off, for a minute.
        worker.free.set()
        await asyncio.sleep(60)
        assert worker.life.session.kept == 1
        await home.dispatch()

        assert await job.result() == [worker.name, 1]
        assert runs(home, op) == 1
        await eventually(lambda: worker.life.session.kept == 0, what="the final is acknowledged")


@virtual_time
async def test_jobs_that_were_queued_run_after_a_restart_each_once(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker(slots=2)
        submitted = [await home.client.submit(WRITE, n=n) for n in range(20)]
        await begun(worker, 2)

        await restart(home)
        worker.free.set()

        assert [await job.result() for job in submitted] == [[worker.name, n] for n in range(20)]
        assert runs(home, WRITE) == 20


@virtual_time
async def test_an_unsafe_job_is_lost_when_agent_and_dispatcher_are_restarted_together(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        safe, unsafe = await home.client.submit(READ), await home.client.submit(WRITE)
        await begun(worker, 2)

        home.bus.kill(worker.address)
        await restart(home)
        again = await home.worker(free=True)

        assert (await problem_of(unsafe)).reason == "lost"
        assert await safe.result() == [again.name, 0]
        assert runs(home, WRITE) == 1


@virtual_time
async def test_an_unsafe_job_whose_agent_dies_before_it_is_asked_again_is_lost_and_not_moved(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker("agent1")
        job = await home.client.submit(WRITE)
        await begun(worker)
        await home.worker("agent2", free=True)
        home.bus.faults = Faults(
            delay=(2.0, 2.0),
            applies=lambda stanza: stanza.kind == "iq" and stanza.to == worker.address,
        )
        await restart(home)
        await eventually(lambda: worker.address in home.dispatcher.registry)

        home.bus.kill(worker.address)

        assert (await problem_of(job)).reason == "lost"
        assert runs(home, WRITE) == 1


@virtual_time
async def test_three_agents_lost_on_one_job_end_it(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        job = await home.client.submit(READ)
        for number in range(3):
            worker = await home.worker(f"agent{number}")
            await begun(worker)
            home.bus.kill(worker.address)

        problem = await problem_of(job)

        assert problem.reason == "lost" and problem.text.startswith("3 agents were lost")


@virtual_time
async def test_a_job_of_an_agent_that_is_silent_is_stalled_until_it_is_heard_again(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(WRITE)
        await begun(worker)

        home.bus.cut(worker.address)
        await eventually(lambda: not home.knows(worker))
        assert (await job.info())["state"] == "stalled"
        await eventually(lambda: home.knows(worker))

        assert (await job.info())["state"] == "processing"
        worker.free.set()
        assert await job.result() == [worker.name, 0]


# -- once


@virtual_time
async def test_the_same_key_gives_the_same_job_also_after_a_restart(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker(free=True)
        keyed = home.client.options(key="photo-1")
        first = await keyed.submit(WRITE, n=1)
        second = await keyed.submit(WRITE, n=1)
        await first.result()
        await restart(home)
        await eventually(lambda: home.knows(worker))

        third = await keyed.submit(WRITE, n=1)

        assert first.id == second.id == third.id
        assert await third.result() == [worker.name, 1]
        assert runs(home, WRITE) == 1


@virtual_time
async def test_another_caller_has_keys_of_its_own(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        await home.worker(free=True)
        other = await home.caller("caller2")

        mine = await home.client.options(key="k").submit(QUICK)
        theirs = await other.options(key="k").submit(QUICK)

        assert mine.id != theirs.id
        with pytest.raises(CallError, match=theirs.id) as caught:
            await home.client.job(theirs.id).info()
        assert caught.value.reason == "unknown-job"


@virtual_time
@pytest.mark.parametrize("seed", range(12))
async def test_a_wire_that_loses_doubles_and_delays_makes_nothing_happen_twice(
    seed: int, tmp_path: Path
) -> None:
    faults = Faults(drop=0.1, duplicate=0.15, delay=(0.0, 2.0), reorder=True)
    async with world(seed, file=tmp_path / "jobs.db") as home:
        workers = [await home.worker(f"agent{n}", free=True) for n in range(3)]
        home.bus.faults = faults
        submitted = [
            await home.client.options(key=f"k{n}", timeout=600).submit(
                WRITE if n % 2 else READ, n=n
            )
            for n in range(20)
        ]
        await restart(home)
        home.bus.kill(workers[0].address)
        await asyncio.sleep(30)
        home.bus.faults = Faults()

        rows = [await job.wait() for job in submitted]

        assert {row["state"] for row in rows} <= {"done", "error"}
        assert len({row["id"] for row in rows}) == 20
        effects = counted(home.ledger, lambda effect: (effect.op, effect.n))
        assert [key for key, times in effects.items() if key[0] == WRITE and times > 1] == []
        for n, row in enumerate(rows):
            assert row["state"] == "done" or row["problem"]["reason"] == "lost", row
            assert row["state"] == "done" or n % 2, "a safe job is never lost"


# -- retries


async def flaky(home: World, failures: int, name: str = "agent1", **declared: Any) -> list[float]:
    """An agent whose operation /flaky fails so often; gives the times at which it was run."""
    times: list[float] = []

    worker = Worker(name, home.ledger)
    agent = worker.agent((), slots=2)

    async def work(job: Running) -> int:
        """Fail at first."""
        times.append(home.now)
        if len(times) <= failures:
            raise RuntimeError("not yet")
        return len(times)

    agent.op("/flaky", **declared)(work)
    await home.add(worker, agent)
    return times


@virtual_time
async def test_a_job_that_fails_is_tried_again_as_often_as_it_asks(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        times = await flaky(home, 2)

        job = await home.client.options(retry=3).submit("/flaky")

        assert await job.result() == 3
        assert len(times) == 3
        assert [item["end"] for item in (await job.info())["attempts"]] == [
            "failed",
            "failed",
            "done",
        ]


@virtual_time
async def test_an_operation_may_say_how_often_it_is_tried(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        times = await flaky(home, 9, retry=2)

        problem = await problem_of(await home.client.submit("/flaky"))

        assert problem.reason == "failed" and "not yet" in problem.text
        assert len(times) == 3


@virtual_time
async def test_a_retry_waits_on_disk_through_a_restart(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        times = await flaky(home, 1)
        retry = {"count": 1, "backoff": 600, "most": 600}
        job = await home.client.options(retry=retry).submit("/flaky")
        await eventually(lambda: len(times) == 1)
        await asyncio.sleep(1)

        await restart(home)

        assert await job.result() == 2


@virtual_time
async def test_a_dead_job_is_retried_as_a_new_one_that_names_it(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        await flaky(home, 1)
        job = await home.client.submit("/flaky")
        await problem_of(job)

        again = await job.retry()

        assert await again.result() == 2
        assert (await again.info())["origin"] == f"retry:{job.id}"
        assert (await job.info())["state"] == "error"
        assert (await home.client.ask_dispatcher("/spinal/dead/list"))["items"] == []


@virtual_time
async def test_all_dead_jobs_are_retried_or_deleted_at_once(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        await flaky(home, 4)
        dead = [await home.client.submit("/flaky") for _ in range(4)]
        for job in dead:
            await problem_of(job)

        gone = await home.client.ask_dispatcher("/spinal/dead/delete", ids=[dead[0].id])
        again = await home.client.ask_dispatcher("/spinal/dead/retry", all=True)

        assert gone == {"jobs": [{"id": dead[0].id}]}
        assert {item["id"] for item in again["jobs"]} == {job.id for job in dead[1:]}
        for item in again["jobs"]:
            await home.client.job(item["new"]).result()
        with pytest.raises(CallError, match="there is no job"):
            await dead[0].info()


# -- cancel


@virtual_time
async def test_a_running_job_is_stopped_and_killed(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(WRITE, n=1)
        await begun(worker)

        assert await job.cancel() == "killed"

        assert worker.stopped == [1]
        assert (await problem_of(job)).reason == "cancelled"
        assert await job.cancel() == "killed"


@virtual_time
async def test_a_job_of_an_agent_that_does_not_answer_is_killed_all_the_same(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(WRITE, n=1)
        await begun(worker)
        home.bus.faults = Faults(
            drop=1.0, applies=lambda stanza: worker.address in (stanza.to, stanza.sender)
        )
        asked = home.now

        assert await job.cancel() == "killed"

        assert home.now - asked <= CANCEL + 6
        assert "did not say that it stopped" in (await problem_of(job)).text


@virtual_time
@pytest.mark.parametrize("options", [{}, {"delay": "10m"}])
async def test_a_job_that_has_not_begun_is_killed_at_once(
    options: dict[str, Any], tmp_path: Path
) -> None:
    async with jobs(tmp_path) as home:
        job = await home.client.options(**options).submit(QUICK)

        assert await job.cancel() == "killed"

        await home.worker(free=True)
        await asyncio.sleep(1200)
        assert home.ledger == []


@virtual_time
async def test_a_job_that_is_done_stays_done(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        await home.worker(free=True)
        job = await home.client.submit(QUICK)
        await job.result()

        assert await job.cancel() == "done"


@virtual_time
async def test_a_job_ends_when_its_one_attempt_may_run_no_longer(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        began = home.now
        job = await home.client.options(max_run=5).submit(READ, n=1)

        problem = await problem_of(job)

        assert problem.reason == "deadline"
        assert 5 <= home.now - began <= 6
        await eventually(lambda: worker.stopped == [1])


# -- time


@virtual_time
async def test_a_delayed_job_runs_after_its_delay_also_through_a_restart(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker(free=True)
        began = home.now
        job = await home.client.options(delay="10m").submit(QUICK)
        assert job.row["state"] == "waiting"
        await restart(home)
        await eventually(lambda: home.knows(worker))

        await job.result()

        assert 599 <= home.now - began <= 602


@virtual_time
async def test_the_most_urgent_of_the_waiting_goes_first(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker(slots=1)
        await home.client.submit(READ, n=0)
        await begun(worker)
        for n, priority in enumerate((0, -3, 5), start=1):
            await home.client.options(priority=priority).submit(WRITE, n=n)

        worker.free.set()

        await eventually(lambda: len(worker.begun(WRITE)) == 3)
        assert worker.begun(WRITE) == [3, 1, 2]


# -- relatives


@virtual_time
async def test_a_job_runs_after_those_that_it_names(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        first, second = await home.client.submit(READ, n=1), await home.client.submit(READ, n=2)
        last = await home.client.options(after=[first, second]).submit(QUICK, n=3)
        await begun(worker, 2)
        await asyncio.sleep(100)
        assert (await last.info())["held"] is True

        worker.free.set()

        assert await last.result() == [worker.name, 3]


@virtual_time
async def test_a_job_that_comes_after_one_that_ended_before_runs_at_once(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        await home.worker(free=True)
        first = await home.client.submit(QUICK, n=1)
        await first.result()

        last = await home.client.options(after=first).submit(QUICK, n=2)

        began = home.now
        await last.result()
        assert home.now - began < 2


@virtual_time
async def test_a_job_whose_forerunner_fails_fails_too_unless_it_wants_any_end(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        await home.worker(free=True)
        await flaky(home, 99, "agent2")
        bad = await home.client.submit("/flaky")
        strict = await home.client.options(after=bad).submit(QUICK)
        chained = await home.client.options(after=strict).submit(QUICK)
        lenient = await home.client.options(after=bad, when="ended").submit(QUICK)

        for job in (strict, chained):
            assert (await problem_of(job)).reason == "dependency"
        assert await lenient.result() == ["agent1", 0]


@virtual_time
async def test_dependents_of_what_ended_before_a_crash_run_after_it(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        first = await home.client.submit(READ, n=1)
        last = await home.client.options(after=first).submit(QUICK, n=2)
        await begun(worker)
        await restart(home)
        worker.free.set()
        await first.result()
        await restart(home)

        assert await last.result() == [worker.name, 2]


@virtual_time
async def test_a_durable_map_is_a_parent_with_children(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        await home.worker(free=True)
        durable = home.client.options(durable=True)

        mapped = await durable.start_map(QUICK, over=[{"n": n} for n in range(30)])
        results = [item.value[1] async for item in mapped]

        assert sorted(results) == list(range(30))
        parent = await home.client.job(mapped.id).wait()
        assert (parent["state"], parent["value"]) == ("done", {"done": 30})
        rows = [row async for row in home.client.jobs(parent=mapped.id)]
        assert len(rows) == 30


@virtual_time
async def test_all_goes_to_everybody_and_ends_with_one_row_each(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        for number in range(3):
            await home.worker(f"agent{number}", free=True)

        job = await home.client.options(policy="all").submit(QUICK, n=1)

        rows = await job.result()
        assert sorted(row["value"][0] for row in rows) == ["agent0", "agent1", "agent2"]
        assert {row["state"] for row in rows} == {"done"}


@virtual_time
async def test_any_first_ends_with_the_first_value_and_stops_the_others(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        slow = [await home.worker(f"agent{number}") for number in range(2)]
        job = await home.client.options(policy="any-first").submit(READ, n=1)
        for worker in slow:
            await begun(worker)

        slow[1].free.set()

        assert await job.result() == ["agent1", 1]
        await eventually(lambda: slow[0].stopped == [1])


@virtual_time
async def test_cancelling_a_parent_stops_its_children(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        workers = [await home.worker(f"agent{number}") for number in range(2)]
        job = await home.client.options(policy="all").submit(WRITE, n=1)
        for worker in workers:
            await begun(worker)

        assert await job.cancel() == "killed"

        await eventually(lambda: all(worker.stopped == [1] for worker in workers))


@virtual_time
async def test_an_operation_is_told_of_the_end_of_a_job(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        told: list[Any] = []
        worker = Worker("agent9", home.ledger)
        agent = worker.agent(())

        async def tell(job: dict[str, Any]) -> None:
            """Take it down."""
            told.append(job)

        agent.op("/told")(tell)
        await home.add(worker, agent)
        await home.worker(free=True)
        await flaky(home, 99, "agent2")
        chosen = home.client.options(on_done="/told", on_error="/told")

        done, bad = await chosen.submit(QUICK, n=1), await chosen.submit("/flaky")

        await eventually(lambda: len(told) == 2)
        by_id = {item["id"]: item for item in told}
        assert by_id[done.id]["value"] == ["agent1", 1]
        assert by_id[bad.id]["problem"]["reason"] == "failed"


# -- limits


@virtual_time
async def test_an_operation_runs_no_more_often_at_once_than_its_limit(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        owner = await home.caller("owner")
        await owner.ask_dispatcher("/spinal/limits/set", op=READ, concurrent=2)
        worker = await home.worker(slots=8)
        submitted = [await home.client.submit(READ, n=n) for n in range(6)]
        await begun(worker, 2)
        await asyncio.sleep(30)
        assert len(worker.running) == 2

        worker.free.set()

        assert len([await job.result() for job in submitted]) == 6


# -- news


@virtual_time
async def test_who_watches_a_job_sees_its_states_progress_and_log(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = Worker("agent1", home.ledger)
        agent = worker.agent(())

        async def work(job: Running) -> str:
            """Say how far it is."""
            job.progress(1, 2, "half")
            job.log("hello")
            await asyncio.sleep(5)
            raise Refused("no")

        agent.op("/talk")(work)
        job = await home.client.submit("/talk")
        seen = asyncio.create_task(_collect(job))
        await asyncio.sleep(1)
        await home.add(worker, agent)

        updates = await seen

        states = [update.state for update in updates if update.row is not None]
        assert states[0] == "queued" and states[-1] == "error"
        assert "processing" in states
        assert [update.log.text for update in updates if update.log] == ["hello"]
        assert [update.progress.note for update in updates if update.progress] == ["half"]


async def _collect(job: Job) -> list[Any]:
    return [update async for update in job.watch()]


# -- schedules


@virtual_time
async def test_a_cron_line_that_cannot_be_is_refused(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        for line in ("nonsense", "0 0 30 2 *"):
            with pytest.raises(CallError) as caught:
                await home.client.ask_dispatcher(
                    "/spinal/schedules/add", cron=line, submission={"op": QUICK}
                )
            assert caught.value.reason == "bad-arguments"


# -- nobody is left running


@virtual_time
async def test_what_was_cancelled_while_the_dispatcher_restarted_is_stopped(tmp_path: Path) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(WRITE, n=1)
        await begun(worker)
        await restart(home)

        assert await job.cancel() == "killed"

        await eventually(lambda: worker.stopped == [1])


@virtual_time
async def test_what_was_cancelled_while_its_agent_was_away_is_stopped_once_it_is_back(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(WRITE, n=1)
        await begun(worker)
        home.bus.faults = Faults(
            drop=1.0, applies=lambda stanza: worker.address in (stanza.to, stanza.sender)
        )
        # A former life asked for it, so that no call of this one can be cancelled.
        await restart(home)
        assert await job.cancel() == "killed"

        home.bus.faults = Faults()

        # With its next report.
        await eventually(lambda: worker.stopped == [1], 7)


@virtual_time
async def test_an_agent_that_comes_back_with_what_was_given_up_is_told_to_stop(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(WRITE, n=1)
        await begun(worker)
        home.bus.faults = Faults(
            drop=1.0, applies=lambda stanza: worker.address in (stanza.to, stanza.sender)
        )
        assert (await problem_of(job)).reason == "lost"

        home.bus.faults = Faults()

        await eventually(lambda: worker.stopped == [1])
        assert (await job.info())["state"] == "error"


# -- callers that give up


@virtual_time
@pytest.mark.parametrize("seed", range(10))
async def test_a_caller_that_gives_up_half_way_leaves_no_job_without_an_end(
    seed: int, tmp_path: Path
) -> None:
    async with world(seed, file=tmp_path / "jobs.db") as home:
        await home.worker(free=True)
        draw = Random(seed)
        home.bus.faults = Faults(delay=(0.0, 0.02))

        async def submit_and_cancel(number: int) -> None:
            keyed = home.client.options(key=f"k{number}", deadline="1m")
            with contextlib.suppress(TimeoutError, CallError):
                async with asyncio.timeout(draw.uniform(0.0, 0.05)):
                    job = await keyed.submit(READ, n=number)
            job = await keyed.submit(READ, n=number)
            if number % 2:
                with contextlib.suppress(TimeoutError, CallError):
                    async with asyncio.timeout(draw.uniform(0.0, 0.05)):
                        await job.cancel()
            await job.wait(90)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(submit_and_cancel(number))

        rows = [row async for row in home.client.jobs()]
        assert len(rows) == 20
        assert {row["state"] for row in rows} <= {"done", "killed"}


# -- agents that lie


@virtual_time
async def test_an_agent_that_answers_for_a_job_that_it_does_not_hold_is_not_believed(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker, liar = await home.worker("agent1"), await home.worker("agent2", ops=(QUICK,))
        job = await home.client.submit(WRITE, n=1)
        await begun(worker)

        for attempt in (1, 2):
            liar.life.session.say(DISPATCHER, Final(job.id, attempt, value="forged"))
        await restart(home)
        await eventually(lambda: home.knows(liar))
        liar.life.session.say(DISPATCHER, Final(job.id, 1, value="forged"))
        await asyncio.sleep(30)
        assert (await job.info())["state"] == "processing"

        worker.free.set()
        assert await job.result() == [worker.name, 1]


# -- a server that hangs


@virtual_time
async def test_while_the_server_passes_nothing_on_no_agent_is_held_to_be_lost(
    tmp_path: Path,
) -> None:
    async with jobs(tmp_path) as home:
        worker = await home.worker()
        job = await home.client.submit(WRITE, n=1)
        await begun(worker)

        home.bus.faults = Faults(drop=1.0)
        await asyncio.sleep(90)
        home.bus.faults = Faults()
        worker.free.set()

        assert await job.result() == [worker.name, 1]
        assert runs(home, WRITE) == 1
