"""One call that we made, as the caller holds it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from spinal.protocols import (
    Data,
    Exchange,
    Final,
    Json,
    Log,
    Op,
    Problem,
    Progress,
    RemoteProtocolError,
    Speaker,
)

from .errors import CallError

if TYPE_CHECKING:
    from .calls import Calls

#: What comes before the end of a call.
Item = Progress | Data | Log

#: Progress and log lines that wait for a reader; older ones make room, because both may be lost.
MAX_NEWS = 1000


class Call:
    """One call that we made.

    Await :meth:`result`, or iterate over it for progress, log lines and data as they come and then
    await :meth:`result`.  Made by :meth:`Session.call`.
    """

    def __init__(
        self,
        table: Calls,
        to: str,
        op: Op,
        deadline: float,
        patience: float,
        acknowledge: bool = True,
    ) -> None:
        self.to = to
        self.op = op
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
        self._table = table
        self._ended: asyncio.Future[Final] = asyncio.get_running_loop().create_future()
        self._items: deque[Item] = deque()
        self._news = 0
        #: Data that came before its turn, and whom to tell when a piece was taken, by number.
        self._early: dict[int, Data] = {}
        self._untaken: dict[int, list[Callable[[], None]]] = {}
        self._next = 0
        self._reader = asyncio.Event()
        self._discard = op.window == 0
        #: Told of progress, log lines and the end as they come, if somebody attends.
        self._told: Callable[[Item], None] | None = None
        self._over: Callable[[], None] | None = None
        #: At the deadline; when the patience with an absent peer is over; at the next try.
        self.timer: asyncio.TimerHandle | None = None
        self.gone: asyncio.TimerHandle | None = None
        self.retry: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Call {self.op.op} {self.op.id} to {self.to} {self.exchange.state.value}>"

    @property
    def id(self) -> str:
        """The id that we gave it."""
        return self.op.id

    @property
    def done(self) -> bool:
        """Whether its end is known."""
        return self._ended.done()

    async def wait(self) -> Final:
        """Return the final, whatever it says; drops data that nobody reads.

        Cancelling the wait cancels the call at the other end as well.
        """
        self._drop()
        try:
            return await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            if not self._ended.done():
                self._table.abandon(self)
            raise

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
        try:
            while True:
                while self._items:
                    item = self._items.popleft()
                    if isinstance(item, Data):
                        self._taken(item.seq)
                    else:
                        self._news -= 1
                    yield item
                if self._ended.done():
                    return
                self._reader.clear()
                await self._reader.wait()
        finally:
            if not self._ended.done():
                # Left early: by cancellation, or because the reader has enough.
                self._table.abandon(self)
            self._drop()

    def attend(self, told: Callable[[Item], None], over: Callable[[], None]) -> None:
        """Be told of progress and log lines, and of the end, as they come; for who drops data.

        In place of iterating, for who holds many calls: no task has to wait for each.
        """
        self._drop()
        self._told, self._over = told, over
        if self.done:
            over()

    async def cancel(self) -> str:
        """Stop it: ``cancelled``, ``late`` (it had ended) or ``unknown`` there.

        The call still ends by itself, with reason ``cancelled`` where it was stopped.
        """
        return await self._table.cancel(self)

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
        if isinstance(item, Data):
            self._offer_data(item, taken or _nothing)
        elif self._told is not None:
            self._told(item)
        elif not self._discard:
            if self._news >= MAX_NEWS:
                del self._items[
                    next(i for i, old in enumerate(self._items) if not isinstance(old, Data))
                ]
                self._news -= 1
            self._items.append(item)
            self._news += 1
            self._reader.set()

    def _offer_data(self, item: Data, taken: Callable[[], None]) -> None:
        waiting = self._untaken.get(item.seq)
        if waiting is not None:
            # It was sent again, because we were away; the reader still has to take the first one.
            waiting.append(taken)
            return
        if self._discard or item.seq < self._next:
            taken()
            return
        if len(self._untaken) >= self.op.window:
            taken()
            raise RemoteProtocolError(f"{self.to} sent more data than the window of the call")
        self._untaken[item.seq] = [taken]
        self._early[item.seq] = item
        self._line_up()

    def skip(self, seq: int) -> None:
        """Begin with this piece of data, because a former life of ours has had those before it."""
        if seq > self._next:
            self._next = seq
            for early in [number for number in self._early if number < seq]:
                del self._early[early]
                self._taken(early)
            self._line_up()

    def _line_up(self) -> None:
        """Give the reader what is next."""
        while (ready := self._early.pop(self._next, None)) is not None:
            self._items.append(ready)
            self._next += 1
        self._reader.set()

    def _taken(self, seq: int) -> None:
        for taken in self._untaken.pop(seq, ()):
            taken()

    def returned(self) -> None:
        """The peer is there: stop counting its absence."""
        for timer in (self.gone, self.retry):
            if timer is not None:
                timer.cancel()
        self.gone = self.retry = None

    def end(self, final: Final) -> bool:
        """Settle it; false if it was settled before."""
        if self._ended.done():
            return False
        self.final = final
        self._ended.set_result(final)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.returned()
        self._reader.set()
        if self._over is not None:
            self._over()
        return True

    def finish(self, problem: Problem) -> bool:
        """Settle it with a problem of our own making."""
        return self.end(Final(self.op.id, self.op.attempt, problem=problem))

    def _drop(self) -> None:
        self._discard = True
        self._items.clear()
        self._early.clear()
        self._news = 0
        for seq in list(self._untaken):
            self._taken(seq)


def _nothing() -> None:
    pass
