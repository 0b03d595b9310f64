"""Calls over a connection: both ends of every exchange, and everything that makes one end.

Theory of operation.  A session owns one :class:`Connection` and speaks for its address.  It has
three parts, each with a table: the link (``link.py``: IQs that we sent and that are not answered,
by IQ id), calls that we made (``calls.py``: by id and attempt), and requests that came in
(``requests.py``: by the caller's bare address, id and attempt, where all dispatchers of the home
are one caller, so that each can go on with what another one began).  Everything in them is bounded, and
everything in them ends: a call at its deadline, a request at its deadline, a kept final when it is
acknowledged or too old.

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
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Self
from xml.etree.ElementTree import Element

import structlog

from spinal.protocols import (
    FEATURES,
    Accepted,
    Ack,
    Advertisement,
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
    Log,
    Message,
    Op,
    Problem,
    Progress,
    RemoteProtocolError,
    Stanza,
    Want,
)
from spinal.protocols import address as addresses
from spinal.protocols.events import MAX_LEFT

from .call import Call
from .calls import PATIENCE, Calls
from .connection import Connection
from .errors import NotConnected
from .jsontext import dumps, loads
from .link import RESEND, Link
from .peers import Peer
from .requests import Handler, Incoming, Relayed, Request, Requests

__all__ = ["Handler", "Relayed", "Request", "Session"]

log = structlog.get_logger()

#: Seconds that a caller may be gone before its calls are cancelled.
GRACE = 10.0
#: Seconds between two looks at what is due; one that comes so many seconds too late shows that it
#: was us who were stopped.
TICK = 0.5
STOPPED = 2.0

#: XEP-0199: whether somebody is there.
PING = "{urn:xmpp:ping}ping"

#: What an agent says of a call.
_ANSWERS = (Accepted, Progress, Data, Log, Final, Error, Cancelled)


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
        batching: ops may share a stanza.
        features: what we understand beyond the core profile.
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
        batching: bool = True,
        features: frozenset[str] = FEATURES - {"group"},
    ) -> None:
        self.connection = connection
        self.codec = codec or Codec(dumps, loads)
        self.limits = self.codec.limits
        self.epoch = epoch
        self._role = role
        self._features = features
        #: Whether ops may share a stanza.
        self.batching = batching
        self._trust = trust or self._own_domain
        #: Told of every presence: address, whether it is available, what it carried.
        self.on_presence: Callable[[str, bool, Sequence[Event]], None] = _ignore
        #: Told when a presence that we sent was answered with an error: by whom, and what.
        self.on_presence_error: Callable[[str, Problem], None] = _ignore
        #: Told when a new stream is ready, after our initial presence was sent.
        self.on_open: Callable[[], None] = _ignore
        #: Told when the stream is gone, with the reason.
        self.on_close: Callable[[str], None] = _ignore
        #: Gives the capability description with a hash.
        self.describe: Callable[[str], str | None] = _no_description
        #: Told of events that belong to no call (mirror, seen, advertisement), with the sender.
        self.on_event: Callable[[str, Event], None] = _ignore
        #: Told of what is said to us in words, by whoever may ask us for anything.
        self.on_message: Callable[[Message], None] = _ignore
        #: Told who wants to see our presence (RFC 6121, 3.1): a bare address that may ask us for
        #: anything; :meth:`allow` says yes.
        self.on_subscribe: Callable[[str], None] = _ignore
        #: Told of gets and sets of other namespaces, if whoever asks may ask us for anything; gives
        #: whether it understands them (:meth:`Listener.asked`).
        self.on_asked: Callable[[str, str, str, Element], bool] = _not_understood
        self._link = Link(
            connection,
            self.codec,
            self.hello,
            self._answered,
            self._unanswered,
            self._gone,
            self._arm,
            batching,
        )
        self._calls = Calls(self._link, lambda to: to in self.dispatchers)
        self._requests = Requests(self._link, handler, dispatchers, epoch, self._arm, features)
        self._tick: asyncio.TimerHandle | None = None
        self._look_at = 0.0
        self._open = False

    # -- life

    async def __aenter__(self) -> Self:
        self._open = True
        self._link.begin()
        try:
            await self.connection.open(self)
        except BaseException:
            self._open = False
            await self.connection.close()
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
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        self._calls.close()
        try:
            await self._requests.close()
            self._link.close()
        finally:
            try:
                await self.connection.close()
            finally:
                self._link.closed()

    @property
    def address(self) -> str:
        """Our full address."""
        return self.connection.address

    @property
    def now(self) -> float:
        """Time of the event loop."""
        return self._link.now

    @property
    def connected(self) -> bool:
        """Whether a stream is ready now."""
        return self.connection.connected

    @property
    def dispatchers(self) -> frozenset[str]:
        """Addresses whose ``caller`` is believed and whose calls survive their absence."""
        return self._requests.dispatchers

    @dispatchers.setter
    def dispatchers(self, addresses: Collection[str]) -> None:
        self._requests.dispatchers = frozenset(addresses)

    @property
    def on_final(self) -> Callable[[str, Final], bool]:
        """Told of a final that belongs to no open call of ours, and of its sender.

        Gives whether it may be acknowledged now, which is what happens if nobody sets this.
        """
        return self._calls.on_final

    @on_final.setter
    def on_final(self, told: Callable[[str, Final], bool]) -> None:
        self._calls.on_final = told

    @property
    def peers(self) -> Mapping[str, Peer]:
        """What we know of those we talk with, by address."""
        return self._link.peers

    @property
    def kept(self) -> int:
        """Finals that are not acknowledged."""
        return self._requests.kept

    @property
    def full(self) -> bool:
        """Whether so many finals are kept that no work is taken."""
        return self._requests.full

    @property
    def running(self) -> int:
        """Requests whose handler has not ended."""
        return self._requests.running

    def holds(self, peer: str) -> list[tuple[str, int]]:
        """Exchanges of that caller that run here, and then those whose finals are kept.

        For a dispatcher those of all dispatchers, who are one caller.
        """
        return self._requests.holds(peer)

    async def finished(self) -> None:
        """Wait until no request's handler runs."""
        await self._requests.finished()

    async def acknowledged(self, timeout: float) -> bool:
        """Wait until every kept final was acknowledged; false if that took too long."""
        return await self._requests.acknowledged(timeout)

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
        patience: float = PATIENCE,
        acknowledge: bool = True,
        again: bool = False,
        each: Sequence[Mapping[str, Json]] | None = None,
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
            caller: on whose behalf; believed from dispatchers, and by them from gateways.
            trace: W3C ``traceparent``.
            window: pieces of data that may be unread; 0 takes no stream.
            want: what the dispatcher shall heed when it chooses.
            patience: seconds that the peer may be gone before the call counts as lost.
            acknowledge: acknowledge the final when it comes; without it,
                :meth:`acknowledge` has to be called once the final is safe.
            again: another life of ours may have sent it before, so that a bounce does not mean
                that it never ran.
            each: sets of arguments in place of ``args``, for an agent with ``group``.

        Raises:
            CallError: with reason ``bad-arguments`` or ``too-large``, when the arguments cannot
                travel, or with ``malformed``, when ``to`` is no address; nothing was sent.
            NotConnected: the session is not open.
            ValueError: a call with this id and attempt has not ended.
        """
        if not self._open:
            raise NotConnected("the session is closed: open it before calling")
        timeout = min(timeout, MAX_LEFT / 1000)
        event = Op(
            self._calls.mint() if id is None else id,
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
            each=each,
            must=() if each is None else ("group",),
        )
        return self._calls.make(to, event, timeout, patience, acknowledge, again)

    def acknowledge(self, call: Call) -> None:
        """Tell the agent that it need not keep the final of a call any longer."""
        self._calls.acknowledge(call)

    def acknowledge_late(self, sender: str, final: Final) -> None:
        """Acknowledge a final for which :attr:`on_final` said "not yet"."""
        self._calls.acknowledge_late(sender, final)

    async def cancel(self, call: Call) -> str:
        """Ask the peer to stop a call; gives ``cancelled``, ``late`` or ``unknown``.

        Raises:
            CallError: the peer did not answer.
        """
        return await self._calls.cancel(call)

    async def cancel_exchange(self, to: str, id: str, attempt: int, left: float) -> str:
        """Ask a peer to stop an exchange that is no open call here: one of an earlier life of ours.

        ``left`` is for how many seconds the peer is to remember an id that it does not know yet.

        Raises:
            CallError: the peer did not answer.
        """
        return await self._calls.cancel_exchange(to, id, attempt, left)

    def abandon(self, call: Call) -> None:
        """Give a call up without waiting: the peer is told, the call ends as cancelled."""
        self._calls.abandon(call)

    def stop_some(self, call: Call, places: Sequence[int]) -> None:
        """Stop some of a group without waiting, by their places in ``each``."""
        self._calls.stop_some(call, places)

    def leave(self, call: Call) -> None:
        """Give a call up here and let the peer go on with it.

        The same id, attempt and epoch may be asked for again later, also by another life of ours,
        and is then not run a second time.
        """
        self._calls.leave(call)

    async def ask(self, to: str, *events: Event, timeout: float = RESEND) -> list[Event]:
        """Send events in an IQ of their own and give what the answer carries.

        Raises:
            CallError: it bounced, was refused, or no answer came in time.
        """
        return await self._link.ask(to, *events, timeout=timeout)

    def say(self, to: str, event: Event) -> None:
        """Send an event in an IQ with the next stanza to that peer, without minding the answer."""
        self._link.post(self._link.peer(to), self.codec.write_event(event))

    def whisper(self, to: str, event: Event) -> None:
        """Send an event as a headline message, which may be lost; nothing while disconnected."""
        self._link.whisper(to, event)

    def send_presence(self, to: str = "", *events: Event, type: str = "") -> None:
        """Send presence, directed or to everybody; nothing while disconnected."""
        self._link.send_presence(to, *events, type=type)

    def write(self, message: Message) -> bool:
        """Say something in words to a person; false while disconnected, and nothing is kept.

        To a bare address it goes to wherever that account reads, and servers keep it for an account
        that is away (XEP-0160), as far as they do.
        """
        if self.connected:
            self.connection.send(message.stanza())
        return self.connected

    def allow(self, address: str) -> None:
        """Let an account see our presence from now on; nothing while disconnected."""
        if self.connected:
            self.connection.send(Stanza("presence", "subscribed", addresses.bare(address)))

    async def drain(self) -> None:
        """Wait while too much is buffered for the network."""
        await self.connection.drain()

    @property
    def caps(self) -> Callable[[], bytes]:
        """Gives what presence carries that is new to whoever gets it (XEP-0115); XML."""
        return self._link.caps

    @caps.setter
    def caps(self, gives: Callable[[], bytes]) -> None:
        self._link.caps = gives

    def serve(
        self,
        sender: str,
        op: str,
        args: Mapping[str, Json],
        timeout: float,
        told: Callable[[Final], None],
    ) -> Callable[[], None]:
        """Run an op for somebody who does not speak our language, as if it had sent one.

        Args:
            sender: full address, as the server stamped it.
            op: exact path.
            args: JSON object.
            timeout: seconds until it is given up.
            told: gets the end, also that it was refused, perhaps before this returns; not after
                the session was closed.

        Returns what stops it, as a cancel does.  When the sender's presence is taken back it is
        stopped after the usual grace.
        """
        if not self._trust(sender):
            text = f"{sender} may not ask {self.address} for anything"
            told(Final("", problem=Problem("not-allowed", text)))
            return _ignore
        # Known, so that its presence is minded; it is not told of ours.
        self._link.peer(sender)
        event = Op(secrets.token_hex(16), op=op, left=int(timeout * 1000), args=args)
        request = self._requests.serve(sender, event, told)

        def stop() -> None:
            if request is not None and request.running:
                request.stop(Problem("cancelled"))

        return stop

    def hello(self) -> Hello:
        """What we say of ourselves."""
        return Hello(
            role=self._role,
            features=sorted(self._features),
            stanza=self.limits.receive // 4,
            dispatchers=sorted(self.dispatchers) if self._role == "dispatcher" else (),
            epoch=self.epoch,
        )

    def _answered(self, stanza: Stanza, calls: Sequence[Call]) -> None:
        self._calls.answered(stanza, calls)

    def _unanswered(self, calls: Sequence[Call]) -> None:
        self._calls.unanswered(calls)

    # -- the connection's listener

    def opened(self) -> None:
        """A new stream: be present, and say again what may not have arrived."""
        here = [peer for peer in self.peers.values() if peer.present or peer.gone is not None]
        self._link.opened()
        self.on_open()
        self._calls.opened()
        self._requests.opened()
        for peer in here:
            # Who left while we were away does not tell us; who is there answers our hello.
            self._await_return(peer, again=True)
        self._arm()

    def closed(self, reason: str) -> None:
        """The stream is gone: no answer to what was sent on it will come."""
        self._requests.void()
        self._link.void()
        if self._open:
            log.info("stream_lost", address=self.address, reason=reason)
        self.on_close(reason)

    def received(self, stanza: Stanza) -> None:
        """Sort a stanza by its kind; a peer's mistakes end here."""
        asked = stanza.kind == "iq" and stanza.type in ("get", "set")
        try:
            if asked:
                self._take_iq(stanza)
            elif stanza.kind == "iq":
                self._take_answer(stanza)
            elif stanza.kind == "presence":
                self._take_presence(stanza)
            else:
                self._take_message(stanza)
        except RemoteProtocolError as exc:
            log.warning("stanza_refused", sender=stanza.sender, problem=str(exc))
            if asked:
                self._link.reply(stanza.sender, stanza.id, problem=exc.problem)

    def said(self, message: Message) -> None:
        """Hand on what is said by whom we trust, but not what another one of our own account says."""
        sender = message.sender
        if addresses.bare(sender) != addresses.bare(self.address) and self._trust(sender):
            self.on_message(message)

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        """Answer pings; hand on what else comes from whom we trust, or from our server."""
        if sender and sender != _served(self.address) and not self._trust(sender):
            return False
        if kind == "get" and payload.tag == PING:
            self.connection.reply(sender, id)
            return True
        return self.on_asked(kind, sender, id, payload)

    def _take_answer(self, stanza: Stanza) -> None:
        if self._link.answer(stanza) or stanza.body is None or stanza.type == "error":
            return
        peer = self.peers.get(stanza.sender)
        if peer is not None and peer.called:
            # To a stanza that we have given up, or of an earlier stream: what it says still counts.
            self._calls.answered(stanza, ())

    def _take_message(self, stanza: Stanza) -> None:
        if stanza.body is None or stanza.type == "error":
            return
        events = self.codec.read(stanza.body)
        if self._may(stanza.sender, events):
            for event in events:
                if isinstance(event, _ANSWERS):
                    self._calls.hear(stanza.sender, event)
                else:
                    self.on_event(stanza.sender, event)

    def _take_iq(self, stanza: Stanza) -> None:
        """An IQ get or set: take each event, and answer when the answers are there."""
        if stanza.body is None:
            raise RemoteProtocolError("there is no body", "malformed")
        events = self.codec.read(stanza.body)
        if not self._may(stanza.sender, events):
            raise RemoteProtocolError(
                f"{stanza.sender} may not ask {self.address} for anything", "not-allowed"
            )
        peer = self.peers.get(stanza.sender)
        if peer is not None and not peer.present:
            self._present(stanza.sender, ())  # Whoever asks is here, also if it never said so.
        incoming = self._requests.incoming(stanza.sender, stanza.id)
        for event in events:
            answer = self._take(incoming, event)
            if answer is not None:
                incoming.answers.append(self.codec.write_event(answer))
        self._requests.expect(incoming)

    def _take(self, incoming: Incoming, event: Event) -> Event | None:
        """Act on one event of an IQ; what it gives goes into the answer."""
        sender = incoming.sender
        match event:
            case Op():
                return self._requests.take_op(incoming, event)
            case Cancel():
                return self._requests.take_cancel(incoming, event)
            case Ack():
                self._requests.take_ack(incoming, event)
            case Data():
                incoming.untaken += 1

                def taken() -> None:
                    incoming.untaken -= 1
                    if not incoming.untaken and not incoming.pending:
                        self._requests.answer(incoming)

                self._calls.hear(sender, event, taken)
            case Hello():
                self._present(sender, [event])
                return self.hello()
            case Describe():
                text = self.describe(event.hash)
                return None if text is None else Description(event.hash, text)
            case Final() | Error() | Accepted() | Progress() | Log() | Cancelled():
                self._calls.hear(sender, event)
            case _:
                self.on_event(sender, event)
        return None

    def _own_domain(self, sender: str) -> bool:
        return sender in self.dispatchers or addresses.domain(sender) == _served(self.address)

    def _may(self, sender: str, events: Sequence[Event]) -> bool:
        """Whom we trust may say anything; whom we called may answer, and nothing else."""
        if self._trust(sender):
            return True
        peer = self.peers.get(sender)
        return (
            peer is not None
            and peer.called
            and all(isinstance(event, _ANSWERS) for event in events)
        )

    # -- presence

    def _take_presence(self, stanza: Stanza) -> None:
        sender = stanza.sender
        if not sender or sender == self.address:
            return
        if stanza.type == "error":
            if sender in self.peers:
                self._link.peer(sender).introduced = False
            self.on_presence_error(sender, stanza.problem or Problem("unreachable"))
        elif stanza.type == "unavailable":
            self._gone(sender)
            self.on_presence(sender, False, ())
        elif stanza.type == "":
            events = self.codec.read(stanza.body) if stanza.body is not None else []
            if events and self._trust(sender):
                self._present(sender, events)
            self.on_presence(sender, True, events)
        elif stanza.type == "subscribe" and self._trust(sender):
            self.on_subscribe(addresses.bare(sender))

    def _present(self, sender: str, events: Sequence[Event]) -> None:
        peer = self._link.peer(sender)
        returned = not peer.present
        peer.present = True
        if peer.gone is not None:
            peer.gone.cancel()
            peer.gone = None
        greeted = False
        for event in events:
            if isinstance(event, (Hello, Advertisement)):
                greeted = greeted or isinstance(event, Hello)
                self._calls.learned(peer, peer.learn(event))
        if greeted:
            # An advertisement is a heartbeat and is not greeted back.
            if returned:
                # What we said before it came was perhaps said to nobody.
                peer.introduced = False
            self._link.introduce(peer)
        if returned:
            self._calls.returned(peer)
            self._requests.returned(sender)

    def _gone(self, sender: str) -> None:
        """A peer's stream is gone: it said so, or the server found nobody."""
        peer = self.peers.get(sender)
        if peer is not None:
            peer.present = peer.introduced = False
            self._calls.absent(peer)
            self._await_return(peer)

    def _await_return(self, peer: Peer, again: bool = False) -> None:
        """Give a peer its grace; ``again`` starts one that runs anew."""
        if peer.gone is not None:
            if not again:
                return
            peer.gone.cancel()
        peer.gone = asyncio.get_running_loop().call_later(GRACE, self._vanished, peer)

    def _vanished(self, peer: Peer) -> None:
        peer.gone = None
        if not self.connected:
            # It cannot show that it is back before we are.
            self._await_return(peer)
        else:
            self._requests.vanished(peer.address)

    # -- what is due

    def _arm(self) -> None:
        if self._tick is None and self._open:
            loop = asyncio.get_running_loop()
            self._look_at = loop.time() + TICK
            self._tick = loop.call_at(self._look_at, self._look)

    def _look(self) -> None:
        """Look after what was not answered, not acknowledged, or is too old."""
        self._tick = None
        now = asyncio.get_running_loop().time()
        if now - self._look_at > STOPPED:
            # The answers may be here, unread; and others may have taken our place.
            self._arm()
            return
        waiting = self._link.look(now)
        if self._requests.look(now) or waiting:
            self._arm()


@lru_cache(maxsize=64)
def _served(address: str) -> str:
    """Give the domain that an address is of; a component serves the one that it is a part of."""
    own = addresses.domain(address)
    return own if addresses.local(address) else own.partition(".")[2]


def _not_understood(kind: str, sender: str, id: str, payload: Element) -> bool:
    return False


def _ignore(*_: object) -> None:
    pass


def _no_description(hash: str) -> str | None:
    return None
