"""Statements for MySQL, against a real MariaDB."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import create_engine, text
from tests.agents.wrap import hostile
from tests.agents.wrap.world import Ops, mistakes, ops
from tests.conftest import MISSING
from tests.mariadb import MariaDb, available, server

from spinal.agents.errors import Refused, Retry
from spinal.agents.wrap.kinds.sql.statement import Statement
from spinal.bus.blob import Blob
from spinal.bus.errors import CallError
from spinal.testing import eventually

MANIFEST = r"""
agent: shop
slots: 2
ops:
  /echo:
    args: {value: , other: {}}
    effects: reads
    sql: {url: "URL", query: "select :value as v, :other as o, '\\':x' as fixed # :y ; '", one: true}
  /keep:
    args: {value: , other: {}}
    sql:
      url: "URL"
      writes: true
      statements: ["delete from kept", "insert into kept (value, other) values (:value, :other)"]
  /find:
    args: {value: }
    effects: reads
    sql: {url: "URL", query: "select other from kept where value = binary :value", rows: 5}
  /data:
    args: {value: {type: file}}
    sql:
      url: "URL"
      writes: true
      statements: ["delete from kept", "insert into kept (data) values (:value)"]
  /short: {args: {value: }, sql: {url: "URL", writes: true, query: "insert into short values (:value)"}}
  /types:
    effects: reads
    sql:
      url: "URL"
      one: true
      query: >
        select 1 as small, 9007199254740993 as large, 1.50 as price, null as nothing,
        date '2026-02-03' as day, timestamp '2026-02-03 04:05:06' as at, x'ff00' as bytes
  /count:
    args: {n: {type: integer}}
    effects: reads
    sql: {url: "URL", query: "select seq from seq_1_to_100000 where seq <= :n", rows: 250}
  /sly: {effects: reads, sql: {url: "URL", query: "select nextval(counter)"}}
  /sleep: {effects: reads, sql: {url: "URL", query: "select sleep(600), 'marker'"}}
  /wrong: {effects: reads, sql: {url: "URL", query: "select geheim from nowhere"}}
"""

Ask = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def maria() -> Iterator[MariaDb]:
    if (why := available()) is not None:
        pytest.skip(f"{MISSING} {why}")
    with server() as running:
        engine = create_engine(running.url("mysql"))
        with engine.begin() as connection:
            for statement in (
                "create database shop character set utf8mb4",
                "create table shop.canary (value text)",
                "insert into shop.canary values ('sings')",
                "create table shop.kept (value longtext, other text, data longblob)",
                "create table shop.short (value varchar(3) unique)",
                "create sequence shop.counter",
            ):
                connection.execute(text(statement))
        engine.dispose()
        yield running


@pytest.fixture
def ask(maria: MariaDb) -> Iterator[Ask]:
    engine = create_engine(maria.url())

    def asked(statement: str) -> list[Any]:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement))]

    yield asked
    engine.dispose()


@pytest_asyncio.fixture
async def shop(maria: MariaDb, tmp_path: Path) -> AsyncIterator[Ops]:
    async with ops(tmp_path, MANIFEST.replace("URL", maria.url())) as opened:
        yield opened


async def failure(opened: Ops, op: str, **args: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await opened.run(op, **args)
    return caught.value


async def test_each_hostile_one_is_read_back_as_it_is_or_is_refused_by_name(
    shop: Ops, ask: Ask
) -> None:
    passed = 0
    for value in hostile.texts():
        try:
            if len(value) < 8000:
                found = await shop.run("/echo", value=value, other="other")
                assert found == {"v": value, "o": "other", "fixed": "':x"}, hostile.shown(value)
            assert await shop.run("/keep", value=value, other="other") == {"rows": 1}
            found = await shop.run("/find", value=value)
            assert found == [{"other": "other"}], hostile.shown(value)
        except CallError as exc:
            assert exc.problem.argument == "value", (hostile.shown(value), exc)
            continue
        assert ask("select value from kept") == [(value,)], hostile.shown(value)
        passed += 1
    assert passed >= 950, passed
    assert ask("select value from canary") == [("sings",)]


async def test_each_hostile_content_of_a_file_is_kept_as_it_is(shop: Ops, ask: Ask) -> None:
    for data in hostile.binaries():
        assert await shop.run("/data", value=Blob.of(data)) == {"rows": 1}
        assert ask("select data from kept") == [(data,)], hostile.shown(data)


async def test_each_type_has_its_form_in_json(shop: Ops) -> None:
    assert await shop.run("/types") == {
        "small": 1,
        "large": "9007199254740993",
        "price": "1.50",
        "nothing": None,
        "day": "2026-02-03",
        "at": "2026-02-03T04:05:06",
        "bytes": "/wA=",
    }


async def test_rows_are_bounded_in_the_database(shop: Ops) -> None:
    assert len(await shop.run("/count", n=250)) == 250
    assert (await failure(shop, "/count", n=100_000)).problem.reason == "too-large"


async def test_the_database_keeps_it_from_writing_and_from_shortening(shop: Ops) -> None:
    assert "READ ONLY transaction: write writes: true" in str(await failure(shop, "/sly"))
    assert await shop.run("/short", value="one") == {"rows": 1}
    with pytest.raises(Refused, match="Data too long for column 'value'"):
        await shop.run("/short", value="four")
    with pytest.raises(Refused, match="Duplicate entry 'one'"):
        await shop.run("/short", value="one")
    assert str(await failure(shop, "/wrong")) == "Table 'shop.nowhere' doesn't exist"


async def test_cancelled_or_late_the_statement_ends_in_the_database(shop: Ops, ask: Ask) -> None:
    def sleepers() -> int:
        return len(ask("select id from information_schema.processlist where state = 'User sleep'"))

    task = asyncio.create_task(shop.run("/sleep"))
    await eventually(lambda: sleepers() == 1)
    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 3
    await eventually(lambda: sleepers() == 0)

    shop.remaining = 0.5
    assert (await failure(shop, "/sleep")).problem.reason == "deadline"
    assert sleepers() == 0


async def test_a_server_that_does_not_answer_is_let_go(shop: Ops, maria: MariaDb) -> None:
    assert await shop.run("/count", n=1) == [{"seq": 1}]
    maria.freeze()
    try:
        task = asyncio.create_task(shop.run("/count", n=1))
        done, _ = await asyncio.wait((task,), timeout=0.5)
        assert not done
        begun = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begun < 12
    finally:
        maria.thaw()


async def test_connections_that_broke_meanwhile_are_made_anew_once(
    shop: Ops, maria: MariaDb
) -> None:
    assert await shop.run("/count", n=1)
    maria.kill()
    with pytest.raises(Retry, match="cannot be reached"):
        await shop.run("/count", n=1)
    await asyncio.to_thread(maria.start)
    assert await shop.run("/keep", value="a", other="b") == {"rows": 1}


def test_its_texts_and_comments_are_its_own() -> None:
    found = Statement.of(r"""select '\':a', "\":b" # :c '""" + "\n, :name", ("name",), mysql=True)

    assert found.names == ("name",)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql+mysqldb://a@127.0.0.1/b", "write mysql+pymysql://"),
        ("mysql+pymysql://a@127.0.0.1/b?local_infile=1", "local_infile is not known here"),
        ("mysql+pymysql://a:geheim@127.0.0.1/b", "a password stands here by reference"),
    ],
)
def test_a_mistake_in_its_url_is_told(tmp_path: Path, url: str, words: str) -> None:
    found = mistakes(tmp_path, f"agent: a\nops:\n  /a:\n    sql: {{url: '{url}', query: select 1}}")

    assert words in found[0] and found[0].startswith("4: ops./a.sql.url: ")
