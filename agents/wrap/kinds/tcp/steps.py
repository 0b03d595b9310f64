"""The steps of a talk as they stand in a manifest; no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from spinal.protocols import Json

from ....document import DURATION, seconds
from ... import outcome
from ...kind import Site
from ...outcome import Outcome
from ...pattern import Pattern
from ...template import Template

#: No value of a line holds one of these, whichever of them ends it.
LINE_ENDS: Final[Mapping[str, str]] = {
    "\r": "a line end",
    "\n": "a line end",
    "\0": "a NUL character",
}

OTHERS: Final[Mapping[str, Json]] = {
    "type": "object",
    "additionalProperties": outcome.SCHEMA,
    "description": "What other answers mean: a regular expression for the whole line, and done, "
    "refused, retry or error, or one of the last three with words for the caller.",
    "examples": [{"END": {"refused": "no such key"}}],
}

STEP: Final[Mapping[str, Json]] = {
    "type": "object",
    "properties": {
        "send": {
            "type": "string",
            "description": "One line, without its end. {name} is filled with an argument, which is "
            "one word of it.",
            "examples": ["get {key}"],
        },
        "spaces": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "description": "The arguments in send that may be several words, or none.",
            "examples": [["text"]],
        },
        "data": {
            "type": "string",
            "description": "A block of bytes after the line, and a line end; {size} in send is how "
            "many they are.",
            "examples": ["{value}"],
        },
        "dotted": {
            "type": "string",
            "description": "Lines after the line, and one with a lone dot; dots at the start of a "
            "line are doubled (RFC 5321, 4.5.2).",
            "examples": ["{body}"],
        },
        "expect": {
            "type": "string",
            "description": "A line that all of this regular expression matches; what its named "
            "groups matched fills placeholders of the steps after it.",
            "examples": [r"VALUE \S+ \d+ (?P<size>\d+)"],
        },
        "more": {
            "type": "string",
            "description": "Regular expression of lines that may come before the expected one.",
            "examples": ["250-.*"],
        },
        "else": OTHERS,
        "read": {
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}],
            "description": "So many bytes, which are the output: a number, a group of an expected "
            "line, or all until the service closes the connection.",
            "examples": ["{size}", "all"],
        },
        "until": {
            "type": "string",
            "description": "Lines, which are the output, until one that matches.",
            "examples": ["END"],
        },
        "dots": {
            "type": "boolean",
            "description": "The service doubles dots at the start of a line; they are taken off.",
        },
        "within": {**DURATION, "description": "Longest time of this step."},
    },
    "additionalProperties": False,
    "examples": [{"send": "get {key}"}],
}

#: What a step does, and what may stand beside it.
_BESIDE: Final[Mapping[str, tuple[str, ...]]] = {
    "send": ("spaces", "data", "dotted"),
    "expect": ("more", "else"),
    "read": (),
    "until": ("else", "dots"),
}

Others = Sequence[tuple[Pattern, Outcome]]


@dataclass(frozen=True, slots=True)
class Send:
    """A line, and what follows it."""

    line: Template
    within: float
    spaces: frozenset[str] = frozenset()
    data: Template | None = None
    dotted: Template | None = None

    @property
    def templates(self) -> Iterator[Template]:
        """All that is filled in."""
        yield from (one for one in (self.line, self.data, self.dotted) if one is not None)


@dataclass(frozen=True, slots=True)
class Expect:
    """A line that is to come."""

    pattern: Pattern
    within: float
    others: Others
    more: Pattern | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes that are to come; all until the end without a count."""

    count: Template | None
    within: float


@dataclass(frozen=True, slots=True)
class Until:
    """Lines that are to come."""

    pattern: Pattern
    within: float
    others: Others
    dots: bool = False


Step = Send | Expect | Read | Until


class _Wrong(Exception):
    """A step has a mistake: its words, unless they were told already, and the key."""

    def __init__(self, text: str = "", *keys: str) -> None:
        super().__init__(text)
        self.text = text
        self.keys = keys


class Reader:
    """Reads the steps of a manifest.

    Args:
        site: where they stand; a mistake of a step is collected there, one for each.
        within: seconds for a step that does not say.
        others: what answers mean in every step.
    """

    def __init__(self, site: Site, within: float, others: Others) -> None:
        self._site = site
        self._within = within
        self._others = others
        #: An expected line cannot be read, so nobody knows what groups there are.
        self._unsure = False

    def steps(
        self, said: Sequence[Mapping[str, Any]], key: str, secrets: Sequence[str] | None = None
    ) -> list[Step]:
        """Read a list of them; in a greeting ``secrets`` take the place of arguments."""
        groups: list[str] = []
        found: list[Step] = []
        for place, step in enumerate(said):
            steps = (self._site.key, key, place)
            try:
                made = self._step(step, steps, groups, secrets)
            except _Wrong as exc:
                self._unsure = self._unsure or "expect" in step
                if exc.text:
                    self._site.wrong(exc.text, *steps, *exc.keys)
                continue
            found.append(made)
            if isinstance(made, Expect):
                groups += made.pattern.names
        return found

    def _step(
        self,
        said: Mapping[str, Any],
        steps: tuple[str | int, ...],
        groups: Sequence[str],
        secrets: Sequence[str] | None,
    ) -> Step:
        does = [key for key in _BESIDE if key in said]
        if len(does) != 1:
            has = f"has {' and '.join(does)}: make two steps of it" if does else "does nothing"
            raise _Wrong(f"{has}; a step has one of {', '.join(_BESIDE)}")
        for key in said:
            owners = [one for one, keys in _BESIDE.items() if key in keys]
            if owners and does[0] not in owners:
                raise _Wrong(f"goes with {' or '.join(owners)}, and this is {does[0]}", key)
        within = seconds(said["within"]) if "within" in said else self._within
        match does[0]:
            case "send":
                return self._send(said, steps, within, groups, secrets)
            case "read":
                return self._read(said, steps, within, groups)
            case key:
                return self._answer(said, steps, within, key, secrets or ())

    def _answer(
        self,
        said: Mapping[str, Any],
        steps: tuple[str | int, ...],
        within: float,
        key: str,
        secrets: Sequence[str],
    ) -> Expect | Until:
        site = self._site
        pattern = _compiled(said[key], key)
        for name in pattern.names:
            if name in site.arguments or name in secrets:
                raise _Wrong(
                    f"the group {name} has the name of an argument: call it otherwise", key
                )
        others = [*read_others(site, said.get("else", {}), *steps, "else"), *self._others]
        if key == "until":
            return Until(pattern, within, others, said.get("dots", False))
        more = _compiled(said["more"], "more") if "more" in said else None
        return Expect(pattern, within, others, more)

    def _read(
        self,
        said: Mapping[str, Any],
        steps: tuple[str | int, ...],
        within: float,
        groups: Sequence[str],
    ) -> Read:
        if said["read"] == "all":
            return Read(None, within)
        count = self._template(str(said["read"]), steps, "read", groups, ())
        if not re.fullmatch("[0-9]*", _literal(count)):
            raise _Wrong('write a number of bytes, a group such as "{size}", or all', "read")
        return Read(count, within)

    def _send(
        self,
        said: Mapping[str, Any],
        steps: tuple[str | int, ...],
        within: float,
        groups: Sequence[str],
        secrets: Sequence[str] | None,
    ) -> Send:
        site = self._site
        counts = "data" in said
        line = self._template(
            said["send"], steps, "send", [*groups, "size"] if counts else groups, secrets
        )
        if any(end in _literal(line) for end in LINE_ENDS):
            raise _Wrong("is one line: leave its end out, line_end says how lines end", "send")
        if counts and "size" in site.arguments:
            raise _Wrong(
                "{size} is the number of bytes of data here: call the argument otherwise", "send"
            )
        if counts and "size" not in line.names:
            raise _Wrong("{size} is missing: how many bytes the data are", "send")
        for name in line.names:
            one = site.arguments.get(name)
            if one is None or name in groups:
                continue
            if not one.required and one.default is None:
                raise _Wrong(f"{{{name}}} may be missing: give it a default", "send")
            if counts and not (one.pattern or one.max_length or one.enum or one.type != "string"):
                # A service that refuses the line reads the block as the lines of further commands.
                raise _Wrong(
                    f"{{{name}}} stands before a block of data, which a service that does not like "
                    f"the line takes for commands: give {name} a max_length or a pattern",
                    "send",
                )
        for name in said.get("spaces", ()):
            if name not in line.names:
                raise _Wrong(f"{name!r} is no argument in send: leave it out", "spaces")
        data = dotted = None
        if counts:
            data = self._template(said["data"], steps, "data", groups, secrets, files=True)
            for name in data.names:
                one = site.arguments.get(name)
                if one is not None and one.type == "file" and data.whole is None:
                    raise _Wrong(f"{{{name}}} is a file and must be all of it", "data")
        if "dotted" in said:
            dotted = self._template(said["dotted"], steps, "dotted", groups, secrets)
        return Send(line, within, frozenset(said.get("spaces", ())), data, dotted)

    def _template(
        self,
        said: str,
        steps: tuple[str | int, ...],
        key: str,
        also: Sequence[str],
        secrets: Sequence[str] | None,
        files: bool = False,
    ) -> Template:
        """Read one; in a greeting, which is said once for many calls, there are no arguments."""
        try:
            found = Template.of(said)
        except ValueError as exc:
            raise _Wrong(str(exc), key) from exc
        if self._unsure:
            return found
        if secrets is None:
            if self._site.template(said, *steps, key, also=also, files=files) != found:
                raise _Wrong  # It has been told.
            return found
        known = [*also, *secrets]
        for name in found.names:
            if name not in known:
                instead = f"write one of {', '.join(known)}" if known else "leave it out"
                raise _Wrong(f"{{{name}}} is not known here: {instead}", key)
        return found


def read_others(site: Site, said: Mapping[str, Any], *steps: str | int) -> Others:
    """Read what fits :data:`OTHERS`; mistakes are collected."""
    found: list[tuple[Pattern, Outcome]] = []
    for regex, meant in said.items():
        try:
            found.append((_compiled(regex, regex), Outcome.of(meant)))
        except _Wrong as exc:
            site.wrong(exc.text, *steps, regex)
    return found


def _compiled(said: str, key: str) -> Pattern:
    try:
        return Pattern(said)
    except ValueError as exc:
        text = f"{said!r} is {exc}: escape . ( [ * + ? with \\"
        raise _Wrong(text, key) from exc


def _literal(template: Template) -> str:
    return "".join(piece for piece in template.pieces if isinstance(piece, str))
