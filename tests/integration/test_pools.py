"""Pools on a real platform, with the local provider: machines here are real processes and agents."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from tests.processes import alive

from spinal.testing import Platform, eventually, platform

WORKER = '''
import os
from spinal.agents import Agent
agent = Agent("worker", slots=1)
@agent.op("/test/who", effects="reads")
async def who() -> str:
    """Say which machine answers."""
    return os.environ["SPINAL_ADDRESS"].partition("@")[0]
@agent.op("/test/sees", effects="reads")
async def sees(path: str) -> bool:
    """Say whether a file is there."""
    return os.path.exists(path)
'''

POOL = """
pool: web
server: {cpu: 1, ram: 1G, region: [eu]}
size: {min: 0, max: 3, start: 2}
life: {agents: [worker.py], self_test: [/machine/health, /test/who]}
"""


@asynccontextmanager
async def a_platform(folder: Path) -> AsyncGenerator[Platform]:
    (folder / "worker.py").write_text(WORKER)
    (folder / "web.yaml").write_text(POOL)
    async with platform(folder=folder / "home", providers=True) as running:
        yield running


async def spinal(running: Platform, *argv: str, code: int = 0) -> Any:
    process = await running.spinal(*argv, "--json")
    assert await process.wait(120) == code, (argv, process.errors[-5:], process.lines[-3:])
    await eventually(lambda: process.lines, what=f"{argv} prints")
    return json.loads(process.lines[-1])


def machines(running: Platform) -> list[psutil.Process]:
    """Give the processes that run on machines of the home, whoever their parent is."""
    folder = str(running.home.path / "machines")
    found: list[psutil.Process] = []
    for one in psutil.process_iter(["cmdline"]):
        words = " ".join(one.info["cmdline"] or ())
        if folder in words and alive(one):
            found.append(one)
    return found


async def test_a_pool_of_the_local_provider_from_its_file_to_its_bill(tmp_path: Path) -> None:
    async with a_platform(tmp_path) as running:
        file = str(tmp_path / "web.yaml")
        await eventually(lambda: _offers(running), 30, "the local provider is there")
        plan = await spinal(running, "pool", "plan", file)
        assert len(plan["hash"]) == 64 and plan["price"] == plan["bound"] > 0
        applied = await spinal(running, "pool", "apply", file, "--yes", "--timeout", "100s")
        assert applied["converged"] and applied["ready"] == 2

        # They are agents as any other, with the price of their machine.
        agents = [one for one in await running.client.agents() if one["agent"].startswith("web-")]
        assert len(agents) == 4 and {one["cost"] for one in agents} == {plan["price"] / 2}
        names = {await running.client.call("/test/who") for _ in range(8)}
        assert len(names) == 2 and all(name.startswith("web-") for name in names)
        assert await running.client.options(policy="cheapest").call("/test/who") in names
        assert machines(running)
        if shutil.which("bwrap"):
            secrets = str(running.home.path / "secrets" / "owner.password")
            assert await running.client.call("/test/sees", path="/etc/passwd")
            assert not await running.client.call("/test/sees", path=secrets)

        # One dies: every process of it, at once.
        victim = min(names)
        for process in machines(running):
            if _machine_of(process) == victim:
                process.kill()

        async def replaced() -> bool:
            shown = await spinal(running, "pool", "show", "web")
            there = [one["name"] for one in shown["machines"]]
            return bool(shown["converged"] and victim not in there)

        await eventually(replaced, 100, "it is replaced")
        down = await spinal(running, "pool", "down", file, "--yes", "--timeout", "60s")
        assert down["exist"] == 0 and not machines(running)
        bill = await spinal(running, "cost", "--by", "vendor,label,pool", "--since", "7d")
        assert [row["key"] for row in bill["rows"]] == [["local", "web", "web"]]
        assert bill["rows"][0]["machines"] == 3 and bill["spent"] > 0
        swept = await spinal(running, "sweep")
        assert swept["orphans"] == [] == swept["missing"]


async def test_a_pool_goes_on_from_the_disk_that_was_frozen(tmp_path: Path) -> None:
    async with a_platform(tmp_path) as running:
        file = tmp_path / "web.yaml"
        file.write_text(POOL.replace("min: 2", "min: 1").replace("start: 2", "start: 1"))
        await eventually(lambda: _offers(running), 30, "the local provider is there")
        made = await spinal(running, "pool", "apply", str(file), "--yes", "--timeout", "100s")
        assert made["ready"] == 1
        (disk,) = running.home.path.glob("machines/local/machine-*/disk")
        (disk / "kept").write_text("of the first one")

        frozen = await spinal(running, "pool", "freeze", "web", "--yes", "--timeout", "60s")
        assert frozen["exist"] == 0 and not machines(running)
        shown = await spinal(running, "pool", "show", "web")
        (image,) = [one["said"] for one in shown["events"] if one["said"].startswith("image-")]
        file.write_text(file.read_text().replace("server: {", f"server: {{image: {image}, "))

        back = await spinal(running, "pool", "apply", str(file), "--yes", "--timeout", "100s")
        assert back["ready"] == 1 and back["never_joined"] == 0
        (disk,) = running.home.path.glob("machines/local/machine-*/disk")
        assert (disk / "kept").read_text() == "of the first one"
        assert (await running.client.call("/test/who")).startswith("web-")
        await spinal(running, "pool", "down", "web", "--yes", "--timeout", "60s")


def _machine_of(process: psutil.Process) -> str:
    try:
        environ: dict[str, str] = process.environ()
    except psutil.Error:
        return ""
    return environ.get("SPINAL_MACHINE_NAME", "")


async def _offers(running: Platform) -> bool:
    process = await running.spinal("offers", "--json")
    return await process.wait() == 0 and bool(json.loads(process.lines[-1]))


async def test_machines_outlive_a_crash_of_everything_and_end_with_ctrl_c(tmp_path: Path) -> None:
    async with a_platform(tmp_path) as running:
        await eventually(lambda: _offers(running), 30, "the local provider is there")
        file = str(tmp_path / "web.yaml")
        await spinal(running, "pool", "apply", file, "--yes", "--timeout", "100s")
        before = {one["name"] for one in (await spinal(running, "pool", "show", "web"))["machines"]}

        running.up.kill(signal.SIGKILL)
        await running.up.wait()
        await asyncio.gather(*(_gone(child) for child in _provider(running)))
        assert machines(running), "a machine is not a child of the platform"
        again = await running.spinal("up", "--json")
        await again.line(lambda line: '"ready"' in line)

        async def back() -> bool:
            shown = await spinal(running, "pool", "show", "web")
            return bool(shown["converged"])

        await eventually(back, 60, "the pool is as it was")
        after = {one["name"] for one in (await spinal(running, "pool", "show", "web"))["machines"]}
        assert after == before, "nothing was bought again"

        again.kill(signal.SIGKILL)
        await again.wait()
        await asyncio.gather(*(_gone(child) for child in _provider(running)))
        assert machines(running)
        # Before their provider agent has started.
        third = await running.spinal("up", "--json")
        await third.line(lambda line: '"ready"' in line)
        third.kill(signal.SIGINT)
        assert await third.wait() == 0
        await eventually(lambda: not machines(running), 20, "its machines end with it")


def _provider(running: Platform) -> list[psutil.Process]:
    home = str(running.home.path)
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if "provider" in (one.info["cmdline"] or ()) and home in (one.info["cmdline"] or ())
    ]


async def _gone(process: psutil.Process) -> None:
    await eventually(lambda: not process.is_running(), 20, "the provider agent has ended")
