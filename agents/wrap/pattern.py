"""Regular expressions of a manifest, matched in bounded time.

What they are matched against may come from somebody who knows them, and the usual ones can take for
ever on a text that was made for that.  Python's own :mod:`re` cannot be stopped, and holds up the
whole agent meanwhile; :mod:`regex` reads the same expressions and gives up in time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import regex

from ..errors import AgentError

#: Seconds that a match may take.
WITHIN: Final = 0.2

Match = regex.Match[str]


class TooLong(AgentError):
    """A match took longer than it may."""


class Pattern:
    """A regular expression.

    Args:
        text: as it stands in the manifest.
        lines: ``^`` and ``$`` stand for the ends of lines, too.

    Raises:
        ValueError: it is none; the text says why.
    """

    __slots__ = ("_compiled", "text")

    def __init__(self, text: str, *, lines: bool = False) -> None:
        self.text = text
        try:
            self._compiled = regex.compile(text, regex.MULTILINE if lines else 0)
        except regex.error as exc:
            raise ValueError(f"no regular expression: {exc}") from exc

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    @property
    def groups(self) -> int:
        """How many groups it has."""
        return self._compiled.groups

    @property
    def names(self) -> Mapping[str, int]:
        """Its named groups."""
        return self._compiled.groupindex

    def fullmatch(self, text: str) -> Match | None:
        """Match all of a text.

        Raises:
            TooLong: it takes more than :data:`WITHIN`.
        """
        try:
            return self._compiled.fullmatch(text, timeout=WITHIN)
        except TimeoutError as exc:
            raise self._too_long() from exc

    def search(self, text: str) -> Match | None:
        """Find the first match; as :meth:`fullmatch`."""
        try:
            return self._compiled.search(text, timeout=WITHIN)
        except TimeoutError as exc:
            raise self._too_long() from exc

    def all(self, text: str) -> Iterator[Match]:
        """Find every match; as :meth:`fullmatch`, for all of them."""
        try:
            yield from self._compiled.finditer(text, timeout=WITHIN)
        except TimeoutError as exc:
            raise self._too_long() from exc

    def _too_long(self) -> TooLong:
        return TooLong(f"matching {self.text} takes longer than {WITHIN:g} s: make it simpler")
