"""The conformance kit: drives any agent over the live bus, and says whether it keeps the protocol.

It knows nothing of how an agent is made.  It sits on the bus as a caller, as a second account and
as a dispatcher (``seat.py``), says what docs/protocol.md allows and what it forbids, and looks at
what comes back, check by check (``checks/``), each of which names its section of that page.
"""

from __future__ import annotations

from .check import Check
from .checks import CHAPTERS, CHECKS
from .kit import Report, run
from .seat import Seat
from .setting import on_home
from .trial import Control, Ops, Trial
from .verdict import NotOffered, Outcome, Verdict, Wrong

__all__ = [
    "CHAPTERS",
    "CHECKS",
    "Check",
    "Control",
    "NotOffered",
    "Ops",
    "Outcome",
    "Report",
    "Seat",
    "Trial",
    "Verdict",
    "Wrong",
    "on_home",
    "run",
]
