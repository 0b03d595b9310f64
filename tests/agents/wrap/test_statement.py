from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg

from spinal.agents.wrap.kinds.sql.statement import Statement

#: It is not typed.
DIALECT: Any = psycopg.dialect()  # type: ignore[no-untyped-call]
ARGUMENTS = ("name", "id", "n")


def compiled(said: str) -> tuple[str, set[str]]:
    found = text(Statement.of(said, ARGUMENTS).text).compile(dialect=DIALECT)
    return str(found), set(found.params)


@pytest.mark.parametrize(
    ("said", "written", "names"),
    [
        ("select :id", "select %(id)s", {"id"}),
        ("select a from b where c=:name and d=:id", "select a from b where c=%(name)s and d=%(id)s",
         {"name", "id"}),
        ("select ':other', '12:30:15'", "select ':other', '12:30:15'", set[str]()),
        ("select :id::text, '{}'::jsonb", "select %(id)s::text, '{}'::jsonb", {"id"}),
        ("select a[1:2], a[:n]", "select a[1:2], a[%(n)s]", {"n"}),
        ("select 'it''s :x' -- it's :y\n, :id", "select 'it''s :x' -- it's :y\n, %(id)s", {"id"}),
        ("select /* :x ; ' */ :id", "select /* :x ; ' */ %(id)s", {"id"}),
        ("select $$a ; :x '$$, $q$ ' $q$, :id;", "select $$a ; :x '$$, $q$ ' $q$, %(id)s", {"id"}),
        (r"select E'\':x', '\'", r"select E'\':x', '\'", set[str]()),
        ('select "a:b" from "c;d"', 'select "a:b" from "c;d"', set[str]()),
        ("select 1 limit:n", "select 1 limit %(n)s", {"n"}),
        ("select '100%' where a like :name || '%'", "select '100%%' where a like %(name)s || '%%'",
         {"name"}),
        ("select data ? 'a' from b", "select data ? 'a' from b", set[str]()),
        ("-- a\n(select 1)", "-- a\n(select 1)", set[str]()),
        ("select 1;  -- done", "select 1  -- done", set[str]()),
    ],
)  # fmt: skip
def test_parameters_are_where_sql_has_none_of_its_own(
    said: str, written: str, names: set[str]
) -> None:
    assert compiled(said) == (written, names)
    assert set(Statement.of(said, ARGUMENTS).names) == names


def test_sqlite_gets_the_same() -> None:
    found = text(Statement.of("select ':x', :id", ARGUMENTS).text)

    assert str(found.compile(dialect=sqlite.dialect())) == "select ':x', ?"


@pytest.mark.parametrize(
    ("said", "verb", "reads"),
    [
        ("SELECT 1", "select", True),
        ("with a as (select 1) select * from a", "with", True),
        ("/* a */ Delete from b", "delete", False),
        ("((select 1))", "select", True),
    ],
)
def test_the_first_word_says_what_it_does(said: str, verb: str, reads: bool) -> None:
    found = Statement.of(said, ARGUMENTS)

    assert (found.verb, found.reads) == (verb, reads)
