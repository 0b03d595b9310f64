from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinal.dispatcher.errors import QueueFull
from spinal.dispatcher.queue import AGEING, TOP, Entry, Queue
from spinal.dispatcher.resolver import Demand

ANY = frozenset({"/a", "/b"})


def yes(demand: Demand) -> bool:
    return True


def entry(
    item: str,
    caller: str = "c@x",
    op: str = "/a",
    priority: int = 0,
    deadline: float = 1e6,
    only: str = "",
    size: int = 0,
) -> Entry[str]:
    return Entry(Demand(op, only=only), caller, deadline, item, priority, size)


def filled(*entries: Entry[str], now: float = 0.0) -> Queue[str]:
    queue = Queue[str]()
    for item in entries:
        queue.add(item, now)
    return queue


def drain(queue: Queue[str], now: float = 0.0, agent: str = "w@x/1") -> list[str]:
    found: list[str] = []
    while (item := queue.take(agent, ANY, yes, now)) is not None:
        found.append(item.item)
    return found


def test_one_callers_calls_leave_in_the_order_in_which_they_came() -> None:
    assert drain(filled(*(entry(str(n)) for n in range(5)))) == ["0", "1", "2", "3", "4"]


def test_callers_take_turns() -> None:
    queue = filled(
        *(entry(f"big{n}", "big@x") for n in range(4)),
        *(entry(f"small{n}", "small@x") for n in range(2)),
    )

    assert drain(queue) == ["big0", "small0", "big1", "small1", "big2", "big3"]


def test_nobody_gets_more_turns_by_spreading_calls_over_operations() -> None:
    queue = filled(
        entry("a0", "greedy@x", "/a"),
        entry("b0", "greedy@x", "/b"),
        entry("a1", "greedy@x", "/a"),
        entry("b1", "greedy@x", "/b"),
        entry("m0", "modest@x", "/a"),
        entry("m1", "modest@x", "/a"),
    )

    assert drain(queue)[:4] == ["a0", "m0", "b0", "m1"]


def test_a_higher_priority_goes_first_until_waiting_has_made_up_for_it() -> None:
    queue = filled(entry("low", priority=-1), now=0.0)
    queue.add(entry("middle"), AGEING / 2)
    assert [e.item for e in queue] == ["low", "middle"]

    queue.add(entry("high", priority=1), AGEING + 1)

    # The lowest has reached the middle's level, but later than the middle came there.
    assert drain(queue, AGEING + 1) == ["high", "middle", "low"]


def test_a_low_priority_does_not_wait_for_ever() -> None:
    queue = filled(entry("patient", "poor@x", priority=-3))
    for n in range(40):
        now = n * AGEING / 4
        queue.add(entry(f"urgent{n}", "rich@x", priority=TOP), now)
        taken = queue.take("w@x/1", ANY, yes, now)
        assert taken is not None

    assert drain(queue, 13 * AGEING) == ["patient"]


def test_an_operation_that_is_stuck_blocks_no_other() -> None:
    queue = filled(entry("stuck", op="/a", priority=5), entry("fine", op="/b"))

    taken = queue.take("w@x/1", ANY, lambda demand: demand.op == "/b", 0.0)

    assert taken is not None
    assert taken.item == "fine"
    assert queue.take("w@x/1", frozenset({"/b"}), yes, 0.0) is None


def test_a_call_for_one_agent_is_not_given_to_another() -> None:
    queue = filled(entry("mine", only="w@x/1"), entry("anybodys"))

    assert queue.demands_for("w@x/1") == [Demand("/a", only="w@x/1")]
    assert drain(queue, agent="w@x/2") == ["anybodys"]
    assert drain(queue, agent="w@x/1") == ["mine"]


def test_what_has_expired_is_dropped_and_told() -> None:
    queue = filled(entry("short", deadline=5.0), entry("long"))

    assert queue.next_deadline() == 5.0
    assert drain(queue, 5.0) == ["long"]
    assert [e.item for e in queue.expire(5.0)] == ["short"]
    assert queue.expire(5.0) == []


def test_a_cancelled_call_is_gone_and_can_be_cancelled_again() -> None:
    one, two = entry("one"), entry("two")
    queue = filled(one, two)

    assert queue.remove(one)
    assert not queue.remove(one)
    assert drain(queue) == ["two"]
    assert not queue.remove(two)


def test_a_full_queue_refuses_with_one_clear_problem() -> None:
    queue = Queue[str](most=1, most_bytes=10)
    queue.add(entry("one", size=4), 0.0)

    with pytest.raises(QueueFull) as refused:
        queue.add(entry("two"), 0.0)
    assert refused.value.problem.reason == "full"
    assert refused.value.problem.condition == "resource-constraint"
    drain(queue)
    with pytest.raises(QueueFull):
        queue.add(entry("three", size=11), 0.0)


def test_nothing_is_kept_of_what_has_left() -> None:
    queue = Queue[str]()
    rng = Random(1)
    for n in range(3000):
        waiting = entry(str(n), f"c{n % 50}@x", rng.choice(["/a", "/b"]), rng.randint(-2, 2))
        queue.add(waiting, float(n))
        if n % 2:
            queue.remove(waiting)
        else:
            queue.take("w@x/1", ANY, yes, float(n))

    kept = vars(queue)
    assert len(queue) == 0
    assert kept["_lanes"] == {} and kept["_waiting"] == {} and kept["_turn_of"] == {}
    assert len(kept["_deadlines"]) <= 64 and len(kept["_ageing"]) <= 64
    assert kept["_bytes"] == 0


# -- against a model that is too simple to be wrong


@dataclass
class Model:
    """A list; every question is answered by looking at all of it."""

    entries: list[Entry[str]] = field(default_factory=list[Entry[str]])
    came: dict[str, float] = field(default_factory=dict[str, float])
    turns: dict[str, int] = field(default_factory=dict[str, int])
    turn: int = 0

    def level(self, entry: Entry[str], now: float) -> int:
        lifted = entry.priority + int((now - self.came[entry.item]) / AGEING)
        return max(min(TOP, entry.priority), min(TOP, lifted))

    def reached(self, entry: Entry[str], now: float) -> tuple[float, int]:
        """When it came to its level; at equal times lifting comes before arriving."""
        rises = self.level(entry, now) - min(TOP, entry.priority)
        return (self.came[entry.item] + rises * AGEING, 0 if rises else 1)

    def forget(self) -> None:
        waiting = {entry.caller for entry in self.entries}
        self.turns = {caller: turn for caller, turn in self.turns.items() if caller in waiting}

    def take(self, agent: str, op: str, now: float) -> str | None:
        able = [e for e in self.entries if e.demand.op == op and e.demand.only in ("", agent)]
        if not able:
            return None
        top = {
            demand: max(self.level(e, now) for e in able if e.demand == demand)
            for demand in {e.demand for e in able}
        }
        able = [e for e in able if self.level(e, now) == top[e.demand]]
        best = min(
            able,
            key=lambda e: (
                -self.level(e, now),
                self.turns.get(e.caller, 0),
                self.reached(e, now),
                self.entries.index(e),
            ),
        )
        self.turn += 1
        self.turns[best.caller] = self.turn
        self.entries.remove(best)
        self.forget()
        return best.item


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "take", "take", "remove", "wait"]),
        st.sampled_from(["/a", "/b"]),
        st.sampled_from(["x@x", "y@x", "z@x"]),
        st.integers(-2, 2),
        st.sampled_from(["", "", "w@x/1", "w@x/2"]),
        # Sums of these never meet a multiple of AGEING of another entry by accident of rounding.
        st.sampled_from([0.0, 1.0, 7.0, 31.0, 64.0]),
        st.sampled_from([20.0, 100.0, 1000.0]),
    ),
    max_size=60,
)


@settings(max_examples=400)
@given(MOVES)
def test_the_queue_behaves_like_a_list_that_is_searched(
    moves: list[tuple[str, str, str, int, str, float, float]],
) -> None:
    queue, model, now = Queue[str](), Model(), 0.0
    for n, (move, op, caller, priority, only, seconds, life) in enumerate(moves):
        now += seconds
        late = [e for e in model.entries if e.deadline <= now]
        model.entries = [e for e in model.entries if e.deadline > now]
        if late:
            model.forget()
        assert sorted(e.item for e in queue.expire(now)) == sorted(e.item for e in late)
        match move:
            case "add":
                new = entry(str(n), caller, op, priority, now + life, only)
                queue.add(new, now)
                model.entries.append(new)
                model.came[new.item] = now
            case "take":
                agent = only or "w@x/1"
                taken = queue.take(agent, {op}, yes, now)
                assert (taken.item if taken else None) == model.take(agent, op, now)
            case "remove" if model.entries:
                gone = model.entries.pop(n % len(model.entries))
                assert queue.remove(gone)
                model.forget()
            case _:
                pass

        assert len(queue) == len(model.entries)
        assert {e.item for e in queue} == {e.item for e in model.entries}
        assert queue.next_deadline() == min(
            (e.deadline for e in model.entries), default=float("inf")
        )
