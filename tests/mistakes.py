"""Files with one mistake each: what stands in them, and what is to be said about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One mistake."""

    #: A file without one.
    good: str
    #: What is replaced in it, and by what; with nothing replaced, the whole text.
    old: str
    new: str
    line: int
    key: str
    #: All of them are in the text.
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The file."""
        if not self.old:
            return self.new
        assert self.good.count(self.old) == 1, self.old
        return self.good.replace(self.old, self.new)
