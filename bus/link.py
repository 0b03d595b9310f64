"""Stanzas to and from peers: who is here, what waits to be sent, what waits for an answer.

Events for one peer that are written in the same turn of the event loop share a stanza; a lone
event leaves in the turn in which it was written, so nothing is ever delayed to be batched.  Of the
calls under way at a peer a stanza takes at most half (:data:`SHARE`), and leaves as soon as it has
them: so the two ends work at the same time, each on a half, instead of waiting for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from spinal.protocols import (
    Ack,
    Codec,
    Event,
    Hello,
    Problem,
    RemoteProtocolError,
    Stanza,
)
from spinal.protocols.events import MAX_ALSO

from .call import Call
from .connection import ID_PREFIX, Connection
from .errors import CallError, NotConnected
from .peers import Item, Peer

#: Seconds after which an IQ that is not answered is given up or said again.
RESEND = 5.0
#: Seconds that an acknowledgement waits for an op to ride on.
ACK_DELAY = 0.5
#: Seconds for which an acknowledgement or a cancel is said again, if it may not have arrived.
INSIST = 60.0
#: Calls that one stanza takes, at the least and at the most: half of those that are under way.
SHARE = (16, 128)
#: Most peers that are remembered; one that is absent and idle makes room.
MAX_PEERS = 50_000


@dataclass(slots=True)
class _Sent:
    """An IQ that we sent: to whom, what to do with the answer, when to give up on it."""

    to: str
    answered: Callable[[Stanza], None]
    #: Called when no answer can come any more: the stream broke, or it took too long.
    unanswered: Callable[[], None]
    due: float


class Link:
    """What a session says and to whom, over one connection.

    Args:
        connection: moves the stanzas.
        codec: writes and reads the events in them.
        hello: gives what we say of ourselves.
        answered: told of the answer to a stanza that carried ops, and of these calls.
        unanswered: told of the calls whose stanza got no answer while the stream lasted.
        bounced: told of an address at which the server found nobody.
        arm: makes sure that :meth:`look` is called soon.
        batching: calls may share a stanza.
    """

    def __init__(
        self,
        connection: Connection,
        codec: Codec,
        hello: Callable[[], Hello],
        answered: Callable[[Stanza, Sequence[Call]], None],
        unanswered: Callable[[Sequence[Call]], None],
        bounced: Callable[[str], None],
        arm: Callable[[], None],
        batching: bool = True,
    ) -> None:
        self.connection = connection
        self._batching = batching
        self.codec = codec
        self.limits = codec.limits
        self.peers: dict[str, Peer] = {}
        self._hello = hello
        self._calls_answered = answered
        self._calls_unanswered = unanswered
        self._bounced = bounced
        self._arm = arm
        self._iqs: dict[str, _Sent] = {}
        self._number = 0
        self._clock = _time
        #: What presence carries beside our element when it is new to whoever gets it.
        self.caps: Callable[[], bytes] = _none

    @property
    def connected(self) -> bool:
        """Whether a stream is ready now."""
        return self.connection.connected

    @property
    def now(self) -> float:
        """Time of the event loop."""
        return self._clock()

    def begin(self) -> None:
        """Belong to the running event loop from now on."""
        self._clock = asyncio.get_running_loop().time

    # -- peers

    def peer(self, address: str) -> Peer:
        """Give what we know of a peer."""
        peer = self.peers.get(address)
        if peer is None:
            if len(self.peers) >= MAX_PEERS:
                self._forget_peers()
            peer = self.peers[address] = Peer(address)
        return peer

    def _forget_peers(self) -> None:
        """Make room: those who are gone and wait for nothing, at worst some that are silent."""
        idle = [address for address, peer in self.peers.items() if peer.idle]
        silent = (address for address, peer in self.peers.items() if not peer.calls)
        for address in idle or list(islice(silent, MAX_PEERS // 10)):
            self.peers.pop(address).rest()

    def introduce(self, peer: Peer) -> None:
        """Direct presence at a peer, once per stream, so that it learns when we go."""
        if not peer.introduced and self.connected:
            self.send_presence(peer.address, self._hello())

    def send_presence(self, to: str = "", *events: Event, type: str = "") -> None:
        """Send presence, directed or to everybody; nothing while disconnected."""
        if not self.connected:
            return
        body = self.codec.write(events) if events else None
        peer = self.peer(to) if to else None
        new = type == "" and (peer is None or not peer.introduced)
        caps = self.caps() if new else b""
        self.connection.send(Stanza("presence", type, to, body=body, other=caps))
        if peer is not None:
            peer.introduced = type == ""

    def whisper(self, to: str, event: Event) -> None:
        """Send an event as a headline message, which may be lost; nothing while disconnected."""
        if self.connected:
            self.connection.send(Stanza("message", "headline", to, body=self.codec.write([event])))

    # -- what is sent

    def post(self, peer: Peer, written: bytes, call: Call | None = None) -> None:
        """Put a written event into the next stanza to a peer, which leaves in this turn."""
        self._put(peer, Item(written, call, 0.0))

    def insist(self, peer: Peer, event: Event) -> None:
        """Post an event and say it again until the peer has it, across streams, for a while."""
        self._put(peer, Item(self.codec.write_event(event), None, self.now + INSIST))

    def _put(self, peer: Peer, item: Item) -> None:
        peer.outbox.append(item)
        if not peer.flushing:
            peer.flushing = True
            asyncio.get_running_loop().call_soon(self._flush_due, peer)
        elif len(peer.outbox) >= share(len(peer.calls)) and self.connected:
            self.flush(peer)

    def _flush_due(self, peer: Peer) -> None:
        peer.flushing = False
        self.flush(peer)

    def acknowledge(self, to: str, exchange: tuple[str, int]) -> None:
        """Acknowledge a final with the next op to that peer, or soon."""
        peer = self.peer(to)
        if peer.ack_timer is None:
            peer.ack_timer = asyncio.get_running_loop().call_later(ACK_DELAY, self._acks_due, peer)
        peer.acks.append(exchange)

    def _acks_due(self, peer: Peer) -> None:
        peer.ack_timer = None
        self.post_acks(peer)

    def post_acks(self, peer: Peer) -> None:
        """Put the acknowledgements that wait into the next stanza."""
        acks, peer.acks = peer.acks, []
        size = 1 + MAX_ALSO if peer.batch else 1
        for first in range(0, len(acks), size):
            (id, attempt), *also = acks[first : first + size]
            self.insist(peer, Ack(id, attempt, tuple(also)))

    def flush(self, peer: Peer) -> None:
        """Send what waits for a peer, in as few stanzas as it takes."""
        if not self.connected:
            # Ops of open calls are written anew for the next stream, and finals are kept.
            peer.outbox = [item for item in peer.outbox if item.until > self.now]
            return
        most = share(len(peer.calls)) if self._batching and peer.batch else 1
        while peer.outbox:
            # The brackets, and a comma less than there are events.
            room = min(self.limits.stanza, peer.stanza) - 1
            items: list[Item] = []
            calls: list[Call] = []
            for item in peer.outbox[: self.limits.events]:
                call = item.call
                room -= len(item.written) + 1
                if items and (room < 0 or (call is not None and len(calls) >= most)):
                    break
                items.append(item)
                if call is not None:
                    call.sent(peer.epoch)
                    calls.append(call)
            del peer.outbox[: len(items)]
            self._send_batch(peer, items, calls)

    def _send_batch(self, peer: Peer, items: list[Item], calls: list[Call]) -> None:
        def answered(stanza: Stanza) -> None:
            self._calls_answered(stanza, calls)

        def unanswered() -> None:
            now = self.now
            for item in items:
                if item.until > now:
                    self._put(peer, item)
            if self.connected:
                self._calls_unanswered(calls)

        body = self.codec.join([item.written for item in items])
        self.send_iq(peer.address, body, answered, unanswered)

    def send_iq(
        self,
        to: str,
        body: bytes,
        answered: Callable[[Stanza], None],
        unanswered: Callable[[], None],
        timeout: float = RESEND,
    ) -> None:
        """Send an IQ set now.

        Raises:
            NotConnected: there is no stream; neither callback will be called.
        """
        self._number += 1
        id = f"{ID_PREFIX}{self._number:x}"
        # First, because within one process the answer may come before ``send`` returns.
        self._iqs[id] = _Sent(to, answered, unanswered, self.now + timeout)
        try:
            self.connection.send(Stanza("iq", "set", to, id=id, body=body))
        except BaseException:
            self._iqs.pop(id, None)
            raise
        self._arm()

    def reply(
        self, to: str, id: str, body: bytes | None = None, problem: Problem | None = None
    ) -> None:
        """Answer an IQ; nothing while disconnected, because the asker's stanza is void then."""
        if self.connected:
            kind = "result" if problem is None else "error"
            self.connection.send(Stanza("iq", kind, to, id=id, body=body, problem=problem))

    async def ask(self, to: str, *events: Event, timeout: float = RESEND) -> list[Event]:
        """Send events in an IQ of their own and give what the answer carries.

        Raises:
            CallError: it bounced, was refused, or no answer came in time.
        """
        answer: asyncio.Future[list[Event]] = asyncio.get_running_loop().create_future()

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

        try:
            self.send_iq(to, self.codec.write(events), answered, unanswered, timeout)
        except NotConnected as exc:
            raise CallError.of(Problem("no-answer", "not connected to the server")) from exc
        return await answer

    # -- what comes

    def answer(self, stanza: Stanza) -> bool:
        """Take the answer to an IQ; it counts only from whom we asked (RFC 6120, 8.2.3).

        False if it answers nothing that waits for an answer.
        """
        sent = self._iqs.get(stanza.id)
        if sent is None or sent.to != stanza.sender:
            return False
        del self._iqs[stanza.id]
        if stanza.problem is not None and stanza.problem.reason == "unreachable":
            self._bounced(sent.to)
        sent.answered(stanza)
        return True

    def opened(self) -> None:
        """A new stream: the server has forgotten whom we had introduced ourselves to."""
        for peer in self.peers.values():
            peer.introduced = False
            peer.present = False
        self.send_presence()
        for peer in list(self.peers.values()):
            if peer.owes > self.now:
                self.introduce(peer)
            if peer.outbox:
                self.flush(peer)

    def close(self) -> None:
        """Say the acknowledgements that wait; nothing is said again after that."""
        for peer in self.peers.values():
            self.post_acks(peer)
            self.flush(peer)

    def closed(self) -> None:
        """The stream has ended for good: give up what waits for an answer, and every timer."""
        self.void()
        for peer in self.peers.values():
            peer.rest()

    def void(self) -> None:
        """No answer to what was sent will come."""
        sent = list(self._iqs.values())
        self._iqs.clear()
        for iq in sent:
            iq.unanswered()

    def look(self, now: float) -> bool:
        """Give up on what is not answered in time; true while something waits."""
        for id, sent in [item for item in self._iqs.items() if item[1].due <= now]:
            del self._iqs[id]
            sent.unanswered()
        return bool(self._iqs)


def _none() -> bytes:
    return b""


def _time() -> float:
    return asyncio.get_running_loop().time()


def share(under_way: int) -> int:
    """How many of the calls under way at a peer go together; see the module."""
    least, most = SHARE
    return max(least, min(most, under_way // 2))
