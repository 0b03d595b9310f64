"""How long things may take where machines are rented; what ``providers.yaml`` says as ``pace``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long things take, in seconds."""

    #: A vendor may take to answer an order.
    order: float = 90.0
    #: Between two look-ups at a vendor while something is under way there, and while nothing is.
    look: float = 4.0
    rest: float = 60.0
    #: What exists may be missing from a vendor's list, because that is old.  A vendor whose lists
    #: are older than this can make a machine be held for gone that exists.
    settle: float = 45.0
    #: Look-ups in a row that must not show a machine until it is held for gone.
    unseen: int = 3
    #: The agents of a machine may be away from the bus until it is given up.
    away: float = 90.0
    #: By how much all pauses after refusals and failures are longer than usual: a factor.
    pauses: float = 1.0
