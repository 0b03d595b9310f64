"""Calls that wait for an agent: bounded, in a fair order, one lane per demand.

Theory of operation.  Entries with the same demand wait in one lane, so that an operation without
agents blocks no other.  An agent with a free slot takes from the lanes that it can serve: the
highest level first, then the caller whose turn was longest ago, then whoever waited longest.
The level is the priority, raised by one for every :data:`AGEING` seconds that an entry waited, so
that low priority waits long but not for ever.  Turns are counted over all lanes, so nobody gets
more by spreading calls over operations.

Nothing searches the queue: levels, callers and entries are dictionaries in the order in which they
came, the callers of a level stand in a heap by turn, and deadlines and ageing stand in heaps of
their own; entries that have left are skipped when they come up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

from spinal.protocols import Problem

from .errors import QueueFull
from .resolver import Demand

#: Most calls that wait at once, and most bytes of their arguments.
MAX_WAITING = 10_000
MAX_BYTES = 64 * 1024 * 1024

#: Seconds of waiting that lift an entry by one level.
AGEING = 30.0

#: Levels above this one are not told apart.
TOP = 9

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One call that waits."""

    demand: Demand
    #: Who shares turns: the caller's bare address.
    caller: str
    #: Seconds, monotonic, after which it is dropped.
    deadline: float
    item: T
    priority: int = 0
    #: Bytes that it keeps in memory.
    size: int = 0
    level: int = field(default=0, init=False)
    #: Order of arrival; 0 while it is not in a queue.
    number: int = field(default=0, init=False)
    #: Order of reaching its level.
    rank: int = field(default=0, init=False)


#: Level -> the entries there.
_Lane = dict[int, "_Level[T]"]


class _Level(Generic[T]):
    """The entries of one lane at one level: caller -> entries in order, and a heap of callers."""

    __slots__ = ("callers", "heap")

    def __init__(self) -> None:
        self.callers: dict[str, dict[int, Entry[T]]] = {}
        #: (turn, rank of the first entry, caller); may lag behind, never ahead.
        self.heap: list[tuple[int, int, str]] = []


class Queue(Generic[T]):
    """See the module."""

    def __init__(self, most: int = MAX_WAITING, most_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        #: The one agent that will do (or nothing) -> operation -> demand -> lane; empty ones are
        #: removed at once.
        self._lanes: dict[str, dict[str, dict[Demand, _Lane[T]]]] = {}
        #: Caller -> how many entries it has, and the number of its last turn.
        self._waiting: dict[str, int] = {}
        self._turn_of: dict[str, int] = {}
        self._turns = 0
        self._number = 0
        self._rank = 0
        self._count = 0
        self._bytes = 0
        self._deadlines: list[tuple[float, int, Entry[T]]] = []
        self._ageing: list[tuple[float, int, Entry[T]]] = []
        self._expired: list[Entry[T]] = []

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry[T]]:
        for demand in self.demands():
            yield from self.waiting_for(demand)

    def demands(self, op: str | None = None) -> list[Demand]:
        """Give the demands that somebody waits with, of one operation or of all."""
        return [
            demand
            for ops in self._lanes.values()
            for lanes in (ops.values() if op is None else (ops.get(op, {}),))
            for demand in lanes
        ]

    def demands_for(self, agent: str) -> list[Demand]:
        """Give the demands that only this agent will do."""
        return [demand for lanes in self._lanes.get(agent, {}).values() for demand in lanes]

    def waiting_for(self, demand: Demand) -> list[Entry[T]]:
        """Give the entries with this demand."""
        return [
            entry
            for level in self._lane(demand).values()
            for entries in level.callers.values()
            for entry in entries.values()
        ]

    def has(self, demand: Demand) -> bool:
        """Tell whether somebody waits with this demand."""
        return bool(self._lane(demand))

    def operations(self) -> Mapping[str, int]:
        """Count the waiting calls by operation."""
        return Counter(entry.demand.op for entry in self)

    def add(self, entry: Entry[T], now: float) -> None:
        """Let a call wait.

        Raises:
            QueueFull: as many wait as may, or their arguments are too large together.
        """
        if self._count >= self._most or self._bytes + entry.size > self._most_bytes:
            raise QueueFull(
                Problem("full", f"{self._count} calls wait already: try again later", after=1.0)
            )
        self._age(now)
        self._number += 1
        entry.number = self._number
        entry.level = min(TOP, entry.priority)
        self._count += 1
        self._bytes += entry.size
        self._waiting[entry.caller] = self._waiting.get(entry.caller, 0) + 1
        self._enter(entry)
        heappush(self._deadlines, (entry.deadline, entry.number, entry))
        if entry.level < TOP:
            heappush(self._ageing, (now + AGEING, entry.number, entry))

    def remove(self, entry: Entry[T]) -> bool:
        """Take a call out, because nobody waits for it any more; false if it had left."""
        if not entry.number:
            return False
        self._leave(entry)
        return True

    def expire(self, now: float) -> list[Entry[T]]:
        """Take out, and give, the calls whose deadline has passed."""
        self._drop_expired(now)
        expired, self._expired = self._expired, []
        return expired

    def next_deadline(self) -> float:
        """Give the earliest deadline of a waiting call; infinity if none waits."""
        heap = self._deadlines
        while heap and heap[0][2].number != heap[0][1]:
            heappop(heap)
        return heap[0][0] if heap else math.inf

    def take(
        self, agent: str, ops: Collection[str], accepts: Callable[[Demand], bool], now: float
    ) -> Entry[T] | None:
        """Take the next call for an agent that offers these operations.

        ``accepts`` is asked once for each demand on them.  Calls whose deadline has passed are not
        given; :meth:`expire` gives them.
        """
        if not self._count:
            return None
        self._drop_expired(now)
        self._age(now)
        best: tuple[int, int, int] | None = None
        found: Entry[T] | None = None
        for lanes in self._open_to(agent, ops):
            for demand, lane in lanes.items():
                if not accepts(demand):
                    continue
                top = max(lane)
                turn, rank, caller = self._first(lane[top])
                if best is None or (-top, turn, rank) < best:
                    best = (-top, turn, rank)
                    found = next(iter(lane[top].callers[caller].values()))
        if found is not None:
            self._turns += 1
            self._turn_of[found.caller] = self._turns
            self._leave(found)
        return found

    # -- inside

    def _lane(self, demand: Demand) -> _Lane[T]:
        return self._lanes.get(demand.only, {}).get(demand.op, {}).get(demand, {})

    def _open_to(self, agent: str, ops: Collection[str]) -> Iterator[dict[Demand, _Lane[T]]]:
        """Give the lanes of the operations, those for anybody and those for this agent."""
        for only in ("", agent):
            waiting = self._lanes.get(only)
            if not waiting:
                continue
            few, many = (waiting, ops) if len(waiting) < len(ops) else (ops, waiting)
            for op in few:
                if op in many:
                    yield waiting[op]

    def _first(self, level: _Level[T]) -> tuple[int, int, str]:
        """Give turn, rank and caller of the entry that is next at a level.

        Turns only grow while a caller waits, so a heap item that is too small is mended when it
        comes to the top, and the top is right once it needs no mending.
        """
        heap = level.heap
        if len(heap) > 2 * len(level.callers) + 16:
            heap[:] = [
                (self._turn_of.get(caller, 0), next(iter(entries.values())).rank, caller)
                for caller, entries in level.callers.items()
            ]
            heapify(heap)
        while True:
            caller = heap[0][2]
            entries = level.callers.get(caller)
            if entries is None:
                heappop(heap)
                continue
            true = (self._turn_of.get(caller, 0), next(iter(entries.values())).rank, caller)
            if true == heap[0]:
                return true
            heapreplace(heap, true)

    def _enter(self, entry: Entry[T]) -> None:
        self._rank += 1
        entry.rank = self._rank
        demand = entry.demand
        lanes = self._lanes.setdefault(demand.only, {}).setdefault(demand.op, {})
        level = lanes.setdefault(demand, {}).setdefault(entry.level, _Level())
        entries = level.callers.get(entry.caller)
        if entries is None:
            level.callers[entry.caller] = {entry.number: entry}
            heappush(level.heap, (self._turn_of.get(entry.caller, 0), entry.rank, entry.caller))
        else:
            entries[entry.number] = entry

    def _exit(self, entry: Entry[T]) -> None:
        """Take an entry out of its lane, and remove what became empty, from the inside out."""
        demand = entry.demand
        ops = self._lanes[demand.only]
        lanes = ops[demand.op]
        lane = lanes[demand]
        level = lane[entry.level]
        entries = level.callers[entry.caller]
        del entries[entry.number]
        if not entries:
            del level.callers[entry.caller]
        if not level.callers:
            del lane[entry.level]
        if not lane:
            del lanes[demand]
        if not lanes:
            del ops[demand.op]
        if not ops:
            del self._lanes[demand.only]

    def _leave(self, entry: Entry[T]) -> None:
        self._exit(entry)
        entry.number = 0
        self._count -= 1
        self._bytes -= entry.size
        left = self._waiting[entry.caller] - 1
        if left:
            self._waiting[entry.caller] = left
        else:
            # Forgetting the turn of who has nothing waiting keeps this table as small as the queue;
            # it costs one turn of precedence when that caller comes back.
            del self._waiting[entry.caller]
            self._turn_of.pop(entry.caller, None)
        for heap in (self._deadlines, self._ageing):
            if len(heap) > 2 * self._count + 64:
                heap[:] = [item for item in heap if item[2].number == item[1]]
                heapify(heap)

    def _drop_expired(self, now: float) -> None:
        while self.next_deadline() <= now:
            entry = heappop(self._deadlines)[2]
            self._leave(entry)
            self._expired.append(entry)

    def _age(self, now: float) -> None:
        heap = self._ageing
        while heap and heap[0][0] <= now:
            due, number, entry = heappop(heap)
            if entry.number != number:
                continue
            self._exit(entry)
            entry.level += 1
            self._enter(entry)
            if entry.level < TOP:
                heappush(heap, (due + AGEING, number, entry))
