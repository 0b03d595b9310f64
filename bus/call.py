"""One call that we made, as the caller holds it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
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
        self.final: Final | None = None
        self._table = table
        self._ended: asyncio.Future[Final] = asyncio.get_running_loop().create_future()
        self._items: deque[tuple[Item, Callable[[], None] | None]] = deque()
        self._early: dict[int, tuple[Data, Callable[[], None]]] = {}
        self._next = 0
        self._reader: asyncio.Event | None = None
        self._discard = op.window == 0
        self.timer: asyncio.TimerHandle | None = None

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

    async def __aiter__(self) -> AsyncIterator[Item]:
        """Give what comes before the end, in order; stops at the end without raising."""
        try:
            while True:
                while self._items:
                    item, taken = self._items.popleft()
                    if taken is not None:
                        taken()
                    yield item
                if self._ended.done():
                    return
                self._reader = asyncio.Event()
                await self._reader.wait()
        finally:
            if not self._ended.done():
                # Left early: by cancellation, or because the reader has enough.
                self._table.abandon(self)
                self._drop()

    async def cancel(self) -> str:
        """Stop it: ``cancelled``, ``late`` (it had ended) or ``unknown`` there.

        The call still ends by itself, with reason ``cancelled`` where it was stopped.
        """
        return await self._table.cancel(self)

    # -- for the session

    def offer(self, item: Item, taken: Callable[[], None] | None = None) -> None:
        """Give something to the reader; ``taken`` is called once it has it."""
        if isinstance(item, Data):
            self._offer_data(item, taken or _nothing)
        elif not self._discard:
            if len(self._items) >= MAX_NEWS:
                return
            self._items.append((item, None))
            self._wake()

    def _offer_data(self, item: Data, taken: Callable[[], None]) -> None:
        if self._discard or item.seq < self._next or item.seq in self._early:
            taken()
            return
        if len(self._early) >= self.op.window:
            taken()
            self.finish(
                Problem("malformed", f"{self.to} sent more data than the window of the call")
            )
            return
        self._early[item.seq] = (item, taken)
        while (ready := self._early.pop(self._next, None)) is not None:
            self._items.append(ready)
            self._next += 1
        self._wake()

    def end(self, final: Final) -> bool:
        """Settle it; false if it was settled before."""
        if self._ended.done():
            return False
        self.final = final
        self._ended.set_result(final)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self._wake()
        return True

    def finish(self, problem: Problem) -> bool:
        """Settle it with a problem of our own making."""
        return self.end(Final(self.op.id, self.op.attempt, problem=problem))

    def _wake(self) -> None:
        if self._reader is not None:
            self._reader.set()

    def _drop(self) -> None:
        self._discard = True
        waiting = [*self._items, *self._early.values()]
        self._items.clear()
        self._early.clear()
        for _, taken in waiting:
            if taken is not None:
                taken()


def _nothing() -> None:
    pass
