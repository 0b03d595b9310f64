"""Texts with placeholders: ``{name}`` is filled with an argument, ``{{`` and ``}}`` are braces.

A placeholder is a piece of one text, and stays a piece of it: what it is filled with is never read
again, neither for placeholders nor by a shell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place to be filled."""

    name: str


@dataclass(frozen=True, slots=True)
class Template:
    """A text with places to be filled."""

    pieces: tuple[str | Slot, ...]

    @classmethod
    def of(cls, text: str) -> Template:
        """Take a text apart.

        Raises:
            ValueError: a brace stands alone, or holds no name; the text says what to write.
        """
        pieces: list[str | Slot] = []
        for found in _PIECE.finditer(text):
            match found[0]:
                case "{{" | "}}":
                    pieces.append(found[0][0])
                case "{" | "}":
                    raise ValueError(
                        f"a {found[0]!r} stands alone: for a brace itself write it twice"
                    )
                case _ if found[1] is None:
                    pieces.append(found[0])
                case _ if not _NAME.fullmatch(found[1]):
                    raise ValueError(
                        f"{found[0]!r} holds no name of an argument: for braces themselves write "
                        f"{{{found[0]}}}"
                    )
                case _:
                    pieces.append(Slot(found[1]))
        return cls(tuple(pieces))

    @property
    def names(self) -> list[str]:
        """The arguments that it needs."""
        return list(dict.fromkeys(p.name for p in self.pieces if isinstance(p, Slot)))

    @property
    def whole(self) -> str | None:
        """Name of the argument that is all of it; none where there is more, or other text."""
        match self.pieces:
            case (Slot(name),):
                return name
            case _:
                return None

    @property
    def leads(self) -> str | None:
        """Name of the argument that it begins with, if it does."""
        first = self.pieces[0] if self.pieces else None
        return first.name if isinstance(first, Slot) else None

    def fill(
        self, values: Mapping[str, str], quote: Callable[[str], str] = lambda text: text
    ) -> str:
        """Give the text with every place filled, each value quoted for the place it goes to."""
        return "".join(
            quote(values[piece.name]) if isinstance(piece, Slot) else piece for piece in self.pieces
        )
