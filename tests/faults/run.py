"""The fault harness: ``python -m tests.faults.run`` from the root of the repository.

Each row of the table is one fault on one server: a platform of real processes, agents at work, a
caller that submits the jobs of a seeded script, and strikes while it does.  A ledger that Spinal
does not know of says what happened, a model what had to happen.  The exit status is 1 if anything
was lost, stuck, doubled or wrong, or a bound was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from spinal import logs
from spinal.bus.errors import CallError
from spinal.bus.server import KINDS, available
from spinal.testing import platform

from . import wire
from .faults import FAULTS, Fault
from .judge import FINAL_WITHIN, Verdict, judge
from .model import DEADLINE, script
from .scene import ROOT, Scene, scene
from .table import Row, findings, table

#: Jobs of a row of the long run, and how many are submitted in a second.
JOBS = 220
RATE = 15.0
#: Rows that run at once: most of a row is waiting.
PARALLEL = 2
#: Runs on the memory bus, and jobs of each.
SEEDS = 40
SEED_JOBS = 25
#: Where the table of a run is kept, and between which lines.
PAGE = ROOT / "docs" / "guarantees.md"
BEGIN, END = "<!-- table -->", "<!-- end -->"


async def play(fault: Fault, server: str, seed: int, jobs: int = JOBS, rate: float = RATE) -> Row:
    """Run one row."""
    began = time.monotonic()
    asked = script(seed, jobs, name=f"{fault.name}/{server}".replace(" ", "-"))
    stored: dict[str, set[str]] = {}
    failure = ""
    with tempfile.TemporaryDirectory(prefix="spinal-faults-") as name:
        folder = Path(name)
        async with (
            fault.setting(folder) as setting,
            platform(
                server, *setting.options, folder=folder / "home", environ=setting.environ
            ) as running,
            scene(
                running, folder, asked, rate, seed, wired=fault.wired, database=setting.database
            ) as found,
        ):
            calling = asyncio.create_task(found.caller.run())
            try:
                failure = await _strikes(fault, found)
                # Whatever is not final after this is stuck.
                await asyncio.wait([calling], timeout=DEADLINE + FINAL_WITHIN + 10.0)
                if calling.done():
                    calling.result()
            finally:
                calling.cancel()
                await asyncio.wait([calling])
            try:
                async with asyncio.timeout(60.0):
                    stored = await found.caller.audit()
            except (CallError, TimeoutError) as error:
                failure = failure or f"the jobs could not be asked for at the end: {error!r}"
            ledger = found.ledger.read()
            errors = [line for line in running.up.errors if '"error"' in line]
            events = [*running.up.lines, *errors[-20:], *sorted(found.caller.texts)[:20]]
    verdict = judge(
        asked, found.caller.told, ledger, found.strikes, losses=fault.losses, stored=stored
    )
    if verdict.moved is not None and "moved" in fault.bounds:
        found.measure("moved", verdict.moved)
    return Row(
        fault.name,
        server,
        fault.what,
        verdict,
        found.measures,
        fault.bounds,
        fault.kills * len(found.strikes),
        [setting.note] if setting.note else [],
        failure,
        dict(found.caller.refused),
        events,
        time.monotonic() - began,
    )


async def _strikes(fault: Fault, found: Scene) -> str:
    """Strike as often as the fault does, spread over the script; says what went wrong."""
    try:
        for number in range(fault.strikes):
            found.caller.allow((number + 1) / fault.strikes)
            await found.caller.reached((number + 0.2) / fault.strikes)
            try:
                await fault.strike(found)
            except (AssertionError, CallError) as error:
                for strike in found.strikes:
                    strike.over = strike.over or time.monotonic()
                return f"strike {number + 1}: {error}"
        return ""
    finally:
        found.caller.allow(1.0)


async def run(plan: Sequence[tuple[Fault, str]], seed: int, jobs: int, parallel: int) -> list[Row]:
    """Run a row for each fault on a server, some at once, and give them in the same order."""
    turns = asyncio.Semaphore(parallel)

    async def turn(fault: Fault, server: str) -> Row:
        async with turns:
            try:
                row = await play(fault, server, seed, jobs)
            except Exception as error:  # noqa: BLE001 - it is told in the row; others are worth something
                failure = "".join(traceback.format_exception(error))
                row = Row(fault.name, server, fault.what, Verdict(), {}, {}, failure=failure)
        _say(f"{fault.name}, {server}: {row.seconds:.0f} s, {len(row.faults())} findings")
        return row

    async with asyncio.TaskGroup() as group:
        rows = [group.create_task(turn(fault, server)) for fault, server in plan]
    return [row.result() for row in rows]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="draws jobs and victims (default 1)")
    parser.add_argument(
        "--fault",
        action="append",
        choices=[*FAULTS, wire.NAME],
        help="one of them; may be repeated",
    )
    parser.add_argument("--server", action="append", choices=list(KINDS), help="may be repeated")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"jobs of a row (default {JOBS})")
    parser.add_argument(
        "--parallel", type=int, default=PARALLEL, help=f"rows at once (default {PARALLEL})"
    )
    parser.add_argument(
        "--slack",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="by how much bounds may be missed, on a machine that is busy with others (default 0)",
    )
    parser.add_argument("--json", action="store_true", help="everything, as one JSON object")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    return parser.parse_args(argv)


async def _main(plan: Sequence[tuple[Fault, str]], given: argparse.Namespace) -> list[Row]:
    task = asyncio.current_task()
    assert task is not None
    # SIGTERM ends it as Ctrl-C does: with everything that it has started.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await run(plan, given.seed, given.jobs, given.parallel)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status."""
    given = _arguments(argv)
    logs.configure("error")
    servers, faults = given.server or list(KINDS), given.fault or [*FAULTS, wire.NAME]
    pairs = [(FAULTS[f], s) for f in faults if f in FAULTS for s in servers]
    plan = [(fault, server) for fault, server in pairs if server in fault.servers]
    absent = [(f.name, s, f.elsewhere) for f, s in pairs if f.elsewhere and s not in f.servers]
    missing = {available(server) for _, server in plan} | {fault.missing() for fault, _ in plan}
    if missing - {None}:
        told = "; ".join(sorted(filter(None, missing)))
        _say(f"{told}: `make test-deps` installs it, --server and --fault leave it out")
        return 2
    try:
        rows = asyncio.run(_main(plan, given))
        if wire.NAME in faults:
            rows.append(wire.play(range(given.seed, given.seed + SEEDS), SEED_JOBS))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("interrupted; everything that was started has ended")
        return 130
    wrong = [what for row in rows for what in row.faults(given.slack)]
    if given.json:
        found = [row.to_json(given.slack) for row in rows]
        print(json.dumps({"seed": given.seed, "rows": found, "ok": not wrong}, default=str))
    else:
        print(table(rows, absent))
        print(findings(rows, given.slack))
    if given.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(rows, absent)}\n{END}{rest.partition(END)[2]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
