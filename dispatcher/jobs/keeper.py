"""Sees jobs through: from the disk to the broker, and from there to an end that is on disk.

Theory of operation.  The store has every job; the keeper has those that are under way in this life
(:class:`Live`).  A new job for which an agent has room is written down with its first attempt; when
that brings a value, the end is written down, and nobody waited meanwhile.  Every other job is carried
by a task: it runs an errand of the broker, whose book is the live job, and then ends the job, or hands
it back to the disk until it may be tried again.  Jobs without an
owner stand on disk alone.  Three loops bring them back: *promote* claims those whose time has come,
as far as there is room; *relate* looks after jobs that come after, or are parents of, what has ended;
*renew* keeps our lease, and takes over what dead dispatchers left.

What a job is changes in memory first and is written at once; who asks about it is answered from
memory while it is live.  Nobody is told of an end before it is on disk, and no final is acknowledged
before.  A store that cannot write delays that and loses nothing: the keeper tries again, and the
agent keeps the final.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final, TypeVar, cast

import structlog

from spinal.bus.errors import CallError
from spinal.bus.jsontext import dumps
from spinal.bus.session import Session
from spinal.bus.tasks import Tasks
from spinal.protocols import Final as FinalEvent
from spinal.protocols import Json, LocalProtocolError, Op, Operation, Problem, SpinalError, Want

from ..broker import Begun, Broker, Errand
from ..registry import Registry
from ..resolver import Demand
from ..store.contract import (
    Change,
    Filter,
    Forget,
    LifeOver,
    Limit,
    Line,
    LogLine,
    Look,
    New,
    Peers,
    Result,
    Save,
    Store,
    StoreError,
    Told,
    Wait,
)
from . import retries
from .clock import Clock
from .family import Family
from .gates import Gates
from .job import DEADLINE, LIVE, Happening, Job, JobState, mint
from .live import Fenced, Limited, Live, News, Watcher
from .rows import stamp
from .strays import Strays
from .timetable import Timetable

log = structlog.get_logger()

T = TypeVar("T")

_ENDING: Final = Problem("draining", "this dispatcher is not taking jobs now")

#: Seconds after which a dispatcher that does not renew its lease has lost its jobs, and between two
#: renewals.
LEASE: Final = 10.0
RENEW: Final = 2.0

#: Jobs that are carried at once; what is queued beyond them stands on disk.
MAX_LIVE: Final = 5000

#: Most jobs that have not ended.
MAX_UNFINISHED: Final = 1_000_000

#: Seconds between two looks at the disk for jobs that others put there, and for dependents that
#: nobody looked at because of a crash.
LOOK: Final = 1.0
SWEEP: Final = 10.0

#: Seconds between two looks at a job that is not ours and that somebody waits for.
POLL: Final = 0.5

#: Seconds after which a store that could not write is tried again, and a queue that was full.
PAUSE: Final = 1.0

#: Seconds that an agent has to stop a cancelled attempt: its own grace, and a margin.
CANCEL: Final = 10.0

#: Seconds that a job has to end which is another dispatcher's and shall be stopped: that one may be
#: dead, and whoever takes over stops it.
STOP: Final = LEASE + RENEW + CANCEL

#: Seconds between two rounds of pruning, and rows that one step deletes.
PRUNE: Final = 60.0

#: Lines of logs that may wait for the store.
MAX_LINES_WAITING: Final = 10_000

#: Bytes of a value that goes along in a callback.
MAX_TOLD: Final = 24 * 1024

#: How an attempt ends that was cancelled; with another reason it had ended before.
_STOPPED: Final = frozenset({"cancelled", "deadline", "expired", "lost", "no-answer"})

#: Jobs of one page when all children of a parent are gone through.
PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


class Keeper:
    """See the module.

    Args:
        store: has the jobs; ours to open and close.
        broker: carries attempts to agents.
        registry: who is there.
        session: moves acknowledgements and cancels.
        clock: what time it is.
        random: draws the jitter of retries.
        accounts: gives the roles of our home's accounts by bare address, for the others.
        on_peers: told who lives on this store with every renewal of our lease.
    """

    def __init__(
        self,
        store: Store,
        broker: Broker,
        registry: Registry,
        session: Session,
        *,
        clock: Clock | None = None,
        random: Random | None = None,
        accounts: Callable[[], Mapping[str, str]] = dict,
        on_peers: Callable[[Peers], None] = lambda peers: None,
    ) -> None:
        self.store = store
        self.clock = clock or Clock()
        self._broker = broker
        self._registry = registry
        self._session = session
        self._random = random or Random()
        self._accounts = accounts
        self._shared: Mapping[str, str] | None = None
        self._on_peers = on_peers
        #: Told of every job of ours that has ended.
        self.on_end: Callable[[Job], None] = lambda job: None
        self._peers: frozenset[str] = frozenset()
        self._life = 0
        self._tasks = Tasks("keeper")
        self._live: dict[str, Live] = {}
        self._family = Family(self)
        #: Who is told of the end of a job, by its id.
        self._waiting: dict[str, list[Callable[[Job], None]]] = {}
        self._wake = asyncio.Event()
        #: Something may stand on disk whose time has come.
        self._backlog = True
        self._unfinished = 0
        self._draining = False
        self._opened = self._closed = False
        self.gates = Gates()
        self.timetable = Timetable(self)
        self.strays = Strays(self, session)
        self._lines: list[Line] = []
        self._failed: asyncio.Future[Exception] | None = None

    # -- life

    async def open(self, address: str) -> None:
        """Begin a life at the store; raises :class:`NotAStore` or :class:`StoreError`."""
        self._failed = asyncio.get_running_loop().create_future()
        self._life = await self.store.open(address, LEASE)
        self._unfinished = await self._count_unfinished()

    async def _count_unfinished(self) -> int:
        states = (await self.store.overview()).states
        return sum(count for state, count in states.items() if state in LIVE)

    async def start(self) -> None:
        """Go on with what former lives began, and with what waits; the session is open."""
        await self._refresh_limits()
        await self._meet()
        for job in await self.store.take_over():
            self._adopt(job)
        self._opened = True
        for work in (
            self._promote,
            self._family.run,
            self._renew,
            self._stop_asked,
            self._sweep,
            self._prune,
            self.timetable.run,
        ):
            self.spawn(work.__name__, work)
        log.info("jobs_taken_up", live=len(self._live), unfinished=self._unfinished)

    def spawn(self, name: str, work: Callable[..., Coroutine[Any, Any, None]], *given: Any) -> None:
        """Start a task of this life; it ends with it."""

        async def while_alive() -> None:
            try:
                await work(*given)
            except LifeOver as exc:
                self.fail(exc)

        self._tasks.spawn(while_alive(), name)

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to its end what must not stop half-way, also when whoever asked for it is gone.

        A write that was begun happens; what has to follow it in memory must happen too.

        Raises:
            CallError: what the work raises, or that we are ending; and its StoreError or LifeOver.
        """

        async def outcome() -> T | _Failed:
            try:
                return await work
            except (CallError, StoreError, LifeOver) as exc:
                return _Failed(exc)

        try:
            task: asyncio.Task[T | _Failed] = self._tasks.spawn(outcome())
        except RuntimeError as exc:
            work.close()
            raise CallError.of(_ENDING) from exc
        try:
            found = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise CallError.of(_ENDING) from None
            raise
        if isinstance(found, _Failed):
            raise found.error
        return found

    def drain(self) -> None:
        """Take no new jobs and begin no attempts; what runs goes on at its agents."""
        self._draining = True

    async def close(self) -> None:
        """Stop carrying: agents go on with what they have, and the disk knows all of it.

        May be called again.
        """
        if self._closed:
            return
        self._draining = self._closed = True
        self._broker.close()
        await self._tasks.close()
        for live in self._live.values():
            for watcher in live.watchers:
                watcher.end()
        self._live.clear()
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()
        await self.store.close()

    async def failed(self) -> Exception:
        """Return the error once this life is over: another dispatcher has our jobs."""
        assert self._failed is not None, "the keeper was not opened"
        return await asyncio.shield(self._failed)

    def fail(self, error: LifeOver) -> None:
        """Let go of everything: another dispatcher has our jobs, and goes on with what runs."""
        if self._failed is not None and not self._failed.done():
            log.error("life_over", error=str(error), live=len(self._live))
            self._failed.set_result(error)
            self.drain()
            # Not one attempt is cancelled: they are the other one's now.
            self._broker.close()
            for live in self._live.values():
                if live.task is not None and live.task is not asyncio.current_task():
                    live.task.cancel()

    @property
    def draining(self) -> bool:
        """Whether nothing new is begun: before the start, and at the end."""
        return self._draining or not self._opened

    @property
    def alone(self) -> bool:
        """Whether no other dispatcher lives on this store."""
        return len(self._peers) < 2

    # -- ledger

    def now(self) -> int:
        """Give the steady time in milliseconds."""
        return self.clock.steady()

    async def begin(self, job: Job) -> bool | Wait:
        """Save a job whose attempt begins, if its limits allow; see :class:`Save`."""
        job.owner = self._life
        result = (await self.store.write(Save(job, begins=True)))[0]
        return result if isinstance(result, Wait) else bool(result)

    def keep_line(self, line: Line) -> None:
        """Keep a line of a log, without waiting for it."""
        if not self._lines and not self._closed:
            self.spawn("log", self._keep_lines)
        if len(self._lines) < MAX_LINES_WAITING:
            self._lines.append(line)

    async def _keep_lines(self) -> None:
        # A turn later, so that the lines of one stanza are one write.
        await asyncio.sleep(0)
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            numbers = await self.store.write(*lines)
        except StoreError as exc:
            log.warning("log_lines_lost", count=len(lines), error=str(exc))
            return
        for line, number in zip(lines, numbers, strict=True):
            live = self._live.get(line.job)
            if live is not None and live.watchers and isinstance(number, int) and number:
                live.tell(("log", _told(number, line)))

    # -- submission

    async def submit(self, *jobs: Job) -> list[str]:
        """Accept jobs together: on disk when this returns; gives their ids.

        Cancelling the wait does not take them back.  Where an agent has room for a job at once, its
        first attempt is written down with it.

        A job whose caller's key is known already is not accepted again: its id is the known one's.

        Raises:
            CallError: they cannot be taken: too many, an unknown job to come after, or the store
                cannot be written.
        """
        if self.draining:
            raise CallError.of(_ENDING)
        return await self._submit(jobs) if jobs else []

    async def _submit(self, jobs: Sequence[Job]) -> list[str]:
        if self._unfinished + len(jobs) > MAX_UNFINISHED:
            raise CallError.of(
                Problem("full", f"{self._unfinished} jobs have not ended: try again later", after=5)
            )
        if any(job.after for job in jobs):
            await self._refer_to_known(jobs)
            fresh = {job.id for job in jobs}
            for job in jobs:
                await self._check_dependencies(job, fresh)
        done: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        for job in jobs:
            self.take(job)
        self._accept(jobs, {job.id: live for job in jobs if (live := self._entered(job))}, done)
        return await done

    def take(self, job: Job) -> None:
        """Make a new job ours, if there is room and its time has come."""
        if job.state is JobState.QUEUED and len(self._live) < MAX_LIVE:
            job.owner = self._life

    def _entered(self, job: Job) -> Live | None:
        """Give a new job of ours with its first attempt, if there is an agent that has room."""
        if job.owner is None or job.op in self.gates:
            return None
        live = Live(job, self)
        live.errand = self._errand(live)
        if self._broker.reserve(live.errand):
            assert live.errand.attempt is not None
            live.enter(live.errand.attempt)
        return live

    def _accept(
        self, jobs: Sequence[Job], lives: Mapping[str, Live], done: asyncio.Future[list[str]]
    ) -> None:
        """Write new jobs down, some of them with an attempt; goes on whether anybody waits or not."""
        begins = {id for id, live in lives.items() if live.entered}

        def written(found: Sequence[Result] | Exception) -> None:
            if isinstance(found, Exception) or isinstance(found[0], Wait):
                for live in lives.values():
                    self._not_started(live)
            if isinstance(found, Exception):
                if isinstance(found, StoreError):
                    found = CallError.of(Problem("full", str(found), after=PAUSE))
                if not done.done():
                    done.set_exception(found)
            elif isinstance(found[0], Wait):
                # Limits that we had not heard of.  They let it begin later.
                self._accept(jobs, {}, done)
            else:
                ids = list(map(str, found))
                for job, id in zip(jobs, ids, strict=True):
                    if id == job.id:
                        self.accepted(job, lives.get(id))
                    elif job.id in lives:
                        self._not_started(lives[job.id])
                if not done.done():
                    done.set_result(ids)

        self._post([New(job, job.id in begins) for job in jobs], written)

    def _not_started(self, live: Live) -> None:
        if live.entered and live.errand is not None:
            live.take_back()
            self._broker.release(live.errand)
        live.errand = None

    async def _refer_to_known(self, jobs: Sequence[Job]) -> None:
        """Let jobs of one batch come after the known job of a key instead of its new twin."""
        known: dict[str, str] = {}
        for job in jobs:
            if job.key is not None:
                found = await self.store.find(Filter(caller=job.caller, key=job.key), 1)
                if found:
                    known[job.id] = found[0].id
        if known:
            for job in jobs:
                job.after = [known.get(id, id) for id in job.after]

    async def _check_dependencies(self, job: Job, fresh: set[str]) -> None:
        others = [id for id in job.after if id not in fresh]
        if not others:
            return
        states = await self.store.states(others)
        for id in others:
            if id not in states:
                raise CallError.of(Problem("unknown-job", f"there is no job {id}", "after"))

    async def _look_at_held(self, job: Job) -> None:
        """See whether a held job may run at once: what it comes after may have ended before."""
        states = await self.store.states(job.after)
        if any(state.final for state in states.values()):
            self._family.look_at(job.id)

    def accepted(self, job: Job, live: Live | None = None) -> None:
        """See a new job through: it is on disk, and so is its attempt, if it has one."""
        self._unfinished += 1
        if self._closed:
            return  # It is on disk, and whoever comes next goes on with it.
        self._family.born(job)
        if job.owner == self._life:
            self._carry(job, live)
        elif job.held:
            self.spawn("held", self._look_at_held, job)
        else:
            self._look_on_disk()

    def _look_on_disk(self) -> None:
        """Something may stand on disk whose time has come, or has a time now."""
        self._backlog = True
        self._wake.set()

    # -- carrying

    def _adopt(self, job: Job) -> None:
        """Go on with a job that we own now, wherever it stands."""
        self._family.born(job)
        if job.kind or job.held:
            # It waits for others, on disk.
            self.spawn("release", self.release, job)
            if job.kind:
                self._family.parent_may_end(job.id)
            else:
                self._family.look_at(job.id)
            return
        now = self.now()
        if job.state is JobState.WAITING:
            job.move(Happening.DUE)
        job.runnable = job.runnable or now
        job.ends = job.ends or job.runnable + int(job.allowed * 1000)
        self._carry(job)

    async def release(self, job: Job) -> None:
        """Let a job of ours stand on disk alone."""
        job.owner = None
        await self._insist(Save(job))
        self._look_on_disk()

    def _carry(self, job: Job, live: Live | None = None) -> None:
        live = self._live[job.id] = live or Live(job, self)
        self._family.carried(job)
        if live.entered and live.errand is not None:
            live.begun()
            self._broker.begin(live.errand, partial(self._heard_of, live))
        elif job.op in self.gates or job.tries:
            self._attend(live)
        else:
            live.errand = live.errand or self._errand(live)
            self._broker.wait(live.errand, partial(self._placed, live))

    def _placed(self, live: Live) -> None:
        """An agent has room for a job that waited in the queue; or it waits no longer."""
        errand = live.errand
        assert errand is not None
        if errand.attempt is None:
            self._attend(live)
            return
        live.enter(errand.attempt)
        live.job.owner = self._life
        live.writing = True

        def written(found: Sequence[Result] | Exception) -> None:
            live.settle()
            if self._closed:
                return
            if isinstance(found, Exception) or found[0] is not True:
                # Its task tries it once more, and learns why it cannot be.
                self._not_started(live)
                self._attend(live)
            else:
                live.begun()
                self._broker.begin(errand, partial(self._heard_of, live))

        self._post([Save(live.job, begins=True)], written)

    def _post(self, changes: Sequence[Change], told: Told) -> None:
        """Write without waiting; what the store says at once is told a turn later as well."""
        try:
            self.store.post(changes, told)
        except (StoreError, LifeOver, LocalProtocolError) as exc:
            asyncio.get_running_loop().call_soon(told, exc)

    def _attend(self, live: Live) -> None:
        """Carry a job by a task from now on, which can wait for things and be cancelled."""
        if live.errand is not None:
            self._broker.recall(live.errand)
        live.task = self._tasks.spawn(self._see_through(live), f"job {live.job.id}")

    def _heard_of(self, live: Live, final: FinalEvent | None) -> None:
        """Something became of an attempt for which no task waits: it has a value, or it is not done."""
        if live.task is not None or self._closed:
            return
        if final is None:
            self._attend(live)
            return
        self._account(live.job, final)
        live.close_try("done")
        told = self._finish(live.job, Happening.DONE, final.value, None)
        changes = self._ending(live, told)
        live.writing = True

        def written(found: Sequence[Result] | Exception) -> None:
            if self._closed:
                return  # Its agent keeps the final until somebody acknowledges it.
            if isinstance(found, Exception):
                log.warning("end_not_written", job=live.job.id, error=str(found))
                self.spawn("end", self._end_insisting, live, changes, told)
            elif found[0]:
                self._ended(live, told)
            else:
                self._let_go(live)

        self._post(changes, written)

    async def _end_insisting(self, live: Live, changes: Sequence[Change], told: list[Job]) -> None:
        if await self._insist(*changes):
            self._ended(live, told)
        else:
            self._let_go(live)

    async def _see_through(self, live: Live) -> None:
        job = live.job
        begun = live.errand is not None
        try:
            while job.id in self._live and await self._take_turn(live):
                try:
                    if not begun:
                        live.errand = self._errand(live)
                    begun = False
                    assert live.errand is not None
                    final = await self._broker.run(live.errand)
                except Limited as limited:
                    await self.gates.await_room(job.op, limited.after, self._left(job))
                    continue  # It stays our turn.
                except StoreError as exc:
                    log.warning("attempt_not_written", job=job.id, error=str(exc))
                    await asyncio.sleep(PAUSE)
                except CallError as exc:
                    await self._ended_badly(live, exc)
                else:
                    await self._ended_well(live, final)
                live.pass_on_turn()
        except Fenced:
            self._let_go(live)
        except LifeOver as exc:
            self._let_go(live)
            self.fail(exc)
        except Exception:
            # Nobody would ever end it otherwise; the mistake is ours and stands in the log.
            log.exception("job_not_carried", job=job.id)
            if not job.final:
                problem = Problem(
                    "failed", f"the dispatcher failed on it: see its log for {job.id}"
                )
                await self._end(live, Happening.FAILED, problem=problem)
        finally:
            live.pass_on_turn()

    def _errand(self, live: Live) -> Errand:
        job = live.job
        loop = asyncio.get_running_loop()
        current = job.current
        errand = Errand(
            _op_of(job),
            _demand_of(job, self._avoided(job)),
            job.caller,
            loop.time() + self._left(job),
            job.id,
            loop.time(),
            attempts=job.attempt,
            lost=tuple([item.agent for item in job.tries if item.end == "lost"]),
            book=live,
            patient=True,
            priority=job.priority,
            max_run=job.max_run,
        )
        if current is not None:
            errand.begun = Begun(current.agent, current.epoch, current.number, current.may_rerun)
        return errand

    def _avoided(self, job: Job) -> frozenset[str]:
        """Agents that it must not go to; as long as there is another one, those that failed too."""
        avoided = _names(job.want.get("avoid"))
        return avoided | self._failed_at(job)

    def _failed_at(self, job: Job) -> frozenset[str]:
        if not job.tries:
            return frozenset()
        failed = frozenset(item.agent for item in job.tries if item.end and not item.uncounted)
        if not failed or not self._policy(job).elsewhere:
            return frozenset()
        others = any(agent.address not in failed for agent in self._registry.everybody(job.op))
        return failed if others else frozenset()

    def _operation(self, job: Job) -> Operation | None:
        """Give the operation as the agent that had the job last offers it, or anybody."""
        agent = self._registry.get(job.agent or "")
        if agent is not None and job.op in agent.operations:
            return agent.operations[job.op]
        return next(iter(self._registry.offers(job.op)), None)

    def _policy(self, job: Job) -> retries.RetryPolicy:
        asked = None if job.retry is None else retries.RetryPolicy.read(job.retry)
        operation = None if asked is not None else self._operation(job)
        offered = None if operation is None or operation.retry is None else operation.retry
        return retries.combined(
            asked, None if offered is None else retries.RetryPolicy.read(offered)
        )

    async def _take_turn(self, live: Live) -> bool:
        """Wait for our turn where the operation has limits; false if our time was over before."""
        job = live.job
        if job.op not in self.gates or job.current is not None or live.step_aside is not None:
            return True
        try:
            live.step_aside = await self.gates.enter(job.op, self._left(job))
        except TimeoutError:
            await self._end(live, Happening.FAILED, problem=_too_late(job))
            return False
        return True

    def _left(self, job: Job) -> float:
        assert job.ends is not None
        return (job.ends - self.now()) / 1000

    # -- ends

    async def _ended_well(self, live: Live, final: FinalEvent) -> None:
        self._account(live.job, final)
        live.close_try("done")
        await self._end(live, Happening.DONE, value=final.value)

    async def _ended_badly(self, live: Live, error: CallError) -> None:
        """Try again later, or end it."""
        job, problem = live.job, error.problem
        errand = live.errand
        attempt = None if errand is None else errand.attempt
        call = None if attempt is None else attempt.call
        if call is not None and call.final is not None:
            self._account(job, call.final)
        current = job.current
        if current is None and problem.reason == "full" and not live.cancelling:
            # The queue is full of calls: our place is on disk.
            await asyncio.sleep(PAUSE)
            return
        if problem.reason == "no-answer" and current is not None:
            # The job's time was over before the agent said anything of it.
            problem = Problem("deadline", problem.text)
        live.close_try(problem.reason, problem.text)
        if live.cancelling and problem.reason in _STOPPED:
            text = "it was cancelled"
            if problem.reason == "lost":
                text += f", and {job.agent} did not say that it stopped"
            await self._end(live, Happening.CANCELLED, problem=Problem("cancelled", text))
            return
        pause = None
        if current is not None:
            job.failures += 1
            pause = retries.decide(
                self._policy(job), problem, job.failures, current.may_rerun, self._random
            )
        assert job.ends is not None
        due = self.now() + int((pause or 0) * 1000)
        if pause is None or live.cancelling or due >= job.ends:
            await self._end(live, Happening.FAILED, problem=problem)
            return
        job.move(Happening.DEFERRED)
        job.due, job.owner = due, None
        log.info("job_deferred", job=job.id, op=job.op, problem=problem.reason, seconds=pause)
        await self._insist(Save(job))
        if errand is not None:
            self._broker.acknowledge(errand)
        self._forget(live)
        self._look_on_disk()

    def _account(self, job: Job, final: FinalEvent) -> None:
        """Add up what a try took."""
        if final.ran is not None:
            job.ran = (job.ran or 0) + final.ran
            agent = self._registry.get(final.agent or job.agent or "")
            price = None if agent is None else agent.advertisement.cost
            if agent is not None and price:
                share = final.ran / 3_600_000 / max(1, agent.slots)
                job.cost = (job.cost or 0.0) + price * share
        if final.cpu is not None:
            job.cpu = (job.cpu or 0) + final.cpu
        if final.memory is not None:
            job.memory = max(job.memory or 0, final.memory)

    async def _end(
        self,
        live: Live,
        happening: Happening,
        *,
        value: Json = None,
        problem: Problem | None = None,
    ) -> None:
        """Write an end down, then acknowledge it and tell everybody."""
        job = live.job
        live.close_try("" if problem is None else problem.reason)
        told = self._finish(job, happening, value, problem)
        if not await self._insist(*self._ending(live, told)):
            raise Fenced
        self._ended(live, told)

    def _ending(self, live: Live, told: Iterable[Job]) -> list[Change]:
        """Give what is written at an end: the job, those that are told of it, and its last lines.

        They may have come with its end, and who reads the log then is to find them.
        """
        job = live.job
        lines = [line for line in self._lines if line.job == job.id]
        if lines:
            self._lines = [line for line in self._lines if line.job != job.id]
        return [Save(job), *map(New, told), *lines]

    def _ended(self, live: Live, told: Iterable[Job]) -> None:
        """An end is on disk: acknowledge it and tell everybody."""
        errand = live.errand
        if errand is not None and self._broker.acknowledge(errand):
            assert errand.attempt is not None
            self.strays.over(errand.attempt.agent.address, errand.attempt.key)
        self._forget(live)
        self._over(live.job, told)

    def _finish(
        self, job: Job, happening: Happening, value: Json, problem: Problem | None
    ) -> list[Job]:
        """Bring a job to its end, and give the jobs that are to be told of it."""
        job.move(happening)
        job.owner = self._life
        job.ended = self.now()
        job.value, job.problem = value, problem
        if problem is not None:
            log.info(
                "job_ended",
                job=job.id,
                op=job.op,
                caller=job.caller,
                state=job.state.value,
                problem=problem.reason,
                attempts=job.attempt,
                ran=job.ran,
            )
        told = job.on_done if job.state is JobState.DONE else job.on_error
        return [] if told is None else [self._callback(job, told)]

    def _callback(self, job: Job, op: str) -> Job:
        now = self.now()
        told: dict[str, Json] = {"id": job.id, "op": job.op, "state": job.state.value}
        if job.labels:
            told["labels"] = list(job.labels)
        if job.problem is not None:
            told["problem"] = job.problem.to_json()
        elif len(dumps(job.value)) <= MAX_TOLD:
            told["value"] = job.value
        return Job(
            id=mint(self.clock.wall()),
            caller=job.caller,
            op=op,
            created=now,
            args={"job": told},
            labels=job.labels,
            priority=job.priority,
            origin=f"callback:{job.id}",
            trace=job.trace,
            owner=self._life,
            runnable=now,
            ends=now + int(DEADLINE * 1000),
        )

    async def _insist(self, *changes: Any) -> bool:
        """Write, trying until the store can; gives whether the first change was applied."""
        pause = 0.05
        while True:
            try:
                return bool((await self.store.write(*changes))[0])
            except StoreError as exc:
                log.warning("store_not_written", error=str(exc), again=pause)
            await asyncio.sleep(pause)
            pause = min(PAUSE, pause * 2)

    def _over(self, job: Job, told: Iterable[Job]) -> None:
        """A job has ended, and that is on disk, with the jobs that are told of it."""
        self.on_end(job)
        self._unfinished -= 1
        for tell in self._waiting.pop(job.id, ()):
            tell(job)
        self.gates.freed(job.op)
        self._family.ended(job)
        if self._backlog and len(self._live) < MAX_LIVE:
            self._wake.set()
        for one in told:
            self.accepted(one)

    def _forget(self, live: Live) -> None:
        if self._live.pop(live.job.id, None) is not None:
            self._family.dropped(live.job)
        live.tell(("state", live.job))
        for watcher in live.watchers:
            watcher.end()
        live.settle()

    def _let_go(self, live: Live) -> None:
        """The job is another dispatcher's, or over: its attempt stays with its agent."""
        log.info("job_let_go", job=live.job.id)
        if live.errand is not None:
            self._broker.let_go(live.errand)
        self._forget(live)

    # -- jobs on disk

    async def end_unowned(
        self,
        job: Job,
        happening: Happening,
        value: Json = None,
        problem: Problem | None = None,
    ) -> None:
        """End a job that was claimed and is not carried."""
        told = self._finish(job, happening, value, problem)
        if await self._insist(Save(job), *map(New, told)):
            self._over(job, told)

    async def close_parent(self, job: Job) -> Job:
        """Say that a parent gets no more children; gives it as it is then."""
        return await self.whole(self._close_parent(job))

    async def _close_parent(self, job: Job) -> Job:
        while not job.closed and not job.final:
            claimed = await self.claim(job.id)
            if claimed is None:
                # Somebody looks at it just now.
                await asyncio.sleep(0.01)
            else:
                claimed.closed = True
                await self.release(claimed)
            job = await self.store.get(job.id) or job
        self._family.parent_may_end(job.id)
        return job

    async def claim(self, id: str) -> Job | None:
        """Own one job that nobody owns, or nothing; whoever claims releases or ends it."""
        claimed = await self.store.claim(self.now(), self.clock.wall(), 1, [id])
        return claimed[0] if claimed else None

    def adopt(self, job: Job) -> None:
        """Carry a claimed job whose time has come, or release it until then."""
        if job.state is JobState.WAITING and (job.due > self.now() or job.at > self.clock.wall()):
            self.spawn("release", self.release, job)
        else:
            self._adopt(job)

    @property
    def live(self) -> dict[str, Live]:
        """Jobs that are under way here, by id."""
        return self._live

    async def _promote(self) -> None:
        """Claim what is due, as far as there is room."""
        while True:
            self._wake.clear()
            room = min(PAGE, MAX_LIVE - len(self._live))
            if room > 0 and not self._draining:
                try:
                    jobs = await self.store.claim(self.now(), self.clock.wall(), room)
                except StoreError as exc:
                    log.warning("jobs_not_claimed", error=str(exc))
                    jobs = []
                self._backlog = len(jobs) == room
                for job in jobs:
                    await self._take(job)
                if self._backlog:
                    continue
            try:
                async with asyncio.timeout(await self._until_due()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _take(self, job: Job) -> None:
        now = self.now()
        if job.ends is not None and job.ends <= now and job.current is None:
            await self.end_unowned(job, Happening.FAILED, problem=_too_late(job))
            if job.kind:
                await self._family.stop_children(job.id)
        else:
            self._adopt(job)

    async def _until_due(self) -> float:
        try:
            due = await self.store.next_due()
        except StoreError:
            return LOOK
        if due is None:
            return LOOK
        steady, wall = due
        left = max(steady - self.now(), wall - self.clock.wall()) / 1000
        return min(LOOK, max(0.0, left))

    # -- housekeeping

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW)
            try:
                if (await self._meet()).orphans:
                    await self._take_over()
                await self._refresh_limits()
            except StoreError as exc:
                log.warning("lease_not_renewed", error=str(exc))

    async def _meet(self) -> Peers:
        """Say that we live and whom our home knows, and learn the same of the others."""
        peers = await self.store.renew()
        try:
            accounts = dict(self._accounts())
        except SpinalError as exc:
            log.warning("accounts_not_shared", error=str(exc))
        else:
            if accounts != self._shared:
                await self.store.share_roles(accounts)
                self._shared = accounts
        self._peers = peers.addresses
        self._on_peers(peers)
        return peers

    async def _take_over(self) -> None:
        jobs = await self.store.take_over()
        log.info("jobs_taken_over", count=len(jobs))
        for job in jobs:
            if job.id not in self._live:
                self._adopt(job)

    async def _stop_asked(self) -> None:
        """Stop those of our jobs that were cancelled at other dispatchers."""
        while True:
            await asyncio.sleep(POLL)
            if self.alone:
                continue
            try:
                asked = await self.store.asked_to_stop()
            except StoreError as exc:
                log.warning("stops_not_read", error=str(exc))
                continue
            for id in asked:
                live = self._live.get(id)
                if live is not None and not live.cancelling:
                    self.spawn("stop", self._stop, live)

    async def _sweep(self) -> None:
        """Look after what nobody looks after: because of a crash, or of a mistake of ours.

        Dependents whose last dependency has ended; and jobs that are ours by what the disk says and
        that we do not carry, twice in a row, because in between one may have been on its way here.
        """
        missed: set[str] = set()
        while True:
            try:
                self._family.look_at(*await self.store.dependents([]))
                strange = set(await self.store.owned()).difference(self._live)
                for id in strange & missed:
                    job = await self.store.get(id)
                    if job is not None and not job.final and id not in self._live:
                        log.error("job_was_not_carried", job=id, state=job.state.value)
                        self._adopt(job)
                missed = strange
            except StoreError as exc:
                log.warning("dependents_not_read", error=str(exc))
            await asyncio.sleep(SWEEP)

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(PRUNE)
            try:
                while await self.store.prune(self.clock.wall()):
                    await asyncio.sleep(0)
                # Others accept jobs as well, and end some of ours.
                self._unfinished = await self._count_unfinished()
            except StoreError as exc:
                log.warning("store_not_pruned", error=str(exc))

    # -- limits

    async def _refresh_limits(self) -> None:
        self.gates.set(await self.store.limits())

    async def set_limit(self, limit: Limit) -> None:
        """Keep a limit, in force everywhere from now on; jobs that run already are not stopped."""
        await self.store.set_limit(limit)
        await self._refresh_limits()
        self.gates.freed(limit.op)

    async def remove_limit(self, op: str) -> bool:
        """Remove a limit; tells whether it was there."""
        removed = await self.store.remove_limit(op)
        await self._refresh_limits()
        self.gates.freed(op)
        return removed

    # -- what callers ask

    async def get(self, id: str) -> Job | None:
        """Give a job as it is now."""
        live = self._live.get(id)
        if live is not None and not live.job.final:
            return live.job
        return await self.store.get(id)  # Nobody is told of an end that is not on disk.

    async def find(self, which: Filter, limit: int) -> list[Job]:
        """List jobs, newest first, as they are now."""
        states = which.states
        if not states or states & LIVE:
            # What the disk says of live jobs may be older than what we know.
            which = replace(which, states=states | LIVE if states else states)
        found: list[Job] = []
        while True:
            page = await self.store.find(which, limit)
            for job in page:
                live = self._live.get(job.id)
                now = job if live is None or live.job.final else live.job
                if not states or now.state in states:
                    found.append(now)
            if len(page) < limit or len(found) >= limit:
                return found[:limit]
            which = replace(which, before=page[-1].id)

    async def wait(self, id: str, seconds: float) -> Job | None:
        """Wait until a job ends, so long, and give it as it is then; nothing if there is none."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            over: asyncio.Future[Job] = loop.create_future()

            def tell(job: Job, over: asyncio.Future[Job] = over) -> None:
                if not over.done():
                    over.set_result(job)

            self._waiting.setdefault(id, []).append(tell)
            try:
                left = end - loop.time()
                if id not in self._live or left <= 0:
                    job = await self.get(id)
                    if job is None or job.final or left <= 0:
                        return job
                    left = end - loop.time()
                # One that is not live here may be ended by another dispatcher, who does not tell.
                async with asyncio.timeout(left if id in self._live else min(left, POLL)):
                    return await over
            except TimeoutError:
                pass
            finally:
                self._tell_no_more(id, tell)

    async def ends(self, ids: Iterable[str], seconds: float) -> AsyncGenerator[list[Job]]:
        """Give jobs as they end, those together that end together; stops when all have, or in time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        left = set(ids)
        ended: list[Job] = []
        wake = asyncio.Event()

        def tell(job: Job) -> None:
            ended.append(job)
            wake.set()

        for id in left:
            self._waiting.setdefault(id, []).append(tell)
        try:
            while True:
                # Those that are not live here end on disk alone, or another dispatcher ends them.
                found = await self._ended_elsewhere(
                    left - self._live.keys() - {j.id for j in ended}
                )
                wake.clear()
                news = {job.id: job for job in (*ended, *found) if job.id in left}
                ended.clear()
                left -= news.keys()
                if news:
                    yield list(news.values())
                if not left or loop.time() >= end:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(POLL, end - loop.time())):
                        await wake.wait()
        finally:
            for id in left:
                self._tell_no_more(id, tell)

    async def _ended_elsewhere(self, ids: Collection[str]) -> list[Job]:
        if not ids:
            return []
        states = await self.store.states(sorted(ids))
        found = [await self.store.get(id) for id, state in states.items() if state.final]
        return [job for job in found if job is not None]

    def _tell_no_more(self, id: str, tell: Callable[[Job], None]) -> None:
        waiting = self._waiting.get(id)
        if waiting is not None and tell in waiting:
            waiting.remove(tell)
            if not waiting:
                del self._waiting[id]

    async def watch(self, id: str) -> AsyncGenerator[News]:
        """Give what happens to a job until it ends; begins with its state, ends with the last."""
        last: JobState | None = None
        seen = 0
        while True:
            live = self._live.get(id)
            if live is not None:
                watcher = Watcher()
                live.watchers.append(watcher)
                try:
                    yield ("state", live.job)
                    if live.progress:
                        yield ("progress", live.progress)
                    async for news in watcher.read():
                        yield news
                finally:
                    live.watchers.remove(watcher)
                last = live.job.state
            job = await self.wait(id, POLL)
            if job is None:
                return
            if job.owner not in (None, self._life):
                # Its owner tells us nothing, but what it writes down can be read.
                page = await self.store.log(id, seen, PAGE)
                for line in page.lines:
                    seen = line.seq
                    yield ("log", _told(line.seq, line))
            if job.state is not last:
                last = job.state
                yield ("state", job)
            if job.final:
                return

    async def cancel(self, id: str) -> Job | None:
        """Stop a job and everything below it; gives it as it is then, nothing if there is none.

        Returns when it is stopped: a process of its operation is gone by then, unless its agent
        does not answer.  One that is another dispatcher's has :data:`STOP` seconds.  Cancelling the
        wait does not take it back.
        """
        return await self.whole(self._cancel(id))

    async def _cancel(self, id: str) -> Job | None:
        loop = asyncio.get_running_loop()
        end = loop.time() + STOP
        while True:
            live = self._live.get(id)
            if live is not None:
                await self._stop(live)
            job = await self.get(id)
            if job is None or job.final or loop.time() >= end:
                return job
            claimed = await self.claim(id)
            if claimed is not None:
                await self.end_unowned(claimed, Happening.CANCELLED, problem=Problem("cancelled"))
                if job.kind:
                    # After it, because the end of the last child would end it in another way.
                    await self._family.stop_children(id)
                return claimed
            # It moved meanwhile, or is another dispatcher's.
            await self.store.ask_to_stop(id)
            await self.wait(id, POLL)

    async def _stop(self, live: Live) -> None:
        try:
            await self._cancel_live(live)
        except Fenced:
            self._let_go(live)

    async def _cancel_live(self, live: Live) -> None:
        job = live.job
        live.cancelling = True
        if live.task is None:
            await live.settled()
            if job.id not in self._live:
                return
        if live.task is None:
            self._attend(live)
        task = live.task
        assert task is not None
        # One that is cancelled before its first step never takes it.
        await asyncio.sleep(0)
        attempt = None if live.errand is None else live.errand.attempt
        call = None if attempt is None else attempt.call
        current = job.current
        try:
            if call is not None and not call.done:
                answer = await self._session.cancel(call)
            elif current is not None and call is None:
                # Of an earlier life, and about to be asked for again: its agent may be there.
                answer = await self._session.cancel_exchange(
                    current.agent, job.id, current.number, self._left(job)
                )
            else:
                answer = ""
        except CallError as exc:
            answer = exc.reason
        if answer:
            log.info("job_cancelled", job=job.id, agent=job.agent, answer=answer)
            if answer in ("cancelled", "late") or call is not None:
                await asyncio.wait([task], timeout=CANCEL)
        if job.id not in self._live:
            return
        text = "it was cancelled"
        if answer:
            text = f"it was cancelled, and {job.agent} did not say that it stopped"
        if not job.final:  # Else its end is being written, and that must not be stopped.
            task.cancel()
        await asyncio.wait([task])
        if job.id in self._live and not job.final:
            live.close_try("cancelled")
            await self._end(live, Happening.CANCELLED, problem=Problem("cancelled", text))

    async def retry(self, job: Job) -> Job:
        """Submit an ended job again, as a new one that names it; the old one leaves the dead list."""
        if self.draining:
            raise CallError.of(_ENDING)
        return await self.whole(self._retry(job))

    async def _retry(self, job: Job) -> Job:
        wall, now = self.clock.wall(), self.now()
        again = Job(
            id=mint(wall),
            caller=job.caller,
            op=job.op,
            created=now,
            args=job.args,
            want=job.want,
            labels=job.labels,
            priority=job.priority,
            allowed=job.allowed,
            max_run=job.max_run,
            retry=job.retry,
            on_done=job.on_done,
            on_error=job.on_error,
            origin=f"retry:{job.id}",
            trace=job.trace,
            runnable=now,
            ends=now + int(job.allowed * 1000),
        )
        await self._submit([again])
        if job.state is JobState.ERROR:
            await self.store.write(Look(job.id))
        return again

    async def forget(self, ids: Iterable[str]) -> list[str]:
        """Delete ended jobs; gives those that were there."""
        wanted = list(ids)
        results = await asyncio.gather(*(self.store.write(Forget(id)) for id in wanted))
        return [id for id, result in zip(wanted, results, strict=True) if result[0] is True]

    def heard(self, agent: str, silent: bool) -> None:
        """An agent fell silent, or was heard again: its jobs are stalled, or processing."""
        happening = Happening.SILENT if silent else Happening.HEARD
        expected = JobState.PROCESSING if silent else JobState.STALLED
        known = self._registry.get(agent)
        for id, _ in known.attempts() if known is not None else ():
            live = self._live.get(id)
            if live is not None and live.job.state is expected:
                live.job.move(happening)
                live.tell(("state", live.job))


def _told(number: int, line: Line | LogLine) -> dict[str, Json]:
    return {"seq": number, "at": stamp(line.at), "level": line.level, "text": line.text}


def _op_of(job: Job) -> Op:
    return Op(
        job.id,
        op=job.op,
        left=0,
        args=job.args,
        key=job.key,
        trace=job.trace,
        want=_RERUN if job.want.get("rerun") else None,
    )


_RERUN: Final = Want(rerun=True)


def want_of(job: Job) -> Want | None:
    """Give what a job asks of its agent, as a call would."""
    if not job.want:
        return None
    want = {name: value for name, value in job.want.items() if name not in ("to", "avoid")}
    return Want(**want) if want else None


def _demand_of(job: Job, avoided: frozenset[str]) -> Demand:
    demand = Demand.of(job.op, want_of(job))
    only = str(job.want.get("to") or "")
    if demand.policy in ("all", "any-first"):
        demand = replace(demand, policy="least-loaded")
    if avoided or only:
        demand = replace(demand, exclude=avoided, only=only)
    return demand


def _names(given: Json) -> frozenset[str]:
    return frozenset(cast("list[str]", given)) if isinstance(given, list) else frozenset()


def _too_late(job: Job) -> Problem:
    return Problem("expired", f"its deadline of {job.allowed:g} s passed before it was done")
