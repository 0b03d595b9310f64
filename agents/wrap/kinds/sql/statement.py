"""An SQL statement of a manifest: where its parameters are, and that it is one.

Only its words are looked at here, so that a mistake is told with a line before anything is asked.
What a statement may do is decided by the database, in a transaction that reads only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

#: What a quoted text is made of, and how a comment begins, in most databases and in MySQL.
_FORMS: Final = {
    False: (r"\b[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*'", r'"(?:[^"]|"")*"', "--"),
    True: (r"'(?:[^'\\]|\\.|'')*'", r'"(?:[^"\\]|\\.|"")*"', r"(?:--|\#)"),
}

#: A parameter is ``:name``; all else that has a colon, a quote or a semicolon is passed over.
_PIECE: Final = {
    mysql: re.compile(
        rf"""
      (?P<comment> {line}[^\n]* | /\*.*?\*/ )
    | (?P<text> {text} | \$(?P<tag>[A-Za-z_]\w*|)\$.*?\$(?P=tag)\$ )
    | (?P<name> {name} | `[^`]*` )
    | (?P<open> ['"`] | /\* )
    | (?P<cast> :: )
    | :(?P<parameter> [A-Za-z_]\w* )
    | (?P<brace> \{{[^{{}}]*\}} )
    | (?P<place> %\(\w+\)s | %s\b | (?<!\w)\$\d+ )
    | (?P<end> ; )
    | (?P<other> \s+ | \w+ | . )
    """,
        re.VERBOSE | re.DOTALL,
    )
    for mysql, (text, name, line) in _FORMS.items()
}

#: First words of what reads.
READS: Final = frozenset({"select", "with", "values", "table", "show", "explain"})

#: First words that are refused, and why.
_REFUSED: Final = {
    **dict.fromkeys(
        ("begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release"),
        "the transaction is begun and ended for you: leave it out",
    ),
    **dict.fromkeys(
        ("set", "reset", "discard", "use", "lock"),
        "the session is shared with other calls: leave it out",
    ),
    "pragma": "the session is shared with other calls: leave it out, or select from a function such "
    "as pragma_table_info(:table)",
    **dict.fromkeys(
        ("attach", "detach", "load", "copy", "listen", "notify", "unlisten", "prepare", "execute"),
        "is not done here: write one that reads or writes rows",
    ),
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement."""

    #: As :func:`sqlalchemy.text` takes it.
    text: str
    #: Its parameters.
    names: tuple[str, ...]
    #: Its first word, in small letters.
    verb: str

    @property
    def reads(self) -> bool:
        """Whether it begins as one that reads."""
        return self.verb in READS

    @classmethod
    def of(cls, said: str, arguments: Collection[str], mysql: bool = False) -> Statement:
        """Read one.

        Args:
            said: the statement.
            arguments: names of all the arguments that there are.
            mysql: its texts have escapes with backslashes, and its comments may begin with ``#``.

        Raises:
            ValueError: it is not one statement with parameters; the text says what to write.
        """
        pieces: list[str] = []
        names: list[str] = []
        verb = ""
        ended = False
        for found in _PIECE[mysql].finditer(said):
            kind, piece = found.lastgroup or "other", found[0]
            # The tag of a text in dollars is a group of its own.
            kind = "text" if found["text"] is not None else kind
            blank = kind == "comment" or not piece.strip()
            if ended and not blank and kind != "end":
                raise ValueError("has a second statement after ';': write statements: [..., ...]")
            if not verb and not blank and kind != "end":
                verb = piece.lower() if piece != "(" else ""
            match kind:
                case "parameter":
                    if found["parameter"] not in arguments:
                        raise ValueError(_unknown(found["parameter"], arguments))
                    names.append(found["parameter"])
                    before = pieces[-1][-1:] if pieces else ""
                    # Right behind a word it would be none.
                    pieces.append(f"{' ' if before.isalnum() or before == '_' else ''}{piece}")
                case "end":
                    ended = True
                case _:
                    for wrong in _wrong(kind, piece, arguments):
                        raise ValueError(wrong)
                    pieces.append(piece.replace(":", r"\:"))
        if not verb:
            raise ValueError("is empty: write for example select id from customers where id = :id")
        if verb in _REFUSED:
            raise ValueError(f"{verb}: {_REFUSED[verb]}")
        return cls("".join(pieces).strip(), tuple(dict.fromkeys(names)), verb)


def _unknown(name: str, arguments: Collection[str]) -> str:
    known = ", ".join(arguments) or "none"
    return f":{name} is no argument of this operation (it has {known})"


def _wrong(kind: str, piece: str, arguments: Collection[str]) -> Iterator[str]:
    """Say what a piece should be instead."""
    match kind:
        case "open":
            yield f"{piece} is opened and never closed"
        case "brace":
            name = piece[1:-1].strip()
            yield f"an argument is bound and not filled in: write :{name} in place of {piece}"
        case "place":
            yield f"{piece}: an argument is bound by its name: write :name"
        case "text" | "name":
            for name in arguments:
                for form in (f"{{{name}}}", f":{name}"):
                    if re.search(rf"{re.escape(form)}(?!\w)", piece) and (
                        form[0] == "{" or piece[1:-1].strip(" %") == form
                    ):
                        quote = piece[0]
                        yield (
                            f"{form} in quotes is a text and no argument: write :{name} without the "
                            f"{quote}, with || for what stands beside it"
                        )
        case _:
            pass
