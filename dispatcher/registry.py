"""The agents that are alive, by address and by operation; fed by reports, presence and clock."""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from spinal.protocols import Advertisement, Capabilities, Operation, Problem
from spinal.protocols.address import bare

from .agent import AgentState, AttemptKey, KnownAgent
from .errors import RegistryFull
from .index import Index
from .policies import Context
from .resolver import Demand, rejection

#: Most agents that one dispatcher knows.
MAX_AGENTS = 200_000

#: Agents that are named where one of them is to describe itself.
ASKED = 16


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
    thousand equal workers cost it one entry; who of them is at a place, has tags and has room, the
    :class:`~.index.Index` of the description keeps.  Who is eligible is for the resolver to say.
    """

    def __init__(self, most: int = MAX_AGENTS) -> None:
        self._most = most
        self._agents: dict[str, KnownAgent] = {}
        self._descriptions: dict[str, Capabilities] = {}
        #: Hash of a description -> who advertises it; also for those that are still unknown.
        self._users: dict[str, Index] = {}
        #: Operation -> hashes of the descriptions that have it.
        self._by_op: dict[str, dict[str, None]] = {}
        #: Operation -> addresses of those who offer it, sorted; of those that were asked for.
        self._addresses: dict[str, list[str]] = {}
        self._turns = itertools.count(1)
        #: Counts agents that came and went.
        self.changes = 0
        #: Account -> why its agents are held.
        self._holds: dict[str, str] = {}
        self._stopped_at: float | None = None
        #: When our stream came up, or was of use again.
        self.resumed_at = 0.0
        #: Those that report, and those that have stopped to, each by when they were last heard.
        self._heard: OrderedDict[KnownAgent, None] = OrderedDict()
        self._silent: OrderedDict[KnownAgent, None] = OrderedDict()
        #: Who has fallen silent since somebody asked.
        self._fell_silent: list[KnownAgent] = []

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
            arrival = Arrival.RENEWED if known.gone_at is None else Arrival.RETURNED
            if known.silent:
                del self._silent[known]
                self._heard[known] = None
            else:
                self._heard.move_to_end(known)
            former = known.advertisement
            if _same_kind(former, advertisement):
                known.report(advertisement, now)
            else:
                self._unlink(known)
                known.report(advertisement, now)
                self._link(known)
                self._release(former.hash)
            return News(known, arrival)
        lost: tuple[AttemptKey, ...] = ()
        if known is not None:
            lost = tuple(known.attempts())
            self._remove(known)
        elif len(self._agents) >= self._most:
            raise RegistryFull(
                Problem("full", f"this dispatcher knows {self._most} agents and takes no more")
            )
        fresh = self._agents[address] = KnownAgent(address, advertisement, now)
        fresh.held = self._holds.get(bare(address), "")
        self.changes += 1
        self._heard[fresh] = None
        self._link(fresh)
        if known is not None:
            self._release(known.advertisement.hash)
        return News(fresh, Arrival.JOINED if known is None else Arrival.RESTARTED, lost)

    def described(self, capabilities: Capabilities) -> Sequence[KnownAgent]:
        """Take a description, and give the agents that have it.

        One that nobody advertises (any more) is not kept.
        """
        users = self._users.get(capabilities.hash)
        if users is None:
            return ()
        if capabilities.hash not in self._descriptions:
            self._descriptions[capabilities.hash] = capabilities
            for op in capabilities.operations:
                self._by_op.setdefault(op, {})[capabilities.hash] = None
                self._addresses.pop(op, None)
        described = tuple(users)
        for agent in described:
            agent.capabilities = capabilities
        return described

    def unavailable(self, address: str, now: float) -> KnownAgent | None:
        """Take unavailable presence; gives the agent if it was there until now."""
        known = self._agents.get(address)
        if known is None or known.gone_at is not None:
            return None
        known.leaves(now)
        return known

    def look(self, now: float) -> None:
        """Notice who has fallen silent; costs nothing where nobody has.

        Args:
            now: the time by which silence is judged (:meth:`time`).
        """
        while self._heard:
            agent = next(iter(self._heard))
            if not agent.is_silent(now):
                return
            del self._heard[agent]
            self._silent[agent] = None
            agent.falls_silent()
            self._fell_silent.append(agent)

    def suspects(self, now: float) -> list[KnownAgent]:
        """Give, once, the agents that have become suspect."""
        judged = self.time(now)
        self.look(judged)
        found, self._fell_silent = self._fell_silent, []
        return [agent for agent in found if agent.state(judged) is AgentState.SUSPECT]

    def sweep(self, now: float) -> list[KnownAgent]:
        """Remove, and give, the agents whose lease is over."""
        if self._stopped_at is not None:
            return []
        self.look(now)
        over = list(itertools.takewhile(lambda agent: agent.lease_over(now), self._silent))
        for agent in over:
            self._remove(agent)
            self._release(agent.advertisement.hash)
            del self._agents[agent.address]
            self.changes += 1
        return over

    def stopped(self, now: float) -> None:
        """Our own stream dropped: silence says nothing about agents until it is back."""
        if self._stopped_at is None:
            self._stopped_at = now

    def resumed(self, now: float) -> None:
        """Our stream is back: everybody gets a whole lease to come back to us."""
        self._stopped_at = None
        self.resumed_at = now
        for agent in self._agents.values():
            agent.spare(now)
        self._heard.update(self._silent)
        self._silent.clear()

    @property
    def runs(self) -> bool:
        """Whether time counts: we have a stream, so that silence says something."""
        return self._stopped_at is None

    def time(self, now: float) -> float:
        """Give the time by which silence is judged: it stands still while we have no stream."""
        return now if self._stopped_at is None else min(now, self._stopped_at)

    # -- holding back

    def hold(self, account: str, why: str) -> Sequence[KnownAgent]:
        """Hold back the agents of an account, those to come as well, and give those that are there.

        They get no work but calls for exactly one of them.  What they run goes on.

        Args:
            account: bare address.
            why: in a few words; a later reason replaces it.
        """
        self._holds[account] = why
        return self._tell(account, why)

    def release(self, account: str) -> Sequence[KnownAgent]:
        """Give the agents of an account work again, and give those that are there."""
        if self._holds.pop(account, None) is None:
            return ()
        return self._tell(account, "")

    def _tell(self, account: str, why: str) -> Sequence[KnownAgent]:
        # Once or twice in the life of a machine, so that looking at everybody is cheap enough.
        theirs = [agent for agent in self if bare(agent.address) == account]
        for agent in theirs:
            agent.hold(why)
        return theirs

    @property
    def holds(self) -> Mapping[str, str]:
        """Accounts whose agents are held back, and why."""
        return self._holds

    # -- what is asked of it

    def ready(self, demand: Demand) -> Iterator[Iterator[KnownAgent]]:
        """Give whoever comes into question and has room, in several rows, each best first."""
        if demand.only:
            agent = self._agents.get(demand.only)
            if agent is not None:
                yield iter((agent,))
            return
        for hash in self._by_op.get(demand.op, ()):
            yield from self._users[hash].ready(demand)

    def suited(self, demand: Demand) -> Iterator[KnownAgent]:
        """Give everybody who comes into question, in whatever state."""
        if demand.only:
            agent = self._agents.get(demand.only)
            return iter(() if agent is None else (agent,))
        return itertools.chain.from_iterable(
            self._users[hash].suited(demand) for hash in self._by_op.get(demand.op, ())
        )

    def passed(self, demand: Demand, context: Context) -> Mapping[str, int]:
        """Count, by rule, who offers an operation and cannot start a call of it now.

        As :func:`~.resolver.resolve` would, without looking at everybody.
        """
        found: Counter[str] = Counter()
        if demand.only:
            rules = (rejection(agent, demand, context) for agent in self.suited(demand))
            return Counter(rule.name for rule in rules if rule is not None)
        self.look(context.now)
        plain = replace(demand, exclude=frozenset())
        for hash in self._by_op.get(demand.op, ()):
            found.update(self._users[hash].passed(plain, context))
        for address in demand.exclude:
            agent = self._agents.get(address)
            if agent is not None and demand.op in agent.operations:
                rule = rejection(agent, plain, context)
                if rule is not None:
                    found[rule.name] -= 1
                found["unable"] += 1
        return +found

    def addresses(self, op: str) -> Sequence[str]:
        """Give the addresses of those who offer an operation, sorted."""
        found = self._addresses.get(op)
        if found is None:
            found = sorted(agent.address for agent in self.everybody(op))
            if found:
                self._addresses[op] = found
        return found

    def everybody(self, op: str) -> Iterator[KnownAgent]:
        """Give the agents that offer an operation."""
        return itertools.chain.from_iterable(self._users[hash] for hash in self._by_op.get(op, ()))

    def offering(self, op: str) -> list[KnownAgent]:
        """Give the agents that offer an operation, those first that have not moved for longest."""
        return sorted(self.everybody(op), key=lambda agent: agent.used)

    def count(self, op: str) -> int:
        """Count the agents that offer an operation."""
        return sum(len(self._users[hash]) for hash in self._by_op.get(op, ()))

    def offers(self, op: str) -> Sequence[Operation]:
        """Give an operation as each of the descriptions that have it says it."""
        return [self._descriptions[hash].operations[op] for hash in self._by_op.get(op, ())]

    def operations(self) -> Mapping[str, int]:
        """Give every operation that somebody offers, and by how many."""
        return {op: self.count(op) for op in sorted(self._by_op)}

    def undescribed(self) -> Mapping[str, Sequence[str]]:
        """Give the hashes whose description is unknown, and who could be asked for it."""
        return {
            hash: tuple(agent.address for agent in itertools.islice(users, ASKED))
            for hash, users in self._users.items()
            if hash not in self._descriptions
        }

    def knows(self, hash: str) -> bool:
        """Tell whether the description with this hash is known."""
        return hash in self._descriptions

    def start(self, agent: KnownAgent, key: AttemptKey, op: str, now: float) -> None:
        """Count an attempt that is being sent."""
        agent.started(key, op, now)

    # -- the index

    def _link(self, agent: KnownAgent) -> None:
        hash = agent.advertisement.hash
        users = self._users.get(hash)
        if users is None:
            users = self._users[hash] = Index(self._turns)
        agent.capabilities = self._descriptions.get(hash)
        users.add(agent)
        for op in self._addresses.keys() & agent.operations.keys():
            insort(self._addresses[op], agent.address)

    def _unlink(self, agent: KnownAgent) -> None:
        self._users[agent.advertisement.hash].remove(agent)
        for op in self._addresses.keys() & agent.operations.keys():
            addresses = self._addresses[op]
            del addresses[bisect_left(addresses, agent.address)]

    def _remove(self, agent: KnownAgent) -> None:
        self._unlink(agent)
        del (self._silent if agent.silent else self._heard)[agent]

    def _release(self, hash: str) -> None:
        """Drop a description that nobody has any more; after linking, because they may be one."""
        users = self._users.get(hash)
        if users is None or len(users):
            return
        del self._users[hash]
        description = self._descriptions.pop(hash, None)
        for op in description.operations if description else ():
            hashes = self._by_op[op]
            del hashes[hash]
            if not hashes:
                del self._by_op[op]
                self._addresses.pop(op, None)


def _same_kind(one: Advertisement, other: Advertisement) -> bool:
    """Tell whether two reports differ in nothing that an agent is found by."""
    return one.hash == other.hash and one.place == other.place and one.tags == other.tags
