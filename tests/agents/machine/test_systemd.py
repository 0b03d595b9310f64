"""The agent on a machine with systemd: a real one, booted for these tests in namespaces.

The agent runs in them as well, but for the network, so that it is on the bus of a platform outside.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from tests.processes import below

from spinal.agents.process import run
from spinal.bus import Client
from spinal.bus.errors import CallError
from spinal.testing import Platform, eventually, platform

HERE = Path(__file__).with_name("systemd")
SYSTEMD = "/lib/systemd/systemd"

CONFIG = """\
services: {change: [web, broken, "one@*"]}
logs: {services: [web, broken]}
"""


def why_not() -> str:
    """Say what is missing for a systemd in namespaces; nothing if it can be."""
    if os.geteuid() != 0:
        return "root, for a systemd in namespaces"
    for program in ("unshare", "nsenter", SYSTEMD, "journalctl"):
        if shutil.which(program) is None:
            return program
    mounts = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r"
    overlay = "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    groups = "mount -t cgroup2 cgroup2 /mnt/r/mnt"
    argv = ["unshare", "--mount", "--pid", "--fork", "--net", "--cgroup", "sh", "-c"]
    tried = subprocess.run(
        [*argv, f"{mounts} && {overlay} && {groups}"], check=False, capture_output=True
    )
    return "" if tried.returncode == 0 else "rights to make namespaces with mounts of their own"


WHY_NOT = why_not()
pytestmark = [
    pytest.mark.skipif(bool(WHY_NOT), reason=f"MISSING: {WHY_NOT}"),
    # All share one, which takes a few seconds to be there.
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass
class Machine:
    """A machine with systemd, and the agent on it."""

    #: Number, here, of its first process.
    pid: int
    client: Client

    def argv(self, *argv: str) -> list[str]:
        """Give the command that runs something on it, but with our network."""
        spaces = ["--mount", "--pid", "--ipc", "--uts", "--root", "--wd"]
        return ["nsenter", "-t", str(self.pid), *spaces, *argv]

    async def ask(self, op: str, **args: Any) -> Any:
        return await self.client.call(f"/machine{op}", **args)


@asynccontextmanager
async def booted(folder: Path) -> AsyncGenerator[int]:
    """Boot a systemd and give the number of its first process."""
    base = folder / "base"
    base.mkdir()
    group = f"spinal-test-{secrets.token_hex(4)}"
    boot = ["sh", str(HERE / "boot.sh"), str(base), str(HERE / "units"), group, str(folder)]
    unshare = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "--fork", "--kill-child=KILL", *boot, stdin=subprocess.DEVNULL
    )

    def first() -> int:
        assert unshare.returncode is None, "it did not boot; what it said is above"
        for one in psutil.Process(unshare.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # One of the steps on the way.
                if one.cmdline()[:1] == [SYSTEMD]:
                    return one.pid
        return 0

    inside: list[psutil.Process] = []
    try:
        pid = await eventually(first, 30, "systemd runs")
        inside = psutil.Process(unshare.pid).children(recursive=True)
        yield pid
    finally:
        # Not asked to end: it would try to switch a machine off.
        unshare.kill()
        await unshare.wait()
        await asyncio.to_thread(psutil.wait_procs, inside, 10)
        tidy = f"mount -t cgroup2 cgroup2 {base} && find {base}/{group} -depth -type d -exec rmdir {{}} +"
        await (await asyncio.create_subprocess_exec("unshare", "--mount", "sh", "-c", tidy)).wait()


@asynccontextmanager
async def agent_on(pid: int, folder: Path, platform: Platform) -> AsyncGenerator[Machine]:
    machine = Machine(pid, platform.client)
    config = folder / "machine.yaml"
    config.write_text(CONFIG)
    run = [sys.executable, "-m", "spinal", "agent", "run", "machine", "--config", str(config)]
    process = await platform.start(*machine.argv(*run))

    async def known() -> bool:
        if process.process.returncode is not None:
            raise AssertionError("the agent ended:\n" + "\n".join(process.errors[-20:]))
        return bool(await platform.client.agents())

    await eventually(known, 60, "the agent is known")
    try:
        yield machine
    finally:
        # What it was started with passes no signal on.
        (agent,) = psutil.Process(process.pid).children()
        agent.terminate()
        assert await process.wait(45) == 0, process.errors[-20:]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    async with (
        booted(folder) as pid,
        platform(folder=folder / "home") as running,
        agent_on(pid, folder, running) as machine,
    ):
        yield machine


async def test_units_are_listed(machine: Machine) -> None:
    found = await machine.ask("/services/list")
    assert found["manager"] == "systemd"
    services = {one["name"]: (one["state"], one["enabled"]) for one in found["services"]}
    assert services["systemd-journald"] == ("running", None)
    assert services["web"] == ("stopped", False) and services["broken"] == ("stopped", None)
    assert "one@" not in services


async def test_a_service_is_started_restarted_and_stopped(machine: Machine) -> None:
    assert (await machine.ask("/services/start", name="web"))["state"] == "running"
    first = await machine.ask("/services/show", name="web")
    assert first["about"] == "Answers on the web" and first["changeable"]
    await machine.ask("/services/restart", name="web.service")
    second = await machine.ask("/services/show", name="web")
    assert second["state"] == "running" and int(second["says"]["MainPID"]) > 0
    assert second["says"]["MainPID"] != first["says"]["MainPID"]
    assert (await machine.ask("/services/stop", name="web"))["state"] == "stopped"


async def test_a_service_starts_with_the_machine_or_not(machine: Machine) -> None:
    assert (await machine.ask("/services/enable", name="web"))["enabled"] is True
    assert (await machine.ask("/services/disable", name="web"))["enabled"] is False


async def test_one_that_fails_is_shown_as_such(machine: Machine) -> None:
    await machine.ask("/services/start", name="broken")

    async def failed() -> bool:
        shown = await machine.ask("/services/show", name="broken")
        return bool(shown["state"] == "failed" and shown["says"]["Result"] == "exit-code")

    await eventually(failed, 20)
    found = await machine.ask("/services/list", state="failed")
    assert [one["name"] for one in found["services"]] == ["broken"]


async def test_the_journal_is_read(machine: Machine) -> None:
    await machine.ask("/services/start", name="broken")

    async def said() -> bool:
        lines = machine.client.stream("/machine/log", service="broken", lines=20)
        return bool([line async for line in lines if "going down" in str(line)])

    await eventually(said, 20)


async def test_the_journal_is_followed_until_nobody_wants_it(machine: Machine) -> None:
    await machine.ask("/services/start", name="web")

    async with asyncio.timeout(30):
        stream = machine.client.stream("/machine/log", service="web", lines=0, follow=True)
        ticks: list[int] = []
        async for line in stream:
            if "tick" in str(line):
                ticks.append(int(str(line).split()[-1]))
            if len(ticks) == 5:
                break
        await stream.aclose()
    assert ticks == list(range(ticks[0], ticks[0] + 5))
    agent = psutil.Process(machine.pid).ppid()
    await eventually(lambda: not below(agent, "journalctl"), 10)
    await machine.ask("/services/stop", name="web")


async def test_what_may_not_be_changed_or_read_is_not(machine: Machine) -> None:
    with pytest.raises(CallError, match="may not be changed"):
        await machine.ask("/services/stop", name="systemd-journald")
    with pytest.raises(CallError, match="may not be read"):
        await machine.ask("/log", service="systemd-journald")


@pytest.mark.parametrize(
    "name",
    [
        "-h",
        "--now",
        "--root=/",
        "web;stop",
        "web broken",
        "web\nbroken",
        "*",
        "we?",
        "web.socket",
        "../web",
        "/run/units/web",
        "one@",
        "one@.service",
        "web\0",
        "",
        "default.target",
        "w\\x65b",
    ],
)
async def test_no_name_is_more_than_a_name(machine: Machine, name: str) -> None:
    for verb in ("start", "stop", "enable", "show"):
        with pytest.raises(CallError) as caught:
            await machine.ask(f"/services/{verb}", name=name)
        assert caught.value.reason in ("refused", "bad-arguments")


async def test_the_facts_are_those_of_that_machine(machine: Machine) -> None:
    facts = await machine.ask("/facts")
    # As systemd-detect-virt says there: its first process was told so.
    assert facts["virtualisation"] == "docker"


async def test_nothing_of_it_reaches_the_machine_outside(machine: Machine) -> None:
    mark = f"/var/spinal-test-{secrets.token_hex(4)}"
    sysctl = "/proc/sys/vm/swappiness"
    script = f"touch {mark} && test -e {mark} && ! (cat {sysctl} > {sysctl}) && stat -c %d /dev"
    done = await run(machine.argv("sh", "-c", script), check=True)
    assert b"Read-only file system" in done.stderr
    assert not Path(mark).exists()
    assert int(done.text) != os.stat("/dev").st_dev
