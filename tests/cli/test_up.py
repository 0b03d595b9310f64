import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.processes import alive, below

from spinal.bus.home import Home
from spinal.bus.server import ServerConfig, available, free_ports, launch

from .conftest import COMMAND, WORKER, Outcome, Program, Spinal, environment, spinal_at


@pytest.fixture(params=["embedded", "prosody", "ejabberd"])
def server(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if reason := available(kind):
        pytest.skip(f"MISSING: {reason}")
    return kind


def dispatcher_of(up: Program) -> psutil.Process:
    """Find the dispatcher's process."""
    (found,) = below(up.process.pid, "spinal.dispatcher")
    return found


def gone(processes: list[psutil.Process], within: float = 10) -> bool:
    """Wait until none of them runs; remains that nobody has collected do not."""
    deadline = time.monotonic() + within
    while any(map(alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_store_that_is_none_is_one_line_without_its_password(spinal: Spinal, place: Path) -> None:
    done = spinal("up", "--store", "mysql://me:secret@db/jobs")
    assert done.code == 2
    assert "mysql://me:***@db/jobs" in done.line and "postgresql://" in done.line
    assert not place.exists()


class TestLife:
    @pytest.fixture
    def up(self, place: Path, server: str) -> Iterator[Program]:
        program = Program(place, "up", "--server", server, "--no-providers", "--json")
        yield program
        program.end()

    def test_it_says_when_it_is_ready_and_ends_in_good_order(
        self, up: Program, place: Path
    ) -> None:
        ready = up.next(60)
        home = Home.find(place)
        assert ready == {
            "event": "ready",
            "domain": "spinal.localhost",
            "xmpp": f"127.0.0.1:{home.ports.c2s}",
            "home": str(place),
        }
        spinal = spinal_at(place)
        assert spinal("agents", "--json").json == []
        again = spinal("up")
        assert again.code == 2 and f"is up already (pid {up.process.pid})" in again.line
        family = below(up.process.pid)
        began = time.monotonic()
        assert up.end(signal.SIGINT) == 0
        assert time.monotonic() - began < 15
        assert gone(family, 1)
        assert home.holder() is None
        done = spinal("agents")
        assert done.code == 4 and "`spinal up`" in done.line

    def test_what_dies_or_hangs_is_started_again(self, up: Program, place: Path) -> None:
        up.until(60, event="ready")
        spinal = spinal_at(place)
        agent = Program(place, "agent", "run", str(WORKER), "--json")
        try:
            agent.until(event="ready")
            while not (place / "dispatcher" / "agents.json").exists():
                spinal("agents")
            for number, reason in (
                (signal.SIGKILL, "it was killed by SIGKILL"),
                (signal.SIGSTOP, "it hung: nothing was heard of it for 3 s"),
            ):
                dispatcher_of(up).send_signal(number)
                died = up.until(event="died", part="dispatcher")
                assert died["reason"] == reason
                up.until(event="restarted", part="dispatcher")
                done = spinal("call", "/test/add", "a=1", "--timeout", "30s", "--json")
                assert done.code == 0 and done.json == {"value": 2}, done.err
        finally:
            assert agent.end() == 0, agent.err

    def test_nothing_outlives_it_when_it_is_killed(self, up: Program, place: Path) -> None:
        up.until(60, event="ready")
        family = below(up.process.pid)
        assert up.end(signal.SIGKILL) == -signal.SIGKILL
        assert gone(family)
        # What it left behind is no obstacle.
        second = Program(place, "up", "--json")
        try:
            second.until(60, event="ready")
        finally:
            assert second.end() == 0, second.err


def test_a_server_of_somebody_else_that_dies_is_started_again(place: Path) -> None:
    if reason := available("prosody"):
        pytest.skip(f"MISSING: {reason}")
    up = Program(place, "up", "--server", "prosody", "--no-providers", "--json")
    try:
        up.until(event="ready")
        dispatcher = dispatcher_of(up)
        (prosody,) = (child for child in below(up.process.pid) if child != dispatcher)
        prosody.kill()
        assert up.until(event="died")["part"] == "prosody"
        up.until(event="restarted", part="prosody")
        assert spinal_at(place)("agents", "--json").json == []
    finally:
        assert up.end() == 0, up.err


def test_a_home_may_change_its_server_but_not_its_domain(place: Path) -> None:
    if reason := available("prosody"):
        pytest.skip(f"MISSING: {reason}")
    spinal = spinal_at(place)
    Home.create(place).add_account("web", "caller")
    done = spinal("up", "--domain", "other.example")
    assert done.code == 2 and "has the domain spinal.localhost and keeps it" in done.line
    for kind in ("prosody", "embedded"):
        up = Program(place, "up", "--server", kind, "--no-providers", "--json")
        try:
            up.until(event="ready")
            env = json.loads(spinal("account", "add", "web", "--role", "caller", "--json").out)[
                "env"
            ]
            assert spinal("ops", "--json", SPINAL_HOME="", **env).json == []
        finally:
            assert up.end() == 0, up.err


def test_a_port_that_is_taken_is_one_clear_line(place: Path) -> None:
    home = Home.create(place)
    with socket.create_server(("127.0.0.1", home.ports.c2s)):
        done = spinal_at(place)("up", "--json")
    assert done.code == 4
    assert f"port {home.ports.c2s}" in done.json["error"]["text"]


def test_a_home_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = spinal_at(tmp_path / "file" / "home")("up")
    assert done.code == 2 and "no home can be made at" in done.line


def test_a_server_elsewhere_needs_its_accounts_first(place: Path) -> None:
    done = spinal_at(place)("up", "--server", "xmpp.example.org")
    assert done.code == 2
    assert "account add dispatcher" in done.line and "--password-file" in done.line
    assert Home.find(place).domain == "xmpp.example.org"


def test_people_are_told_what_to_try_next(place: Path) -> None:
    up = subprocess.Popen(
        [*COMMAND, "up"],
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert up.stdout is not None and up.stderr is not None
    said = [up.stdout.readline() for _ in range(4)]
    os.kill(up.pid, signal.SIGTERM)
    with up.stdout, up.stderr:
        assert up.wait(30) == 0
    assert "is up: spinal.localhost at 127.0.0.1:" in said[0]
    assert any("agent run FILE.py" in line for line in said)


async def test_a_server_elsewhere_is_used_with_its_accounts(place: Path, tmp_path: Path) -> None:
    there = ServerConfig(tmp_path / "there", "bus.example", free_ports())
    there.folder.mkdir()
    names = {"dispatcher": "dispatcher", "owner": "owner", "worker": "agent"}
    server = await launch("embedded", there)
    spinal = spinal_at(place)

    async def run(*words: str) -> Outcome:
        return await asyncio.to_thread(spinal, *words)

    try:
        for name in names:
            await server.add_account(name, f"secret of {name}")
        words = ("--server", f"127.0.0.1:{there.ports.c2s}", "--domain", there.domain)
        refused = await run("up", *words, "--ca", str(server.ca))
        assert refused.code == 2 and "account add dispatcher" in refused.line
        (tmp_path / "password").touch()
        for name, role in names.items():
            (tmp_path / "password").write_text(f"secret of {name}")
            password = ("--password-file", str(tmp_path / "password"))
            assert (await run("account", "add", name, "--role", role, *password)).code == 0
        up = Program(place, "up", "--json")
        try:
            ready = await asyncio.to_thread(up.next)
            assert ready["xmpp"] == f"127.0.0.1:{there.ports.c2s}"
            agent = Program(place, "agent", "run", str(WORKER), "--json")
            try:
                await asyncio.to_thread(agent.next)
                done = await run("call", "/test/add", "a=1", "--json")
                assert done.json == {"value": 2}
                done = await run("call", "/test/upper", f"text={WORKER}", "--json")
                assert done.json["value"]["blob"]["size"] == WORKER.stat().st_size
            finally:
                assert await asyncio.to_thread(agent.end) == 0, agent.err
        finally:
            assert await asyncio.to_thread(up.end) == 0, up.err
    finally:
        await server.stop()
