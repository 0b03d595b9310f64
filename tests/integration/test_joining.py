"""Machines that join: real scripts, run by a real shell, on platforms of real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.processes import alive, below

from spinal.bus.errors import CallError
from spinal.bus.server.certificates import ensure
from spinal.testing import Platform, Process, eventually, platform

from .conftest import SOON

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREETER = """
from spinal.agents import Agent

agent = Agent()


@agent.op("/greet", effects="reads")
async def greet(name: str) -> str:
    return f"hello {name}"
"""


async def invite(running: Platform, name: str, **wanted: Any) -> dict[str, Any]:
    found: dict[str, Any] = await running.client.ask_dispatcher(
        "/spinal/tickets/create", name=name, script=True, **wanted
    )
    return found


async def boot(
    running: Platform, script: str, folder: Path, shell: str = "sh", **variables: str
) -> Process:
    """Run user-data as the local provider does: with this interpreter, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "user-data").write_text(script)
    environ = {name: text for name, text in running.environ.items() if name != "SPINAL_HOME"}
    environ |= {"SPINAL_PYTHON": sys.executable, "SPINAL_MACHINE_DIR": str(folder), **variables}
    return await running.start(*shell.split(), str(folder / "user-data"), environ=environ)


def at(running: Platform, address: str) -> Callable[[], Any]:
    async def there() -> dict[str, Any] | None:
        for agent in await running.client.agents():
            if agent["agent"] == address and agent["state"] == "available" and agent["ops"]:
                return agent
        return None

    return there


async def joined(
    running: Platform, machine: Process, address: str, within: float = 2 * SOON
) -> dict[str, Any]:
    """Wait until an agent of a machine is on the bus."""
    there = at(running, address)

    async def found() -> Any:
        if machine.process.returncode is not None:
            raise AssertionError("it ended:\n" + "\n".join(machine.errors[-30:]))
        return await there()

    agent: dict[str, Any] = await eventually(found, within, f"{address} is on the bus")
    return agent


def name_of(request: pytest.FixtureRequest) -> str:
    """A machine's name that no other test of this platform uses."""
    return "m-" + re.sub("[^a-z0-9]+", "-", request.node.originalname.lower())[-40:].strip("-")


def full(running: Platform, name: str, agent: str = "machine") -> str:
    return f"{name}@{running.home.domain}/{agent}"


async def test_a_machine_runs_its_script_and_answers_on_the_bus(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = name_of(request)
    made = await invite(running, name, place={"region": "/eu", "vendor": "/local"}, cost=0.25)
    assert len(made["script"]) < 16_000

    machine = await boot(running, made["script"], tmp_path / "m")
    agent = await joined(running, machine, full(running, name))

    assert agent["place"] == {"region": "/eu", "vendor": "/local", "machine": f"/{name}"}
    assert agent["cost"] == 0.25
    there = running.client.options(place={"machine": f"/{name}"})
    assert (await there.call("/machine/facts"))["cpu"]["count"]
    secret = made["ticket"].partition("/")[2]
    kept = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
    assert not [path for path in kept if path.name != "user-data" and secret in path.read_text()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept if path.name == "password")
    machine.kill(signal.SIGTERM)
    assert await machine.wait() == 0
    assert secret not in "\n".join(running.up.errors)


async def test_files_are_handed_out_and_run_as_agents_beside_each_other(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = name_of(request)
    made = await invite(
        running, name, files={"greeter.py": GREETER}, run=["machine", "greeter.py"], tags=["new"]
    )

    machine = await boot(running, made["script"], tmp_path / "m")
    await joined(running, machine, full(running, name))
    greeter = await joined(running, machine, full(running, name, "greeter"))

    assert greeter["tags"] == ["new"]
    assert await running.client.options(tags=["new"]).call("/greet", name="ann") == "hello ann"
    machine.kill(signal.SIGTERM)
    assert await machine.wait() == 0


NEEDY = """
from shouting import shout

from spinal.agents import Agent

agent = Agent()


@agent.op("/shout", effects="reads")
async def answer(text: str) -> str:
    return shout(text)
"""


def a_package(folder: Path) -> Path:
    """Make a wheel (PEP 427) of one module that nobody else has."""
    wheel = folder / "shouting-1.0-py3-none-any.whl"
    about = "shouting-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("shouting.py", "def shout(text):\n    return text.upper()\n")
        file.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    return wheel


async def test_an_agent_has_the_packages_that_its_ticket_names(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name, wheel = name_of(request), a_package(tmp_path)
    made = await invite(
        running,
        name,
        files={"needy.py": NEEDY},
        run=["needy.py"],
        packages=[f"shouting @ {wheel.as_uri()}"],
    )

    machine = await boot(running, made["script"], tmp_path / "m")
    await joined(running, machine, full(running, name, "needy"), 60.0)

    assert await running.client.call("/shout", text="ready") == "READY"
    # They are below the machine's own folder, and once.
    assert (tmp_path / "m" / "packages" / "shouting.py").exists()
    machine.kill(signal.SIGTERM)
    assert await machine.wait() == 0


async def test_a_ticket_is_good_once(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = name_of(request)
    made = await invite(running, name)
    machine = await boot(running, made["script"], tmp_path / "first")
    await joined(running, machine, full(running, name))

    thief = await boot(running, made["script"], tmp_path / "second")

    assert await thief.wait() == 5
    assert "used already" in thief.errors[-1]
    assert await at(running, full(running, name))()
    machine.kill(signal.SIGTERM)
    assert await machine.wait() == 0


async def test_a_ticket_that_has_expired_or_was_revoked_is_refused(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    late, revoked = f"{name_of(request)}-l", f"{name_of(request)}-r"
    made = await invite(running, late, expires=1)

    async def expired() -> bool:
        listed = await running.client.ask_dispatcher("/spinal/tickets/list")
        return any((one["name"], one["state"]) == (late, "expired") for one in listed["items"])

    await eventually(expired)
    machine = await boot(running, made["script"], tmp_path / "late")
    assert await machine.wait() == 5
    assert "expired" in machine.errors[-1]

    made = await invite(running, revoked)
    await running.client.ask_dispatcher("/spinal/tickets/revoke", name=revoked)
    machine = await boot(running, made["script"], tmp_path / "revoked")
    assert await machine.wait() == 5
    assert "not known" in machine.errors[-1]
    assert late not in running.home.accounts()
    assert revoked not in running.home.accounts()


async def test_a_desk_that_the_authority_does_not_vouch_for_gets_no_ticket(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = name_of(request)
    made = await invite(running, name)
    wrong = ensure(tmp_path / "wrong", "bus.test").ca.read_text()

    machine = await boot(running, made["script"].replace(made["ca"], wrong), tmp_path / "m")

    assert await machine.wait() == 5
    assert "does not vouch" in machine.errors[-1]
    assert name not in running.home.accounts()
    # So it can still be used by its machine.
    machine = await boot(running, made["script"], tmp_path / "m")
    await joined(running, machine, full(running, name))
    machine.kill(signal.SIGTERM)
    assert await machine.wait() == 0


async def test_after_a_kill_nothing_is_left_and_the_machine_comes_back_without_a_ticket(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = name_of(request)
    made = await invite(running, name)
    folder = tmp_path / "m"
    machine = await boot(running, made["script"], folder)
    first = await joined(running, machine, full(running, name))
    children = below(machine.pid)

    machine.kill(signal.SIGKILL)
    await machine.wait()
    await eventually(lambda: not any(map(alive, children)), SOON, "its agents are gone")
    assert not (folder / "ticket").exists()
    machine = await boot(running, made["script"], folder)

    async def again() -> bool:
        agent = await at(running, full(running, name))()
        return agent is not None and agent["epoch"] != first["epoch"]

    await eventually(again, 2 * SOON, "it is back")
    machine.kill(signal.SIGTERM)
    assert await machine.wait() == 0


async def test_an_agent_that_is_killed_is_started_again(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = name_of(request)
    made = await invite(running, name)
    machine = await boot(running, made["script"], tmp_path / "m")
    first = await joined(running, machine, full(running, name))
    (agent,) = below(machine.pid, "agent")

    agent.kill()

    async def again() -> bool:
        found = await at(running, full(running, name))()
        return found is not None and found["epoch"] != first["epoch"]

    await eventually(again, 2 * SOON, "it is back")
    machine.kill(signal.SIGTERM)
    assert await machine.wait() == 0


async def test_a_machine_whose_account_was_removed_ends_and_says_so(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = name_of(request)
    made = await invite(running, name)
    machine = await boot(running, made["script"], tmp_path / "m")
    await joined(running, machine, full(running, name))

    remove = await running.spinal("account", "remove", name)
    assert await remove.wait() == 0

    assert await machine.wait(120.0) == 5
    assert "does not know this machine any more" in machine.errors[-1]


async def test_one_that_is_no_owner_makes_no_tickets(
    running: Platform, request: pytest.FixtureRequest
) -> None:
    from spinal.bus import Client

    add = await running.spinal("account", "add", "guest", "--role", "caller")
    assert await add.wait() == 0

    async with Client(credentials=running.home.credentials("guest")) as guest:
        with pytest.raises(CallError) as caught:
            await guest.ask_dispatcher("/spinal/tickets/create", name="guests")

    assert caught.value.problem.reason == "not-allowed"


async def test_the_commands_make_list_and_revoke_tickets(
    running: Platform, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    name = name_of(request)
    (tmp_path / "greeter.py").write_text(GREETER)
    create = await running.spinal(
        "ticket", "create", name, "--agent", str(tmp_path / "greeter.py"), "--run", "machine"
    )
    assert await create.wait() == 0, create.errors
    pasted = "\n".join(create.lines).replace("spinal join", f"exec {sys.executable} -m spinal join")
    listed = await running.spinal("ticket", "list", "--json")
    assert await listed.wait() == 0
    (row,) = [one for one in json.loads(listed.lines[0])["items"] if one["name"] == name]
    assert (row["state"], row["run"]) == ("open", ["machine", "greeter.py"])
    folder = tmp_path / "m"

    machine = await boot(running, f"cd {tmp_path}\n{pasted} --folder {folder} --json\n", folder)

    await joined(running, machine, full(running, name, "greeter"))
    assert json.loads(machine.lines[0]) == {
        "event": "joined",
        "address": f"{name}@{running.home.domain}",
        "run": ["machine", "greeter.py"],
    }
    machine.kill(signal.SIGTERM)
    assert await machine.wait() == 0
    revoke = await running.spinal("ticket", "revoke", "nobody")
    assert await revoke.wait() == 1
    assert "no ticket 'nobody'" in revoke.errors[-1]


@pytest.mark.timeout(600)
async def test_a_machine_that_has_nothing_installs_what_the_home_serves(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    # As a machine that was just made: no environment of ours, and nothing of Spinal to be found.
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "SPINAL_MACHINE_DIR": str(folder),
        **{key: text for key, text in os.environ.items() if key.startswith("PIP_")},
    }
    async with platform() as running:
        made = await invite(running, "new")
        (folder / "user-data").write_text(made["script"])

        machine = await running.start("sh", str(folder / "user-data"), environ=environ)

        await joined(running, machine, full(running, "new"), 500.0)
        agents = below(machine.pid, "agent")
        assert {one.cmdline()[0] for one in agents} == {str(folder / "venv/bin/python")}
        machine.kill(signal.SIGTERM)
        assert await machine.wait() == 0
