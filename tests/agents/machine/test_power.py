from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from spinal.agents.errors import Refused
from spinal.agents.machine.config import Power
from spinal.agents.machine.power import MAX_CODES, Codes, command
from spinal.bus.errors import CallError

from .conftest import Start, World


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The file that the harmless programs make instead of ending the machine."""
    return tmp_path / "done"


@pytest.fixture
async def world(start: Start, done: Path) -> AsyncGenerator[World]:
    reboot = json.dumps(["touch", f"{done}-reboot"])
    shutdown = json.dumps(["touch", f"{done}-shutdown"])
    text = f"power: {{reboot: {{command: {reboot}}}, shutdown: {{command: {shutdown}}}}}"
    async with start(f"services: {{manager: none}}\n{text}") as world:
        yield world


def happened(done: Path) -> list[str]:
    return sorted(one.name for one in done.parent.glob("done*"))


async def test_the_first_call_tells_and_the_second_one_does_it(world: World, done: Path) -> None:
    told = await world.ask("/reboot")
    assert told["action"] == "reboot" and not told["done"] and told["uptime"] > 0
    assert told["command"] == ["touch", f"{done}-reboot"]
    assert isinstance(told["users"], list) and happened(done) == []
    did = await world.ask("/reboot", confirm=told["confirm"])
    assert did["done"] and did["confirm"] == "" and happened(done) == ["done-reboot"]


async def test_a_code_is_for_one_use(world: World, done: Path) -> None:
    code = (await world.ask("/shutdown"))["confirm"]
    await world.ask("/shutdown", confirm=code)
    Path(f"{done}-shutdown").unlink()
    reason, said = await world.problem("/shutdown", confirm=code)
    assert reason == "refused" and "is not the code" in said and happened(done) == []


async def test_a_code_is_for_its_action(world: World, done: Path) -> None:
    code = (await world.ask("/reboot"))["confirm"]
    assert (await world.problem("/shutdown", confirm=code))[0] == "refused"
    assert happened(done) == []
    await world.ask("/reboot", confirm=code)


async def test_a_code_is_for_who_asked_for_it(world: World, done: Path) -> None:
    code = (await world.ask("/reboot"))["confirm"]
    with pytest.raises(CallError, match="is not the code"):
        await world.call("/reboot", world.other, confirm=code).result()
    assert happened(done) == []
    await world.ask("/reboot", confirm=code)


@pytest.mark.parametrize("code", ["x", "0" * 16, "yes", "true", "\0", "'; reboot", "--", "ü"])
async def test_a_guess_is_refused_and_voids_the_code(world: World, done: Path, code: str) -> None:
    real = (await world.ask("/reboot"))["confirm"]
    assert (await world.problem("/reboot", confirm=code))[0] == "refused"
    assert (await world.problem("/reboot", confirm=real))[0] == "refused"
    assert happened(done) == []


def test_a_code_is_good_for_a_minute() -> None:
    now = 1000.0
    codes = Codes(lambda: now)
    first, second = codes.make("reboot", "ann"), codes.make("reboot", "ben")
    now += 59.9
    codes.take("reboot", "ann", first)
    now += 0.2
    with pytest.raises(Refused, match="good for a minute"):
        codes.take("reboot", "ben", second)


def test_another_code_voids_the_one_before() -> None:
    codes = Codes()
    first, second = codes.make("reboot", "ann"), codes.make("reboot", "ann")
    assert first != second and re.fullmatch("[0-9a-f]{16}", first)
    with pytest.raises(Refused):
        codes.take("reboot", "ann", first)


def test_so_many_codes_are_out_and_not_more() -> None:
    now = 0.0
    codes = Codes(lambda: now)
    for number in range(MAX_CODES):
        codes.make("reboot", f"caller{number}")
    with pytest.raises(Refused, match="too many"):
        codes.make("reboot", "one more")
    codes.make("reboot", "caller0")
    now = 61.0
    codes.make("reboot", "one more")


async def test_a_command_that_fails_is_told(start: Start) -> None:
    failing = json.dumps(["sh", "-c", "echo not today >&2; exit 1"])
    async with start(f"power: {{reboot: {{command: {failing}}}}}") as world:
        code = (await world.ask("/reboot"))["confirm"]
        reason, said = await world.problem("/reboot", confirm=code)
    assert reason == "failed" and "exit code 1: not today" in said


async def test_a_command_that_is_not_there_is_told_before_a_code_is_given(start: Start) -> None:
    async with start("power: {reboot: {command: [/no/such/program]}}") as world:
        reason, said = await world.problem("/reboot")
    assert reason == "refused" and "power.reboot.command" in said


async def test_the_services_that_will_end_are_told(start: Start, tmp_path: Path) -> None:
    (tmp_path / "web").write_text("#!/bin/sh\ncase $1 in status) exit 0;; esac\n")
    (tmp_path / "web").chmod(0o755)
    services = f"services: {{manager: sysv, scripts: {tmp_path}}}"
    async with start(f'{services}\npower: {{reboot: {{command: ["true"]}}}}') as world:
        assert (await world.ask("/reboot"))["services"] == ["web"]


async def test_unless_it_is_configured_it_is_not_offered(start: Start) -> None:
    for text in ("{}", "power: {reboot: false}", "power: {shutdown: true}"):
        async with start(text) as world:
            assert (await world.problem("/reboot"))[0] == "unknown-op"


def test_the_platform_has_its_own_commands(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert command("reboot", Power(), tmp_path) == ["systemctl", "reboot"]
    assert command("shutdown", Power(), tmp_path) == ["systemctl", "poweroff"]
    assert command("reboot", Power(), none) == ["shutdown", "-r", "now"]
    assert command("shutdown", Power(), none) == ["shutdown", "-h", "now"]
    assert command("reboot", Power(("echo", "x")), none) == ["echo", "x"]
