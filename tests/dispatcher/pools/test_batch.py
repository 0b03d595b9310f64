import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinal.dispatcher.pools.batch import SPARE, Batch, TooMuch, choose, finished

CHEAP, DEAR = 0.018, 0.0276
PRICES = [CHEAP] * 2 + [DEAR] * 6


def batch(**given: float) -> Batch:
    wanted = {"inputs": 300, "each": 2.0, "left": 600.0, **given}
    return Batch(**wanted)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_it_takes_as_few_machines_as_meet_the_deadline() -> None:
    # 300 times 2 s and a quarter are 750 s of work.
    found = choose(batch(), PRICES, most=8)
    assert (found.machines, found.seconds) == (2, 375.0)
    assert choose(batch(left=750), PRICES, most=8).machines == 1
    assert choose(batch(left=749), PRICES, most=8).machines == 2


def test_the_cheapest_are_taken_whatever_order_they_come_in() -> None:
    found = choose(batch(left=260), PRICES[::-1], most=8)
    assert found.machines == 3
    assert found.price == pytest.approx(2 * CHEAP + DEAR)
    assert found.cost == pytest.approx(found.price * 250 / 3600)


def test_slots_work_side_by_side() -> None:
    assert choose(batch(slots=4, left=188), PRICES, most=8).machines == 1


def test_a_machine_that_starts_does_nothing_yet() -> None:
    assert finished(batch(start=100), 1) == 850
    assert finished(batch(start=100), 2) == 475
    # One that is there has done 100 s of the 750 by then.
    assert finished(batch(start=100), 2, there=1) == 425
    assert finished(batch(start=1000), 2, there=1) == 750


def test_one_input_is_never_done_by_halves() -> None:
    assert finished(batch(inputs=1, each=40), 8) == 40 * (1 + SPARE)


@pytest.mark.parametrize(
    ("changes", "bounds", "words"),
    [
        (
            {"left": 60},
            {"most": 8},
            r"300 inputs of 2s each are not done in 60s: 8 machines take 94s, and 8 is the most",
        ),
        (
            {"left": 60},
            {"most": 20},
            "8 machines take 94s, and there are no more than 8",
        ),
        (
            {"left": 200},
            {"most": 8, "per_hour": 0.07},
            "3 machines take 4m10s, and more than 3 would cost more than 0.07 an hour",
        ),
        (
            {},
            {"most": 8, "per_hour": 0.01},
            "the cheapest machine costs 0.018 an hour, and the most is 0.01",
        ),
        ({"left": 700}, {"most": 1}, "1 machine takes 12m30s, and 1 is the most"),
    ],
)
def test_what_cannot_be_says_what_it_would_take(
    changes: dict[str, float], bounds: dict[str, float], words: str
) -> None:
    with pytest.raises(TooMuch, match=words):
        choose(batch(**changes), PRICES, **bounds)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_without_an_offer_there_is_nothing_to_choose() -> None:
    with pytest.raises(TooMuch, match="no machine is to be had"):
        choose(batch(), [], most=8)


def test_a_bound_that_is_met_exactly_is_met() -> None:
    assert choose(batch(left=100), [0.1] * 10, most=10, per_hour=0.8).machines == 8


@pytest.mark.parametrize("member", ["inputs", "each", "left", "slots"])
def test_nothing_is_no_batch(member: str) -> None:
    with pytest.raises(ValueError, match="more than nothing"):
        batch(**{member: 0})


@given(
    inputs=st.integers(1, 5000),
    each=st.floats(0.01, 100),
    left=st.floats(1, 10_000),
    start=st.floats(0, 300),
    slots=st.integers(1, 8),
    prices=st.lists(st.floats(0.001, 5), min_size=1, max_size=12),
    per_hour=st.floats(0.001, 20),
)
def test_what_is_chosen_keeps_every_bound_and_one_machine_less_would_be_late(
    inputs: int,
    each: float,
    left: float,
    start: float,
    slots: int,
    prices: list[float],
    per_hour: float,
) -> None:
    work = Batch(inputs=inputs, each=each, left=left, start=start, slots=slots)
    try:
        found = choose(work, prices, most=10, per_hour=per_hour)
    except TooMuch:
        able = [
            n for n in range(1, min(10, len(prices)) + 1) if sum(sorted(prices)[:n]) <= per_hour
        ]
        assert all(finished(work, n) > left for n in able)
    else:
        assert found.seconds <= left
        assert found.price <= per_hour + 1e-6
        assert found.machines == 1 or finished(work, found.machines - 1) > left
