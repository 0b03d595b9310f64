from __future__ import annotations

import pytest

from spinal.agents.provider import area


@pytest.mark.parametrize(
    "region, expected",
    [
        ("eu-west-1", "eu"),
        ("us-east-1", "us"),
        ("ca-central-1", "us"),
        ("ap-southeast-2", "ap"),
        ("sa-east-1", "sa"),
        ("me-south-1", "me"),
        ("af-south-1", "af"),
        ("fra1", "eu"),
        ("ams3", "eu"),
        ("nyc3", "us"),
        ("sgp1", "ap"),
        ("eu-central", "eu"),
        ("ap-south", "ap"),
        ("de-fra-2", "eu"),
        ("in-maa", "ap"),
        ("ams", "eu"),
        ("ewr", "us"),
        ("ORD", "us"),
        ("LON", "eu"),
        ("europe-west3", "eu"),
        ("RegionOne", ""),
        ("local", ""),
    ],
)
def test_the_name_of_a_region_tells_its_area(region: str, expected: str) -> None:
    assert area.of(region) == expected


def test_regions_are_wanted_by_name_or_area() -> None:
    assert area.wanted("fra1", "eu", ["eu"])
    assert area.wanted("fra1", "eu", ["nyc3", "FRA1"])
    assert area.wanted("anywhere", "", [])
    assert area.wanted("eu-west-1", "eu", ["eu-west"])
    assert area.wanted("local", area.ANYWHERE, ["mars"])
    assert not area.wanted("nyc3", "us", ["eu"])
    assert not area.wanted("eu-west-1", "eu", ["eu-w"])
