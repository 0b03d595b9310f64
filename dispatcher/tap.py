"""Watching the bus: what the taps show, and asking agents to tell about direct calls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from spinal.bus.errors import CallError
from spinal.bus.requests import Request
from spinal.protocols import Event, Json, Mirror, Problem, Seen

#: Events that wait for a slow watcher; more are dropped and counted.
BUFFER = 1000

#: Most taps at once.
MAX_TAPS = 20

#: Seconds between two askings for direct calls, and how long each of them holds.
RENEW = 5.0
HOLD = 12.0

#: A tap ends so many seconds before its deadline, with a result instead of a problem.
MARGIN = 0.5


class Taps:
    """Every open tap.

    Args:
        say: sends an event to an agent; may be lost.
        agents: gives the addresses of the agents that can mirror.
        changed: told whether somebody watches, when that has changed.
    """

    def __init__(
        self,
        say: Callable[[str, Event], None],
        agents: Callable[[], Iterable[str]],
        changed: Callable[[bool], None],
    ) -> None:
        self._say = say
        self._agents = agents
        self._changed = changed
        self._open: set[_Tap] = set()
        self._renewing: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def seen(self, event: Seen) -> None:
        """Show an event in every tap."""
        for tap in self._open:
            tap.offer(event)

    def ask(self, agent: str) -> None:
        """Ask an agent that has just come to tell about its direct calls, if somebody watches."""
        if self._open:
            self._say(agent, Mirror(HOLD))

    async def serve(self, request: Request) -> Json:
        """Stream what is seen to a watcher until it cancels or its time is over.

        Raises:
            CallError: it takes no stream, or too many watch.
        """
        if request.op.window == 0:
            raise CallError.of(Problem("bad-arguments", "a tap is a stream: ask with a window"))
        if len(self._open) >= MAX_TAPS:
            raise CallError.of(Problem("busy", f"{MAX_TAPS} taps are open already"))
        tap = _Tap()
        self._open.add(tap)
        if len(self._open) == 1:
            self._changed(True)
            self._renew()
        try:
            async with asyncio.timeout_at(request.deadline - MARGIN):
                await tap.pour(request)
        except TimeoutError:
            pass  # Its time is over, which is how a tap ends well.
        finally:
            self._open.discard(tap)
            if not self._open:
                self._stop()
        return {"seen": tap.shown, "dropped": tap.dropped}

    def close(self) -> None:
        """Ask for nothing more."""
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    def _renew(self) -> None:
        for agent in self._agents():
            self._say(agent, Mirror(HOLD))
        self._renewing = asyncio.get_running_loop().call_later(RENEW, self._renew)

    def _stop(self) -> None:
        self.close()
        self._changed(False)
        for agent in self._agents():
            self._say(agent, Mirror(0.0))


class _Tap:
    """One watcher, who may be slower than the bus."""

    def __init__(self) -> None:
        self._buffer: deque[Seen] = deque()
        self._filled = asyncio.Event()
        self._missed = 0
        self.dropped = 0
        self.shown = 0

    def offer(self, event: Seen) -> None:
        if len(self._buffer) >= BUFFER:
            self._missed += 1
            self.dropped += 1
            return
        self._buffer.append(event)
        self._filled.set()

    async def pour(self, request: Request) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._buffer:
                await request.data(self._buffer.popleft().to_json())
                self.shown += 1
                if self._missed:
                    missed, self._missed = self._missed, 0
                    await request.data({"type": "seen", "what": "dropped", "state": str(missed)})
