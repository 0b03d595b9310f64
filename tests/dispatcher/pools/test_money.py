"""What machines cost, and budgets that hold whatever is rented."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinal.agents.provider.offer import Exchange
from spinal.dispatcher.pools.machine import Machine, State
from spinal.dispatcher.pools.money import Billing, Budget, cost, month, overdue, room, spent
from spinal.dispatcher.pools.spec import Money

HOUR = 3_600_000
MINUTE = 60_000


def ms(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)


NOW = ms("2026-11-28T12:00:00Z")


def machine(name: str = "web-1", hours: float = 1.0, **more: object) -> Machine:
    """Make a machine that began so many hours ago, at 1 an hour."""
    began = NOW - round(hours * HOUR)
    known: dict[str, object] = {
        "name": name,
        "pool": "web",
        "state": State.READY,
        "since": began,
        "vendor": "aws",
        "region": "eu",
        "type": "small",
        "price": 1.0,
        "currency": "EUR",
        "created": began,
        "began": began,
        "expires": NOW + 1000 * HOUR,
    }
    return Machine(**(known | more))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def one(*machines: Machine, since: int = NOW - 24 * HOUR, billing: Billing | None = None) -> float:
    return sum(each.spent for each in cost(machines, since, NOW, NOW, (), billing or Billing()))


# -- cost


def test_a_machine_costs_its_price_by_the_second() -> None:
    assert one(machine(hours=1.5)) == pytest.approx(1.5)
    assert one(machine(hours=1.5, price=2.0, currency="USD", rate=0.5)) == pytest.approx(1.5)
    assert one(machine(hours=5, state=State.GONE, ended=NOW - 2 * HOUR)) == pytest.approx(3)


def test_the_least_time_and_started_hours_are_the_vendors() -> None:
    assert one(machine(hours=1 / 3600)) == pytest.approx(1 / 60)
    assert one(machine(hours=1.01), billing=Billing(step=3600)) == pytest.approx(2)
    assert one(machine(hours=0.01), billing=Billing(minimum=600)) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("state", "began", "known", "cautious"),
    [
        (State.NEVER, None, 0.0, 0.0),
        (State.ORDERED, None, 0.0, 1.0),
        (State.UNKNOWN, None, 0.0, 1.0),
        (State.UNKNOWN, NOW - HOUR // 2, 0.5, 0.5),
        (State.BOOTING, None, 1.0, 1.0),
        (State.LEAVING, NOW - HOUR // 2, 0.5, 0.5),
    ],
)
def test_what_may_exist_costs_where_caution_is_asked_for(
    state: State, began: int | None, known: float, cautious: float
) -> None:
    each = machine(state=state, began=began)

    assert spent([each], 0, NOW, NOW) == pytest.approx(known)
    assert spent([each], 0, NOW, NOW, cautious=True) == pytest.approx(cautious)


def test_a_machine_that_is_gone_costs_nothing_after_its_end_even_if_that_was_not_noted() -> None:
    gone = machine(hours=5, state=State.GONE, since=NOW - 4 * HOUR)

    assert one(gone) == pytest.approx(1)


def test_costs_are_told_apart_dearest_first_and_a_pool_is_a_label() -> None:
    machines = [
        machine("web-1", 1),
        machine("web-2", 2, vendor="ocean", label="shop"),
        machine("db-1", 4, pool="db"),
    ]

    found = cost(machines, 0, NOW, NOW, ("vendor", "label"))
    assert [(each.key, round(each.spent, 6), each.machines) for each in found] == [
        (("aws", "db"), 4, 1),
        (("ocean", "shop"), 2, 1),
        (("aws", "web"), 1, 1),
    ]
    assert [each.key for each in cost(machines, 0, NOW, NOW, ("vendor",))] == [("aws",), ("ocean",)]
    with pytest.raises(ValueError, match=r"'colour'.*vendor, region"):
        cost(machines, 0, NOW, NOW, ("colour",))


def test_a_forecast_is_what_this_month_has_cost_and_the_rest_of_it_as_now() -> None:
    gone = machine("web-2", 10, state=State.GONE, ended=NOW - 4 * HOUR)
    last_month = machine("web-3", 30 * 24, state=State.GONE, ended=ms("2026-11-01T05:00:00Z"))

    (found,) = cost([machine(), gone, last_month], NOW - HOUR, NOW, NOW)
    # 60 hours are left of November.
    assert found.forecast == pytest.approx(1 + 60 + 6 + 5)
    assert found.hourly == 1
    assert found.spent == pytest.approx(1)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=8),
    st.floats(0, 100),
    st.floats(0, 50),
    st.sampled_from([1.0, 60.0, 3600.0]),
)
def test_costs_of_spans_that_follow_each_other_add_up(
    times: list[float], began: float, lived: float, step: float
) -> None:
    each = machine(hours=began)
    if lived < began:
        each = replace(each, state=State.GONE, ended=NOW - round((began - lived) * HOUR))
    billing = Billing(step=step)
    cuts = sorted(NOW - round(hours * HOUR) for hours in times)

    parts = sum(spent([each], a, b, NOW, billing) for a, b in pairwise(cuts))
    assert parts == pytest.approx(spent([each], cuts[0], cuts[-1], NOW, billing), abs=1e-6)
    assert parts >= 0


def test_months_are_of_utc_and_follow_each_other() -> None:
    assert month(NOW) == (ms("2026-11-01T00:00:00Z"), ms("2026-12-01T00:00:00Z"))
    assert month(ms("2026-12-31T23:59:59Z"))[1] == ms("2027-01-01T00:00:00Z")
    assert month(ms("2027-01-01T00:00:00Z"))[0] == ms("2027-01-01T00:00:00Z")


# -- budgets


def test_without_a_budget_there_is_room_for_all() -> None:
    assert room([], [machine()], NOW, "web") == inf
    assert room([Budget(label="shop", per_month=1)], [machine()], NOW, "web") == inf
    assert overdue([], [machine()], NOW) == []


@pytest.mark.parametrize("state", [state for state in State if state.costs])
def test_the_bound_of_an_hour_counts_every_machine_that_costs_or_may(state: State) -> None:
    budget = Budget(label="web", per_hour=2.5)

    assert room([budget], [machine(state=state)], NOW, "web") == pytest.approx(1.5)
    assert room([budget], [machine(state=State.GONE)], NOW, "web") == pytest.approx(2.5)
    assert room([budget], [machine(price=3.0)], NOW, "web") == pytest.approx(0)


def test_a_machine_is_rented_only_if_its_least_time_can_be_paid() -> None:
    budget = Budget(per_month=10)
    spent_nine = machine("web-9", 10, state=State.GONE, ended=NOW - HOUR)

    assert room([budget], [spent_nine], NOW, "web") == pytest.approx(1, rel=0.02)
    assert room([budget], [spent_nine, machine("web-2", 0, price=0.9)], NOW, "web") < 0.1


def test_the_budgets_of_a_label_of_all_and_of_the_pool_hold_together() -> None:
    budgets = [
        Budget(per_hour=9),
        Budget(label="shop", per_hour=4),
        Budget.of("web", Money(max_per_hour=3)),
    ]
    other = machine("db-1", pool="db", label="shop", price=2.0)

    assert room(budgets, [], NOW, "web", "shop") == pytest.approx(3)
    assert room(budgets, [other], NOW, "web", "shop") == pytest.approx(2)
    assert room(budgets, [other], NOW, "web") == pytest.approx(3)
    assert room(budgets, [other], NOW, "batch") == pytest.approx(7)


def test_a_budget_in_another_currency_is_converted_or_says_what_is_missing() -> None:
    budget = Budget(label="shop", per_month=100, per_hour=1, currency="USD")

    found = budget.converted(Exchange("EUR", {"USD": 0.92}))
    assert (found.per_month, found.per_hour, found.currency) == (92, 0.92, "EUR")
    assert Budget(per_month=5).converted(Exchange()).per_month == 5
    with pytest.raises(ValueError, match=r"what USD is in EUR: write 'rates: \{USD: \.\.\.\}'"):
        budget.converted(Exchange())


def test_when_money_runs_out_the_machines_go_that_are_missed_least() -> None:
    machines = [
        machine("busy", 4, price=0.3),
        machine("idle", 4, price=0.3),
        machine("dear", 4, price=0.4),
        machine("booting", 4, price=0.1, state=State.BOOTING),
    ]
    jobs = {"busy": 3.0, "idle": 0.0, "dear": 0.0}

    def going(per_month: float) -> list[str]:
        budgets = [Budget(per_month=per_month)]
        found = overdue(budgets, machines, NOW, harm=lambda each: jobs.get(each.name, 0.0))
        assert all(why == "the budget of all for this month would be exceeded" for _, why in found)
        return [each.name for each, _ in found]

    assert going(10) == going(4.92) == []
    assert [going(limit) for limit in (4.9, 4.85, 4.75)] == [
        ["booting"],
        ["booting", "dear"],
        ["booting", "dear", "idle"],
    ]
    assert going(4.1) == ["booting", "dear", "idle", "busy"]


def test_what_drains_for_one_budget_is_not_named_twice() -> None:
    budgets = [Budget(per_month=1), Budget(label="web", per_month=1)]

    assert [each.name for each, _ in overdue(budgets, [machine(hours=4)], NOW)] == ["web-1"]
    assert overdue(budgets, [machine(hours=4, state=State.DRAINING)], NOW) == []


def test_a_month_that_is_nearly_over_does_not_open_the_next_one_beyond_its_budget() -> None:
    end = ms("2026-12-01T00:00:00Z")
    budget = Budget(per_month=1)

    assert room([budget], [], end - 1000, "web") == pytest.approx(1, rel=0.02)
    late = (NOW - end) / HOUR + 0.01
    assert room([budget], [machine(hours=late, price=0.9)], end - 1000, "web") < 0.1
    many = [machine(f"web-{number}", late) for number in range(9)]
    assert len(overdue([budget], many, end - 1000)) >= 6
    assert overdue([Budget(per_month=5)], many, end - 1000) == []


def test_what_there_is_just_room_for_is_not_overdue_right_after() -> None:
    budget = Budget(per_month=50)
    gone = machine("old", 45, state=State.GONE, ended=NOW)
    new = machine("new", 0, price=room([budget], [gone], NOW, "web"), state=State.ORDERED)

    later = NOW + 20 * MINUTE
    assert overdue([budget], [gone, replace(new, state=State.READY)], later) == []


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32),
    per_month=st.floats(0.5, 60),
    of_label=st.floats(0.5, 60),
    tick=st.sampled_from([2, 5, 10]),
    step=st.sampled_from([1.0, 3600.0]),
    started=st.sampled_from(["2026-11-28T12:00:00Z", "2026-11-30T22:00:00Z"]),
)
def test_whatever_is_rented_where_there_is_room_no_month_costs_more_than_its_budget(
    seed: int, per_month: float, of_label: float, tick: int, step: float, started: str
) -> None:
    chance = random.Random(seed)
    billing = Billing(step=step)
    budgets = [Budget(per_month=per_month), Budget(label="shop", per_month=of_label)]
    machines = dict[str, Machine]()
    now = ms(started)

    def put(each: Machine, state: State, **changes: Any) -> None:
        machines[each.name] = replace(each, state=state, since=now, **changes)

    for _ in range(100):
        now += tick * MINUTE
        for each in list(machines.values()):
            waited = now - each.since
            if each.state is State.ORDERED and chance.random() < 0.5:
                put(each, chance.choice([State.READY, State.UNKNOWN]), began=now)
            elif each.state is State.UNKNOWN and chance.random() < 0.2:
                put(each, chance.choice([State.READY, State.NEVER]))
            # They take all the time that they may, to the minute.
            elif each.state is State.DRAINING and waited >= 12 * MINUTE:
                put(each, State.GONE, ended=each.since + 12 * MINUTE)
        for each, _ in overdue(budgets, list(machines.values()), now, billing=billing):
            put(each, State.DRAINING)
        pool = chance.choice(["web", "shop"])
        left = room(budgets, list(machines.values()), now, pool, billing=billing)
        if left > 0.01 and chance.random() < 0.7:
            price = left if chance.random() < 0.3 else min(left, chance.uniform(0.01, 10))
            name = f"{pool}-{len(machines)}"
            machines[name] = machine(
                name,
                pool=pool,
                price=price,
                state=State.ORDERED,
                created=now,
                began=None,
                since=now,
            )
        for budget in budgets:
            own = [each for each in machines.values() if budget.covers(each.pool, each.label)]
            assert budget.per_month is not None
            for begin, end in (month(now), month(month(now)[0] - 1)):
                assert spent(own, begin, end, now, billing) <= budget.per_month + 1e-6
