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
        offer: what else an agent may offer or not, such as ``/conform/copy``; the check itself finds
            out.
        needs: what else has to be there: ``other`` (a second account), ``dispatcher`` (the agent
            advertises to us), ``control`` (we may start and end its process).
    """

    number: str
    section: str
    title: str
    run: Try
    feature: str = ""
    offer: str = ""
    needs: str = ""

    @property
    def required(self) -> bool:
        """Whether every agent has to pass it, whatever it offers."""
        return not (self.feature or self.offer or self.needs)


class Chapter:
    """Checks that belong together, numbered in the order of their declaration."""

    def __init__(
        self, number: int, title: str, *, feature: str = "", offer: str = "", needs: str = ""
    ) -> None:
        self.number = number
        self.title = title
        self.checks: list[Check] = []
        self._feature = feature
        self._offer = offer
        self._needs = needs

    def check(
        self, section: str, title: str, *, feature: str = "", offer: str = "", needs: str = ""
    ) -> Callable[[Try], Try]:
        """Declare a check."""

        def declare(run: Try) -> Try:
            number = f"{self.number}.{len(self.checks) + 1}"
            self.checks.append(
                Check(
                    number,
                    section,
                    title,
                    run,
                    feature or self._feature,
                    offer or self._offer,
                    needs or self._needs,
                )
            )
            return run

        return declare
