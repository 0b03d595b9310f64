"""What the storms print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from tests.clouds.faults import KINDS
from tests.clouds.vendors import VENDORS

from .play import Run

#: What a fault of each kind is.
_FAULTS: Final = {
    "capacity": "no capacity",
    "quota": "quota",
    "auth": "401",
    "rate": "429, with and without Retry-After",
    "server": "500",
    "timeout": "no answer, and the line is cut",
    "created_error": "created, and answered with an error",
    "created_slow": "created, and answered late or too late",
    "error_state": "accepted, and then in error",
    "no_price": "the price vanishes",
    "delete_fails": "a delete fails",
    "stale": "a list that is stale",
}

#: What is counted of machines, by name.
_MACHINES: Final = {
    "created": "machines created",
    "joined": "joined the bus",
    "orders refused": "orders refused",
    "orphans": "orphans reaped: refused, and there",
    "came back": "taken up again: held for gone, and there",
    "never": "that never join",
    "sick": "whose self-test fails",
    "dies": "that fall silent",
    "taken": "taken away by their vendor",
}


def table(runs: Sequence[Run], seconds: float) -> str:
    """Write it as Markdown."""
    assert _FAULTS.keys() == KINDS.keys()
    faults, kills, counts = _sum(runs, "faults"), _sum(runs, "kills"), _sum(runs, "counts")
    rows = [("runs", len(runs))]
    rows += [(f"fault: {words}", faults[kind]) for kind, words in _FAULTS.items()]
    rows += [(f"killed: {whom}", kills[whom]) for whom in ("dispatcher", "provider agent")]
    made = ", ".join(f"{counts[name]} at {name}" for name in VENDORS)
    rows += [
        (f"{words}: {made}" if key == "created" else words, counts[key])
        for key, words in _MACHINES.items()
    ]
    rows += [
        ("**machines leaked**", sum(len(one.verdict.leaked) for one in runs)),
        ("**bought twice**", sum(len(one.verdict.twice) for one in runs)),
        ("**over budget**", sum(len(one.verdict.over) for one in runs)),
        ("**pools that did not converge**", sum(len(one.verdict.unconverged) for one in runs)),
    ]
    lines = ["| what | how often |", "| --- | ---: |"]
    lines += [f"| {what} | {number:,} |" for what, number in rows]
    came = [one.came for one in runs if one.came]
    times = ", ".join(
        f"{word} {max(found, default=0.0):.0f} s at most, {_median(found):.1f} s in the middle"
        for word, found in (("whole after", came), ("down after", [one.went for one in runs]))
    )
    return (
        "\n".join(lines) + f"\n\nAfter the faults: {times}. All runs: {seconds / 60:.0f} minutes."
    )


def findings(runs: Sequence[Run]) -> str:
    """Say what is wrong, run by run, with what happened in it."""
    lines: list[str] = []
    for one in runs:
        if one.verdict.findings:
            lines += ["", f"seed {one.seed}:", *(f"  {what}" for what in one.verdict.findings)]
            lines += one.timeline
    return "\n".join(lines)


def _sum(runs: Iterable[Run], member: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in runs:
        found.update(getattr(one, member))
    return found


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0
