"""Reading Google-style docstrings: what an operation does, and what each argument is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .errors import one_line

#: Longest summary that a description carries.
MAX_SUMMARY: Final = 4096

_SECTION: Final = re.compile(
    r"(Args|Arguments|Returns|Yields|Raises|Note|Notes|Example|Examples):\s*$"
)
_ARGUMENT: Final = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True, slots=True)
class Docs:
    """What a docstring says."""

    #: The text before the first section.
    summary: str = ""
    #: Name -> one line about it.
    args: Mapping[str, str] = field(default_factory=dict[str, str])


def read(text: str | None) -> Docs:
    """Read a docstring; whatever has another form is taken as summary."""
    if not text:
        return Docs()
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    for line in inspect.cleandoc(text).splitlines():
        if head := _SECTION.match(line):
            current = sections.setdefault(head[1], [])
        else:
            current.append(line)
    paragraphs = "\n".join(sections[""]).strip().split("\n\n")
    summary = "\n".join(one_line(part, MAX_SUMMARY) for part in paragraphs if part.strip())
    return Docs(
        summary[:MAX_SUMMARY],
        _arguments(sections.get("Args", sections.get("Arguments", []))),
    )


def _arguments(lines: list[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    margin: int | None = None
    name = ""
    for line in lines:
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        margin = depth if margin is None else margin
        if depth <= margin and (entry := _ARGUMENT.match(line.strip())):
            name = entry[1]
            found[name] = [entry[2]]
        elif name:
            found[name].append(line.strip())
    return {name: one_line(" ".join(words)) for name, words in found.items()}
