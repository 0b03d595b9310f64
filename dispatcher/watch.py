"""Watching the agents: who is gone without having said so, and who is here again."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Mapping

from spinal.bus.errors import CallError
from spinal.bus.requests import Request
from spinal.protocols import Json, Problem

from .agent import AgentState, KnownAgent
from .listing import fitting
from .registry import Registry
from .tap import MARGIN

#: Most watches at once.
MAX_WATCHES = 20

#: Rows that wait for a slow watcher; more are dropped and counted.
BUFFER = 2000

#: Attempts that are named of an agent that is gone; the others are counted.
NAMED = 8

Row = Mapping[str, Json]


class Watches:
    """Every open watch.

    Args:
        registry: the agents.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._open: set[_Watch] = set()

    def __len__(self) -> int:
        return len(self._open)

    def gone(self, agent: KnownAgent, why: str) -> None:
        """Tell that an agent is away, or silent, which did not say that it was leaving."""
        if self._open and not _leaving(agent):
            self._tell(_gone(agent, why))

    def here(self, agent: KnownAgent) -> None:
        """Tell that an agent has come, or come back."""
        if self._open:
            self._tell({"agent": agent.address, "what": "here"})

    def _tell(self, row: Row) -> None:
        for watch in self._open:
            watch.offer(row)

    async def serve(self, request: Request) -> Json:
        """Stream to a watcher until it cancels or its time is over; first, who is gone now.

        Raises:
            CallError: it takes no stream, or too many watch.
        """
        if request.op.window == 0:
            raise CallError.of(Problem("bad-arguments", "a watch is a stream: ask with a window"))
        if len(self._open) >= MAX_WATCHES:
            raise CallError.of(Problem("busy", f"{MAX_WATCHES} watches are open already"))
        watch = _Watch()
        self._open.add(watch)
        try:
            async with asyncio.timeout_at(request.deadline - MARGIN):
                await watch.pour(request, self._gone_now(asyncio.get_running_loop().time()))
        except TimeoutError:
            pass  # Its time is over, which is how a watch ends well.
        finally:
            self._open.discard(watch)
        return {"told": watch.told, "dropped": watch.dropped}

    def _gone_now(self, now: float) -> list[Row]:
        judged = self._registry.time(now)
        away = (
            agent
            for agent in self._registry
            if agent.state(judged) is not AgentState.AVAILABLE and not _leaving(agent)
        )
        return [_gone(agent, agent.state(judged).value) for agent in itertools.islice(away, BUFFER)]


class _Watch:
    """One watcher, who may be slower than the agents."""

    def __init__(self) -> None:
        self._buffer: deque[Row] = deque()
        self._filled = asyncio.Event()
        self._missed = 0
        self.told = 0
        self.dropped = 0

    def offer(self, row: Row) -> None:
        if len(self._buffer) >= BUFFER:
            self._missed += 1
            self.dropped += 1
            return
        self._buffer.append(row)
        self._filled.set()

    async def pour(self, request: Request, first: Iterable[Row]) -> None:
        rows = list(first)
        while True:
            piece = fitting(rows)
            await request.data(piece)
            self.told += len(piece)
            del rows[: len(piece)]
            if rows:
                continue
            if self._missed:
                rows = [{"what": "dropped", "count": self._missed}]
                self._missed = 0
                continue
            await self._filled.wait()
            self._filled.clear()
            rows = list(self._buffer)
            self._buffer.clear()


def _leaving(agent: KnownAgent) -> bool:
    return agent.advertisement.state == "draining"


def _gone(agent: KnownAgent, why: str) -> Row:
    running = itertools.islice(agent.running(), NAMED)
    return {
        "agent": agent.address,
        "what": "gone",
        "why": why,
        "running": [{"id": id, "op": op} for id, op in running],
        "in_flight": agent.in_flight,
    }
