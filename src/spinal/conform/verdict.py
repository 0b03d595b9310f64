"""What a check can come to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from spinal.protocols import Codec, Stanza


class Verdict(Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    #: It is about a feature that the agent does not name, or an operation that it does not offer.
    NOT_OFFERED = "not-offered"
    #: The run ended before it.
    NOT_RUN = "not-run"


class Wrong(Exception):
    """The agent did something else than the protocol says.

    Args:
        expected: what should have come.
        got: the stanza that came instead; none if nothing came.
        sent: the stanza that it answers.
    """

    def __init__(
        self, expected: str, got: Stanza | None = None, sent: Stanza | None = None
    ) -> None:
        super().__init__(expected)
        self.expected = expected
        self.got = got
        self.sent = sent


class NotOffered(Exception):
    """The check is about something that this agent does not offer; the text says what."""


class Flooded(Exception):
    """The agent sends more than anybody could take."""

    def __init__(self, sender: str) -> None:
        super().__init__(f"{sender} floods its peers")


@dataclass(frozen=True)
class Outcome:
    """How one check ended, and why."""

    number: str
    section: str
    title: str
    verdict: Verdict
    seconds: float = 0.0
    #: What should have come, or why the check did not run.
    text: str = ""
    #: The stanza that was wrong, and the one that it answers, as XML; empty if there is none.
    got: str = ""
    sent: str = ""


#: Longest stanza in a report, in characters.
LONGEST = 1200


def shown(stanza: Stanza | None) -> str:
    """Write a stanza for a report; a long one is cut in its middle."""
    if stanza is None:
        return ""
    text = Codec.encode(stanza, stanza.sender).decode("utf-8", "replace")
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} ... {len(text) - LONGEST} characters ... {text[-half:]}"
