"""Who can do a call now, who is best, and why not the others: eligible -> ranked -> reasons.

Pure: agents, demand and context in, answer out.  :func:`resolve` explains everybody; :func:`choose`
gives only the first of the same order, from an index and without writing a word, because it runs
for every call.  Both read the same table of rules and the same keys (property tests hold them
equal).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import merge
from itertools import chain, islice
from typing import Any, Protocol

from spinal.protocols import Want
from spinal.protocols.path import places_match, related

from .agent import AgentState, KnownAgent
from .policies import POLICY_KEYS, RANKS, Context


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call asks of the agent that is to do it.  Calls with equal demands wait together."""

    op: str
    place: tuple[tuple[str, str], ...] = ()
    tags: frozenset[str] = frozenset()
    policy: str = "least-loaded"
    sticky: str = ""
    #: Agents that said that they cannot do this call.
    exclude: frozenset[str] = frozenset()
    #: The one agent that will do, if it is settled.
    only: str = ""

    @staticmethod
    def of(op: str, want: Want | None) -> Demand:
        """Read what a caller asked for."""
        if want is None:
            return _plain(op)
        place = tuple(sorted(want.place.items()))
        return Demand(op, place, frozenset(want.tags), want.policy, want.sticky)


@lru_cache(maxsize=4096)
def _plain(op: str) -> Demand:
    return Demand(op)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An agent that can start the call now."""

    agent: KnownAgent
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An agent that cannot start the call now."""

    agent: KnownAgent
    reason: str
    #: Name of the rule that rejected it.
    rule: str
    #: Whether time alone may change it; then the call may wait for it.
    later: bool


@dataclass(frozen=True, slots=True)
class Resolution:
    """Everybody who was looked at: candidates best first, the others with the reason."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]

    @property
    def later(self) -> bool:
        """Whether somebody may be able to do it later."""
        return any(rejected.later for rejected in self.rejected)

    def counts(self) -> Mapping[str, int]:
        """Count the rejected by rule."""
        return Counter(rejected.rule for rejected in self.rejected)


@dataclass(frozen=True, slots=True)
class Choice:
    """The first of a resolution, without reasons."""

    agent: KnownAgent | None
    #: Nobody can start it now, but somebody may later.
    later: bool = False
    #: The agent that ``sticky`` waits for.
    only: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that an agent must be."""

    name: str
    #: Whether time alone may change it.
    later: bool
    fails: Callable[[KnownAgent, Demand, Context], bool]
    #: Says it of an agent that fails.
    text: Callable[[KnownAgent, Demand, Context], str]


def _elsewhere(agent: KnownAgent, demand: Demand, context: Context) -> bool:
    return bool(demand.place) and not places_match(dict(demand.place), agent.advertisement.place)


def _where(agent: KnownAgent, demand: Demand, context: Context) -> str:
    offered = agent.advertisement.place
    for key, wanted in demand.place:
        if key not in offered:
            return f"place {key}={wanted}: it says no {key}"
        if not related(wanted, offered[key]):
            return f"place {key}={wanted}: it is at {offered[key]}"
    return "another place"


def _untagged(agent: KnownAgent, demand: Demand, context: Context) -> bool:
    return bool(demand.tags) and not demand.tags.issubset(agent.advertisement.tags)


def _missing_tags(agent: KnownAgent, demand: Demand, context: Context) -> str:
    missing = sorted(demand.tags.difference(agent.advertisement.tags))
    return f"lacks tag {', '.join(missing)}"


def _held_from(agent: KnownAgent, demand: Demand) -> bool:
    # Whoever tests an agent, or ends something on it, names it.
    return bool(agent.held) and demand.only != agent.address


#: In this order: what never changes by waiting comes first, so that ``later`` means what it says.
RULES: tuple[Rule, ...] = (
    Rule(
        "description",
        True,
        lambda agent, demand, context: agent.capabilities is None,
        lambda agent, demand, context: "its description has not come yet",
    ),
    Rule(
        "operation",
        False,
        lambda agent, demand, context: demand.op not in agent.operations,
        lambda agent, demand, context: f"does not offer {demand.op}",
    ),
    Rule(
        "target",
        False,
        lambda agent, demand, context: demand.only not in ("", agent.address),
        lambda agent, demand, context: f"the call is for {demand.only}",
    ),
    Rule(
        "unable",
        False,
        lambda agent, demand, context: agent.address in demand.exclude,
        lambda agent, demand, context: "it said that it cannot do this call",
    ),
    Rule("place", False, _elsewhere, _where),
    Rule("tags", False, _untagged, _missing_tags),
    Rule(
        "gone",
        True,
        lambda agent, demand, context: agent.gone_at is not None,
        lambda agent, demand, context: (
            f"gone: offline for {context.now - (agent.gone_at or 0.0):.0f} s"
        ),
    ),
    Rule(
        "suspect",
        True,
        lambda agent, demand, context: agent.state(context.now) is AgentState.SUSPECT,
        lambda agent, demand, context: (
            f"suspect: no report for {context.now - agent.last_seen:.0f} s"
        ),
    ),
    Rule(
        "state",
        True,
        lambda agent, demand, context: (
            agent.advertisement.state != "available" or _held_from(agent, demand)
        ),
        lambda agent, demand, context: (
            f"held: {agent.held}"
            if agent.advertisement.state == "available"
            else agent.advertisement.state
        ),
    ),
    Rule(
        "busy",
        True,
        lambda agent, demand, context: not agent.has_room(demand.op),
        lambda agent, demand, context: f"busy {agent.busy}/{agent.slots}",
    ),
    Rule(
        "full",
        True,
        lambda agent, demand, context: agent.full(demand.op),
        lambda agent, demand, context: f"refused {demand.op} as busy since its last report",
    ),
)

#: Rules that an agent fails because of what it is doing now.
BUSY = frozenset({"busy", "full"})


def rejection(agent: KnownAgent, demand: Demand, context: Context) -> Rule | None:
    """Give the first rule that an agent fails, or nothing if it can start the call now."""
    for rule in RULES:
        if rule.fails(agent, demand, context):
            return rule
    return None


def order(agent: KnownAgent, demand: Demand, context: Context, avoid: frozenset[str]) -> Any:
    """Give an agent's place in the order of those that can start the call now.

    Before the policy come: not one on which this call was lost before, not the caller itself (it
    would take a slot from itself while it waits), and a free slot before waiting at the agent.
    Both of the first two are last resorts rather than excluded, so that one worker alone does what
    twenty would do.
    """
    return (
        agent.address in avoid,
        agent.address == context.caller,
        agent.busy >= agent.slots,
        POLICY_KEYS[demand.policy](agent, demand.op, demand.sticky, context),
    )


class Shelves(Protocol):
    """Agents, by what calls ask for; an index or several."""

    def ready(self, demand: Demand) -> Iterable[Iterator[KnownAgent]]:
        """Give whoever comes into question and has room, in several rows.

        Each row is in the order of the policy, where that is one of ``RANKS``, else by load.
        """
        ...

    def suited(self, demand: Demand) -> Iterable[KnownAgent]:
        """Give everybody who comes into question, in whatever state."""
        ...

    def get(self, address: str) -> KnownAgent | None:
        """Give the agent with an address."""
        ...

    def addresses(self, op: str) -> Sequence[str]:
        """Give the addresses of those who offer an operation, sorted."""
        ...


def ranked(
    shelves: Shelves,
    demand: Demand,
    context: Context,
    avoid: frozenset[str] = frozenset(),
) -> Iterator[KnownAgent]:
    """Give the candidates of :func:`resolve`, best first, looking at few more than are taken.

    For ``sticky`` they do not count whom a call waits for, and for policies that are not in
    ``RANKS`` everybody who is ready is looked at.
    """
    last_resorts: list[KnownAgent] = []

    def key(agent: KnownAgent) -> Any:
        return order(agent, demand, context, avoid)

    def able(row: Iterable[KnownAgent]) -> Iterator[KnownAgent]:
        for agent in row:
            if rejection(agent, demand, context) is None:
                if agent.address in avoid or agent.address == context.caller:
                    last_resorts.append(agent)
                else:
                    yield agent

    rows = map(able, shelves.ready(demand))
    if demand.policy in _KEPT:
        yield from merge(*rows, key=key)
    else:
        yield from sorted(chain.from_iterable(rows), key=key)
    yield from sorted(last_resorts, key=key)


#: Policies in whose order the rows are.
_KEPT = frozenset({*RANKS, "any-first"})


def choose(
    shelves: Shelves,
    demand: Demand,
    context: Context,
    avoid: frozenset[str] = frozenset(),
) -> Choice:
    """Give the agent that :func:`resolve` ranks first."""
    if demand.policy == "sticky":
        return _stick(shelves, demand, context, avoid)
    lucky = _tried(shelves, demand, context, avoid)
    if lucky is not None:
        return Choice(lucky)
    for agent in ranked(shelves, demand, context, avoid):
        return Choice(agent)
    rules = (rejection(agent, demand, context) for agent in shelves.suited(demand))
    return Choice(None, any(rule is not None and rule.later for rule in rules))


def _tried(
    shelves: Shelves, demand: Demand, context: Context, avoid: frozenset[str]
) -> KnownAgent | None:
    """Give the first of the order by trying a few agents, where the policy allows it.

    Where too many are busy or elsewhere it gives nobody, and all who are ready are looked at.
    """
    if demand.only or demand.policy not in _TRYING:
        return None
    addresses = shelves.addresses(demand.op)
    for address in islice(_TRYING[demand.policy](addresses, demand, context), MAX_TRIES):
        agent = shelves.get(address)
        if (
            agent is not None
            and agent.busy < agent.slots
            and address not in avoid
            and address != context.caller
            and rejection(agent, demand, context) is None
        ):
            return agent
    return None


def _in_turn(addresses: Sequence[str], demand: Demand, context: Context) -> Iterator[str]:
    start = bisect_right(addresses, context.last.get(demand.op, ""))
    return (addresses[at % len(addresses)] for at in range(start, start + len(addresses)))


def _drawn(addresses: Sequence[str], demand: Demand, context: Context) -> Iterator[str]:
    return (context.random.choice(addresses) for _ in addresses)


#: Policy -> whom to try, one after the other.
_TRYING: Mapping[str, Callable[[Sequence[str], Demand, Context], Iterator[str]]] = {
    "round-robin": _in_turn,
    "random": _drawn,
}

#: Agents that are tried before all who are ready are looked at.
MAX_TRIES = 100


def _stick(shelves: Shelves, demand: Demand, context: Context, avoid: frozenset[str]) -> Choice:
    """Choose whom a call belongs to.

    Everybody who comes into question is looked at, also the busy: who is first for a key follows
    from all of them.  About 5 us for each.
    """
    able: list[KnownAgent] = []
    busy: list[KnownAgent] = []
    later = False
    for agent in shelves.suited(demand):
        rule = rejection(agent, demand, context)
        if rule is None:
            able.append(agent)
        else:
            later = later or rule.later
            if rule.name in BUSY:
                busy.append(agent)
    if not able and not busy:
        return Choice(None, later)
    held = _holder(able, busy, demand, context, avoid)
    if held is not None:
        return Choice(None, True, held.address)
    return Choice(min(able, key=lambda agent: order(agent, demand, context, avoid)))


def _holder(
    able: list[KnownAgent],
    busy: list[KnownAgent],
    demand: Demand,
    context: Context,
    avoid: frozenset[str],
) -> KnownAgent | None:
    """Give the agent to which a sticky call belongs if that one is busy: the call waits for it."""

    def key(agent: KnownAgent) -> Any:
        last_resort, own, _, policy = order(agent, demand, context, avoid)
        return (last_resort, own, policy)

    first = min((*able, *busy), key=key)
    return first if first in busy else None


def resolve(
    agents: Iterable[KnownAgent],
    demand: Demand,
    context: Context,
    avoid: frozenset[str] = frozenset(),
) -> Resolution:
    """Rank the agents that can start a call now, and say of every agent why or why not."""
    able: list[KnownAgent] = []
    busy: list[KnownAgent] = []
    rejected: list[Rejected] = []
    for agent in agents:
        rule = rejection(agent, demand, context)
        if rule is None:
            able.append(agent)
        else:
            if rule.name in BUSY:
                busy.append(agent)
            text = rule.text(agent, demand, context)
            rejected.append(Rejected(agent, text, rule.name, rule.later))
    if demand.policy == "sticky" and (able or busy):
        held = _holder(able, busy, demand, context, avoid)
        if held is not None:
            text = f"sticky: the call belongs to {held.address}, which is busy"
            rejected.extend(Rejected(agent, text, "sticky", True) for agent in able)
            able = []
    able.sort(key=lambda agent: order(agent, demand, context, avoid))
    return Resolution(
        tuple(Candidate(agent, reasons(agent, context, avoid)) for agent in able),
        tuple(rejected),
    )


def reasons(
    agent: KnownAgent, context: Context, avoid: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Say why a candidate stands where it does in the order."""
    cost = agent.advertisement.cost
    found = [
        f"{agent.busy} of {agent.slots} slots busy",
        f"load {agent.advertisement.load:.2f}",
        f"cost {cost:g}/h" if cost else "cost unknown",
    ]
    if agent.busy >= agent.slots:
        found.append("waits there for a slot: its calls are short")
    if agent.address == context.caller:
        found.append("is the caller itself: only if nobody else can")
    if agent.address in avoid:
        found.append("this call was lost there before: only if nobody else can")
    return tuple(found)
