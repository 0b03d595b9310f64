"""The calls that we made and that have not ended: each is said until it is heard, and ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from spinal.protocols import (
    Accepted,
    CallEvent,
    Cancel,
    Cancelled,
    Data,
    Error,
    Event,
    Final,
    LocalProtocolError,
    Log,
    Op,
    Problem,
    Progress,
    ProtocolError,
    RemoteProtocolError,
    Stanza,
    State,
)
from spinal.protocols import address as addresses
from spinal.protocols.errors import MAY_BE_DELIVERED
from spinal.protocols.values import write as write_value

from .call import Call
from .deadlines import Deadlines
from .errors import CallError
from .jsontext import dumps
from .link import Link
from .peers import Peer

log = structlog.get_logger()

#: Seconds that a peer may be gone before a call to it counts as lost, if nobody says otherwise.
PATIENCE = 10.0
#: Seconds after the deadline of a call that we gave up in which its final may still come.
OWED = 60.0
#: Seconds between two tries at a peer that may have our op and at whose address nobody is.
RETRY = 1.0


class Calls:
    """The calling end of every exchange that we began."""

    def __init__(self, link: Link, awaited: Callable[[str], bool] = lambda to: False) -> None:
        self._link = link
        #: Whether a peer is expected to be there, so that one who is away just now is waited for.
        self._awaited = awaited
        self._calls: dict[tuple[str, int], Call] = {}
        self._deadlines = Deadlines(self._expire, _ended)
        #: Ended calls whose finals we were told not to acknowledge yet.
        self._unacknowledged: set[tuple[str, int]] = set()
        #: Told of a final that belongs to no call of ours; gives whether to acknowledge it.
        self.on_final: Callable[[str, Final], bool] = _taken
        self._prefix = secrets.token_hex(5)
        self._number = 0

    def __len__(self) -> int:
        return len(self._calls)

    def mint(self) -> str:
        """Give an id that no call of ours has."""
        self._number += 1
        return f"{self._prefix}-{self._number:x}"

    def make(
        self,
        to: str,
        op: Op,
        timeout: float,
        patience: float,
        acknowledge: bool = True,
        again: bool = False,
    ) -> Call:
        """Send an op that has ``timeout`` seconds; see :meth:`Session.call`."""
        link = self._link
        try:
            peer = link.peers.get(to)
            if peer is None:
                peer = link.peer(addresses.check(to))
            call = Call(self, peer, op, link.now + timeout, patience, acknowledge)
            if call.key in self._calls:
                raise ValueError(
                    f"call {op.id}, attempt {op.attempt}, has not ended: await that one"
                )
            call.sends = int(again)
            written = self._write(op, peer)
        except ProtocolError as exc:
            raise CallError.of(exc.problem) from exc
        self._calls[call.key] = peer.calls[call.key] = call
        self._deadlines.add(call.deadline, call)
        self._post(call, written)
        return call

    def _write(self, op: Op, peer: Peer) -> bytes:
        written = self._link.codec.write_event(op)
        if len(written) + 2 > peer.stanza:
            raise LocalProtocolError(
                f"the request takes {len(written)} bytes, and {peer.address} reads "
                f"{peer.stanza}: send large arguments as a blob",
                "too-large",
            )
        inline = self._link.limits.inline
        if len(written) > inline and (size := _weight(op)) > inline:
            raise LocalProtocolError(
                f"the arguments take {size} bytes, and at most {inline} travel inline: "
                "send large ones as a blob",
                "too-large",
            )
        return written

    def _post(self, call: Call, written: bytes) -> None:
        call.exchange.say("op")
        peer, link = call.peer, self._link
        peer.called = True
        if not peer.introduced:
            link.introduce(peer)
        if peer.acks:
            link.post_acks(peer)
        link.post(peer, written, call)

    def _resend(self, call: Call) -> None:
        """Say an op again that may not have arrived, to the same life of the peer."""
        left = int((call.deadline - self._link.now) * 1000)
        if call.done or left <= 0:
            return
        if call.retry is not None:
            call.retry.cancel()
            call.retry = None
        log.debug("op_resent", id=call.id, to=call.to, sends=call.sends)
        again = replace(call.op, left=left, epoch=call.epoch)
        self._post(call, self._link.codec.write_event(again))

    # -- ends

    async def cancel(self, call: Call) -> str:
        """Ask the peer to stop a call; see :meth:`Call.cancel`."""
        if call.done:
            return "late"
        answers = await self._link.ask(call.to, self._cancel_event(call))
        for answer in answers:
            if isinstance(answer, Cancelled) and answer.exchange == call.key:
                return answer.state
        return "unknown"

    async def cancel_exchange(self, to: str, id: str, attempt: int, left: float) -> str:
        """Ask a peer to stop what another life of ours asked it for; see :meth:`cancel`."""
        event = Cancel(id, attempt, left=int(max(0.0, left) * 1000))
        for answer in await self._link.ask(to, event):
            if isinstance(answer, Cancelled) and answer.exchange == event.exchange:
                return answer.state
        return "unknown"

    def _cancel_event(self, call: Call) -> Cancel:
        call.exchange.say("cancel")
        left = max(0, int((call.deadline - self._link.now) * 1000))
        return Cancel(call.op.id, call.op.attempt, left=left)

    def abandon(self, call: Call) -> None:
        """Give a call up without waiting: the peer is told, the call ends as cancelled."""
        self._give_up(call, Problem("cancelled"))

    def stop_some(self, call: Call, places: Sequence[int]) -> None:
        """Stop some of a group; see :meth:`Session.stop_some`."""
        if not call.done:
            self._link.insist(call.peer, replace(self._cancel_event(call), of=list(places)))

    def leave(self, call: Call) -> None:
        """End a call here without telling the peer, who goes on with it: it will be asked again."""
        self._unacknowledged.discard(call.key)
        if not call.done:
            self._drop(call)
            call.finish(Problem("no-answer", "nobody waits for it here any longer"))

    def _expire(self, call: Call) -> None:
        """Give a call up whose deadline has come."""
        allowed = call.op.left / 1000
        if call.heard:
            self._give_up(call, Problem("deadline", f"not done within {allowed:g} s"))
        elif not call.sends:
            # Every sending bounced, or there was no stream: nobody can have heard it.
            self._give_up(call, Problem("expired", f"{call.to} was not there for {allowed:g} s"))
        else:
            self._give_up(
                call, Problem("no-answer", f"no answer from {call.to} within {allowed:g} s")
            )

    def _give_up(self, call: Call, problem: Problem) -> None:
        if call.done:
            return
        if call.exchange.state in (State.ASKED, State.RUNNING):
            self._link.insist(call.peer, self._cancel_event(call))
        self._settle(call, problem)

    def _settle(self, call: Call, problem: Problem) -> None:
        """End a call from our side."""
        self._drop(call)
        if call.sends and not call.exchange.state.over:
            # Its final may still come: to be acknowledged, so that it need not be kept.
            call.peer.owes = max(call.peer.owes, call.deadline + OWED)
        call.finish(problem)

    def _drop(self, call: Call) -> None:
        self._calls.pop(call.key, None)
        call.peer.calls.pop(call.key, None)

    def close(self) -> None:
        """Give every call up."""
        for call in list(self._calls.values()):
            self._give_up(call, Problem("cancelled", "the client was closed"))
        self._deadlines.close()

    # -- answers

    def answered(self, stanza: Stanza, calls: Sequence[Call]) -> None:
        """Take the answer to a stanza that carried ops."""
        if stanza.problem is not None:
            for call in calls:
                self._bounced(call, stanza.problem)
            return
        if stanza.body is None:
            return
        try:
            for event in self._link.codec.read(stanza.body):
                self.hear(stanza.sender, event)
        except RemoteProtocolError as exc:
            log.warning("answer_not_understood", sender=stanza.sender, problem=str(exc))
            for call in calls:
                if not call.done:
                    self._give_up(call, Problem("failed", f"{call.to} answered nonsense: {exc}"))

    def _bounced(self, call: Call, problem: Problem) -> None:
        if call.done:
            return
        may_have_arrived = call.sends > 1 or call.heard
        # An error stanza says that this sending was not taken, whatever else its reason means.
        if problem.reason != MAY_BE_DELIVERED and (may_have_arrived or self._awaited(call.to)):
            if problem.reason == "unreachable":
                self._await_return(call)
                # This sending did not arrive, but an earlier one may have.
                call.sends -= 1
                if call.retry is None:
                    loop = asyncio.get_running_loop()
                    call.retry = loop.call_later(RETRY, self._resend, call)
                return
            if may_have_arrived:
                problem = _lost(f"{call.to} refused to be asked again ({problem.text})")
        self._settle(call, problem)

    def unanswered(self, calls: Sequence[Call]) -> None:
        """Say those ops again whose stanza got no answer."""
        for call in calls:
            if call.unanswered:
                self._resend(call)

    def hear(self, sender: str, event: Event, taken: Callable[[], None] | None = None) -> None:
        """Take an event of one of our calls; ``taken`` is called once its reader has it."""
        if not isinstance(event, CallEvent):
            return
        call = self._calls.get(event.exchange)
        if call is None or call.to != sender:
            if call is None and isinstance(event, Final):
                self._hear_late(sender, event)
            if taken is not None:
                taken()
            return
        if call.sends > 1 and isinstance(event, Error) and call.exchange.state is State.RUNNING:
            # The life of the agent that had it would have known the id.
            self._settle(call, _lost(f"{sender} does not know it any longer"))
            return
        try:
            call.exchange.hear(event.type)
        except RemoteProtocolError as exc:
            # It ends the call and nothing else: other events of its stanza were taken already.
            self._give_up(call, Problem("failed", f"{sender} broke the protocol: {exc}"))
            return
        call.heard = True
        call.unanswered = False
        call.returned()
        if isinstance(event, Final):
            self._drop(call)
            if call.acknowledge:
                self.acknowledge(call)
            else:
                self._unacknowledged.add(call.key)
            call.end(event if event.agent else event.by(sender))
        elif isinstance(event, Error):
            problem = event.problem
            if problem.reason == "stale-epoch" and call.sends > 1:
                problem = _lost(f"{sender} was restarted")
            self._settle(call, problem)
        elif isinstance(event, Accepted):
            call.skip(event.seq)
        elif isinstance(event, Progress | Log | Data):
            try:
                call.offer(event, taken)
            except RemoteProtocolError as exc:
                self._give_up(call, exc.problem)

    def _hear_late(self, sender: str, final: Final) -> None:
        """A final of a call that has ended or was never ours, which is kept there for us."""
        if final.exchange not in self._unacknowledged and self.on_final(sender, final):
            self._link.acknowledge(sender, final.exchange)

    def acknowledge(self, call: Call) -> None:
        """Tell the agent that it need not keep the final of a call any longer."""
        call.exchange.say("ack")
        self._unacknowledged.discard(call.key)
        self._link.acknowledge(call.to, call.key)

    def acknowledge_late(self, sender: str, final: Final) -> None:
        """Tell the sender of a final that belongs to no call of ours that it need not be kept."""
        self._link.acknowledge(sender, final.exchange)

    # -- presence

    def opened(self) -> None:
        """A new stream: say again what may not have arrived, and hear what was said meanwhile."""
        for call in list(self._calls.values()):
            if call.gone is not None:
                # While we were away the peer could not show that it is back.
                call.returned()
                self._await_return(call)
            self._resend(call)

    def learned(self, peer: Peer, reborn: bool) -> None:
        """A peer told its life; what an older one had of ours is lost."""
        for call in list(peer.calls.values()):
            if call.epoch is None and call.sends:
                # The first that we hear of it: the hello that it answers left before our op.
                call.epoch = peer.epoch
            elif reborn and call.epoch != peer.epoch and (call.heard or call.sends > 1):
                # One that was sent once may have gone to the new life; a resend finds out.
                self._settle(call, _lost(f"{call.to} was restarted"))

    def returned(self, peer: Peer) -> None:
        """A peer is here again."""
        for call in peer.calls.values():
            if call.gone is not None:
                call.returned()
                if call.unanswered:
                    self._resend(call)

    def absent(self, peer: Peer) -> None:
        """A peer's stream is gone: its calls are lost when their patience is over."""
        for call in peer.calls.values():
            self._await_return(call)

    def _await_return(self, call: Call) -> None:
        if call.gone is None and call.sends:
            loop = asyncio.get_running_loop()
            call.gone = loop.call_later(call.patience, self._lose, call)

    def _lose(self, call: Call) -> None:
        call.gone = None
        if not self._link.connected:
            self._await_return(call)
        elif call.sends or call.heard:
            self._settle(call, _lost(f"{call.to} is gone"))
        else:
            self._settle(call, Problem("unreachable", f"{call.to} is not there"))


def _ended(call: Call) -> bool:
    return call.final is not None


def _weight(op: Op) -> int:
    return len(write_value(dict(op.args) if op.each is None else list(op.each), dumps))


def _taken(sender: str, final: Final) -> bool:
    return True


def _lost(what: str) -> Problem:
    return Problem("lost", f"{what}; the call may have been done")
