"""What a refusal blocks and for how long, and how many machines may be asked for at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinal.dispatcher.pools import launches
from spinal.dispatcher.pools.launches import MAX_AT_ONCE, Launches, Offering
from spinal.dispatcher.pools.machine import Machine, State

NOW = 1_795_870_800_000
SMALL = ("aws", "eu-west-1", "t3.small")
LARGE = ("aws", "eu-west-1", "t3.large")
AWAY = ("aws", "us-east-1", "t3.small")
OTHER = ("ocean", "fra1", "s-2vcpu-4gb")


def blocks(kind: str, after: float | None = None) -> list[Offering]:
    found = Launches().refused(SMALL, kind, "no", NOW, after)
    return [each for each in (SMALL, LARGE, AWAY, OTHER) if not found.room(each, 0, NOW)]


def seconds(found: Launches, now: int = NOW) -> float:
    block = found.block(SMALL, now)
    return 0.0 if block is None else (block.until - now) / 1000


@pytest.mark.parametrize(
    ("kind", "blocked", "first"),
    [
        ("capacity", [SMALL], 180),
        ("invalid", [SMALL], 3600),
        ("transient", [SMALL], 15),
        ("unknown", [SMALL], 15),
        ("a kind of next year", [SMALL], 15),
        ("quota", [SMALL, LARGE], 900),
        ("rate", [SMALL, LARGE, AWAY], 10),
        ("auth", [SMALL, LARGE, AWAY], 600),
    ],
)
def test_a_refusal_blocks_what_it_is_about(
    kind: str, blocked: list[Offering], first: float
) -> None:
    assert blocks(kind) == blocked
    found = Launches().refused(SMALL, kind, "no", NOW)
    assert seconds(found) == first
    assert found.room(SMALL, 0, NOW + round(first * 1000)) == 1


def test_each_refusal_after_a_block_blocks_twice_as_long_up_to_a_bound() -> None:
    found, now, lasted = Launches(), NOW, list[float]()
    for _ in range(6):
        found = found.refused(SMALL, "capacity", "no", now)
        lasted.append(seconds(found, now) / 60)
        now += round(seconds(found, now) * 1000)
    assert lasted == [3, 6, 12, 24, 30, 30]

    found = found.refused(SMALL, "capacity", "no", now + 31 * 60_000 + 3_600_000)
    assert seconds(found, now + 31 * 60_000 + 3_600_000) == 180, "that was long ago"


def test_refusals_of_machines_that_were_asked_for_together_count_once() -> None:
    found = Launches()
    for milliseconds in range(8):
        found = found.refused(SMALL, "capacity", "no", NOW + milliseconds)

    assert seconds(found) == pytest.approx(180, abs=0.01)


def test_the_pause_that_a_vendor_asks_for_is_kept() -> None:
    assert seconds(Launches().refused(SMALL, "rate", "slow down", NOW, after=42)) == 42
    assert seconds(Launches().refused(SMALL, "rate", "slow down", NOW, after=0)) == 1
    forever = Launches().refused(SMALL, "rate", "slow down", NOW, after=1e9)
    assert seconds(forever) == launches.MAX_AFTER


def test_the_words_of_the_vendor_are_kept_and_bounded() -> None:
    found = Launches().refused(SMALL, "capacity", "InsufficientInstanceCapacity", NOW)
    found = found.refused(OTHER, "auth", "x" * 9999, NOW)

    kept = found.blocked(NOW)
    assert kept[SMALL].said == "InsufficientInstanceCapacity"
    assert kept["ocean", "", ""].kind == "auth"
    assert len(kept["ocean", "", ""].said) == launches.MAX_SAID
    assert set(found.blocked(NOW + 180_000)) == {("ocean", "", "")}


def test_of_several_blocks_the_longest_is_named() -> None:
    found = Launches().refused(SMALL, "invalid", "no such type", NOW)
    found = found.refused(SMALL, "auth", "wrong key", NOW)

    block = found.block(SMALL, NOW)
    assert block is not None and block.said == "no such type"
    other = found.block(LARGE, NOW)
    assert other is not None and other.said == "wrong key"


def test_what_may_be_asked_for_at_once_doubles_with_success_and_is_one_after_a_refusal() -> None:
    found, rooms = Launches(), list[int]()
    for _ in range(6):
        rooms.append(found.room(SMALL, 0, NOW))
        found = found.launched(SMALL, NOW)
    assert rooms == [1, 2, 4, 8, 16, MAX_AT_ONCE]
    assert found.room(SMALL, 5, NOW) == MAX_AT_ONCE - 5
    assert found.room(SMALL, 99, NOW) == 0

    found = found.refused(SMALL, "transient", "500", NOW)
    assert found.room(SMALL, 0, NOW + 15_000) == 1


def test_a_refusal_that_is_about_a_vendor_takes_back_all_of_its_budgets() -> None:
    found = Launches().launched(SMALL, NOW).launched(AWAY, NOW).launched(OTHER, NOW)
    found = found.refused(SMALL, "rate", "slow down", NOW)

    later = NOW + 10_000
    assert [found.room(each, 0, later) for each in (SMALL, AWAY, OTHER)] == [1, 1, 2]


def test_success_forgets_blocks_that_are_over_and_keeps_those_in_force() -> None:
    found = Launches().refused(SMALL, "capacity", "no", NOW)

    assert found.launched(SMALL, NOW + 1000).room(SMALL, 0, NOW + 1000) == 0
    later = NOW + 180_000
    again = found.launched(SMALL, later).refused(SMALL, "capacity", "no", later)
    assert seconds(again, later) == 180


def test_machines_without_an_answer_are_counted_by_offering() -> None:
    def machine(number: int, state: State) -> Machine:
        return Machine(
            name=f"web-{number}",
            pool="web",
            state=state,
            since=NOW,
            vendor="aws",
            region="eu-west-1",
            type="t3.small",
            price=1.0,
            currency="EUR",
            created=NOW,
            expires=NOW,
        )

    assert launches.asked(machine(*each) for each in enumerate(State)) == {SMALL: 2}


def test_what_is_kept_is_bounded() -> None:
    found = Launches()
    for number in range(launches.MAX_KEPT + 3):
        offering = ("aws", "eu-west-1", f"t{number}")
        found = Launches(
            {**found.blocks, offering: launches.Block(NOW + number, "capacity", "no")},
            {**found.at_once, offering: 2},
        )
    found = found.launched(SMALL, NOW).refused(LARGE, "capacity", "no", NOW)

    assert len(found.blocks) == launches.MAX_KEPT
    assert len(found.at_once) == launches.MAX_KEPT
    assert found.room(LARGE, 0, NOW) == 0


EVENTS = st.lists(
    st.tuples(
        st.sampled_from([SMALL, LARGE, AWAY, OTHER]),
        st.sampled_from(
            ["launched", "capacity", "quota", "auth", "rate", "invalid", "transient", "unknown"]
        ),
        st.none() | st.floats(0, 1e6),
        st.integers(0, 3_600_000),
    ),
    max_size=50,
)


@settings(deadline=None)
@given(EVENTS)
def test_a_block_is_never_made_shorter_and_budgets_stay_within_bounds(
    events: list[tuple[Offering, str, float | None, int]],
) -> None:
    found, now = Launches(), NOW
    for offering, what, after, passed in events:
        now += passed
        before = found.blocked(now)
        if what == "launched":
            found = found.launched(offering, now)
        else:
            found = found.refused(offering, what, "no", now, after)
            assert found.room(offering, 0, now) == 0
        blocked = found.blocked(now)
        assert all(blocked[key].until >= block.until for key, block in before.items())
        for each in (SMALL, LARGE, AWAY, OTHER):
            rooms = [found.room(each, asked, now) for asked in range(MAX_AT_ONCE + 2)]
            assert rooms == sorted(rooms, reverse=True)
            assert 0 <= rooms[-1] <= rooms[0] <= MAX_AT_ONCE
            block = found.block(each, now)
            assert (block is None) == (rooms[0] > 0)
            if block is not None:
                assert found.room(each, 0, now + 7_200_001) >= 1


def test_that_several_types_do_not_take_an_image_is_taken_to_be_so_of_all_of_that_vendor() -> None:
    found = Launches()
    for number in range(launches.MAX_UNFIT):
        assert found.room(SMALL, 0, NOW)
        found = found.unfit(("aws", "us-east-1", f"type-{number}"), "no such image", NOW)
    block = found.block(SMALL, NOW)
    assert block is not None and (block.kind, block.said) == ("invalid", "no such image")
    assert found.room(OTHER, 0, NOW)


def test_one_type_that_does_not_take_an_image_says_nothing_about_the_others() -> None:
    found = Launches()
    for _ in range(2 * launches.MAX_UNFIT):
        found = found.unfit(SMALL, "no such image", NOW)
    assert not found.room(SMALL, 0, NOW)
    assert found.room(LARGE, 0, NOW)
