"""The requests that came in: run once, answered in time, their ends kept until acknowledged."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import structlog

from spinal.protocols import (
    Accepted,
    Ack,
    Cancel,
    Cancelled,
    Data,
    Error,
    Event,
    Exchange,
    Final,
    Json,
    LocalProtocolError,
    Log,
    Op,
    Problem,
    Progress,
    ProtocolError,
    Ran,
    Speaker,
    Stanza,
    State,
)
from spinal.protocols import address as addresses
from spinal.protocols.values import write as write_value

from .deadlines import Deadlines
from .errors import CallError
from .jsontext import dumps
from .link import RESEND, Link
from .tasks import Tasks

log = structlog.get_logger()

#: Seconds from the arrival of a lone op to the answer of its stanza.
ANSWER_WINDOW = 0.25
#: Seconds from the first answer that is ready in a batch to the answer of its stanza.
BATCH_WINDOW = 0.005
#: Longest pause in seconds between two sendings of a kept final.
MAX_PAUSE = 30.0
#: Seconds after the deadline at which a kept final is given up.
KEEP = 600.0
#: Seconds after its deadline for which an id that is over is remembered: one that was sent again may
#: have been on its way for longer than the first, and still have time left when it comes.
LATE_BY = 10.0
#: Most finals that are kept, and most bytes in them; with more, no work is taken.
MAX_KEPT = 20_000
MAX_KEPT_BYTES = 128 * 1024 * 1024
#: Most requests that run or wait here at once.
MAX_REQUESTS = 20_000
#: Part of these that one caller may have, as one over so many, unless it is a dispatcher, who calls
#: for all: who acknowledges nothing must not keep the others from being served.
SHARE = 2
#: Most ids of ended exchanges that are remembered, and of those that were refused or cancelled before
#: they came: to forget one of these costs a refusal, and they cost 2 kB each while they come.
MAX_REMEMBERED = 100_000
MAX_REFUSED = 50_000

#: Addresses that are remembered as dispatchers of the home.
MAX_DISPATCHERS = 1000

#: In place of a bare address: all dispatchers of the home are one caller.
_HOME = ""
#: The caller's bare address, or :data:`_HOME`; id, attempt.
_Key = tuple[str, str, int]
_Memory = OrderedDict[_Key, tuple[Problem, float]]

_DONE = Problem("already-done")
_LATE = Problem("deadline")

#: Runs one op and gives its value; raises :class:`CallError` for a problem.
Handler = Callable[["Request"], Awaitable[Json]]


def _ignore(places: Sequence[int]) -> None:
    """Stop none: there is no group."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """What a handler gives that had it done: the final then says who did it, and at what cost."""

    final: Final


class Request:
    """One op that came in, as its handler sees it.

    Args:
        op: what is asked.
        sender: full address that the server stamped on the stanza.
        caller: on whose behalf: the op's ``caller`` if a dispatcher of ours sent it, else the
            sender.
        deadline: ``loop.time()`` at which the caller gives up.
        table: where it is kept.
        space: what its id is unique under.
        incoming: the stanza that brought it, if its end may be said in the answer.
        told: gets its end, and nothing else is said, because its caller does not speak our
            language.
    """

    # Most requests never have more than what they came with, so the rest stands here.
    task: asyncio.Task[None] | None = None
    #: Why it is being stopped, once it is.
    stopping: Problem | None = None
    #: Why it is stopped when its time is up.
    late: Problem = _LATE
    #: ``loop.time()`` at which its handler was called.
    began: float | None = None
    #: What the processes that worked on it cost, where its handler knows: seconds of CPU time, and
    #: the highest peak of memory in bytes.
    cpu: float | None = None
    memory: int | None = None
    #: Other addresses of the caller that asked for it before.
    askers: frozenset[str] = frozenset()
    #: The end, kept until it is acknowledged, and written.
    final: Final | None = None
    written: bytes = b""
    #: When to say the final again, and the pause after that.
    due: float = 0.0
    pause: float = 1.0
    sequence: int = 0
    #: Stops some of a group, by their places; set by its handler.
    stop_some: Callable[[Sequence[int]], None] = staticmethod(_ignore)
    #: Pieces of the stream that the reader has not taken, by number, written.
    untaken: dict[int, bytes] | None = None
    _credit: asyncio.Event | None = None

    def __init__(
        self,
        op: Op,
        sender: str,
        caller: str,
        deadline: float,
        table: Requests,
        space: str,
        incoming: Incoming | None,
        told: Callable[[Final], None] | None = None,
    ) -> None:
        self.op = op
        self.sender = sender
        self.caller = caller
        self.deadline = deadline
        self.table = table
        self.space = space
        #: The stanza in whose answer it can still be answered.
        self.incoming = incoming
        self.told = told
        self.exchange = Exchange(Speaker.AGENT)

    def __repr__(self) -> str:
        return f"<Request {self.op.op} {self.op.id} of {self.caller} {self.exchange.state.value}>"

    @property
    def window(self) -> int:
        """Pieces of data that may be untaken; 0: nobody reads them."""
        return self.op.window

    @property
    def remaining(self) -> float:
        """Seconds until the caller gives up; never negative."""
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    @property
    def running(self) -> bool:
        """Whether its handler has not ended."""
        return self.final is None and not self.exchange.state.over

    @property
    def accepted(self) -> bool:
        """Whether the caller was told that we have it."""
        return self.exchange.state is not State.ASKED

    def progress(
        self, done: float | None = None, total: float | None = None, note: str = ""
    ) -> None:
        """Tell the caller how far it is; may be lost on the way."""
        self.table.tell(
            self, Progress(self.op.id, self.op.attempt, done=done, total=total, note=note)
        )

    def log(self, text: str, level: str = "info") -> None:
        """Send a log line to the caller; may be lost on the way."""
        self.table.tell(self, Log(self.op.id, self.op.attempt, text=text[:16_000], level=level))

    def spent(self, cpu: float, memory: int) -> None:
        """Count what a process that worked on it cost: seconds of CPU time, and its peak in bytes."""
        self.cpu = (self.cpu or 0.0) + cpu
        self.memory = max(self.memory or 0, memory)

    async def data(self, value: Json) -> None:
        """Send a numbered piece of the stream, waiting while the window is full.

        Dropped when the caller takes no stream, or the request has ended.  Returns when the piece
        was written, not when it was read.

        Raises:
            LocalProtocolError: the value is not I-JSON or above the inline limit.
        """
        # The reader may change while we wait, and the window with it.
        while self.running and len(self.untaken or ()) >= self.window > 0:
            await self._credited()
        if not self.running or self.window == 0:
            return
        event = Data(self.op.id, self.op.attempt, seq=self.sequence, value=value)
        self.table.send_data(self, event)
        self.sequence += 1

    async def settled(self) -> None:
        """Wait until every piece of data was taken by the reader."""
        while self.untaken:
            await self._credited()

    async def _credited(self) -> None:
        if self._credit is None:
            self._credit = asyncio.Event()
        self._credit.clear()
        await self._credit.wait()

    def credit(self) -> None:
        """Have its handler look whether there is room for more data."""
        if self._credit is not None:
            self._credit.set()

    def taken(self, seq: int) -> None:
        """The reader has this piece."""
        untaken = self.untaken
        if not untaken or untaken.pop(seq, None) is None:
            return
        self.credit()
        if len(untaken) >= self.window > 0:
            # Left by a reader whose window was wider: the next one in line comes into this one.
            self.table.send_piece(self, list(untaken)[self.window - 1])

    def read_by(self, window: int) -> None:
        """Have a reader with this window, who may be another one than before."""
        self.op = replace(self.op, window=window)
        if window == 0:
            self.untaken = None
        self.credit()

    @property
    def first(self) -> int:
        """Number of the first piece of data that is not taken."""
        return next(iter(self.untaken or ()), self.sequence)

    def accept(self) -> None:
        """Count as accepted from now on: the end is a final, even if it is a refusal."""
        if self.exchange.state is State.ASKED:
            self.exchange.say("accepted")

    def limit(self, seconds: float, late: Problem) -> None:
        """Stop it for this reason when it has run so long, if its caller waits longer than that."""
        when = (self.began or self.table.now) + seconds
        if when < self.deadline:
            self.late = late
            self.table.stop_at(when, self)

    def stop(self, why: Problem) -> None:
        """Cancel its handler; the first reason is the one that the caller gets."""
        if self.stopping is None and self.task is not None:
            self.stopping = why
            if self.began is not None:
                # A task that is cancelled before its first step never takes one.
                self.task.cancel()


@dataclass(slots=True, eq=False)
class Incoming:
    """An IQ set that came, until it is answered."""

    sender: str
    id: str
    #: What the ids of its ops are unique under, and whether their ``caller`` is believed.
    space: str
    believed: bool
    #: Requests that have no answer yet.
    pending: set[Request] = field(default_factory=set[Request])
    #: Pieces of data whose reader has not taken them.
    untaken: int = 0
    #: Events of the answer, written.
    answers: list[bytes] = field(default_factory=list[bytes])
    batch: bool = False
    done: bool = False


class Requests:
    """The serving end of every exchange that others began with us.

    Args:
        link: carries the answers.
        handler: runs the ops; without one every op is refused.
        dispatchers: see :attr:`dispatchers`.
        epoch: our present life; an op meant for another one is refused.
        arm: makes sure that :meth:`look` is called soon.
        features: what we understand; an op that must be understood otherwise is refused.
    """

    def __init__(
        self,
        link: Link,
        handler: Handler | None,
        dispatchers: Collection[str],
        epoch: int | None,
        arm: Callable[[], None],
        features: frozenset[str],
    ) -> None:
        self._features = features
        self._link = link
        self._handler = handler
        self._dispatchers: frozenset[str] = frozenset()
        #: Who was one in our life: what they began is known by the same ids even when they come
        #: back after we had dropped them.
        self._home: dict[str, None] = {}
        #: Those of them that have been away for longer than the grace.
        self._absent: set[str] = set()
        self.dispatchers = frozenset(dispatchers)
        self._epoch = epoch
        self._arm = arm
        self._tasks = Tasks("requests")
        self._deadlines = Deadlines(_out_of_time, _over)
        self._windows = Deadlines(self._close_window, _answered)
        #: What ids are unique under -> id and attempt -> request; empty ones are removed at once.
        self._spaces: dict[str, dict[tuple[str, int], Request]] = {}
        self._count = 0
        #: Exchanges that are over, with what a resent op is told and until when: those whose finals
        #: were acknowledged, and those that were refused or cancelled before they came.
        self._done: _Memory = OrderedDict()
        self._refused: _Memory = OrderedDict()
        self._kept = 0
        self._kept_bytes = 0
        #: What ids are unique under -> number of kept finals, and bytes in them.
        self._kept_of: dict[str, tuple[int, int]] = {}
        self._unkept = asyncio.Event()

    @property
    def dispatchers(self) -> frozenset[str]:
        """Whose ``caller`` is believed, and whose calls survive their absence.

        They are one caller: what one of them began, any of them may ask for again, acknowledge or
        cancel.
        """
        return self._dispatchers

    @dispatchers.setter
    def dispatchers(self, addresses: frozenset[str]) -> None:
        self._dispatchers = addresses
        self._home.update(dict.fromkeys(addresses))
        while len(self._home) > MAX_DISPATCHERS:
            forgotten = next(iter(self._home))
            del self._home[forgotten]
            self._absent.discard(forgotten)

    def _space(self, sender: str) -> str:
        return _HOME if sender in self._home else addresses.bare(sender)

    def _find(self, space: str, key: tuple[str, int]) -> Request | None:
        own = self._spaces.get(space)
        return None if own is None else own.get(key)

    def __iter__(self) -> Iterator[Request]:
        for own in list(self._spaces.values()):
            yield from list(own.values())

    def _from(self, sender: str) -> list[Request]:
        """Give what this address asked for last; before it was a dispatcher, too."""
        spaces = {self._space(sender), addresses.bare(sender)}
        return [
            request
            for space in spaces
            for request in self._spaces.get(space, {}).values()
            if request.sender == sender
        ]

    @property
    def now(self) -> float:
        """Time of the event loop."""
        return self._link.now

    @property
    def kept(self) -> int:
        """Finals that are not acknowledged."""
        return self._kept

    @property
    def full(self) -> bool:
        """Whether so many finals are kept that no work is taken."""
        return self._kept >= MAX_KEPT or self._kept_bytes >= MAX_KEPT_BYTES

    @property
    def running(self) -> int:
        """Requests whose handler has not ended."""
        return self._count - self._kept

    def holds(self, peer: str) -> list[tuple[str, int]]:
        """Exchanges of that caller that run here, and then those whose finals are kept.

        For a dispatcher those of all dispatchers.
        """
        own = self._spaces.get(self._space(peer), {})
        return [key for key, _ in sorted(own.items(), key=lambda item: item[1].final is not None)]

    async def finished(self) -> None:
        """Wait until no handler runs and the last words of each were written."""
        await self._tasks.idle()

    async def acknowledged(self, timeout: float) -> bool:
        """Wait until every kept final was acknowledged; false if that took too long."""
        try:
            async with asyncio.timeout(timeout):
                while self._kept:
                    self._unkept.clear()
                    await self._unkept.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop every handler and wait for it."""
        await self._tasks.close()
        self.void()
        self._deadlines.close()
        self._windows.close()
        self._spaces.clear()
        self._kept_of.clear()
        self._count = self._kept = self._kept_bytes = 0

    # -- what comes

    def incoming(self, sender: str, id: str) -> Incoming:
        """Begin to take a stanza."""
        return Incoming(sender, id, self._space(sender), sender in self.dispatchers)

    def take_op(self, incoming: Incoming, op: Op) -> Event | None:
        """Start an op, or answer it at once: it is known, or not fit to be started."""
        space, key = incoming.space, op.exchange
        known = self._find(space, key)
        if known is not None:
            return self._take_again(known, incoming.sender, op)
        name = (space, *key)
        over = self._done.get(name) or self._refused.get(name)
        if over is not None:
            return Error(op.id, op.attempt, problem=over[0])
        problem = self._unfit(op, space)
        if problem is not None:
            self._remember(self._refused, name, problem, self._link.now + op.left / 1000)
            return Error(op.id, op.attempt, problem=problem)
        sender = incoming.sender
        caller = op.caller if op.caller is not None and incoming.believed else sender
        deadline = self._link.now + op.left / 1000
        request = Request(op, sender, caller, deadline, self, space, incoming)
        incoming.pending.add(request)
        self._start(request)
        return None

    def _start(self, request: Request) -> None:
        request.exchange.hear("op")
        self._spaces.setdefault(request.space, {})[request.op.exchange] = request
        self._count += 1
        request.task = self._tasks.spawn(self._run(request))
        self._deadlines.add(request.deadline, request)

    def serve(self, sender: str, op: Op, told: Callable[[Final], None]) -> Request | None:
        """Start an op of somebody who does not speak our language.

        It is run as any other.  ``told`` gets its end, which nobody has to acknowledge; nothing is
        sent.  None if it is refused at once; it has been told by then.
        """
        # Under its own address, also where it is a dispatcher: the others know nothing of it.
        space = addresses.bare(sender)
        problem = self._unfit(op, space)
        if problem is not None:
            told(Final(op.id, problem=problem))
            return None
        deadline = self._link.now + op.left / 1000
        request = Request(op, sender, sender, deadline, self, space, None, told)
        self._start(request)
        return request

    def stop_at(self, when: float, request: Request) -> None:
        """Stop a request at this time of the event loop, if it still runs then."""
        self._deadlines.add(when, request)

    def _take_again(self, request: Request, sender: str, op: Op) -> Event:
        """Answer an op that is known; what it still has to say goes to whoever asked last."""
        request.exchange.hear("op")
        if sender != request.sender:
            self._turn_to(request, sender)
        if request.final is not None:
            request.exchange.say("final")
            return replace(request.final, again=True)
        request.exchange.say("accepted")
        self._link.introduce(self._link.peer(sender))
        request.read_by(op.window)
        # The reader may be a new one, in a new life at the same address: it did not get these.
        self._send_pieces(request)
        return Accepted(op.id, op.attempt, seq=request.first)

    def _turn_to(self, request: Request, sender: str) -> None:
        """Have another address of the caller get what is still to come."""
        earlier, request.incoming = request.incoming, None
        if earlier is not None and not earlier.done:
            # The end is not for the stanza of the former one; that needs an answer all the same.
            self._accept(request, earlier)
            if not earlier.pending:
                self.answer(earlier)
        request.askers |= {request.sender}
        request.sender = sender

    def _remember(self, memory: _Memory, key: _Key, problem: Problem, until: float) -> None:
        """Answer an id so until its deadline, and somewhat longer."""
        memory[key] = (problem, until + LATE_BY)
        if len(memory) > (MAX_REFUSED if memory is self._refused else MAX_REMEMBERED):
            memory.popitem(last=False)
        self._arm()

    def _unfit(self, op: Op, space: str) -> Problem | None:
        """Why an op is not even handed to the handler."""
        if op.left <= 0:
            return Problem("expired")
        if op.epoch is not None and self._epoch is not None and op.epoch != self._epoch:
            return Problem("stale-epoch")
        if op.must and (missing := op.missing(self._features)) is not None:
            return Problem("not-understood", f"'{missing}' is not understood here", missing)
        if self._handler is None:
            return Problem("unknown-op", "no operations are offered here")
        if self.full:
            return Problem("busy", "too many results wait for their callers", after=5.0)
        if self._count >= MAX_REQUESTS:
            return Problem("busy", "too many requests are running here", after=1.0)
        return None if space == _HOME else self._greedy(space)

    def _greedy(self, space: str) -> Problem | None:
        """Why a single caller gets no more, though others do."""
        kept, size = self._kept_of.get(space, (0, 0))
        if kept * SHARE >= MAX_KEPT or size * SHARE >= MAX_KEPT_BYTES:
            return Problem("busy", "too many of your results wait for you", after=5.0)
        if len(self._spaces.get(space, ())) * SHARE >= MAX_REQUESTS:
            return Problem("busy", "too many of your requests are here", after=1.0)
        return None

    def take_cancel(self, incoming: Incoming, event: Cancel) -> Event:
        """Stop a request; an unknown id is remembered, because its op may come after."""
        request = self._find(incoming.space, event.exchange)
        if request is None:
            name = (incoming.space, *event.exchange)
            over = self._done.get(name) or self._refused.get(name)
            if over is None and event.of:
                return Cancelled(event.id, event.attempt, state="unknown")
            if over is None:
                over = (Problem("cancelled", "it was cancelled before it arrived"), 0.0)
                until = self._link.now + event.left / 1000
                self._remember(self._refused, name, over[0], until)
            state = "unknown" if over[0].reason == "cancelled" else "late"
        elif request.final is not None:
            state = "late"
        else:
            request.exchange.hear("cancel")
            if event.of:
                request.stop_some(event.of)
            else:
                request.stop(Problem("cancelled"))
            state = "cancelled"
        return Cancelled(event.id, event.attempt, state=state)

    def take_ack(self, incoming: Incoming, event: Ack) -> None:
        """Keep finals no longer."""
        for key in event.exchanges:
            request = self._find(incoming.space, key)
            if request is not None and request.final is not None:
                request.exchange.hear("ack")
                self._forget(request)

    def _drop(self, request: Request) -> None:
        own = self._spaces[request.space]
        del own[request.op.exchange]
        if not own:
            del self._spaces[request.space]
        self._count -= 1

    def _keep(self, space: str, count: int, size: int) -> None:
        """Count finals that are kept now, or no longer."""
        self._kept += count
        self._kept_bytes += size
        had, bytes_had = self._kept_of.pop(space, (0, 0))
        if had + count:
            self._kept_of[space] = had + count, bytes_had + size

    def _forget(self, request: Request) -> None:
        """Drop a kept final; its id is remembered, so that a late resend does not run it again."""
        self._drop(request)
        self._keep(request.space, -1, -len(request.written))
        self._unkept.set()
        self._remember(self._done, (request.space, *request.op.exchange), _DONE, request.deadline)

    # -- running

    async def _run(self, request: Request) -> None:
        assert self._handler is not None
        request.began = self._link.now
        value: Json = None
        problem: Problem | None = None
        agent: str | None = None
        try:
            if request.stopping is not None:
                raise CallError.of(request.stopping)
            value = await self._handler(request)
            if request.untaken:
                await request.settled()
        except CallError as exc:
            problem, agent = exc.problem, exc.agent
        except ProtocolError as exc:
            problem = exc.problem
        except asyncio.CancelledError:
            if request.stopping is None:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # Not one call is stopped but all of us: there is nobody left to answer.
                    self._drop(request)
                    if request.told is not None:
                        request.told(Final(request.op.id, problem=Problem("draining")))
                    raise
                log.exception("handler_failed", op=request.op.op, id=request.op.id)
            problem = request.stopping or Problem("failed", "something in it was cancelled")
        except (Exception, SystemExit) as exc:
            # An operation that exits ends itself, and not the program that serves the others.
            log.exception("handler_failed", op=request.op.op, id=request.op.id)
            problem = Problem("failed", _words(exc))
        now = self._link.now
        ran = int((now - request.began) * 1000)
        cpu = None if request.cpu is None else round(request.cpu * 1000)
        memory = request.memory
        if isinstance(value, Relayed):
            done = value.final
            value, agent, cpu, memory = done.value, done.agent, done.cpu, done.memory
            ran = ran if done.ran is None else done.ran
        op = request.op
        self._end(
            request,
            Final(
                op.id,
                op.attempt,
                value=value,
                problem=None if problem is None else _printable(problem),
                agent=agent,
                ran=ran,
                cpu=cpu,
                memory=memory,
            ),
            now,
        )

    def _end(self, request: Request, final: Final, now: float) -> None:
        """Say the end of a request, and keep it unless it was a refusal."""
        op, problem = request.op, final.problem
        request.credit()
        if request.told is not None:
            request.exchange.say("final")
            request.final, _ = self._write_final(final, self._link.limits.stanza)
            self._drop(request)
            request.told(request.final)
            return
        if problem is not None and problem.meaning.ran is Ran.NO and not request.accepted:
            request.exchange.say("error")
            self._drop(request)
            self._remember(self._refused, (request.space, *op.exchange), problem, request.deadline)
            error = Error(op.id, op.attempt, problem=problem)
            self._say(request, self._link.codec.write_event(error))
            return
        request.exchange.say("final")
        if self._absent and request.space == _HOME and request.sender in self._absent:
            other = self._present_dispatcher()
            if other is not None:
                self._turn_to(request, other)
        room = self._link.peer(request.sender).stanza - 2
        request.final, request.written = self._write_final(final, room)
        request.due = now + request.pause
        self._keep(request.space, 1, len(request.written))
        self._say(request, request.written)
        self._arm()

    def _write_final(self, final: Final, room: int) -> tuple[Final, bytes]:
        try:
            written = self._link.codec.write_event(final)
            self._check_inline(written, final.value, "the result", room)
        except ProtocolError as exc:
            reason = "too-large" if exc.problem.reason == "too-large" else "failed"
            final = replace(final, value=None, problem=Problem(reason, str(exc)))
            written = self._link.codec.write_event(final)
        return final, written

    def _check_inline(self, written: bytes, value: Json, what: str, room: int) -> None:
        """Refuse a value above the inline limit, or an event above what the peer reads."""
        inline = min(self._link.limits.inline, room)
        if len(written) > inline and (
            len(written) > room or len(write_value(value, dumps)) > inline
        ):
            raise LocalProtocolError(
                f"{what} takes {len(written)} bytes, and at most {inline} travel inline: "
                "give a blob",
                "too-large",
            )

    # -- answers

    def expect(self, incoming: Incoming) -> None:
        """Answer a stanza whose events were all taken: now, or when its window closes."""
        if incoming.pending:
            incoming.batch = len(incoming.pending) > 1 or bool(incoming.answers)
            ready = incoming.batch and incoming.answers
            self._set_window(incoming, BATCH_WINDOW if ready else ANSWER_WINDOW)
        elif not incoming.untaken:
            self.answer(incoming)

    def _set_window(self, incoming: Incoming, seconds: float) -> None:
        self._windows.add(self._link.now + seconds, incoming)

    def _say(self, request: Request, written: bytes) -> None:
        """Say the answer in the IQ result if its window is open, else in a stanza of its own."""
        incoming, request.incoming = request.incoming, None
        if incoming is None or incoming.done:
            if self._link.connected:
                self._link.post(self._link.peer(request.sender), written)
            return
        incoming.pending.discard(request)
        incoming.answers.append(written)
        if not incoming.pending:
            self.answer(incoming)
        elif incoming.batch and len(incoming.answers) == 1:
            self._set_window(incoming, BATCH_WINDOW)

    def _close_window(self, incoming: Incoming) -> None:
        """Answer now: what is not ready is accepted."""
        # In the order in which they came.
        for request in [one for one in self if one in incoming.pending]:
            self._accept(request, incoming)
        self.answer(incoming)

    def _accept(self, request: Request, incoming: Incoming) -> None:
        """Tell the sender of a stanza that we have its op, and that the end comes later."""
        request.incoming = None
        request.accept()
        self._link.introduce(self._link.peer(incoming.sender))
        accepted = Accepted(request.op.id, request.op.attempt)
        incoming.pending.discard(request)
        incoming.answers.append(self._link.codec.write_event(accepted))

    def answer(self, incoming: Incoming) -> None:
        """Send the IQ result with what is ready; what does not fit goes in stanzas of its own."""
        if incoming.done:
            return
        incoming.done = True
        peer = self._link.peer(incoming.sender)
        size = fits = 0
        for written in incoming.answers:
            size += len(written) + 1
            if fits and size > peer.stanza:
                break
            fits += 1
        body = self._link.codec.join(incoming.answers[:fits]) if fits else None
        self._link.reply(incoming.sender, incoming.id, body)
        for written in incoming.answers[fits:]:
            self._link.post(peer, written)

    def void(self) -> None:
        """The stream is gone: no stanza that came on it can be answered any more."""
        for request in self:
            incoming, request.incoming = request.incoming, None
            if incoming is not None:
                incoming.done = True

    # -- what comes before the end

    def tell(self, request: Request, event: Progress | Log) -> None:
        """Send progress or a log line to the caller."""
        if request.running and request.told is None:
            request.exchange.say(event.type)
            self._link.whisper(request.sender, event)

    def send_data(self, request: Request, event: Data) -> None:
        """Send a piece of a request's stream; it is kept until the reader has taken it."""
        written = self._link.codec.write_event(event)
        room = self._link.peer(request.sender).stanza - 2
        self._check_inline(written, event.value, "a piece of data", room)
        request.exchange.say("data")
        if request.untaken is None:
            request.untaken = {}
        request.untaken[event.seq] = written
        self.send_piece(request, event.seq)

    def _send_pieces(self, request: Request) -> None:
        """Send again what is in the reader's window and not taken."""
        for seq in list(request.untaken or ())[: request.window]:
            self.send_piece(request, seq)

    def send_piece(self, request: Request, seq: int) -> None:
        """Send a piece that is not taken to the present reader; nothing while disconnected."""
        if not self._link.connected or request.untaken is None:
            return
        reader = request.sender

        def answered(stanza: Stanza) -> None:
            if stanza.problem is None and request.sender == reader:
                request.taken(seq)

        self._link.send_iq(
            reader,
            self._link.codec.join([request.untaken[seq]]),
            answered,
            _nothing,
            max(RESEND, request.remaining),
        )

    # -- callers that come and go

    def opened(self) -> None:
        """A new stream: callers learn again when we go."""
        for sender in {request.sender for request in self if request.told is None}:
            if sender not in self.dispatchers:
                self._link.introduce(self._link.peer(sender))

    def returned(self, sender: str) -> None:
        """A caller is here again: say what it has not acknowledged or taken.

        Not to another one of its account, which would acknowledge what it does not know.
        """
        for request in self._from(sender):
            if request.final is not None:
                self._link.post(self._link.peer(sender), request.written)
            else:
                self._send_pieces(request)
        self._absent.discard(sender)
        if sender in self.dispatchers:
            for gone in list(self._absent):
                self._hand_over(gone, sender)

    def vanished(self, sender: str) -> None:
        """A caller's grace is over: stop its requests.

        Those of a dispatcher go on; another one gets their ends.
        """
        for request in self._from(sender):
            if request.space != _HOME and request.running:
                request.stop(Problem("cancelled", "its caller is gone"))
        if sender in self._home:
            self._absent.add(sender)
            other = self._present_dispatcher()
            if other is not None:
                self._hand_over(sender, other)

    def _present_dispatcher(self) -> str | None:
        for address in sorted(self.dispatchers - self._absent):
            peer = self._link.peers.get(address)
            if peer is not None and peer.present:
                return address
        return None

    def _hand_over(self, gone: str, other: str) -> None:
        """Say the ends that a dispatcher does not come for to another one."""
        for request in self._from(gone):
            if request.space == _HOME and request.final is not None:
                self._turn_to(request, other)
                request.pause = 1.0
                request.due = self._link.now + request.pause
                self._link.post(self._link.peer(other), request.written)

    def look(self, now: float) -> bool:
        """Say kept finals again that are due, and drop what is too old; true while any are left."""
        if self._kept:
            for request in self:
                if request.final is None:
                    continue
                if now > request.deadline + KEEP:
                    log.warning("final_given_up", id=request.op.id, caller=request.sender)
                    self._forget(request)
                elif request.due <= now:
                    self._repeat(request, now)
        for memory in (self._done, self._refused):
            # In the order of arrival, so that one with a late deadline holds others for a while.
            while memory and next(iter(memory.values()))[1] <= now:
                memory.popitem(last=False)
        return bool(self._kept or self._done or self._refused)

    def _repeat(self, request: Request, now: float) -> None:
        request.pause = min(MAX_PAUSE, request.pause * 2)
        request.due = now + request.pause
        if not self._link.connected:
            return
        # Who asked last may be a dispatcher that had lost its jobs to another one by then.
        for address in sorted(request.askers | {request.sender}):
            peer = self._link.peers.get(address)
            # Now and then also to one that has not shown itself: what it said of it may be lost.
            last = address == request.sender and request.pause == MAX_PAUSE
            if peer is not None and (peer.present or last):
                self._link.post(peer, request.written)


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:1000]
    except Exception as exc:  # noqa: BLE001 - whatever it is, it becomes a part of the answer
        # The exception is the user's own class, and so is what makes words of it.
        return f"{type(error).__name__} (and its text cannot be had: {type(exc).__name__})"


def _printable(problem: Problem) -> Problem:
    """Make sure that a problem can travel: file names may bring half characters into a text."""
    text = problem.text.encode("utf-8", "replace").decode()
    return problem if text == problem.text else replace(problem, text=text)


def _over(request: Request) -> bool:
    return not request.running


def _answered(incoming: Incoming) -> bool:
    return incoming.done


def _out_of_time(request: Request) -> None:
    request.stop(request.late)


def _nothing() -> None:
    pass
