"""What is particular to PostgreSQL: a server that goes away and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from tests.postgres import Postgres, available, server

from spinal.dispatcher.jobs.job import Job, mint
from spinal.dispatcher.store import lane, store_for
from spinal.dispatcher.store.contract import New, NotAStore, StoreError
from spinal.testing import eventually

HERE = "one@home.test/d"


@pytest.fixture
def running() -> Iterator[Postgres]:
    reason = available()
    if reason is not None:
        pytest.skip(f"MISSING: {reason}")
    with server() as found:
        yield found


def a_job() -> Job:
    return Job(id=mint(), caller="a@home.test", op="/a", created=1)


async def test_a_server_that_was_killed_is_found_again(running: Postgres) -> None:
    store = store_for(running.url())
    await store.open(HERE, 1000.0)
    jobs = [a_job() for _ in range(3)]
    await store.write(New(jobs[0]))
    running.kill()
    for what in (store.write(New(jobs[1])), store.get(jobs[0].id), store.renew()):
        with pytest.raises(StoreError) as caught:
            await what
        assert "\n" not in str(caught.value)
    running.start()

    async def written() -> bool:
        try:
            return await store.write(New(jobs[2])) == [jobs[2].id]
        except StoreError:
            return False

    await eventually(written)
    assert set(await store.states([job.id for job in jobs])) == {jobs[0].id, jobs[2].id}
    await store.close()


async def test_a_restart_between_two_writes_is_not_noticed(running: Postgres) -> None:
    store = store_for(running.url())
    await store.open(HERE, 1000.0)
    first, second = a_job(), a_job()
    await store.write(New(first))
    running.stop()
    running.start()
    assert await store.write(New(second)) == [second.id]
    assert set(await store.states([first.id, second.id])) == {first.id, second.id}
    await store.close()


async def test_a_server_that_hangs_is_given_up(
    running: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_for(running.url())
    await store.open(HERE, 1000.0)
    job = a_job()
    monkeypatch.setattr(lane, "PATIENCE", 0.5)
    running.freeze()
    try:
        with pytest.raises(StoreError):
            await asyncio.wait_for(store.write(New(job)), 30)
    finally:
        running.thaw()
    assert await store.write(New(job)) == [job.id]
    await store.close()


async def test_no_server_is_said_in_one_line(running: Postgres) -> None:
    running.kill()
    with pytest.raises(StoreError, match="see that PostgreSQL runs") as caught:
        await store_for(running.url()).open(HERE, 10.0)
    assert "\n" not in str(caught.value)


async def test_a_database_that_is_not_there_is_said_in_one_line(running: Postgres) -> None:
    with pytest.raises(StoreError, match='"nowhere" does not exist') as caught:
        await store_for(running.url("nowhere")).open(HERE, 10.0)
    assert "\n" not in str(caught.value)


async def test_tables_of_another_program_are_refused(running: Postgres) -> None:
    with psycopg.connect(running.url()) as connection:
        connection.execute("CREATE SCHEMA spinal")
        connection.execute("CREATE TABLE spinal.jobs (id text)")
    with pytest.raises(NotAStore, match="another program"):
        await store_for(running.url()).open(HERE, 10.0)


async def test_a_password_is_not_in_what_is_said(running: Postgres) -> None:
    url = running.url("nowhere").replace("spinal@", "spinal:hush@")
    with pytest.raises(StoreError) as caught:
        await store_for(url).open(HERE, 10.0)
    assert "hush" not in str(caught.value)
