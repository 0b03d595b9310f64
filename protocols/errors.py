"""What can go wrong, and the one table that says what to do about it.

Every error on the wire carries two things of RFC 6120 (8.3): a *type*, which says what the
sender should do next, and a *condition*, which says what happened; and one Spinal *reason*, which
says it in our own words.  "May I try again, and where?" follows from the reason, and is read from
:data:`REASONS` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Final

#: RFC 6120, 8.3.2: what the sender should do next.
TYPES: Final = frozenset({"auth", "cancel", "continue", "modify", "wait"})

#: RFC 6120, 8.3.3: what happened.
CONDITIONS: Final = frozenset(
    {
        "bad-request",
        "conflict",
        "feature-not-implemented",
        "forbidden",
        "gone",
        "internal-server-error",
        "item-not-found",
        "jid-malformed",
        "not-acceptable",
        "not-allowed",
        "not-authorized",
        "policy-violation",
        "recipient-unavailable",
        "redirect",
        "registration-required",
        "remote-server-not-found",
        "remote-server-timeout",
        "resource-constraint",
        "service-unavailable",
        "subscription-required",
        "undefined-condition",
        "unexpected-request",
    }
)

#: Longest text of a problem, in characters; the rest is cut.
MAX_TEXT: Final = 4096


class Ran(Enum):
    """Whether the operation may have had an effect by the time the error was made."""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


class Again(Enum):
    """Where the same request may be tried again, as far as the error itself can tell."""

    NEVER = "never"
    #: At another agent that offers the operation, at once.
    ELSEWHERE = "elsewhere"
    #: Anywhere, after a while.
    LATER = "later"


class Exit(Enum):
    """Exit codes of the command line; each Python exception of the bus mirrors one."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_AGENT = 3
    UNREACHED = 4
    NOT_ALLOWED = 5


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of :data:`REASONS`."""

    type: str
    condition: str
    ran: Ran
    again: Again
    exit: Exit
    text: str


#: Reason -> what it means.  A reason that is not listed here is read as ``failed``.
REASONS: Final[Mapping[str, Meaning]] = {
    "failed": Meaning(
        "cancel", "undefined-condition", Ran.YES, Again.NEVER, Exit.FAILED, "the operation failed"
    ),
    "refused": Meaning(
        "cancel", "not-acceptable", Ran.NO, Again.NEVER, Exit.FAILED, "the operation refused"
    ),
    "bad-arguments": Meaning(
        "modify", "bad-request", Ran.NO, Again.NEVER, Exit.USAGE, "the arguments do not fit"
    ),
    "malformed": Meaning(
        "modify", "bad-request", Ran.NO, Again.NEVER, Exit.USAGE, "the request could not be read"
    ),
    "not-understood": Meaning(
        "cancel",
        "feature-not-implemented",
        Ran.NO,
        Again.ELSEWHERE,
        Exit.USAGE,
        "the request needs a feature that the agent lacks",
    ),
    "too-large": Meaning(
        "modify",
        "policy-violation",
        # The result may be, and not the request.
        Ran.MAYBE,
        Again.NEVER,
        Exit.USAGE,
        "the request or its result is too large",
    ),
    "not-allowed": Meaning(
        "auth", "forbidden", Ran.NO, Again.NEVER, Exit.NOT_ALLOWED, "that is not allowed"
    ),
    "unknown-op": Meaning(
        "cancel",
        "item-not-found",
        Ran.NO,
        Again.ELSEWHERE,
        Exit.NO_AGENT,
        "the agent does not offer this operation",
    ),
    "no-agent": Meaning(
        "cancel", "item-not-found", Ran.NO, Again.LATER, Exit.NO_AGENT, "no agent can do it"
    ),
    "busy": Meaning(
        "wait",
        "resource-constraint",
        Ran.NO,
        Again.ELSEWHERE,
        Exit.UNREACHED,
        "the agent has no free slot",
    ),
    "full": Meaning(
        "wait", "resource-constraint", Ran.NO, Again.LATER, Exit.UNREACHED, "the queue is full"
    ),
    "draining": Meaning(
        "wait",
        "service-unavailable",
        Ran.NO,
        Again.ELSEWHERE,
        Exit.UNREACHED,
        "the agent is shutting down and takes no new work",
    ),
    "stale-epoch": Meaning(
        "cancel",
        "gone",
        Ran.NO,
        Again.ELSEWHERE,
        Exit.UNREACHED,
        "the agent was restarted since the request was addressed to it",
    ),
    "unreachable": Meaning(
        "cancel",
        "service-unavailable",
        Ran.NO,
        Again.ELSEWHERE,
        Exit.UNREACHED,
        "nobody is connected at that address",
    ),
    "no-answer": Meaning(
        "wait",
        "remote-server-timeout",
        Ran.MAYBE,
        Again.LATER,
        Exit.UNREACHED,
        "no answer came",
    ),
    "deadline": Meaning(
        "wait",
        "remote-server-timeout",
        Ran.MAYBE,
        Again.LATER,
        Exit.UNREACHED,
        "the deadline passed",
    ),
    "expired": Meaning(
        "wait",
        "remote-server-timeout",
        Ran.NO,
        Again.LATER,
        Exit.UNREACHED,
        "the deadline passed before it was started",
    ),
    "lost": Meaning(
        "wait",
        "recipient-unavailable",
        Ran.MAYBE,
        Again.LATER,
        Exit.UNREACHED,
        "the agent was lost while it worked on it",
    ),
    "cancelled": Meaning(
        "cancel", "not-acceptable", Ran.MAYBE, Again.NEVER, Exit.FAILED, "it was cancelled"
    ),
    "already-done": Meaning(
        "cancel",
        "conflict",
        Ran.YES,
        Again.NEVER,
        Exit.FAILED,
        "it was already done, and its answer has been taken and is no longer kept",
    ),
    "unknown-job": Meaning(
        "cancel", "item-not-found", Ran.NO, Again.NEVER, Exit.FAILED, "there is no such job"
    ),
    "dependency": Meaning(
        "cancel",
        "not-acceptable",
        Ran.NO,
        Again.NEVER,
        Exit.FAILED,
        "a job that it comes after did not end well",
    ),
    "blob": Meaning(
        "wait",
        "undefined-condition",
        Ran.MAYBE,
        Again.LATER,
        Exit.FAILED,
        "a blob could not be moved",
    ),
}

#: RFC 6120 conditions that a server puts into a bounce, as reasons of ours.  A stanza that bounced
#: was not delivered, so nothing ran; but for :data:`MAY_BE_DELIVERED`.
BOUNCES: Final[Mapping[str, str]] = {
    "forbidden": "not-allowed",
    "not-allowed": "not-allowed",
    "not-authorized": "not-allowed",
    "policy-violation": "too-large",
    "recipient-unavailable": "lost",
    "resource-constraint": "busy",
}

#: The reason of a bounce that comes also for what a lost stream with XEP-0198 had not acknowledged.
MAY_BE_DELIVERED: Final = "lost"


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it travels: a reason, a sentence, and what the reason is about.

    ``type`` and ``condition`` are filled from the reason unless the peer said otherwise.
    """

    reason: str
    text: str = ""
    #: Name of the argument that is at fault, if one is.
    argument: str | None = None
    #: Earliest time to try again in seconds, if the peer knows.
    after: float | None = None
    type: str = field(default="")
    condition: str = field(default="")

    def __post_init__(self) -> None:
        meaning = self.meaning
        if not self.text:
            object.__setattr__(self, "text", meaning.text)
        elif len(self.text) > MAX_TEXT:
            object.__setattr__(self, "text", self.text[:MAX_TEXT])
        if not self.type:
            object.__setattr__(self, "type", meaning.type)
        if not self.condition:
            object.__setattr__(self, "condition", meaning.condition)

    @property
    def meaning(self) -> Meaning:
        """What the reason says about having run, trying again and the exit code."""
        return REASONS.get(self.reason, REASONS["failed"])

    def to_json(self) -> dict[str, Any]:
        """Give the JSON object of this problem (docs/protocol.md, Errors)."""
        out: dict[str, Any] = {
            "reason": self.reason,
            "type": self.type,
            "condition": self.condition,
            "text": self.text,
        }
        if self.argument is not None:
            out["argument"] = self.argument
        if self.after is not None:
            out["after"] = self.after
        return out


class SpinalError(Exception):
    """Root of everything that Spinal raises on purpose."""

    #: Exit code of the command line for this error.
    exit_code: ClassVar[int] = Exit.FAILED.value


class ProtocolError(SpinalError, ValueError):
    """The rules of the wire were broken; never raised itself, only its two children."""

    def __init__(self, text: str, reason: str = "malformed", argument: str | None = None) -> None:
        super().__init__(text)
        self.problem = Problem(reason, text, argument)


class LocalProtocolError(ProtocolError):
    """We tried to say something that the protocol forbids: the caller's mistake."""

    exit_code = Exit.USAGE.value


class RemoteProtocolError(ProtocolError):
    """The peer said something that the protocol forbids; :attr:`problem` is the answer to give."""
