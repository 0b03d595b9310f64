"""The command: what it prints, how it ends, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process

import psutil
from tests.processes import alive, below

from spinal.testing import eventually

from .scene import ROOT
from .short import SLACK


async def begin(*options: str) -> Process:
    command = (sys.executable, "-m", "tests.faults.run", "--fault", "none", "--server", "embedded")
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return await asyncio.create_subprocess_exec(
        *command, *options, cwd=ROOT, env=environ, stdout=PIPE
    )


async def test_it_prints_everything_as_json() -> None:
    run = await begin("--jobs", "20", "--seed", "7", "--slack", str(SLACK), "--json")
    out, _ = await run.communicate()
    told = json.loads(out)
    (row,) = told["rows"]
    assert (run.returncode, told["ok"], told["seed"]) == (0, True, 7)
    assert row["verdict"]["accepted"] == 20


async def test_ctrl_c_leaves_no_process_behind() -> None:
    run = await begin()
    family: list[psutil.Process] = []

    def at_work() -> bool:
        family[:] = below(run.pid)
        return len(below(run.pid, "agent")) >= 3

    await eventually(at_work, 60.0, "agents run")
    run.send_signal(signal.SIGINT)
    async with asyncio.timeout(60.0):
        await run.communicate()
    assert run.returncode == 130
    assert [process for process in family if alive(process)] == []
