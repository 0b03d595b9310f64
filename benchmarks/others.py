"""Parts that are programs of their own: run, and the JSON that they print taken into the report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from .bench import Bench
from .children import Children, plain
from .results import number

#: Agents that are brought up and back.
AGENTS = (1000, 5000)


async def resolve(bench: Bench) -> None:
    """Measure the registry and the resolver, without a bus."""
    values: dict[str, list[float]] = {key: [] for key in bench.rows("resolve")}
    rows: list[Mapping[str, float]] = []
    for run in range(bench.runs):
        bench.say(f"round {run + 1} of {bench.runs}")
        found = await _told(bench, "resolve")
        if found is None:
            return
        rows, reports = found["resolve"], found["reports"]
        p50 = {row["agents"]: row["p50_us"] for row in rows}
        values["resolve-p50"].append(p50[100_000])
        values["resolve-growth"].append(p50[100_000] / p50[100])
        values["reports-rate"].append(reports["reports_a_second"])
        values["reports-p99"].append(reports["resolve_p99_us"] / 1000)
    for key, of in values.items():
        bench.record(key, of)
    bench.table(
        "Resolving",
        "By agents that are known; of the last run.",
        list(rows[0]),
        [[f"{value:,g}" for value in row.values()] for row in rows],
    )


async def blob(bench: Bench) -> None:
    """Measure a blob's way up and down beside curl's; the program itself makes them take turns."""
    size = ("--size", "5") if bench.quick else ()
    found = await _told(bench, "blob", "--runs", str(bench.runs), *size)
    if found is not None:
        for way, ratios in found["spinal_over_curl"].items():
            ours, theirs = ([found[who][way]["mb_a_second"]] for who in ("spinal", "curl"))
            bench.record(f"blob-{way}", ratios, ours, theirs)


async def scale(bench: Bench) -> None:
    """Measure how many agents live here, and how soon they are back; one run, for the time it takes."""
    for server in bench.servers:
        if f"agents-{server}" not in bench.rows("scale"):
            continue
        for count in AGENTS:
            back, live = f"back-{count}-{server}", f"agents-{server}"
            bench.say(f"{count} agents on {server}")
            agents = count // 100 if bench.quick else count
            found = await _told(bench, "scale", "--server", server, "--agents", str(agents))
            if found is None:
                return
            note = (
                f"{agents:,} agents; {found['answered_after']} of {found['asked']} that were called "
                "then answered"
            )
            bench.record(back, [found["back_s"]], note=note)
            memory = ", ".join(f"{part} {kb}" for part, kb in found["kb_per_agent"].items())
            alive = found["agents"] * found["answered"] / found["asked"]
            bench.record(live, [alive], note=f"kB of memory an agent: {memory}")
            curve: Sequence[Mapping[str, float]] = found["cores_by_second"]
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


async def _told(bench: Bench, name: str, *options: str) -> dict[str, Any] | None:
    """Run a program and give what it tells; None if it is not there, which the rows then say."""
    if find_spec(f"benchmarks.{name}") is None:
        for key in bench.rows(name):
            bench.missing(key, f"benchmarks.{name} is not there")
        return None
    environ = {**plain(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    async with Children() as children:
        argv = ("-m", f"benchmarks.{name}", "--json", *options)
        text = await children.output(name, sys.executable, *argv, environ=environ)
        # Log lines may come before.
        found: dict[str, Any] = json.loads(text[f"\n{text}".index("\n{") :])
        return found
