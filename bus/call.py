"""One call that we made, as the caller holds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from spinal.protocols import Data, Exchange, Final, Json, Op, Problem, Speaker

from .errors import CallError
from .inbox import Inbox, Item

if TYPE_CHECKING:
    from .calls import Calls
    from .peers import Peer

__all__ = ["Call", "Item"]


class Call:
    """One call that we made.

    Await :meth:`result`, or iterate over it for progress, log lines and data as they come and then
    await :meth:`result`.  Made by :meth:`Session.call`.
    """

    __slots__ = (
        "_inbox",
        "_news",
        "_table",
        "_told",
        "_waiting",
        "acknowledge",
        "deadline",
        "epoch",
        "exchange",
        "final",
        "gone",
        "heard",
        "key",
        "op",
        "patience",
        "peer",
        "retry",
        "sends",
        "unanswered",
    )

    def __init__(
        self,
        table: Calls,
        peer: Peer,
        op: Op,
        deadline: float,
        patience: float,
        acknowledge: bool = True,
    ) -> None:
        self.peer = peer
        self.op = op
        #: Its id and attempt.
        self.key = op.exchange
        #: Acknowledge the final when it comes; else whoever keeps it does, once it is safe.
        self.acknowledge = acknowledge
        #: ``loop.time()`` at which we give up.
        self.deadline = deadline
        #: Seconds that the peer may be gone before the call counts as lost.
        self.patience = patience
        self.exchange = Exchange(Speaker.CALLER)
        #: How often the op was sent: after the first time, a bounce does not mean that it never ran.
        self.sends = 0
        #: The peer said that it has it.
        self.heard = False
        #: The peer has said nothing since the op was sent for the last time.
        self.unanswered = False
        #: The life of the peer that may have it: a resent op is for that one and no other.
        self.epoch = op.epoch
        self.final: Final | None = None
        #: Fires when the patience with an absent peer is over; at the next try.
        self.gone: asyncio.TimerHandle | None = None
        self.retry: asyncio.TimerHandle | None = None
        self._table = table
        self._inbox = Inbox(op.window, peer.address) if op.window else None
        self._waiting: list[asyncio.Future[None]] = []
        self._told: Callable[[Call], None] | None = None
        self._news: Callable[[Item], None] | None = None

    def __repr__(self) -> str:
        return f"<Call {self.op.op} {self.op.id} to {self.to} {self.exchange.state.value}>"

    @property
    def to(self) -> str:
        """Whom we asked."""
        return self.peer.address

    @property
    def id(self) -> str:
        """The id that we gave it."""
        return self.op.id

    @property
    def done(self) -> bool:
        """Whether its end is known."""
        return self.final is not None

    async def wait(self) -> Final:
        """Return the final, whatever it says; drops data that nobody reads.

        Cancelling the wait cancels the call at the other end as well.
        """
        if self._inbox is not None:
            self._inbox.discard()
        return await self._end()

    async def _end(self) -> Final:
        if self.final is None:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(ended)
            try:
                await ended
            finally:
                if self.final is None:
                    # Left early: by cancellation.
                    self._table.abandon(self)
        assert self.final is not None
        return self.final

    async def result(self) -> Json:
        """Return the operation's value.

        Raises:
            CallError: of the kind that the problem means (see ``errors``).
        """
        final = await self.wait()
        if final.problem is not None:
            raise CallError.of(final.problem, final.agent)
        return final.value

    async def __aiter__(self) -> AsyncGenerator[Item]:
        """Give what comes before the end, in order; stops at the end without raising."""
        inbox = self._inbox
        if inbox is None:
            await self._end()
            return
        try:
            while True:
                while (item := inbox.take()) is not None:
                    yield item
                if self.done:
                    return
                await inbox.wait()
        finally:
            if not self.done:
                # Left early: by cancellation, or because the reader has enough.
                self._table.abandon(self)
            inbox.discard()

    async def cancel(self) -> str:
        """Stop it: ``cancelled``, ``late`` (it had ended) or ``unknown`` there.

        The call still ends by itself, with reason ``cancelled`` where it was stopped.
        """
        return await self._table.cancel(self)

    def abandon(self) -> None:
        """Give it up without waiting: the peer is told, and it ends as cancelled."""
        self._table.abandon(self)

    def then(self, told: Callable[[Call], None]) -> None:
        """Have one be told when it has ended, at once if it has; for who waits for many."""
        if self.done:
            told(self)
        else:
            self._told = told

    def attend(self, news: Callable[[Item], None]) -> None:
        """Have one be told of progress and log lines as they come, who takes no data."""
        self._inbox, self._news = None, news

    # -- for the session

    def sent(self, epoch: int | None) -> None:
        """Count a sending of the op, to a peer whose present life is the one given, if known."""
        if self.sends == 0 and self.epoch is None:
            self.epoch = epoch
        self.sends += 1
        self.unanswered = True

    def offer(self, item: Item, taken: Callable[[], None] | None = None) -> None:
        """Give something to the reader; ``taken`` is called once it has it.

        Raises:
            RemoteProtocolError: more data than the window allows.
        """
        if self._inbox is not None:
            self._inbox.offer(item, taken or _nothing)
        elif isinstance(item, Data):
            if taken is not None:
                taken()
        elif self._news is not None:
            self._news(item)

    def skip(self, seq: int) -> None:
        """Begin with this piece of data, because a former life of ours has had those before it."""
        if self._inbox is not None:
            self._inbox.skip(seq)

    def returned(self) -> None:
        """The peer is there: stop counting its absence."""
        if self.gone is not None:
            self.gone.cancel()
            self.gone = None
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

    def end(self, final: Final) -> bool:
        """Settle it; false if it was settled before."""
        if self.final is not None:
            return False
        self.final = final
        self.returned()
        if self._inbox is not None:
            self._inbox.ended()
        for ended in self._waiting:
            if not ended.done():
                ended.set_result(None)
        if self._told is not None:
            self._told(self)
        return True

    def finish(self, problem: Problem) -> bool:
        """Settle it with a problem of our own making."""
        return self.end(Final(self.op.id, self.op.attempt, problem=problem))


def _nothing() -> None:
    pass
