"""When somebody is told that agents died, and that they are back.

Pure: time is told.  One that is gone for a moment is not worth a word, many that die together are
worth one message, and one that keeps dying is not told each time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

#: Seconds that an agent has to be gone before it is told, if nobody says otherwise.
AFTER: Final = 3.0
#: Seconds that it has to be back.
BACK: Final = 2.0
#: Longest wait in seconds for others that die as well.
TOGETHER: Final = 10.0
#: Shortest time in seconds between two messages.
PAUSE: Final = 15.0
#: Seconds for which an agent that was told is not told anew, unless it is still gone after that;
#: and times that it may go and come back in them before that is told.
QUIET: Final = 600.0
RESTLESS: Final = 5
#: Most agents that are remembered in each state; of more only the number is told.
MAX_AGENTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Gone:
    """An agent that is gone."""

    agent: str
    why: str = ""
    #: Some of the attempts that it had, ``{"id", "op"}``, and how many they were.
    running: Sequence[Mapping[str, Any]] = ()
    in_flight: int = 0
    at: float = 0.0
    #: When it is to be told.
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """What is told in one message."""

    gone: Sequence[Gone] = ()
    #: Agents that are back, and for how many seconds they were gone.
    back: Sequence[tuple[str, float]] = ()
    #: Agents that keep going and coming back, and how often they did.
    restless: Sequence[tuple[str, int]] = ()
    #: Agents that died and are not remembered.
    more: int = 0


@dataclass(slots=True)
class _Comings:
    since: float
    count: int = 0
    told: bool = False


@dataclass(slots=True)
class _Back:
    due: float
    seconds: float


@dataclass
class Alerts:
    """Remembers who is gone, and what was told of it.

    Args:
        after: seconds that an agent has to be gone.
    """

    after: float = AFTER
    #: Gone, and not told.
    _gone: dict[str, Gone] = field(default_factory=dict[str, Gone])
    #: Told as gone -> since when it is.
    _down: dict[str, float] = field(default_factory=dict[str, float])
    #: Told as gone, and back.
    _back: dict[str, _Back] = field(default_factory=dict[str, _Back])
    #: When it was last told as gone, the longest ago first.
    _last: OrderedDict[str, float] = field(default_factory=OrderedDict[str, float])
    _comings: OrderedDict[str, _Comings] = field(default_factory=OrderedDict[str, _Comings])
    _more: int = 0
    _not_before: float = -math.inf

    def gone(
        self,
        agent: str,
        why: str,
        now: float,
        running: Sequence[Mapping[str, Any]] = (),
        in_flight: int = 0,
    ) -> None:
        """Learn that an agent is gone."""
        self._back.pop(agent, None)
        if agent in self._down or agent in self._gone:
            return
        if len(self._gone) + len(self._down) >= MAX_AGENTS:
            self._more += 1
            return
        due = max(now + self.after, self._last.get(agent, -math.inf) + QUIET)
        self._gone[agent] = Gone(agent, why, running, in_flight, now, due)

    def here(self, agent: str, now: float) -> None:
        """Learn that an agent has come, or come back."""
        if self._gone.pop(agent, None) is not None:
            self._came(agent, now)
        elif agent in self._down and agent not in self._back:
            self._back[agent] = _Back(now + BACK, now - self._down[agent])

    @property
    def down(self) -> Collection[str]:
        """The agents that were told as gone, and not yet as back."""
        return self._down.keys()

    def missed(self, count: int) -> None:
        """Learn that so many pieces of news were lost."""
        self._more += count

    def _came(self, agent: str, now: float) -> None:
        """Count that an agent was gone for a moment, which was not told."""
        comings = self._comings.pop(agent, None)
        if comings is None or now - comings.since > QUIET:
            comings = _Comings(now)
        comings.count += 1
        self._comings[agent] = comings
        if len(self._comings) > MAX_AGENTS:
            self._comings.popitem(last=False)

    @property
    def _restless(self) -> list[tuple[str, int]]:
        return [
            (agent, one.count)
            for agent, one in self._comings.items()
            if one.count >= RESTLESS and not one.told
        ]

    def next(self) -> float:
        """Give when there will be something to tell; infinite if there is nothing."""
        times: list[float] = []
        if self._gone:
            first = min(one.due for one in self._gone.values())
            # Whoever died within that time is told with the first one.
            last = max(one.due for one in self._gone.values() if one.due <= first + TOGETHER)
            times.append(last)
        times += [one.due for one in self._back.values()]
        if self._restless or self._more:
            times.append(-math.inf)
        return max(min(times), self._not_before) if times else math.inf

    def batch(self, now: float) -> Batch | None:
        """Give what is to be told now, if anything is.

        It counts as told once :meth:`told` is called, with nothing learned in between.
        """
        if now < self.next():
            return None
        return Batch(
            [one for one in self._gone.values() if one.due <= now],
            [(agent, one.seconds) for agent, one in self._back.items() if one.due <= now],
            self._restless,
            self._more,
        )

    def told(self, batch: Batch, now: float) -> None:
        """Remember that it was told."""
        self._not_before = now + PAUSE
        self._more -= batch.more
        for one in batch.gone:
            del self._gone[one.agent]
            self._down[one.agent] = one.at
            self._last.pop(one.agent, None)
            self._last[one.agent] = now
        for agent, _ in batch.back:
            del self._back[agent], self._down[agent]
        for agent, _ in batch.restless:
            self._comings[agent].told = True
        while len(self._last) > MAX_AGENTS:
            self._last.popitem(last=False)
