"""The results: kept as JSON, told as Markdown.

Parts can be measured one by one: each row and table keeps when, from which commit and by which
command it came.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from .goals import BESIDE, GOALS, Goal


class Stamp(TypedDict):
    """Where a result comes from."""

    date: str
    commit: str
    command: str


class Row(TypedDict):
    """What was measured for a goal, one value a run; without values, why there are none."""

    values: Sequence[float]
    #: What each ratio was made of, where it is one.
    ours: Sequence[float]
    theirs: Sequence[float]
    note: str
    stamp: Stamp


class Table(TypedDict):
    """More figures, of one part."""

    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    stamp: Stamp


class Side(TypedDict):
    """How a contender was started."""

    settings: str
    commands: Sequence[str]


class Results(TypedDict):
    """All of it."""

    machine: Mapping[str, str]
    versions: Mapping[str, str]
    rows: dict[str, Row]
    tables: dict[str, Table]
    contenders: dict[str, Side]
    #: Peers that could not take part, and why.
    missing: dict[str, str]


def load(file: Path, machine: Mapping[str, str], versions: Mapping[str, str]) -> Results:
    """Read what was measured before on this machine; what another one gave does not count."""
    found: Results = {
        "machine": machine,
        "versions": versions,
        "rows": {},
        "tables": {},
        "contenders": {},
        "missing": {},
    }
    if file.exists():
        before: Results = json.loads(file.read_text("utf-8"))
        if before["machine"] == machine:
            found = {**before, "versions": versions}
    return found


def number(value: float) -> str:
    """Write a figure with three digits that count."""
    if abs(value) < 1000:
        return f"{value:#.3g}".rstrip(".")
    return f"{value:,.0f}"


def spread(values: Sequence[float]) -> str:
    """Median with the least and the most."""
    return f"{number(statistics.median(values))} ({number(min(values))} - {number(max(values))})"


def verdict(goal: Goal, row: Row | None) -> str:
    """Say whether a goal is met."""
    if row is None:
        return "not measured"
    if not row["values"]:
        return "missing"
    met = goal.met(statistics.median(row["values"]))
    return "-" if met is None else "met" if met else "**not met**"


def markdown(results: Results, chart: str) -> str:
    """Write the report."""
    return "\n".join(_report(results, chart)).rstrip("\n") + "\n"


def _report(results: Results, chart: str) -> Iterator[str]:
    rows = results["rows"]
    yield "# Results"
    yield ""
    yield "Made by `make bench`; how to read and repeat it: [README.md](README.md)."
    yield ""
    yield from (f"- {name}: {value}" for name, value in results["machine"].items())
    yield f"- {', '.join(f'{name} {value}' for name, value in results['versions'].items())}"
    yield ""
    if results["missing"]:
        yield "Missing here, so that nothing is said about them:"
        yield ""
        yield from (f"- **{name}**: {why}" for name, why in results["missing"].items())
        yield ""
    verdicts = [verdict(goal, rows.get(goal.key)) for goal in GOALS]
    yield "## Goals"
    yield ""
    counts = (f"{verdicts.count(word)} {word.strip('*')}" for word in dict.fromkeys(verdicts))
    yield f"Of {len(GOALS)}: {', '.join(counts)}."
    yield ""
    yield f"![The ratios against their goals]({chart})"
    yield ""
    yield from _rows(GOALS, rows)
    yield from _limits(rows)
    if any(goal.key in rows for goal in BESIDE):
        yield "## Beside the goals"
        yield ""
        yield from _rows([goal for goal in BESIDE if goal.key in rows], rows)
    for title, table in results["tables"].items():
        yield f"## {title}"
        yield ""
        yield table["text"]
        yield ""
        yield from _table(table["header"], table["rows"])
        yield f"`{table['stamp']['command']}`, {_when(table['stamp'])}"
        yield ""
    yield "## How each was started"
    yield ""
    for name, side in results["contenders"].items():
        yield f"**{name}**: {side['settings']}."
        yield ""
        yield "```"
        yield from side["commands"]
        yield "```"
        yield ""
    commands = dict.fromkeys(row["stamp"]["command"] for row in rows.values())
    if commands:
        yield "And measured by:"
        yield ""
        yield "```"
        yield from commands
        yield "```"


def _rows(goals: Sequence[Goal], rows: Mapping[str, Row]) -> Iterator[str]:
    header = (
        *("what", "against", "goal", "median (least - most)", "runs", "met"),
        *("durable", "batched", "TLS", "server", "ours", "theirs", "measured"),
    )
    body: list[list[str]] = []
    for goal in goals:
        row = rows.get(goal.key)
        cells = [goal.what, goal.against, goal.bound or "-"]
        if row is None:
            cells += ["-", "-"]
        elif not row["values"]:
            cells += [row["note"], "-"]
        else:
            cells += [f"{spread(row['values'])} {goal.unit}", str(len(row["values"]))]
        cells += [verdict(goal, row), "yes" if goal.durable else "no"]
        cells += [goal.batched, goal.tls, goal.server]
        for values in ((), ()) if row is None else (row["ours"], row["theirs"]):
            cells.append(number(statistics.median(values)) if values else "-")
        cells.append("-" if row is None else _when(row["stamp"]))
        body.append(cells)
    yield from _table(header, body)
    noted = [goal for goal in goals if goal.key in rows and rows[goal.key]["values"]]
    notes = [
        f"- {g.what} ({g.server}): {rows[g.key]['note']}" for g in noted if rows[g.key]["note"]
    ]
    if notes:
        yield from notes
        yield ""


def _limits(rows: Mapping[str, Row]) -> Iterator[str]:
    unmet = [goal for goal in GOALS if "not met" in verdict(goal, rows.get(goal.key))]
    if any(goal.limit for goal in unmet):
        yield "What keeps the others from it, and what would lift it:"
        yield ""
        yield from (f"- {g.what} ({g.server}): {g.limit}" for g in unmet if g.limit)
        yield ""


def _when(stamp: Stamp) -> str:
    return f"{stamp['date']}, {stamp['commit']}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    yield from (f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def save(folder: Path, results: Mapping[str, Any]) -> None:
    """Keep them."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", "utf-8")
