"""How much one person may ask for.

Pure: time is told.  It bounds the work, and it ends a conversation with another program that answers
whatever it is told.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from typing import Final

#: Most people that are remembered; whoever was silent for longest makes room.
MAX_PEOPLE: Final = 10_000


class Verdict(Enum):
    """What to do with a message."""

    TAKE = "take"
    #: It is too much, and that is to be said.
    WARN = "warn"
    #: It is too much, and was said already.
    DROP = "drop"


@dataclass(slots=True)
class _Person:
    left: float
    at: float
    warned: bool = False


class Pace:
    """Counts messages by account.

    Args:
        minute: messages that one account may send in a minute, and at once after a quiet one.
    """

    def __init__(self, minute: int) -> None:
        self._minute = minute
        self._people: OrderedDict[str, _Person] = OrderedDict()

    def __len__(self) -> int:
        return len(self._people)

    def take(self, who: str, now: float) -> Verdict:
        """Count a message of an account."""
        person = self._people.pop(who, None)
        if person is None:
            if len(self._people) >= MAX_PEOPLE:
                self._people.popitem(last=False)
            person = _Person(float(self._minute), now)
        self._people[who] = person
        refilled = person.left + (now - person.at) * self._minute / 60
        person.left, person.at = min(float(self._minute), refilled), now
        if person.left >= 1:
            person.left -= 1
            person.warned = False
            return Verdict.TAKE
        # Said once until there is room again, and so no more often than messages are taken.
        warned, person.warned = person.warned, True
        return Verdict.DROP if warned else Verdict.WARN
