"""Which jobs a filter lets through, as conditions that have an index."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from ..jobs.job import LIVE as LIVE_STATES
from .contract import Filter
from .tables import DEAD, LIVE, jobs, labels


def wanted(which: Filter) -> Iterable[sa.ColumnElement[bool]]:
    """Give the conditions, all of which a job must meet."""
    if which.caller is not None:
        yield jobs.c.caller == which.caller
    if which.states:
        if which.states <= LIVE_STATES:
            yield LIVE  # They have an index that ended jobs are not in.
        yield jobs.c.state.in_(sorted(state.value for state in which.states))
    if which.label is not None:
        matches = (
            _begins(labels.c.label, which.label[:-1])
            if which.label.endswith("*")
            else labels.c.label == which.label
        )
        yield jobs.c.id.in_(sa.select(labels.c.job).where(matches))
    if which.op is not None:
        if which.op.endswith("/**"):
            above = which.op[:-3]
            yield sa.or_(jobs.c.op == above, _begins(jobs.c.op, f"{above}/"))
        else:
            yield jobs.c.op == which.op
    if which.key is not None:
        yield jobs.c.key == which.key
    if which.parent is not None:
        yield jobs.c.parent == which.parent
    if which.dead:
        yield DEAD
    if which.before is not None:
        yield jobs.c.id < which.before


def _begins(column: sa.ColumnElement[str], prefix: str) -> sa.ColumnElement[bool]:
    """Tell whether a name begins so: a range, which has no special characters and has an index."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return column >= prefix
    last = ord(stem[-1]) + 1
    # The surrogates are no characters.
    after = stem[:-1] + chr(0xE000 if last == 0xD800 else last)
    return sa.and_(column >= prefix, column < after)
