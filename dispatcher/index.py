"""The agents of one description by what a call may ask for, so that choosing looks at few of them.

Theory of operation.  Agents stand on shelves: one for everybody, one for each tag, and for each
place two: of those at it, and of those at it or below.  A call that asks for one of these things
finds all who will do on one shelf (for a place, on those of the places above it as well).  One
that asks for several takes the shelf with the fewest, and passes over who is not on the others;
once as many were passed over as stand there, the combination gets a shelf of its own.

On a shelf each agent stands at spots, which tell its lane and its rank.  Whoever can start any call
is in the lane ``""``.  Whoever cannot rests in the lane of the rule that stops it, and may be in
the lanes of single operations that it can start all the same.  At a spot agents stand in the order
in which they came there, which is that of ``KnownAgent.used``.

When an agent changes it moves: a few dictionary operations for each of its shelves, however many
agents there are.  Most reports move nobody.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

from spinal.protocols.path import parts

from .agent import KnownAgent, Spot, Turn
from .policies import RANKS, Context
from .resolver import Demand, rejection

#: Most combinations of places and tags that have a shelf, and on how many of these an agent may
#: stand on average; a further one takes that of the one that was not asked for longest.
MAX_COMBINED: Final = 256
MAX_SHARE: Final = 2

#: Combinations for which it is counted who was passed over.
MAX_COUNTED: Final = 4096

#: Order in which agents stand when nobody has asked for another one yet.
USUAL: Final = "least-loaded"

#: Lanes of those who cannot start every call, by the rule that stops them.
_RESTING: Final = ("busy", "full", "gone", "state", "suspect")
_AT_REST: Final[Mapping[str, tuple[Spot, ...]]] = {rule: (("", rule),) for rule in _RESTING}

#: What all calls that ask for it find together.
_Shelves = Sequence["Shelf"]


class Shelf:
    """Agents that have something in common, by where they stand."""

    __slots__ = ("_order", "_spots", "size")

    def __init__(self) -> None:
        self._spots: dict[Spot, OrderedDict[KnownAgent, None]] = {}
        #: The spots at which somebody stands, sorted.
        self._order: list[Spot] = []
        self.size = 0

    def move(self, agent: KnownAgent, before: Iterable[Spot], after: Iterable[Spot]) -> None:
        """Take an agent away from some spots, and let it stand last at others."""
        spots = self._spots
        for spot in before:
            standing = spots[spot]
            del standing[agent]
            if not standing:
                del spots[spot]
                del self._order[bisect_left(self._order, spot)]
        for spot in after:
            if spot not in spots:
                spots[spot] = OrderedDict()
                insort(self._order, spot)
            spots[spot][agent] = None

    def add(self, agent: KnownAgent) -> None:
        """Take in an agent."""
        self.size += 1
        agent.shelves.append(self)
        self.move(agent, (), agent.spots)

    def remove(self, agent: KnownAgent) -> None:
        """Let an agent go."""
        self.size -= 1
        self.move(agent, agent.spots, ())

    def lane(self, order: str, lane: str) -> Iterator[KnownAgent]:
        """Give the agents of a lane, best first."""
        for spot in self._lane(order, lane):
            yield from self._spots[spot]

    def count(self, order: str, lane: str) -> int:
        """Count them."""
        return sum(len(self._spots[spot]) for spot in self._lane(order, lane))

    def everybody(self) -> Iterator[KnownAgent]:
        """Give each agent once, those that can start any call first."""
        yield from self.lane(USUAL, "")
        for rule in _RESTING:
            yield from self.lane("", rule)

    def _lane(self, order: str, lane: str) -> Iterator[Spot]:
        spots = self._order
        at = bisect_left(spots, (order, lane))
        while at < len(spots) and spots[at][0] == order and spots[at][1] == lane:
            yield spots[at]
            at += 1


class Index:
    """See the module.  The agents tell of their changes by calling :meth:`moved`."""

    def __init__(self, turns: Iterator[int]) -> None:
        self._turns = turns
        self._all = Shelf()
        self._shelves: dict[Hashable, Shelf] = {}
        #: Places and tags -> the shelf of those who have them all; not asked for longest first.
        self._combined: OrderedDict[Hashable, tuple[Demand, Shelf]] = OrderedDict()
        #: Combinations without one -> how many were passed over for them.
        self._passed_over: OrderedDict[Hashable, int] = OrderedDict()
        #: Policies by which somebody was chosen.
        self._orders: list[str] = [USUAL]

    def __len__(self) -> int:
        return self._all.size

    def __iter__(self) -> Iterator[KnownAgent]:
        return self._all.everybody()

    def add(self, agent: KnownAgent) -> None:
        """Take in an agent."""
        agent.spots = self._where(agent)
        agent.used = Turn(next(self._turns))
        self._all.add(agent)
        for feature in _features(agent):
            shelf = self._shelves.get(feature)
            if shelf is None:
                shelf = self._shelves[feature] = Shelf()
            shelf.add(agent)
        for demand, shelf in self._combined.values():
            if _on(agent, self._asked(demand)):
                shelf.add(agent)
        agent.moved = self.moved

    def remove(self, agent: KnownAgent) -> None:
        """Let an agent go; it has to be what it was when it was taken in."""
        agent.moved = None
        for shelf in agent.shelves:
            shelf.remove(agent)
        agent.shelves.clear()
        for feature in _features(agent):
            if not self._shelves[feature].size:
                del self._shelves[feature]

    def moved(self, agent: KnownAgent) -> None:
        """See where an agent stands now."""
        before, spots = agent.spots, self._where(agent)
        if spots == before:
            return
        for shelf in agent.shelves:
            shelf.move(agent, before, spots)
        agent.spots = spots
        agent.used = Turn(next(self._turns))

    # -- what is asked of it

    def ready(self, demand: Demand) -> Iterator[Iterator[KnownAgent]]:
        """Give whoever is of the right place and tags and has room, in several rows, best first.

        The order is that of the policy where it is one of ``RANKS``, else by load.  Who has gone
        silent may be among them, and who said that it cannot do this call.
        """
        order = demand.policy if demand.policy in RANKS else USUAL
        if order not in self._orders:
            self._add_order(order)
        shelves, others = self._narrowest(demand)
        for shelf in shelves:
            for lane in ("", demand.op):
                row = shelf.lane(order, lane)
                yield self._passing(row, others, demand) if others else row

    def suited(self, demand: Demand) -> Iterator[KnownAgent]:
        """Give everybody of the right place and tags, in whatever state."""
        shelves, others = self._narrowest(demand)
        for shelf in shelves:
            everybody = shelf.everybody()
            yield from self._passing(everybody, others, demand) if others else everybody

    def passed(self, demand: Demand, context: Context) -> Counter[str]:
        """Count those who cannot start a call now, by the rule that stops them."""
        placed = self._exactly(Demand(demand.op, demand.place))
        suited = self._exactly(demand)
        there, right = _size(placed), _size(suited)
        found = Counter(place=len(self) - there, tags=there - right)
        for shelf in suited:
            for rule in _RESTING:
                found[rule] += shelf.count("", rule)
            refusing = list(shelf.lane("", "full"))
            stopped = [rejection(agent, demand, context) for agent in refusing]
            found["full"] -= len(refusing)
            found.update(rule.name for rule in stopped if rule is not None)
            # Who is in the lane of the operation can start it, whatever stops it elsewhere.
            found["busy"] -= shelf.count(USUAL, demand.op) - stopped.count(None)
        return found

    # -- inside

    def _where(self, agent: KnownAgent) -> tuple[Spot, ...]:
        if agent.gone_at is not None:
            return _AT_REST["gone"]
        if agent.silent:
            return _AT_REST["suspect"]
        if agent.advertisement.state != "available" or agent.held:
            return _AT_REST["state"]
        waits = agent.busy >= agent.slots
        if not waits and not agent.refuses:
            return tuple([(order, "", waits, *RANKS[order](agent)) for order in self._orders])
        return _AT_REST["full" if agent.refuses else "busy"] + tuple(
            (order, op, waits, *RANKS[order](agent))
            for op in agent.open_to()
            for order in self._orders
        )

    def _add_order(self, order: str) -> None:
        """Let everybody stand in one more order, from now on."""
        self._orders.append(order)
        for agent in sorted(self, key=lambda agent: agent.used):
            spots = self._where(agent)
            added = [spot for spot in spots if spot[0] == order]
            for shelf in agent.shelves:
                shelf.move(agent, (), added)
            agent.spots = spots

    def _asked(self, demand: Demand) -> list[_Shelves]:
        """Give, for each thing asked for, the shelves of those who have it."""
        get = self._shelves.get
        asked: list[_Shelves] = []
        for key, place in demand.place:
            *above, _ = lineage(place)
            features = (("under", key, place), *(("at", key, higher) for higher in above))
            asked.append([shelf for one in features if (shelf := get(one)) is not None])
        for tag in demand.tags:
            shelf = get(("tag", tag))
            asked.append([] if shelf is None else [shelf])
        return asked

    def _narrowest(self, demand: Demand) -> tuple[_Shelves, list[_Shelves]]:
        """Give the shelves to look at, and those on which an agent has to be besides."""
        asked = self._asked(demand)
        if not asked:
            return [self._all], []
        if len(asked) > 1:
            combination = (demand.place, demand.tags)
            first, others = _fewest(asked)
            passed_over = self._passed_over.get(combination, 0)
            if combination not in self._combined and passed_over <= _size(first):
                return first, others
        return self._exactly(demand), []

    def _passing(
        self, agents: Iterable[KnownAgent], others: list[_Shelves], demand: Demand
    ) -> Iterator[KnownAgent]:
        """Pass over those who are not on the other shelves as well."""
        passed_over = 0
        try:
            for agent in agents:
                if _on(agent, others):
                    yield agent
                else:
                    passed_over += 1
        finally:
            if passed_over:
                self._count((demand.place, demand.tags), passed_over)

    def _count(self, combination: Hashable, passed_over: int) -> None:
        counted = self._passed_over
        counted[combination] = counted.pop(combination, 0) + passed_over
        if len(counted) > MAX_COUNTED:
            counted.popitem(last=False)

    def _exactly(self, demand: Demand) -> _Shelves:
        """Give the shelves of those, and only those, who have all that is asked for."""
        asked = self._asked(demand)
        if len(asked) < 2:
            return asked[0] if asked else [self._all]
        combination = (demand.place, demand.tags)
        found = self._combined.get(combination)
        if found is None:
            self._passed_over.pop(combination, None)
            found = self._combined[combination] = (demand, _combined(asked))
            self._uncombine()
        self._combined.move_to_end(combination)
        return [found[1]]

    def _uncombine(self) -> None:
        """Take the shelves of combinations away while there are too many."""
        standing = sum(shelf.size for _, shelf in self._combined.values())
        while len(self._combined) > 1 and (
            len(self._combined) > MAX_COMBINED or standing > MAX_SHARE * len(self)
        ):
            _, (_, oldest) = self._combined.popitem(last=False)
            standing -= oldest.size
            for agent in oldest.everybody():
                agent.shelves.remove(oldest)


def _size(shelves: _Shelves) -> int:
    return sum(shelf.size for shelf in shelves)


def _fewest(asked: list[_Shelves]) -> tuple[_Shelves, list[_Shelves]]:
    """Part the shelves with the fewest agents from the others."""
    first = min(asked, key=_size)
    return first, [shelves for shelves in asked if shelves is not first]


def _combined(asked: list[_Shelves]) -> Shelf:
    """Make a shelf of those who have all of these things."""
    first, others = _fewest(asked)
    found = (agent for shelf in first for agent in shelf.everybody() if _on(agent, others))
    shelf = Shelf()
    for agent in sorted(found, key=lambda agent: agent.used):
        shelf.add(agent)
    return shelf


def _on(agent: KnownAgent, others: Iterable[_Shelves]) -> bool:
    """Tell whether an agent stands on one of each of these shelves."""
    own = agent.shelves
    for shelves in others:
        for shelf in shelves:
            if shelf in own:
                break
        else:
            return False
    return True


def _features(agent: KnownAgent) -> Iterator[Hashable]:
    """Give what a call may ask for and this agent has."""
    said = agent.advertisement
    for key, place in said.place.items():
        yield ("at", key, place)
        for higher in lineage(place):
            yield ("under", key, higher)
    for tag in dict.fromkeys(said.tags):
        yield ("tag", tag)


@lru_cache(maxsize=16_384)
def lineage(place: str) -> tuple[str, ...]:
    """Give the places above a place, from the root on, and the place itself."""
    names = parts(place)
    return tuple("/" + "/".join(names[:depth]) for depth in range(len(names) + 1))
