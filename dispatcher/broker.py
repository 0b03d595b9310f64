"""Sees brokered calls through: finds an agent or waits for one, passes the call on, tries again.

Theory of operation.  Each call is an :class:`Errand`, carried by the task that serves its request.
It goes round in a circle: *place* (an agent with room, or a place in the queue), *attempt* (one
exchange with that agent, everything it says passed on), and *decide* (``retry``: the answer is the
end, or elsewhere).  A slot is taken when an attempt is reserved and given back when it is released,
and each change that could let somebody start pumps the queue for that agent; so whenever the event
loop is idle, nothing waits that could run.

A waiting errand is woken with an attempt, or with nothing, which means "look again": what it waits
for has changed so that waiting may be wrong.

An errand may have a book (a job has one).  Where an agent has room for it at once, its first attempt
is written down together with it, and then nobody waits for it: it needs a task only once something
else than a value becomes of it (*reserve*, *begin*); nor while it waits in the queue (*wait*).  In any case each attempt is written down before it is sent, and
its final is acknowledged by whoever keeps the book, once it is safe.  An attempt that a former life
of ours began is *resumed*: once its agent is there in the same life, the same op is sent again, and
an agent that has it does not run it twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from random import Random
from typing import Any, Protocol

import structlog

from spinal.bus.call import Call
from spinal.bus.errors import BusError, CallError
from spinal.bus.requests import Request
from spinal.bus.session import Session
from spinal.protocols import Data, Final, Json, Log, Op, Problem, Progress, Seen, State
from spinal.protocols.address import bare

from .agent import LEASE, AttemptKey, KnownAgent
from .errors import QueueFull
from .policies import Context
from .queue import Entry, Queue
from .refusal import no_agent, none_free
from .registry import Registry
from .resolver import Choice, Demand, choose, ranked, reasons, rejection
from .retry import History, Lesson, Loss, Verdict, answered, ended, forgotten_for, lost, patience

log = structlog.get_logger()

#: A waiting call is told that nobody was free so long before its caller gives up, so that it hears
#: it: this part of the whole time, and at most so many seconds.
MARGIN = 0.05
MAX_MARGIN = 0.1

#: Agents with which one is compared before a call waits there.
LOOKED_AT = 16


#: Seconds for which the explanation of a choice serves equal demands as well.
WHY_AGE = 0.25

#: Agents that came after the chosen one, as far as a book wants to know them.
RUNNERS_UP = 5

#: Seconds beyond the deadline in which a resumed attempt may still bring its final.
RESUME_GRACE = 10.0


#: What the end of a resumed attempt means where the agent did not refuse it itself.
_RESUMED = {
    "unreachable": Loss.GONE,
    "expired": Loss.GONE,
    "no-answer": Loss.SILENT,
    "stale-epoch": Loss.RESTARTED,
}


class Book(Protocol):
    """Keeps account of the attempts of one errand."""

    async def begin(self, attempt: Attempt) -> None:
        """Write an attempt down, before it is sent; what it raises ends the errand."""
        ...

    def returned(self, end: str, text: str) -> None:
        """The attempt ended without a result, and the errand goes on."""
        ...

    def told(self, item: Progress | Log | Data) -> None:
        """The agent said how far it is."""
        ...


#: Who came next, with reasons.
Runners = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Why:
    """Why an agent was chosen."""

    chosen: tuple[str, ...] = ()
    runners: Runners = ()
    #: How many were passed over, by rule.
    passed: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt that a former life began, or another dispatcher."""

    agent: str
    epoch: int
    number: int
    may_rerun: bool


@dataclass(slots=True, eq=False)
class Errand:
    """One call that is being seen through."""

    op: Op
    demand: Demand
    caller: str
    #: ``loop.time()`` at which its caller gives up.
    deadline: float
    id: str
    began: float
    #: Who is told of progress, log lines and data, if anybody is.
    request: Request | None = None
    attempts: int = 0
    #: Agents that were lost on it.
    lost: tuple[str, ...] = ()
    #: Pieces of its stream that the caller has got.
    passed_on: int = 0
    book: Book | None = None
    #: Waits for an agent until its deadline, also while nobody offers the operation.
    patient: bool = False
    priority: int = 0
    #: Seconds that one attempt may take.
    max_run: float | None = None
    #: The attempt to go on with.
    begun: Begun | None = None
    #: The one that is under way, or was the last.
    attempt: Attempt | None = None
    #: It has been counted.
    counted: bool = False
    #: Its place in the queue, while it waits there and no task waits for it.
    place: _Place | None = None

    @property
    def next_key(self) -> AttemptKey:
        """The key of the attempt that comes next."""
        return (self.id, self.attempts + 1)


@dataclass(slots=True, eq=False)
class Attempt:
    """One try of an errand at one agent; holds a slot there until it is released."""

    errand: Errand
    agent: KnownAgent
    key: AttemptKey
    may_rerun: bool
    call: Call | None = None
    #: How it was lost, if we found that it was.
    loss: Loss | None = None
    #: Since when reports leave it out.
    missing_since: float | None = None
    why: Why | None = None
    #: Its book has written it down.
    begun: bool = False
    #: It was begun by a former life, and is asked for again.
    resumed: bool = False


@dataclass(slots=True)
class Counts:
    """What the broker has done since it started."""

    calls: int = 0
    done: int = 0
    failed: int = 0
    lost_attempts: int = 0
    returned_attempts: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    errand: Errand
    placed: asyncio.Future[Attempt | None] | _Place = field(repr=False)


@dataclass(slots=True, eq=False)
class _Place:
    """A place in the queue for which no task waits: in place of a future."""

    told: Callable[[Attempt | None], None]
    entry: Entry[_Waiter] | None = None
    timer: asyncio.TimerHandle | None = None
    left: bool = False

    def done(self) -> bool:
        """Tell whether it was given up, for an attempt or for nothing."""
        return self.left

    def set_result(self, attempt: Attempt | None) -> None:
        """Give an attempt, or nothing: look again."""
        self.leave()
        self.told(attempt)

    def leave(self) -> None:
        """Give it up."""
        self.left = True
        if self.timer is not None:
            self.timer.cancel()


class Broker:
    """Carries calls to agents.

    Args:
        session: moves them; ours to call with, somebody else's to open and close.
        registry: who is there.
        expecting: tells whether agents that are not known yet may still report.
        random: where the policy ``random`` draws from.
        queue: where calls wait.
    """

    def __init__(
        self,
        session: Session,
        registry: Registry,
        *,
        expecting: Callable[[], bool] = lambda: False,
        random: Random | None = None,
        queue: Queue[_Waiter] | None = None,
    ) -> None:
        self._session = session
        self._registry = registry
        self._expecting = expecting
        self._random = random or Random()
        self._queue: Queue[_Waiter] = Queue() if queue is None else queue
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._missing: dict[AttemptKey, Attempt] = {}
        #: Address of an agent -> those who wait until it reports.
        self._expected: dict[str, list[asyncio.Future[None]]] = {}
        self._whys: dict[Demand, tuple[float, Runners, Mapping[str, int]]] = {}
        self._last: dict[str, str] = {}
        self._prefix = secrets.token_hex(5)
        self._numbers = itertools.count(1)
        self._closed = False
        self.counts = Counts()
        #: Told of what happens, while somebody watches.
        self.watch: Callable[[Seen], None] | None = None

    @property
    def expecting(self) -> bool:
        """Whether an agent that is not known yet may still offer what nobody offers now."""
        return self._expecting()

    @property
    def waiting(self) -> int:
        """Calls that wait for an agent."""
        return len(self._queue)

    def waiting_for(self, ops: Iterable[str]) -> int:
        """Count the calls of these operations that wait for an agent."""
        counts = self._queue.operations()
        return sum(counts.get(op, 0) for op in ops)

    @property
    def in_flight(self) -> int:
        """Attempts that are at agents."""
        return len(self._attempts)

    @property
    def calls_in_flight(self) -> int:
        """Attempts at agents that end with us: those of calls, not of jobs."""
        return sum(attempt.errand.book is None for attempt in self._attempts.values())

    def close(self) -> None:
        """Start nothing more; whoever serves the requests cancels what runs.

        Attempts that are written down stay with their agents, who keep the finals.
        """
        self._closed = True
        for attempt in self._attempts.values():
            if attempt.errand.book is not None and attempt.call is not None:
                self._session.leave(attempt.call)

    # -- one call

    def errand(self, request: Request, demand: Demand, deadline: float | None = None) -> Errand:
        """Make an errand of a request."""
        return Errand(
            request.op,
            demand,
            request.caller,
            request.deadline if deadline is None else deadline,
            f"{self._prefix}-{next(self._numbers):x}",
            asyncio.get_running_loop().time(),
        )

    async def ask(
        self, op: str, args: Mapping[str, Json], demand: Demand, caller: str, within: float
    ) -> Json:
        """Have something done by ourselves, within so many seconds, and give its value.

        Raises:
            CallError: it ended without one.
        """
        now, id = asyncio.get_running_loop().time(), f"{self._prefix}-{next(self._numbers):x}"
        call = Op(id, op=op, left=0, args=args)
        return (await self.run(Errand(call, demand, caller, now + within, id, now))).value

    async def run(self, errand: Errand) -> Final:
        """See an errand through and give the final that has its value.

        If an attempt was begun (:meth:`begin`), it goes on with that.

        Raises:
            CallError: it ended without one.

        Cancelling it cancels the attempt at the agent.
        """
        self._count(errand)
        self.recall(errand)
        try:
            final = await self._run(errand)
        except CallError as exc:
            self.counts.failed += 1
            self._log(errand, exc.agent, exc.reason)
            raise
        self.counts.done += 1
        self._log(errand, final.agent, "done")
        return final

    @cached_property
    def _log_calls(self) -> Any:
        return log.bind()

    def _log(self, errand: Errand, agent: str | None, state: str) -> None:
        # Bound once, so that a line below the level costs a call and no more.
        self._log_calls.debug(
            "call_brokered",
            op=errand.op.op,
            caller=errand.caller,
            agent=agent,
            state=state,
            attempts=errand.attempts,
            seconds=round(self._session.now - errand.began, 4),
        )

    async def _run(self, errand: Errand) -> Final:
        attempt = errand.attempt
        if attempt is None and errand.begun is not None:
            attempt = await self._resume(errand, errand.begun)
        while True:
            if attempt is None:
                attempt = await self._place(errand)
            errand.attempt = attempt
            try:
                final = await self._try(attempt)
                if final.problem is None:
                    return final
                self._decide(attempt, final, final.problem)
            finally:
                # Only now: a slot that is given back before its refusal was learned from would be
                # taken by the next one at once, and refused again.
                self._release(attempt)
            attempt = None

    def _decide(self, attempt: Attempt, final: Final, problem: Problem) -> None:
        """End the errand by raising its problem, or let it try elsewhere."""
        errand, agent = attempt.errand, attempt.agent
        if attempt.loss is None and final.agent is None:
            if problem.reason == "lost":
                attempt.loss = Loss.GONE
            elif attempt.resumed:
                # What was not taken now may have been taken when it was sent first.
                attempt.loss = _RESUMED.get(problem.reason)
        if attempt.loss is not None and attempt.call is not None:
            verdict = self._lost(errand, agent.address, attempt.loss, attempt.may_rerun)
            problem = Problem("lost", f"{agent.address} {attempt.loss.value}")
        else:
            if final.agent is not None:
                verdict = ended(problem, attempt.may_rerun)
            else:
                verdict = answered(problem)
            self.counts.returned_attempts += verdict.problem is None
            self._learn(attempt, verdict.lesson)
        if verdict.problem is not None:
            raise CallError.of(verdict.problem, final.agent or agent.address)
        if errand.book is not None:
            self.acknowledge(errand)
            errand.book.returned(problem.reason, problem.text)

    def _lost(self, errand: Errand, agent: str, loss: Loss, may_rerun: bool) -> Verdict:
        self.counts.lost_attempts += 1
        verdict = lost(loss, agent, History(may_rerun, errand.lost, errand.passed_on))
        errand.lost = (*errand.lost, agent)
        log.info(
            "attempt_lost",
            op=errand.op.op,
            agent=agent,
            how=loss.value,
            moves=verdict.problem is None,
        )
        return verdict

    def acknowledge(self, errand: Errand) -> bool:
        """Tell the agent that it need not keep the final of the last attempt any longer.

        False if there is none: it was never sent, or has not ended.
        """
        call = None if errand.attempt is None else errand.attempt.call
        if call is None or call.exchange.state is not State.ENDED:
            return False
        self._session.acknowledge(call)
        return True

    def let_go(self, errand: Errand) -> None:
        """Leave the last attempt to its agent: it is another dispatcher's now."""
        call = None if errand.attempt is None else errand.attempt.call
        if call is not None:
            self._session.leave(call)

    # -- resume

    async def _resume(self, errand: Errand, begun: Begun) -> Attempt | None:
        """Find the agent that has an attempt; nothing if it is lost and may run elsewhere.

        Raises:
            CallError: it is lost, and that is the end of the errand.
        """
        agent = await self._reported(begun)
        if agent is not None and agent.epoch == begun.epoch:
            attempt = Attempt(
                errand,
                agent,
                (errand.id, begun.number),
                begun.may_rerun,
                begun=True,
                resumed=True,
            )
            now = asyncio.get_running_loop().time()
            self._registry.start(agent, attempt.key, errand.op.op, now)
            self._attempts[attempt.key] = attempt
            return attempt
        loss = Loss.SILENT if agent is None else Loss.RESTARTED
        verdict = self._lost(errand, begun.agent, loss, begun.may_rerun)
        if verdict.problem is not None:
            raise CallError.of(verdict.problem, begun.agent)
        if errand.book is not None:
            errand.book.returned("lost", f"{begun.agent} {loss.value}")
        return None

    async def _reported(self, begun: Begun) -> KnownAgent | None:
        """Wait for the agent: the life that it was, a later one, or nothing after a whole lease.

        While we have no stream the lease stands still.
        """
        loop = asyncio.get_running_loop()
        left = LEASE
        while True:
            agent = self._registry.get(begun.agent)
            if agent is not None and (agent.epoch != begun.epoch or agent.gone_at is None):
                return agent
            if left <= 0:
                return None
            since = loop.time()
            report: asyncio.Future[None] = loop.create_future()
            self._expected.setdefault(begun.agent, []).append(report)
            try:
                async with asyncio.timeout(min(left, 1.0)):
                    await report
            except TimeoutError:
                if self._registry.runs:
                    left -= loop.time() - since
            finally:
                waiting = self._expected[begun.agent]
                waiting.remove(report)
                if not waiting:
                    del self._expected[begun.agent]

    def _learn(self, attempt: Attempt, lesson: Lesson) -> None:
        """Take to heart what a refusal says about the agent, before its next report says so."""
        agent, errand = attempt.agent, attempt.errand
        match lesson:
            case Lesson.FULL:
                agent.refused(attempt.key)
            case Lesson.DRAINING:
                agent.drains()
                self.changed(agent)
            case Lesson.GONE:
                if self._registry.get(agent.address) is agent:
                    self._registry.unavailable(agent.address, self._now())
                    self.changed(agent)
            case Lesson.UNABLE:
                exclude = errand.demand.exclude | {agent.address}
                errand.demand = replace(errand.demand, exclude=exclude)
            case Lesson.NOTHING:
                pass

    # -- place

    async def _place(self, errand: Errand) -> Attempt:
        """Take a slot at an agent, waiting for one if there may be one later."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        end = _patience(errand, began)
        while True:
            choice = self._choice(errand)
            if choice.agent is not None:
                return self._reserve(errand, choice.agent)
            if not choice.later and not errand.patient and not self._expecting():
                raise CallError.of(self._nobody(errand))
            placed: asyncio.Future[Attempt | None] = loop.create_future()
            try:
                entry = self._line_up(errand, choice, placed)
            except QueueFull as exc:
                raise CallError.of(exc.problem) from exc
            try:
                async with asyncio.timeout_at(end):
                    attempt = await placed
            except (TimeoutError, asyncio.CancelledError) as exc:
                self._queue.remove(entry)
                if placed.done() and not placed.cancelled():
                    # Stopped in the very moment in which it was given a slot.
                    given = placed.result()
                    if given is not None:
                        self._release(given)
                if isinstance(exc, TimeoutError):
                    raise CallError.of(self._too_late(errand, loop.time() - began)) from None
                raise
            if attempt is not None:
                return attempt

    def _line_up(
        self, errand: Errand, choice: Choice, placed: asyncio.Future[Attempt | None] | _Place
    ) -> Entry[_Waiter]:
        demand = errand.demand
        if choice.only:
            demand = replace(demand, only=choice.only)
        entry = Entry(
            demand,
            bare(errand.caller),
            errand.deadline,
            _Waiter(errand, placed),
            # What was lost has waited its turn already.
            priority=errand.priority + (1 if errand.lost else 0),
            size=_size(errand.op),
        )
        self._queue.add(entry, asyncio.get_running_loop().time())
        return entry

    def _choice(self, errand: Errand) -> Choice:
        demand = errand.demand
        if self._queue.has(demand):
            # Those who wait already would have been started if anybody were free.
            return Choice(None, later=True)
        return choose(self._registry, demand, self.context(errand.caller), frozenset(errand.lost))

    def _nobody(self, errand: Errand) -> Problem:
        demand = errand.demand
        passed = self._registry.passed(demand, self.context(errand.caller))
        problem = no_agent(demand.op, passed, self._registry.operations())
        return self._after_loss(errand, problem)

    def _too_late(self, errand: Errand, seconds: float) -> Problem:
        demand, context = errand.demand, self.context(errand.caller)
        choice = choose(self._registry, demand, context)
        if choice.agent is None and not choice.later:
            return self._nobody(errand)
        passed = self._registry.passed(demand, context)
        return self._after_loss(errand, none_free(demand.op, seconds, passed))

    @staticmethod
    def _after_loss(errand: Errand, problem: Problem) -> Problem:
        """A call that was begun somewhere and lost did not end as one that never ran."""
        if not errand.lost:
            return problem
        return Problem(
            "lost", f"{', '.join(errand.lost)} was lost while it ran, and {problem.text}"
        )

    def _reserve(self, errand: Errand, agent: KnownAgent) -> Attempt:
        op = errand.op.op
        want = errand.op.want
        operation = agent.operations.get(op)
        safe = operation is not None and operation.safe
        attempt = Attempt(errand, agent, errand.next_key, safe or bool(want and want.rerun))
        if errand.book is not None:
            attempt.why = self._why(errand, agent)
        errand.attempts += 1
        self._registry.start(agent, attempt.key, op, asyncio.get_running_loop().time())
        self._attempts[attempt.key] = attempt
        if errand.demand.policy == "round-robin":
            self._last[op] = agent.address
        return attempt

    def _why(self, errand: Errand, agent: KnownAgent) -> Why:
        """Explain a choice; for a burst of equal demands by who came next a moment ago."""
        context = self.context(errand.caller)
        now = context.now
        at, runners, passed = self._whys.get(errand.demand, (-WHY_AGE, (), {}))
        if now - at >= WHY_AGE:
            self._whys = {d: item for d, item in self._whys.items() if now - item[0] < WHY_AGE}
            first = islice(ranked(self._registry, errand.demand, context), RUNNERS_UP + 1)
            runners = tuple((one.address, reasons(one, context)) for one in first)
            passed = self._registry.passed(errand.demand, context)
            self._whys[errand.demand] = (now, runners, passed)
        chosen = reasons(agent, context)
        others = [runner for runner in runners if runner[0] != agent.address]
        return Why(chosen, tuple(others[:RUNNERS_UP]), passed)

    def reserve(self, errand: Errand) -> bool:
        """Take a slot for an errand with a book at an agent that has room now; false if none has.

        Its attempt then has to be written down and begun, or given up (:meth:`release`).
        """
        agent = self._choice(errand).agent
        if agent is None:
            return False
        errand.attempt = self._reserve(errand, agent)
        return True

    def wait(self, errand: Errand, placed: Callable[[], None]) -> None:
        """Let an errand with a book wait for an agent, if none has room now; no task waits for it.

        ``placed`` is called when something is reserved for it, or else when :meth:`run` has to see
        to it: its time is over, or what it waits for may not come.
        """
        choice = self._choice(errand)
        if choice.agent is not None:
            errand.attempt = self._reserve(errand, choice.agent)
            placed()
            return
        loop = asyncio.get_running_loop()

        def told(attempt: Attempt | None) -> None:
            errand.place = None
            errand.attempt = attempt
            if not self._closed:
                placed()

        place = _Place(told)
        try:
            place.entry = self._line_up(errand, choice, place)
        except QueueFull:
            loop.call_soon(told, None)
            return
        errand.place = place
        place.timer = loop.call_at(_patience(errand, loop.time()), self._overdue, place)

    def _overdue(self, place: _Place) -> None:
        if place.entry is not None and not place.done():
            self._queue.remove(place.entry)
            place.set_result(None)

    def recall(self, errand: Errand) -> None:
        """Take an errand out of the queue, if it waits there."""
        place, errand.place = errand.place, None
        if place is not None and place.entry is not None:
            place.leave()
            self._queue.remove(place.entry)

    def _count(self, errand: Errand) -> None:
        if not errand.counted:
            errand.counted = True
            self.counts.calls += 1

    def release(self, errand: Errand) -> None:
        """Give up what was reserved for an errand: nothing was sent."""
        attempt, errand.attempt = errand.attempt, None
        if attempt is not None:
            errand.attempts -= 1
            self._release(attempt)

    def begin(self, errand: Errand, over: Callable[[Final | None], None]) -> None:
        """Send the attempt of an errand, which was reserved and written down; nobody waits for it.

        Args:
            errand: has a book, which is told what the agent says meanwhile.
            over: told the final that has a value; or nothing where more is to be done than that,
                which :meth:`run` then does.
        """
        attempt = errand.attempt
        assert attempt is not None, "nothing was reserved"
        self._count(errand)
        attempt.begun = True

        def ended(call: Call) -> None:
            final = call.final
            if self._closed:
                return  # It stays with its agent.
            if final is None or final.problem is not None:
                over(None)
                return
            self.counts.done += 1
            self._heard(attempt, final)
            self._release(attempt)
            over(final)

        if attempt.loss is not None or self._closed:
            over(None)
            return
        try:
            self._send(attempt).then(ended)
        except (CallError, BusError):
            over(None)  # It is raised once more, to somebody who can do something about it.

    def _release(self, attempt: Attempt) -> None:
        """Give the slot back, and let the next one have it."""
        if self._attempts.pop(attempt.key, None) is None:
            return
        self._missing.pop(attempt.key, None)
        attempt.agent.ended(attempt.key, asyncio.get_running_loop().time())
        self.pump(attempt.agent)

    # -- attempt

    async def _try(self, attempt: Attempt) -> Final:
        errand, book = attempt.errand, attempt.errand.book
        if book is not None and not attempt.begun:
            await book.begin(attempt)
            attempt.begun = True
        if attempt.call is None:
            if attempt.loss is not None:
                # Lost between the moment in which it was placed and this one: nothing was sent.
                return Final(*attempt.key, problem=Problem("unreachable"))
            self._send(attempt)
        call = attempt.call
        assert call is not None
        try:
            if errand.request is not None and errand.op.window:
                await self._pass_on(call, errand, errand.request)
            final = await call.wait()
        except asyncio.CancelledError:
            if self.watch is not None:
                self.watch(self._seen("final", attempt, "cancelled"))
            raise
        finally:
            if not call.done:
                if self._closed and book is not None:
                    self._session.leave(call)
                else:
                    self._session.abandon(call)
        self._heard(attempt, final)
        return final

    def _send(self, attempt: Attempt) -> Call:
        errand, agent, op = attempt.errand, attempt.agent, attempt.errand.op
        book = errand.book
        now = asyncio.get_running_loop().time()
        remaining = max(0.0, errand.deadline - now)
        if errand.max_run is not None:
            remaining = min(remaining, errand.max_run)
        if attempt.resumed:
            remaining = max(remaining, RESUME_GRACE)
        call = attempt.call = self._session.call(
            agent.address,
            op.op,
            op.args,
            timeout=remaining,
            id=attempt.key[0],
            attempt=attempt.key[1],
            epoch=agent.epoch,
            key=_key(errand),
            caller=errand.caller,
            trace=op.trace,
            window=1 if book is not None else op.window if errand.request is not None else 0,
            patience=patience(attempt.may_rerun, remaining),
            acknowledge=book is None,
            again=attempt.resumed,
        )
        if book is not None:
            call.attend(book.told)
        if self.watch is not None:
            self.watch(self._seen("op", attempt))
        return call

    def _heard(self, attempt: Attempt, final: Final) -> None:
        agent, op = attempt.agent, attempt.errand.op
        if final.agent is not None and final.ran is not None:
            agent.ran(op.op, final.ran / 1000)
        if self.watch is not None:
            state = "done" if final.problem is None else final.problem.reason
            self.watch(self._seen("final", attempt, state, final.ran))

    async def _pass_on(self, call: Call, errand: Errand, request: Request) -> None:
        async for item in call:
            match item:
                case Progress():
                    request.progress(item.done, item.total, item.note)
                case Log():
                    request.log(item.text, item.level)
                case Data():
                    # Waits while our caller does not read; then the agent waits as well, because
                    # this piece is answered only once the next one is asked for.
                    await request.data(item.value)
                    errand.passed_on += 1

    def _seen(self, what: str, attempt: Attempt, state: str = "", ran: int | None = None) -> Seen:
        errand = attempt.errand
        return Seen(
            what, errand.op.id, errand.caller, attempt.agent.address, errand.op.op, state, ran
        )

    # -- what changes around it

    def context(self, caller: str = "") -> Context:
        """What ranking needs to know now."""
        now = self._now()
        self._registry.look(now)
        return Context(now, self._random, caller, self._last)

    def _now(self) -> float:
        return self._registry.time(asyncio.get_running_loop().time())

    def pump(self, agent: KnownAgent) -> None:
        """Start what waits and can run on an agent now."""
        if self._closed or not len(self._queue):
            return
        if self._registry.get(agent.address) is not agent:
            return
        context = self.context()

        def accepts(demand: Demand) -> bool:
            if rejection(agent, demand, context) is not None:
                return False
            if demand.policy == "sticky" and not demand.only:
                return choose(self._registry, demand, context).agent is agent
            return agent.busy < agent.slots or self._may_prefetch(agent, demand, context)

        loop = asyncio.get_running_loop()
        while not agent.rests:
            entry = self._queue.take(agent.address, agent.operations, accepts, loop.time())
            if entry is None:
                return
            waiter = entry.item
            if not waiter.placed.done():
                fair = self._fair(agent, entry.demand, context)
                waiter.placed.set_result(self._reserve(waiter.errand, fair))

    def _fair(self, agent: KnownAgent, demand: Demand, context: Context) -> KnownAgent:
        """Give the agent whose turn it is to have a call that ``agent`` could start now.

        Of short calls whoever is scheduled first by its machine would get most of a burst.  So
        such a call goes to an equal one that was given fewer lately, as long as it fits into what
        may wait there anyway; where calls are long, whoever is free first takes the next.
        """
        if demand.policy != "least-loaded" or not agent.prefetch(demand.op):
            return agent
        best, least = agent, agent.share(context.now) - 1.0
        for other in islice(ranked(self._registry, demand, context), LOOKED_AT):
            if other.slots == agent.slots and (given := other.share(context.now)) < least:
                best, least = other, given
        return best

    def _may_prefetch(self, agent: KnownAgent, demand: Demand, context: Context) -> bool:
        """Tell whether a call may wait at an agent that has no free slot.

        Only while enough wait here for all who could do it, and at nobody before the others: else
        whoever answers first would get most of a burst of short calls.
        """
        others = 0 if demand.only else self._registry.count(demand.op) - 1
        if not others:
            return True
        if agent.busy - agent.slots >= len(self._queue) // (4 * (others + 1)):
            return False
        for other in ranked(self._registry, demand, context):
            if other is not agent:
                return agent.busy * other.slots <= other.busy * agent.slots
        return True

    def reported(self, agent: KnownAgent) -> None:
        """A report came: start what it has room for, and see what it has forgotten."""
        if agent.in_flight:
            self._compare(agent)
        for report in self._expected.get(agent.address, ()):
            if not report.done():
                report.set_result(None)
        self.pump(agent)

    def _compare(self, agent: KnownAgent) -> None:
        """Compare what an agent says that it has with what we sent it."""
        now = asyncio.get_running_loop().time()
        unheld = agent.unheld()
        for key in agent.attempts():
            if key not in unheld:
                missing = self._missing.pop(key, None)
                if missing is not None:
                    missing.missing_since = None
                continue
            attempt = self._attempts.get(key)
            if attempt is None or attempt.call is None or not attempt.call.heard:
                continue  # It may not have arrived, and is said again until it has.
            if attempt.missing_since is None:
                attempt.missing_since = now
                self._missing[key] = attempt
            self._give_up(attempt, now)

    def look_for_forgotten(self) -> None:
        """Give up the attempts that reports have left out for too long."""
        now = asyncio.get_running_loop().time()
        for attempt in list(self._missing.values()):
            self._give_up(attempt, now)

    def _give_up(self, attempt: Attempt, now: float) -> None:
        """Take an attempt away if reports have left it out for too long."""
        since = attempt.missing_since
        if since is not None and now - since >= forgotten_for(attempt.may_rerun, LEASE):
            self.lose(attempt.key, Loss.FORGOTTEN)

    def lose(self, key: AttemptKey, loss: Loss) -> None:
        """Take an attempt away from its agent; its errand decides what follows."""
        attempt = self._attempts.get(key)
        if attempt is None or attempt.loss is not None:
            return
        attempt.loss = loss
        self._missing.pop(key, None)
        if attempt.call is not None:
            self._session.abandon(attempt.call)

    def changed(self, agent: KnownAgent) -> None:
        """An agent left, or is not what it was: who waits for it alone looks again."""
        self._wake(
            entry
            for demand in self._queue.demands_for(agent.address)
            for entry in self._queue.waiting_for(demand)
        )

    def withdrawn(self, ops: Iterable[str]) -> None:
        """Somebody less offers these operations: who waits for nobody any more looks again."""
        if not len(self._queue) or self._expecting():
            return
        context = self.context()
        for op in ops:
            for demand in self._queue.demands(op):
                choice = choose(self._registry, demand, context)
                if choice.agent is None and not choice.later:
                    self._wake(self._queue.waiting_for(demand))

    def look_again(self) -> None:
        """Everybody who waits looks again."""
        self.withdrawn({demand.op for demand in self._queue.demands()})

    def expire(self) -> None:
        """Drop what waits beyond its deadline; whoever serves it has noticed already."""
        self._queue.expire(asyncio.get_running_loop().time())

    def _wake(self, entries: Iterable[Entry[_Waiter]]) -> None:
        for entry in list(entries):
            self._queue.remove(entry)
            if not entry.item.placed.done():
                entry.item.placed.set_result(None)


def _patience(errand: Errand, now: float) -> float:
    """Give the time until which an errand waits for an agent, so that its caller hears it."""
    return errand.deadline - min(MAX_MARGIN, MARGIN * (errand.deadline - now))


def _size(op: Op) -> int:
    """Bytes that a waiting call keeps in memory, roughly; exact to the factor that matters."""
    return 1024 + sum(len(key) + len(repr(value)) for key, value in op.args.items())


def _key(errand: Errand) -> str | None:
    """The idempotency key as the agent sees it: unique under us as it was under the caller."""
    if errand.op.key is None:
        return None
    return hashlib.sha256(f"{bare(errand.caller)}\0{errand.op.key}".encode()).hexdigest()
