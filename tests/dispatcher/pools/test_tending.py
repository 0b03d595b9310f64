from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from spinal.agents.provider.pace import Pace
from spinal.dispatcher.pools.machine import Machine, State
from spinal.dispatcher.pools.tending import (
    Ask,
    Listing,
    Seen,
    Sight,
    Terms,
    answered,
    deleted,
    tend,
    victims,
)

NOW = 1_000_000_000
PACE = Pace(order=90, look=4, settle=45, unseen=3, away=90)
TERMS = Terms(join=900, drain=600)


def a_machine(state: State = State.READY, **members: Any) -> Machine:
    given: dict[str, Any] = {
        "name": "web-1",
        "pool": "web",
        "state": state,
        "since": NOW,
        "vendor": "aws",
        "region": "eu-west-1",
        "type": "small",
        "price": 0.1,
        "currency": "USD",
        "created": NOW,
        "expires": NOW + 10**10,
    }
    return Machine(**{**given, **members})


def a_list(after: float, *names: str, state: str = "running", said: str = "") -> Listing:
    sights = {name: Sight(state, "i-1", said) for name in names}
    return Listing(NOW + int(after * 1000), sights)


def at(seconds: float, **members: Any) -> Seen:
    return Seen(NOW + int(seconds * 1000), **members)


# -- an order


def test_an_order_that_was_answered_is_a_machine_that_boots() -> None:
    row = {"name": "web-1", "id": "i-7", "state": "starting", "created": NOW + 5}
    after = answered(a_machine(State.ORDERED), {"outcome": "created", "machine": row}, NOW + 9)
    assert (after.state, after.id, after.began, after.since) == (
        State.BOOTING,
        "i-7",
        NOW + 5,
        NOW + 9,
    )


def test_a_clock_of_the_vendor_that_is_wrong_does_not_make_a_machine_older_than_its_order() -> None:
    row = {"id": "i-7", "created": NOW - 10**6}
    after = answered(a_machine(State.ORDERED), {"outcome": "created", "machine": row}, NOW + 9)
    assert after.began == NOW


def test_a_refused_order_is_looked_up_and_does_not_count_as_a_machine_but_costs() -> None:
    outcome = {"outcome": "refused", "kind": "capacity", "said": "sold out"}
    after = answered(a_machine(State.ORDERED), outcome, NOW + 9)
    assert (after.state, after.said) == (State.REFUSED, "sold out")
    assert after.state.costs and not after.state.counts


def test_an_order_without_an_answer_is_unknown_once_its_time_is_over() -> None:
    machine = a_machine(State.ORDERED)
    assert tend(machine, at(89), TERMS, PACE).machine is machine
    step = tend(machine, at(90), TERMS, PACE)
    assert (step.machine.state, step.event) == (State.UNKNOWN, "unknown")
    assert step.machine.state.costs and step.machine.state.counts


def test_an_order_whose_answer_was_lost_with_a_dispatcher_is_found_in_the_list() -> None:
    step = tend(a_machine(State.ORDERED), at(10, listing=a_list(9, "web-1")), TERMS, PACE)
    assert (step.machine.state, step.machine.id) == (State.BOOTING, "i-1")


def test_an_unknown_machine_that_a_list_shows_is_taken_up() -> None:
    step = tend(a_machine(State.UNKNOWN), at(5, listing=a_list(4, "web-1")), TERMS, PACE)
    assert (step.machine.state, step.event) == (State.BOOTING, "found")


def test_a_refused_machine_that_a_list_shows_is_deleted() -> None:
    step = tend(a_machine(State.REFUSED), at(5, listing=a_list(4, "web-1")), TERMS, PACE)
    assert (step.machine.state, step.ask, step.event) == (State.LEAVING, Ask.DESTROY, "orphan")


@pytest.mark.parametrize("state", [State.UNKNOWN, State.REFUSED])
def test_what_was_not_seen_often_enough_and_long_enough_never_was(state: State) -> None:
    machine = a_machine(state)
    for looks, seconds in enumerate((10, 20, 30), 1):
        step = tend(machine, at(seconds, listing=a_list(seconds - 1)), TERMS, PACE)
        assert (step.machine.state, step.machine.unseen) == (state, looks)
        machine = step.machine
    assert tend(machine, at(46, listing=a_list(44)), TERMS, PACE).machine.state is state
    assert tend(machine, at(46, listing=a_list(45)), TERMS, PACE).machine.state is State.NEVER


def test_one_list_that_is_looked_at_twice_counts_once() -> None:
    listing = a_list(9)
    once = tend(a_machine(State.UNKNOWN), at(10, listing=listing), TERMS, PACE).machine
    assert tend(once, at(11, listing=listing), TERMS, PACE).machine is once


def test_a_list_from_before_the_order_says_nothing() -> None:
    machine = a_machine(State.UNKNOWN)
    assert tend(machine, at(60, listing=a_list(-1)), TERMS, PACE).machine is machine


def test_being_seen_once_begins_the_count_anew() -> None:
    machine = a_machine(State.READY, unseen=2, looked=NOW + 5)
    step = tend(machine, at(60, listing=a_list(59, "web-1"), agents=1), TERMS, PACE)
    assert step.machine.unseen == 0


# -- a machine


def test_a_machine_whose_agents_came_is_tested_and_counts_once_it_passed() -> None:
    machine = a_machine(State.BOOTING)
    step = tend(machine, at(30, agents=1), TERMS, PACE)
    assert (step.machine.state, step.ask) == (State.TESTING, Ask.TEST)
    waiting = tend(step.machine, at(31, agents=1), TERMS, PACE)
    assert (waiting.machine, waiting.ask) == (step.machine, Ask.TEST)
    passed = tend(step.machine, at(32, agents=1, passed=True), TERMS, PACE)
    assert (passed.machine.state, passed.event) == (State.READY, "joined")


@pytest.mark.parametrize("state", [State.BOOTING, State.TESTING])
def test_a_machine_that_never_joins_is_deleted_and_counted(state: State) -> None:
    step = tend(a_machine(state), at(900, test="self-test: no"), TERMS, PACE)
    assert (step.machine.state, step.ask, step.event) == (
        State.LEAVING,
        Ask.DESTROY,
        "never-joined",
    )


@pytest.mark.parametrize(
    ("state", "event"), [(State.BOOTING, "failed"), (State.READY, "lost"), (State.DRAINING, "")]
)
def test_a_machine_that_its_vendor_calls_broken_is_deleted(state: State, event: str) -> None:
    listing = a_list(4, "web-1", state="error", said="No valid host was found")
    step = tend(a_machine(state), at(5, listing=listing, running=1), TERMS, PACE)
    assert (step.machine.state, step.ask, step.event) == (State.LEAVING, Ask.DESTROY, event)
    assert step.machine.said == "No valid host was found"


def test_a_machine_that_vanished_is_gone_and_no_longer_paid() -> None:
    machine = a_machine(State.READY, unseen=3, looked=NOW + 50_000)
    step = tend(machine, at(60), TERMS, PACE)
    assert (step.machine.state, step.machine.ended, step.event) == (
        State.GONE,
        NOW + 60_000,
        "lost",
    )


def test_a_machine_whose_agents_stay_away_is_given_up() -> None:
    machine = a_machine(State.READY)
    assert tend(machine, at(100, away=NOW + 20_000), TERMS, PACE).machine is machine
    step = tend(machine, at(110, away=NOW + 20_000), TERMS, PACE)
    assert (step.machine.state, step.event) == (State.LEAVING, "lost")


def test_a_draining_machine_goes_once_it_runs_nothing_or_has_taken_too_long() -> None:
    machine = a_machine(State.DRAINING, why="fewer")
    assert tend(machine, at(5, running=1), TERMS, PACE).machine is machine
    step = tend(machine, at(5), TERMS, PACE)
    assert (step.machine.state, step.machine.why, step.ask) == (
        State.LEAVING,
        "fewer",
        Ask.DESTROY,
    )
    assert tend(machine, at(600, running=1), TERMS, PACE).machine.state is State.LEAVING


# -- deleting


def test_a_delete_that_failed_is_tried_again_after_pauses_that_grow_until_it_is_gone() -> None:
    machine, pauses = a_machine(State.LEAVING), list[float]()
    for _ in range(8):
        machine = deleted(machine, {"outcome": "failed", "said": "500 oops"}, NOW, PACE)
        pauses.append((machine.due - NOW) / 1000)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert (machine.state, machine.said) == (State.LEAVING, "500 oops")
    assert tend(machine, at(59), TERMS, PACE).ask is Ask.NOTHING
    assert tend(machine, at(60), TERMS, PACE).ask is Ask.DESTROY
    gone = deleted(machine, {"outcome": "gone"}, NOW + 61_000, PACE)
    assert (gone.state, gone.ended) == (State.GONE, NOW + 61_000)


def test_a_machine_that_is_missing_where_it_was_looked_for_may_be_younger_than_that_list() -> None:
    machine = a_machine(State.LEAVING)
    asked = deleted(machine, {"outcome": "gone"}, NOW + 1000, PACE)
    assert (asked.state, asked.due) == (State.LEAVING, NOW + 5000)
    assert deleted(asked, {"outcome": "gone"}, NOW + 44_000, PACE).state is State.LEAVING
    assert deleted(asked, {"outcome": "gone"}, NOW + 45_000, PACE).state is State.GONE


def test_a_machine_whose_delete_was_accepted_is_gone_once_it_is_not_shown() -> None:
    asked = deleted(a_machine(State.LEAVING), {"outcome": "ending"}, NOW + 1000, PACE)
    assert (asked.state, asked.due) == (State.LEAVING, NOW + 2000)
    assert deleted(asked, {"outcome": "gone"}, NOW + 2000, PACE).state is State.GONE


def test_lists_that_were_asked_for_early_do_not_show_later_that_a_machine_is_not_there() -> None:
    machine = a_machine(State.REFUSED)
    for second in (1, 2, 3):
        machine = tend(machine, at(second + 1, listing=a_list(second)), TERMS, PACE).machine
    late = tend(machine, at(100, listing=a_list(3)), TERMS, PACE).machine
    assert late.state is State.REFUSED
    assert tend(late, at(101, listing=a_list(100)), TERMS, PACE).machine.state is State.NEVER


@pytest.mark.parametrize("state", list(State))
def test_whatever_the_vendor_says_a_machine_that_may_exist_is_not_forgotten(state: State) -> None:
    """Only what a vendor's lists have not shown for long, or what it deleted, is over."""
    for listing in (None, a_list(100), a_list(100, "web-1"), a_list(100, "web-1", state="error")):
        step = tend(a_machine(state), at(101, listing=listing), TERMS, PACE)
        assert step.machine.state.final == state.final


# -- who goes


def test_those_go_first_that_are_of_no_use_yet_and_then_the_dearest() -> None:
    machines = [
        a_machine(State.READY, name="cheap", price=0.1),
        a_machine(State.READY, name="dear", price=0.3),
        a_machine(State.READY, name="converted", price=0.2, rate=2.0),
        a_machine(State.TESTING, name="testing", price=0.1),
        a_machine(State.BOOTING, name="booting", price=0.1),
        a_machine(State.ORDERED, name="ordered", price=9),
    ]
    assert [one.name for one in victims(machines, 4)] == ["booting", "testing", "converted", "dear"]
    assert victims(machines, 0) == [] == victims(machines, -1)


def test_a_retiring_machine_is_the_same_to_its_vendor() -> None:
    machine = replace(a_machine(State.READY), retiring=True)
    assert tend(machine, at(5, agents=1), TERMS, PACE).machine is machine
