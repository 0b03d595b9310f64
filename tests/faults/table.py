"""The table that a run prints, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .judge import FINAL_WITHIN, Verdict

_COUNTS = ("accepted", "done", "error", "killed")
_ZEROS = ("lost", "stuck", "doubled", "wrong")
#: Most findings of a row that are printed.
_TOLD = 10


@dataclass
class Row:
    """What one fault did on one server."""

    fault: str
    server: str
    what: str
    verdict: Verdict
    #: Measure -> the longest, in seconds.
    measures: Mapping[str, float]
    #: Measure -> what is promised, in seconds.
    bounds: Mapping[str, float]
    kills: int = 0
    notes: Sequence[str] = ()
    #: What went wrong with the run itself.
    failure: str = ""
    #: Why submissions were not taken at first.
    refused: Mapping[str, int] = field(default_factory=dict[str, int])
    #: What ``spinal up`` reported and logged as an error, and in what words it refused.
    events: Sequence[str] = ()
    seconds: float = 0.0

    def missed(self, slack: float = 0.0) -> list[str]:
        """Name the bounds that were missed by more than so many seconds."""
        return [
            f"{name} {self.measures[name]:.1f} s, bound {bound:g} s"
            for name, bound in self.bounds.items()
            if self.measures.get(name, 0.0) > bound + slack
        ]

    def faults(self, slack: float = 0.0) -> list[str]:
        """Say all that is wrong with it; nothing if it is as promised."""
        failure = [self.failure] if self.failure else []
        return [*failure, *self.verdict.findings, *self.missed(slack)]

    def to_json(self, slack: float = 0.0) -> dict[str, Any]:
        """Give the row with everything."""
        return {**asdict(self), "missed": self.missed(slack)}


def _times(row: Row) -> str:
    times = [
        f"{name} {row.measures[name]:.1f} of {bound:g}"
        for name, bound in row.bounds.items()
        if name in row.measures
    ]
    return ", ".join([*times, f"final {max(0.0, row.verdict.late):.1f} of {FINAL_WITHIN:g}"])


def _cells(row: Row) -> list[str]:
    counts = [str(getattr(row.verdict, name)) for name in (*_COUNTS, *_ZEROS)]
    return [row.fault, row.server, *counts, _times(row)]


def table(rows: Sequence[Row], absent: Iterable[tuple[str, str, str]] = ()) -> str:
    """Write it as Markdown.

    Args:
        rows: what was run.
        absent: fault, server, and where to look instead.
    """
    head = ["fault", "server", "jobs", *_COUNTS[1:], *_ZEROS, "longest, of what is promised (s)"]
    total = [
        "all",
        "",
        *(str(sum(getattr(row.verdict, name) for row in rows)) for name in (*_COUNTS, *_ZEROS)),
        f"{sum(row.kills for row in rows)} processes killed",
    ]
    blank = [""] * (len(_COUNTS) + len(_ZEROS))
    others = [[fault, server, *blank, why] for fault, server, why in absent]
    lines = [head, ["---"] * len(head), *map(_cells, rows), *others, total]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def findings(rows: Sequence[Row], slack: float = 0.0) -> str:
    """Say what is wrong, row by row, and what the table has to say besides."""
    lines: list[str] = []
    for row in rows:
        where = f"{row.fault}, {row.server}"
        lines += [f"{where}: note: {note}" for note in row.notes]
        wrong = row.faults(slack)
        lines += [f"{where}: {what}" for what in wrong[:_TOLD]]
        if len(wrong) > _TOLD:
            lines.append(f"{where}: and {len(wrong) - _TOLD} more")
    return "\n".join(lines)
