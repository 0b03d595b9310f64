"""Parts that are programs of their own: run, and the JSON that they print taken into the report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from .bench import Bench
from .children import Children, plain
from .results import number

#: What a program tells, as a row's key and its value.
Read = Callable[[Mapping[str, Any]], Mapping[str, float]]

#: Agents that are brought up and back.
AGENTS = (1000, 5000)


async def resolve(bench: Bench) -> None:
    """Measure the registry and the resolver, without a bus."""

    def read(found: Mapping[str, Any]) -> Mapping[str, float]:
        p50 = {row["agents"]: row["p50_us"] for row in found["resolve"]}
        return {
            "resolve-p50": p50[100_000],
            "resolve-growth": p50[100_000] / p50[100],
            "reports-rate": found["reports"]["reports_a_second"],
            "reports-p99": found["reports"]["resolve_p99_us"] / 1000,
        }

    found = await _rows(bench, "resolve", read)
    if found is not None:
        rows: Sequence[Mapping[str, float]] = found["resolve"]
        bench.table(
            "Resolving",
            "By agents that are known; of the last run.",
            list(rows[0]),
            [[f"{value:,g}" for value in row.values()] for row in rows],
        )


async def blob(bench: Bench) -> None:
    """Measure a blob's way up and down beside curl's."""
    await _rows(bench, "blob", lambda found: {"blob": found["ratio"]})


async def scale(bench: Bench) -> None:
    """Measure how many agents live here, and how soon they are back; one run, for the time it takes."""
    for server in bench.servers:
        if f"agents-{server}" not in bench.rows("scale"):
            continue
        for count in AGENTS:
            back, live = f"back-{count}-{server}", f"agents-{server}"
            bench.say(f"{count} agents on {server}")
            agents = count // 100 if bench.quick else count
            found = await _told("scale", "--server", server, "--agents", str(agents))
            if found is None:
                bench.missing(back, "benchmarks.scale is not there")
                bench.missing(live, "benchmarks.scale is not there")
                continue
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


async def _rows(bench: Bench, name: str, read: Read) -> dict[str, Any] | None:
    """Run a program as often as there are runs, record its rows, and give what it told last."""
    values: dict[str, list[float]] = {key: [] for key in bench.rows(name)}
    found: dict[str, Any] | None = None
    for run in range(bench.runs):
        bench.say(f"round {run + 1} of {bench.runs}")
        found = await _told(name)
        if found is None:
            for key in values:
                bench.missing(key, f"benchmarks.{name} is not there")
            return None
        for key, value in read(found).items():
            values[key].append(value)
    for key, of in values.items():
        bench.record(key, of)
    return found


async def _told(name: str, *options: str) -> dict[str, Any] | None:
    """Run a program and give what it tells; None if it is not there."""
    if find_spec(f"benchmarks.{name}") is None:
        return None
    environ = {**plain(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    async with Children() as children:
        argv = ("-m", f"benchmarks.{name}", "--json", *options)
        text = await children.output(name, sys.executable, *argv, environ=environ)
        # Log lines may come before.
        found: dict[str, Any] = json.loads(text[f"\n{text}".index("\n{") :])
        return found
