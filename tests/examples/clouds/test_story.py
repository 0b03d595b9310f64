"""The story of examples/clouds, with real processes: nothing of it is played."""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from spinal.agents.files import load_module
from spinal.agents.provider.settings import Providers
from spinal.dispatcher.pools import document

EXAMPLE = Path(__file__).parents[3] / "examples" / "clouds"
JOBS = 300

#: Processes of ten programs, and jobs of a minute of one processor.
pytestmark = pytest.mark.timeout(400)


def alive(home: Path) -> list[str]:
    """Give the command lines of the processes that belong to a home."""
    found: list[str] = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and place.name != str(os.getpid()):
            with suppress(OSError):
                if str(home).encode() in (place / "environ").read_bytes():
                    found.append((place / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    """The script, loaded as a module."""
    yield load_module(EXAMPLE / "story.py")


@pytest.fixture(scope="module")
def story(module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give the story as it was after it was told once."""
    told = module.Story(tmp_path_factory.mktemp("clouds"), JOBS)
    told.play()
    return told


def about(story: Any, what: str) -> list[Any]:
    return [one for one in story.events if one["what"] == what]


def vendors(story: Any) -> list[str]:
    """Give the vendors of the machines that came to be, in the order in which they were ordered."""
    there = [one for one in story.machines.values() if one.get("began")]
    return [one["vendor"] for one in sorted(there, key=lambda one: one["created"])]


def seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def test_every_photograph_is_there_and_has_the_width(story: Any) -> None:
    found = sorted(story.small.iterdir())
    assert len(found) == JOBS
    assert {file.stem for file in found} == {file.stem for file in story.album.iterdir()}
    for file in found:
        with Image.open(file) as image:
            assert (image.format, image.width) == ("WEBP", 800)


def test_the_cheaper_vendor_is_filled_first_and_then_the_other_one(story: Any) -> None:
    assert vendors(story)[:3] == ["north", "north", "south"]


def test_the_refusal_is_told_in_the_vendors_words(story: Any) -> None:
    (first, *_) = about(story, "refused")
    assert first["said"] == ("north n-1: capacity: InsufficientCapacity: 2 of 2 oslo/n-1 are taken")
    south = [one for one in story.machines.values() if one["vendor"] == "south"]
    assert all(one["created"] > first["at"] for one in south)


def test_the_machine_that_was_killed_is_replaced(story: Any) -> None:
    (lost,) = about(story, "lost")
    assert lost["about"] == story.victim
    assert "killed" in lost["said"]
    later = [one for one in story.machines.values() if one["created"] > lost["at"]]
    assert later, "there was work for another one"


def test_nothing_is_left_of_the_machines(story: Any) -> None:
    for account in Providers.load(EXAMPLE / "providers.yaml").accounts:
        machines = story.home / "machines" / account / "machines"
        assert not machines.exists() or not list(machines.iterdir())
    assert alive(story.home) == []
    assert (story.swept["orphans"], story.swept["missing"]) == ([], [])


def test_the_bill_is_prices_times_time(story: Any) -> None:
    costs = {one["key"][0]: one for one in story.each["rows"]}
    there = {name: one for name, one in story.machines.items() if one.get("began")}
    assert costs.keys() == there.keys()
    gone = {one["about"]: seconds(one["at"]) for one in about(story, "returned")}
    for name, one in there.items():
        lived = max(60.0, gone[name] - seconds(one["began"]))
        assert costs[name]["hours"] * 3600 == pytest.approx(lived, abs=2)
        assert costs[name]["spent"] == pytest.approx(costs[name]["hours"] * one["price"])
    whole = sum(one["spent"] for one in costs.values())
    assert sum(one["spent"] for one in story.bill["rows"]) == pytest.approx(whole)
    assert story.bill["spent"] == pytest.approx(whole)
    assert [one["key"][1] for one in story.bill["rows"]] == ["photos", "photos"]
    assert all(one["hourly"] == 0 for one in story.bill["rows"])


def test_the_pool_file_is_one_that_scales_to_zero_within_its_budget() -> None:
    spec = document.load(EXAMPLE / "pool.yaml")
    prices = [
        size.price
        for one in Providers.load(EXAMPLE / "providers.yaml").accounts.values()
        for size in one.sizes
    ]
    assert spec.size.min == spec.size.start == 0
    assert spec.money.max_per_hour is not None
    assert spec.size.max * max(prices) < spec.money.max_per_hour
