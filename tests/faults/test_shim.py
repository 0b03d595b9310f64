"""What the slow disk and the false clock are made of does what it says, at once and nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from .faults import compile_shim, number

#: Tells its clock, and how long a commit took, for each line that it is sent.
PROGRAM = """
import os, sys, time
with open(sys.argv[1], "w") as file:
    for _ in sys.stdin:
        began = time.monotonic()
        os.fsync(file.fileno())
        print(time.time(), began, time.monotonic() - began, flush=True)
"""


async def test_the_clock_on_the_wall_and_commits_follow_their_levers(tmp_path: Path) -> None:
    await compile_shim(tmp_path / "shim.so")
    slow, clock = tmp_path / "slow", tmp_path / "clock"
    for lever in (slow, clock):
        lever.write_bytes(number(0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(tmp_path / "file")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "LD_PRELOAD": str(tmp_path / "shim.so"),
            "FAULTS_SLOW": str(slow),
            "FAULTS_CLOCK": str(clock),
        },
    )
    assert process.stdin is not None and process.stdout is not None

    for seconds, milliseconds in ((0, 0), (3600, 300), (-3600, 0)):
        for lever, value in ((clock, seconds), (slow, milliseconds)):
            with lever.open("r+b", buffering=0) as file:
                file.write(number(value))
        process.stdin.write(b"\n")
        wall, monotonic, took = map(float, (await process.stdout.readline()).split())
        assert abs(wall - time.time() - seconds) < 30
        assert abs(monotonic - time.monotonic()) < 30
        assert took >= milliseconds / 1000

    process.stdin.close()
    assert await process.wait() == 0
