"""Parts that are programs of their own: run, and what they print as JSON taken into the report.

``python -m benchmarks.NAME --json`` says by its last line what it measured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from importlib.util import find_spec
from typing import Any

from .bench import Bench
from .children import Children, plain
from .results import number

#: Rows to where their value stands in what a program tells: names, one below the other.
RESOLVE: Mapping[str, Sequence[str]] = {
    "resolve-p50": ("p50_us", "100000"),
    "resolve-growth": ("growth",),
    "reports-rate": ("reports_per_s",),
    "reports-p99": ("resolve_p99_ms",),
}
BLOB: Mapping[str, Sequence[str]] = {"blob": ("ratio",)}

#: Live agents, and how long they may take to be back; the last number is what is aimed at.
AGENTS = (1000, 5000)


async def resolve(bench: Bench) -> None:
    """Measure the registry and the resolver, without a bus."""
    await _rows(bench, "resolve", RESOLVE)


async def blob(bench: Bench) -> None:
    """Measure a blob's way up and down beside curl's."""
    await _rows(bench, "blob", BLOB)


async def scale(bench: Bench) -> None:
    """Measure how many agents live here, and how soon they are back; one run, for the time it takes."""
    for server in bench.servers:
        for count in AGENTS:
            if f"back-{count}-{server}" not in bench.rows("scale"):
                continue
            bench.say(f"{count} agents on {server}")
            agents = count // 100 if bench.quick else count
            found = await _told(bench, "scale", "--server", server, "--agents", str(agents))
            if found is None:
                bench.missing(f"back-{count}-{server}", "benchmarks.scale is not there")
                bench.missing(f"agents-{server}", "benchmarks.scale is not there")
                continue
            note = f"{found['answered_after']} of {found['asked']} that were called answered"
            bench.record(f"back-{count}-{server}", [found["back_s"]], note=note)
            live = found["agents"] * found["answered"] / found["asked"]
            memory = found["kb_per_agent"].items()
            note = "kB an agent: " + ", ".join(f"{part} {value}" for part, value in memory)
            bench.record(f"agents-{server}", [live], note=note)
            curve: list[Mapping[str, float]] = found["cores_by_second"]
            names = list(dict.fromkeys(name for second in curve for name in second))
            bench.table(
                f"{agents:,} agents coming back to {server}",
                "Cores in use, second by second after the server was killed.",
                ["second", *names],
                [
                    [str(at), *(number(second.get(name, 0.0)) for name in names)]
                    for at, second in enumerate(curve, 1)
                ],
            )


async def _rows(bench: Bench, name: str, rows: Mapping[str, Sequence[str]]) -> None:
    """Run a program as often as there are runs, and record what it tells."""
    values: dict[str, list[float]] = {key: [] for key in rows}
    why: dict[str, str] = {}
    for run in range(bench.runs):
        bench.say(f"round {run + 1} of {bench.runs}")
        told = await _told(bench, name)
        for key, path in rows.items():
            value: Any = reduce(_member, path, told)
            if value is None:
                why[key] = f"benchmarks.{name} tells no {' '.join(path)}"
            else:
                values[key].append(value)
    for key, found in values.items():
        if key in why:
            bench.missing(key, why[key])
        else:
            bench.record(key, found)


def _member(told: Any, name: str) -> Any:
    return None if told is None else told.get(name)


async def _told(bench: Bench, name: str, *options: str) -> dict[str, Any] | None:
    """Run a program and give what it tells; None if it is not there."""
    if find_spec(f"benchmarks.{name}") is None:
        return None
    environ = {**plain(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    async with Children() as children:
        argv = ("-m", f"benchmarks.{name}", "--json", *options)
        child = await children.start(name, sys.executable, *argv, environ=environ)
        if await child.process.wait():
            raise child.failed(f"ended with {child.process.returncode}")
        found: dict[str, Any] = json.loads(child.log.read_text("utf-8").splitlines()[-1])
        return found
