"""Which ended jobs go: those beyond the retention that nobody needs any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from .contract import Retention
from .tables import edges, jobs, logs


@dataclass(frozen=True, slots=True)
class Excess:
    """What is too much, by a retention."""

    now: int
    #: Who ended by then is too old.
    old: int
    #: Jobs and bytes above what is kept.
    count: int
    size: int


def excess(connection: sa.Connection, now: int, kept: Retention) -> Excess | None:
    """Tell what is too much, or nothing."""
    count, size, first, expires = _totals(connection)
    found = Excess(
        now, now - int(kept.age * 1000), max(0, count - kept.count), max(0, size - kept.size)
    )
    old = first is not None and first <= found.old
    if found.count or found.size or old or (expires is not None and expires <= now):
        return found
    return None


def _totals(connection: sa.Connection) -> tuple[int, int, int | None, int | None]:
    """Count ended jobs and all their bytes; give the first end, and when the first blob goes."""
    ended = jobs.c.ended.is_not(None)
    count, size, first = connection.execute(
        sa.select(sa.func.count(), sa.func.sum(jobs.c.size), sa.func.min(jobs.c.ended)).where(ended)
    ).one()
    logged = connection.scalar(sa.select(sa.func.sum(logs.c.size)))
    expires = connection.scalar(
        sa.select(sa.func.min(jobs.c.expires)).where(jobs.c.expires.is_not(None))
    )
    # PostgreSQL sums whole numbers as decimals.
    return count, int(size or 0) + int(logged or 0), first, expires


def doomed(connection: sa.Connection, excess: Excess, most: int) -> list[str]:
    """Give up to ``most`` jobs that go, the oldest first, and children before their parent."""
    going: dict[str, None] = {}
    count, size = excess.count, excess.size
    for expired in (jobs.c.expires <= excess.now, jobs.c.ended.is_not(None)):
        oldest = _FAMILIES.where(expired).order_by(jobs.c.ended, jobs.c.id).limit(most)
        families: Sequence[Any] = connection.execute(oldest).all()
        for id, ended, expires, children, bytes_ in families:
            past = ended <= excess.old or (expires is not None and expires <= excess.now)
            if id in going:
                continue
            if len(going) >= most or not (past or count > 0 or size > 0):
                break
            count, size = count - 1 - children, size - bytes_
            if children:
                those = sa.select(jobs.c.id).where(jobs.c.parent == id).limit(most - len(going))
                going |= dict.fromkeys(connection.scalars(those))
            if len(going) < most:
                going[id] = None
    return list(going)


def _families() -> Any:
    """Select ended jobs that nobody needs any more, with what goes with them.

    Not: a child, which goes with its parent; a parent with a live child; and one that a live job
    comes after, or comes after one of whose children.
    """
    parent, child, later = jobs.alias("parent"), jobs.alias("child"), jobs.alias("later")
    is_child = sa.exists().where(parent.c.id == jobs.c.parent)
    has_live = sa.exists().where(child.c.parent == jobs.c.id, child.c.ended.is_(None))
    needed = sa.exists().where(
        edges.c.before == jobs.c.id, later.c.id == edges.c.job, later.c.ended.is_(None)
    )
    child_needed = sa.exists().where(
        child.c.parent == jobs.c.id,
        edges.c.before == child.c.id,
        later.c.id == edges.c.job,
        later.c.ended.is_(None),
    )

    def total(of: sa.ColumnElement[int], *where: sa.ColumnElement[bool]) -> Any:
        return sa.func.coalesce(sa.select(sa.func.sum(of)).where(*where).scalar_subquery(), 0)

    children = sa.select(sa.func.count()).where(child.c.parent == jobs.c.id).scalar_subquery()
    size = (
        jobs.c.size
        + total(logs.c.size, logs.c.job == jobs.c.id)
        + total(child.c.size, child.c.parent == jobs.c.id)
        + total(logs.c.size, child.c.parent == jobs.c.id, logs.c.job == child.c.id)
    )
    return sa.select(jobs.c.id, jobs.c.ended, jobs.c.expires, children, size).where(
        jobs.c.ended.is_not(None),
        sa.not_(is_child),
        sa.not_(has_live),
        sa.not_(needed),
        sa.not_(child_needed),
    )


_FAMILIES: Final = _families()
