"""How long commands take, from the shell's point of view."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from spinal.testing import platform

from .bench import Bench
from .children import ContenderError

RUNS = 7


async def measure(bench: Bench) -> None:
    """Measure ``spinal --help``, and ``spinal agents`` on a platform that runs."""
    program = Path(sys.executable).with_name("spinal")
    times: dict[str, list[float]] = {"--help": [], "agents": []}
    async with platform("embedded") as here:
        for run in range(1 + (2 if bench.quick else RUNS)):
            for word, found in times.items():
                began = time.perf_counter()
                process = await asyncio.create_subprocess_exec(
                    *(program, word), env=dict(here.environ), stdout=asyncio.subprocess.DEVNULL
                )
                if await process.wait():
                    raise ContenderError(f"spinal {word} ended with {process.returncode}")
                # The first one compiles what nobody has imported yet.
                if run:
                    found.append(time.perf_counter() - began)
    for word, found in times.items():
        bench.record(f"start-{word.lstrip('-')}", found)
