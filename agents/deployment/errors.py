"""What goes wrong with a deployment."""

from __future__ import annotations

from ..errors import AgentError


class DeployFailed(AgentError):
    """A release could not be fetched, unpacked or started; what ran before runs on."""
