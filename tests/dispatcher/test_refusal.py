from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from spinal.dispatcher.refusal import no_agent, none_free


def rejected(*rules: str) -> Mapping[str, int]:
    return Counter(rules)


def test_a_misspelt_operation_is_answered_with_the_one_that_was_meant() -> None:
    problem = no_agent("/image/reszie", rejected(), ["/deploy", "/image/resize"])

    assert problem.reason == "no-agent"
    assert problem.text == "no agent offers /image/reszie: did you mean /image/resize?"


def test_an_operation_that_is_like_no_other_is_answered_with_what_to_do() -> None:
    problem = no_agent("/x", rejected(), ["/deploy", "/image/resize"])

    assert problem.text == "no agent offers /x: start one with `spinal agent run`"


def test_agents_that_will_not_do_are_counted_by_reason() -> None:
    assert no_agent("/x", rejected("tags", "place", "tags"), []).text == (
        "3 agents offer /x, but none will do: 2 lack a tag, 1 are at another place; "
        "see `spinal resolve /x`"
    )
    assert no_agent("/x", rejected("unable"), []).text.startswith("1 agent offers /x, but none")


def test_a_call_that_waited_in_vain_says_what_for() -> None:
    problem = none_free("/x", 9.96, rejected("busy", "busy", "suspect"))

    assert problem.reason == "expired"
    assert problem.text == "no agent was free for /x within 10.0 s: 2 busy, 1 suspect"
