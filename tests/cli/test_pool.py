"""The verbs for machines: ``offers``, ``pool``, ``cost`` and ``sweep``, as people and programs see them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from spinal.bus import Client
from spinal.bus.errors import CallError
from spinal.cli import pool
from spinal.protocols import Problem

from .conftest import Program, Spinal, spinal_at, spinal_here

PROVIDERS = """
currency: EUR
rates: {USD: 0.5}
accounts:
  north: {driver: local, limit: 3, regions: [eu-north], sizes: {n-2: {cpu: 2, ram: 4G, price: 0.02}}}
  south:
    driver: local
    currency: USD
    regions: [eu-south, us-south]
    sizes: {s-2: {cpu: 2, ram: 4G, price: 0.05}, s-8: {cpu: 8, ram: 32G, price: 0.4}}
"""

POOL = "pool: web\nserver: {cpu: 1, ram: 1G, region: [eu]}\nsize: {min: 0, max: 4, start: 2}\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a home that is up, with two vendors and not a single machine."""
    place = tmp_path_factory.mktemp("pool") / "home"
    place.mkdir()
    (place / "providers.yaml").write_text(PROVIDERS)
    up = Program(place, "up", "--json")
    try:
        up.until(60, event="ready")
        spinal = spinal_at(place)
        for _ in range(60):
            if len({one["vendor"] for one in spinal("offers", "--json").json}) == 2:
                break
        else:
            raise AssertionError(f"the vendors did not come: {up.err}")
        yield place
    finally:
        assert up.end(timeout=60) == 0, up.err


@pytest.fixture
def spinal(home: Path) -> Spinal:
    return spinal_here(home)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    path.write_text(POOL)
    return path


def test_offers_are_listed_by_price_in_one_currency(spinal: Spinal) -> None:
    found = spinal("offers", "--cpu", "2", "--ram", "4G", "--region", "eu", "--json").json
    assert [(one["rank"], one["vendor"], one["type"], one["price"]) for one in found] == [
        (1, "north", "n-2", 0.02),
        (2, "south", "s-2", 0.025),
        (3, "south", "s-8", 0.2),
    ]
    for one in found:
        assert one["currency"] == "EUR" and one["source"] == "config" and one["age"] >= 0
        assert one["region"] in ("eu-north", "eu-south")


def test_what_was_passed_over_is_explained(spinal: Spinal) -> None:
    shown = spinal(
        "offers", "--cpu", "4", "--ram", "8G", "--region", "eu", "--count", "3", "--explain"
    )
    assert shown.code == 0 and shown.out.startswith("1\tsouth\teu-south\ts-8")
    assert "3 of the cheapest: 0.6 EUR an hour" in shown.err
    assert re.search(r"\d+ .*too (few processors|small)", shown.out)
    as_json = spinal("offers", "--cpu", "4", "--explain", "--json").json
    assert set(as_json) >= {"offers", "rejected"}


def test_what_nobody_has_says_what_comes_nearest(spinal: Spinal, tmp_path: Path) -> None:
    shown = spinal("offers", "--cpu", "64")
    assert shown.code == 0 and shown.out == ""
    assert "no offer has 64 cpu; the largest is s-8 at south" in shown.err
    large = tmp_path / "large.yaml"
    large.write_text("pool: large\nserver: {cpu: 64, ram: 1G}\n")
    done = spinal("pool", "apply", str(large), "--yes")
    assert done.code != 0 and "the largest is s-8 at south" in done.line
    mars = tmp_path / "mars.yaml"
    mars.write_text("pool: mars\nserver: {cpu: 1, ram: 1G, region: [mars]}\n")
    done = spinal("pool", "plan", str(mars))
    assert done.code != 0 and "no offer is in mars" in done.line and "eu-north" in done.line


def test_a_plan_is_exact_and_rents_nothing(spinal: Spinal, file: Path) -> None:
    plan = spinal("pool", "plan", str(file), "--json").json
    assert plan["machines"][0]["vendor"] == "north" and plan["machines"][0]["count"] == 2
    assert plan["price"] == pytest.approx(0.04) and plan["bound"] == pytest.approx(0.04)
    assert len(plan["hash"]) == 64 and isinstance(plan["rejected"], list)
    assert spinal("pool", "plan", str(file), "--json").json["hash"] == plan["hash"]
    shown = spinal("pool", "plan", str(file))
    assert "2\tnorth\teu-north\tn-2\t0.02 EUR" in shown.out and plan["hash"][:12] in shown.out
    assert spinal("pool", "list", "--json").json == {"items": []}


def test_without_a_terminal_spending_has_to_be_said_yes_to(spinal: Spinal, file: Path) -> None:
    done = spinal("pool", "apply", str(file))
    assert done.code == 2 and "add --yes" in done.err
    done = spinal("pool", "apply", str(file), "--hash", "0" * 64)
    assert done.code == 1 and "the plan has changed" in done.line


def test_mistakes_of_a_file_are_told_with_line_and_key(spinal: Spinal, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "pool: Web\nserver: {cpu: four, ram: 8G}\nsize: {min: 3, max: 1}\nlife: {agents: [no.py]}\n"
    )
    done = spinal("pool", "plan", str(path))
    lines = done.err.splitlines()
    assert done.code != 0
    for line, key in ((1, "pool"), (2, "server.cpu")):
        assert any(f"bad.yaml:{line}: {key}:" in one for one in lines), lines
    assert spinal("pool", "plan", str(tmp_path / "none.yaml")).line.endswith(
        "give the path of a YAML file"
    )


def test_a_budget_in_a_currency_without_a_rate_is_told(spinal: Spinal, tmp_path: Path) -> None:
    path = tmp_path / "francs.yaml"
    path.write_text(POOL + "money: {max_per_hour: 1, currency: CHF}\n")
    done = spinal("pool", "plan", str(path))
    assert done.code != 0 and "CHF" in done.line and "rates" in done.line


def test_a_pool_that_there_is_not_is_one_clear_line(spinal: Spinal) -> None:
    for verb in ("show", "down", "drain", "replace", "freeze"):
        done = spinal("pool", verb, "nothing", *(["--yes"] if verb != "show" else []))
        assert done.code == 1 and "there is no pool nothing" in done.line, verb


def test_one_without_machines_is_down_at_once(spinal: Spinal, file: Path) -> None:
    file.write_text(POOL.replace("start: 2", "start: 0"))
    assert spinal("pool", "apply", str(file), "--yes", "--json").json["converged"]
    down = spinal("pool", "down", "web", "--yes", "--json")
    assert down.code == 0, down.err
    assert (down.json["phase"], down.json["exist"], down.json["converged"]) == ("down", 0, True)


async def test_one_that_is_forgotten_before_it_is_looked_at_is_down_as_well() -> None:
    class Forgetful:
        async def ask_dispatcher(self, op: str, **arguments: Any) -> Any:
            raise CallError.of(Problem("refused", "there is no pool web", "name"))

    bus, row = cast("Client", Forgetful()), {"name": "web", "short": "", "ready": 1, "wanted": 0}
    found = await pool.converged(bus, {**row, "phase": "down", "converged": False}, 5.0)
    assert (found["converged"], found["exist"], found["ready"]) == (True, 0, 0)

    with pytest.raises(CallError, match="no pool web"):
        await pool.converged(bus, {**row, "phase": "drained", "converged": False}, 5.0)


def test_the_bill_and_the_sweep_are_empty_where_nothing_was_rented(spinal: Spinal) -> None:
    bill = spinal("cost", "--by", "vendor,label,pool", "--since", "7d", "--json").json
    assert bill["rows"] == [] and bill["spent"] == 0 and bill["forecast"] == 0
    assert spinal("cost", "--by", "colour").code == 2
    swept = spinal("sweep", "--json")
    assert swept.code == 0
    assert swept.json["orphans"] == [] == swept.json["missing"]
    assert "nothing to sweep" in spinal("sweep").err
