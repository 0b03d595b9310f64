"""A plan says what to rent: the cheapest that keeps to the budget, the caps and the spread."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinal.agents.provider.offer import Offer
from spinal.dispatcher.pools.machine import State
from spinal.dispatcher.pools.plan import Impossible, Plan, choose_one, plan
from spinal.dispatcher.pools.spec import Demand, Money, Place, PoolSpec, Server, Size

from .market import GIB, HOME, NOW, machine, offer

A = offer("a", "small", 4, 8, 0.10)
A2 = offer("a", "small", 4, 8, 0.11, "eu-2")
B = offer("b", "small", 4, 8, 0.12)
C = offer("c", "small", 4, 8, 1.00)
OFFERS = [C, B, A2, A]


def pool(**more: Any) -> PoolSpec:
    given: dict[str, Any] = {
        "pool": "web",
        "server": Server(cpu=4, ram=8 * GIB),
        "size": Size(max=100),
        **more,
    }
    return PoolSpec(**given)


def planned(spec: PoolSpec, wanted: int, *, offers: Any = OFFERS, **more: Any) -> Plan:
    return plan(spec, offers, HOME, more.pop("machines", ()), wanted, NOW, **more)


def vendors(found: Plan) -> Counter[str]:
    return Counter(each.offer.vendor for each in found.rent)


def test_the_cheapest_is_taken() -> None:
    found = planned(pool(), 3)

    assert [(row["vendor"], row["region"], row["count"]) for row in found.machines] == [
        ("a", "eu-1", 3)
    ]
    assert found.price == found.bound == pytest.approx(0.30)
    assert (found.gap, found.missing, found.currency) == (0.0, 0, "EUR")


def test_caps_and_limits_of_vendors_are_kept() -> None:
    capped = [replace(A, cap=2), A2, B]

    assert vendors(planned(pool(), 6, offers=capped, limits={"a": 4})) == {"a": 4, "b": 2}


def test_what_other_pools_have_counts_against_caps_and_limits() -> None:
    there = [machine("db-1", A, "db"), machine("db-2", A, "db", State.LEAVING)]

    found = planned(pool(), 3, offers=[replace(A, cap=3), B], machines=there)

    assert vendors(found) == {"a": 1, "b": 2}
    assert vendors(planned(pool(), 3, machines=there, limits={"a": 3})) == {"a": 1, "b": 2}


def test_machines_that_are_there_stay() -> None:
    there = [machine("web-b", B), machine("web-a", A), machine("web-c", C, state=State.DRAINING)]

    found = planned(pool(), 3, machines=there)

    assert (found.keep, len(found.rent)) == (("web-a", "web-b"), 1)
    assert found.price == pytest.approx(0.10 + 0.12 + 0.10)


def test_more_machines_than_wanted_are_told_and_nothing_is_rented() -> None:
    found = planned(pool(), 1, machines=[machine("web-a", A), machine("web-b", A)])

    assert (list(found.rent), found.notes) == ([], ("has 2 machines, 1 too many",))


def test_a_spread_is_even_over_vendors() -> None:
    found = planned(pool(place=Place(spread="vendor")), 6)

    assert vendors(found) == {"a": 2, "b": 2, "c": 2}
    assert found.bound == pytest.approx(0.6)
    assert found.gap == pytest.approx(found.price / 0.6 - 1)


def test_a_spread_counts_what_is_there() -> None:
    there = [machine("web-1", A), machine("web-2", A), machine("web-3", B)]

    found = planned(pool(place=Place(spread="vendor")), 6, machines=there)

    assert vendors(found) == {"b": 1, "c": 2}


def test_a_spread_is_even_over_regions() -> None:
    found = planned(pool(place=Place(spread="region")), 4, offers=[A, A2])

    assert Counter(each.offer.region for each in found.rent) == {"eu-1": 2, "eu-2": 2}


def test_a_spread_leaves_out_what_the_budget_is_not_enough_for() -> None:
    spec = pool(place=Place(spread="vendor", at_least_vendors=2), money=Money(max_per_hour=0.5))

    found = planned(spec, 4)

    assert vendors(found) == {"a": 2, "b": 2}
    assert found.notes == ("too dear for the budget: c",)


def test_at_least_so_many_vendors_are_had_for_the_least_money() -> None:
    assert vendors(planned(pool(place=Place(at_least_vendors=2)), 5)) == {"a": 4, "b": 1}
    assert vendors(planned(pool(place=Place(at_least_vendors=2)), 1)) == {"a": 1}


def test_vendors_that_there_are_not_are_told() -> None:
    with pytest.raises(Impossible, match="needs machines of 4 vendors, and only a, b, c have"):
        planned(pool(place=Place(at_least_vendors=4)), 4)


def test_a_vendor_that_is_blocked_is_waited_for_and_not_replaced() -> None:
    spec = pool(place=Place(at_least_vendors=2))
    blocked = {("b", "", ""): (NOW + 1000, "down"), ("c", "", ""): (NOW + 1000, "down")}

    found = planned(spec, 3, blocked=blocked)

    assert (vendors(found), found.missing) == ({"a": 2}, 1)
    assert "1 of 3 are not in it" in found.notes[0]


# -- money


def test_a_budget_is_hard_and_fewer_are_planned() -> None:
    found = planned(pool(size=Size(min=1, max=9), money=Money(max_per_hour=0.35)), 5)

    assert (len(found.rent), found.missing) == (3, 2)
    assert "over budget" in found.notes[0]


def test_a_budget_that_is_met_exactly_is_met() -> None:
    assert planned(pool(money=Money(max_per_hour=0.30)), 3).missing == 0


def test_less_than_the_least_number_is_impossible_and_says_what_that_costs() -> None:
    with pytest.raises(Impossible) as caught:
        planned(pool(size=Size(min=4, max=9), money=Money(max_per_hour=0.35)), 5)

    assert str(caught.value) == (
        "over budget: 4 machines cost at least 0.4000 EUR/h, and 0.3500 EUR/h may be spent"
    )


def test_a_budget_in_another_currency_is_converted() -> None:
    spec = pool(money=Money(max_per_hour=0.6, currency="USD"))

    assert len(planned(spec, 5).rent) == 3


def test_a_budget_in_an_unknown_currency_is_impossible() -> None:
    with pytest.raises(Impossible, match="no rate from GBP"):
        planned(pool(money=Money(max_per_hour=1, currency="GBP")), 1)


def test_what_still_costs_counts_against_the_budget() -> None:
    spec = pool(money=Money(max_per_hour=0.35))

    found = planned(spec, 3, machines=[machine("web-old", A, state=State.LEAVING)])

    assert len(found.rent) == 2


def test_the_room_of_other_budgets_is_kept() -> None:
    assert len(planned(pool(), 5, room=0.25).rent) == 2


# -- impossible


def test_what_no_offer_carries_says_the_nearest() -> None:
    with pytest.raises(Impossible, match="no offer has 512 cpu; the largest is small at a"):
        planned(pool(server=Server(cpu=512, ram=GIB), size=Size(min=1, max=1)), 1)


def test_a_pool_without_machines_needs_no_offers() -> None:
    assert planned(pool(), 0, offers=[]).price == 0


# -- the hash


def test_the_same_is_planned_whatever_the_order() -> None:
    @given(st.permutations(OFFERS), st.integers(0, 8))
    @settings(deadline=None, max_examples=40)
    def check(offers: list[Offer], wanted: int) -> None:
        spec = pool(place=Place(spread="vendor"))
        assert planned(spec, wanted, offers=offers) == planned(spec, wanted)

    check()


def test_the_hash_is_over_what_is_rented_and_the_pool_and_not_over_ages() -> None:
    first = planned(pool(), 3)

    assert first.hash == plan(pool(), OFFERS, HOME, (), 3, NOW + 60_000).hash
    assert first.hash != planned(pool(), 4).hash
    assert first.hash != planned(pool(), 3, offers=[replace(A, price=0.09)]).hash
    assert first.hash != planned(pool(size=Size(max=99)), 3).hash
    assert len(first.hash) == 64


def test_a_plan_is_json() -> None:
    row = json.loads(json.dumps(planned(pool(), 2).row()))

    assert {"hash", "machines", "price", "bound", "rejected"} <= set(row)


# -- one more


def test_the_next_one_is_the_first_of_the_plan() -> None:
    spec = pool(place=Place(spread="vendor"))
    there = [machine("web-1", A), machine("web-2", B)]

    found = choose_one(spec, OFFERS, HOME, there, NOW)

    assert found == planned(spec, 3, machines=there).rent[0]
    assert found.offer.vendor == "c"


def test_one_by_one_gives_the_same_machines_as_the_plan() -> None:
    spec = pool(place=Place(spread="vendor", at_least_vendors=2), money=Money(max_per_hour=2))
    there: list[Any] = []
    for n in range(5):
        there.append(machine(f"web-{n}", choose_one(spec, OFFERS, HOME, there, NOW).offer))

    assert Counter(each.vendor for each in there) == vendors(planned(spec, 5))


def test_no_next_one_says_why() -> None:
    blocked = {(each, "", ""): (NOW + 5000, "no capacity") for each in "abc"}

    with pytest.raises(Impossible, match="blocked; small at a in eu-1: no capacity"):
        choose_one(pool(), OFFERS, HOME, (), NOW, blocked=blocked)
    with pytest.raises(Impossible, match="over budget: 1 machine cost"):
        choose_one(pool(), OFFERS, HOME, (), NOW, room=0.05)


# -- mixed work

BIG = offer("b", "big", 16, 32, 0.30)


def test_a_demand_is_packed_and_says_which_machine_carries_what() -> None:
    spec = pool(server=Server(cpu=1, ram=GIB), demand=[Demand(cpu=4, ram=8 * GIB, count=5)])

    found = planned(spec, 0, offers=[A, BIG])

    assert [(row["type"], row["count"]) for row in found.machines] == [("small", 1), ("big", 1)]
    assert sum(count for each in found.carries for _, count in each) == 5
    assert found.price == pytest.approx(0.40)
    assert found.bound <= found.price
    assert found.hash == planned(spec, 0, offers=[BIG, A]).hash


def test_a_demand_uses_what_is_there() -> None:
    spec = pool(server=Server(cpu=1, ram=GIB), demand=[Demand(cpu=4, ram=8 * GIB, count=5)])

    found = planned(spec, 0, offers=[A, BIG], machines=[machine("web-1", BIG)])

    assert [row["type"] for row in found.machines] == ["small"]
    assert found.carries == [((0, 4),), ((0, 1),)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"money": Money(max_per_hour=0.35)}, "over budget: what carries the demand costs"),
        ({"size": Size(max=1)}, "size.max is 1"),
        ({"demand": [Demand(cpu=32, ram=GIB)]}, "carries a job of 32 cpu and 1G; the largest"),
    ],
)
def test_a_demand_that_cannot_be_met_says_why(change: dict[str, Any], said: str) -> None:
    spec = pool(server=Server(cpu=1, ram=GIB), demand=[Demand(cpu=4, ram=8 * GIB, count=5)])

    with pytest.raises(Impossible, match=said):
        planned(replace(spec, **change), 0, offers=[A, BIG])
