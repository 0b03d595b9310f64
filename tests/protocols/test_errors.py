from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.protocols import (
    BOUNCES,
    REASONS,
    Again,
    Exit,
    LocalProtocolError,
    Problem,
    ProtocolError,
    Ran,
    RemoteProtocolError,
    SpinalError,
)
from spinal.protocols.errors import CONDITIONS, MAX_TEXT, MAY_BE_DELIVERED, TYPES

#: RFC 6120, 8.3.3.1 to 8.3.3.22, typed in from there.
RFC_CONDITIONS = [
    "bad-request",
    "conflict",
    "feature-not-implemented",
    "forbidden",
    "gone",
    "internal-server-error",
    "item-not-found",
    "jid-malformed",
    "not-acceptable",
    "not-allowed",
    "not-authorized",
    "policy-violation",
    "recipient-unavailable",
    "redirect",
    "registration-required",
    "remote-server-not-found",
    "remote-server-timeout",
    "resource-constraint",
    "service-unavailable",
    "subscription-required",
    "undefined-condition",
    "unexpected-request",
]


def test_conditions_and_types_are_those_of_the_rfc() -> None:
    assert sorted(CONDITIONS) == RFC_CONDITIONS
    assert sorted(TYPES) == ["auth", "cancel", "continue", "modify", "wait"]


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_has_a_condition_and_a_type_of_the_rfc(reason: str) -> None:
    meaning = REASONS[reason]

    assert meaning.condition in CONDITIONS
    assert meaning.type in TYPES
    assert meaning.text


@pytest.mark.parametrize("reason", REASONS)
def test_the_columns_of_a_reason_agree_with_each_other(reason: str) -> None:
    meaning = REASONS[reason]

    # Where it did run, doing it again is not ours to offer.
    assert meaning.ran is not Ran.YES or meaning.again is Again.NEVER
    # "wait" tells people to try again, "modify" and "auth" that they need not.
    assert (meaning.type == "wait") <= (meaning.again is not Again.NEVER)
    assert (meaning.type in ("modify", "auth")) <= (meaning.again is Again.NEVER)
    assert meaning.exit is not Exit.DONE


def test_a_server_says_that_nothing_was_delivered_where_it_can_know() -> None:
    assert set(BOUNCES) <= CONDITIONS
    unsure = {name for name, reason in BOUNCES.items() if REASONS[reason].ran is not Ran.NO}
    # What is too large for a server was not delivered; the reason is that of a result as well.
    assert unsure == {"policy-violation", "recipient-unavailable"}
    assert BOUNCES["recipient-unavailable"] == MAY_BE_DELIVERED
    assert REASONS["unreachable"].ran is Ran.NO


@given(st.sampled_from(sorted(REASONS)))
def test_a_problem_fills_in_what_its_reason_says(reason: str) -> None:
    problem = Problem(reason)
    meaning = REASONS[reason]

    assert problem.meaning is meaning
    assert (problem.type, problem.condition, problem.text) == (
        meaning.type,
        meaning.condition,
        meaning.text,
    )


def test_what_a_problem_says_itself_goes_before_its_reason() -> None:
    problem = Problem("busy", "come back", "size", 2.5, type="cancel", condition="gone")

    assert problem.to_json() == {
        "reason": "busy",
        "type": "cancel",
        "condition": "gone",
        "text": "come back",
        "argument": "size",
        "after": 2.5,
    }


def test_an_unknown_reason_means_failed_and_keeps_its_name() -> None:
    problem = Problem("out-of-paper")

    assert problem.reason == "out-of-paper"
    assert problem.meaning is REASONS["failed"]


def test_a_long_text_is_cut_to_what_a_peer_reads() -> None:
    assert len(Problem("failed", "x" * (MAX_TEXT + 1)).text) == MAX_TEXT


@pytest.mark.parametrize("error", [LocalProtocolError, RemoteProtocolError])
def test_a_protocol_error_carries_the_answer_to_give(error: type[ProtocolError]) -> None:
    raised = error("no", "bad-arguments", "size")

    assert raised.problem == Problem("bad-arguments", "no", "size")
    assert isinstance(raised, SpinalError) and isinstance(raised, ValueError)


def test_exit_codes_tell_the_two_sides_apart() -> None:
    assert LocalProtocolError.exit_code == Exit.USAGE.value
    assert RemoteProtocolError.exit_code == Exit.FAILED.value
