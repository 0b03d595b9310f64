"""From what a person types to a request.

Pure.  The first word is the command, with a ``!`` before it or, in private, without.  Words are
separated by white space.  Where a word begins, or the value of a ``key=value``, a quote may stand:
what is inside is one word, spaces and lines included, and after the closing quote comes a space.
Between double quotes ``\\"`` and ``\\\\`` mean what follows the backslash; between single quotes, and
outside of quotes, nothing has a special meaning.  The quotes that telephones make of those two are
taken as well.  Nothing is ever expanded.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from spinal.protocols import SpinalError

#: Characters of a message that are read, and most words in it.
MAX_TEXT: Final = 8192
MAX_WORDS: Final = 128

#: What makes a command of the first word.
MARK: Final = "!"

#: Opening quote -> what closes it.
_QUOTES: Final[Mapping[str, str]] = {
    '"': '"',
    "'": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"\N{RIGHT DOUBLE QUOTATION MARK}',
    "\N{DOUBLE LOW-9 QUOTATION MARK}": (
        '"\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}'
    ),
    "\N{LEFT SINGLE QUOTATION MARK}": "'\N{RIGHT SINGLE QUOTATION MARK}",
}
#: Opening quotes between which a backslash takes the meaning from a quote or a backslash.
_ESCAPING: Final = frozenset(_QUOTES) - {"'", "\N{LEFT SINGLE QUOTATION MARK}"}


class NotUnderstood(SpinalError):
    """What was typed is no request; the text says what to write, in one line."""


@dataclass(frozen=True, slots=True)
class Command:
    """Something that can be asked for."""

    name: str
    #: What comes behind the name, as help shows it.
    takes: str
    #: What it does, in one sentence.
    about: str
    #: Fewest and most words behind the name.
    least: int = 0
    most: int = MAX_WORDS

    @property
    def usage(self) -> str:
        """How to write it."""
        return f"{MARK}{self.name} {self.takes}".rstrip()


#: By name, in the order in which help shows them.
COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        Command("ops", "[WORD or /OP]", "List the operations, or show one.", most=1),
        Command("agents", "[WORD]", "List who is there.", most=1),
        Command("call", "/OP [key=value]...", "Have an operation done.", least=1),
        Command("why", "ID", "Say what became of a call, and why.", least=1, most=1),
        Command("help", "[COMMAND]", "Show this.", most=1),
    )
}


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for."""

    command: str
    words: tuple[str, ...] = ()


def parse(text: str, private: bool = True) -> Request | None:
    """Read a message.

    Args:
        text: the whole of it.
        private: it was said to us alone.  Then everything in it is meant for us; else only what
            begins with ``!`` and the name of a command is, and the rest gives None.

    Raises:
        NotUnderstood: it is meant for us, and is no request.
    """
    stripped = text.strip()
    head, _, _ = stripped.partition(" ")
    name = (head.split() or [""])[0]
    marked = name.startswith(MARK)
    name = name.removeprefix(MARK).lower()
    if not private and not (marked and name in COMMANDS):
        return None
    if len(text) > MAX_TEXT:
        raise NotUnderstood(f"that is too long: a message may have {MAX_TEXT} characters")
    command = COMMANDS.get(name)
    if command is None:
        raise NotUnderstood(_unknown(name))
    _, *words = split(stripped)
    if not command.least <= len(words) <= command.most:
        raise NotUnderstood(f"write {command.usage}")
    return Request(name, tuple(words))


def _unknown(name: str) -> str:
    if not name:
        return f"write a command: {MARK}help lists them"
    if name.startswith("/"):
        return f"to have an operation done, write {MARK}call {name[:60]} ..."
    near = difflib.get_close_matches(name[:60], COMMANDS, 1)
    meant = f"did you mean {MARK}{near[0]}? " if near else ""
    return f"there is no command {name[:60]!r}: {meant}{MARK}help lists them"


def split(text: str) -> list[str]:
    """Take a text apart into words, as the module says.

    Raises:
        NotUnderstood: a quote is not closed, or no space follows it, or there are too many words.
    """
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return words
        if len(words) > MAX_WORDS:
            raise NotUnderstood(f"those are too many words: at most {MAX_WORDS} are read")
        word, at = _word(text, at)
        words.append(word)


def _word(text: str, at: int) -> tuple[str, int]:
    """Read the word that begins there; gives where it ends as well."""
    begin = at
    while at < len(text) and not text[at].isspace():
        # A value begins behind the first '=' of a word.
        first = at == begin or (text[at - 1] == "=" and "=" not in text[begin : at - 1])
        if first and text[at] in _QUOTES:
            quoted, end = _quoted(text, at)
            return text[begin:at] + quoted, end
        at += 1
    return text[begin:at], at


def _quoted(text: str, at: int) -> tuple[str, int]:
    """Read what is between the quote that stands there and the one that closes it."""
    quote = text[at]
    closes, escapes = _QUOTES[quote], quote in _ESCAPING
    found: list[str] = []
    at += 1
    while at < len(text):
        here = text[at]
        if here in closes:
            at += 1
            if at < len(text) and not text[at].isspace():
                raise NotUnderstood(f"write a space behind the closing quote {here}")
            return "".join(found), at
        follows = text[at + 1 : at + 2]
        if escapes and here == "\\" and follows and (follows == "\\" or follows in closes):
            here = follows
            at += 1
        found.append(here)
        at += 1
    raise NotUnderstood(f"the quote {quote} is not closed")
