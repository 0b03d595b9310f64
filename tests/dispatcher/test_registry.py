from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinal.dispatcher.agent import LEASE, AgentState
from spinal.dispatcher.errors import RegistryFull
from spinal.dispatcher.policies import Context
from spinal.dispatcher.registry import Arrival, Registry
from spinal.dispatcher.resolver import Demand, choose, ranked, resolve
from spinal.protocols import POLICIES, Advertisement, Capabilities, Operation

RESIZE = Capabilities.of([Operation("/image/resize"), Operation("/image/info")])
DEPLOY = Capabilities.of([Operation("/deploy/release"), Operation("/image/info")])


def report(capabilities: Capabilities = RESIZE, **changes: Any) -> Advertisement:
    said: dict[str, Any] = {"hash": capabilities.hash, "epoch": 1, **changes}
    return Advertisement(**said)


def offering(registry: Registry, op: str) -> list[str]:
    return [agent.address for agent in registry.offering(op)]


def test_equal_workers_share_one_description_and_it_is_wanted_once() -> None:
    registry = Registry()
    for n in range(3):
        registry.advertised(f"w@x/{n}", report(), 0.0)
    assert registry.undescribed() == {RESIZE.hash: ("w@x/0", "w@x/1", "w@x/2")}
    assert offering(registry, "/image/resize") == []

    registry.described(RESIZE)

    assert registry.undescribed() == {}
    assert offering(registry, "/image/resize") == ["w@x/0", "w@x/1", "w@x/2"]
    assert len({id(agent.capabilities) for agent in registry}) == 1


def test_a_description_is_dropped_with_the_last_agent_that_has_it() -> None:
    registry = Registry()
    registry.advertised("w@x/1", report(), 0.0)
    registry.described(RESIZE)

    registry.sweep(LEASE + 1)

    assert not registry.knows(RESIZE.hash)
    assert registry.operations() == {}
    assert registry.described(RESIZE) == ()
    assert not registry.knows(RESIZE.hash)


def test_withdrawing_one_operation_leaves_the_rest() -> None:
    registry = Registry()
    registry.advertised("w@x/1", report(), 0.0)
    registry.described(RESIZE)

    registry.advertised("w@x/1", report(DEPLOY), 1.0)
    registry.described(DEPLOY)

    assert registry.operations() == {"/deploy/release": 1, "/image/info": 1}


def test_an_agent_that_went_offline_and_came_back_in_the_same_life_keeps_its_attempts() -> None:
    registry = Registry()
    agent = registry.advertised("w@x/1", report(), 0.0).agent
    registry.start(agent, ("c", 1), "/image/info", 0.5)
    registry.unavailable("w@x/1", 1.0)
    assert agent.state(1.0) is AgentState.GONE

    news = registry.advertised("w@x/1", report(), 2.0)

    assert (news.arrival, news.agent) == (Arrival.RETURNED, agent)
    assert list(agent.attempts()) == [("c", 1)]


def test_a_new_epoch_loses_the_attempts_of_the_old_one_at_once() -> None:
    registry = Registry()
    old = registry.advertised("w@x/1", report(), 0.0).agent
    registry.described(RESIZE)
    registry.start(old, ("c", 1), "/image/info", 0.5)

    news = registry.advertised("w@x/1", report(epoch=2), 2.0)

    assert (news.arrival, news.lost) == (Arrival.RESTARTED, (("c", 1),))
    assert news.agent.busy == 0
    assert offering(registry, "/image/resize") == ["w@x/1"]


def test_one_late_heartbeat_removes_nobody() -> None:
    registry = Registry()
    registry.advertised("w@x/1", report(), 0.0)

    assert registry.sweep(11.0) == []
    assert registry.sweep(LEASE) == []
    assert [agent.address for agent in registry.sweep(LEASE + 0.1)] == ["w@x/1"]


def test_leases_stand_still_while_our_own_stream_is_down() -> None:
    registry = Registry()
    agent = registry.advertised("w@x/1", report(), 0.0).agent

    registry.stopped(5.0)
    assert registry.sweep(500.0) == []
    assert agent.state(registry.time(500.0)) is AgentState.AVAILABLE
    registry.resumed(500.0)
    assert registry.sweep(500.0 + LEASE) == []
    assert registry.sweep(500.1 + LEASE) == [agent]


def test_unavailable_presence_is_news_once_and_of_strangers_never() -> None:
    registry = Registry()
    agent = registry.advertised("w@x/1", report(), 0.0).agent

    assert registry.unavailable("nobody@x/1", 1.0) is None
    assert registry.unavailable("w@x/1", 1.0) is agent
    assert registry.unavailable("w@x/1", 1.1) is None


def test_more_agents_than_may_be_known_are_refused_and_the_known_ones_stay() -> None:
    registry = Registry(most=1)
    registry.advertised("w@x/1", report(), 0.0)

    with pytest.raises(RegistryFull):
        registry.advertised("w@x/2", report(), 0.0)
    assert registry.advertised("w@x/1", report(), 1.0).arrival is Arrival.RENEWED


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["report", "gone", "describe", "sweep"]),
        st.sampled_from(["a@x/1", "a@x/2", "b@x/1"]),
        st.sampled_from([RESIZE, DEPLOY]),
        st.integers(1, 2),
    ),
    max_size=30,
)


@given(EVENTS)
def test_the_index_by_operation_says_what_a_scan_of_all_agents_says(
    events: list[tuple[str, str, Capabilities, int]],
) -> None:
    registry = Registry()
    now = 0.0
    for what, address, capabilities, epoch in events:
        now += 2.0
        match what:
            case "report":
                registry.advertised(address, report(capabilities, epoch=epoch), now)
            case "gone":
                registry.unavailable(address, now)
            case "describe":
                registry.described(capabilities)
            case _:
                registry.sweep(now)

        for op in ("/image/resize", "/image/info", "/deploy/release", "/none"):
            scanned = {agent.address for agent in registry if op in agent.operations}
            assert set(offering(registry, op)) == scanned
            assert registry.operations().get(op, 0) == len(scanned)
        advertised = {agent.advertisement.hash for agent in registry}
        for known in (RESIZE, DEPLOY):
            assert not registry.knows(known.hash) or known.hash in advertised
        assert set(registry.undescribed()) == {h for h in advertised if not registry.knows(h)}


def test_whoever_was_used_or_came_last_is_the_last_of_its_group() -> None:
    registry = Registry()
    agents = [registry.advertised(f"w@x/{n}", report(), 0.0).agent for n in range(3)]
    registry.described(RESIZE)

    registry.start(agents[0], ("c", 1), "/image/info", 0.0)
    registry.advertised("w@x/1", report(epoch=2), 0.0)

    assert offering(registry, "/image/info") == ["w@x/2", "w@x/0", "w@x/1"]
    used = [agent.used for agent in registry.offering("/image/info")]
    assert used == sorted(used)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["report", "report", "start", "start", "start", "end", "refuse", "gone"]),
        st.sampled_from([f"w@x/{n}" for n in range(5)]),
        st.sampled_from([RESIZE, RESIZE, DEPLOY]),
        st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.8]),
        st.sampled_from([0, 0, 0, 1]),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(STEPS, st.sampled_from(POLICIES), st.sampled_from(["c@x/1", "w@x/0"]))
def test_choosing_by_the_index_gives_what_a_plain_scan_of_everybody_ranks_first(
    steps: list[tuple[str, str, Capabilities, float, int]], policy: str, caller: str
) -> None:
    registry = Registry()
    now = 0.0
    for n, (what, address, capabilities, load, busy) in enumerate(steps):
        now += 0.5
        agent = registry.get(address)
        if what == "report" or agent is None:
            registry.advertised(
                address, report(capabilities, slots=2, load=load, busy=busy, cost=load), now
            )
            registry.described(capabilities)
        elif what == "start":
            registry.start(agent, (f"c{n}", 1), "/image/info", now)
        elif what == "gone":
            registry.unavailable(address, now)
        elif agent.in_flight:
            key = next(agent.attempts())
            if what == "end":
                agent.ended(key, now)
            else:
                agent.refused(key)

        for op in ("/image/info", "/deploy/release"):
            demand = Demand(op, policy=policy)
            avoid = frozenset({"w@x/1"})

            def context(now: float = now) -> Context:
                return Context(now, Random(3), caller)

            # One after the other draws from equal randomness only in equal order.
            everybody = registry.offering(op) if policy == "random" else list(registry)
            scanned = resolve(everybody, demand, context(), avoid).candidates
            chosen = choose(registry, demand, context(), avoid).agent
            assert policy == "random" or chosen is (scanned[0].agent if scanned else None)
            assert (chosen is None) == (not scanned)


def test_agents_of_an_account_that_is_held_get_only_what_is_for_one_of_them() -> None:
    registry = Registry()
    registry.hold("m@x", "testing")
    for address in ("m@x/a", "m@x/b", "n@x/a"):
        registry.advertised(address, report(), 0.0)
    registry.described(RESIZE)
    context = Context(1.0, Random(1))
    plain, named = Demand("/image/resize"), Demand("/image/resize", only="m@x/b")

    def able(demand: Demand) -> list[str]:
        return [one.address for one in ranked(registry, demand, context)]

    assert able(plain) == ["n@x/a"]
    assert able(named) == ["m@x/b"]
    assert registry.passed(plain, context) == {"state": 2}
    resolution = resolve(registry, plain, context)
    assert {(one.reason, one.later) for one in resolution.rejected} == {("held: testing", True)}

    # A new life is held as the former one was.
    registry.advertised("m@x/a", report(epoch=2), 1.0)
    registry.described(RESIZE)
    assert able(plain) == ["n@x/a"]

    assert [one.address for one in registry.release("m@x")] == ["m@x/a", "m@x/b"]
    assert sorted(able(plain)) == ["m@x/a", "m@x/b", "n@x/a"]
    assert registry.release("m@x") == ()


def test_an_agent_that_is_held_while_it_drains_says_that_it_drains() -> None:
    registry = Registry()
    registry.advertised("m@x/a", report(state="draining"), 0.0)
    registry.described(RESIZE)
    registry.hold("m@x", "testing")

    (rejected,) = resolve(registry, Demand("/image/resize"), Context(1.0, Random(1))).rejected

    assert rejected.reason == "draining"
