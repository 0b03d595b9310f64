"""The store on a database.

Theory of operation.  What is written in one turn of the event loop is taken down at once and waits in
a list; a flush, a turn later, hands the list to the writer's thread as one transaction, and what is
written meanwhile gathers for the next one.  A transaction first locks and reads what its writes are
about, lets :mod:`.plan` decide, and then runs each statement once for all rows.  It begins with a
look at our own life under a lock that whoever declares it over needs too, so nothing is written by
a life that is over.  Everything else that changes something takes the same thread; reading has
another one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog

from spinal.protocols import SpinalError

from ..jobs.job import Job, JobState
from . import pruning, records
from .contract import (
    Change,
    Filter,
    Keep,
    LifeOver,
    Limit,
    Log,
    New,
    Overview,
    Peers,
    Record,
    Result,
    Retention,
    Save,
    Schedule,
    StoreError,
    Told,
)
from .dialect import Dialect
from .lane import Lane, Statement
from .listing import wanted
from .plan import Prepared, decide, weigh
from .schema import upgrade
from .tables import (
    AFTER_KIND,
    BOUND,
    DEAD,
    LIVE,
    NOBODYS,
    OF_KIND,
    QUEUED,
    WAITING,
    Among,
    Now,
    edges,
    homes,
    jobs,
    limits,
    lines,
    lives,
    logs,
    parameter,
    schedules,
    stops,
)
from .tables import records as kept_records
from .transaction import Transaction

log = structlog.get_logger()

_T = TypeVar("_T")

#: Most changes in one transaction, unless one write has more.
MOST: Final = 2000

#: Most changes that wait, and most bytes of them.
MAX_WAITING: Final = 50_000
MAX_WAITING_SIZE: Final = 64 * 1024 * 1024

_LISTED: Final = [jobs.c[name] for name in records.LISTED]
_WHOLE: Final = [jobs.c[name] for name in records.WHOLE]
#: Held jobs with what they come after.
_HELD: Final = sa.select(jobs.c.id).distinct().where(LIVE, jobs.c.held, jobs.c.id == edges.c.job)
_URGENT: Final = (jobs.c.priority.desc(), jobs.c.id)


@dataclass(slots=True)
class _Write:
    """A write that waits for its transaction."""

    changes: Sequence[Prepared]
    size: int
    told: Told


class Database:
    """A :class:`~.contract.Store` on SQLite or PostgreSQL; see the module."""

    def __init__(self, dialect: Dialect, retention: Retention) -> None:
        self._dialect = dialect
        self._retention = retention
        self._engine: sa.Engine | None = None
        self._life: int | None = None
        self._address = ""
        self._over = False
        self._lease = 0
        self._waiting: deque[_Write] = deque()
        self._waiting_changes = 0
        self._waiting_size = 0
        self._flushing: asyncio.Task[None] | None = None

    # -- lives

    async def open(self, address: str, lease: float) -> int:
        """See the contract."""
        engine = self._engine
        if engine is None:
            await asyncio.to_thread(self._dialect.check)
            engine = self._dialect.engine()
            self._transaction = Transaction(engine, self._dialect)
            self._get = Statement(engine, sa.select(*_WHOLE).where(jobs.c.id == parameter("id")))
            self._dependents = Statement(engine, _HELD.where(Among(edges.c.before, parameter())))
            self._writer = Lane(engine, self._dialect, "writer", writes=True)
            self._reader = Lane(engine, self._dialect, "reader", writes=False)
        self._lease = int(lease * 1000)
        self._address = address
        try:
            await self._writer.run(self._migrate)
            self._life = await self._writer.run(partial(self._begin_life, address))
        except BaseException:
            self._engine = None
            await self._shut(engine)
            raise
        self._engine, self._over = engine, False
        log.info("store_opened", store=self._dialect.name, life=self._life)
        return self._life

    def _migrate(self, connection: sa.Connection) -> None:
        self._dialect.prepare(connection)
        upgrade(connection, self._dialect.name)

    def _begin_life(self, address: str, connection: sa.Connection) -> int:
        connection.execute(sa.update(lives).where(lives.c.address == address).values(over=True))
        made = (
            sa.insert(lives)
            .values(address=address, expires=Now() + self._lease, over=False)
            .returning(lives.c.number)
        )
        return int(connection.scalars(made).one())

    async def close(self, hand_over: bool = True) -> None:
        """See the contract."""
        engine, self._engine = self._engine, None  # Nothing new begins.
        if engine is None:
            return
        try:
            while self._flushing is not None:
                await asyncio.wait([self._flushing])
            if hand_over and not self._over:
                await self._writer.run(self._end_life)
        except SpinalError as exc:
            # Our lease ends by itself.
            log.warning("life_not_ended", store=self._dialect.name, error=str(exc))
        finally:
            await self._shut(engine)

    def _end_life(self, connection: sa.Connection) -> None:
        connection.execute(sa.update(lives).where(lives.c.number == self._life).values(over=True))

    async def _shut(self, engine: sa.Engine) -> None:
        try:
            await asyncio.gather(self._writer.close(), self._reader.close())
        finally:
            engine.dispose()

    async def renew(self) -> Peers:
        """See the contract."""
        return await self._change(self._renew)

    def _renew(self, connection: sa.Connection) -> Peers:
        connection.execute(
            sa.update(lives).where(lives.c.number == self._life).values(expires=Now() + self._lease)
        )
        addresses: set[str] = set()
        orphans = False
        for number, address, over in connection.execute(
            sa.select(lives.c.number, lives.c.address, sa.or_(lives.c.over, _EXPIRED))
        ):
            if not over or number == self._life:
                addresses.add(address)
            else:
                orphans = True
        return Peers(frozenset(addresses), orphans, self._roles(connection))

    def _roles(self, connection: sa.Connection) -> dict[str, str]:
        roles: dict[str, str] = {}
        for told in connection.scalars(
            sa.select(homes.c.roles)
            .where(homes.c.dispatcher != self._address)
            .order_by(homes.c.dispatcher.desc())
        ):
            roles.update(records.roles(told))
        return roles

    async def share_roles(self, roles: Mapping[str, str]) -> None:
        """See the contract."""
        row = records.roles_row(self._address, roles)
        await self._change(
            lambda connection: connection.execute(self._upsert(homes, row, "dispatcher")).rowcount
        )

    async def take_over(self) -> list[Job]:
        """See the contract."""
        return await self._change(self._take_over)

    def _take_over(self, connection: sa.Connection) -> list[Job]:
        dead = connection.scalars(
            sa.select(lives.c.number)
            .where(lives.c.number != self._life, sa.or_(lives.c.over, _EXPIRED))
            .with_for_update(skip_locked=True)
        ).all()
        if not dead:
            return []
        which = {"values": self._dialect.several(dead)}
        taken = connection.execute(
            sa.update(jobs)
            .where(LIVE, jobs.c.owner.is_not(None), Among(jobs.c.owner, parameter()))
            .values(owner=self._life)
            .returning(*_WHOLE),
            which,
        ).all()
        connection.execute(sa.delete(lives).where(Among(lives.c.number, parameter())), which)
        return _urgent_first(map(records.job, taken))

    # -- writing

    async def write(self, *changes: Change) -> Sequence[Result]:
        """See the contract."""
        if not changes:
            self._check()
            return []
        done: asyncio.Future[Sequence[Result]] = asyncio.get_running_loop().create_future()

        def told(found: Sequence[Result] | Exception) -> None:
            if done.done():
                return  # Whoever waited was cancelled.
            if isinstance(found, Exception):
                done.set_exception(found)
            else:
                done.set_result(found)

        self.post(changes, told)
        return await done

    def post(self, changes: Sequence[Change], told: Told) -> None:
        """See the contract."""
        self._check()
        prepared = [self._prepared(change) for change in changes]
        size = sum(map(weigh, prepared))
        if (
            self._waiting_changes + len(prepared) > MAX_WAITING
            or self._waiting_size + size > MAX_WAITING_SIZE
        ) and self._waiting:
            raise StoreError(
                f"the store {self._dialect.name} is behind by {self._waiting_changes} changes: "
                "try again later"
            )
        self._waiting.append(_Write(prepared, size, told))
        self._waiting_changes += len(prepared)
        self._waiting_size += size
        if self._flushing is None:
            # Its first step comes after whatever else runs in this turn.
            loop = asyncio.get_running_loop()
            self._flushing = loop.create_task(self._flush(), name="store flush")

    def _prepared(self, change: Change) -> Prepared:
        if isinstance(change, Save):
            return records.saved(change.job, change.begins, self._retention)
        if isinstance(change, New):
            return records.fresh(change.job, change.begins, self._retention)
        if isinstance(change, Keep):
            return records.tended(change.record, change.drop)
        return change

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch = self._next_batch()
                try:
                    results = await self._written(batch)
                except asyncio.CancelledError:
                    for write in batch:
                        write.told(StoreError(f"the store {self._dialect.name} was stopped"))
                    raise
                for write, result in zip(batch, results, strict=True):
                    try:
                        write.told(result)
                    except Exception:
                        # A mistake of ours in one of them must not keep the others waiting.
                        log.exception("write_not_told")
        finally:
            self._flushing = None

    async def _written(self, batch: Sequence[_Write]) -> Sequence[Sequence[Result] | Exception]:
        """Commit a batch; gives for each write its results, or what its writer is to be told."""
        try:
            return await self._writer.run(partial(self._commit, [write.changes for write in batch]))
        except (StoreError, LifeOver) as exc:
            self._over = self._over or isinstance(exc, LifeOver)
            return [exc] * len(batch)
        except Exception as exc:  # noqa: BLE001  # Whoever wrote is to be told, whatever it is.
            if len(batch) == 1:
                return [exc]
        # The database refuses what is in one of them; the others must not suffer for it.
        return [result for write in batch for result in await self._written([write])]

    def _next_batch(self) -> list[_Write]:
        batch: list[_Write] = []
        count = 0
        while self._waiting and (not batch or count + len(self._waiting[0].changes) <= MOST):
            write = self._waiting.popleft()
            batch.append(write)
            count += len(write.changes)
            self._waiting_size -= write.size
        self._waiting_changes -= count
        return batch

    def _commit(
        self, writes: Sequence[Sequence[Prepared]], connection: sa.Connection
    ) -> list[Sequence[Result]]:
        self._transaction.check_alive(connection, self._number)
        seen = self._transaction.see(connection, writes)
        plan = decide(writes, seen, self._number, self._retention)
        self._transaction.carry_out(connection, plan)
        return plan.results

    async def claim(
        self, steady: int, wall: int, limit: int, ids: Sequence[str] | None = None
    ) -> list[Job]:
        """See the contract."""
        if ids is not None:
            return await self._change(partial(self._claim_these, ids, limit))
        return await self._change(partial(self._claim_due, steady, wall, limit))

    def _claim_due(
        self, steady: int, wall: int, limit: int, connection: sa.Connection
    ) -> list[Job]:
        due = sa.and_(jobs.c.due <= steady, jobs.c.at <= wall)
        found: dict[str, int] = {}
        for which in (
            sa.and_(QUEUED, due),
            sa.and_(WAITING, due, jobs.c.ready <= max(steady, wall)),
            sa.and_(BOUND, jobs.c.ends <= steady),
        ):
            for id, priority in connection.execute(
                sa.select(jobs.c.id, jobs.c.priority)
                .where(which)
                .order_by(*_URGENT)
                .limit(limit)
                .with_for_update(skip_locked=True)
            ):
                found[id] = priority
        return self._own(connection, sorted(found, key=lambda id: (-found[id], id))[:limit])

    def _claim_these(self, ids: Sequence[str], limit: int, connection: sa.Connection) -> list[Job]:
        found = connection.scalars(
            sa.select(jobs.c.id)
            .where(NOBODYS, Among(jobs.c.id, parameter()))
            .order_by(*_URGENT)
            .limit(limit)
            .with_for_update(skip_locked=True),
            {"values": self._dialect.several(ids)},
        ).all()
        return self._own(connection, found)

    def _own(self, connection: sa.Connection, ids: Sequence[str]) -> list[Job]:
        if not ids:
            return []
        owned = connection.execute(
            sa.update(jobs)
            .where(NOBODYS, Among(jobs.c.id, parameter()))
            .values(owner=self._life)
            .returning(*_WHOLE),
            {"values": self._dialect.several(ids)},
        ).all()
        return _urgent_first(map(records.job, owned))

    async def ask_to_stop(self, id: str) -> None:
        """See the contract."""
        await self._change(partial(self._ask_to_stop, id))

    def _ask_to_stop(self, id: str, connection: sa.Connection) -> None:
        ended = sa.select(jobs.c.id).where(jobs.c.ended.is_not(None))
        connection.execute(sa.delete(stops).where(stops.c.job.in_(ended)))
        # A row of its own, because that of the job is its owner's to write.
        live = sa.select(jobs.c.id).where(jobs.c.id == id, LIVE)
        connection.execute(
            self._dialect.put(stops).from_select(["job"], live).on_conflict_do_nothing()
        )

    async def asked_to_stop(self) -> list[str]:
        """See the contract."""
        found = await self._read(
            sa.select(stops.c.job)
            .join(jobs, jobs.c.id == stops.c.job)
            .where(LIVE, jobs.c.owner == self._life)
            .order_by(stops.c.job)
        )
        return [id for (id,) in found]

    # -- reading

    async def get(self, id: str) -> Job | None:
        """See the contract."""
        self._check()
        found = await self._reader.run(lambda connection: self._get.all(connection, id))
        return records.job(found[0]) if found else None

    async def find(self, which: Filter, limit: int) -> list[Job]:
        """See the contract."""
        return await self._rows(
            sa.select(*_LISTED).where(*wanted(which)).order_by(jobs.c.id.desc()).limit(limit)
        )

    async def children(
        self, parent: str, after: int, limit: int, states: frozenset[JobState] = frozenset()
    ) -> list[Job]:
        """See the contract."""
        query = sa.select(*_WHOLE).where(jobs.c.parent == parent, jobs.c.position > after)
        if states:
            query = query.where(jobs.c.state.in_(sorted(state.value for state in states)))
        return await self._rows(query.order_by(jobs.c.position).limit(limit))

    async def count_children(self, parent: str) -> Mapping[JobState, int]:
        """See the contract."""
        return await self._counts(
            sa.select(jobs.c.state, sa.func.count())
            .where(jobs.c.parent == parent)
            .group_by(jobs.c.state)
        )

    async def states(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        """See the contract."""
        found = await self._read(
            sa.select(jobs.c.id, jobs.c.state).where(Among(jobs.c.id, parameter())),
            {"values": self._dialect.several(ids)},
        )
        return {id: JobState(state) for id, state in found}

    async def owned(self) -> list[str]:
        """See the contract."""
        found = await self._read(sa.select(jobs.c.id).where(LIVE, jobs.c.owner == self._life))
        return sorted(id for (id,) in found)

    async def dependents(self, ids: Sequence[str]) -> list[str]:
        """See the contract."""
        if ids:
            self._check()
            before = self._dialect.several(ids)
            found = await self._reader.run(lambda c: self._dependents.all(c, before))
        else:
            earlier = jobs.alias("earlier")
            # One that is not kept any more had ended.
            waits = sa.exists().where(earlier.c.id == edges.c.before, earlier.c.ended.is_(None))
            found = await self._read(_HELD.where(sa.not_(waits)))
        return sorted(id for (id,) in found)

    async def next_due(self) -> tuple[int, int] | None:
        """See the contract."""
        found = await self._read(
            sa.select(jobs.c.due, jobs.c.at).where(WAITING).order_by(jobs.c.ready).limit(1)
        )
        return (found[0].due, found[0].at) if found else None

    async def log(self, id: str, after: int, limit: int) -> Log:
        """See the contract."""

        def read(connection: sa.Connection) -> Log:
            page = connection.execute(
                sa.select(lines)
                .where(lines.c.job == id, lines.c.seq > after)
                .order_by(lines.c.seq)
                .limit(limit)
            ).all()
            dropped = connection.scalar(sa.select(logs.c.dropped).where(logs.c.job == id))
            return Log([records.line(row) for row in page], dropped or 0)

        self._check()
        return await self._reader.run(read)

    async def queued(self, ops: Sequence[str], most: int) -> int:
        """See the contract."""
        some = (
            sa.select(jobs.c.id)
            .where(
                LIVE,
                jobs.c.state == sa.literal_column("'queued'"),
                jobs.c.kind == sa.literal_column("''"),
                jobs.c.op.in_(ops),
            )
            .limit(most)
            .subquery()
        )
        found = await self._read(sa.select(sa.func.count()).select_from(some))
        return int(found[0][0])

    async def overview(self) -> Overview:
        """See the contract."""

        def read(connection: sa.Connection) -> Overview:
            # Two counts, because each has an index that tells without looking at jobs.
            states: dict[JobState, int] = {}
            for which in (LIVE, jobs.c.ended.is_not(None)):
                for state, count in connection.execute(
                    sa.select(jobs.c.state, sa.func.count()).where(which).group_by(jobs.c.state)
                ):
                    states[JobState(state)] = count
            dead = connection.scalar(sa.select(sa.func.count()).select_from(jobs).where(DEAD))
            return Overview(states, dead or 0)

        self._check()
        return await self._reader.run(read)

    async def _rows(self, query: sa.Executable) -> list[Job]:
        self._check()
        return await self._reader.run(
            lambda connection: [records.job(row) for row in connection.execute(query)]
        )

    async def _counts(self, query: sa.Executable) -> Mapping[JobState, int]:
        return {JobState(state): count for state, count in await self._read(query)}

    async def _read(
        self, query: sa.Executable, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Any]:
        self._check()
        return await self._reader.run(
            lambda connection: connection.execute(query, parameters).all()
        )

    # -- schedules and limits

    async def add_schedule(self, schedule: Schedule) -> None:
        """See the contract."""
        row = records.schedule_row(schedule)
        await self._change(
            lambda connection: connection.execute(self._upsert(schedules, row, "id")).rowcount
        )

    async def remove_schedule(self, id: str) -> bool:
        """See the contract."""
        return await self._change(
            lambda connection: bool(
                connection.execute(sa.delete(schedules).where(schedules.c.id == id)).rowcount
            )
        )

    async def schedules(self) -> list[Schedule]:
        """See the contract."""
        found = await self._read(sa.select(schedules).order_by(schedules.c.next, schedules.c.id))
        return [records.schedule(row) for row in found]

    async def set_limit(self, limit: Limit) -> None:
        """See the contract."""
        row = {
            "op": limit.op,
            "rate": limit.rate,
            "per": limit.per,
            "concurrent": limit.concurrent,
            "tokens": max(1.0, limit.rate or 0.0),
            "refilled": Now(),
        }
        await self._change(
            lambda connection: connection.execute(self._upsert(limits, row, "op")).rowcount
        )

    async def remove_limit(self, op: str) -> bool:
        """See the contract."""
        return await self._change(
            lambda connection: bool(
                connection.execute(sa.delete(limits).where(limits.c.op == op)).rowcount
            )
        )

    async def limits(self) -> list[Limit]:
        """See the contract."""
        found = await self._read(
            sa.select(limits.c.op, limits.c.rate, limits.c.per, limits.c.concurrent).order_by(
                limits.c.op
            )
        )
        return [Limit(op, rate, per, concurrent) for op, rate, per, concurrent in found]

    def _upsert(self, table: sa.Table, row: Mapping[str, Any], key: str) -> Any:
        return (
            self._dialect.put(table)
            .values(row)
            .on_conflict_do_update(
                index_elements=[key],
                set_={name: value for name, value in row.items() if name != key},
            )
        )

    # -- records

    async def records(self, kind: str, names: Sequence[str] | None = None) -> list[Record]:
        """See the contract."""
        query = sa.select(kept_records).order_by(kept_records.c.id)
        if names is None:
            found = await self._read(query.where(*_of_kind(kind)))
        else:
            ids = [f"{kind}{OF_KIND}{name}" for name in names]
            found = await self._read(
                query.where(Among(kept_records.c.id, parameter())),
                {"values": self._dialect.several(ids)},
            )
        return [records.record(row) for row in found]

    async def versions(self, kind: str) -> Mapping[str, int]:
        """See the contract."""
        found = await self._read(
            sa.select(kept_records.c.id, kept_records.c.version).where(*_of_kind(kind))
        )
        return {id.partition(OF_KIND)[2]: version for id, version in found}

    # -- housekeeping

    async def prune(self, now: int, most: int = 1000) -> int:
        """See the contract."""
        self._check()
        too_much = await self._reader.run(lambda c: pruning.excess(c, now, self._retention))
        if too_much is None:
            return 0
        return await self._change(partial(self._prune, too_much, most))

    def _prune(self, too_much: pruning.Excess, most: int, connection: sa.Connection) -> int:
        doomed = pruning.doomed(connection, too_much, most)
        connection.execute(
            sa.delete(jobs).where(Among(jobs.c.id, parameter())),
            {"values": self._dialect.several(doomed)},
        )
        return len(doomed)

    # -- tools

    @property
    def _number(self) -> int:
        assert self._life is not None, "the store was not opened"
        return self._life

    def _check(self) -> None:
        if self._engine is None:
            raise StoreError(f"the store {self._dialect.name} is not open")
        if self._over:
            raise LifeOver("this life is over, and another dispatcher has its jobs")

    async def _change(self, work: Callable[[sa.Connection], _T]) -> _T:
        """Do something in the writer's thread, if our life is not over."""
        self._check()

        def checked(connection: sa.Connection) -> _T:
            self._transaction.check_alive(connection, self._number)
            return work(connection)

        try:
            return await self._writer.run(checked)
        except LifeOver:
            self._over = True
            raise


def _of_kind(kind: str) -> Iterable[sa.ColumnElement[bool]]:
    id = kept_records.c.id
    return id >= f"{kind}{OF_KIND}", id < f"{kind}{AFTER_KIND}"


_EXPIRED: Final = lives.c.expires <= Now()


def _urgent_first(found: Iterable[Job]) -> list[Job]:
    return sorted(found, key=lambda job: (-job.priority, job.id))
