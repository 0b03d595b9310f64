"""A check: one thing that the protocol says, and how to see whether an agent does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trial import Trial

#: Seconds that a check may take at the most.
LONGEST = 60.0

Try = Callable[["Trial"], Awaitable[None]]


@dataclass(frozen=True)
class Check:
    """One thing that is tried.

    Attributes:
        number: ``chapter.check``; a number is never given to another check.
        section: section of docs/protocol.md that says so.
        title: what an agent does that passes, as a sentence without a full stop.
        run: returns if the agent did it; raises :class:`~spinal.conform.verdict.Wrong` if it did
            not, :class:`~spinal.conform.verdict.NotOffered` if it is not its business.
        feature: the feature that an agent has to name for it; none for the core profile.
        needs: what else has to be there: ``other`` (a second account), ``dispatcher`` (the agent
            advertises to us), ``control`` (we may start and end its process).
    """

    number: str
    section: str
    title: str
    run: Try
    feature: str = ""
    needs: str = ""

    @property
    def required(self) -> bool:
        """Whether every agent has to pass it, whatever it offers."""
        return not self.feature and not self.needs


class Chapter:
    """Checks that belong together, numbered in the order of their declaration."""

    def __init__(self, number: int, title: str, feature: str = "", needs: str = "") -> None:
        self.number = number
        self.title = title
        self.checks: list[Check] = []
        self._feature = feature
        self._needs = needs

    def check(self, section: str, title: str, *, needs: str = "") -> Callable[[Try], Try]:
        """Declare a check."""

        def declare(run: Try) -> Try:
            number = f"{self.number}.{len(self.checks) + 1}"
            check = Check(number, section, title, run, self._feature, needs or self._needs)
            self.checks.append(check)
            return run

        return declare
