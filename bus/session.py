"""Calls over a connection: both ends of every exchange, and everything that makes one end.

Theory of operation.  A session owns one :class:`Connection` and speaks for its address.  It keeps
three tables: IQs that we sent and that are not answered (by IQ id), calls that we made (by id and
attempt), and requests that came in (by the caller's bare address, id and attempt).  Everything in
them is bounded, and everything in them ends: a call at its deadline, a request at its deadline,
a kept final when it is acknowledged or too old.

Stanzas.  Events for one peer that are written in the same turn of the event loop share a stanza;
a lone event leaves in the turn in which it was written, so nothing is ever delayed to be batched.
Ops, cancels, acks, finals and data are IQ sets and are answered; progress, log lines and what a
tap sees are headline messages and may be lost.

Answers.  The IQ result to a stanza of ops carries the finals that are there when the answer window
closes, and ``accepted`` for the rest: a lone op has 250 ms, a batch 5 ms after its first answer,
so that a batch is not answered by its slowest member.

Nothing is believed to have arrived because it was sent.  An op whose stanza is not answered within
5 s, or whose stream broke, is sent again under the same id; the receiver knows the id and answers
without running it again.  A final is kept until it is acknowledged, and said again when its caller
returns.  ``epoch`` guards both: a peer that began a new life does not know the old ids, so a
resent op names the life it was meant for.

Presence.  Whoever opens an exchange directs presence at the peer, who directs one back, so each
learns within milliseconds when the other's stream is gone.  Gone is not dead: a caller has 10 s to
come back before its calls are cancelled, an agent has the call's ``patience``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self, TypeVar

import structlog

from spinal.protocols import (
    FEATURES,
    Accepted,
    Ack,
    Advertisement,
    CallEvent,
    Cancel,
    Cancelled,
    Codec,
    Data,
    Describe,
    Description,
    Error,
    Event,
    Final,
    Hello,
    Json,
    LocalProtocolError,
    Log,
    Mirror,
    Op,
    Problem,
    Progress,
    ProtocolError,
    Ran,
    RemoteProtocolError,
    Seen,
    Stanza,
    State,
    Want,
)
from spinal.protocols import address as addresses
from spinal.protocols.values import write as write_value

from .call import Call, Request
from .connection import ID_PREFIX, Connection
from .errors import CallError, NotConnected
from .jsontext import dumps, loads
from .peers import Peer
from .tasks import Tasks

log = structlog.get_logger()

#: Runs one op and gives its value; raises :class:`CallError` for a problem.
Handler = Callable[[Request], Awaitable[Json]]

#: Seconds from the arrival of a lone op to the answer of its stanza.
ANSWER_WINDOW = 0.25
#: Seconds from the first answer that is ready in a batch to the answer of its stanza.
BATCH_WINDOW = 0.005
#: Seconds after which an op whose stanza is not answered is sent again.
RESEND = 5.0
#: Seconds that an acknowledgement waits for an op to ride on.
ACK_DELAY = 0.5
#: Seconds that a caller may be gone before its calls are cancelled.
GRACE = 10.0
#: Longest pause in seconds between two sendings of a kept final.
MAX_PAUSE = 30.0
#: Seconds after the deadline at which a kept final is given up.
KEEP = 600.0
#: Most finals that are kept; with more, no work is taken.
MAX_KEPT = 1000
#: Most requests that run or wait here at once.
MAX_REQUESTS = 20_000
#: Most ids of ended exchanges that are remembered.
MAX_REMEMBERED = 20_000
#: Most peers that are remembered; one that is absent and idle makes room.
MAX_PEERS = 50_000
#: Seconds between two looks at what is due.
TICK = 0.5

_Key = tuple[str, str, int]
_T = TypeVar("_T")


@dataclass(slots=True)
class _Sent:
    """An IQ that we sent: to whom, what to do with the answer, when to give up on it."""

    to: str
    answered: Callable[[Stanza], None]
    #: Called when no answer can come any more: the stream broke, or it took too long.
    unanswered: Callable[[], None]
    due: float


@dataclass(slots=True)
class _Incoming:
    """An IQ set that came, until it is answered."""

    sender: str
    id: str
    #: Requests that have no answer yet.
    pending: set[_Key] = field(default_factory=set[_Key])
    #: Pieces of data whose reader has not taken them.
    untaken: int = 0
    answers: list[bytes] = field(default_factory=list[bytes])
    batch: bool = False
    timer: asyncio.TimerHandle | None = None
    done: bool = False


class Session:
    """Calls over one connection.  Use as an async context manager; it opens and closes it.

    Args:
        connection: who we are on the bus; the session opens and closes it.
        handler: runs the ops that come in; without one every op is refused as unknown.
        role: what ``hello`` says we are: ``caller``, ``agent`` or ``dispatcher``.
        dispatchers: addresses whose ``caller`` is believed and whose calls survive their absence.
        trust: decides from a full address whether its ops are taken at all; by default those of
            our own domain and of the dispatchers.
        epoch: number of our present life, if we have one.
        codec: how events are read and written.
    """

    def __init__(
        self,
        connection: Connection,
        handler: Handler | None = None,
        *,
        role: str = "caller",
        dispatchers: Collection[str] = (),
        trust: Callable[[str], bool] | None = None,
        epoch: int | None = None,
        codec: Codec | None = None,
    ) -> None:
        self._connection = connection
        self._handler = handler
        self._role = role
        self.dispatchers = frozenset(dispatchers)
        self._trust = trust or self._own_domain
        self.epoch = epoch
        self.codec = codec or Codec(dumps, loads)
        self.limits = self.codec.limits
        self.peers: dict[str, Peer] = {}
        #: Told of every presence: address, whether it is available, what it carried.
        self.on_presence: Callable[[str, bool, Sequence[Event]], None] = _ignore_presence
        #: Told when a presence that we sent was answered with an error.
        self.on_presence_error: Callable[[str, Problem], None] = _ignore_problem
        #: Told when a new stream is ready, after our initial presence was sent.
        self.on_open: Callable[[], None] = _ignore
        #: Told when the stream is gone, with the reason.
        self.on_close: Callable[[str], None] = _ignore_reason
        #: Gives the capability description with a hash.
        self.describe: Callable[[str], str | None] = _no_description
        #: Told of events that belong to no call: mirror, seen.
        self.on_event: Callable[[str, Event], None] = _ignore_event
        self._iqs: dict[str, _Sent] = {}
        self._calls: dict[tuple[str, int], Call] = {}
        self._requests: dict[_Key, Request] = {}
        self._kept = 0
        self._unkept = asyncio.Event()
        self._closed_ids: OrderedDict[_Key, None] = OrderedDict()
        self._tombstones: OrderedDict[_Key, float] = OrderedDict()
        self._waiting: dict[_Key, _Incoming] = {}
        self._prefix = secrets.token_hex(5)
        self._number = 0
        self._tasks = Tasks("session")
        self._tick: asyncio.TimerHandle | None = None
        self._open = False

    # -- life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._open = True
        try:
            await self._connection.open(self)
        except BaseException:
            self._open = False
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel our calls and requests, say the acks that wait, and end the stream."""
        if not self._open:
            return
        self._open = False
        for call in list(self._calls.values()):
            if not call.done:
                self.abandon(call)
                call.finish(Problem("cancelled", "the client was closed"))
        await self._tasks.close()
        for peer in self.peers.values():
            if peer.gone is not None:
                peer.gone.cancel()
            self._queue_acks(peer)
            self._flush(peer)
        for waiting in self._waiting.values():
            if waiting.timer is not None:
                waiting.timer.cancel()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        await self._connection.close()
        for sent in list(self._iqs.values()):
            sent.unanswered()
        self._iqs.clear()

    @property
    def address(self) -> str:
        """Our full address."""
        return self._connection.address

    @property
    def connection(self) -> Connection:
        """The connection that carries this session."""
        return self._connection

    @property
    def connected(self) -> bool:
        """Whether a stream is ready now."""
        return self._connection.connected

    @property
    def kept(self) -> int:
        """Finals that are not acknowledged."""
        return self._kept

    @property
    def full(self) -> bool:
        """Whether so many finals are kept that no work is taken."""
        return self._kept >= MAX_KEPT

    @property
    def running(self) -> int:
        """Requests whose handler has not ended."""
        return len(self._requests) - self._kept

    def holds(self, peer: str) -> list[tuple[str, int]]:
        """Exchanges of that caller that run here or whose finals are not acknowledged."""
        bare = addresses.bare(peer)
        return [(key[1], key[2]) for key in self._requests if key[0] == bare]

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

    # -- the calling side

    def call(
        self,
        to: str,
        op: str,
        args: Mapping[str, Json] | None = None,
        *,
        timeout: float = 60.0,
        id: str | None = None,
        attempt: int = 1,
        epoch: int | None = None,
        key: str | None = None,
        caller: str | None = None,
        trace: str | None = None,
        window: int = 0,
        want: Want | None = None,
        patience: float = GRACE,
    ) -> Call:
        """Send an op to one address and give the call.

        Nothing is awaited: while there is no stream the op waits for the next one.

        Args:
            to: full address of the agent, or the dispatcher's.
            op: exact path.
            args: JSON object.
            timeout: seconds until the call ends with reason ``deadline``.
            id: ours to mint; give one only to send the same call again.
            attempt: number of the try.
            epoch: life of the agent that it is meant for.
            key: idempotency key.
            caller: on whose behalf (dispatchers only).
            trace: W3C ``traceparent``.
            window: pieces of data that may be unread; 0 takes no stream.
            want: what the dispatcher shall heed when it chooses.
            patience: seconds that the peer may be gone before the call counts as lost.

        Raises:
            CallError: with reason ``bad-arguments`` or ``too-large``, when the arguments cannot
                travel; nothing was sent.
        """
        if id is None:
            self._number += 1
            id = f"{self._prefix}-{self._number:x}"
        deadline = self._loop.time() + timeout
        try:
            event = Op(
                id,
                attempt,
                op=op,
                left=max(0, int(timeout * 1000)),
                args=args or {},
                epoch=epoch,
                key=key,
                caller=caller,
                trace=trace,
                window=window,
                want=want,
            )
            call = Call(self, to, event, deadline, patience)
            written = self._write_op(event)
        except ProtocolError as exc:
            raise CallError.of(exc.problem) from exc
        self._calls[event.exchange] = call
        call.timer = self._loop.call_at(deadline, self._expire, call)
        self._post_op(call, written)
        return call

    def _write_op(self, op: Op) -> bytes:
        written = self.codec.write_event(op)
        if (
            len(written) > self.limits.inline
            and (size := len(write_value(dict(op.args), dumps))) > self.limits.inline
        ):
            raise LocalProtocolError(
                f"the arguments take {size} bytes, and at most {self.limits.inline} travel "
                "inline: send large ones as a blob",
                "too-large",
            )
        return written

    def _post_op(self, call: Call, written: bytes) -> None:
        call.exchange.say("op")
        peer = self._peer(call.to)
        self._introduce(peer)
        self._queue_acks(peer)
        self._post(peer, written, call)

    def _resend(self, call: Call) -> None:
        """Say an op again that may not have arrived, to the same life of the peer."""
        left = int((call.deadline - self._loop.time()) * 1000)
        if call.done or left <= 0:
            return
        peer = self._peer(call.to)
        op = call.op
        epoch = op.epoch if op.epoch is not None else peer.epoch
        again = replace(op, left=left, epoch=epoch)
        log.debug("op_resent", id=op.id, to=call.to, sends=call.sends)
        self._post_op(call, self._write_op(again))

    async def cancel(self, call: Call) -> str:
        """Ask the peer to stop a call; gives ``cancelled``, ``late`` or ``unknown``.

        Raises:
            CallError: the peer did not answer.
        """
        if call.done:
            return "late"
        answers = await self.ask(call.to, self._cancel_event(call))
        for answer in answers:
            if isinstance(answer, Cancelled) and answer.exchange == call.op.exchange:
                return answer.state
        return "unknown"

    def _cancel_event(self, call: Call) -> Cancel:
        call.exchange.say("cancel")
        left = max(0, int((call.deadline - self._loop.time()) * 1000))
        return Cancel(call.op.id, call.op.attempt, left=left)

    def abandon(self, call: Call) -> None:
        """Give a call up without waiting: the peer is told, the call ends as cancelled."""
        if call.done:
            return
        if call.exchange.state in (State.ASKED, State.RUNNING):
            self.say(call.to, self._cancel_event(call))
        self._settle(call, Problem("cancelled"))

    def _expire(self, call: Call) -> None:
        if call.done:
            return
        self.say(call.to, self._cancel_event(call))
        seconds = call.op.left / 1000
        what = "no answer" if not call.heard else "not done"
        reason = "no-answer" if not call.heard else "deadline"
        self._settle(call, Problem(reason, f"{what} within {seconds:g} s"))

    def _settle(self, call: Call, problem: Problem) -> None:
        """End a call from our side; its final, should it still come, is acknowledged."""
        self._calls.pop(call.op.exchange, None)
        call.finish(problem)

    async def ask(self, to: str, *events: Event, timeout: float = RESEND) -> list[Event]:
        """Send events in an IQ of their own and give what the answer carries.

        Raises:
            CallError: it bounced, was refused, or no answer came in time.
        """
        answer: asyncio.Future[list[Event]] = self._loop.create_future()

        def answered(stanza: Stanza) -> None:
            if answer.done():
                return
            if stanza.problem is not None:
                answer.set_exception(CallError.of(stanza.problem))
                return
            try:
                answer.set_result(self.codec.read(stanza.body) if stanza.body else [])
            except RemoteProtocolError as exc:
                answer.set_exception(CallError.of(exc.problem))

        def unanswered() -> None:
            if not answer.done():
                answer.set_exception(CallError.of(Problem("no-answer", f"no answer from {to}")))

        body = self.codec.write(events)
        try:
            self._send_iq(to, body, answered, unanswered, timeout)
        except NotConnected as exc:
            raise CallError.of(Problem("no-answer", "not connected to the server")) from exc
        return await answer

    def say(self, to: str, event: Event) -> None:
        """Send an event in an IQ with the next stanza to that peer, without minding the answer."""
        self._post(self._peer(to), self.codec.write_event(event), None)

    def whisper(self, to: str, event: Event) -> None:
        """Send an event as a headline message, which may be lost; nothing while disconnected."""
        if self.connected:
            self._connection.send(Stanza("message", "headline", to, body=self.codec.write([event])))

    def send_presence(self, to: str = "", *events: Event, type: str = "") -> None:
        """Send presence, directed or to everybody; nothing while disconnected."""
        if not self.connected:
            return
        body = self.codec.write(events) if events else None
        self._connection.send(Stanza("presence", type, to, body=body))
        if to:
            self._peer(to).introduced = type == ""

    async def drain(self) -> None:
        """Wait while too much is buffered for the network."""
        await self._connection.drain()

    # -- outgoing stanzas

    def _peer(self, address: str) -> Peer:
        peer = self.peers.get(address)
        if peer is None:
            if len(self.peers) >= MAX_PEERS:
                self._forget_peers()
            peer = self.peers[address] = Peer(address)
        return peer

    def _forget_peers(self) -> None:
        """Make room: those who are gone and wait for nothing (and at worst the oldest)."""
        idle = [
            address
            for address, peer in self.peers.items()
            if not (peer.present or peer.outbox or peer.acks or peer.gone)
        ]
        for address in idle or list(self.peers)[: MAX_PEERS // 10]:
            del self.peers[address]

    def hello(self) -> Hello:
        """What we say of ourselves."""
        return Hello(
            role=self._role,
            features=sorted(FEATURES),
            stanza=self.limits.receive // 4,
            dispatchers=sorted(self.dispatchers) if self._role == "dispatcher" else (),
            epoch=self.epoch,
        )

    def _introduce(self, peer: Peer) -> None:
        if not peer.introduced and self.connected:
            self.send_presence(peer.address, self.hello())

    def _post(self, peer: Peer, written: bytes, owner: object) -> None:
        """Put an event into the next stanza to a peer, which leaves in this turn of the loop."""
        peer.outbox.append((written, owner))
        if not peer.flushing:
            peer.flushing = True
            self._loop.call_soon(self._flush, peer)

    def _queue_acks(self, peer: Peer) -> None:
        if peer.acks:
            acks, peer.acks = peer.acks, []
            for ack in acks:
                self._post(peer, self.codec.write_event(ack), None)

    def _flush(self, peer: Peer) -> None:
        peer.flushing = False
        if not self.connected:
            # Ops of open calls are written anew for the next stream, finals are kept; the rest
            # (cancels, acks) is said again when the peer shows that it still waits.
            peer.outbox.clear()
            return
        while peer.outbox:
            room = min(self.limits.stanza, peer.stanza)
            bodies: list[bytes] = []
            owners: list[object] = []
            while peer.outbox and len(bodies) < self.limits.events:
                written, owner = peer.outbox[0]
                if bodies and len(written) + 1 > room:
                    break
                room -= len(written) + 1
                bodies.append(written)
                owners.append(owner)
                del peer.outbox[0]
            self._send_batch(peer.address, bodies, owners)

    def _send_batch(self, to: str, bodies: list[bytes], owners: list[object]) -> None:
        calls = [owner for owner in owners if isinstance(owner, Call)]
        for call in calls:
            call.sends += 1

        def answered(stanza: Stanza) -> None:
            self._answered(stanza, calls)

        def unanswered() -> None:
            if self.connected:
                for call in calls:
                    if not call.heard:
                        self._resend(call)

        self._send_iq(to, self.codec.join(bodies), answered, unanswered, RESEND)

    def _send_iq(
        self,
        to: str,
        body: bytes,
        answered: Callable[[Stanza], None],
        unanswered: Callable[[], None],
        timeout: float,
    ) -> None:
        self._number += 1
        id = f"{ID_PREFIX}{self._number:x}"
        self._connection.send(Stanza("iq", "set", to, id=id, body=body))
        self._iqs[id] = _Sent(to, answered, unanswered, self._loop.time() + timeout)
        self._arm()

    def _answered(self, stanza: Stanza, calls: Iterable[Call]) -> None:
        """The answer to a stanza that carried ops."""
        if stanza.problem is not None:
            for call in calls:
                if not call.done:
                    self._bounced(call, stanza.problem)
            return
        if stanza.body is None:
            return
        try:
            events = self.codec.read(stanza.body)
        except RemoteProtocolError as exc:
            log.warning("answer_not_understood", sender=stanza.sender, problem=str(exc))
            for call in calls:
                if not call.done:
                    self._settle(call, Problem("failed", f"{call.to} answered nonsense: {exc}"))
            return
        for event in events:
            if isinstance(event, CallEvent):
                self._hear(stanza.sender, event, None)

    def _bounced(self, call: Call, problem: Problem) -> None:
        if problem.meaning.ran is Ran.NO and (call.sends > 1 or call.heard):
            # This sending did not arrive, but an earlier one may have.
            problem = Problem(
                "lost", f"{call.to} is gone: {problem.text}; the call may have been done"
            )
        self._settle(call, problem)

    # -- the connection's listener

    def opened(self) -> None:
        """A new stream: be present, introduce ourselves again, and say what may not have arrived."""
        for peer in self.peers.values():
            peer.introduced = False
            peer.present = False
        self.send_presence()
        self.on_open()
        for call in list(self._calls.values()):
            if not call.done:
                self._introduce(self._peer(call.to))
                self._resend(call)
        for request in self._requests.values():
            if request.sender not in self.dispatchers:
                self._introduce(self._peer(request.sender))
        self._arm()

    def closed(self, reason: str) -> None:
        """The stream is gone: no answer to what was sent on it will come."""
        sent = list(self._iqs.values())
        self._iqs.clear()
        for waiting in self._waiting.values():
            waiting.done = True
            if waiting.timer is not None:
                waiting.timer.cancel()
        self._waiting.clear()
        for iq in sent:
            iq.unanswered()
        if self._open:
            log.info("stream_lost", address=self.address, reason=reason)
        self.on_close(reason)

    def received(self, stanza: Stanza) -> None:
        """Sort a stanza by its kind; a peer's mistakes end here."""
        try:
            if stanza.kind == "presence":
                self._presence(stanza)
            elif stanza.kind == "message":
                self._message(stanza)
            elif stanza.type in ("result", "error"):
                sent = self._iqs.get(stanza.id)
                # An answer counts only from whom we asked (RFC 6120, 8.2.3).
                if sent is not None and sent.to == stanza.sender:
                    del self._iqs[stanza.id]
                    sent.answered(stanza)
            else:
                self._set(stanza)
        except RemoteProtocolError as exc:
            log.warning("stanza_refused", sender=stanza.sender, problem=str(exc))
            if stanza.kind == "iq" and stanza.type in ("get", "set"):
                self._reply(stanza.sender, stanza.id, problem=exc.problem)

    def _reply(
        self, to: str, id: str, body: bytes | None = None, problem: Problem | None = None
    ) -> None:
        if not self.connected:
            return
        kind = "result" if problem is None else "error"
        self._connection.send(Stanza("iq", kind, to, id=id, body=body, problem=problem))

    def _presence(self, stanza: Stanza) -> None:
        sender = stanza.sender
        if not sender or sender == self.address:
            return
        if stanza.type == "error":
            peer = self.peers.get(sender)
            if peer is not None:
                peer.introduced = False
            self.on_presence_error(sender, stanza.problem or Problem("unreachable"))
            return
        if stanza.type not in ("", "unavailable"):
            return
        events: list[Event] = []
        if stanza.body is not None:
            events = self.codec.read(stanza.body)
        if stanza.type == "unavailable":
            self._absent(sender)
        elif events and self._trust(sender):
            self._present(sender, events)
        self.on_presence(sender, stanza.type == "", events)

    def _present(self, sender: str, events: Sequence[Event]) -> None:
        peer = self._peer(sender)
        returned = not peer.present
        peer.present = True
        if peer.gone is not None:
            peer.gone.cancel()
            peer.gone = None
        for event in events:
            if isinstance(event, (Hello, Advertisement)) and peer.learn(event):
                self._reborn(peer)
        if self._role != "dispatcher" or any(isinstance(event, Hello) for event in events):
            self._introduce(peer)
        if returned:
            self._say_finals_to(sender)

    def _reborn(self, peer: Peer) -> None:
        """A peer began a new life: what its old one had of ours is lost."""
        for call in [c for c in self._calls.values() if c.to == peer.address]:
            if call.op.epoch is None and not call.heard and call.sends <= 1:
                continue
            if call.op.epoch == peer.epoch:
                continue
            self._settle(
                call,
                Problem("lost", f"{call.to} was restarted; the call may have been done"),
            )

    def _absent(self, sender: str) -> None:
        peer = self.peers.get(sender)
        if peer is None:
            return
        peer.present = False
        peer.introduced = False
        if peer.gone is not None:
            peer.gone.cancel()
        for call in self._calls.values():
            if call.to == sender:
                self._loop.call_later(call.patience, self._lose, call, peer)
        peer.gone = self._loop.call_later(GRACE, self._vanished, peer)

    def _lose(self, call: Call, peer: Peer) -> None:
        if not call.done and not peer.present:
            self._settle(call, Problem("lost", f"{call.to} is gone; the call may have been done"))

    def _vanished(self, peer: Peer) -> None:
        peer.gone = None
        if peer.address in self.dispatchers:
            return
        for request in list(self._requests.values()):
            if request.sender == peer.address and request.running:
                self._stop(request, Problem("cancelled", "its caller is gone"))

    def _message(self, stanza: Stanza) -> None:
        if stanza.body is None or stanza.type == "error" or not self._trust(stanza.sender):
            return
        for event in self.codec.read(stanza.body):
            if isinstance(event, (Progress, Log)):
                self._hear(stanza.sender, event, None)
            else:
                self.on_event(stanza.sender, event)

    # -- events of our calls

    def _hear(self, sender: str, event: CallEvent, taken: Callable[[], None] | None) -> None:
        call = self._calls.get(event.exchange)
        if call is None or call.to != sender:
            # Ended, or never ours.  A final is acknowledged all the same, else it is kept there.
            if isinstance(event, Final):
                self._acknowledge(sender, event)
            if taken is not None:
                taken()
            return
        call.exchange.hear(event.type)
        call.heard = True
        match event:
            case Final():
                del self._calls[event.exchange]
                self._acknowledge(sender, event)
                call.exchange.say("ack")
                call.end(event if event.agent else replace(event, agent=sender))
            case Error():
                problem = event.problem
                if problem.reason == "stale-epoch" and call.sends > 1:
                    problem = Problem(
                        "lost", f"{sender} was restarted; the call may have been done"
                    )
                self._settle(call, problem)
            case Progress() | Log() | Data():
                call.offer(event, taken)
            case _:
                pass

    def _acknowledge(self, sender: str, final: Final) -> None:
        peer = self._peer(sender)
        if not peer.acks:
            self._loop.call_later(ACK_DELAY, self._queue_acks, peer)
        peer.acks.append(Ack(final.id, final.attempt))

    # -- the serving side

    def _own_domain(self, sender: str) -> bool:
        return sender in self.dispatchers or addresses.domain(sender) == addresses.domain(
            self.address
        )

    def _set(self, stanza: Stanza) -> None:
        """An IQ get or set: take each event, and answer when the answers are there."""
        if stanza.body is None:
            raise RemoteProtocolError("there is no body", "malformed")
        if not self._trust(stanza.sender):
            raise RemoteProtocolError(f"{stanza.sender} may not speak to us", "not-allowed")
        events = self.codec.read(stanza.body)
        incoming = _Incoming(stanza.sender, stanza.id)
        for event in events:
            answer = self._take(incoming, event)
            if answer is not None:
                incoming.answers.append(self.codec.write_event(answer))
        if incoming.pending:
            incoming.batch = len(incoming.pending) > 1 or bool(incoming.answers)
            window = BATCH_WINDOW if incoming.batch and incoming.answers else ANSWER_WINDOW
            incoming.timer = self._loop.call_later(window, self._close_window, incoming)
        elif not incoming.untaken:
            self._answer(incoming)

    def _take(self, incoming: _Incoming, event: Event) -> Event | None:
        """Act on one event of an IQ set; what it gives goes into the answer."""
        match event:
            case Op():
                return self._take_op(incoming, event)
            case Cancel():
                return self._take_cancel(incoming.sender, event)
            case Ack():
                self._take_ack(incoming.sender, event)
            case Data():
                incoming.untaken += 1

                def taken() -> None:
                    incoming.untaken -= 1
                    if not incoming.untaken and not incoming.pending:
                        self._answer(incoming)

                self._hear(incoming.sender, event, taken)
            case Final() | Error() | Accepted() | Progress() | Log() | Cancelled():
                self._hear(incoming.sender, event, None)
            case Hello():
                self._present(incoming.sender, [event])
                return self.hello()
            case Describe():
                text = self.describe(event.hash)
                if text is not None:
                    return Description(event.hash, text)
            case Mirror() | Seen() | Advertisement():
                self.on_event(incoming.sender, event)
            case _:
                pass
        return None

    def _take_op(self, incoming: _Incoming, op: Op) -> Event | None:
        sender = incoming.sender
        key = (addresses.bare(sender), op.id, op.attempt)
        known = self._requests.get(key)
        if known is not None:
            known.exchange.hear("op")
            known.sender = sender
            if known.final is not None:
                known.exchange.say("final")
                return replace(known.final, again=True)
            known.exchange.say("accepted")
            return Accepted(op.id, op.attempt)
        problem = self._unfit(key, op)
        if problem is not None:
            return Error(op.id, op.attempt, problem=problem)
        caller = op.caller if op.caller is not None and sender in self.dispatchers else sender
        request = Request(op, sender, caller, self._loop.time() + op.left / 1000, self)
        request.exchange.hear("op")
        self._requests[key] = request
        self._waiting[key] = incoming
        incoming.pending.add(key)
        request.task = self._tasks.spawn(self._run(key, request), op.op)
        return None

    def _unfit(self, key: _Key, op: Op) -> Problem | None:
        """Why an op is not even handed to the handler."""
        if key in self._closed_ids:
            return Problem("already-done")
        if self._tombstones.pop(key, None) is not None:
            return Problem("cancelled", "it was cancelled before it arrived")
        if op.left <= 0:
            return Problem("expired")
        if op.epoch is not None and self.epoch is not None and op.epoch != self.epoch:
            return Problem("stale-epoch")
        if (missing := op.missing()) is not None:
            return Problem("not-understood", f"'{missing}' is not understood here", missing)
        if self._handler is None:
            return Problem("unknown-op", f"{self.address} offers no operations")
        if self.full:
            return Problem("busy", "too many results wait for their callers", after=5.0)
        if len(self._requests) >= MAX_REQUESTS:
            return Problem("busy", "too many requests are running here", after=1.0)
        return None

    async def _run(self, key: _Key, request: Request) -> None:
        assert self._handler is not None
        request.began = self._loop.time()
        value: Json = None
        problem: Problem | None = None
        agent: str | None = None
        try:
            async with asyncio.timeout_at(request.deadline):
                value = await self._handler(request)
                if request.untaken:
                    await request.settled()
        except CallError as exc:
            problem, agent = exc.problem, exc.agent
        except ProtocolError as exc:
            problem = exc.problem
        except TimeoutError:
            problem = request.stopping or Problem("deadline")
        except asyncio.CancelledError:
            if request.stopping is None:
                # Not one call is stopped but all of us: there is nobody left to answer.
                self._requests.pop(key, None)
                raise
            problem = request.stopping
        except Exception as exc:
            log.exception("handler_failed", op=request.op.op, id=request.op.id)
            problem = Problem("failed", f"{type(exc).__name__}: {exc}"[:1000])
        if isinstance(value, Relayed):
            value, agent = value.value, value.agent
        self._end(key, request, value, problem, agent)

    def _end(
        self,
        key: _Key,
        request: Request,
        value: Json,
        problem: Problem | None,
        agent: str | None,
    ) -> None:
        """Keep and say the end of a request."""
        op = request.op
        if problem is not None and problem.meaning.ran is Ran.NO and not request.accepted:
            request.exchange.say("error")
            self._requests.pop(key, None)
            self._say(
                key, request, self.codec.write_event(Error(op.id, op.attempt, problem=problem))
            )
            return
        ran = int((self._loop.time() - request.began) * 1000)
        final = Final(op.id, op.attempt, value=value, problem=problem, agent=agent, ran=ran)
        final, written = self._write_final(final)
        request.exchange.say("final")
        request.final, request.written = final, written
        request.due = self._loop.time() + request.pause
        self._kept += 1
        self._say(key, request, written)
        self._arm()

    def _write_final(self, final: Final) -> tuple[Final, bytes]:
        try:
            written = self.codec.write_event(final)
            if len(written) > self.limits.inline + 4096:
                raise LocalProtocolError(
                    f"the result takes {len(written)} bytes, and at most {self.limits.inline} "
                    "travel inline: return a blob"
                )
        except ProtocolError as exc:
            final = replace(final, value=None, problem=Problem("failed", str(exc)))
            written = self.codec.write_event(final)
        return final, written

    def _say(self, key: _Key, request: Request, written: bytes) -> None:
        """Say the answer in the IQ result if its window is open, else in a stanza of its own."""
        incoming = self._waiting.pop(key, None)
        if incoming is None or incoming.done:
            if self.connected:
                self._post(self._peer(request.sender), written, None)
            return
        incoming.pending.discard(key)
        incoming.answers.append(written)
        if not incoming.pending:
            self._answer(incoming)
        elif incoming.batch and len(incoming.answers) == 1 and incoming.timer is not None:
            incoming.timer.cancel()
            incoming.timer = self._loop.call_later(BATCH_WINDOW, self._close_window, incoming)

    def _close_window(self, incoming: _Incoming) -> None:
        """Answer now: what is not ready is accepted."""
        for key in list(incoming.pending):
            request = self._requests[key]
            self._waiting.pop(key, None)
            request.exchange.say("accepted")
            incoming.answers.append(
                self.codec.write_event(Accepted(request.op.id, request.op.attempt))
            )
            self._introduce(self._peer(request.sender))
        incoming.pending.clear()
        self._answer(incoming)

    def _answer(self, incoming: _Incoming) -> None:
        if incoming.done:
            return
        incoming.done = True
        if incoming.timer is not None:
            incoming.timer.cancel()
        answers = incoming.answers
        room = self._peer(incoming.sender).stanza if incoming.batch else self.limits.receive
        size = 2
        fits = 0
        for written in answers:
            size += len(written) + 1
            if size > room and fits:
                break
            fits += 1
        body = self.codec.join(answers[:fits]) if answers else None
        self._reply(incoming.sender, incoming.id, body)
        for written in answers[fits:]:
            self._post(self._peer(incoming.sender), written, None)

    def _take_cancel(self, sender: str, event: Cancel) -> Event:
        key = (addresses.bare(sender), event.id, event.attempt)
        request = self._requests.get(key)
        if request is None:
            state = "late" if key in self._closed_ids else "unknown"
            if state == "unknown":
                _remember(self._tombstones, key, self._loop.time() + event.left / 1000)
                self._arm()
        elif request.final is not None:
            state = "late"
        else:
            request.exchange.hear("cancel")
            self._stop(request, Problem("cancelled"))
            state = "cancelled"
        return Cancelled(event.id, event.attempt, state=state)

    def _stop(self, request: Request, why: Problem) -> None:
        if request.stopping is None and request.task is not None:
            request.stopping = why
            request.task.cancel()

    def _take_ack(self, sender: str, event: Ack) -> None:
        key = (addresses.bare(sender), event.id, event.attempt)
        request = self._requests.get(key)
        if request is not None and request.final is not None:
            request.exchange.hear("ack")
            self._forget(key)

    def _forget(self, key: _Key) -> None:
        """Drop a kept final; its id is remembered, so that a late resend does not run it again."""
        del self._requests[key]
        self._kept -= 1
        self._unkept.set()
        _remember(self._closed_ids, key, None)

    def tell(self, request: Request, event: Progress | Log) -> None:
        """Send progress or a log line of a request to its caller."""
        if request.running and self.connected:
            request.exchange.say(event.type)
            self._connection.send(
                Stanza("message", "headline", request.sender, body=self.codec.write([event]))
            )

    def send_data(self, request: Request, event: Data) -> None:
        """Send a piece of a request's stream; it is kept until the reader has taken it."""
        written = self.codec.write_event(event)
        if len(written) > self.limits.inline + 1024:
            raise LocalProtocolError(
                f"a piece of data takes {len(written)} bytes, and at most {self.limits.inline} "
                "travel inline",
                "too-large",
            )
        request.exchange.say("data")
        request.untaken[event.seq] = written
        self._send_piece(request, event.seq, written)

    def _send_piece(self, request: Request, seq: int, written: bytes) -> None:
        if not self.connected:
            return

        def answered(stanza: Stanza) -> None:
            if stanza.problem is None:
                request.taken(seq)

        self._send_iq(
            request.sender,
            self.codec.join([written]),
            answered,
            _ignore,
            max(RESEND, request.remaining),
        )

    # -- what is due

    def _say_finals_to(self, sender: str) -> None:
        """A caller is here again: say what it has not acknowledged or taken."""
        bare = addresses.bare(sender)
        for key, request in self._requests.items():
            if key[0] != bare:
                continue
            if request.final is not None:
                request.sender = sender
                self._post(self._peer(sender), request.written, None)
            elif request.sender == sender:
                for seq, written in request.untaken.items():
                    self._send_piece(request, seq, written)

    def _arm(self) -> None:
        if self._tick is None and self._open:
            self._tick = self._loop.call_later(TICK, self._look)

    def _look(self) -> None:
        """Look after what was not answered, not acknowledged, or is too old."""
        self._tick = None
        now = self._loop.time()
        for id, sent in [item for item in self._iqs.items() if item[1].due <= now]:
            del self._iqs[id]
            sent.unanswered()
        for key, request in list(self._requests.items()):
            if request.final is None:
                continue
            if now > request.deadline + KEEP:
                log.warning("final_given_up", id=key[1], caller=request.sender)
                self._forget(key)
            elif request.due <= now and self.connected:
                request.pause = min(MAX_PAUSE, request.pause * 2)
                request.due = now + request.pause
                peer = self.peers.get(request.sender)
                if peer is not None and peer.present:
                    self._post(peer, request.written, None)
        while self._tombstones:
            key, until = next(iter(self._tombstones.items()))
            if until > now:
                break
            del self._tombstones[key]
        if self._iqs or self._kept or self._tombstones:
            self._arm()


@dataclass(frozen=True, slots=True)
class Relayed:
    """A value that a handler got from another agent, whom the final then names."""

    value: Json
    agent: str


def _remember(table: OrderedDict[_Key, _T], key: _Key, value: _T) -> None:
    table[key] = value
    while len(table) > MAX_REMEMBERED:
        table.popitem(last=False)


def _ignore() -> None:
    pass


def _ignore_reason(reason: str) -> None:
    pass


def _ignore_presence(address: str, available: bool, events: Sequence[Event]) -> None:
    pass


def _ignore_problem(address: str, problem: Problem) -> None:
    pass


def _ignore_event(sender: str, event: Event) -> None:
    pass


def _no_description(hash: str) -> str | None:
    return None
