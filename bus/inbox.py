"""What comes before the end of a call, as its reader takes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from spinal.protocols import Data, Log, Progress, RemoteProtocolError

#: What comes before the end of a call.
Item = Progress | Data | Log

#: Progress and log lines that wait for a reader; older ones make room, because both may be lost.
MAX_NEWS = 1000


class Inbox:
    """Puts pieces of data into order, and holds what was not read yet.

    Args:
        window: pieces that may be unread.
        sender: who sends them, for errors.
    """

    def __init__(self, window: int, sender: str) -> None:
        self._window = window
        self._sender = sender
        self._items: deque[Item] = deque()
        self._news = 0
        #: Data that came before its turn, and whom to tell when a piece was taken, by number.
        self._early: dict[int, Data] = {}
        self._untaken: dict[int, list[Callable[[], None]]] = {}
        self._next = 0
        self._ready = asyncio.Event()
        self._discards = False

    # -- what comes

    def offer(self, item: Item, taken: Callable[[], None]) -> None:
        """Give something to the reader; ``taken`` is called once it has a piece of data.

        Raises:
            RemoteProtocolError: more data than the window allows.
        """
        if isinstance(item, Data):
            self._offer_data(item, taken)
        elif not self._discards:
            if self._news >= MAX_NEWS:
                del self._items[
                    next(i for i, old in enumerate(self._items) if not isinstance(old, Data))
                ]
                self._news -= 1
            self._items.append(item)
            self._news += 1
            self._ready.set()

    def _offer_data(self, item: Data, taken: Callable[[], None]) -> None:
        waiting = self._untaken.get(item.seq)
        if waiting is not None:
            # It was sent again, because we were away; the reader still has to take the first one.
            waiting.append(taken)
            return
        if self._discards or item.seq < self._next:
            taken()
            return
        if len(self._untaken) >= self._window:
            taken()
            raise RemoteProtocolError(f"{self._sender} sent more data than the window of the call")
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
        self._ready.set()

    def ended(self) -> None:
        """Nothing more comes: who waits looks."""
        self._ready.set()

    # -- the reader

    def take(self) -> Item | None:
        """Take what is next, if it is here."""
        if not self._items:
            return None
        item = self._items.popleft()
        if isinstance(item, Data):
            self._taken(item.seq)
        else:
            self._news -= 1
        return item

    async def wait(self) -> None:
        """Wait until there may be something."""
        self._ready.clear()
        await self._ready.wait()

    def discard(self) -> None:
        """Drop what is here and what still comes: nobody reads it."""
        self._discards = True
        self._items.clear()
        self._early.clear()
        self._news = 0
        for seq in list(self._untaken):
            self._taken(seq)

    def _taken(self, seq: int) -> None:
        for taken in self._untaken.pop(seq, ()):
            taken()
