from __future__ import annotations

from typing import Any

import pytest

from spinal.dispatcher.agent import REPORT_AGE, AgentState, KnownAgent
from spinal.protocols import Advertisement

OP = "/x"


def report(**changes: Any) -> Advertisement:
    said: dict[str, Any] = {"hash": "h", "epoch": 1, "slots": 4, "features": ("holds",), **changes}
    return Advertisement(**said)


def test_a_call_in_flight_counts_before_any_report_says_so() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)

    agent.started(("c", 1), OP, 0.1)

    assert agent.busy == 1


def test_a_call_that_ended_does_not_count_any_more_before_any_report_says_so() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)
    agent.started(("c", 1), OP, 0.1)
    agent.report(report(busy=1, holds=[["c", 1]]), 1.0)

    agent.ended(("c", 1), 1.1)

    assert agent.busy == 0


def test_calls_that_others_run_count() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)
    agent.started(("c", 1), OP, 0.1)

    agent.report(report(busy=3, holds=[["c", 1]]), 1.0)

    assert agent.busy == 3


def test_a_call_that_ended_while_the_report_was_on_its_way_is_not_taken_for_one_of_others() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)
    agent.started(("c", 1), OP, 0.1)
    agent.ended(("c", 1), 0.9)

    agent.report(report(busy=1, holds=[["c", 1]]), 1.0)

    assert agent.busy == 0


def test_a_final_that_is_held_long_after_its_end_is_not_taken_for_a_running_call() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)
    agent.started(("c", 1), OP, 0.1)
    agent.ended(("c", 1), 0.2)

    agent.report(report(busy=1, holds=[["c", 1]]), 0.2 + REPORT_AGE + 0.1)

    assert agent.busy == 1, "the busy slot is somebody else's"


def test_an_agent_without_holds_is_credited_with_the_calls_that_we_wait_for() -> None:
    agent = KnownAgent("a@x/1", report(features=()), 0.0)
    agent.started(("c", 1), OP, 0.1)
    agent.started(("d", 1), OP, 0.1)

    agent.report(report(features=(), busy=3), 2.0)

    assert agent.busy == 3


def test_silence_makes_an_agent_suspect_and_a_report_clears_it() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)

    assert agent.state(12.0) is AgentState.AVAILABLE
    assert agent.state(12.1) is AgentState.SUSPECT
    agent.report(report(), 13.0)
    assert agent.state(13.0) is AgentState.AVAILABLE


def test_an_attempt_that_the_agent_does_not_list_is_found_unless_it_was_sent_just_before() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)
    agent.started(("old", 1), OP, 1.0)
    agent.started(("held", 1), OP, 1.0)
    agent.started(("young", 1), OP, 4.9)

    agent.report(report(busy=1, holds=[["held", 1], ["stranger", 7], "nonsense"]), 5.0)

    assert agent.unheld() == [("old", 1)]


def test_an_agent_that_lists_nothing_because_it_cannot_is_believed() -> None:
    agent = KnownAgent("a@x/1", report(features=()), 0.0)
    agent.started(("old", 1), OP, 1.0)

    agent.report(report(features=()), 9.0)

    assert agent.unheld() == []


def test_a_report_that_does_not_list_all_that_is_held_is_believed_for_what_it_lists() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)
    for number in range(3):
        agent.started((f"job{number}", 1), OP, 1.0)

    agent.report(report(busy=3, holds=[["job0", 1]], more=True), 5.0)

    assert agent.unheld() == []
    assert agent.busy == 3, "and what it leaves out does not count twice"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, 0), (10.0, 0), (0.2, 1), (0.02, 10), (0.0, 64), (1e-9, 64)],
)
def test_about_fifty_milliseconds_of_work_may_wait_at_an_agent(
    seconds: float | None, expected: int
) -> None:
    agent = KnownAgent("a@x/1", report(slots=4), 0.0)
    if seconds is not None:
        agent.ran("/x", seconds)

    assert agent.prefetch("/x") == expected
    assert agent.prefetch("/never/ran") == 0


def test_an_agent_that_refused_what_was_to_wait_there_gets_no_more_of_it() -> None:
    agent = KnownAgent("a@x/1", report(slots=1), 0.0)
    agent.ran("/x", 0.001)
    agent.started(("c", 1), OP, 0.1)
    agent.started(("d", 1), OP, 0.1)

    agent.refused(("d", 1))

    assert agent.prefetch("/x") == 0


def test_an_agent_that_refused_is_full_for_that_operation_until_it_reports() -> None:
    agent = KnownAgent("a@x/1", report(slots=4), 0.0)
    agent.started(("c", 1), OP, 0.1)

    agent.refused(("c", 1))

    assert agent.full(OP)
    assert not agent.full("/other")
    assert agent.busy == 0
    agent.report(report(), 1.0)
    assert not agent.full(OP)


def test_a_full_operation_is_tried_again_when_a_call_of_it_ends() -> None:
    agent = KnownAgent("a@x/1", report(slots=4), 0.0)
    agent.started(("c", 1), OP, 0.1)
    agent.started(("d", 1), OP, 0.1)
    agent.started(("e", 1), "/other", 0.1)
    agent.refused(("d", 1))

    agent.ended(("e", 1), 0.2)
    assert agent.full(OP)
    agent.ended(("c", 1), 0.3)
    assert not agent.full(OP)


def test_the_memory_of_what_ended_is_bounded_by_time() -> None:
    agent = KnownAgent("a@x/1", report(), 0.0)
    for n in range(1000):
        agent.started((f"c{n}", 1), OP, n * 0.1)
        agent.ended((f"c{n}", 1), n * 0.1)

    assert len(agent._ended) <= REPORT_AGE / 0.1 + 2  # pyright: ignore[reportPrivateUsage]
