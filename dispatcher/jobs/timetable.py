"""Submits what schedules ask for, each time once, whichever dispatcher is first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from spinal.bus.errors import CallError

from ..store.contract import Fire, New, Schedule, Store, StoreError
from . import cron, submission
from .clock import Clock
from .job import Job

log = structlog.get_logger()

#: Seconds between two looks at the schedules, and while one of them is due soon.
LOOK: Final = 2.0
SOON: Final = 0.5


class Office(Protocol):
    """What a timetable needs of the keeper."""

    store: Store
    clock: Clock

    @property
    def draining(self) -> bool:
        """Whether nothing new is begun."""
        ...

    def take(self, job: Job) -> None:
        """Make a new job ours, if there is room and its time has come."""
        ...

    def accepted(self, job: Job) -> None:
        """See a new job through: it is on disk."""
        ...


class Timetable:
    """See the module; :meth:`run` does it."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """A schedule was added or removed."""
        self._changed.set()

    async def run(self) -> None:
        """Look after the schedules, for ever."""
        while True:
            self._changed.clear()
            try:
                pause = await self._look()
            except StoreError as exc:
                log.warning("schedules_not_read", error=str(exc))
                pause = LOOK
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _look(self) -> float:
        """Fire what is due; gives the seconds until the next look."""
        office = self._office
        schedules: Sequence[Schedule] = await office.store.schedules()
        for schedule in schedules:
            if schedule.next > office.clock.wall():
                return min(LOOK, max(SOON, (schedule.next - office.clock.wall()) / 1000))
            if not office.draining:
                await self._fire(schedule)
        return SOON if schedules else LOOK

    async def _fire(self, schedule: Schedule) -> None:
        office = self._office
        wall = office.clock.wall()
        try:
            job = submission.read(schedule.submission, schedule.caller, wall, office.clock.steady())
            # Times that passed while nobody was there are not made up for.
            following = cron.next_after(schedule.cron, schedule.zone, wall)
        except (CallError, ValueError) as exc:
            # It was fine when it was added: another version wrote it, or its time zone is gone.
            log.error("schedule_not_understood", schedule=schedule.id, error=str(exc))
            return
        job = replace(job, origin=f"schedule:{schedule.id}")
        office.take(job)
        fire = Fire(schedule.id, schedule.next, following)
        if (await office.store.write(fire, New(job)))[0] is True:
            log.info("schedule_fired", schedule=schedule.id, job=job.id)
            office.accepted(job)
