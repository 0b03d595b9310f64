"""What a home says about machines that it rents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from spinal.agents.provider.pace import Pace
from spinal.agents.provider.settings import Providers

from .door import Door


@dataclass(frozen=True, slots=True, kw_only=True)
class Renting:
    """See the module."""

    #: How machines come onto the bus, and the domain of their accounts.
    door: Door
    domain: str
    #: Id of the home, which machines are tagged with.
    home: str
    #: Gives currency, rates and budgets as they are now.
    market: Callable[[], Providers]
    pace: Pace = field(default_factory=Pace)
