"""Jobs, who sees them through, and what belongs to them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_NAME = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_NUMBER = sa.BigInteger()
_FLAG = sa.Boolean(create_constraint=False)


def _must(name: str, kind: Any, **more: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False, **more)


def _of_job() -> sa.Column[Any]:
    return _must("job", _NAME, primary_key=True)


def _belongs() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["job"], ["jobs.id"], ondelete="CASCADE")


def _partial(name: str, where: Any, *columns: Any) -> None:
    op.create_index(name, "jobs", list(columns), sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    """Bring the tables to this version."""
    op.create_table(
        "lives",
        _must(
            "number",
            _NUMBER.with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        _must("address", _NAME),
        _must("expires", _NUMBER),
        _must("over", _FLAG),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "jobs",
        _must("id", _NAME, primary_key=True),
        _must("caller", _NAME),
        _must("op", _NAME),
        _must("kind", _NAME),
        _must("created", _NUMBER),
        sa.Column("key", _NAME),
        sa.Column("parent", _NAME),
        sa.Column("position", _NUMBER),
        _must("priority", sa.Integer()),
        _must("weight", _NUMBER),
        _must("state", _NAME),
        sa.Column("owner", _NUMBER),
        _must("due", _NUMBER),
        _must("at", _NUMBER),
        _must("ready", _NUMBER),
        _must("held", _FLAG),
        sa.Column("ends", _NUMBER),
        sa.Column("ended", _NUMBER),
        sa.Column("expires", _NUMBER),
        _must("looked", _FLAG),
        _must("size", _NUMBER),
        _must("asked", sa.Text()),
        _must("fate", sa.Text()),
        _must("args", sa.Text()),
        sa.Column("value", sa.Text()),
    )
    held, looked = sa.column("held", _FLAG), sa.column("looked", _FLAG)
    live, nobodys = "ended IS NULL", "ended IS NULL AND owner IS NULL"
    op.create_index("jobs_key", "jobs", ["caller", "key"], unique=True)
    op.create_index("jobs_caller", "jobs", ["caller", "id"])
    op.create_index("jobs_op", "jobs", ["op", "id"])
    _partial("jobs_parent", sa.text("parent IS NOT NULL"), "parent", "position")
    _partial("jobs_live", sa.text(live), "id", "state")
    _partial("jobs_running", sa.text("state IN ('processing', 'stalled') AND kind = ''"), "op")
    _partial("jobs_owner", sa.text(f"{live} AND owner IS NOT NULL"), "owner")
    _partial(
        "jobs_queued", sa.text(f"{nobodys} AND state = 'queued'"), sa.text("priority DESC"), "id"
    )
    _partial(
        "jobs_waiting",
        sa.and_(sa.text(f"{nobodys} AND state = 'waiting'"), sa.not_(held)),
        "ready",
    )
    _partial("jobs_bound", sa.text(f"{nobodys} AND ends IS NOT NULL"), "ends")
    _partial("jobs_held", sa.and_(sa.text(live), held), "id")
    _partial("jobs_dead", sa.and_(sa.text("state = 'error'"), sa.not_(looked)), "id")
    _partial("jobs_ended", sa.text("ended IS NOT NULL"), "ended", "size", "state")
    _partial("jobs_expires", sa.text("expires IS NOT NULL"), "expires")

    op.create_table(
        "labels",
        _of_job(),
        _must("label", _NAME, primary_key=True),
        _belongs(),
        sqlite_with_rowid=False,
    )
    op.create_index("labels_label", "labels", ["label", "job"])
    op.create_table(
        "edges",
        _of_job(),
        _must("before", _NAME, primary_key=True),
        _belongs(),
        sqlite_with_rowid=False,
    )
    op.create_index("edges_before", "edges", ["before"])
    op.create_table(
        "logs",
        _of_job(),
        _must("lines", sa.Integer()),
        _must("size", _NUMBER),
        _must("dropped", _NUMBER),
        _belongs(),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "lines",
        _of_job(),
        _must("seq", sa.Integer(), primary_key=True, autoincrement=False),
        _must("at", _NUMBER),
        _must("level", _NAME),
        _must("text", sa.Text()),
        _belongs(),
    )
    op.create_table("stops", _of_job(), _belongs(), sqlite_with_rowid=False)
    op.create_table(
        "homes",
        _must("dispatcher", _NAME, primary_key=True),
        _must("roles", sa.Text()),
    )
    op.create_table(
        "schedules",
        _must("id", _NAME, primary_key=True),
        _must("caller", _NAME),
        _must("cron", _NAME),
        _must("zone", _NAME),
        _must("submission", sa.Text()),
        _must("created", _NUMBER),
        _must("next", _NUMBER),
    )
    op.create_table(
        "limits",
        _must("op", _NAME, primary_key=True),
        sa.Column("rate", sa.Float(53)),
        _must("per", sa.Float(53)),
        sa.Column("concurrent", sa.Integer()),
        _must("tokens", sa.Float(53)),
        _must("refilled", _NUMBER),
    )
