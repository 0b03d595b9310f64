"""Offers of all vendors are put in order by price, and what is not taken has a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinal.agents.provider import area
from spinal.agents.provider.offer import Offer
from spinal.dispatcher.pools.ranking import block_of, nearest, rank
from spinal.dispatcher.pools.spec import Server

from .market import GIB, HOME, NOW, offer

SMALL = offer("ocean", "s4", 4, 8, 0.07)
DOLLARS = offer("aws", "m4", 4, 16, 0.12, "eu-west-1", currency="USD")
LARGE = offer("aws", "m192", 192, 768, 9.68, "us-east-1")
ARM = offer("aws", "m4g", 4, 8, 0.05, "eu-west-1", arch="arm64")


def server(**more: Any) -> Server:
    given: dict[str, Any] = {"cpu": 4, "ram": 8 * GIB, **more}
    return Server(**given)


def types(offers: list[Offer], **more: Any) -> list[str]:
    return [each.offer.type for each in rank(offers, HOME, server(**more), NOW).offers]


def test_the_cheapest_in_one_currency_is_the_first() -> None:
    found = rank([LARGE, SMALL, DOLLARS], HOME, server(), NOW).offers

    assert [(each.rank, each.offer.type, each.offer.price) for each in found] == [
        (1, "m4", 0.06),
        (2, "s4", 0.07),
        (3, "m192", 9.68),
    ]
    assert (found[0].offer.currency, found[0].listed) == ("EUR", DOLLARS)


@given(st.permutations([SMALL, DOLLARS, LARGE, ARM, offer("b", "s4", 4, 8, 0.07)]))
@settings(deadline=None)
def test_the_order_does_not_depend_on_who_answered_first(offers: list[Offer]) -> None:
    assert types(offers) == ["m4g", "m4", "s4", "s4", "m192"]
    assert [each.offer.vendor for each in rank(offers, HOME, server(), NOW).offers[2:4]] == [
        "b",
        "ocean",
    ]


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (offer("a", "x", 2, 16, 0.01), "too small", "has 2 cpu, 16G"),
        (offer("a", "x", 4, 4, 0.01), "too small", "has 4 cpu, 4G"),
        (offer("a", "x", 4, 8, 0.01, disk=GIB), "too small", "1G of disk"),
        (ARM, "other arch", "is arm64"),
        (LARGE, "other region", "is in us-east-1"),
        (offer("a", "x", 4, 8, 0.01, currency="GBP"), "no rate", "0.0100 GBP"),
        (offer("a", "x", 4, 8, 0.0), "no price", "not known"),
        (offer("a", "x", 4, 8, float("nan")), "no price", "not known"),
        (offer("a", "x", 4, 8, -1.0), "no price", "not known"),
        (offer("a", "x", 4, 8, 2.0), "over budget", "2.00 EUR an hour"),
        (offer("blocked", "x", 4, 8, 0.01), "blocked", "for 1m: no capacity"),
    ],
)
def test_what_is_not_taken_has_a_reason(bad: Offer, reason: str, detail: str) -> None:
    wanted = server(arch="x86_64", region=("eu",), disk=20 * GIB)
    blocked = {("blocked", "", ""): (NOW + 60_000, "no capacity")}

    found = rank([bad, SMALL], HOME, wanted, NOW, blocked=blocked, most=1.0)

    (rejected,) = found.rejected
    assert [each.offer.type for each in found.offers] == ["s4"]
    assert (rejected.offer, rejected.reason) == (bad, reason)
    assert detail.replace("1m", "60s") in rejected.detail


def test_old_prices_are_marked_and_taken() -> None:
    old = offer("a", "x", 4, 8, 0.01, as_of=NOW - 31 * 86_400_000)

    first, second = rank([old, SMALL], HOME, server(), NOW).offers

    assert (first.stale, second.stale) == (True, False)
    assert first.age == 31 * 86_400


def test_rejected_offers_are_counted_with_examples() -> None:
    offers = [offer("a", f"x{n}", 1, 1, 0.01 * (n + 1)) for n in range(5)] + [LARGE]

    counted = rank(offers, HOME, server(region=("eu",)), NOW).counted()

    assert [(each["reason"], each["count"]) for each in counted] == [
        ("too small", 5),
        ("other region", 1),
    ]
    examples = counted[0]["examples"]
    assert examples == [f"x{n} at a in eu-1: has 1 cpu, 1G" for n in range(3)]


def test_rows_are_json() -> None:
    row = rank([DOLLARS], HOME, server(), NOW).offers[0].row()

    assert json.loads(json.dumps(row))["listed"] == {"price": 0.12, "currency": "USD"}


@pytest.mark.parametrize(
    ("region", "within"),
    [
        ("eu-west-1", True),
        ("EU-WEST-1", True),
        ("eu", True),
        ("eu-west", True),
        ("eu-w", False),
        ("us", False),
        ("west", False),
    ],
)
def test_a_region_is_named_whole_or_by_its_beginning_or_area(region: str, within: bool) -> None:
    assert area.wanted(DOLLARS.region, DOLLARS.area, [region]) is within


def test_an_area_is_known_where_the_name_does_not_say_it() -> None:
    assert area.wanted("fra1", "eu", ["eu"]) and area.wanted("local", area.ANYWHERE, ["eu"])


@pytest.mark.parametrize(
    ("key", "hit"),
    [
        (("aws", "", ""), True),
        (("aws", "eu-west-1", ""), True),
        (("aws", "eu-west-1", "m4"), True),
        (("aws", "eu-west-2", ""), False),
        (("aws", "eu-west-1", "m8"), False),
    ],
)
def test_a_block_covers_a_vendor_a_region_or_a_type(key: tuple[str, str, str], hit: bool) -> None:
    assert (block_of(DOLLARS, {key: (NOW + 1, "no")}, NOW) is not None) is hit
    assert block_of(DOLLARS, {key: (NOW, "no")}, NOW) is None


@pytest.mark.parametrize(
    ("offers", "wanted", "said"),
    [
        ([], server(), "there are no offers"),
        (
            [SMALL, LARGE],
            server(cpu=512),
            (
                "no offer has 512 cpu; the largest is m192 at aws in us-east-1 with 192 cpu 768G "
                "for 9.68 EUR/h"
            ),
        ),
        (
            [SMALL, LARGE],
            server(cpu=8, region=("eu",)),
            (
                "no offer in eu has 8 cpu; the largest is s4 at ocean in eu-1 with 4 cpu 8G "
                "for 0.0700 EUR/h"
            ),
        ),
        ([SMALL], server(ram=GIB * 4096), "no offer has 4096G of ram; the largest is s4"),
        (
            [offer("a", "c", 8, 4, 1.0), offer("a", "m", 2, 64, 1.0)],
            server(),
            "no offer has 4 cpu and 8G of ram; the nearest is",
        ),
        ([SMALL, LARGE], server(region=("eu-2",)), "did you mean eu-1 or eu?; there are eu, us"),
        ([SMALL], server(arch="arm64"), "no offer in any region is arm64: write arch: any"),
        (
            [offer("a", "x", 4, 8, 1.0, currency="GBP")],
            server(),
            "no rate from GBP to EUR",
        ),
        ([offer("a", "x", 4, 8, 0.0)], server(), "no offer that fits has a price"),
    ],
)
def test_for_what_is_impossible_the_nearest_is_told(
    offers: list[Offer], wanted: Server, said: str
) -> None:
    told = nearest(offers, HOME, wanted, NOW)

    assert said in told
    assert "\n" not in told


def test_where_all_is_blocked_the_vendors_words_are_told() -> None:
    blocked = {("ocean", "", ""): (NOW + 60_000, "quota: 3 of 3 droplets")}

    assert "quota: 3 of 3 droplets" in nearest([SMALL], HOME, server(), NOW, blocked=blocked)
