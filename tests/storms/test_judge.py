"""The judge finds what is wrong, and nothing where all is well."""

from __future__ import annotations

from typing import Any

from .judge import Bought, Bound, bought, judge


def a_machine(name: str = "web-1", **members: Any) -> Bought:
    given: dict[str, Any] = {
        "vendor": "ocean",
        "id": name,
        "name": name,
        "region": "fra1",
        "type": "small",
        "created": 1000,
        "deleted": 9000,
        "price": 0.01,
    }
    return Bought(**{**given, **members})


def test_a_run_that_went_well_has_no_findings() -> None:
    machines = [a_machine("web-1"), a_machine("web-2", created=2000)]
    assert judge(machines, [Bound("web", 0, 0.02)], []).findings == []


def test_what_exists_at_the_end_has_leaked() -> None:
    (what,) = judge([a_machine(deleted=None)], [], []).leaked
    assert "web-1" in what and "ocean fra1" in what


def test_one_name_at_one_vendor_or_two_is_bought_twice() -> None:
    for vendor in ("ocean", "aws"):
        machines = [a_machine(id="1"), a_machine(id="2", vendor=vendor)]
        assert len(judge(machines, [], []).twice) == 1


def test_the_worst_moment_is_over_budget_and_not_one_before_or_after() -> None:
    machines = [
        a_machine("web-1", deleted=3000),
        a_machine("web-2", created=2000),
        a_machine("web-3", created=3000),
        a_machine("mail-1", created=2000),
    ]
    assert judge(machines, [Bound("web", 0, 0.02)], []).over == []
    (what,) = judge(machines, [Bound("web", 0, 0.019)], []).over
    assert "0.02000 of 0.01900 an hour at 2000: web-1 0.01000, web-2 0.01000" in what


def test_a_bound_holds_from_when_it_was_set() -> None:
    machines = [a_machine("web-1"), a_machine("web-2", created=5000)]
    raised = [Bound("web", 0, 0.01), Bound("web", 4000, 0.02)]
    assert judge(machines, raised, []).over == []
    late = [Bound("web", 0, 0.01), Bound("web", 6000, 0.02)]
    assert len(judge(machines, late, []).over) == 1
    assert judge(machines, [Bound("web", 0, None)], []).over == []


def test_what_was_not_reached_in_time_is_found() -> None:
    assert judge([], [], ["web is not there"]).findings == ["not converged: web is not there"]


def test_the_vendors_records_are_read_with_their_prices() -> None:
    row = {
        "name": "web-1",
        "id": "7",
        "region": "fra1",
        "type": "small",
        "created": 1,
        "deleted": None,
        "user_data": "#!/bin/sh",
    }
    (found,) = bought({"ocean": {"machines": [row]}}, {("ocean", "fra1", "small"): 0.5})
    assert (found.pool, found.price, found.deleted) == ("web", 0.5, None)
