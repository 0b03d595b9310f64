from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from spinal.agents import Agent
from spinal.agents.machine.config import HealthConfig, Limit
from spinal.agents.machine.glance import Glance
from spinal.agents.machine.health import Health, clock_error
from spinal.agents.machine.load import Load
from spinal.testing import eventually

from .conftest import Start

#: A limit that any machine exceeds.
FULL = "{limit: 0.000001"


class TestHealth:
    async def test_each_check_has_its_value_and_its_limit(self, start: Start) -> None:
        async with start("health: {disk: {limit: 99.9, folders: [/, /tmp]}}") as world:
            report = await world.ask("/health")
        assert [one["name"] for one in report["checks"]] == [
            "disk /",
            "disk /tmp",
            "memory",
            "swap",
            "load",
        ]
        disk = report["checks"][0]
        assert disk["limit"] == 99.9 and disk["unit"] == "%"
        assert abs(disk["value"] - psutil.disk_usage("/").percent) < 5
        assert report["healthy"] == all(one["ok"] for one in report["checks"])

    async def test_an_unhealthy_machine_says_so_and_stays_within_reach(self, start: Start) -> None:
        async with start(f"health: {{every: 50ms, memory: {FULL}}}}}") as world:
            report = await world.ask("/health")
            (memory,) = [one for one in report["checks"] if one["name"] == "memory"]
            assert not report["healthy"] and not memory["ok"] and not memory["fatal"]
            await eventually(lambda: world.life.advertisement("d").load >= 1)
            assert world.life.state == "available"
            assert (await world.ask("/facts"))["memory"]["total"] > 0

    async def test_a_fatal_limit_takes_the_agent_off(self, start: Start) -> None:
        text = f"health: {{every: 50ms, memory: {FULL}, fatal: true}}}}"
        async with start(text) as world:
            await eventually(lambda: world.life.state == "unhealthy")
            assert world.life.ailment.startswith("memory is at ")
            assert world.life.ailment.endswith(" %, the limit is 1e-06")
            reason, said = await world.problem("/health")
            assert reason == "busy" and "it is unhealthy: memory is at" in said

    async def test_it_is_back_when_it_is_well_again(self, start: Start) -> None:
        async with start("health: {every: 50ms, memory: {limit: 100, fatal: true}}") as world:
            await eventually(lambda: world.life.state == "available")
            world.life.ail("left from before")
            await eventually(lambda: world.life.state == "available")

    async def test_a_disk_that_hangs_is_not_well_and_holds_nothing_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hangs = threading.Event()

        def usage(path: str) -> object:
            hangs.wait(60)
            raise OSError("gone")

        monkeypatch.setattr(psutil, "disk_usage", usage)
        health = Health(HealthConfig(), within=0.2)
        before = threading.active_count()
        for _ in range(3):
            async with asyncio.timeout(5):
                checks = await health.checks()
            assert (checks[0].ok, checks[0].value) == (False, None)
            assert checks[1].value is not None
        # One thread hangs, and not one for each look.
        await eventually(lambda: threading.active_count() <= before + 1)
        hangs.set()
        await eventually(lambda: threading.active_count() <= before)

    async def test_a_folder_that_is_not_there_is_not_well(self) -> None:
        checks = await Health(HealthConfig(folders=("/no/such",))).checks()
        assert (checks[0].name, checks[0].ok, checks[0].value) == ("disk /no/such", False, None)

    async def test_what_is_switched_off_is_not_looked_at(self) -> None:
        config = HealthConfig(disk=None, memory=None, swap=None, load=None, clock=Limit(20))
        (clock,) = await Health(config).checks()
        assert clock.name == "clock" and clock.ok
        assert clock.value is not None and 0 <= clock.value <= 16.1

    def test_the_kernel_tells_how_wrong_the_clock_may_be(self) -> None:
        assert 0 <= clock_error() <= 16.1


class TestLoad:
    def test_it_follows_what_is_used_and_not_at_once(self) -> None:
        load = Load(10)
        assert load.value == 0
        load.count(0.2, 2)
        assert load.value == 0.2
        load.count(1.0, 2)
        assert 0.3 < load.value < 0.4
        for _ in range(30):
            load.count(1.0, 2)
        assert load.value > 0.99
        load.count(0.0, 10)
        assert 0.36 < load.value < 0.37  # By two thirds in ten seconds.

    @pytest.fixture
    def burning(self) -> Iterator[None]:
        argv = [sys.executable, "-c", "while True: pass"]
        burners = [subprocess.Popen(argv) for _ in range(os.cpu_count() or 1)]
        yield
        for burner in burners:
            burner.kill()
            burner.wait()

    async def test_a_busy_machine_is_advertised_as_such(self, start: Start, burning: None) -> None:
        async with start("load: {smooth: 100ms}") as world:
            await eventually(lambda: world.life.advertisement("d").load > 0.8, 30)

    async def test_it_ends_with_the_life(self, start: Start) -> None:
        async with start("{}") as world:
            agent: Agent = world.agent
            running = len(asyncio.all_tasks())
            assert running > 3
        assert not [one for one in asyncio.all_tasks() if "watch the" in one.get_name()]
        assert agent.load is not None


class TestGlance:
    async def test_what_is_seen_is_given_to_all_who_ask(self) -> None:
        looks = 0
        go = threading.Event()

        def look() -> int:
            nonlocal looks
            go.wait(20)
            looks += 1
            return looks

        glance = Glance(look, "test")
        asked = [asyncio.ensure_future(glance.ask()) for _ in range(5)]
        await asyncio.wait(asked, timeout=0.05)
        go.set()
        assert [await one for one in asked] == [1] * 5
        assert await glance.ask() == 2

    async def test_what_it_raises_is_raised(self) -> None:
        def look() -> None:
            raise OSError("no disk")

        with pytest.raises(OSError, match="no disk"):
            await Glance(look, "test").ask()

    async def test_nobody_waits_for_ever(self) -> None:
        go = threading.Event()
        glance = Glance(lambda: go.wait(20), "test", 0.05)
        with pytest.raises(TimeoutError):
            await glance.ask()
        go.set()
        assert await eventually(glance.ask)
