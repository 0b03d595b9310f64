"""The agent that people talk with in their chat clients: ``spinal agent run chat``.

``grammar`` makes a request of what was typed, ``agent`` has it done in the name of whoever typed it,
``render`` puts the answer in words; ``alerts`` decides when an owner is told that an agent died, and
``pace`` how much one person may ask for.
"""

from __future__ import annotations

from .agent import make

__all__ = ["make"]
