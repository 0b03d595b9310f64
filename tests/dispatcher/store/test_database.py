"""How writes gather, and what becomes of them when something is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from spinal.dispatcher.jobs.job import Job, mint
from spinal.dispatcher.store import database, store_for
from spinal.dispatcher.store.contract import New, Store, StoreError
from spinal.dispatcher.store.database import Database
from spinal.protocols import LocalProtocolError


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncGenerator[Store]:
    found = store_for(f"sqlite:///{tmp_path}/jobs.db")
    await found.open("one@home.test/d", 1000.0)
    yield found
    await found.close()


def a_job(**members: Any) -> Job:
    return Job(id=mint(), caller="a@home.test", op="/a", created=1, **members)


@pytest.fixture
def batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many writes each transaction had."""
    found: list[int] = []
    inner = cast(Database, store)
    commit = inner._commit  # pyright: ignore[reportPrivateUsage]

    def counted(writes: Any, connection: Any) -> Any:
        found.append(len(writes))
        return commit(writes, connection)

    monkeypatch.setattr(inner, "_commit", counted)
    return found


async def test_what_is_written_in_one_turn_shares_a_transaction(
    store: Store, batches: list[int]
) -> None:
    await asyncio.gather(*(store.write(New(a_job())) for _ in range(50)))
    assert batches == [50]


async def test_a_transaction_is_bounded(
    store: Store, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MOST", 4)
    await asyncio.gather(
        *(store.write(New(a_job())) for _ in range(6)),
        store.write(*(New(a_job()) for _ in range(9))),
        store.write(New(a_job())),
    )
    assert batches == [4, 2, 1, 1]


async def test_what_waits_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MAX_WAITING", 10)
    results = await asyncio.gather(
        *(store.write(New(a_job())) for _ in range(12)), return_exceptions=True
    )
    assert [isinstance(result, StoreError) for result in results] == [False] * 10 + [True] * 2
    # One write that is larger is for who asked for it to judge.
    assert len(await store.write(*(New(a_job()) for _ in range(20)))) == 20


@pytest.mark.parametrize("priority", [2**70, object(), "\ud800"])
async def test_a_value_that_no_database_takes_fails_alone(
    store: Store, batches: list[int], priority: Any
) -> None:
    jobs = [a_job(), a_job(priority=priority), a_job()]
    results = await asyncio.gather(*(store.write(New(job)) for job in jobs), return_exceptions=True)
    assert [isinstance(result, LocalProtocolError) for result in results] == [False, True, False]
    assert batches == [3, 1, 1, 1]


async def test_an_error_of_our_own_reaches_who_wrote_and_nobody_waits_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_commit", broken)
        with pytest.raises(KeyError):
            await store.write(New(a_job()))
    job = a_job()
    assert await store.write(New(job)) == [job.id]


async def test_nothing_begins_while_the_store_closes(store: Store) -> None:
    writing = [asyncio.ensure_future(store.write(New(a_job()))) for _ in range(3)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="not open"):
        await store.write(New(a_job()))
    await closing
    assert all([await one for one in writing])
