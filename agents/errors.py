"""What goes wrong in agents, each from the view of whoever can do something about it."""

from __future__ import annotations

from dataclasses import replace

from spinal.bus.errors import BlobError
from spinal.protocols import Exit, Problem, SpinalError


class AgentError(SpinalError):
    """An agent cannot be loaded, started or kept running; the text says what to do."""

    exit_code = Exit.USAGE.value


class RoleRefused(AgentError):
    """A dispatcher does not take our advertisement: the account may not be an agent."""

    exit_code = Exit.NOT_ALLOWED.value


class Refused(SpinalError):
    """Raised by an operation that will not do it: nothing happened, and trying again is useless."""


class Retry(SpinalError):
    """Raised by an operation that cannot do it now: nothing happened, and later or elsewhere it may."""


class EndWith(SpinalError):
    """Raised by an operation to end with exactly this problem.

    Not :class:`~spinal.bus.errors.CallError`, which an operation gets when it calls others: what
    became of those calls says nothing about its own, and makes it ``failed``.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class CommandFailed(SpinalError):
    """A program that an operation ran could not be started, or ended with another code than 0."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        #: Exit code, negative for a signal; none if it never ran.
        self.code = code


#: Longest text of an error that goes to a caller.
MAX_TEXT = 1000


def one_line(text: str, longest: int = MAX_TEXT) -> str:
    """Bring a text that somebody else wrote into one bounded line that a terminal only shows."""
    line = " ".join(text[: 8 * longest].encode("utf-8", "replace").decode().split())
    if not line.isprintable():
        # Control characters could move the cursor, or hide what stands there.
        line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
    return line if len(line) <= longest else line[: longest - 3] + "..."


def describe(error: BaseException) -> str:
    """Give an exception as the one line that a caller gets: its type and its words."""
    words = str(error)
    name = type(error).__name__
    return one_line(f"{name}: {words}" if words else name)


def problem_of(error: Exception) -> Problem:
    """Say what an exception out of an operation means to the caller."""
    match error:
        case EndWith():
            return replace(error.problem, text=one_line(error.problem.text))
        case Refused():
            return Problem("refused", one_line(str(error)))
        case Retry():
            return Problem("busy", one_line(str(error)))
        case BlobError():
            return Problem("blob", one_line(str(error)))
        case AgentError():
            # Our own words, which need no name of a class.
            return Problem("failed", one_line(str(error)))
        case _:
            return Problem("failed", describe(error))
