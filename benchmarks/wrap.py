"""What the wrap costs beside the command that it runs: CPU of all of the agent, and of the command bare."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import psutil

from spinal.testing import platform

from .bench import Bench

UNITS = Path(__file__).parents[1] / "examples" / "wrap" / "units" / "units.yaml"
ARGV = ("units", "--terse", "3 feet", "m")
ASKED = {"from": "3 feet"}
CALLS = 300


async def measure(bench: Bench) -> None:
    """Measure a call of ``units`` through the bus, less the same command run by Python alone."""
    if shutil.which(ARGV[0]) is None:
        bench.missing("wrap-cpu", "units is missing")
        return
    calls = 50 if bench.quick else CALLS
    through: list[float] = []
    bare: list[float] = []
    async with platform("embedded") as here:
        agent = psutil.Process((await here.agent(UNITS)).pid)
        for run in range(1 + bench.runs):
            before = _agent_cpu(agent)
            for _ in range(calls):
                assert await here.client.call("/units/convert", **ASKED) == "0.9144"
            spent = _agent_cpu(agent) - before
            alone = _bare(calls)
            # The first round finds nothing in any cache.
            if run:
                through.append(spent / calls * 1000)
                bare.append(alone / calls * 1000)
    over = [one - two for one, two in zip(through, bare, strict=True)]
    bench.record("wrap-cpu", over, through, bare)


def _agent_cpu(agent: psutil.Process) -> float:
    """Give the seconds of an agent and of all the commands that have ended."""
    return float(sum(agent.cpu_times()[:4]))


def _bare(calls: int) -> float:
    """Run the command so often, and give the seconds of CPU, ours and its."""
    before = _own_cpu()
    for _ in range(calls):
        subprocess.run(ARGV, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return _own_cpu() - before


def _own_cpu() -> float:
    found = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in found)
