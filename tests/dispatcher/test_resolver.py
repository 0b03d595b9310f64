from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.agent import KnownAgent, Turn
from spinal.dispatcher.index import Index
from spinal.dispatcher.policies import POLICY_KEYS, Context, busy_fraction, rank
from spinal.dispatcher.registry import Registry
from spinal.dispatcher.resolver import Demand, choose, rejection, resolve
from spinal.protocols import POLICIES, Advertisement, Capabilities, Operation, Want

OP = "/image/resize"
CAPABILITIES = Capabilities.of([Operation(OP)])
OTHER = Capabilities.of([Operation("/image/resize/fast")])


def known(
    address: str, capabilities: Capabilities | None = CAPABILITIES, **report: Any
) -> KnownAgent:
    said: dict[str, Any] = {"hash": "h", "epoch": 1, "slots": 4, "features": ("holds",), **report}
    agent = KnownAgent(address, Advertisement(**said), 0.0)
    agent.capabilities = capabilities
    return agent


def at(now: float = 1.0, caller: str = "c@x/web", **other: Any) -> Context:
    return Context(now, random.Random(7), caller, **other)


class Everybody(Index):
    def get(self, address: str) -> KnownAgent | None:
        return next((agent for agent in self if agent.address == address), None)

    def addresses(self, op: str) -> Sequence[str]:
        return sorted(agent.address for agent in self)


def indexed(agents: Sequence[KnownAgent]) -> Everybody:
    index = Everybody(itertools.count(1))
    for agent in sorted(agents, key=lambda agent: (agent.used, agent.address)):
        index.add(agent)
    return index


def reason(agent: KnownAgent, demand: Demand, context: Context | None = None) -> tuple[str, bool]:
    resolution = resolve([agent], demand, context or at())
    assert resolution.candidates == ()
    (rejected,) = resolution.rejected
    return rejected.reason, rejected.later


def test_the_reasons_for_a_candidate_are_in_plain_words() -> None:
    agent = known("a@x/1", load=0.12, cost=0.031)

    (candidate,) = resolve([agent], Demand(OP), at()).candidates

    assert candidate.reasons == ("0 of 4 slots busy", "load 0.12", "cost 0.031/h")


def test_an_operation_is_not_done_by_who_offers_one_below_it() -> None:
    assert reason(known("a@x/1", OTHER), Demand(OP)) == (f"does not offer {OP}", False)


@pytest.mark.parametrize(
    ("offered", "wanted", "expected"),
    [
        ({"site": "/eu/fra"}, {"site": "/eu"}, None),
        ({"site": "/eu"}, {"site": "/eu/fra/rack7"}, None),
        ({"site": "/us"}, {"site": "/eu"}, "place site=/eu: it is at /us"),
        ({"site": "/slice/15"}, {"site": "/slice/1"}, "place site=/slice/1: it is at /slice/15"),
        ({}, {"site": "/eu"}, "place site=/eu: it says no site"),
        (
            {"site": "/eu", "role": "/db"},
            {"site": "/eu", "role": "/web"},
            "place role=/web: it is at /db",
        ),
    ],
)
def test_places_match_symmetrically_and_all_of_them_must(
    offered: dict[str, str], wanted: dict[str, str], expected: str | None
) -> None:
    agent = known("a@x/1", place=offered)
    demand = Demand.of(OP, Want(place=wanted))

    if expected is None:
        assert len(resolve([agent], demand, at()).candidates) == 1
    else:
        assert reason(agent, demand) == (expected, False)


def test_tags_are_anded() -> None:
    agent = known("a@x/1", tags=("gpu",))

    assert reason(agent, Demand.of(OP, Want(tags=("gpu", "ssd")))) == ("lacks tag ssd", False)
    assert resolve([agent], Demand.of(OP, Want(tags=("gpu",))), at()).candidates


def test_what_time_alone_can_change_is_told_from_what_it_cannot() -> None:
    suspect = known("a@x/1")
    gone = known("a@x/1")
    gone.gone_at = 10.0
    busy = known("a@x/1", busy=4)

    assert reason(suspect, Demand(OP), at(13.0)) == ("suspect: no report for 13 s", True)
    assert reason(gone, Demand(OP), at(12.0)) == ("gone: offline for 2 s", True)
    assert reason(busy, Demand(OP)) == ("busy 4/4", True)
    full = known("a@x/1")
    full.started(("c", 1), OP, 0.0)
    full.refused(("c", 1))
    assert reason(full, Demand(OP)) == (f"refused {OP} as busy since its last report", True)
    assert reason(known("a@x/1", state="draining"), Demand(OP)) == ("draining", True)
    assert reason(known("a@x/1", state="unhealthy"), Demand(OP)) == ("unhealthy", True)
    assert reason(known("a@x/1", slots=0), Demand(OP)) == ("busy 0/0", True)
    assert reason(known("a@x/1", None), Demand(OP)) == ("its description has not come yet", True)
    assert reason(known("a@x/1"), Demand(OP, only="b@x/1")) == ("the call is for b@x/1", False)
    assert reason(known("a@x/1"), Demand(OP, exclude=frozenset({"a@x/1"}))) == (
        "it said that it cannot do this call",
        False,
    )


def test_a_busy_agent_that_is_in_the_wrong_place_is_not_waited_for() -> None:
    agent = known("a@x/1", busy=4, place={"site": "/us"})

    resolution = resolve([agent], Demand.of(OP, Want(place={"site": "/eu"})), at())

    assert not resolution.later
    assert resolution.counts() == {"place": 1}


def test_a_caller_that_is_an_agent_gets_itself_only_if_nobody_else_can() -> None:
    me, other = known("a@x/1"), known("b@x/1", load=0.9)

    context = at(caller="a@x/1")

    assert choose(indexed([me, other]), Demand(OP), context).agent is other
    assert choose(indexed([me]), Demand(OP), context).agent is me
    (candidate,) = resolve([me], Demand(OP), context).candidates
    assert "is the caller itself: only if nobody else can" in candidate.reasons


def test_an_agent_on_which_the_call_was_lost_is_the_last_resort() -> None:
    bad, other = known("a@x/1"), known("b@x/1", load=0.9)

    assert choose(indexed([bad, other]), Demand(OP), at(), frozenset({"a@x/1"})).agent is other
    assert choose(indexed([bad]), Demand(OP), at(), frozenset({"a@x/1"})).agent is bad


def test_a_free_slot_comes_before_waiting_at_an_agent_whatever_the_policy() -> None:
    cheap, dear = known("a@x/1", cost=0.01, busy=4), known("b@x/1", cost=9.0)
    cheap.ran(OP, 0.001)
    demand = Demand(OP, policy="cheapest")

    assert choose(indexed([cheap, dear]), demand, at()).agent is dear
    assert [c.agent for c in resolve([cheap, dear], demand, at()).candidates] == [dear, cheap]


def test_a_sticky_call_waits_for_its_agent_while_that_is_busy_and_only_then() -> None:
    agents = [known(f"a@x/{n}") for n in range(5)]
    demand = Demand(OP, policy="sticky", sticky="user-17")
    mine = choose(indexed(agents), demand, at()).agent
    assert mine is not None
    for n in range(mine.slots):
        mine.started((f"c{n}", 1), OP, 0.0)

    choice = choose(indexed(agents), demand, at())
    resolution = resolve(agents, demand, at())

    assert (choice.agent, choice.only) == (None, mine.address)
    assert resolution.candidates == ()
    assert resolution.later
    mine.gone_at = 1.0
    assert choose(indexed(agents), demand, at()).agent not in (None, mine)


def test_loads_are_numbers() -> None:
    agents = [known("a@x/1", load=10.1), known("b@x/1", load=9.2)]

    assert choose(indexed(agents), Demand(OP), at()).agent is agents[1]


def test_round_robin_goes_on_after_the_last_one_even_if_that_has_left() -> None:
    agents = [known(f"a@x/{n}") for n in (1, 3, 5)]
    demand = Demand(OP, policy="round-robin")

    def after(last: str) -> str:
        agent = choose(indexed(agents), demand, at(last={OP: last})).agent
        assert agent is not None
        return agent.address

    assert [after(""), after("a@x/1"), after("a@x/2"), after("a@x/4"), after("a@x/5")] == [
        "a@x/1",
        "a@x/3",
        "a@x/3",
        "a@x/5",
        "a@x/1",
    ]


@pytest.mark.parametrize("length", [0, 1, 3, 1000], ids=lambda n: f"each of {n} calls in flight")
@pytest.mark.parametrize("reports", [False, True], ids=["one interval", "reports in between"])
def test_a_burst_of_a_hundred_calls_spreads_over_five_equal_agents(
    length: int, reports: bool
) -> None:
    """``length``: how many calls are sent until one ends; 0 ends before the next is sent."""
    registry = Registry()
    for n in range(5):
        registry.advertised(
            f"w@x/{n}",
            Advertisement(
                hash=CAPABILITIES.hash, epoch=1, slots=50, features=("holds",), load=n * 0.001
            ),
            0.0,
        )
    registry.described(CAPABILITIES)
    sent: dict[str, int] = dict.fromkeys((agent.address for agent in registry), 0)
    flying: list[tuple[KnownAgent, tuple[str, int]]] = []
    for n in range(100):
        now = 0.5 + n * 0.001
        agent = choose(registry, Demand(OP), at(now)).agent
        assert agent is not None
        sent[agent.address] += 1
        registry.start(agent, (f"c{n}", 1), OP, now)
        flying.append((agent, (f"c{n}", 1)))
        while len(flying) > length:
            done, key = flying.pop(0)
            done.ended(key, now)
        if reports and n % 20 == 10:
            # Those that have just reported are not drowned because their report looks idle.
            one = next(a for a in registry if a.address == f"w@x/{n // 20}")
            holds = [list(key) for key in one.attempts()]
            one.report(
                Advertisement(
                    hash=CAPABILITIES.hash,
                    epoch=1,
                    slots=50,
                    features=("holds",),
                    busy=len(holds),
                    holds=holds,
                ),
                now,
            )

    assert all(18 <= count <= 22 for count in sent.values()), sent


# -- properties

ADDRESSES = [f"w@x/{n}" for n in range(8)]
PLACES = st.sampled_from([{}, {"site": "/eu"}, {"site": "/eu/fra"}, {"site": "/us"}])
TAGS = st.sets(st.sampled_from(["gpu", "ssd"]))


@st.composite
def agents(draw: st.DrawFn) -> list[KnownAgent]:
    found: list[KnownAgent] = []
    for address in draw(st.lists(st.sampled_from(ADDRESSES), unique=True)):
        agent = known(
            address,
            draw(st.sampled_from([CAPABILITIES, CAPABILITIES, CAPABILITIES, OTHER, None])),
            slots=draw(st.integers(0, 4)),
            busy=draw(st.integers(0, 5)),
            load=draw(st.floats(0, 2)),
            cost=draw(st.none() | st.floats(0, 5)),
            place=draw(PLACES),
            tags=tuple(draw(TAGS)),
            state=draw(st.sampled_from(["available", "available", "available", "draining"])),
        )
        for n in range(draw(st.integers(0, 3))):
            agent.started((f"{address}-{n}", 1), OP, 0.0)
        agent.used = Turn(draw(st.integers(0, 3)))
        if draw(st.booleans()):
            agent.ran(OP, draw(st.floats(0, 0.2)))
        if draw(st.integers(0, 5)) == 0:
            agent.gone_at = 0.5
        found.append(agent)
    return found


DEMANDS = st.builds(
    Demand,
    st.just(OP),
    PLACES.map(lambda place: tuple(place.items())),
    TAGS.map(frozenset),
    st.sampled_from(POLICIES),
    st.sampled_from(["", "key"]),
    st.sets(st.sampled_from(ADDRESSES), max_size=2).map(frozenset),
    st.sampled_from(["", "", "", ADDRESSES[0]]),
)


@given(agents(), DEMANDS, st.sampled_from([1.0, 20.0]), st.sampled_from(["c@x/1", ADDRESSES[1]]))
def test_choosing_gives_what_resolving_ranks_first_and_never_an_ineligible_agent(
    found: list[KnownAgent], demand: Demand, now: float, caller: str
) -> None:
    avoid = frozenset({ADDRESSES[2]})
    # Those that are not described yet are under no operation (test_index.py).
    found = [agent for agent in found if agent.capabilities is not None]

    resolution = resolve(found, demand, at(now, caller), avoid)
    choice = choose(indexed(found), demand, at(now, caller), avoid)

    ranked = [candidate.agent for candidate in resolution.candidates]
    rejected = [item.agent for item in resolution.rejected]
    assert len(ranked) + len(rejected) == len(found)
    assert set(map(id, ranked + rejected)) == set(map(id, found))
    assert all(rejection(agent, demand, at(now, caller)) is None for agent in ranked)
    assert choice.agent is (ranked[0] if ranked else None) or demand.policy == "random"
    assert (choice.agent is None) == (not ranked)
    assert ranked or choice.later == resolution.later


@given(agents(), st.sampled_from(POLICIES))
def test_every_policy_gives_each_agent_once_and_the_same_order_again(
    found: list[KnownAgent], policy: str
) -> None:
    one = rank(policy, found, OP, "key", at())
    two = rank(policy, reversed(found) if policy != "random" else found, OP, "key", at())

    assert sorted(agent.address for agent in one) == sorted(agent.address for agent in found)
    assert [agent.address for agent in one] == [agent.address for agent in two]


@given(agents())
def test_least_loaded_never_ranks_a_busier_agent_above_a_less_busy_one(
    found: list[KnownAgent],
) -> None:
    fractions = [busy_fraction(agent) for agent in rank("least-loaded", found, OP, "", at())]

    assert fractions == sorted(fractions)


@given(agents())
def test_cheapest_never_puts_an_unknown_cost_before_a_known_one(found: list[KnownAgent]) -> None:
    costs = [agent.advertisement.cost for agent in rank("cheapest", found, OP, "", at())]
    known_costs = [cost for cost in costs if cost]

    assert costs[: len(known_costs)] == sorted(known_costs)


@given(agents(), st.text(max_size=10), st.data())
def test_sticky_stays_when_others_leave(
    found: list[KnownAgent], key: str, data: st.DataObject
) -> None:
    ranked = rank("sticky", found, OP, key, at())
    if ranked:
        staying = [a for a in found if a is ranked[0] or data.draw(st.booleans())]

        assert rank("sticky", staying, OP, key, at())[0] is ranked[0]


def test_sticky_without_a_key_sticks_to_the_callers_account() -> None:
    found = [known(address) for address in ADDRESSES]

    def first(caller: str) -> KnownAgent:
        return rank("sticky", found, OP, "", at(caller=caller))[0]

    assert first("c@x/one") is first("c@x/two")
    assert len({first(f"c{n}@x/one").address for n in range(50)}) > 3


def test_there_is_a_key_for_every_policy_of_the_protocol() -> None:
    assert set(POLICY_KEYS) == set(POLICIES)
