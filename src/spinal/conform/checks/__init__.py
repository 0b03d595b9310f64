"""All checks, chapter by chapter."""

from __future__ import annotations

from typing import Final

from ..check import Chapter, Check
from . import (
    answers,
    batches,
    blobs,
    cancels,
    finals,
    life,
    once,
    presence,
    refusals,
    streams,
    tools,
)

CHAPTERS: Final[tuple[Chapter, ...]] = (
    presence.CHAPTER,
    answers.CHAPTER,
    refusals.CHAPTER,
    once.CHAPTER,
    cancels.ANSWERED,
    cancels.CHAPTER,
    finals.CHAPTER,
    batches.BATCHES,
    batches.GROUPS,
    streams.CHAPTER,
    blobs.CHAPTER,
    presence.ADVERTISING,
    presence.HOLDS,
    tools.CHAPTER,
    life.CHAPTER,
    presence.MANNERS,
)

CHECKS: Final[tuple[Check, ...]] = tuple(check for one in CHAPTERS for check in one.checks)
