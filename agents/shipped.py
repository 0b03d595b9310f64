"""The agents that come with Spinal, by name; each is imported when it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Final

from .agent import Agent
from .errors import AgentError

#: Name -> its package here, and what it is for.  Each package has a function ``make`` that takes
#: the path of a YAML file, or none, and gives the agent.
SHIPPED: Final[Mapping[str, tuple[str, str]]] = {
    "chat": ("spinal.agents.chat", "Talks with people in their chat clients."),
    "deployment": (
        "spinal.agents.deployment",
        "Deploys services by URL and hash on its machine, and keeps them running.",
    ),
    "machine": (
        "spinal.agents.machine",
        "The machine it runs on: facts, health, processes, services, logs, files.",
    ),
}


def make(name: str, config: Path | None = None) -> Agent:
    """Make one of the agents that come with Spinal.

    Raises:
        AgentError: there is none of that name.
        BadDocument: its file has mistakes.
    """
    if name not in SHIPPED:
        raise AgentError(f"no agent {name!r} comes with Spinal, only {', '.join(SHIPPED)}")
    found: Callable[[Path | None], Agent] = import_module(SHIPPED[name][0]).make
    return found(config)
