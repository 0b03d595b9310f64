"""The tables of docs/conformance.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from spinal.conform import CHAPTERS

from .implementations import IMPLEMENTATIONS, ROOT

if TYPE_CHECKING:
    from .run import Result

PAGE: Final = ROOT / "docs" / "conformance.md"
BEGIN, END = "<!-- table -->", "<!-- end -->"

_MARKS: Final = {"passed": "✓", "failed": "✗", "not-offered": "-", "not-run": "·"}


def put(page: str, text: str) -> str:
    """Put a table between the marks of the page."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def table(results: Sequence[Result]) -> str:
    """Write the results: a row for each check, a column for each agent, a mark for each server."""
    servers = list(dict.fromkeys(result.server for result in results))
    names = [
        one.name for one in IMPLEMENTATIONS if any(r.implementation == one.name for r in results)
    ]
    found = {(result.implementation, result.server): result for result in results}
    lines = [
        f"Servers, in this order: {', '.join(servers)}.",
        "",
        f"| Check | Section | | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for chapter in CHAPTERS:
        for check in chapter.checks:
            cells = [
                "".join(_mark(found.get((name, server)), check.number) for server in servers)
                for name in names
            ]
            lines.append(
                f"| {check.number} | {check.section} | {check.title} | {' | '.join(cells)} |"
            )
    for label in ("passed", "seconds"):
        cells = [
            " ".join(_sum(found.get((name, server)), label) for server in servers) for name in names
        ]
        lines.append(f"| | | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mark(result: Result | None, number: str) -> str:
    return " " if result is None else _MARKS[result.verdicts.get(number, "not-run")]


def _sum(result: Result | None, label: str) -> str:
    if result is None:
        return "-"
    if label == "seconds":
        return f"{result.seconds:.0f}"
    return str(list(result.verdicts.values()).count("passed"))
