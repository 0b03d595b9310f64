"""How the agents that could do a call are ranked.

A policy is a key: agents are tried in its ascending order.  Every key ends with the address, so
that there are no ties and equal situations give equal answers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from spinal.protocols.address import bare

from .agent import KnownAgent


@dataclass(frozen=True, slots=True)
class Context:
    """What ranking needs to know besides the agents."""

    #: Seconds, monotonic, while our stream stands (``Registry.time``).
    now: float
    #: Where ``random`` draws from.
    random: Random
    #: Full address of whoever asks.
    caller: str = ""
    #: Operation -> the agent that ``round-robin`` chose last.
    last: Mapping[str, str] = field(default_factory=dict[str, str])


#: From an agent, the operation, what to stick to, and the context, to its place in the order.
Key = Callable[[KnownAgent, str, str, Context], Any]


def busy_fraction(agent: KnownAgent) -> float:
    """How much of an agent is taken: 1 and more means that no slot is free."""
    return agent.busy / agent.slots if agent.slots else math.inf


def _load(agent: KnownAgent) -> tuple[float, ...]:
    return (busy_fraction(agent), agent.load_step)


def _price(agent: KnownAgent) -> tuple[float, ...]:
    cost = agent.advertisement.cost
    # An unknown price may be any price, so it comes after the highest known one; so may 0, which
    # is what machines say that were never told their price (DESIGN 11).
    return (math.inf if not cost else cost, *_load(agent))


#: Policies that rank agents by what they are, and not by who asks for what: the index keeps their
#: order.  Whoever has been as it is for longest is the first of equals.
RANKS: Mapping[str, Callable[[KnownAgent], tuple[float, ...]]] = {
    "least-loaded": _load,
    "cheapest": _price,
}


def _least_loaded(agent: KnownAgent, op: str, sticky: str, context: Context) -> Any:
    return (*_load(agent), agent.used, agent.address)


def _cheapest(agent: KnownAgent, op: str, sticky: str, context: Context) -> Any:
    return (*_price(agent), agent.used, agent.address)


def _round_robin(agent: KnownAgent, op: str, sticky: str, context: Context) -> Any:
    # Those that follow the last one in the order of addresses, then the others: it goes on at the
    # right place whoever has come or left.
    return (agent.address <= context.last.get(op, ""), agent.address)


def _random(agent: KnownAgent, op: str, sticky: str, context: Context) -> Any:
    return (context.random.random(), agent.address)


@lru_cache(maxsize=16_384)
def _score(key: str, address: str) -> bytes:
    return hashlib.blake2b(f"{key}\0{address}".encode(), digest_size=8).digest()


def _sticky(agent: KnownAgent, op: str, sticky: str, context: Context) -> Any:
    # Rendezvous hashing: who is first for a key changes only when that agent leaves, or when a
    # new one beats it.
    return (_score(sticky or bare(context.caller), agent.address), agent.address)


def _by_address(agent: KnownAgent, op: str, sticky: str, context: Context) -> Any:
    return agent.address


#: Policy -> key.
POLICY_KEYS: Mapping[str, Key] = {
    "least-loaded": _least_loaded,
    "cheapest": _cheapest,
    "round-robin": _round_robin,
    "random": _random,
    "sticky": _sticky,
    "all": _by_address,
    "any-first": _least_loaded,
}


def rank(
    policy: str, agents: Iterable[KnownAgent], op: str, sticky: str, context: Context
) -> list[KnownAgent]:
    """Order agents by a policy, best first."""
    key = POLICY_KEYS[policy]
    return sorted(agents, key=lambda agent: key(agent, op, sticky, context))
