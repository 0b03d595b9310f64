"""The verbs about services, on a platform that runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spinal.cli import service

from .conftest import Outcome, Program, Spinal, spinal_at, spinal_here, until

MACHINE = Path(__file__).with_name("machine.py")
ADDRESS = "machine@spinal.localhost/agent"


@pytest.fixture(scope="module")
def machine(running: Path) -> Iterator[None]:
    """A deployment agent on the platform."""
    agent = Program(running, "agent", "run", str(MACHINE), "--json")
    try:
        agent.until(event="ready")
        yield
    finally:
        agent.end()


@pytest.fixture
def spinal(running: Path) -> Spinal:
    return spinal_here(running)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A service file."""
    return a_file(tmp_path)


def a_file(folder: Path, name: str = "shop", digit: str = "a", more: str = "") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(
        f"service: {name}\n"
        f"release: {{url: https://example.org/shop.tar.gz, sha256: {digit * 64}}}\n"
        "start: [bin/shop]\n"
        f"port: 8080\n{more}"
    )
    return file


def gone(spinal: Spinal, name: str) -> Outcome:
    """Remove a service, and wait until it is."""
    done = spinal("service", "remove", name, "--yes")
    until(lambda: spinal("service", "show", name).code)
    return done


@pytest.mark.usefixtures("machine")
def test_a_service_is_deployed_found_explained_and_removed(spinal: Spinal, shop: Path) -> None:
    deployed = spinal("service", "deploy", str(shop), "--wait")
    assert deployed.code == 0, deployed.err
    assert deployed.out == "machine:8080\n" and "fetch" in deployed.err

    assert spinal("service", "where", "shop").out == "machine:8080\n"
    where = spinal("service", "where", "shop", "--json").json
    assert where["agent"] == ADDRESS and where["result"]["port"] == 8080

    (row,) = spinal("service", "--json").json["items"]
    assert (row["name"], row["state"], row["agent"]) == ("shop", "placed", ADDRESS)
    name, state, agent, at, _, note = spinal("service", "list").out.rstrip("\n").split("\t")
    assert (name, state, agent, at, note) == ("shop", "placed", "machine", "machine:8080", "")

    shown = spinal("service", "show", "shop").out
    assert f"agent        {ADDRESS}\n" in shown and "where        machine:8080\n" in shown
    assert "condition    backing off: exit code 1\n" in shown
    assert "deployed by owner@spinal.localhost; placed at" in shown
    assert "https://example.org/shop.tar.gz" in shown

    why = spinal("service", "why", "shop")
    assert f"attempt 1 went to {ADDRESS}" in why.out
    assert spinal("service", "why", "shop", "--json").json["lines"] == why.out.splitlines()

    same = spinal("service", "deploy", str(shop), "--wait")
    assert same.out == deployed.out and same.err == ""
    removed = gone(spinal, "shop")
    assert removed.code == 0 and removed.line == "shop is being removed"
    assert spinal("service", "list").line == "no services yet: `spinal service deploy FILE`"


@pytest.mark.usefixtures("machine")
def test_a_service_that_cannot_be_placed_says_why_and_is_tried_again(
    spinal: Spinal, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "bad", "c")
    failed = spinal("service", "deploy", str(file), "--wait")
    assert failed.code == 1
    assert "it is tried again: `spinal service show bad`" in failed.err
    assert "the release has another hash" in failed.err.splitlines()[-1]

    # The first failure may not have been noticed yet.
    until(lambda: "unplaced" in spinal("service", "list").out)
    row = spinal("service", "show", "bad", "--json").json
    assert row["note"] == "the release has another hash" and "due" in row
    assert "it was not placed: the release has another hash" in spinal("service", "show", "bad").out
    where = spinal("service", "where", "bad")
    assert where.code == 4 and where.line == "spinal: service bad is unplaced now"

    mended = a_file(tmp_path, "bad", "b")
    assert spinal("service", "deploy", str(mended), "--wait").out == "machine:8080\n"
    gone(spinal, "bad")


@pytest.mark.usefixtures("machine")
def test_a_service_for_a_place_where_nobody_is_waits_and_says_so(
    spinal: Spinal, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "far", more="place: {site: /us}\n")
    job = spinal("service", "deploy", str(file)).out.strip()
    assert spinal("job", "show", job, "--json").json["origin"] == "service:far"
    note = until(lambda: spinal("service", "show", "far", "--json").json.get("note"))
    assert "1 at another place" in note
    late = spinal("service", "deploy", str(file), "--wait", "--timeout", "1s")
    assert late.code == 4
    gone(spinal, "far")
    assert spinal("job", "show", job, "--json").json["state"] == "killed"


@pytest.mark.usefixtures("machine")
def test_a_service_is_not_moved_where_there_is_no_other_machine(
    spinal: Spinal, tmp_path: Path
) -> None:
    spinal("service", "deploy", str(a_file(tmp_path, "alone")), "--wait")
    moved = spinal("service", "move", "alone")
    assert moved.code == 3
    assert moved.line == "spinal: no other agent is here that can take service alone"
    gone(spinal, "alone")


def test_a_service_is_not_removed_unless_somebody_says_yes(spinal: Spinal, running: Path) -> None:
    asked = spinal_at(running)("service", "remove", "shop")
    assert asked.code == 2 and "no terminal to ask at: add --yes" in asked.line
    unknown = spinal("service", "remove", "shop", "--yes")
    assert unknown.code == 1 and unknown.line == "spinal: there is no service shop"


def test_a_file_with_mistakes_is_told_by_line_and_nothing_is_deployed(
    spinal: Spinal, tmp_path: Path
) -> None:
    file = a_file(tmp_path, "shop", more="prot: 1\n")
    wrong = spinal("service", "deploy", str(file))
    assert wrong.code == 2 and f"{file}:5: prot: is not known here" in wrong.err
    missing = spinal("service", "deploy", str(tmp_path / "none.yaml"))
    assert missing.code == 2 and "none.yaml" in missing.line


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "-"),
        ({"agent": "a@h/agent"}, "a"),
        ({"agent": "a@h/agent", "result": "up"}, "a"),
        ({"agent": "a@h/agent", "result": {"port": None}}, "a"),
        ({"agent": "a@h/agent", "result": {"port": 80}}, "a:80"),
        ({"agent": "a@h/agent", "result": {"host": "10.0.0.7", "port": 80}}, "10.0.0.7:80"),
    ],
)
def test_where_it_answers_is_what_its_agent_said(row: dict[str, Any], words: str) -> None:
    assert service.endpoint(row) == words
