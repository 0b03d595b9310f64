"""The calls that we made and that have not ended: each is said until it is heard, and ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import structlog

from spinal.protocols import (
    CallEvent,
    Cancel,
    Cancelled,
    Data,
    Error,
    Event,
    Final,
    Json,
    LocalProtocolError,
    Log,
    Op,
    Problem,
    Progress,
    ProtocolError,
    Ran,
    RemoteProtocolError,
    Stanza,
    State,
    Want,
)
from spinal.protocols.values import write as write_value

from .call import Call
from .errors import CallError
from .jsontext import dumps
from .link import Link
from .peers import Peer

log = structlog.get_logger()

#: Seconds that a peer may be gone before a call to it counts as lost, if nobody says otherwise.
PATIENCE = 10.0


class Calls:
    """The calling end of every exchange that we began."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._calls: dict[tuple[str, int], Call] = {}
        self._prefix = secrets.token_hex(5)
        self._number = 0

    def __len__(self) -> int:
        return len(self._calls)

    def make(
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
    ) -> Call:
        """Send an op; see :meth:`Session.call`."""
        if id is None:
            self._number += 1
            id = f"{self._prefix}-{self._number:x}"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
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
            call = Call(self, to, event, deadline, patience, acknowledge)
            written = self._write(event)
        except ProtocolError as exc:
            raise CallError.of(exc.problem) from exc
        self._calls[event.exchange] = call
        call.timer = loop.call_at(deadline, self._expire, call)
        self._post(call, written)
        return call

    def _write(self, op: Op) -> bytes:
        written = self._link.codec.write_event(op)
        inline = self._link.limits.inline
        if len(written) > inline and (size := len(write_value(dict(op.args), dumps))) > inline:
            raise LocalProtocolError(
                f"the arguments take {size} bytes, and at most {inline} travel inline: "
                "send large ones as a blob",
                "too-large",
            )
        return written

    def _post(self, call: Call, written: bytes) -> None:
        call.exchange.say("op")
        peer = self._link.peer(call.to)
        peer.called = True
        self._link.introduce(peer)
        self._link.post_acks(peer)
        self._link.post(peer, written, call)

    def _resend(self, call: Call) -> None:
        """Say an op again that may not have arrived, to the same life of the peer."""
        left = int((call.deadline - self._link.now) * 1000)
        if call.done or left <= 0:
            return
        epoch = call.op.epoch if call.op.epoch is not None else self._link.peer(call.to).epoch
        log.debug("op_resent", id=call.id, to=call.to, sends=call.sends)
        self._post(call, self._write(replace(call.op, left=left, epoch=epoch)))

    # -- ends

    async def cancel(self, call: Call) -> str:
        """Ask the peer to stop a call; see :meth:`Call.cancel`."""
        if call.done:
            return "late"
        answers = await self._link.ask(call.to, self._cancel_event(call))
        for answer in answers:
            if isinstance(answer, Cancelled) and answer.exchange == call.op.exchange:
                return answer.state
        return "unknown"

    def _cancel_event(self, call: Call) -> Cancel:
        call.exchange.say("cancel")
        left = max(0, int((call.deadline - self._link.now) * 1000))
        return Cancel(call.op.id, call.op.attempt, left=left)

    def abandon(self, call: Call) -> None:
        """Give a call up without waiting: the peer is told, the call ends as cancelled."""
        self._give_up(call, Problem("cancelled"))

    def _expire(self, call: Call) -> None:
        allowed = call.op.left / 1000
        if call.heard:
            self._give_up(call, Problem("deadline", f"not done within {allowed:g} s"))
        else:
            self._give_up(
                call, Problem("no-answer", f"no answer from {call.to} within {allowed:g} s")
            )

    def _give_up(self, call: Call, problem: Problem) -> None:
        if call.done:
            return
        if call.exchange.state in (State.ASKED, State.RUNNING):
            event = self._cancel_event(call)
            self._link.post(self._link.peer(call.to), self._link.codec.write_event(event))
        self._settle(call, problem)

    def _settle(self, call: Call, problem: Problem) -> None:
        """End a call from our side; its final, should it still come, is acknowledged."""
        self._calls.pop(call.op.exchange, None)
        call.finish(problem)

    def close(self) -> None:
        """Give every call up."""
        for call in list(self._calls.values()):
            self._give_up(call, Problem("cancelled", "the client was closed"))

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
            events = self._link.codec.read(stanza.body)
            for event in events:
                if isinstance(event, CallEvent):
                    self.hear(stanza.sender, event)
        except RemoteProtocolError as exc:
            log.warning("answer_not_understood", sender=stanza.sender, problem=str(exc))
            for call in calls:
                if not call.done:
                    self._give_up(call, Problem("failed", f"{call.to} answered nonsense: {exc}"))

    def _bounced(self, call: Call, problem: Problem) -> None:
        if call.done:
            return
        if problem.meaning.ran is Ran.NO and (call.sends > 1 or call.heard):
            # This sending did not arrive, but an earlier one may have.
            problem = _lost(f"{call.to} is gone ({problem.text})")
        self._settle(call, problem)

    def unanswered(self, calls: Sequence[Call]) -> None:
        """Say those ops again whose stanza got no answer."""
        for call in calls:
            if not call.heard:
                self._resend(call)

    def hear(self, sender: str, event: Event, taken: Callable[[], None] | None = None) -> None:
        """Take an event of one of our calls; ``taken`` is called once its reader has it.

        Raises:
            RemoteProtocolError: nothing that an honest agent could say now.
        """
        if not isinstance(event, CallEvent):
            return
        call = self._calls.get(event.exchange)
        if call is None or call.to != sender:
            # Ended, or never ours.  A final is acknowledged all the same, else it is kept there.
            if isinstance(event, Final):
                self._link.acknowledge(sender, event.id, event.attempt)
            if taken is not None:
                taken()
            return
        call.exchange.hear(event.type)
        call.heard = True
        match event:
            case Final():
                del self._calls[event.exchange]
                if call.acknowledge:
                    self.acknowledge(call)
                call.end(event if event.agent else replace(event, agent=sender))
            case Error():
                problem = event.problem
                if problem.reason == "stale-epoch" and call.sends > 1:
                    problem = _lost(f"{sender} was restarted")
                self._settle(call, problem)
            case Progress() | Log() | Data():
                call.offer(event, taken)
            case _:
                pass

    def acknowledge(self, call: Call) -> None:
        """Tell the agent that it need not keep the final of a call any longer."""
        call.exchange.say("ack")
        self._link.acknowledge(call.to, call.id, call.op.attempt)

    # -- presence

    def opened(self) -> None:
        """A new stream: say again what may not have arrived, and hear what was said meanwhile."""
        for call in list(self._calls.values()):
            self._link.introduce(self._link.peer(call.to))
            self._resend(call)

    def reborn(self, peer: Peer) -> None:
        """A peer began a new life: what its old one had of ours is lost."""
        for call in [call for call in self._calls.values() if call.to == peer.address]:
            meant_for_it = call.op.epoch == peer.epoch
            never_arrived = call.op.epoch is None and not call.heard and call.sends <= 1
            if not meant_for_it and not never_arrived:
                self._settle(call, _lost(f"{call.to} was restarted"))

    def absent(self, peer: Peer) -> None:
        """A peer's stream is gone: its calls are lost when their patience is over."""
        loop = asyncio.get_running_loop()
        for call in self._calls.values():
            if call.to == peer.address:
                loop.call_later(call.patience, self._lose, call, peer)

    def _lose(self, call: Call, peer: Peer) -> None:
        if not call.done and not peer.present:
            self._settle(call, _lost(f"{call.to} is gone"))


def _lost(what: str) -> Problem:
    return Problem("lost", f"{what}; the call may have been done")
