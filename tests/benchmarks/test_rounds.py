"""How a round is measured, and that rounds of several take turns."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from benchmarks.bench import Bench, Plan
from benchmarks.children import Asked
from benchmarks.contender import Ask, Contender, in_turn
from benchmarks.rounds import alone, together


class Scripted:
    """A caller that answers at once and remembers what it was asked."""

    trips = ("one", "two")

    def __init__(self, asked: list[tuple[str, Any]]) -> None:
        self._asked = asked

    async def ask(self, measure: str, **question: Any) -> tuple[float, int]:
        self._asked.append((measure, question))
        return float(len(self._asked)), 10


def contender(asked: list[tuple[str, Any]]) -> Contender:
    return Contender("scripted", cast(Asked, Scripted(asked)), {})


async def test_alone_one_trip_is_under_way() -> None:
    under_way = most = 0

    async def trip() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    median, made = await alone(trip, 0.02)
    assert (most, made > 1, median < 20) == (1, True, True)


async def test_together_so_many_are_under_way_and_all_of_them_count() -> None:
    under_way = most = ended = 0

    async def trip() -> None:
        nonlocal under_way, most, ended
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        ended += 1

    rate, made = await together(trip, 0.02, 8)
    assert (most, under_way, made) == (8, 0, ended)
    assert rate > 0


async def test_rounds_take_turns_and_the_first_of_each_does_not_count() -> None:
    asked: list[tuple[str, Any]] = []
    here = contender(asked)
    asks = {name: Ask(here, name, {"seconds": 2.0}) for name in ("a", "b")}
    found = await in_turn(asks, 2, lambda text: None, seconds=0.5)

    assert [(name, question["seconds"]) for name, question in asked] == [
        *(("a", 0.5), ("b", 0.5)),
        *(("a", 2.0), ("b", 2.0), ("a", 2.0), ("b", 2.0)),
    ]
    assert {name: [made.value for made in rounds] for name, rounds in found.items()} == {
        "a": [3.0, 5.0],
        "b": [4.0, 6.0],
    }


async def test_the_best_of_several_is_the_one_that_counts() -> None:
    asked: list[tuple[str, Any]] = []
    here = contender(asked)
    plan = Plan(cast(Bench, _Quiet()))
    label = await plan.best("best", {"early": Ask(here, "a"), "late": Ask(here, "b")})

    assert label == "late"
    assert plan.asks["best"].measure == "b"


def test_what_cannot_be_measured_says_why() -> None:
    plan = Plan(cast(Bench, _Quiet()))
    plan.add("one", contender([]), "alone", trip="one")
    plan.add("three", contender([]), "alone", trip="three")
    plan.add("peer", "nats-py is missing", "alone", trip="request")

    assert list(plan.asks) == ["one"]
    assert plan.absent["peer"] == "nats-py is missing"
    assert plan.absent["three"].startswith("not measurable: ")


class _Quiet:
    quick = True

    def say(self, text: str) -> None:
        pass
