"""What a manifest says about the agent's life: health, load and rights."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from spinal.agents import document
from spinal.agents.life import Life
from spinal.agents.wrap import manifest
from spinal.bus.errors import CallError
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryBus
from spinal.testing import eventually

OPS = "\nops:\n  /echo:\n    args: {word:}\n    command: [echo, '{word}']\n"
DISPATCHER = "dispatcher@memory.test/d"


class World:
    """An agent of a manifest, a caller, and what the agent says."""

    def __init__(self, life: Life, caller: Session) -> None:
        self.life = life
        self.caller = caller

    async def call(self, caller: str | None = None) -> object:
        return await self.caller.call(
            self.life.address, "/echo", {"word": "hi"}, timeout=20, caller=caller
        ).result()

    @property
    def load(self) -> float:
        return self.life.advertisement(DISPATCHER).load


@asynccontextmanager
async def running(folder: Path, said: str) -> AsyncGenerator[World]:
    text = f"agent: test\n{said}{OPS}"
    found = manifest.of(document.read(text, str(folder / "m.yaml"), manifest.schema()))
    bus = MemoryBus()
    async with (
        Session(bus.connection(DISPATCHER), role="dispatcher", epoch=1) as caller,
        found.agent().start(bus.connection("test@memory.test/a"), dispatchers=[DISPATCHER]) as life,
    ):
        yield World(life, caller)


async def test_what_is_not_well_takes_no_work_until_it_is(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    said = f"health: {{run: [test, -e, {mark}], every: 20ms, fail_after: 2}}"
    async with running(tmp_path, said) as world:
        assert await world.call() == "hi"

        mark.unlink()
        await eventually(lambda: world.life.state == "unhealthy")
        with pytest.raises(CallError, match="it is unhealthy: 'test' ended with exit code 1"):
            await world.call()

        mark.touch()
        await eventually(lambda: world.life.state == "available")
        assert await world.call() == "hi"


async def test_what_is_broken_from_the_start_is_unhealthy_before_it_advertises(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, "health: {run: ['false'], every: 1h}") as world:
        assert world.life.state == "unhealthy"


@pytest.mark.parametrize(
    ("said", "written", "load"),
    [
        ("{file: load, field: 2, full: 4}", "9 2.0 9", 0.5),
        ("{file: load, json: /queue/0, full: 10}", '{"queue": [3]}', 0.3),
        ("{run: [cat, load], full: 2}", "1\n", 0.5),
        ("{file: load}", "-3", 0.0),
    ],
)
async def test_its_load_is_the_number_that_the_manifest_names(
    tmp_path: Path, said: str, written: str, load: float
) -> None:
    (tmp_path / "load").write_text(written)
    async with running(tmp_path, f"load: {said}") as world:
        assert world.load == load


async def test_its_load_follows_and_busy_slots_count_where_there_is_none(tmp_path: Path) -> None:
    file = tmp_path / "load"
    file.write_text("0.7")
    async with running(tmp_path, "load: {file: load, every: 20ms}") as world:
        file.write_text("0.2")
        await eventually(lambda: world.load == 0.2)
        file.write_text("none")
        await eventually(lambda: world.load == 0.0)


async def test_only_those_may_call_whom_the_manifest_names(tmp_path: Path) -> None:
    said = "rights: {call: [ann@home.test, '*@shop.test']}"
    async with running(tmp_path, said) as world:
        assert await world.call("ann@home.test/phone") == "hi"
        assert await world.call("bob@shop.test") == "hi"
        for stranger in ("bob@home.test", "ann@home.test.evil", "x@notshop.test"):
            with pytest.raises(CallError, match=f"{stranger} may not call") as caught:
                await world.call(stranger)
            assert caught.value.reason == "not-allowed"
