"""Everything that answers operations: the agent kit, and the agents that ship."""

from spinal.bus.blob import Blob

from .agent import Agent
from .errors import AgentError, CommandFailed, EndWith, Refused, Retry, RoleRefused
from .job import Job, PlainJob
from .operation import Effects, Operation
from .process import Completed

__all__ = [
    "Agent",
    "AgentError",
    "Blob",
    "CommandFailed",
    "Completed",
    "Effects",
    "EndWith",
    "Job",
    "Operation",
    "PlainJob",
    "Refused",
    "Retry",
    "RoleRefused",
]
