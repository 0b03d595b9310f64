"""The chart of the report: each ratio as a multiple of its goal."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .goals import GOALS, Goal
from .results import Results, Row

#: Read well on white and on black.
INK, MET, UNMET = "#808080", "#3b8fd1", "#e08a3c"


def draw(results: Results, file: Path) -> None:
    """Draw all rows that have a goal and values.

    A bar is how many times as good as its goal a median is, so that rates and times, where less is
    better, go the same way; the line across it goes from the least run to the most.
    """
    bars = [
        (goal, values)
        for goal in GOALS
        if (values := _times_as_good(goal, results["rows"].get(goal.key)))
    ]
    # Its stubs leave most keyword arguments unknown.
    library: Any = matplotlib
    settings = {
        # Text stays text, and two runs with the same figures give the same file.
        "svg.fonttype": "none",
        "svg.hashsalt": "spinal",
        "font.family": "sans-serif",
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with library.rc_context(settings):
        figure: Any = Figure(figsize=(9.0, 1.1 + 0.34 * max(1, len(bars))), layout="constrained")
        axes = figure.subplots()
        places = range(len(bars))
        middles = [statistics.median(values) for _, values in bars]
        axes.barh(
            places,
            [middle - 1 for middle in middles],
            left=1.0,
            height=0.62,
            color=[MET if middle >= 1 else UNMET for middle in middles],
        )
        for place, (_, values), middle in zip(places, bars, middles, strict=True):
            axes.hlines(place, min(values), max(values), color=INK, linewidth=1.2)
            end = max(1.0, *values) if middle >= 1 else min(1.0, *values)
            axes.annotate(
                f"{middle:.2f}",
                (end, place),
                xytext=(4 if middle >= 1 else -4, 0),
                textcoords="offset points",
                va="center",
                ha="left" if middle >= 1 else "right",
                fontsize=8,
            )
        axes.axvline(1.0, color=INK, linewidth=1.0)
        axes.set_xscale("log")
        seen = [value for _, values in bars for value in values]
        axes.set_xlim(min(0.4, *seen, 1.0) / 1.5, max(2.5, *seen, 1.0) * 1.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_yticks(list(places), [_label(goal) for goal, _ in bars], fontsize=8)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        label = "times as good as the goal; bar: median, line: least to most"
        axes.set_xlabel(label, fontsize=8)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=8)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})


def _times_as_good(goal: Goal, row: Row | None) -> list[float]:
    values = [] if row is None else [value for value in row["values"] if value > 0]
    if goal.most is not None:
        return [goal.most / value for value in values]
    return [value / goal.least for value in values] if goal.least is not None else []


def _label(goal: Goal) -> str:
    where = f", {goal.server}" if goal.server not in ("none", "embedded") else ""
    return f"{goal.what}{where} ({goal.bound})".replace("`", "")
