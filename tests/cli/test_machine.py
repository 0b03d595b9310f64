"""The machine's agent, run and called as its owner would: on a platform of real processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Program, Spinal, spinal_at

CONFIG = """\
agent: web7
place: {{site: /eu/fra/rack7}}
tags: [linux]
health: {{disk: {{limit: 100, folders: [/, {folder}]}}}}
services: {{manager: sysv, scripts: {folder}/init.d, change: [web]}}
logs: {{files: ["{folder}/*.log"]}}
files: {{read: [{folder}], write: [{folder}]}}
disk: {{rules: {{old: {{folder: {folder}, match: "*.gz"}}}}}}
processes: {{signal: [{{name: sleep, signals: [TERM]}}]}}
power: {{reboot: {{command: [touch, {folder}/rebooted]}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    (folder / "init.d").mkdir()
    (folder / "init.d" / "web").write_text(
        f"#!/bin/sh\ncase $1 in\n  start) touch {folder}/up;;\n  stop) rm {folder}/up;;\n"
        f"  status) test -e {folder}/up || exit 3;;\nesac\n"
    )
    (folder / "init.d" / "web").chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def home(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a home with a platform and the agent, with all that it may do."""
    home = tmp_path_factory.mktemp("platform") / "home"
    config = folder / "machine.yaml"
    config.write_text(CONFIG.format(folder=folder))
    up = Program(home, "up", "--no-providers", "--json")
    try:
        up.until(event="ready")
        agent = Program(home, "agent", "run", "machine", "--config", str(config), "--json")
        try:
            ready = agent.until(event="ready")
            assert ready["agent"].startswith("web7@") and "/machine/facts" in ready["ops"]
            yield home
        finally:
            assert agent.end() == 0, agent.err
        assert "task_died" not in agent.err and "Traceback" not in agent.err
    finally:
        assert up.end() == 0, up.err


@pytest.fixture
def spinal(home: Path) -> Spinal:
    return spinal_at(home)


def value(spinal: Spinal, *words: str) -> object:
    done = spinal("call", *words, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1])["value"]


def test_it_is_on_the_list(spinal: Spinal) -> None:
    assert "machine" in [one["name"] for one in spinal("agent", "list", "--json").json]


def test_the_machine_tells_what_and_how_it_is(spinal: Spinal) -> None:
    facts = value(spinal, "/machine/facts", "--place", "/eu/fra", "--tag", "linux")
    assert isinstance(facts, dict) and facts["system"]["host"] == os.uname().nodename
    health = value(spinal, "/machine/health")
    assert isinstance(health, dict) and health["healthy"] in (True, False)
    (agent,) = [one for one in spinal("agents", "--json").json if "web7" in one["agent"]]
    assert 0 <= agent["load"] <= 1 and agent["place"] == {"site": "/eu/fra/rack7"}


def test_a_service_is_started_and_stopped(spinal: Spinal, folder: Path) -> None:
    started = value(spinal, "/machine/services/start", "name=web")
    assert isinstance(started, dict) and started["state"] == "running"
    assert (folder / "up").exists()
    stopped = value(spinal, "/machine/services/stop", "name=web")
    assert isinstance(stopped, dict) and stopped["state"] == "stopped"


def test_a_file_goes_there_and_back(spinal: Spinal, folder: Path, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(100_000))
    value(spinal, "/machine/files/write", f"path={folder}/new.bin", f"content@={source}")
    assert (folder / "new.bin").read_bytes() == source.read_bytes()
    done = spinal("call", "/machine/files/read", f"path={folder}/new.bin", "--out", str(copy))
    assert done.code == 0 and copy.read_bytes() == source.read_bytes()


def test_what_leads_out_is_refused_in_one_line(spinal: Spinal, folder: Path) -> None:
    for path in (f"{folder}/../secret", "/etc/shadow", "etc"):
        done = spinal("call", "/machine/files/read", f"path={path}")
        assert done.code == 1 and "Traceback" not in done.err and done.line


def test_a_log_is_followed_until_nobody_wants_it(home: Path, folder: Path) -> None:
    log = folder / "app.log"
    log.write_text("one\ntwo\n")
    call = Program(home, "call", "/machine/log", f"file={log}", "lines=1", "follow:=true", "--json")
    try:
        assert call.next() == {"data": "two"}
        log.rename(folder / "app.log.1")
        log.write_text("three\n")
        assert call.next() == {"data": "three"}
    finally:
        call.end()


def test_room_is_made_by_a_plan(spinal: Spinal, folder: Path) -> None:
    for name in ("a.gz", "b.gz"):
        (folder / name).write_text("old")
    plan = value(spinal, "/machine/disk/plan", "rule=old")
    assert isinstance(plan, dict) and (plan["count"], plan["bytes"]) == (2, 6)
    (folder / "b.gz").write_text("new")
    late = spinal("call", "/machine/disk/clean", "rule=old", f"plan={plan['plan']}")
    assert late.code == 1 and "make another plan" in late.line
    plan = value(spinal, "/machine/disk/plan", "rule=old")
    assert isinstance(plan, dict)
    done = value(spinal, "/machine/disk/clean", "rule=old", f"plan={plan['plan']}")
    assert isinstance(done, dict) and done["count"] == 2 and not (folder / "a.gz").exists()


def test_a_reboot_takes_two_calls(spinal: Spinal, folder: Path) -> None:
    told = value(spinal, "/machine/reboot")
    assert isinstance(told, dict) and not (folder / "rebooted").exists()
    done = value(spinal, "/machine/reboot", f"confirm={told['confirm']}")
    assert isinstance(done, dict) and done["done"] and (folder / "rebooted").exists()
    assert spinal("call", "/machine/shutdown").code == 3


def test_a_mistake_in_the_file_is_told_with_its_line(spinal: Spinal, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("agent: web7\nfiles:\n  raed: [/srv]\n")
    done = spinal("agent", "run", "machine", "--config", str(tmp_path / "bad.yaml"))
    assert done.code == 2
    assert done.line.endswith("bad.yaml:3: files.raed: is not known here: did you mean 'read'?")
