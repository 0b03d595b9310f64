"""What goes wrong at the dispatcher before a call reaches an agent."""

from __future__ import annotations

from spinal.protocols import Exit, Problem, SpinalError


class DispatcherError(SpinalError):
    """The dispatcher cannot take something; :attr:`problem` is the answer to give."""

    exit_code = Exit.UNREACHED.value

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class RegistryFull(DispatcherError):
    """One agent more than may be known."""


class QueueFull(DispatcherError):
    """One waiting call more than may wait."""
