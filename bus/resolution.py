"""Who could do an operation, and who could not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """An agent that could do it, and what speaks for it."""

    agent: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An agent that is passed over, and why."""

    agent: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """Who could do an operation: the best first, and who cannot."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]
