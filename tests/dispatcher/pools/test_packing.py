"""Mixed jobs are packed for little money, with a bound that holds."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from benchmarks import packing as benchmark
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spinal.agents.provider.offer import Offer
from spinal.dispatcher.pools.packing import Job, Packing, Unplaceable, pack
from spinal.dispatcher.pools.packing.pack import first_fit_price, room

from .market import GIB, offer

SMALL = offer("a", "small", 2, 4, 0.04)
LARGE = offer("a", "large", 16, 32, 0.30)
MEMORY = offer("b", "memory", 2, 16, 0.09)
ARM = offer("b", "arm", 4, 8, 0.05, arch="arm64")
OFFERS = [SMALL, LARGE, MEMORY, ARM]

jobs = st.lists(
    st.builds(
        Job,
        cpu=st.sampled_from([0.25, 0.5, 1, 1.5, 2, 4]),
        ram=st.sampled_from([GIB // 2, GIB, 2 * GIB, 3 * GIB, 8 * GIB]),
        count=st.integers(1, 4),
        arch=st.sampled_from(["any", "any", "x86_64", "arm64"]),
    ),
    min_size=1,
    max_size=5,
)
offers = st.lists(
    st.builds(
        offer,
        st.sampled_from("abc"),
        st.just("t"),
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([2, 4, 8, 16]),
        st.integers(1, 100).map(lambda cents: cents / 100),
        arch=st.sampled_from(["x86_64", "x86_64", "arm64"]),
        cap=st.none() | st.integers(0, 6),
    ),
    min_size=1,
    max_size=6,
)


def check(
    found: Packing,
    wanted: Sequence[Job],
    market: Sequence[Offer],
    limits: dict[str, int] | None = None,
) -> None:
    """Every job once, nothing too full, caps kept, the price that of what is bought."""
    placed: Counter[int] = Counter()
    for carrier in found.carriers:
        assert carrier.offer is not None
        on = market[carrier.offer]
        for place, count in carrier.jobs:
            assert count > 0
            assert wanted[place].arch in ("any", on.arch)
            placed[place] += count
        assert sum(wanted[place].cpu * count for place, count in carrier.jobs) <= on.cpu + 1e-9
        assert sum(wanted[place].ram * count for place, count in carrier.jobs) <= on.ram
    assert placed == {place: job.count for place, job in enumerate(wanted)}
    for place, count in found.purchases.items():
        cap = market[place].cap
        assert cap is None or count <= cap
    for vendor, most in (limits or {}).items():
        assert sum(n for at, n in found.purchases.items() if market[at].vendor == vendor) <= most
    price = sum(market[place].price * n for place, n in found.purchases.items())
    assert found.price == pytest.approx(price)
    assert 0 <= found.bound <= found.price + 1e-9
    gap = found.price / found.bound - 1 if found.bound else 0.0
    assert found.gap == pytest.approx(gap, abs=1e-7)


def packed_or_none(wanted: Sequence[Job], market: Sequence[Offer], **more: Any) -> Packing | None:
    try:
        return pack(wanted, market, seconds=2.0, **more)
    except Unplaceable:
        return None


@pytest.mark.parametrize("solve", [True, False])
def test_whatever_is_packed_is_packed_right(solve: bool) -> None:
    @given(jobs, offers, st.none() | st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)))
    @settings(deadline=None, max_examples=60)
    def check_any(wanted: list[Job], market: list[Offer], limits: dict[str, int] | None) -> None:
        found = packed_or_none(wanted, market, limits=limits, solve=solve)
        assume(found is not None)
        assert found is not None
        check(found, wanted, market, limits)
        first_fit = None if limits else first_fit_price(wanted, market)
        assert first_fit is None or found.price <= first_fit + 1e-9

    check_any()


def test_the_bounds_of_both_ways_hold_for_the_prices_of_both() -> None:
    @given(jobs, offers)
    @settings(deadline=None, max_examples=60)
    def check_any(wanted: list[Job], market: list[Offer]) -> None:
        solved = packed_or_none(wanted, market, solve=True)
        greedy = packed_or_none(wanted, market, solve=False)
        assume(solved is not None and greedy is not None)
        assert solved is not None and greedy is not None
        assert solved.price <= greedy.price + 1e-9
        assert greedy.bound <= solved.price + 1e-9
        assert greedy.bound <= solved.bound + 1e-6

    check_any()


def test_small_packings_are_as_cheap_as_trying_everything() -> None:
    single = st.builds(
        Job, cpu=st.sampled_from([0.5, 1, 2]), ram=st.sampled_from([GIB, 2 * GIB, 5 * GIB])
    )

    @given(st.lists(single, min_size=1, max_size=5), offers)
    @settings(deadline=None, max_examples=60)
    def check_any(wanted: list[Job], market: list[Offer]) -> None:
        least = everything(wanted, market)
        found = packed_or_none(wanted, market, solve=True, good=1e-6)
        if least is None:
            assert found is None
            return
        assert found is not None
        assert found.bound <= least + 1e-6
        assert found.price == pytest.approx(least)

    check_any()


def everything(wanted: Sequence[Job], market: Sequence[Offer]) -> float | None:
    """Give the least price by trying all ways to make groups of jobs, and all machines for each."""
    best: float | None = None
    for groups in partitions(list(range(len(wanted)))):
        fitting = [
            [
                place
                for place, on in enumerate(market)
                if sum(wanted[job].cpu for job in group) <= on.cpu
                and sum(wanted[job].ram for job in group) <= on.ram
            ]
            for group in groups
        ]
        for choice in itertools.product(*fitting):
            counts = Counter(choice)
            if all((cap := market[at].cap) is None or n <= cap for at, n in counts.items()):
                price = sum(market[at].price for at in choice)
                best = price if best is None else min(best, price)
    return best


def partitions(items: list[int]) -> list[list[list[int]]]:
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    found: list[list[list[int]]] = []
    for groups in partitions(rest):
        found.append([[first], *groups])
        found += [[*groups[:n], [first, *groups[n]], *groups[n + 1 :]] for n in range(len(groups))]
    return found


# -- the numbers that were promised


@pytest.mark.parametrize("count", [20, 60, 200, 1000])
def test_the_gap_is_at_most_one_hundredth(count: int) -> None:
    wanted, market = benchmark.jobs(count), benchmark.offers()

    found = pack(wanted, market)

    check(found, wanted, market)
    assert found.gap <= 0.01, found.method
    first_fit = first_fit_price(wanted, market)
    assert first_fit is not None and found.price < first_fit


def test_twenty_jobs_are_proven_to_be_as_cheap_as_can_be() -> None:
    found = pack(benchmark.jobs(20), benchmark.offers())

    assert round(found.price, 4) == 0.4463
    assert found.gap <= 0.002


def test_the_same_input_gives_the_same_packing() -> None:
    wanted, market = benchmark.jobs(60, seed=3), benchmark.offers()

    assert pack(wanted, market) == pack(wanted, market)


# -- single properties


def test_processors_of_another_kind_are_not_taken_for_each_other() -> None:
    found = pack([Job(cpu=4, ram=8 * GIB, arch="x86_64")], OFFERS)

    assert found.purchases == {1: 1}
    assert pack([Job(cpu=4, ram=8 * GIB)], OFFERS).purchases == {3: 1}


def test_what_runs_is_used_first_and_costs_nothing() -> None:
    running = [room(2, 4 * GIB, "x86_64"), room(2, 4 * GIB, "x86_64")]

    found = pack([Job(cpu=1, ram=2 * GIB, count=5)], [SMALL], running=running)

    assert found.price == found.bound == SMALL.price
    assert sorted(each.running for each in found.carriers if each.running is not None) == [0, 1]


def test_without_the_solver_the_method_says_so() -> None:
    found = pack([Job(cpu=1, ram=2 * GIB, count=5)], OFFERS, solve=False)

    assert "install spinal[packing]" in found.method
    assert found.bound > 0


def test_sizes_that_divide_into_nothing_round_are_packed_as_well() -> None:
    wanted = [Job(cpu=0.337 + n * 0.013, ram=GIB + n * 7_777_777, count=3) for n in range(12)]

    found = pack(wanted, OFFERS, solve=True, seconds=5)

    check(found, wanted, OFFERS)
    assert found.gap < 0.5


def test_nothing_to_pack_costs_nothing() -> None:
    assert pack([], OFFERS).price == 0


@pytest.mark.parametrize(
    ("wanted", "market", "said"),
    [
        (Job(cpu=64, ram=GIB), OFFERS, "carries a job of 64 cpu and 1G"),
        (Job(cpu=4, ram=GIB, arch="arm64"), [SMALL, LARGE], "carries a job of 4 cpu"),
        (Job(cpu=2, ram=GIB, count=3), [offer("a", "x", 2, 4, 1.0, cap=2)], "no way was found"),
    ],
)
@pytest.mark.parametrize("solve", [True, False])
def test_jobs_that_find_no_machine_are_told(
    wanted: Job, market: list[Offer], said: str, solve: bool
) -> None:
    with pytest.raises(Unplaceable, match=said):
        pack([wanted], market, solve=solve)


def test_the_solver_does_not_write_to_the_standard_output() -> None:
    code = (
        "from benchmarks import packing as b; from spinal.dispatcher.pools.packing import pack;"
        "pack(b.jobs(20), b.offers(), solve=True)"
    )

    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    assert ended.stdout == b""


def test_the_package_is_imported_without_the_solver() -> None:
    code = "import spinal.dispatcher.pools.plan, sys; sys.exit('highspy' in sys.modules or 'numpy' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
