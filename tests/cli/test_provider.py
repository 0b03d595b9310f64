"""``spinal provider``, with a simulated vendor."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clouds.cloud import Clouds
from tests.clouds.vendor import TOKEN

from spinal.bus.home import Home

from .conftest import Program, Spinal, spinal_here, until


@pytest.fixture(scope="module")
def clouds() -> Iterator[Clouds]:
    with Clouds("digitalocean", "vultr") as clouds:
        yield clouds


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Spinal:
    Home.create(place)
    monkeypatch.setenv("CLOUD_TOKEN", TOKEN)
    return spinal_here(place)


def write(place: Path, text: str) -> Path:
    file = place / "providers.yaml"
    file.write_text(f"rates: {{USD: 0.9}}\n{text}")
    return file


def ocean(clouds: Clouds, more: str = "regions: [fra1]") -> str:
    url = clouds["digitalocean"].url
    return (
        "accounts:\n  ocean: {driver: digitalocean, token: {env: CLOUD_TOKEN}, "
        f"endpoint: '{url}', {more}}}\n"
    )


class TestCheck:
    def test_an_account_that_works_is_a_line(
        self, here: Spinal, place: Path, clouds: Clouds
    ) -> None:
        write(place, ocean(clouds))
        done = here("provider", "check")

        assert done.code == 0, done.err
        assert done.out.startswith("ocean: digitalocean: well: 11 types, 11 priced offers, ")
        [account] = here("provider", "check", "ocean", "--json").json["accounts"]
        assert account["ok"] and account["offers"] == 11 and account["machines"] == 0

    def test_mistakes_of_the_file_have_line_and_key(self, here: Spinal, place: Path) -> None:
        file = write(place, "accounts:\n  a: {driver: vultr, tokn: 1}\n  b: {driver: vultra}\n")
        done = here("provider", "check")

        assert done.code == 2
        first, second = done.err.replace("\n  ", " ").splitlines()
        assert first == f"{file}:3: accounts.a.tokn: is not known here: did you mean 'token'?"
        assert second.endswith("did you mean vultr?")
        told = here("provider", "check", "--json")
        assert [one["line"] for one in told.json["mistakes"]] == [3, 4]

    def test_a_secret_that_is_not_there_is_named(
        self, here: Spinal, place: Path, clouds: Clouds
    ) -> None:
        write(place, ocean(clouds).replace("CLOUD_TOKEN", "NOT_THERE"))
        done = here("provider", "check")

        assert done.code == 1
        assert "token: the secret {env: NOT_THERE} is not set" in done.err

    def test_a_wrong_key_is_told_in_the_vendors_words(
        self, here: Spinal, place: Path, clouds: Clouds
    ) -> None:
        write(place, ocean(clouds))
        done = here("provider", "check", CLOUD_TOKEN="quite-wrong-token")

        assert done.code == 1
        assert done.line.startswith("ocean: digitalocean: auth: ")
        assert "quite-wrong" not in done.err

    def test_an_unknown_region_is_told_with_those_that_are_near(
        self, here: Spinal, place: Path, clouds: Clouds
    ) -> None:
        write(place, ocean(clouds, "regions: [fra2, nyc3]"))
        done = here("provider", "check")

        assert done.code == 1
        assert "region 'fra2' is not known to the vendor: did you mean fra1" in done.err
        assert "nyc3'" not in done.err

    def test_a_vendor_that_is_not_reached_is_told(
        self, here: Spinal, place: Path, clouds: Clouds
    ) -> None:
        write(place, ocean(clouds).replace(clouds["digitalocean"].url, "http://127.0.0.1:9"))
        done = here("provider", "check")

        assert done.code == 1
        assert done.err.startswith("ocean: digitalocean: transient: ")

    def test_an_account_that_is_not_there_is_told(self, here: Spinal) -> None:
        done = here("provider", "check", "aws")

        assert (done.code, done.line) == (
            2,
            "spinal: no account 'aws' in providers.yaml, only local",
        )


class TestList:
    def test_without_a_file_there_is_this_machine(self, here: Spinal) -> None:
        [account] = here("provider", "--json").json

        assert (account["account"], account["driver"]) == ("local", "local")
        # There is no bus here.
        assert account["on"] is None


class TestInit:
    def test_it_writes_a_file_that_has_no_mistakes(self, here: Spinal, place: Path) -> None:
        assert here("provider", "init").code == 0
        assert [one["account"] for one in here("provider", "list", "--json").json] == ["local"]
        assert (place / "providers.yaml").stat().st_mode & 0o077 == 0

    def test_it_replaces_no_file(self, here: Spinal, place: Path) -> None:
        write(place, "accounts: {}\n")

        assert here("provider", "init").code == 2
        assert here("provider", "init", "--force").code == 0


class TestRun:
    def test_the_agent_of_an_account_is_on_the_bus_until_it_is_told_to_end(
        self, place: Path, clouds: Clouds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CLOUD_TOKEN", TOKEN)
        up = Program(place, "up", "--no-providers", "--json")
        try:
            up.until(event="ready")
            write(place, ocean(clouds))
            spinal = spinal_here(place)
            agent = Program(place, "provider", "run", "ocean", "--json")
            try:
                ready = agent.until(event="ready")
                assert ready["agent"].startswith("provider-ocean@")
                home = Home.find(place)
                made = spinal(
                    "call", "/provider/create", "name=web-aaaaaa", "type=s-1vcpu-1gb",
                    "region=fra1", "image=debian-12",
                )  # fmt: skip
                assert made.json["outcome"] == "created"
                assert made.json["machine"]["tags"] == {"spinal": home.id}
                shown = spinal("call", "/provider/list").json["machines"]
                assert [one["name"] for one in shown] == ["web-aaaaaa"]
                [listed] = spinal("provider", "list", "--json").json
                assert listed["on"] is True
                # A second one would have another name, by which nobody asks it.
                second = spinal("provider", "run", "ocean")
                assert second.code == 2 and "provider-ocean" in second.line
            finally:
                assert agent.end(signal.SIGTERM) == 0, agent.err
        finally:
            assert up.end() == 0, up.err

    def test_the_accounts_change_while_it_is_up_and_machines_stay(
        self, place: Path, clouds: Clouds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CLOUD_TOKEN", TOKEN)
        local = "accounts:\n  local: {driver: local, sizes: {s: {cpu: 1, ram: 1G, price: %s}}}\n"
        Home.create(place)
        write(place, local % "0.10")
        up = Program(place, "up", "--json")
        spinal = spinal_here(place)

        def prices() -> dict[str, float]:
            told = spinal("offers", "--cpu", "1", "--refresh", "--json")
            return {one["vendor"]: one["price"] for one in told.json} if told.code == 0 else {}

        try:
            up.until(event="ready")
            until(lambda: prices() == {"local": 0.10}, 60)
            made = spinal(
                "call", "/provider/create", "name=web-aaaaaa", "type=s", "--place", "vendor=/local",
                "region=local", "image=debian-12", "user_data=#!/bin/sh\nexec sleep 1000",
            )  # fmt: skip
            assert made.json["outcome"] == "created", made.err
            number = made.json["machine"]["id"]

            write(place, (local % "0.20") + ocean(clouds).partition("\n")[2])
            until(lambda: prices().get("local") == 0.20 and "ocean" in prices(), 60)
            listed = spinal("call", "/provider/list", "--place", "vendor=/local").json["machines"]
            assert [(one["id"], one["state"]) for one in listed] == [(number, "running")]

            write(place, ocean(clouds))
            until(lambda: set(prices()) == {"ocean"}, 60)
        finally:
            assert up.end() == 0, up.err
