from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinal.dispatcher import index, resolver
from spinal.dispatcher.agent import KnownAgent
from spinal.dispatcher.policies import Context
from spinal.dispatcher.registry import Registry
from spinal.dispatcher.resolver import Demand, choose, ranked, resolve
from spinal.protocols import POLICIES, Advertisement, Capabilities, Operation

OP = "/image/resize"
INFO = "/image/info"
RESIZE = Capabilities.of([Operation(OP), Operation(INFO)])
BOTH = Capabilities.of([Operation(OP), Operation("/deploy/release")])

ADDRESSES = [*(f"w@x/{n}" for n in range(4)), "v@x/4", "v@x/5"]
PLACES: list[dict[str, str]] = [
    {},
    {"site": "/"},
    {"site": "/eu"},
    {"site": "/eu/fra"},
    {"site": "/eu/fra/rack1"},
    {"site": "/us", "role": "/web"},
    {"site": "/eu", "role": "/web"},
]
TAGS = [(), (), ("gpu",), ("gpu", "ssd"), ("ssd",)]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Combinations lose their shelves soon."""
    monkeypatch.setattr(index, "MAX_COMBINED", 2)
    monkeypatch.setattr(index, "MAX_COUNTED", 2)
    monkeypatch.setattr(resolver, "MAX_TRIES", 3)


def report(capabilities: Capabilities = RESIZE, **changes: Any) -> Advertisement:
    said: dict[str, Any] = {
        "hash": capabilities.hash,
        "epoch": 1,
        "features": ("holds",),
        **changes,
    }
    return Advertisement(**said)


REPORTS = st.builds(
    report,
    st.sampled_from([RESIZE, RESIZE, RESIZE, BOTH]),
    epoch=st.sampled_from([1, 1, 1, 2]),
    state=st.sampled_from(["available", "available", "available", "draining"]),
    slots=st.sampled_from([0, 1, 1, 2, 3]),
    busy=st.sampled_from([0, 0, 0, 1, 3]),
    load=st.sampled_from([0.0, 0.1, 0.3, 0.8]),
    cost=st.sampled_from([None, 0.0, 0.1, 0.2]),
    place=st.sampled_from(PLACES),
    tags=st.sampled_from(TAGS),
)
AGENTS = st.sampled_from(ADDRESSES)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), AGENTS, REPORTS),
        st.tuples(st.just("same"), AGENTS, st.just(0)),
        st.tuples(st.just("start"), AGENTS, st.sampled_from([OP, INFO])),
        st.tuples(st.just("end"), AGENTS, st.just(0)),
        st.tuples(st.just("refuse"), AGENTS, st.just(0)),
        st.tuples(st.just("ran"), AGENTS, st.sampled_from([0.0, 0.02, 5.0])),
        st.tuples(st.just("drain"), AGENTS, st.just(0)),
        st.tuples(st.just("gone"), AGENTS, st.just(0)),
        st.tuples(st.just("hold"), st.sampled_from(["w@x", "v@x"]), st.just("testing")),
        st.tuples(st.just("release"), st.sampled_from(["w@x", "v@x"]), st.just(0)),
        st.tuples(st.just("describe"), st.just(""), st.sampled_from([RESIZE, BOTH])),
        st.tuples(st.just("pass"), st.just(""), st.sampled_from([0.5, 5.0, 12.5])),
        st.tuples(st.just("sweep"), st.just(""), st.just(0)),
        st.tuples(st.just("stream"), st.just(""), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)
DEMANDS = st.builds(
    Demand,
    st.sampled_from([OP, OP, INFO]),
    st.sampled_from(PLACES).map(lambda place: tuple(sorted(place.items()))),
    st.sampled_from(TAGS).map(frozenset[str]),
    st.sampled_from(POLICIES),
    st.sampled_from(["", "key"]),
    st.sets(AGENTS, max_size=2).map(frozenset[str]),
    st.sampled_from(["", "", "", "", ADDRESSES[0]]),
)


class Story:
    """A registry to which things happen."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.now = 0.0
        self.number = 0
        for address in ADDRESSES:
            self.happen("report", address, report(slots=2))
        self.happen("describe", "", RESIZE)

    @property
    def judged(self) -> float:
        return self.registry.time(self.now)

    def happen(self, what: str, address: str, given: Any) -> None:
        registry = self.registry
        self.now += 0.01
        self.number += 1
        agent = registry.get(address)
        match what:
            case "report":
                registry.advertised(address, given, self.now)
            case "describe":
                registry.described(given)
            case "pass":
                self.now += given
            case "sweep":
                registry.sweep(self.now)
            case "stream" if registry.runs:
                registry.stopped(self.now)
            case "stream":
                registry.resumed(self.now)
            case "gone":
                registry.unavailable(address, self.now)
            case "hold":
                registry.hold(address, given)
            case "release":
                registry.release(address)
            case _:
                if agent is not None:
                    self.change(what, agent, given)

    def change(self, what: str, agent: KnownAgent, given: Any) -> None:
        key = next(agent.attempts(), ("none", 1))
        match what:
            case "same":
                self.registry.advertised(agent.address, agent.advertisement, self.now)
            case "start":
                self.registry.start(agent, (f"c{self.number}", 1), given, self.now)
            case "end":
                agent.ended(key, self.now)
            case "refuse":
                agent.refused(key)
            case "ran":
                agent.ran(OP, given)
            case _:
                agent.drains()

    def in_question(self, demand: Demand) -> list[KnownAgent]:
        """Give everybody at whom a plain scan would look."""
        if demand.only:
            agent = self.registry.get(demand.only)
            return [] if agent is None else [agent]
        return [agent for agent in self.registry if demand.op in agent.operations]


@settings(max_examples=400, deadline=None)
@given(STEPS, st.lists(DEMANDS, min_size=1, max_size=4), st.sampled_from(["c@x/1", ADDRESSES[1]]))
def test_whatever_happens_the_index_finds_what_a_plain_scan_of_everybody_finds(
    steps: list[tuple[str, str, Any]], demands: list[Demand], caller: str
) -> None:
    story = Story()
    avoid = frozenset({ADDRESSES[2]})
    for step in steps:
        story.happen(*step)

        for demand in demands:
            context = Context(story.judged, Random(1), caller, {OP: ADDRESSES[3]})
            scanned = resolve(story.in_question(demand), demand, context, avoid)
            found = [candidate.agent for candidate in scanned.candidates]
            choice = choose(story.registry, demand, context, avoid)
            offering = [one.address for one in story.registry if demand.op in one.operations]
            assert story.registry.addresses(demand.op) == sorted(offering)
            assert (choice.agent is None) == (not found)
            assert found or choice.later == scanned.later
            if demand.policy == "random":
                assert choice.agent is None or choice.agent in found
                continue
            assert choice.agent is (found[0] if found else None)
            if demand.policy != "sticky":
                assert list(ranked(story.registry, demand, context, avoid)) == found
                assert story.registry.passed(demand, context) == scanned.counts()


@pytest.mark.parametrize("policy", ["round-robin", "random"])
def test_drawing_and_taking_turns_looks_at_few_where_most_will_do(policy: str) -> None:
    registry = Registry()
    for n in range(1000):
        registry.advertised(f"w@x/{n:03}", report(), 0.0)
    registry.described(RESIZE)
    looked: set[str] = set()
    get = registry.get

    def look(address: str) -> KnownAgent | None:
        looked.add(address)
        return get(address)

    registry.get = look  # type: ignore[method-assign]
    registry.ready = None  # type: ignore[method-assign,assignment]
    context = Context(1.0, Random(1), last={OP: "w@x/498"})

    agent = choose(registry, Demand(OP, policy=policy), context).agent

    assert agent is not None
    assert looked == {agent.address}
    assert policy == "random" or agent.address == "w@x/499"


def test_for_a_combination_no_more_are_passed_over_than_have_one_of_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry()
    for n in range(1000):
        here = n < 500
        registry.advertised(
            f"w@x/{n}",
            report(tags=("a",) if here else ("b",), place={"site": "/x" if here else "/y"}),
            0.0,
        )
    registry.described(RESIZE)
    looks: list[KnownAgent] = []
    on: Any = index._on  # pyright: ignore[reportPrivateUsage] - what a look is

    def look(agent: KnownAgent, others: object) -> bool:
        looks.append(agent)
        return bool(on(agent, others))

    monkeypatch.setattr(index, "_on", look)
    demand = Demand(OP, (("site", "/x"),), frozenset({"b"}))
    context = Context(1.0, Random(1))

    for _ in range(100):
        assert choose(registry, demand, context).agent is None

    assert len(looks) <= 4 * 500  # Once for those with room, once for all, once for the shelf.
    agent = registry.advertised("w@x/7", report(tags=("b",), place={"site": "/x"}), 1.0).agent
    assert choose(registry, demand, context).agent is agent


def test_no_shelf_is_left_of_what_nobody_has() -> None:
    registry = Registry()
    registry.advertised("w@x/1", report(place={"site": "/eu/fra"}, tags=("gpu",)), 0.0)
    registry.advertised("w@x/2", report(), 0.0)
    registry.described(RESIZE)
    shelves = shelves_of(registry)
    assert len(list(shelves)) == 5  # Three above or at the place, one at it, one for the tag.

    registry.advertised("w@x/1", report(), 1.0)

    assert list(shelves_of(registry)) == []


def shelves_of(registry: Registry) -> Iterator[object]:
    users = registry._users  # pyright: ignore[reportPrivateUsage] - what no question tells
    return iter(users[RESIZE.hash]._shelves)  # pyright: ignore[reportPrivateUsage] - the same
