"""What one transaction of writes reads and writes, with statements that were compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from . import records
from .contract import Fire, LifeOver, Line
from .dialect import Dialect
from .lane import Statement, Table, driver_of
from .plan import Bucket, Kept, Plan, Prepared, Seen
from .records import Fresh, Saved, Standing, Tended
from .tables import (
    RUNNING,
    Among,
    Now,
    edges,
    jobs,
    labels,
    limits,
    lines,
    lives,
    logs,
    parameter,
    schedules,
)
from .tables import records as kept_records


class Transaction:
    """The statements, for the connections of one engine."""

    def __init__(self, engine: sa.Engine, dialect: Dialect) -> None:
        self._dialect = dialect
        some = parameter()

        def put(table: sa.Table) -> Table:
            names = [column.name for column in table.columns]
            head, values, row = Statement(engine, sa.insert(table), names).text.partition("VALUES ")
            return Table(f"{head}{values}{{}}", row)

        self._alive = Statement(
            engine,
            sa.select(lives.c.number)
            .where(lives.c.number == parameter("life"), sa.not_(lives.c.over))
            .with_for_update(read=True),
        )
        self._standings = Statement(
            engine,
            dialect.at_once(
                sa.select(jobs.c.id, jobs.c.state, jobs.c.owner, jobs.c.ended, jobs.c.looked)
                .where(Among(jobs.c.id, some))
                # In one order, so that two dispatchers do not wait for each other.
                .order_by(jobs.c.id)
                .with_for_update()
            ),
        )
        self._logs = Statement(engine, sa.select(logs).where(Among(logs.c.job, some)))
        self._schedules = Statement(
            engine,
            sa.select(schedules.c.id, schedules.c.next)
            .where(Among(schedules.c.id, some))
            .order_by(schedules.c.id)
            .with_for_update(),
        )
        self._versions = Statement(
            engine,
            sa.select(kept_records.c.id, kept_records.c.version)
            .where(Among(kept_records.c.id, some))
            .order_by(kept_records.c.id)
            .with_for_update(),
        )
        self._limits = Statement(
            engine,
            sa.select(
                limits.c.op,
                limits.c.rate,
                limits.c.per,
                limits.c.concurrent,
                limits.c.tokens,
                limits.c.refilled,
                Now().label("now"),
            )
            .where(Among(limits.c.op, some))
            .order_by(limits.c.op)
            .with_for_update(),
        )
        self._running = Statement(
            engine,
            sa.select(jobs.c.op, sa.func.count())
            .where(
                RUNNING,
                Among(jobs.c.op, some),
            )
            .group_by(jobs.c.op),
        )
        self._insert_job = put(jobs)
        self._insert_label = put(labels)
        self._insert_edge = put(edges)
        self._insert_line = put(lines)
        self._save_job = _saving(engine)
        self._look = Statement(
            engine, sa.update(jobs).where(jobs.c.id == parameter("job")).values(looked=sa.true())
        )
        self._forget = Statement(engine, sa.delete(jobs).where(jobs.c.id == parameter("job")))
        self._fire = Statement(
            engine,
            sa.update(schedules)
            .where(schedules.c.id == parameter("schedule"))
            .values(next=sa.bindparam("next")),
        )
        self._insert_record = put(kept_records)
        self._tend = Statement(
            engine,
            sa.update(kept_records)
            .where(kept_records.c.id == parameter("record"))
            .values(version=sa.bindparam("version"), body=sa.bindparam("body")),
        )
        self._drop = Statement(
            engine, sa.delete(kept_records).where(kept_records.c.id == parameter("record"))
        )
        upsert = dialect.put(logs)
        self._put_log = Statement(
            engine,
            upsert.on_conflict_do_update(
                index_elements=[logs.c.job],
                set_={name: upsert.excluded[name] for name in ("lines", "size", "dropped")},
            ),
            ["job", "lines", "size", "dropped"],
        )
        self._spend = Statement(
            engine,
            sa.update(limits)
            .where(limits.c.op == parameter("limit"))
            .values(tokens=sa.bindparam("tokens"), refilled=Now()),
        )

    def check_alive(self, connection: sa.Connection, life: int) -> None:
        """Make sure that a life is not over, and cannot be until the commit.

        Raises:
            LifeOver: it is.
        """
        if not self._alive.all(connection, life):
            raise LifeOver("this life is over, and another dispatcher has its jobs")

    def see(self, connection: sa.Connection, writes: Sequence[Sequence[Prepared]]) -> Seen:
        """Lock and read what the writes are about."""
        ids: set[str] = set()
        keys: set[tuple[str, str]] = set()
        logged: set[str] = set()
        fired: set[str] = set()
        tended: set[str] = set()
        limited: set[str] = set()
        for write in writes:
            for one in write:
                if isinstance(one, Line):
                    ids.add(one.job)
                    logged.add(one.job)
                elif isinstance(one, Fire):
                    fired.add(one.id)
                elif isinstance(one, Tended):
                    tended.add(one.id)
                else:
                    ids.add(one.id)
                    if isinstance(one, Fresh) and one.key is not None:
                        keys.add((one.caller, one.key))
                    if isinstance(one, Fresh | Saved) and one.begins:
                        limited.add(one.op)
        seen = Seen()
        several = self._dialect.several
        if ids:
            seen.jobs = {
                id: Standing(state, owner, ended, bool(looked))
                for id, state, owner, ended, looked in self._dialect.rows(
                    self._standings.all(connection, several(sorted(ids)))
                )
            }
        if keys:
            found = driver_of(connection).execute(
                self._dialect.keyed, self._dialect.pairs(sorted(keys))
            )
            seen.keys = {
                (caller, key): id for caller, key, id in self._dialect.rows(found.fetchall())
            }
        if logged:
            seen.logs = {
                job: Kept(*kept)
                for job, *kept in self._logs.all(connection, several(sorted(logged)))
            }
        if fired:
            seen.schedules = {
                id: due for id, due in self._schedules.all(connection, several(sorted(fired)))
            }
        if tended:
            seen.versions = {
                id: version
                for id, version in self._versions.all(connection, several(sorted(tended)))
            }
        if limited:
            seen.limits = self._see_limits(connection, several(sorted(limited)))
        return seen

    def _see_limits(self, connection: sa.Connection, ops: Any) -> dict[str, Bucket]:
        found = self._limits.all(connection, ops)
        if not found:
            return {}
        # After the lock, so that whoever had it before is counted.
        running: dict[str, int] = {op: count for op, count in self._running.all(connection, ops)}
        return {
            op: Bucket(rate, per, concurrent, tokens, running.get(op, 0)).filled(
                (now - refilled) / 1000
            )
            for op, rate, per, concurrent, tokens, refilled, now in found
        }

    def carry_out(self, connection: sa.Connection, plan: Plan) -> None:
        """Run the statements of a plan."""
        # In one order too: who inserts a key that another has not committed waits for him.
        self._insert_job.many(connection, sorted(plan.inserts, key=_by_key))
        self._insert_label.many(connection, plan.labels)
        self._insert_edge.many(connection, plan.edges)
        self._save_job.many(connection, plan.saves)
        self._look.many(connection, plan.looks)
        self._insert_line.many(connection, plan.lines)
        self._put_log.many(
            connection,
            [(job, kept.lines, kept.size, kept.dropped) for job, kept in plan.logs.items()],
        )
        self._spend.many(connection, [(bucket.tokens, op) for op, bucket in plan.limits.items()])
        self._fire.many(connection, plan.fires)
        self._forget.many(connection, plan.forgets)
        self._insert_record.many(connection, plan.founded)
        self._tend.many(connection, plan.tended)
        self._drop.many(connection, plan.dropped)


def _saving(engine: sa.Engine) -> Table:
    """Make the statement that saves rows of :func:`.records.saved`."""

    def cast(name: str) -> str:
        kind = sa.BigInteger() if name not in jobs.c else jobs.c[name].type
        # The collation of a column is no part of the type of a value.
        kind = sa.Text() if isinstance(kind, sa.Text) else kind
        return str(sa.cast(parameter(), kind).compile(dialect=engine.dialect))

    *names, _ = records.SAVED_ROW
    columns = ", ".join(f"{name} = moved.{name}" for name in names if name != "added")
    return Table(
        f"WITH moved ({', '.join(records.SAVED_ROW)}) AS (VALUES {{}}) "
        f"UPDATE jobs SET {columns}, size = jobs.weight + moved.added "
        "FROM moved WHERE jobs.id = moved.job",
        f"({', '.join(map(cast, names))}, {cast('id')})",
    )


_CALLER, _KEY = jobs.columns.keys().index("caller"), jobs.columns.keys().index("key")


def _by_key(row: records.Row) -> tuple[str, str]:
    return row[_CALLER], row[_KEY] or ""
