"""The argument list of a program: a list from the manifest to the kernel.

No shell reads it, and what a caller gave fills exactly one argument.  What a list cannot prevent is
prevented here: a value that the program would take for an option, one that no argument can hold,
and a manifest that hands a placeholder to an interpreter as part of a script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from spinal.protocols import Json

from ....document import members
from ...kind import Call, Site
from ...template import Template
from . import scripts

#: Longest argument that Linux hands to a program, in bytes with its NUL (MAX_ARG_STRLEN).
MAX_ARGUMENT: Final = 128 * 1024 - 1

#: Types whose values are the same in every language.
_HARMLESS: Final = ("integer", "boolean")

_ARGUMENT: Final[Mapping[str, Json]] = {"type": ["string", "number"]}


#: How it stands in a manifest.
SCHEMA: Final[Mapping[str, Json]] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            _ARGUMENT,
            {"type": "array", "items": _ARGUMENT, "minItems": 1},
            {
                "type": "object",
                "properties": {
                    "if": {"type": "string", "description": "A boolean argument."},
                    "argv": {"type": "array", "items": _ARGUMENT, "minItems": 1},
                },
                "required": ["if", "argv"],
                "additionalProperties": False,
            },
        ]
    },
    "description": "The program and its arguments, a list and never a line for a shell. {name} is "
    "filled with an argument and stays within one argument of the program. An inner list is "
    "left out where an argument in it is not given; {if: flag, argv: [...]} where it is false. "
    "{tmp} is a folder of the call's own.",
    "examples": [["units", "--terse", "{from}", "{to}"]],
}


@dataclass(frozen=True, slots=True)
class _Group:
    """Arguments that stand together, or not at all."""

    #: The argument that has to be true; without one all placeholders have to be given.
    condition: str | None
    items: tuple[Template, ...]

    def applies(self, values: Mapping[str, str]) -> bool:
        if self.condition is not None:
            return values.get(self.condition) == "true"
        return all(name in values for item in self.items for name in item.names)


@dataclass(frozen=True, slots=True)
class Argv:
    """A program and its arguments."""

    _items: Sequence[Template | _Group]

    @classmethod
    def read(cls, site: Site) -> Argv:
        """Read it; mistakes are collected."""
        items = [_item(site, said, place) for place, said in enumerate(site.value)]
        _check_program(site, items)
        return cls(items)

    @property
    def program(self) -> str:
        """The program as the manifest names it."""
        first = self._items[0]
        return first.fill({}) if isinstance(first, Template) else ""

    @property
    def names(self) -> list[str]:
        """The arguments of the operation that it needs, and ``tmp`` if it does."""
        return list(dict.fromkeys(name for item in self._items for name in _names(item)))

    def fill(self, call: Call, values: Mapping[str, str]) -> Iterator[str]:
        """Give the arguments of one call, without the program.

        Raises:
            CallError: ``bad-arguments``, by name, for one that would not arrive as it was meant.
        """
        literal = False
        for item in self._items[1:]:
            group = item if isinstance(item, _Group) else _Group(None, (item,))
            if isinstance(item, _Group) and not item.applies(values):
                _check_left_out(call, item, values)
                continue
            for template in group.items:
                missing = [name for name in template.names if name not in values]
                filled = template.fill({**values, **dict.fromkeys(missing, "")})
                _check(call, template, filled, literal)
                literal = literal or (filled == "--" and not template.names)
                yield filled


def _check_left_out(call: Call, group: _Group, values: Mapping[str, str]) -> None:
    """Refuse to leave out what a caller gave: whoever gives one of a group gives all."""
    if group.condition is not None:
        return
    names = [name for item in group.items for name in item.names if name in call.arguments]
    given = [n for n in names if n in values and not call.arguments[n].required]
    missing = [name for name in names if name not in values]
    if given and missing and call.arguments[given[0]].default is None:
        raise call.bad(missing[0], f"it is missing, and goes with '{given[0]}'")


def _check(call: Call, template: Template, filled: str, literal: bool) -> None:
    """Refuse what would not arrive as it was meant."""
    names = [name for name in template.names if name in call.arguments]
    if not names:
        return
    if "\0" in filled:
        name = next((n for n in names if "\0" in str(call.args[n])), names[0])
        raise call.bad(name, "it has a NUL character, which no program's argument can hold")
    if len(filled.encode()) > MAX_ARGUMENT:
        longest = max(names, key=lambda n: len(str(call.args[n])))
        raise call.bad(longest, f"longer than the {MAX_ARGUMENT} bytes of a program's argument")
    if filled.startswith("-") and not literal and template.leads is not None:
        # An empty value may stand before the one that brings the dash.
        name = next((n for n in names if str(call.args[n]).startswith("-")), names[0])
        one = call.arguments[name]
        if one.type != "file" and one.enum is None and not one.dashes:
            raise call.bad(name, "it begins with '-', and the program would take it for an option")


def _names(item: Template | _Group) -> list[str]:
    if isinstance(item, Template):
        return item.names
    names = [] if item.condition is None else [item.condition]
    return names + [name for template in item.items for name in template.names]


def _item(site: Site, said: Any, place: int) -> Template | _Group:
    def read(*steps: int | str) -> Template:
        return site.template(
            site.text("command", place, *steps), "command", place, *steps, also=("tmp",), files=True
        )

    if isinstance(said, list):
        count = len(said)  # pyright: ignore[reportUnknownArgumentType] - of Any
        return _Group(None, tuple(read(inner) for inner in range(count)))
    if isinstance(said, dict):
        flag = members(said)["if"]
        if flag not in site.arguments or site.arguments[flag].type != "boolean":
            site.wrong(f"{flag!r} is no boolean argument of this operation", "command", place, "if")
        site.used.add(flag)
        count = len(members(said)["argv"])
        return _Group(flag, tuple(read("argv", inner) for inner in range(count)))
    found = read()
    for name in found.names:
        one = site.arguments.get(name)
        if one is not None and not one.required and one.default is None:
            site.wrong(
                f"{{{name}}} may be missing: put this into an inner list, which is left out then, or "
                "give it a default",
                "command",
                place,
            )
    return found


def _check_program(site: Site, items: Sequence[Template | _Group]) -> None:
    """Make sure that no argument decides what is run, and none becomes part of a script."""
    first = items[0]
    if isinstance(first, _Group) or first.names:
        site.wrong("the program itself cannot come from an argument: write its name", "command", 0)
        return
    text = first.fill({})
    if not text or (" " in text and "/" not in text):
        site.wrong(
            f"{text!r} is no program: write one list entry for each argument, as in "
            f"[{', '.join(text.split()) or 'units, --terse'}]",
            "command",
            0,
        )
        return
    entries = [item.items if isinstance(item, _Group) else (item,) for item in items]
    place = scripts.chosen(entries)
    if place is not None:
        text = "the program itself cannot come from an argument: write its name"
        site.wrong(text, "command", place)
        return
    for found in scripts.find(entries):
        argument = site.arguments.get(found.argument)
        if argument is not None and (argument.enum or argument.type in _HARMLESS):
            continue
        site.wrong(
            f"{{{found.argument}}} would reach a shell on the other machine: run an agent there instead"
            if found.program == "ssh"
            else f"{{{found.argument}}} would become part of a script of {found.program}: hand it over "
            "as an argument or in env, and let the script read that, as in "
            '[sh, -c, \'units "$1" m\', sh, "{from}"]',
            "command",
            found.place,
        )
        return
