from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import make_url
from tests.agents.wrap.world import Ops, manifest, mistakes, ops
from tests.conftest import MISSING
from tests.postgres import Postgres, available, server

from spinal.agents.errors import Refused, Retry
from spinal.agents.wrap.kinds.sql.database import DATABASES
from spinal.bus.errors import CallError
from spinal.testing import eventually

OP = """\
agent: shop
ops:
  /op:
    args: {name: , id: {type: integer}, ids: {type: array}, doc: {type: object}}
    effects: reads
    sql:
"""


def op(**keys: str) -> str:
    """Write a manifest with an operation that has these keys; some take others away."""
    said = {"url": "postgresql+psycopg://app@127.0.0.1/shop", "query": '"select :name"', **keys}
    return OP + "".join(f"      {key}: {value}\n" for key, value in said.items() if value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (op(url="postgresql+psycopg://app:geheim@127.0.0.1/shop"),
         "7: ops./op.sql.url: a password stands here by reference"),
        (op(url="postgresql+psycopg://app@h/shop?password=geheim"), "7: ops./op.sql.url: a password"),
        (op(url='"postgresql+psycopg://app@{name}/shop"'),
         "7: ops./op.sql.url: a database cannot come from an argument: write it out"),
        (op(url="127.0.0.1"), "7: ops./op.sql.url: is no URL of a database: write for example"),
        (op(url="oracle://app@127.0.0.1/shop"),
         "7: ops./op.sql.url: oracle is not known here: write postgresql+psycopg://, mysql+pymysql://"),
        (op(url="postgresql+asyncpg://app@127.0.0.1/shop"), "write postgresql+psycopg://"),
        (op(url="postgresql+psycopg://app@db/shop?sslmode=require"),
         "7: ops./op.sql.url: sslmode=require verifies no certificate: write sslmode=verify-full"),
        (op(url='"sqlite://"'), "names no file: write sqlite:////var/lib/shop.db"),
        (op(url='"sqlite:///shop.db?mode=rw"'), "takes nothing after '?'"),
        (op(url='"sqlite:///shop.db"', password="{env: A}"),
         "9: ops./op.sql.password: SQLite has no passwords: leave it out"),
        (op(password="geheim"), "9: ops./op.sql.password: 'geheim': a secret stands here by reference"),
        (op(url=""), "6: ops./op.sql: 'url' is missing: write url: postgresql+psycopg://"),
        (op(query=""), "6: ops./op.sql: asks nothing; write for example query: select 1 as one"),
        (op(statements='["select 1"]'), "6: ops./op.sql: has query and statements: keep one"),
        (op(query='"select {name}"'),
         "8: ops./op.sql.query: an argument is bound and not filled in: write :name in place of"),
        (op(query="\"select '{name}'\""), "{name} in quotes is a text and no argument: write :name"),
        (op(query="\"select ':name'\""), ":name in quotes is a text and no argument: write :name"),
        (op(query="\"select '%:name%'\""), ":name in quotes is a text and no argument"),
        (op(query='"select %s"'), "8: ops./op.sql.query: %s: an argument is bound by its name"),
        (op(query='"select $1"'), "$1: an argument is bound by its name: write :name"),
        (op(query='"select :nmae"'),
         "8: ops./op.sql.query: :nmae is no argument of this operation (it has name, id, ids, doc)"),
        (op(query='"select :name; select 2"'),
         "8: ops./op.sql.query: has a second statement after ';': write statements: [..., ...]"),
        (op(query="\"select 'a\""), "8: ops./op.sql.query: ' is opened and never closed"),
        (op(query='" -- a"'), "8: ops./op.sql.query: is empty"),
        (op(query='"delete from a where b = :name"'),
         "8: ops./op.sql.query: delete does more than read: write writes: true beside it"),
        (op(query='"commit"'), "commit: the transaction is begun and ended for you: leave it out"),
        (op(query='"set role admin"'), "set: the session is shared with other calls: leave it out"),
        (op(query='"pragma query_only = off"'), "pragma: the session is shared"),
        (op(query='"attach :name as a"', writes="true"), "attach: is not done here"),
        (op(writes="true"),
         "5: ops./op.effects: reads is not what it does, with sql.writes: write effects: writes"),
        (op(query='"select :doc"'), ":doc is of type object, which this database cannot take"),
        (op(url='"sqlite:///a.db"', query='"select :ids"'), ":ids is of type array"),
        (op(one="true", rows="5"), "10: ops./op.sql.rows: goes with a list"),
        (op(one="yes"), "9: ops./op.sql.one: 'yes' is none of false, true, 'row', 'value'"),
        (op(rows="0"), "9: ops./op.sql.rows: 0 must be at least 1: write for example rows: 100"),
        (op(queries="1"), "9: ops./op.sql.queries: is not known here: did you mean 'query'?"),
        (op(query='"select 1"', statements=""), "4: ops./op.args.name: is not used"),
        (op(query="", statements='["select 1", "select {id}"]'),
         "8: ops./op.sql.statements.1: an argument is bound and not filled in: write :id"),
        (OP.replace("effects: reads", "output: csv") + '      {url: "sqlite:///a", query: select 1}',
         "5: ops./op.output: rows come as JSON: leave it out"),
    ],
)  # fmt: skip
def test_a_mistake_has_a_line_a_key_and_what_to_write(
    tmp_path: Path, text: str, words: str
) -> None:
    found = mistakes(tmp_path, text)

    assert any(words in one for one in found), found
    assert not any("geheim" in one for one in found if "by reference" not in one)


def test_what_is_missing_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    found = manifest(
        tmp_path,
        "agent: a\nops:\n  /a:\n    sql: {url: 'sqlite:///none.db', query: select 1}\n"
        "  /b:\n    sql:\n      url: postgresql+psycopg://a@127.0.0.1/b\n"
        "      password: {env: NOT_THERE}\n      query: select 1\n",
    )

    said = [str(one) for one in found.missing()]

    assert "manifest.yaml:4: ops./a.sql.url: there is no file" in said[0]
    assert "manifest.yaml:8: ops./b.sql.password: the secret {env: NOT_THERE} is not set" in said[1]


# -- PostgreSQL

POSTGRES = """
agent: shop
slots: 3
ops:
  /types:
    effects: reads
    sql:
      url: "URL"
      one: true
      query: >
        select 1 as small, 9007199254740993 as large, 1.50::numeric as price, 0.5::float as half,
        true as yes, null as nothing, date '2026-02-03' as day,
        timestamptz '2026-02-03 04:05:06+00' as at, interval '1 day 2 hours' as took,
        '\\xff00'::bytea as bytes, array[1, 2] as list, '{"a": [1.5]}'::jsonb as doc,
        '6a2f41a3-c54c-fce8-32d2-0324e1c32e22'::uuid as id, inet '10.0.0.1/8' as net
  /nan: {effects: reads, sql: {url: "URL", query: "select 'NaN'::float as x"}}
  /odd: {effects: reads, sql: {url: "URL", query: "select int4range(1, 2) as x"}}
  /double: {effects: reads, sql: {url: "URL", query: "select 1 as x, 2 as x"}}
  /count:
    args: {n: {type: integer}}
    effects: reads
    sql: {url: "URL", query: "select x from generate_series(1, :n) as x", rows: 250}
  /cut:
    args: {n: {type: integer}}
    effects: reads
    sql: {url: "URL", query: "select x from generate_series(1, :n) as x", rows: 3, cut: true}
  /wide: {effects: reads, sql: {url: "URL", query: "select repeat('x', 1000) as x from generate_series(1, 50)"}}
  /endless: {effects: reads, sql: {url: "URL", query: "select repeat('x', 100000) from generate_series(1, 100000)"}}
  /value:
    args: {n: {type: integer}}
    effects: reads
    sql: {url: "URL", query: "select x from generate_series(1, :n) as x", one: value, empty: nobody is here}
  /sly: {effects: reads, sql: {url: "URL", query: "with a as (insert into kept values ('sly') returning value) select * from a"}}
  /slyer: {effects: reads, sql: {url: "URL", query: "select nextval('counter')"}}
  /put:
    args: {value: {max_length: 100}}
    sql: {url: "URL", writes: true, query: "insert into kept values (:value)"}
  /both:
    args: {value: }
    sql:
      url: "URL"
      writes: true
      statements: ["insert into kept values (:value)", "insert into kept values (:value)"]
  /back:
    args: {value: }
    sql: {url: "URL", writes: true, query: "insert into kept values (:value) returning value", one: value}
  /any:
    args: {ids: {type: array}}
    effects: reads
    sql: {url: "URL", query: "select x from generate_series(1, 9) as x where x = any(:ids)"}
  /number: {args: {text: }, effects: reads, sql: {url: "URL", query: "select CAST(:text AS integer) as x"}}
  /wrong: {effects: reads, sql: {url: "URL", query: "select geheim from nowhere"}}
  /sleep: {effects: reads, sql: {url: "URL", query: "select pg_sleep(600)"}}
  /nap: {effects: reads, sql: {url: "URL", query: "select 7 as n from pg_sleep(0.02)", one: value}}
  /pid: {effects: reads, sql: {url: "URL", query: "select pg_backend_pid() as pid", one: value}}
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    if (why := available()) is not None:
        pytest.skip(f"{MISSING} {why}")
    with server() as running:
        with psycopg.connect(running.url()) as connection:
            connection.execute("create table kept (value text unique)")
            connection.execute("create sequence counter")
        yield running


@pytest_asyncio.fixture
async def shop(postgres: Postgres, tmp_path: Path) -> AsyncIterator[Ops]:
    url = postgres.url().replace("postgresql:", "postgresql+psycopg:")
    async with ops(tmp_path, POSTGRES.replace("URL", url)) as opened:
        yield opened


async def failure(opened: Ops, op: str, **args: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await opened.run(op, **args)
    return caught.value


async def test_each_type_has_its_form_in_json(shop: Ops) -> None:
    assert await shop.run("/types") == {
        "small": 1,
        "large": "9007199254740993",
        "price": "1.50",
        "half": 0.5,
        "yes": True,
        "nothing": None,
        "day": "2026-02-03",
        "at": "2026-02-03T04:05:06Z",
        "took": "P1DT7200S",
        "bytes": "/wA=",
        "list": [1, 2],
        "doc": {"a": [1.5]},
        "id": "6a2f41a3-c54c-fce8-32d2-0324e1c32e22",
        "net": "10.0.0.1/8",
    }


async def test_what_has_no_form_in_json_is_told_by_its_column(shop: Ops) -> None:
    assert "column x has nan" in str(await failure(shop, "/nan"))
    assert "column x has a Range" in str(await failure(shop, "/odd"))
    assert "two columns are named x" in str(await failure(shop, "/double"))


async def test_rows_are_bounded_by_number_and_by_size(shop: Ops) -> None:
    assert len(await shop.run("/count", n=250)) == 250
    problem = (await failure(shop, "/count", n=251)).problem
    assert (problem.reason, problem.text) == (
        "too-large",
        "there are more than 250 rows (sql: rows)",
    )
    assert await shop.run("/cut", n=5) == [{"x": 1}, {"x": 2}, {"x": 3}]
    assert (await failure(shop, "/wide")).problem.reason == "too-large"
    # Ten gigabytes stay where they are.
    assert (await failure(shop, "/endless")).problem.reason == "too-large"


async def test_one_is_one(shop: Ops) -> None:
    assert await shop.run("/value", n=1) == 1
    with pytest.raises(Refused, match="nobody is here"):
        await shop.run("/value", n=0)
    assert "more than one row" in str(await failure(shop, "/value", n=2))


async def test_what_does_not_say_that_it_writes_is_kept_from_it_by_the_database(
    shop: Ops, postgres: Postgres
) -> None:
    assert "data-modifying statements" in str(await failure(shop, "/sly"))
    error = await failure(shop, "/slyer")
    assert str(error) == (
        "cannot execute nextval() in a read-only transaction: write writes: true if it may"
    )
    with psycopg.connect(postgres.url()) as connection:
        assert connection.execute("select * from kept where value = 'sly'").fetchall() == []


async def test_writes_are_all_or_nothing(shop: Ops, postgres: Postgres) -> None:
    assert await shop.run("/put", value="one") == {"rows": 1}
    assert await shop.run("/back", value="two") == "two"
    with pytest.raises(Refused, match="duplicate key value"):
        await shop.run("/both", value="three")
    with psycopg.connect(postgres.url()) as connection:
        kept = connection.execute("select value from kept order by value").fetchall()
    assert kept == [("one",), ("two",)]


async def test_a_list_is_bound_as_one(shop: Ops) -> None:
    assert await shop.run("/any", ids=[2, 5]) == [{"x": 2}, {"x": 5}]
    assert "only a list of texts and numbers" in await shop.refused("/any", ids=[{"a": 1}])


async def test_errors_are_one_line_without_the_statement(shop: Ops) -> None:
    with pytest.raises(Refused) as caught:
        await shop.run("/number", text="three")
    assert str(caught.value) == 'invalid input syntax for type integer: "three"'
    error = await failure(shop, "/wrong")
    assert error.problem.text == 'relation "nowhere" does not exist'


def sleepers(postgres: Postgres) -> int:
    with psycopg.connect(postgres.url()) as connection:
        found = connection.execute(
            "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
        ).fetchone()
    assert found is not None
    return int(found[0])


async def test_cancelled_the_statement_ends_in_the_database(shop: Ops, postgres: Postgres) -> None:
    task = asyncio.create_task(shop.run("/sleep"))
    await eventually(lambda: sleepers(postgres) == 1)

    task.cancel()
    begun = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert time.monotonic() - begun < 3
    assert sleepers(postgres) == 0
    assert await shop.run("/count", n=1) == [{"x": 1}]


async def test_a_cancelled_call_ends_no_other_one(shop: Ops) -> None:
    chance = random.Random(6)
    for _ in range(40):
        tasks = [asyncio.create_task(shop.run("/nap")) for _ in range(6)]
        cancelled = chance.sample(tasks, 3)
        await asyncio.wait(tasks, timeout=chance.uniform(0.0, 0.06))
        for task in cancelled:
            task.cancel()
        for task in tasks:
            if task not in cancelled:
                assert await task == 7
        await asyncio.wait(tasks)


def test_a_cursor_is_closed_even_if_its_connection_breaks_just_then(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = make_url(postgres.url().replace("postgresql:", "postgresql+psycopg:"))
    database = DATABASES["postgresql"](url, None, False, 1, tmp_path)
    engine = database.engine()
    raw = engine.raw_connection()
    cursor = raw.cursor("some")
    cursor.execute("select 1")

    database.sever(raw.driver_connection)
    with pytest.raises(psycopg.OperationalError):
        cursor.close()

    # Else it would be told as left open, at any time later.
    assert cursor.closed
    raw.invalidate()
    engine.dispose()


async def test_the_database_ends_a_statement_when_the_time_is_up(
    shop: Ops, postgres: Postgres
) -> None:
    shop.remaining = 0.5
    error = await failure(shop, "/sleep")

    assert error.problem.reason == "deadline"
    assert sleepers(postgres) == 0


async def test_a_database_that_does_not_answer_is_let_go(shop: Ops, postgres: Postgres) -> None:
    assert await shop.run("/count", n=1)
    postgres.freeze()
    try:
        task = asyncio.create_task(shop.run("/count", n=1))
        done, _ = await asyncio.wait((task,), timeout=0.5)
        assert not done

        begun = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begun < 8
    finally:
        postgres.thaw()


async def test_nothing_waits_for_a_silent_database_at_the_end(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.url().replace("postgresql:", "postgresql+psycopg:")
    async with ops(tmp_path, POSTGRES.replace("URL", url)) as opened:
        assert await opened.run("/count", n=1)
        task = asyncio.create_task(opened.run("/sleep"))
        await eventually(lambda: sleepers(postgres) == 1)
        postgres.freeze()
    try:
        with pytest.raises((Retry, CallError)):
            await task
        await eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("sql")])
    finally:
        postgres.thaw()


async def test_connections_that_broke_meanwhile_are_made_anew_once(
    shop: Ops, postgres: Postgres
) -> None:
    first = await shop.run("/pid")
    assert await shop.run("/pid") == first
    await asyncio.to_thread(postgres.kill)
    with pytest.raises(Retry, match="cannot be reached"):
        await shop.run("/pid")
    await asyncio.to_thread(postgres.start)

    assert await shop.run("/put", value="after") == {"rows": 1}
    assert await shop.run("/pid") != first
    # One whose connection is from before.
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(shop.run("/pid"))
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.start)
    assert await shop.run("/pid") is not None


async def test_a_password_is_read_when_it_is_needed(postgres: Postgres, tmp_path: Path) -> None:
    with psycopg.connect(postgres.url()) as connection:
        connection.execute("create role ann login password 'geheim'")
    (tmp_path / "password").write_text("geheim\n")
    url = postgres.url().replace("postgresql://spinal@", "postgresql+psycopg://ann@")
    text = f"""
agent: shop
ops:
  /who:
    effects: reads
    sql: {{url: "{url}", password: {{file: password}}, query: select current_user as who, one: value}}
"""
    async with ops(tmp_path, text) as opened:
        assert await opened.run("/who") == "ann"


# -- SQLite

SQLITE = """
agent: shop
slots: 2
ops:
  /all: {effects: reads, sql: {url: "sqlite:///shop.db", query: "select * from kept"}}
  /sly: {effects: reads, sql: {url: "sqlite:///shop.db", query: "with a as (select 1) insert into kept select 2"}}
  /put: {args: {value: }, sql: {url: "sqlite:///shop.db", writes: true, query: "insert into kept values (:value)"}}
  /both:
    args: {value: }
    sql:
      url: "sqlite:///shop.db"
      writes: true
      statements: ["insert into kept values (:value)", "insert into kept values (:value)"]
  /endless:
    effects: reads
    sql:
      url: "sqlite:///shop.db"
      query: "with recursive n(x) as (select 1 union all select x + 1 from n) select max(x) from n"
  /number: {args: {n: {type: integer}}, effects: reads, sql: {url: "sqlite:///shop.db", query: "select :n as n", one: value}}
  /huge: {effects: reads, sql: {url: "sqlite:///shop.db", query: "select zeroblob(1000000000)"}}
"""


@pytest_asyncio.fixture
async def file(tmp_path: Path) -> AsyncIterator[tuple[Ops, Path]]:
    path = tmp_path / "shop.db"
    connection = sqlite3.connect(path)
    connection.execute("create table kept (value text unique)")
    connection.close()
    async with ops(tmp_path, SQLITE) as opened:
        yield opened, path


async def test_sqlite_is_kept_from_writing_and_writes_all_or_nothing(
    file: tuple[Ops, Path],
) -> None:
    opened, _ = file
    assert "readonly database: write writes: true" in str(await failure(opened, "/sly"))
    with pytest.raises(Refused, match="UNIQUE constraint failed"):
        await opened.run("/both", value="three")
    assert await opened.run("/all") == []
    assert await opened.run("/put", value="one") == {"rows": 1}
    assert await opened.run("/all") == [{"value": "one"}]


async def test_sqlite_is_interrupted(file: tuple[Ops, Path]) -> None:
    opened, _ = file
    task = asyncio.create_task(opened.run("/endless"))
    done, _ = await asyncio.wait((task,), timeout=0.3)
    assert not done

    begun = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - begun < 2
    assert await opened.run("/all") == []


async def test_sqlite_that_somebody_else_writes_is_tried_again_later(
    file: tuple[Ops, Path],
) -> None:
    opened, path = file
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("begin immediate")
        with pytest.raises(Retry, match="locked"):
            await opened.run("/put", value="one")
    finally:
        other.close()
    assert await opened.run("/put", value="one") == {"rows": 1}


async def test_sqlite_has_numbers_of_64_bits_and_values_of_16_megabytes(
    file: tuple[Ops, Path],
) -> None:
    opened, _ = file
    assert await opened.run("/number", n=2**53 + 1) == str(2**53 + 1)
    assert "more than 64 bits" in await opened.refused("/number", n=2**63)
    with pytest.raises(Refused, match="too big"):
        await opened.run("/huge")
