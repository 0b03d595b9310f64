"""What a program's help says: its usage, options and commands, read from the text.

Help has no grammar, but habits: GNU getopt, argparse, click, clap, Go's flag, BSD synopses and
busybox write tables of which an option, its value and a sentence can be told apart.  What cannot be
told apart is left out rather than guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

#: Most of a text that is read: characters, lines, and characters of a line.
MAX_TEXT: Final = 256 * 1024
MAX_LINES: Final = 4000
MAX_LINE: Final = 1000

_NAME: Final = r"--?(?:\[no-\])?[A-Za-z0-9?@#%][A-Za-z0-9_?@.+-]*"
_BRACKETED: Final = r"<[^<>]*>|\{[^{}]*\}|\[[^\[\]]*\]"
#: A value: ``=FILE``, ``[=WHEN]``, `` <file>``, or a word that stands alone before a gap.
_VALUE: Final = (
    rf"\[=(?P<maybe>[^\[\]]*)\]|=(?P<joined>(?:{_BRACKETED}|[^\s,])*)"
    rf"|[ ](?P<apart>{_BRACKETED}|(?:[A-Za-z'\"#:][^\s,]*)(?=\s{{2}}|\s*$|,\s*-))"
    r"|(?P<stuck>\[[^\[\]\s]*\])"
)
_OPTION: Final = re.compile(rf"(?P<name>{_NAME})(?P<more>\.\.\.)?(?:{_VALUE})?(?P<dots>\.\.\.)?")
_BETWEEN: Final = re.compile(r"\s*[,|/]\s*(?=-)|\s{1,3}(?=--[A-Za-z])|\s*\(\"[^\"]*\"\),\s*")
_ROW: Final = re.compile(r"(\s*)(-[-A-Za-z0-9?@#%\[].*)")
_USAGE: Final = re.compile(r"\s*(?:usage|synopsis)(?: of [^:]*)?\s*(?::|$)\s*(.*)", re.IGNORECASE)
_COMMANDS: Final = re.compile(
    r"\s*[A-Za-z ]*\b(?:sub-?)?commands?\b[^.]*(?::| are)?\s*", re.IGNORECASE
)
_COMMAND: Final = re.compile(
    r"\s{1,8}([a-z][a-z0-9:_-]*)(?:,\s*[a-z][a-z0-9-]*)*\*?(?:\s.*)?\s{2,}(\S.*)"
)
_TOKEN: Final = re.compile(
    r"\.\.\.|\{[^{}\[\]]*\}|<[^<>]*>|'[^']*'|--?\[no-\][\w-]+|\[=[^\[\]]*\]|[\[\]()|]|[^\s\[\]()|<>{}]+"
)
_CHOICES: Final = re.compile(
    r"[(\[](?:possible values|choices|one of)[:=]?\s*([^)\]]*)[)\]]", re.IGNORECASE
)
_WORD_CHOICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_SINGLES: Final = re.compile(r"(?:^|[\s\[|])-[A-Za-z][A-Za-z0-9-]{2,}(?=[\s\]]|$)", re.MULTILINE)
#: What stands in a usage line for the options of the table.
_OPTIONS: Final = re.compile(
    r"(?:[a-z]+[ _-])?(?:options?|opts?|flags?|switches)(?:[ ._-]*)(?:\.\.\.)?", re.IGNORECASE
)
_OPTIONS_GROUP: Final = re.compile(
    r"\[<?(?:[a-z]+ )?(?:options?|opts?|flags?|switches)>?[ .]*\](?:\.\.\.)?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Option:
    """An option as the help shows it."""

    #: All its names, with their dashes.
    names: tuple[str, ...]
    #: What stands for its value; empty for none.
    value: str = ""
    #: The value is shown after ``=``.
    joined: bool = False
    #: It may stand without its value.
    maybe: bool = False
    about: str = ""

    @property
    def long(self) -> str:
        """Its name that says most."""
        return max(
            self.names, key=lambda name: (name.startswith("--"), name[1:2] != "-" and len(name) > 2)
        )

    @property
    def choices(self) -> tuple[str, ...]:
        """All that its value may be, if the help says so."""
        return choices(self.value) or choices(self.about)


@dataclass(frozen=True, slots=True)
class Positional:
    """An argument that is told by its place."""

    name: str
    required: bool = True
    #: There may be more of them.
    several: bool = False
    #: Those of one bracket stand together, or not at all.
    group: int = 0
    #: A ``--`` stands before it in the usage.
    dashes: bool = False
    about: str = ""


@dataclass(frozen=True)
class Help:
    """What a help text says."""

    summary: str = ""
    options: tuple[Option, ...] = ()
    positionals: tuple[Positional, ...] = ()
    #: Names of sub-commands, and what they are for.
    commands: dict[str, str] = field(default_factory=dict[str, str])
    #: The parser behind it is known to take ``--`` as the end of the options.
    ends_options: bool = False
    #: It has words such as ``-exec``, of which no parser takes ``--`` as others do.
    long_single: bool = False
    #: It says that it reads its standard input.
    reads_input: bool = False

    @property
    def found(self) -> bool:
        """Whether the text says anything."""
        return bool(self.options or self.positionals or self.commands)


def read(text: str, words: Sequence[str]) -> Help:
    """Read the help of a program.

    Args:
        text: what it wrote.
        words: its name without folder, and the sub-command that was asked.
    """
    lines = _lines(text)
    usage, first, after = _usage(lines, words[0])
    shown_options, positionals = _Usage(usage, words).read()
    options, about = _table(lines)
    known = {name for option in options for name in option.names}
    options += [one for one in shown_options if not known & set(one.names)]
    if not known:
        # A synopsis that stands alone, as those of BSD do.
        options += _letters(usage)
    singles = _SINGLES.search("\n".join(lines))
    return Help(
        _summary(lines, first, after, words),
        tuple(options),
        tuple(replace(one, about=about.get(one.name, "")) for one in positionals),
        _commands(lines),
        bool(
            re.search(
                r"show this (help )?message and exit\.?$|^\s*-h, --help\s+Print help",
                text,
                re.IGNORECASE | re.MULTILINE,
            )
        ),
        singles is not None,
        re.search(r"(?i)standard input|\bstdin\b", text) is not None,
    )


def choices(text: str) -> tuple[str, ...]:
    """Give the words that a value is one of: ``{a,b}``, ``<a|b>``, ``[possible values: a, b]``."""
    told = _CHOICES.search(text)
    if told is None and not re.fullmatch(r"[<{\[]?[^<>{}\[\]\s]+[|,][^<>{}\[\]\s]+[>}\]]?", text):
        return ()
    inner = told[1] if told else text.strip("<>{}[]")
    if told is None and "|" not in inner and not text.startswith("{"):
        return ()
    found = [word.strip().strip("'\"`") for word in re.split(r"[|,]", inner)]
    if len(found) < 2 or not all(_WORD_CHOICE.fullmatch(word) for word in found):
        return ()
    return tuple(dict.fromkeys(found))


def _lines(text: str) -> list[str]:
    text = re.sub(r".\x08|\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r", "", text[:MAX_TEXT])
    found: list[str] = []
    for line in text.splitlines()[:MAX_LINES]:
        line = line[:MAX_LINE]
        margin = re.match(r"\s*", line)
        assert margin is not None
        # A tab inside a line is a gap, also where it is but one column wide.
        found.append(margin[0].expandtabs(8) + line[margin.end() :].replace("\t", "    ").rstrip())
    return found


# -- usage


def _usage(lines: Sequence[str], program: str) -> tuple[str, int, int]:
    """Give the first form of the usage in one line, and the lines from and to which it stands."""
    for place, line in enumerate(lines):
        match = _USAGE.fullmatch(line)
        if match is None:
            continue
        words = match[1].strip()
        at = place + 1
        while not words and at < len(lines) and at < place + 3:
            words = lines[at].strip()
            at += 1
        indent = len(line) - len(line.lstrip())
        while at < len(lines):
            more = lines[at]
            begins = more.strip()
            if (
                not begins
                or len(more) - len(more.lstrip()) <= indent
                or re.match(rf"(?:or:?\s|(?:\S*/)?{re.escape(program)}\b)", begins)
                or begins.startswith("-")
            ):
                break
            words += f" {begins}"
            at += 1
        return words, place, at
    for place, line in enumerate(lines[:5]):
        # Some give the usage without saying so.
        if re.match(rf"{re.escape(program)} +[\[<A-Z].*[\]>.A-Z]$", line):
            return line, place, place + 1
    return "", -1, 0


class _Usage:
    """Reads one usage line: ``prog [-v] [-o FILE] [--] SOURCE... [DEST]``."""

    def __init__(self, text: str, words: Sequence[str]) -> None:
        text = _OPTIONS_GROUP.sub("", text[:20_000])
        self._tokens = [found[0] for found in _TOKEN.finditer(text)][:400]
        while self._tokens and self._tokens[0].rpartition("/")[2] in (
            "python",
            "python3",
            "-m",
            *words,
        ):
            self._tokens.pop(0)
        self._at = 0
        self._groups = 0
        self._dashes = False
        self._options: list[Option] = []
        self._positionals: list[Positional] = []

    def read(self) -> tuple[list[Option], list[Positional]]:
        """Give its options and positional arguments."""
        self._sequence(True, 0, 0)
        return self._options, self._positionals

    def _sequence(self, required: bool, group: int, depth: int) -> None:
        first_of_alternatives = True
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            self._at += 1
            if token == "[" and depth < 20:
                self._groups += 1
                inner = len(self._positionals)
                self._sequence(False, self._groups, depth + 1)
                if self._next("..."):
                    self._positionals[inner:] = [
                        replace(one, several=True) for one in self._positionals[inner:]
                    ]
            elif token == "(" and depth < 20:
                self._sequence(required, group, depth + 1)
            elif token in ("]", ")"):
                return
            elif token == "|":
                first_of_alternatives = False
            elif token == "...":
                if self._positionals:
                    self._positionals[-1] = replace(self._positionals[-1], several=True)
            elif token == "--":
                self._dashes = True
            elif token.startswith("-") and len(token) > 1:
                self._option(token, depth)
            elif first_of_alternatives:
                self._positional(token, required, group)

    def _next(self, token: str) -> bool:
        found = self._tokens[self._at : self._at + 1] == [token]
        self._at += found
        return found

    def _option(self, token: str, depth: int) -> None:
        name, equals, value = token.partition("=")
        follows = self._tokens[self._at] if self._at < len(self._tokens) else "]"
        maybe = follows.startswith("[=")
        if maybe:
            self._at += 1
            value = follows[2:-1] or "VALUE"
        elif (equals and not value and not re.match(r"[\[\]()|]|\.\.\.|-", follows)) or (
            not equals and depth and not re.match(r"[\[\]()|]|\.\.\.|-", follows)
        ):
            self._at += 1
            value = follows
        elif not equals and depth and follows == "[":
            value = "VALUE"
            self._skip_group()
        if value and re.match(r"\[[:=,@/]", "".join(self._tokens[self._at : self._at + 2])):
            # The rest of the value: host[:port].
            self._skip_group()
        if re.fullmatch(r"-[A-Za-z0-9]|--[A-Za-z0-9][\w-]*", name):
            self._options.append(Option((name,), value, bool(equals) or maybe, maybe))

    def _skip_group(self) -> None:
        """Go to the end of the bracket that we are in."""
        depth = 0
        while self._at < len(self._tokens) and (depth or self._tokens[self._at] != "]"):
            depth += {"[": 1, "]": -1}.get(self._tokens[self._at], 0)
            self._at += 1

    def _positional(self, token: str, required: bool, group: int) -> None:
        name = token.removesuffix("...").removesuffix("…").strip("<>{}'\"")
        if not re.search(r"[A-Za-z]", name) or _OPTIONS.fullmatch(name):
            return
        several = token.endswith(("...", "…"))
        self._positionals.append(Positional(name, required, several, group, self._dashes))
        self._dashes = False


def _letters(usage: str) -> list[Option]:
    """Give the flags of a BSD synopsis: ``[-abc]``."""
    found = re.findall(r"\[-([A-Za-z0-9]{2,60})\]", usage)
    return [Option((f"-{letter}",)) for letters in found for letter in letters]


# -- tables


def _table(lines: Sequence[str]) -> tuple[list[Option], dict[str, str]]:
    """Give the options that stand in tables, and what is said of positional arguments."""
    found: list[Option] = []
    about: dict[str, str] = {}
    named = ""
    column = 0
    inside = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        row = _ROW.fullmatch(line)
        option = _row(row[2]) if row is not None and (not inside or indent < column + 8) else None
        if option is not None:
            found.append(option)
            inside, named, column = True, "", indent
        elif inside and line.strip() and indent > column and row is None:
            last = found[-1]
            if len(last.about) < 500:
                found[-1] = replace(last, about=f"{last.about} {line.strip()}".strip())
        else:
            inside = False
            match = re.fullmatch(r"\s{1,8}<?([A-Za-z][\w .-]*?)>?(?:\.\.\.)?\s{2,}(\S.*)", line)
            if match is not None:
                named = match[1]
                about.setdefault(named, match[2])
            elif named and line.strip() and indent > 8:
                about[named] = f"{about[named]} {line.strip()}"[:500]
            else:
                named = ""
    seen: set[str] = set()
    unique: list[Option] = []
    for option in found:
        if not seen & set(option.names):
            unique.append(option)
            seen |= set(option.names)
    return unique, about


def _row(text: str) -> Option | None:
    """Read one row of a table; none if it is something else."""
    names: list[str] = []
    value, joined, maybe = "", False, False
    at = 0
    while True:
        match = _OPTION.match(text, at)
        if match is None:
            return None
        names.append(match["name"].replace("[no-]", ""))
        parts = match.groupdict()
        if match["stuck"] and not match["name"].startswith("--"):
            maybe = True
        for kind in ("joined", "maybe", "apart"):
            if parts[kind]:
                # A sign that may be there is no part of what the value is.
                value = re.sub(r"^\[[-+]+\]", "", parts[kind])
                joined = joined or kind != "apart"
                maybe = maybe or kind == "maybe"
        if kind_optional(value):
            value, maybe = value[1:-1], True
        at = match.end()
        between = _BETWEEN.match(text, at)
        if between is None:
            break
        at = between.end()
    rest = text[at:]
    told = value and (joined or value.startswith("<"))
    if rest and not rest.startswith(("  ", ":")) and not (told and rest.startswith(" ")):
        return None
    return Option(
        tuple(names), value.strip("<>") or value, joined, maybe, rest.lstrip(": ").strip()
    )


def kind_optional(value: str) -> bool:
    """Whether a value in brackets may be left out, and is no choice of words."""
    return value.startswith("[") and value.endswith("]") and not choices(value)


def _commands(lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    inside = False
    for line in lines:
        if line.strip() and not line.startswith(" ") and not _COMMAND.fullmatch(line):
            inside = _COMMANDS.fullmatch(line) is not None or (
                inside and not line.rstrip().endswith(":")
            )
            continue
        match = _COMMAND.fullmatch(line)
        if inside and match is not None and len(found) < 300:
            found.setdefault(match[1], match[2])
    return found


# -- the first sentence


def _summary(lines: Sequence[str], first: int, after: int, words: Sequence[str]) -> str:
    for part in (lines[: max(first, 0)], lines[after:]):
        for paragraph in _paragraphs(part[:60]):
            if re.match(rf"{re.escape(words[0])} .*[\[<]", paragraph):
                continue
            text = re.sub(rf"^{re.escape(words[0])}\s+-+\s+", "", paragraph)
            text = re.sub(r"\s*[\[(](?:version|v?[0-9])[^\])]*[\])]", "", text)
            if _ROW.fullmatch(paragraph) or re.search(
                r"(?i)multi-call|^(usage|or|mandatory|version|copyright|license|report bugs|try|run|features|delegates|aliases"
                r"|these are|see|example|error|unknown|for )\b|:$|^\S+ [0-9]+\.[0-9.]+|illegal|unrecogni|invalid option",
                text,
            ):
                continue
            sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0][:300].strip()
            if len(sentence.split()) >= 2 and re.match(r"[A-Za-z'\"]", sentence):
                if not sentence.startswith(words[0]):
                    sentence = sentence[0].upper() + sentence[1:]
                return sentence.rstrip(".") + "."
    return ""


def _paragraphs(lines: Sequence[str]) -> Iterator[str]:
    held: list[str] = []
    for line in [*lines, ""]:
        if re.match(r"\s*or:? ", line):
            continue
        if line.strip() and not _ROW.fullmatch(line):
            held.append(line.strip())
            continue
        if held:
            yield " ".join(held)
        held = []
        if line.strip():
            return
