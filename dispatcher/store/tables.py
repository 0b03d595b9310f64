"""The tables, as the newest migration leaves them, and the two expressions that databases differ in.

One job is one row.  What is searched, sorted or fenced has a column; the rest of what was asked, and
of what became of it, is JSON text that only :mod:`.records` reads.  Big columns come last, because
SQLite reads a row from its beginning.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

metadata: Final = sa.MetaData()

#: Compared byte by byte, in both databases; PostgreSQL's default depends on its machine.
Name: Final = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

#: SQLite counts rows itself only in a column of exactly this type.
Serial: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

lives: Final = sa.Table(
    "lives",
    metadata,
    # Never given twice: a number fences off whoever had an earlier one.
    sa.Column("number", Serial, primary_key=True, autoincrement=True),
    sa.Column("address", Name, nullable=False),
    # Milliseconds, by the clock of the database.
    sa.Column("expires", sa.BigInteger, nullable=False),
    sa.Column("over", sa.Boolean(create_constraint=False), nullable=False),
    sqlite_autoincrement=True,
)

jobs: Final = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", Name, primary_key=True),
    sa.Column("caller", Name, nullable=False),
    sa.Column("op", Name, nullable=False),
    sa.Column("kind", Name, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("key", Name),
    sa.Column("parent", Name),
    sa.Column("position", sa.BigInteger),
    sa.Column("priority", sa.Integer, nullable=False),
    # Bytes of what was asked; ``size`` adds what became of it.
    sa.Column("weight", sa.BigInteger, nullable=False),
    sa.Column("state", Name, nullable=False),
    sa.Column("owner", sa.BigInteger),
    sa.Column("due", sa.BigInteger, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    # The later of the two, for the index.
    sa.Column("ready", sa.BigInteger, nullable=False),
    sa.Column("held", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("ends", sa.BigInteger),
    # Set exactly if the state is final, so it also tells what is live.
    sa.Column("ended", sa.BigInteger),
    # When a blob in the result may be gone.
    sa.Column("expires", sa.BigInteger),
    sa.Column("looked", sa.Boolean(create_constraint=False), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("fate", sa.Text, nullable=False),
    sa.Column("args", sa.Text, nullable=False),
    sa.Column("value", sa.Text),
)

# The parts of :meth:`Store.claim`, each with an index of its own that ended jobs are not in.
# Their constants are written out: a database uses such an index only where it reads the same words.
LIVE: Final = jobs.c.ended.is_(None)
NOBODYS: Final = sa.and_(LIVE, jobs.c.owner.is_(None))
QUEUED: Final = sa.and_(NOBODYS, jobs.c.state == sa.literal_column("'queued'"))
WAITING: Final = sa.and_(
    NOBODYS, jobs.c.state == sa.literal_column("'waiting'"), sa.not_(jobs.c.held)
)
BOUND: Final = sa.and_(NOBODYS, jobs.c.ends.is_not(None))
#: What limits count; a parent only waits for its children, which take the room.
RUNNING: Final = sa.and_(
    jobs.c.state.in_([sa.literal_column("'processing'"), sa.literal_column("'stalled'")]),
    jobs.c.kind == sa.literal_column("''"),
)
DEAD: Final = sa.and_(jobs.c.state == sa.literal_column("'error'"), sa.not_(jobs.c.looked))


def _partial(name: str, where: sa.ColumnElement[bool], *columns: Any) -> None:
    sa.Index(name, *columns, sqlite_where=where, postgresql_where=where)


# Callers see their own jobs, newest first; a key is unique for its caller.
sa.Index("jobs_key", jobs.c.caller, jobs.c.key, unique=True)
sa.Index("jobs_caller", jobs.c.caller, jobs.c.id)
sa.Index("jobs_op", jobs.c.op, jobs.c.id)
_partial("jobs_parent", jobs.c.parent.is_not(None), jobs.c.parent, jobs.c.position)
_partial("jobs_live", LIVE, jobs.c.id, jobs.c.state)
_partial("jobs_running", RUNNING, jobs.c.op)
_partial("jobs_owner", sa.and_(LIVE, jobs.c.owner.is_not(None)), jobs.c.owner)
_partial("jobs_queued", QUEUED, jobs.c.priority.desc(), jobs.c.id)
_partial("jobs_waiting", WAITING, jobs.c.ready)
_partial("jobs_bound", BOUND, jobs.c.ends)
_partial("jobs_held", sa.and_(LIVE, jobs.c.held), jobs.c.id)
_partial("jobs_dead", DEAD, jobs.c.id)
_partial("jobs_ended", jobs.c.ended.is_not(None), jobs.c.ended, jobs.c.size, jobs.c.state)
_partial("jobs_expires", jobs.c.expires.is_not(None), jobs.c.expires)


def _of_job(*, primary_key: bool = True) -> sa.Column[Any]:
    return sa.Column(
        "job", Name, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=primary_key
    )


labels: Final = sa.Table(
    "labels",
    metadata,
    _of_job(),
    sa.Column("label", Name, primary_key=True),
    sqlite_with_rowid=False,
)
sa.Index("labels_label", labels.c.label, labels.c.job)

#: ``job`` comes after ``before``, which need not be kept any more.
edges: Final = sa.Table(
    "edges",
    metadata,
    _of_job(),
    sa.Column("before", Name, primary_key=True),
    sqlite_with_rowid=False,
)
sa.Index("edges_before", edges.c.before)

#: What the log of a job has come to.
logs: Final = sa.Table(
    "logs",
    metadata,
    _of_job(),
    sa.Column("lines", sa.Integer, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("dropped", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

lines: Final = sa.Table(
    "lines",
    metadata,
    _of_job(),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("level", Name, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

#: Jobs that somebody wants stopped who does not own them.
stops: Final = sa.Table("stops", metadata, _of_job(), sqlite_with_rowid=False)

#: What dispatchers told of their homes: roles by bare address, as JSON text.
homes: Final = sa.Table(
    "homes",
    metadata,
    sa.Column("dispatcher", Name, primary_key=True),
    sa.Column("roles", sa.Text, nullable=False),
)

schedules: Final = sa.Table(
    "schedules",
    metadata,
    sa.Column("id", Name, primary_key=True),
    sa.Column("caller", Name, nullable=False),
    sa.Column("cron", Name, nullable=False),
    sa.Column("zone", Name, nullable=False),
    sa.Column("submission", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("next", sa.BigInteger, nullable=False),
)

#: Between the kind of a record and its name; the character after it ends the kind.
OF_KIND: Final = "/"
AFTER_KIND: Final = "0"

records: Final = sa.Table(
    "records",
    metadata,
    # Kind and name.
    sa.Column("id", Name, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    # All of it, as JSON text.
    sa.Column("body", sa.Text, nullable=False),
)

limits: Final = sa.Table(
    "limits",
    metadata,
    sa.Column("op", Name, primary_key=True),
    sa.Column("rate", sa.Float(53)),
    sa.Column("per", sa.Float(53), nullable=False),
    sa.Column("concurrent", sa.Integer),
    # The bucket: how many may begin at once, and when that was so, by the clock of the database.
    sa.Column("tokens", sa.Float(53), nullable=False),
    sa.Column("refilled", sa.BigInteger, nullable=False),
)


class Among(sa.ColumnElement[bool]):
    """Whether a column is one of any number of values, given as *one* parameter.

    So the text of a statement stays the same, and the database reads it once.
    :attr:`Dialect.several` makes the parameter.
    """

    inherit_cache = True
    type = sa.Boolean()
    _traverse_internals = [  # noqa: RUF012
        ("column", InternalTraversal.dp_clauseelement),
        ("values", InternalTraversal.dp_clauseelement),
    ]

    def __init__(self, column: sa.ColumnElement[Any], values: sa.ColumnElement[Any]) -> None:
        self.column = column
        self.values = values

    def self_group(self, against: Any = None) -> Among:
        """Stay as it is: SQLite would not find the index behind the ``= 1`` of other booleans."""
        return self


@compiles(Among, "sqlite")
def _among_sqlite(element: Among, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = compiler.process(element.column, **kw), compiler.process(element.values, **kw)
    return f"{column} IN (SELECT value FROM json_each({values}))"


@compiles(Among, "postgresql")
def _among_postgresql(element: Among, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = compiler.process(element.column, **kw), compiler.process(element.values, **kw)
    return f"{column} = ANY ({values})"


class Now(sa.ColumnElement[int]):
    """Milliseconds since 1970 by the clock of the database."""

    inherit_cache = True
    type = sa.BigInteger()
    _traverse_internals = []  # noqa: RUF012


@compiles(Now, "sqlite")
def _now_sqlite(element: Now, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"


@compiles(Now, "postgresql")
def _now_postgresql(element: Now, compiler: SQLCompiler, **kw: Any) -> str:
    # clock_timestamp, not now: a transaction may have waited for a lock.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


def parameter(name: str = "values") -> sa.BindParameter[Any]:
    """Give a parameter that goes to the driver as it is."""
    return sa.bindparam(name, type_=sa.types.NullType())
