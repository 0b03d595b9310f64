"""The two sides of one call in a running program: what the caller holds, what the handler gets."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
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
    State,
)

from .errors import CallError

if TYPE_CHECKING:
    from .session import Session

#: What comes before the end of a call.
Item = Progress | Data | Log

#: Progress and log lines that wait for a reader; older ones make room, because both may be lost.
MAX_NEWS = 1000


class Call:
    """One call that we made.

    Await :meth:`result`, or iterate over it for progress, log lines and data as they come and then
    await :meth:`result`.  Made by :meth:`Session.call`.
    """

    def __init__(self, session: Session, to: str, op: Op, deadline: float, patience: float) -> None:
        self.to = to
        self.op = op
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
        self._session = session
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
                self._session.abandon(self)
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
                self._session.abandon(self)
                self._drop()

    async def cancel(self) -> str:
        """Stop it: ``cancelled``, ``late`` (it had ended) or ``unknown`` there.

        The call still ends by itself, with reason ``cancelled`` where it was stopped.
        """
        return await self._session.cancel(self)

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
    session: Session = field(repr=False)
    exchange: Exchange = field(default_factory=lambda: Exchange(Speaker.AGENT))
    task: asyncio.Task[None] | None = None
    #: Why it is being stopped, once it is.
    stopping: Problem | None = None
    began: float = 0.0
    #: The end, kept until it is acknowledged, and written.
    final: Final | None = None
    written: bytes = b""
    #: When to say the final again, and the pause after that.
    due: float = 0.0
    pause: float = 2.0
    sequence: int = 0
    #: Pieces of the stream that the reader has not taken, by number, written.
    untaken: dict[int, bytes] = field(default_factory=dict[int, bytes])
    credit: asyncio.Event | None = None

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
        self.session.tell(
            self, Progress(self.op.id, self.op.attempt, done=done, total=total, note=note)
        )

    def log(self, text: str, level: str = "info") -> None:
        """Send a log line to the caller; may be lost on the way."""
        self.session.tell(self, Log(self.op.id, self.op.attempt, text=text[:16_000], level=level))

    async def data(self, value: Json) -> None:
        """Send a numbered piece of the stream, waiting while the window is full.

        Dropped when the caller takes no stream.  Returns when the piece was written, not when it
        was read.

        Raises:
            LocalProtocolError: the value is not I-JSON or above the inline limit.
        """
        if self.op.window == 0:
            return
        while len(self.untaken) >= self.op.window:
            self.credit = asyncio.Event()
            await self.credit.wait()
        event = Data(self.op.id, self.op.attempt, seq=self.sequence, value=value)
        self.session.send_data(self, event)
        self.sequence += 1

    async def settled(self) -> None:
        """Wait until every piece of data was taken by the reader."""
        while self.untaken:
            self.credit = asyncio.Event()
            await self.credit.wait()

    def taken(self, seq: int) -> None:
        """The reader has this piece."""
        self.untaken.pop(seq, None)
        if self.credit is not None:
            self.credit.set()
