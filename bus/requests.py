"""The requests that came in: run once, answered in time, their ends kept until acknowledged."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
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
#: Most finals that are kept, and most bytes in them; with more, no work is taken.
MAX_KEPT = 10_000
MAX_KEPT_BYTES = 64 * 1024 * 1024
#: Most requests that run or wait here at once.
MAX_REQUESTS = 20_000
#: Most ids of ended exchanges that are remembered, of each kind.
MAX_REMEMBERED = 100_000

#: Caller's bare address, id, attempt.
_Key = tuple[str, str, int]
_Memory = OrderedDict[_Key, tuple[Problem, float]]

#: Runs one op and gives its value; raises :class:`CallError` for a problem.
Handler = Callable[["Request"], Awaitable[Json]]


@dataclass(frozen=True, slots=True)
class Relayed:
    """What a handler gives that had it done: the final then names who did it, and how long it ran."""

    final: Final


@dataclass(slots=True, eq=False)
class Request:
    """One op that came in, as its handler sees it."""

    op: Op
    #: Full address that the server stamped on the stanza.
    sender: str
    #: On whose behalf: the op's ``caller`` if a dispatcher of ours sent it, else the sender.
    caller: str
    #: ``loop.time()`` at which the caller gives up.
    deadline: float
    table: Requests = field(repr=False)
    exchange: Exchange = field(default_factory=lambda: Exchange(Speaker.AGENT))
    task: asyncio.Task[None] | None = None
    #: Why it is being stopped, once it is.
    stopping: Problem | None = None
    #: ``loop.time()`` at which its handler was called.
    began: float | None = None
    #: The end, kept until it is acknowledged, and written.
    final: Final | None = None
    written: bytes = b""
    #: When to say the final again, and the pause after that.
    due: float = 0.0
    pause: float = 1.0
    sequence: int = 0
    #: Pieces of the stream that the reader has not taken, by number, written.
    untaken: dict[int, bytes] = field(default_factory=dict[int, bytes])
    credit: asyncio.Event = field(default_factory=asyncio.Event)

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

    async def data(self, value: Json) -> None:
        """Send a numbered piece of the stream, waiting while the window is full.

        Dropped when the caller takes no stream, or the request has ended.  Returns when the piece
        was written, not when it was read.

        Raises:
            LocalProtocolError: the value is not I-JSON or above the inline limit.
        """
        if self.op.window == 0:
            return
        while self.running and len(self.untaken) >= self.op.window:
            self.credit.clear()
            await self.credit.wait()
        if not self.running:
            return
        event = Data(self.op.id, self.op.attempt, seq=self.sequence, value=value)
        self.table.send_data(self, event)
        self.sequence += 1

    async def settled(self) -> None:
        """Wait until every piece of data was taken by the reader."""
        while self.untaken:
            self.credit.clear()
            await self.credit.wait()

    def taken(self, seq: int) -> None:
        """The reader has this piece."""
        self.untaken.pop(seq, None)
        self.credit.set()

    def accept(self) -> None:
        """Count as accepted from now on: the end is a final, even if it is a refusal."""
        if self.exchange.state is State.ASKED:
            self.exchange.say("accepted")

    def stop(self, why: Problem) -> None:
        """Cancel its handler; the first reason is the one that the caller gets."""
        if self.stopping is None and self.task is not None:
            self.stopping = why
            if self.began is not None:
                # A task that is cancelled before its first step never takes one.
                self.task.cancel()


@dataclass(slots=True)
class Incoming:
    """An IQ set that came, until it is answered."""

    sender: str
    id: str
    #: Requests that have no answer yet.
    pending: set[_Key] = field(default_factory=set[_Key])
    #: Pieces of data whose reader has not taken them.
    untaken: int = 0
    #: Events of the answer, written.
    answers: list[bytes] = field(default_factory=list[bytes])
    batch: bool = False
    timer: asyncio.TimerHandle | None = None
    done: bool = False


class Requests:
    """The serving end of every exchange that others began with us.

    Args:
        link: carries the answers.
        handler: runs the ops; without one every op is refused.
        dispatchers: whose ``caller`` is believed, and whose calls survive their absence.
        epoch: our present life; an op meant for another one is refused.
        arm: makes sure that :meth:`look` is called soon.
    """

    def __init__(
        self,
        link: Link,
        handler: Handler | None,
        dispatchers: Collection[str],
        epoch: int | None,
        arm: Callable[[], None],
    ) -> None:
        self._link = link
        self._handler = handler
        #: Whose ``caller`` is believed, and whose calls survive their absence.
        self.dispatchers = frozenset(dispatchers)
        self._epoch = epoch
        self._arm = arm
        self._tasks = Tasks("requests")
        self._requests: dict[_Key, Request] = {}
        #: The same by the full address of the caller, who may come and go.
        self._from: dict[str, dict[_Key, Request]] = {}
        #: The stanza in whose answer a request can still be answered.
        self._waiting: dict[_Key, Incoming] = {}
        #: Exchanges that are over, with what a resent op is told and until when: those whose finals
        #: were acknowledged, and those that were refused or cancelled before they came.
        self._done: _Memory = OrderedDict()
        self._refused: _Memory = OrderedDict()
        self._kept = 0
        self._kept_bytes = 0
        self._unkept = asyncio.Event()

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
        return len(self._requests) - self._kept

    def holds(self, peer: str) -> list[tuple[str, int]]:
        """Exchanges of that caller that run here or whose finals are not acknowledged."""
        bare = addresses.bare(peer)
        return [(key[1], key[2]) for key in self._requests if key[0] == bare]

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
        self._requests.clear()
        self._from.clear()
        self._kept = self._kept_bytes = 0

    # -- what comes

    def take_op(self, incoming: Incoming, op: Op) -> Event | None:
        """Start an op, or answer it at once: it is known, or not fit to be started."""
        sender = incoming.sender
        key = (addresses.bare(sender), op.id, op.attempt)
        known = self._requests.get(key)
        if known is not None:
            known.exchange.hear("op")
            self._unlist(key, known)
            known.sender = sender
            self._from.setdefault(sender, {})[key] = known
            if known.final is not None:
                known.exchange.say("final")
                return replace(known.final, again=True)
            known.exchange.say("accepted")
            return Accepted(op.id, op.attempt)
        over = self._done.get(key) or self._refused.get(key)
        if over is not None:
            return Error(op.id, op.attempt, problem=over[0])
        problem = self._unfit(op)
        if problem is not None:
            self._remember(self._refused, key, problem, op.left / 1000)
            return Error(op.id, op.attempt, problem=problem)
        believed = op.caller is not None and sender in self.dispatchers
        request = Request(
            op,
            sender,
            op.caller if op.caller is not None and believed else sender,
            self._link.now + op.left / 1000,
            self,
        )
        request.exchange.hear("op")
        self._requests[key] = request
        self._from.setdefault(sender, {})[key] = request
        self._waiting[key] = incoming
        incoming.pending.add(key)
        request.task = self._tasks.spawn(self._run(key, request), op.op)
        return None

    def _remember(self, memory: _Memory, key: _Key, problem: Problem, seconds: float) -> None:
        memory[key] = (problem, self._link.now + seconds)
        if len(memory) > MAX_REMEMBERED:
            memory.popitem(last=False)
        self._arm()

    def _unfit(self, op: Op) -> Problem | None:
        """Why an op is not even handed to the handler."""
        if op.left <= 0:
            return Problem("expired")
        if op.epoch is not None and self._epoch is not None and op.epoch != self._epoch:
            return Problem("stale-epoch")
        if (missing := op.missing()) is not None:
            return Problem("not-understood", f"'{missing}' is not understood here", missing)
        if self._handler is None:
            return Problem("unknown-op", "no operations are offered here")
        if self.full:
            return Problem("busy", "too many results wait for their callers", after=5.0)
        if len(self._requests) >= MAX_REQUESTS:
            return Problem("busy", "too many requests are running here", after=1.0)
        return None

    def take_cancel(self, sender: str, event: Cancel) -> Event:
        """Stop a request; an unknown id is remembered, because its op may come after."""
        key = (addresses.bare(sender), event.id, event.attempt)
        request = self._requests.get(key)
        if request is None:
            over = self._done.get(key) or self._refused.get(key)
            if over is None:
                over = (Problem("cancelled", "it was cancelled before it arrived"), 0.0)
                self._remember(self._refused, key, over[0], event.left / 1000)
            state = "unknown" if over[0].reason == "cancelled" else "late"
        elif request.final is not None:
            state = "late"
        else:
            request.exchange.hear("cancel")
            request.stop(Problem("cancelled"))
            state = "cancelled"
        return Cancelled(event.id, event.attempt, state=state)

    def take_ack(self, sender: str, event: Ack) -> None:
        """Keep a final no longer."""
        key = (addresses.bare(sender), event.id, event.attempt)
        request = self._requests.get(key)
        if request is not None and request.final is not None:
            request.exchange.hear("ack")
            self._forget(key)

    def _drop(self, key: _Key) -> Request:
        request = self._requests.pop(key)
        self._unlist(key, request)
        return request

    def _unlist(self, key: _Key, request: Request) -> None:
        listed = self._from[request.sender]
        del listed[key]
        if not listed:
            del self._from[request.sender]

    def _forget(self, key: _Key) -> None:
        """Drop a kept final; its id is remembered, so that a late resend does not run it again."""
        request = self._drop(key)
        self._kept -= 1
        self._kept_bytes -= len(request.written)
        self._unkept.set()
        left = max(0.0, request.deadline - self._link.now)
        self._remember(self._done, key, Problem("already-done"), left)

    # -- running

    async def _run(self, key: _Key, request: Request) -> None:
        assert self._handler is not None
        request.began = began = self._link.now
        value: Json = None
        problem: Problem | None = None
        agent: str | None = None
        limit = asyncio.timeout_at(request.deadline)
        try:
            if request.stopping is not None:
                raise CallError.of(request.stopping)
            async with limit:
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
                    self._drop(key)
                    raise
                log.exception("handler_failed", op=request.op.op, id=request.op.id)
            problem = request.stopping or Problem("failed", "something in it was cancelled")
        except (Exception, SystemExit) as exc:
            # An operation that exits ends itself, and not the program that serves the others.
            if isinstance(exc, TimeoutError) and limit.expired():
                problem = Problem("deadline")
            else:
                log.exception("handler_failed", op=request.op.op, id=request.op.id)
                problem = Problem("failed", _words(exc))
        ran = int((self._link.now - began) * 1000)
        if isinstance(value, Relayed):
            done = value.final
            value, agent, ran = done.value, done.agent, ran if done.ran is None else done.ran
        self._end(key, request, value, problem, agent, ran)

    def _end(
        self,
        key: _Key,
        request: Request,
        value: Json,
        problem: Problem | None,
        agent: str | None,
        ran: int,
    ) -> None:
        """Say the end of a request, and keep it unless it was a refusal."""
        op = request.op
        request.credit.set()
        if problem is not None:
            problem = _printable(problem)
        if problem is not None and problem.meaning.ran is Ran.NO and not request.accepted:
            request.exchange.say("error")
            self._drop(key)
            self._remember(self._refused, key, problem, request.remaining)
            error = Error(op.id, op.attempt, problem=problem)
            self._say(key, request, self._link.codec.write_event(error))
            return
        request.exchange.say("final")
        request.final, request.written = self._write_final(
            Final(op.id, op.attempt, value=value, problem=problem, agent=agent, ran=ran),
            self._link.peer(request.sender).stanza - 2,
        )
        request.due = self._link.now + request.pause
        self._kept += 1
        self._kept_bytes += len(request.written)
        self._say(key, request, request.written)
        self._arm()

    def _write_final(self, final: Final, room: int) -> tuple[Final, bytes]:
        try:
            written = self._link.codec.write_event(final)
            self._check_inline(written, final.value, "the result", room)
        except ProtocolError as exc:
            final = replace(final, value=None, problem=Problem("failed", str(exc)))
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
        if incoming.timer is not None:
            incoming.timer.cancel()
        incoming.timer = asyncio.get_running_loop().call_later(
            seconds, self._close_window, incoming
        )

    def _say(self, key: _Key, request: Request, written: bytes) -> None:
        """Say the answer in the IQ result if its window is open, else in a stanza of its own."""
        incoming = self._waiting.pop(key, None)
        if incoming is None or incoming.done:
            if self._link.connected:
                self._link.post(self._link.peer(request.sender), written)
            return
        incoming.pending.discard(key)
        incoming.answers.append(written)
        if not incoming.pending:
            self.answer(incoming)
        elif incoming.batch and len(incoming.answers) == 1:
            self._set_window(incoming, BATCH_WINDOW)

    def _close_window(self, incoming: Incoming) -> None:
        """Answer now: what is not ready is accepted."""
        for key in list(incoming.pending):
            self._waiting.pop(key, None)
            request = self._requests.get(key)
            if request is None:
                continue
            request.accept()
            self._link.introduce(self._link.peer(request.sender))
            accepted = Accepted(request.op.id, request.op.attempt)
            incoming.answers.append(self._link.codec.write_event(accepted))
        incoming.pending.clear()
        self.answer(incoming)

    def answer(self, incoming: Incoming) -> None:
        """Send the IQ result with what is ready; what does not fit goes in stanzas of its own."""
        if incoming.done:
            return
        incoming.done = True
        if incoming.timer is not None:
            incoming.timer.cancel()
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
        for incoming in self._waiting.values():
            incoming.done = True
            if incoming.timer is not None:
                incoming.timer.cancel()
        self._waiting.clear()

    # -- what comes before the end

    def tell(self, request: Request, event: Progress | Log) -> None:
        """Send progress or a log line to the caller."""
        if request.running:
            request.exchange.say(event.type)
            self._link.whisper(request.sender, event)

    def send_data(self, request: Request, event: Data) -> None:
        """Send a piece of a request's stream; it is kept until the reader has taken it."""
        written = self._link.codec.write_event(event)
        room = self._link.peer(request.sender).stanza - 2
        self._check_inline(written, event.value, "a piece of data", room)
        request.exchange.say("data")
        request.untaken[event.seq] = written
        self._send_piece(request, event.seq, written)

    def _send_piece(self, request: Request, seq: int, written: bytes) -> None:
        if not self._link.connected:
            return

        def answered(stanza: Stanza) -> None:
            if stanza.problem is None:
                request.taken(seq)

        self._link.send_iq(
            request.sender,
            self._link.codec.join([written]),
            answered,
            _nothing,
            max(RESEND, request.remaining),
        )

    # -- callers that come and go

    def opened(self) -> None:
        """A new stream: callers learn again when we go."""
        for sender in list(self._from):
            if sender not in self.dispatchers:
                self._link.introduce(self._link.peer(sender))

    def returned(self, sender: str) -> None:
        """A caller is here again: say what it has not acknowledged or taken.

        Not to another one of its account, which would acknowledge what it does not know.
        """
        for request in list(self._from.get(sender, {}).values()):
            if request.final is not None:
                self._link.post(self._link.peer(sender), request.written)
            else:
                for seq, written in list(request.untaken.items()):
                    self._send_piece(request, seq, written)

    def vanished(self, sender: str) -> None:
        """A caller's grace is over: stop its requests, unless it is a dispatcher."""
        if sender in self.dispatchers:
            return
        for request in list(self._from.get(sender, {}).values()):
            if request.running:
                request.stop(Problem("cancelled", "its caller is gone"))

    def look(self, now: float) -> bool:
        """Say kept finals again that are due, and drop what is too old; true while any are left."""
        if self._kept:
            for key, request in list(self._requests.items()):
                if request.final is None:
                    continue
                if now > request.deadline + KEEP:
                    log.warning("final_given_up", id=key[1], caller=request.sender)
                    self._forget(key)
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
        peer = self._link.peers.get(request.sender)
        if not self._link.connected or peer is None:
            return
        # Now and then also to one that has not shown itself: what it said of it may be lost.
        if peer.present or request.pause == MAX_PAUSE:
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


def _nothing() -> None:
    pass
