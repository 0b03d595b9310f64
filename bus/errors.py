"""What a caller can meet, one class per exit code of the command line.

A :class:`CallError` carries the :class:`~spinal.protocols.Problem` that the other side (or the
server, or our own clock) gave; the reason in it decides the class, by one table.
"""

from __future__ import annotations

from collections.abc import Mapping

from spinal.protocols import Exit, Problem, SpinalError


class BusError(SpinalError):
    """Something of the bus itself went wrong."""

    exit_code = Exit.UNREACHED.value


class NotConnected(BusError):
    """There is no stream at the moment; the connection is trying to get one."""


class LoginRefused(BusError):
    """The server does not know the account or the password is wrong."""

    exit_code = Exit.NOT_ALLOWED.value


class CertificateRefused(BusError):
    """The server showed a certificate that our certificate authority did not sign."""

    exit_code = Exit.NOT_ALLOWED.value


class AddressTaken(BusError):
    """Another program logged in with our full address, so the server ended our stream."""


class HomeError(SpinalError):
    """The home folder or its credentials cannot be used; the text says what to do."""

    exit_code = Exit.USAGE.value


class BlobError(BusError):
    """A blob could not be uploaded or fetched, or is not what was announced."""

    exit_code = Exit.FAILED.value


class CallError(SpinalError):
    """A call ended without a value."""

    def __init__(self, problem: Problem, agent: str | None = None) -> None:
        super().__init__(problem.text)
        self.problem = problem
        #: The agent that said so, if it was an agent.
        self.agent = agent

    @property
    def reason(self) -> str:
        """The Spinal reason, such as ``no-agent``."""
        return self.problem.reason

    @staticmethod
    def of(problem: Problem, agent: str | None = None) -> CallError:
        """Make the right kind of error for a problem."""
        return _BY_EXIT.get(problem.meaning.exit, OperationFailed)(problem, agent)


class OperationFailed(CallError):
    """The operation was done, or begun, and failed; or the agent refused it."""

    exit_code = Exit.FAILED.value


class BadCall(CallError):
    """The request does not fit the operation: mend the arguments."""

    exit_code = Exit.USAGE.value


class NoAgent(CallError):
    """No agent can do it."""

    exit_code = Exit.NO_AGENT.value


class Unreached(CallError):
    """Nobody answered in time, or the agent was lost; it may have been done."""

    exit_code = Exit.UNREACHED.value


class NotEnded(Unreached):
    """A job has not ended in the time that we waited for it; it goes on."""


class NotAllowed(CallError):
    """The account may not do that."""

    exit_code = Exit.NOT_ALLOWED.value


_BY_EXIT: Mapping[Exit, type[CallError]] = {
    Exit.FAILED: OperationFailed,
    Exit.USAGE: BadCall,
    Exit.NO_AGENT: NoAgent,
    Exit.UNREACHED: Unreached,
    Exit.NOT_ALLOWED: NotAllowed,
}
