"""Every situation that two ends of a call can get into, and a few conversations told in words.

The walk knows nothing of what the table is for.  It lets both ends say whatever the table allows,
delivers what is on the way in any order, and asks three things: nobody who is honest is accused,
two ends that have heard everything agree, and every state is reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest

from spinal.protocols import (
    TRANSITIONS,
    Exchange,
    LocalProtocolError,
    RemoteProtocolError,
    Speaker,
    State,
)

Key = tuple[Speaker, str]
Table = Mapping[State, Mapping[Key, State]]
CALLER, AGENT = Speaker.CALLER, Speaker.AGENT

#: Events on the way in one direction.  More of them bring nothing new: two of a kind show what
#: comes twice, and a third what comes in between.
QUEUE = 3


class Situation(NamedTuple):
    """Both ends and what is between them; what is on the way is sorted, as anything overtakes."""

    caller: State = State.NEW
    agent: State = State.NEW
    to_agent: tuple[str, ...] = ()
    to_caller: tuple[str, ...] = ()
    #: A cancel overtook its op: the agent remembers the id and must refuse it.
    tombstone: bool = False
    #: An op was heard again after the acknowledgement, and that is not answered yet.
    owes: bool = False


class Wrong(Exception):
    """The table does not do what it is for."""


def _queued(queue: tuple[str, ...], event: str) -> tuple[str, ...]:
    return tuple(sorted((*queue, event)))


def _without(queue: tuple[str, ...], event: str) -> tuple[str, ...]:
    at = queue.index(event)
    return queue[:at] + queue[at + 1 :]


def _heard(table: Table, state: State, speaker: Speaker, event: str) -> State:
    after = table[state].get((speaker, event))
    if after is None:
        raise Wrong(f"an honest {speaker.value} is accused of '{event}' in {state.value}")
    return after


def _may_say(now: Situation, speaker: Speaker, event: str) -> bool:
    """What honesty asks beyond the table, which does not know which end we are."""
    if speaker is CALLER:
        return True
    if now.tombstone and event not in ("error", "cancelled"):
        return False
    # Only a resent op makes an agent say that its answer is gone.
    return event != "error" or now.agent is not State.CLOSED or now.owes


def _moves(table: Table, now: Situation) -> Iterator[Situation]:
    if len(now.to_agent) < QUEUE:
        for (speaker, event), after in table[now.caller].items():
            if speaker is CALLER and _may_say(now, speaker, event):
                yield now._replace(caller=after, to_agent=_queued(now.to_agent, event))
    if len(now.to_caller) < QUEUE:
        for (speaker, event), after in table[now.agent].items():
            if speaker is AGENT and _may_say(now, speaker, event):
                owes = now.owes and event != "error"
                on_way = _queued(now.to_caller, event)
                yield now._replace(agent=after, to_caller=on_way, owes=owes)
    for event in set(now.to_caller):
        after = _heard(table, now.caller, AGENT, event)
        yield now._replace(caller=after, to_caller=_without(now.to_caller, event))
    for event in set(now.to_agent):
        rest = _without(now.to_agent, event)
        if now.agent is State.NEW and event == "cancel":
            if len(now.to_caller) < QUEUE:
                on_way = _queued(now.to_caller, "cancelled")
                yield now._replace(to_agent=rest, to_caller=on_way, tombstone=True)
            continue
        after = _heard(table, now.agent, CALLER, event)
        owes = now.owes or (after is State.CLOSED and event == "op")
        yield now._replace(agent=after, to_agent=rest, owes=owes)


def walk(table: Table) -> set[Situation]:
    """Give every situation that can be reached.

    Raises:
        Wrong: somebody honest was accused, the ends disagree, or a state is never reached.
    """
    start = Situation()
    seen = {start}
    todo = [start]
    while todo:
        now = todo.pop()
        if not now.to_agent and not now.to_caller and now.caller is not now.agent:
            raise Wrong(f"{now.caller.value} and {now.agent.value} after everything was heard")
        for after in _moves(table, now):
            if after not in seen:
                seen.add(after)
                todo.append(after)
    for role, reached in (("caller", {s.caller for s in seen}), ("agent", {s.agent for s in seen})):
        if missing := set(State) - reached:
            raise Wrong(f"the {role} never gets to {', '.join(s.value for s in missing)}")
    return seen


#: Who says what, in order; everything is heard before the next thing is said, unless it is marked
#: as lost with ``!``.
CONVERSATIONS: Mapping[str, tuple[tuple[str, ...], State]] = {
    "a short call, acknowledged with the next op": (
        ("caller op", "agent final", "caller ack"),
        State.CLOSED,
    ),
    "a long call with everything in it": (
        (
            "caller op",
            "agent accepted",
            "agent log",
            "agent data",
            "agent progress",
            "caller cancel",
            "agent cancelled",
            "agent final",
            "caller ack",
        ),
        State.CLOSED,
    ),
    "a stream whose accepted was lost with the stream": (
        ("caller op", "agent! accepted", "agent data", "agent data", "agent final", "caller ack"),
        State.CLOSED,
    ),
    "a call that is refused, and refused again when it is sent again": (
        ("caller op", "agent! error", "caller op", "agent error"),
        State.REFUSED,
    ),
    "an op sent again because its answer was lost": (
        ("caller op", "agent! final", "caller op", "agent final", "caller ack"),
        State.CLOSED,
    ),
    "an op sent again while it runs": (
        ("caller op", "agent! accepted", "caller op", "agent accepted", "agent final"),
        State.ENDED,
    ),
    "a final that is sent again because its acknowledgement was lost": (
        ("caller op", "agent final", "caller! ack", "agent final", "caller ack"),
        State.CLOSED,
    ),
    "an op that comes again after the acknowledgement": (
        ("caller op", "agent final", "caller ack", "caller op", "agent error"),
        State.CLOSED,
    ),
    "a cancel before anything was answered": (
        ("caller op", "caller cancel", "agent cancelled", "agent error"),
        State.REFUSED,
    ),
    "a cancel that comes too late": (
        ("caller op", "agent final", "caller cancel", "agent cancelled", "caller ack"),
        State.CLOSED,
    ),
}


def converse(table: Table, lines: tuple[str, ...]) -> tuple[State, State]:
    """Play a conversation and give the states of caller and agent."""
    states = {CALLER: State.NEW, AGENT: State.NEW}
    for line in lines:
        who, event = line.split()
        speaker = Speaker(who.removesuffix("!"))
        states[speaker] = _heard(table, states[speaker], speaker, event)
        if not who.endswith("!"):
            hearer = AGENT if speaker is CALLER else CALLER
            states[hearer] = _heard(table, states[hearer], speaker, event)
    return states[CALLER], states[AGENT]


def check(table: Table) -> None:
    """Raise ``Wrong`` unless the table serves every conversation and every situation."""
    for name, (lines, end) in CONVERSATIONS.items():
        if converse(table, lines) != (end, end):
            raise Wrong(name)
    walk(table)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_an_ordinary_conversation_ends_where_it_should(name: str) -> None:
    lines, end = CONVERSATIONS[name]

    assert converse(TRANSITIONS, lines) == (end, end)


def test_no_order_of_honest_words_accuses_anybody_and_both_ends_agree() -> None:
    seen = walk(TRANSITIONS)

    assert len(seen) > 1000


ROWS = [(state, key) for state, rows in TRANSITIONS.items() for key in rows]


@pytest.mark.parametrize(
    ("state", "key"), ROWS, ids=[f"{s.value}-{k[0].value}-{k[1]}" for s, k in ROWS]
)
def test_no_row_of_the_table_is_needless(state: State, key: Key) -> None:
    short = {
        s: {k: v for k, v in t.items() if (s, k) != (state, key)} for s, t in TRANSITIONS.items()
    }

    with pytest.raises(Wrong):
        check(short)


def test_every_state_has_rows_and_every_row_leads_to_a_state() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {after for rows in TRANSITIONS.values() for after in rows.values()} <= set(State)


@pytest.mark.parametrize("state", State)
def test_what_is_over_stays_over(state: State) -> None:
    after = set(TRANSITIONS[state].values())

    assert not state.over or after == {state}


@pytest.mark.parametrize("state", State)
def test_a_cancel_and_its_answer_move_nothing(state: State) -> None:
    rows = TRANSITIONS[state]

    assert {rows.get((CALLER, "cancel"), state), rows.get((AGENT, "cancelled"), state)} == {state}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("role", Speaker)
@pytest.mark.parametrize("event", sorted({k[1] for _, k in ROWS} | {"hello", ""}))
def test_an_exchange_is_its_table_and_says_whose_mistake_it_was(
    state: State, role: Speaker, event: str
) -> None:
    peer = AGENT if role is CALLER else CALLER
    for speaker, error in ((role, LocalProtocolError), (peer, RemoteProtocolError)):
        exchange = Exchange(role)
        exchange.state = state
        act = exchange.say if speaker is role else exchange.hear
        after = TRANSITIONS[state].get((speaker, event))

        if after is None:
            with pytest.raises(error, match=state.value):
                act(event)
        else:
            act(event)
        assert exchange.state is (after or state)


def test_an_exchange_shows_its_side_and_state() -> None:
    assert repr(Exchange(CALLER)) == "<Exchange caller new>"
