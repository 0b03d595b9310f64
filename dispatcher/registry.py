"""The agents that are alive, by address and by operation; fed by reports, presence and clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from spinal.protocols import Advertisement, Capabilities, Problem

from .agent import AgentState, AttemptKey, KnownAgent, Turn
from .errors import RegistryFull

#: Most agents that one dispatcher knows.
MAX_AGENTS = 200_000


class Arrival(Enum):
    """What a report tells about an agent."""

    JOINED = "joined"
    RENEWED = "renewed"
    #: It was gone, and the same life is back.
    RETURNED = "returned"
    #: A new life; the attempts of the old one are lost.
    RESTARTED = "restarted"


@dataclass(frozen=True, slots=True)
class News:
    """What one report changed."""

    agent: KnownAgent
    arrival: Arrival
    #: Attempts of ours at its former life.
    lost: tuple[AttemptKey, ...] = ()


class Registry:
    """Every agent in its present life.

    Equal workers share one description, and the index by operation holds descriptions, so a
    thousand equal workers cost it one entry.  Who is eligible is for the resolver to say.
    """

    def __init__(self, most: int = MAX_AGENTS) -> None:
        self._most = most
        self._agents: dict[str, KnownAgent] = {}
        self._descriptions: dict[str, Capabilities] = {}
        #: Hash of a description -> who advertises it, least recently used first; also for those
        #: that are still unknown.
        self._users: dict[str, OrderedDict[str, KnownAgent]] = {}
        #: Operation -> hashes of the descriptions that have it.
        self._by_op: dict[str, dict[str, None]] = {}
        self._turns = 0
        self._stopped_at: float | None = None

    def __len__(self) -> int:
        return len(self._agents)

    def __iter__(self) -> Iterator[KnownAgent]:
        return iter(self._agents.values())

    def __contains__(self, address: object) -> bool:
        return address in self._agents

    def get(self, address: str) -> KnownAgent | None:
        """Give the agent with this full address."""
        return self._agents.get(address)

    # -- what comes from the bus

    def advertised(self, address: str, advertisement: Advertisement, now: float) -> News:
        """Take a report.

        Raises:
            RegistryFull: it is of an agent more than may be known.
        """
        known = self._agents.get(address)
        if known is not None and known.epoch == advertisement.epoch:
            returned = known.state(self.time(now)) is AgentState.GONE
            former = known.advertisement.hash
            if former != advertisement.hash:
                self._unlink(known)
                known.report(advertisement, now)
                self._link(known)
                self._release(former)
            else:
                known.report(advertisement, now)
            return News(known, Arrival.RETURNED if returned else Arrival.RENEWED)
        lost: tuple[AttemptKey, ...] = ()
        if known is not None:
            lost = tuple(known.attempts())
            self._unlink(known)
        elif len(self._agents) >= self._most:
            raise RegistryFull(
                Problem("full", f"this dispatcher knows {self._most} agents and takes no more")
            )
        fresh = self._agents[address] = KnownAgent(address, advertisement, now)
        self._link(fresh)
        if known is not None:
            self._release(known.advertisement.hash)
        return News(fresh, Arrival.JOINED if known is None else Arrival.RESTARTED, lost)

    def described(self, capabilities: Capabilities) -> Sequence[KnownAgent]:
        """Take a description, and give the agents that have it.

        One that nobody advertises (any more) is not kept.
        """
        users = self._users.get(capabilities.hash)
        if not users:
            return ()
        if capabilities.hash not in self._descriptions:
            self._descriptions[capabilities.hash] = capabilities
            for op in capabilities.operations:
                self._by_op.setdefault(op, {})[capabilities.hash] = None
        for agent in users.values():
            agent.capabilities = capabilities
        return tuple(users.values())

    def unavailable(self, address: str, now: float) -> KnownAgent | None:
        """Take unavailable presence; gives the agent if it was there until now."""
        known = self._agents.get(address)
        if known is None or known.gone_at is not None:
            return None
        known.gone_at = now
        return known

    def sweep(self, now: float) -> list[KnownAgent]:
        """Remove, and give, the agents whose lease is over."""
        if self._stopped_at is not None:
            return []
        over = [agent for agent in self._agents.values() if agent.lease_over(now)]
        for agent in over:
            self._unlink(agent)
            self._release(agent.advertisement.hash)
            del self._agents[agent.address]
        return over

    def stopped(self, now: float) -> None:
        """Our own stream dropped: silence says nothing about agents until it is back."""
        if self._stopped_at is None:
            self._stopped_at = now

    def resumed(self, now: float) -> None:
        """Our stream is back: everybody gets a whole lease to come back to us."""
        self._stopped_at = None
        for agent in self._agents.values():
            agent.last_seen = now

    @property
    def runs(self) -> bool:
        """Whether time counts: we have a stream, so that silence says something."""
        return self._stopped_at is None

    def time(self, now: float) -> float:
        """Give the time by which silence is judged: it stands still while we have no stream."""
        return now if self._stopped_at is None else min(now, self._stopped_at)

    # -- what is asked of it

    def groups(self, op: str) -> list[Collection[KnownAgent]]:
        """Give the agents that offer an operation, in groups of equals.

        Within a group the least recently used come first; the resolver relies on it.
        """
        return [self._users[hash].values() for hash in self._by_op.get(op, ())]

    def offering(self, op: str) -> list[KnownAgent]:
        """Give the agents that offer an operation."""
        return [agent for group in self.groups(op) for agent in group]

    def operations(self) -> Mapping[str, int]:
        """Give every operation that somebody offers, and by how many."""
        return {
            op: sum(len(self._users[hash]) for hash in hashes)
            for op, hashes in sorted(self._by_op.items())
        }

    def undescribed(self) -> Mapping[str, Sequence[str]]:
        """Give the hashes whose description is unknown, and who could be asked for it."""
        return {
            hash: tuple(users)
            for hash, users in self._users.items()
            if hash not in self._descriptions
        }

    def knows(self, hash: str) -> bool:
        """Tell whether the description with this hash is known."""
        return hash in self._descriptions

    def start(self, agent: KnownAgent, key: AttemptKey, op: str, now: float) -> None:
        """Count an attempt that is being sent."""
        agent.started(key, op, self._turn(), now)
        users = self._users[agent.advertisement.hash]
        if users.get(agent.address) is agent:
            users.move_to_end(agent.address)

    # -- the index

    def _turn(self) -> Turn:
        self._turns += 1
        return Turn(self._turns)

    def _link(self, agent: KnownAgent) -> None:
        hash = agent.advertisement.hash
        self._users.setdefault(hash, OrderedDict())[agent.address] = agent
        agent.used = self._turn()
        agent.capabilities = self._descriptions.get(hash)

    def _unlink(self, agent: KnownAgent) -> None:
        del self._users[agent.advertisement.hash][agent.address]

    def _release(self, hash: str) -> None:
        """Drop a description that nobody has any more; after linking, because they may be one."""
        if self._users.get(hash, True):
            return
        del self._users[hash]
        description = self._descriptions.pop(hash, None)
        for op in description.operations if description else ():
            hashes = self._by_op[op]
            del hashes[hash]
            if not hashes:
                del self._by_op[op]
