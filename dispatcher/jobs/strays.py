"""What agents have of jobs that are not under way here: answers that come late, runs that go on."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol

import structlog

from spinal.bus.session import Session
from spinal.protocols import Cancel
from spinal.protocols import Final as FinalEvent

from ..store.contract import Store, StoreError
from .job import Job
from .live import Live

log = structlog.get_logger()

#: Things that are looked up at once.
MOST: Final = 1000

#: Most attempts that are remembered as just acknowledged.
MOST_OVER: Final = 100_000

#: Seconds after which an agent that still has what it should not have is told again.
AGAIN: Final = 10.0

#: One attempt of a job: its id and the attempt's number.
Key = tuple[str, int]


class Home(Protocol):
    """What strays need of the keeper."""

    store: Store

    @property
    def live(self) -> dict[str, Live]:
        """Jobs that are under way here."""
        ...

    @property
    def draining(self) -> bool:
        """Whether we have not begun yet, or are about to end."""
        ...

    @property
    def alone(self) -> bool:
        """Whether there is no other dispatcher."""
        ...

    async def get(self, id: str) -> Job | None:
        """Give a job."""
        ...

    def spawn(self, name: str, work: Callable[..., Coroutine[Any, Any, None]], *given: Any) -> None:
        """Start a task."""
        ...


class Strays:
    """See the module."""

    def __init__(self, home: Home, session: Session) -> None:
        self._home = home
        self._session = session
        self._lookups: set[str] = set()
        #: What agents have that they should not have -> when that was looked at.
        self._looked: OrderedDict[tuple[str, Key], float] = OrderedDict()
        #: What was acknowledged just now: agents may have it until they hear that.
        self._over: OrderedDict[tuple[str, Key], float] = OrderedDict()

    def over(self, agent: str, attempt: Key) -> None:
        """An agent is being told that the final of an attempt need not be kept any longer."""
        now = asyncio.get_running_loop().time()
        self._over[agent, attempt] = now
        self._drop_old(self._over, now)
        if len(self._over) > MOST_OVER:
            self._over.popitem(last=False)

    @staticmethod
    def _drop_old(told: OrderedDict[tuple[str, Key], float], now: float) -> None:
        while told and next(iter(told.values())) <= now - AGAIN:
            told.popitem(last=False)

    def late(self, sender: str, final: FinalEvent) -> bool:
        """Take a final that belongs to no open call; gives whether to acknowledge it now."""
        if not of_job(final.id):
            return self._home.alone  # Its caller has given up, unless another dispatcher waits.
        live = self._home.live.get(final.id)
        if live is not None:
            current = live.job.current
            # That of the try that is about to be asked for again comes once more then; an older
            # one's comes too late.
            return current is None or current.number != final.attempt
        home = self._home
        if not home.draining and final.id not in self._lookups and len(self._lookups) < MOST:
            self._lookups.add(final.id)
            home.spawn("late final", self._look_up, sender, final)
        return False

    async def _look_up(self, sender: str, final: FinalEvent) -> None:
        """Acknowledge a final unless some dispatcher still wants it."""
        try:
            job = await self._home.store.get(final.id)
            current = None if job is None or job.final else job.current
            if current is None or current.number != final.attempt:
                self._session.acknowledge_late(sender, final)
        except StoreError as exc:
            log.warning("late_final_not_looked_up", job=final.id, error=str(exc))
        finally:
            self._lookups.discard(final.id)

    def held(self, agent: str, attempts: Iterable[Key]) -> None:
        """Look at what an agent says that it has: what has ended elsewhere it is told to stop."""
        now = asyncio.get_running_loop().time()
        self._drop_old(self._looked, now)
        self._drop_old(self._over, now)
        strange: list[Key] = []
        for key in attempts:
            live = self._home.live.get(key[0])
            if (
                not of_job(key[0])
                or (agent, key) in self._over
                or (live is not None and live.job.attempt <= key[1])
            ):
                continue
            if (agent, key) not in self._looked and len(self._looked) < MOST:
                self._looked[agent, key] = now
                strange.append(key)
        if strange and not self._home.draining:
            self._home.spawn("strays", self._stop, agent, strange)

    async def _stop(self, agent: str, attempts: Sequence[Key]) -> None:
        for id, number in attempts:
            try:
                job = await self._home.get(id)
            except StoreError as exc:
                log.warning("attempt_not_looked_up", job=id, error=str(exc))
                continue
            if job is not None and (job.final or job.attempt > number):
                # One that has ended there as well answers "late", and nothing happens.
                log.info("attempt_stopped", job=id, attempt=number, agent=agent)
                self._session.say(agent, Cancel(id, number, left=60_000))


def of_job(id: str) -> bool:
    """Tell whether an exchange has a job's id; those of brokered calls have a hyphen."""
    return "-" not in id
