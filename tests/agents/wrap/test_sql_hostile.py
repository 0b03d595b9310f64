"""A thousand hostile arguments bound to statements, in a real PostgreSQL and in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from tests.agents.wrap import hostile
from tests.agents.wrap.world import Ops, ops
from tests.conftest import MISSING
from tests.postgres import available, postgres

from spinal.bus.blob import Blob
from spinal.bus.errors import CallError

SCHEMA = (
    "create table canary (value text)",
    "insert into canary values ('sings')",
    "create table kept (id integer primary key, value text, other text, data BYTES)",
)

MANIFEST = """
agent: database
slots: 2
ops:
  /echo:
    args: {value: , other: {}}
    effects: reads
    sql:
      url: "URL"
      query: "select CAST(:value AS text) as v, CAST(:other AS text) as o, ':value' || '; --' as fixed"
      one: true
  /find:
    args: {value: }
    effects: reads
    sql: {url: "URL", query: "select id, other from kept where value = :value order by id", rows: 5}
  /keep:
    args: {id: {type: integer}, value: , other: {}}
    sql:
      url: "URL"
      writes: true
      statements:
        - delete from kept where id = :id
        - insert into kept (id, value, other) values (:id, :value, :other)
  /data:
    args: {id: {type: integer}, value: {type: file}}
    sql:
      url: "URL"
      writes: true
      statements:
        - delete from kept where id = :id
        - insert into kept (id, data) values (:id, :value)
""".replace("':value' || ", "':' || 'value' || ")


@dataclass
class World:
    opened: Ops
    #: Asks the database itself.
    ask: Callable[[str, Any], list[Any]]
    #: Whether a text may hold NUL.
    nul: bool


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if (why := available()) is not None:
        pytest.skip(f"{MISSING} {why}")
    with postgres() as url:
        with psycopg.connect(url) as connection:
            for statement in SCHEMA:
                connection.execute(statement.replace("BYTES", "bytea").encode())
        yield url


@pytest_asyncio.fixture(params=["postgresql", "sqlite"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "postgresql":
        url: str = request.getfixturevalue("server")
        place = url.replace("postgresql://", "postgresql+psycopg://")

        def ask(statement: str, parameter: Any) -> list[Any]:
            with psycopg.connect(url) as connection:
                return connection.execute(statement.encode(), [parameter]).fetchall()
    else:
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as connection:
            for statement in SCHEMA:
                connection.execute(statement.replace("BYTES", "blob"))
        connection.close()
        place = f"sqlite:///{path.name}"

        def ask(statement: str, parameter: Any) -> list[Any]:
            connection = sqlite3.connect(path)
            try:
                return connection.execute(statement.replace("%s", "?"), [parameter]).fetchall()
            finally:
                connection.close()

    async with ops(tmp_path, MANIFEST.replace("URL", place)) as opened:
        yield World(opened, ask, request.param == "sqlite")


def _refused(exc: CallError, value: str, nul: bool) -> None:
    """Make sure that it was refused by name, and for a reason."""
    assert exc.problem.reason == "bad-arguments", (hostile.shown(value), exc)
    assert exc.problem.argument == "value"
    assert ("\0" in value and not nul) or not _is_text(value), hostile.shown(value)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


async def test_each_is_read_back_as_it_is_or_is_refused_by_name(world: World) -> None:
    passed = 0
    for value in hostile.texts():
        # What a row may weigh is another matter.
        short = len(value) < 8000
        try:
            if short:
                found = await world.opened.run("/echo", value=value, other="other")
                assert found == {"v": value, "o": "other", "fixed": ":value; --"}, hostile.shown(
                    value
                )
            assert await world.opened.run("/keep", id=1, value=value, other="other") == {"rows": 1}
            found = await world.opened.run("/find", value=value)
            assert found == [{"id": 1, "other": "other"}], hostile.shown(value)
        except CallError as exc:
            _refused(exc, value, world.nul)
            continue
        ((kept,),) = world.ask("select value from kept where id = %s", 1)
        assert kept == value, hostile.shown(value)
        passed += 1
    assert passed >= 850, passed
    assert world.ask("select value from canary where value <> %s", "") == [("sings",)]
    assert world.ask("select count(*) from kept where id <> %s", 0) == [(1,)]


async def test_each_content_of_a_file_is_kept_as_it_is(world: World) -> None:
    for data in hostile.binaries():
        assert await world.opened.run("/data", id=2, value=Blob.of(data)) == {"rows": 1}
        ((kept,),) = world.ask("select data from kept where id = %s", 2)
        assert bytes(kept) == data, hostile.shown(data)
    assert world.ask("select value from canary where value <> %s", "") == [("sings",)]


async def test_each_is_found_in_a_list(server: str, tmp_path: Path) -> None:
    text = """
agent: database
ops:
  /find:
    args: {values: {type: array}}
    effects: reads
    sql: {url: "URL", query: "select CAST(:values AS text[]) as v", one: value}
"""
    passed = 0
    place = server.replace("postgresql:", "postgresql+psycopg:")
    async with ops(tmp_path, text.replace("URL", place)) as opened:
        for value in hostile.texts():
            if len(value) > 8000:
                continue
            try:
                found = await opened.run("/find", values=["a", value, "b"])
            except CallError as exc:
                assert exc.problem.argument == "values", hostile.shown(value)
                continue
            assert found == ["a", value, "b"], hostile.shown(value)
            passed += 1
    assert passed >= 850, passed


async def test_what_is_no_text_is_refused_in_words(world: World) -> None:
    assert "lone surrogate" in await world.opened.refused("/find", value="\ud800")
    if not world.nul:
        assert "NUL" in await world.opened.refused("/find", value="a\0b")
