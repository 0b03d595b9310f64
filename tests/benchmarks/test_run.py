"""The command: a quick run on the embedded server, with peers that are not there, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent


async def begin(out: Path, part: str) -> Process:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PEERS": str(out / "no-peers")}
    words = ("--quick", "--server", "embedded", "--part", part, "--out", str(out))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.run", *words),
        cwd=ROOT,
        env=environ,
        stdout=PIPE,
        stderr=PIPE,
    )


async def test_a_part_is_measured_and_missing_peers_are_named(tmp_path: Path) -> None:
    run = await begin(tmp_path, "direct")
    out, progress = await run.communicate()

    assert run.returncode == 0, progress.decode()
    assert out.decode().strip() == str(tmp_path / "RESULTS.md")
    assert b"round 2 of 2" in progress
    told = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert [ratio > 0 for ratio in told["rows"]["brokered-embedded"]["values"]] == [True, True]
    assert told["rows"]["direct-rate-embedded"]["note"] == "nats-py is missing"
    report = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert "- **nats-py**: nats-py is not in no-peers" in report
    assert "spinal up --server embedded" in report
    assert (tmp_path / "results.svg").exists()


async def test_the_microseconds_of_a_call_are_shared_among_modules(tmp_path: Path) -> None:
    run = await begin(tmp_path, "costs")
    _, progress = await run.communicate()

    assert run.returncode == 0, progress.decode()
    told = json.loads((tmp_path / "results.json").read_text("utf-8"))
    (table,) = told["tables"].values()
    *rows, whole = [(row[0], row[1], float(row[2].replace(",", ""))) for row in table["rows"]]
    sums = {process: us for process, module, us in rows if module == "**all**"}
    assert sums.keys() == {"server", "caller", "answering"}
    for process, us in sums.items():
        shared = sum(part for of, what, part in rows if of == process and what != "**all**")
        assert abs(shared - us) < 0.02 * us + 1
    assert abs(whole[2] - sum(sums.values())) < 0.02 * whole[2]
    assert any(of == "caller" and what.startswith("bus/") for of, what, _ in rows)


async def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    run = await begin(tmp_path, "jobs")
    assert run.stderr is not None
    while b"warming up" not in (line := await run.stderr.readline()):
        assert line, "it ended before it measured anything"
    family = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGINT)
    await run.communicate()

    assert run.returncode == 130 and family
    _, left = psutil.wait_procs(family, timeout=5)
    assert not left
