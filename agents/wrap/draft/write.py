"""From a draft to the text of a manifest, with comments for its owner.

The text is YAML 1.2 as :mod:`spinal.agents.document` reads it; a word that YAML would take for
something else is quoted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from spinal.protocols import Json

from ...errors import one_line

#: Longest line that is filled with several values.
WIDTH: Final = 120

#: First line of a manifest, for editors.
MODELINE: Final = "# yaml-language-server: $schema=manifest.schema.json"

Steps = tuple[str | int, ...]

_PLAIN: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./(-][A-Za-z0-9_./()'%+-]*)*")
_WORD: Final = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*(?:=[A-Za-z0-9_./-]*)?|[0-9]+(?:ms|[smhKMGT])")
_OTHER_THAN_TEXT: Final = re.compile(r"(?i:null|true|false|yes|no|on|off|~)")


@dataclass
class Op:
    """One operation of a draft."""

    path: str
    #: What stands below the path, in order.
    keys: dict[str, Json]
    #: What its owner should look at: place below the path -> comment.
    notes: dict[Steps, str] = field(default_factory=dict[Steps, str])
    #: What was left out, and why.
    left: list[str] = field(default_factory=list[str])


@dataclass
class Draft:
    """A manifest that is yet to be looked at."""

    agent: str
    #: What it was made from, for the head of the file.
    origin: str
    ops: list[Op]
    #: More for the head of the file.
    remarks: list[str] = field(default_factory=list[str])
    #: Variables of the environment that it needs.
    needs: list[str] = field(default_factory=list[str])


def agent_name(said: str) -> str:
    """Make a name that an agent, or a step of a path, can have."""
    found = re.sub(r"[^a-z0-9._-]+", "-", said.lower()).strip("-._")[:62]
    return found or "agent"


def short(text: str, most: int) -> str:
    """Give the first sentence of a text in one line, cut between words, without its full stop."""
    line = one_line(re.sub(r"<[^<>]{1,80}>", "", text), 8 * most)
    line = re.split(r"(?<=[a-z0-9)])[.;]\s", line)[0]
    if len(line) > most:
        line = line[: most + 1].rpartition(" ")[0]
    # A bracket that is opened and not closed was cut, too.
    return re.sub(r"\s*\([^()]*$", "", line).rstrip(" ;,.:")


def write(draft: Draft) -> str:
    """Give the text of a manifest."""
    lines = [MODELINE, f"# A draft, made from {_comment(draft.origin, 200)}."]
    if any(op.notes for op in draft.ops):
        lines.append("# What is marked with LOOK is a guess: decide, and take the comment out.")
    lines += [f"# {_comment(remark, 400)}" for remark in draft.remarks]
    lines += [f"agent: {scalar(draft.agent)}", "ops:"]
    for op in draft.ops:
        lines.append(f"  {scalar(op.path)}:")
        for name, value in op.keys.items():
            lines += _entry(scalar(name), value, 4, (name,), op.notes)
        if op.left:
            lines.append("    # Left out:")
            lines += [f"    #   {_comment(left, 200)}" for left in op.left]
    return "\n".join(lines) + "\n"


def _comment(text: str, most: int) -> str:
    # Nothing in a comment may end it, or be what no YAML file may hold.
    return "".join(one if one.isprintable() else "?" for one in one_line(text, most))


def _entry(
    key: str, value: Json, indent: int, steps: Steps, notes: Mapping[Steps, str]
) -> Iterator[str]:
    """Write what stands under a key, or as ``-`` in a list, in one line where that fits."""
    comment = f"  # LOOK: {notes[steps]}" if steps in notes else ""
    head = " " * indent + (key if key == "-" else f"{key}:")
    line = f"{head} {flow(value)}"
    beneath = any(len(place) > len(steps) and place[: len(steps)] == steps for place in notes)
    if not value or not isinstance(value, (dict, list)) or (len(line) <= WIDTH and not beneath):
        yield line + comment
        return
    if key == "-":
        # A list in a list goes on one line, however long.
        yield line + comment
        return
    yield head + comment
    if isinstance(value, dict):
        members: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        for name, inner in members.items():
            yield from _entry(_key(name), inner, indent + 2, (*steps, name), notes)
    else:
        items: list[Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        for place, inner in enumerate(items):
            yield from _entry("-", inner, indent + 2, (*steps, place), notes)


def flow(value: Json) -> str:
    """Write a value in one line."""
    if isinstance(value, Mapping):
        members: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        return "{" + ", ".join(f"{_key(k)}: {flow(v)}" for k, v in members.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        items: Sequence[Any] = value  # pyright: ignore[reportUnknownVariableType] - of Any
        return f"[{', '.join(map(flow, items))}]"
    return scalar(value)


def scalar(value: Json) -> str:
    """Write one value; text is quoted where YAML would read it as anything else."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = _PLAIN.fullmatch(value) and not _OTHER_THAN_TEXT.fullmatch(value)
    if plain or _WORD.fullmatch(value):
        return value
    return '"' + "".join(map(_character, value)) + '"'


def _key(name: str) -> str:
    # Keys are text however they are written, and an exit code or status looks like a number.
    return name if re.fullmatch(r"[0-9]{1,3}|[0-9]xx", name) else scalar(name)


def _character(one: str) -> str:
    if one in '"\\':
        return f"\\{one}"
    if "\ud800" <= one <= "\udfff":
        return "\ufffd"  # Half of a pair is no character, and can stand in no file.
    if one.isprintable():
        return one
    code = ord(one)
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )


TEMPLATE: Final = f"""\
{MODELINE}
agent: NAME                        # its name on the bus
# place: {{site: /eu/fra/rack7}}     # where it is; callers may ask for a place or a tag
# tags: [gnu]
slots: 4                           # calls that run at once
# health: {{run: [units, --version], every: 30s, fail_after: 2}}
ops:
  /units/convert:
    summary: Convert between units of measurement.
    args:
      from: {{max_length: 80}}       # a string, if no type is said
      to: {{default: m}}
    command: [units, --terse, "{{from}}", "{{to}}"]   # each {{argument}} stays one argument
    output: text                   # text | json | lines | csv | {{regex: ...}} | blob
    exit: {{0: done, 1: refused}}    # any other exit code is an error
    timeout: 5s
    effects: reads                 # reads | writes | deletes | spends
"""
