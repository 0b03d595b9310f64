"""What the end of a job means for others: those that come after it, and the parent it belongs to."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final, Protocol

import structlog

from spinal.bus.jsontext import dumps
from spinal.protocols import Json, Problem

from ..store.contract import Store, StoreError
from .dependencies import Next, verdict
from .job import LIVE, Happening, Job, JobState

log = structlog.get_logger()

#: Children that are read, or cancelled, at once.
PAGE: Final = 200

#: Seconds after which a store that could not be read is asked again.
PAUSE: Final = 1.0

#: Seconds between two looks, so that what ends in a burst is looked at together.
REST: Final = 0.01

#: Bytes of JSON text that the list of results of an ``all`` may take.
ROOM: Final = 28 * 1024


class Kin(Protocol):
    """What a family needs of the keeper."""

    @property
    def store(self) -> Store:
        """Where all jobs are."""
        ...

    async def claim(self, id: str) -> Job | None:
        """Own a job that nobody owns."""
        ...

    async def release(self, job: Job) -> None:
        """Give it back."""
        ...

    def adopt(self, job: Job) -> None:
        """Carry it, once its time has come."""
        ...

    async def end_unowned(
        self, job: Job, happening: Happening, value: Json = None, problem: Problem | None = None
    ) -> None:
        """End it."""
        ...

    async def cancel(self, id: str) -> Job | None:
        """Stop a job."""
        ...


class Family:
    """Looks after relatives, one at a time, in a task of its own (:meth:`run`)."""

    def __init__(self, keeper: Kin) -> None:
        self._keeper = keeper
        #: Jobs that ended and whose dependents were not looked at.
        self._ended: set[str] = set()
        #: Held jobs, and parents, to look at.
        self._held: set[str] = set()
        self._parents: set[str] = set()
        #: Parent -> children that are under way here.
        self._under_way: Counter[str] = Counter()
        #: Parents that the first of their children ends.
        self._firsts: set[str] = set()
        self._wake = asyncio.Event()

    def born(self, parent: Job) -> None:
        """A parent was accepted, or came back."""
        if parent.kind == "any-first":
            self._firsts.add(parent.id)

    def carried(self, job: Job) -> None:
        """A job is under way here."""
        if job.parent is not None:
            self._under_way[job.parent] += 1

    def dropped(self, job: Job) -> None:
        """A job is not under way here any more."""
        if job.parent is not None:
            self._under_way[job.parent] -= 1
            if not self._under_way[job.parent]:
                del self._under_way[job.parent]

    def ended(self, job: Job) -> None:
        """A job has ended, and that is on disk."""
        self._ended.add(job.id)
        # While others of its children run here, that can only matter to who wants the first.
        if job.parent is not None and (
            job.parent not in self._under_way or job.parent in self._firsts
        ):
            self._parents.add(job.parent)
        self._firsts.discard(job.id)
        self._wake.set()

    def parent_may_end(self, id: str) -> None:
        """A parent gets no more children."""
        self._parents.add(id)
        self._wake.set()

    def look_at(self, *ids: str) -> None:
        """Look whether held jobs may run."""
        if ids:
            self._held.update(ids)
            self._wake.set()

    async def run(self) -> None:
        """Look at what may have changed, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            ended, self._ended = self._ended, set()
            held, self._held = self._held, set()
            parents, self._parents = self._parents, set()
            try:
                if ended:
                    held.update(await self._keeper.store.dependents(sorted(ended)))
                while held:
                    await self._reconsider(held.pop())
                while parents:
                    await self._settle(parents.pop())
                await asyncio.sleep(REST)
            except StoreError as exc:
                log.warning("relatives_not_read", error=str(exc))
                self._ended |= ended
                self._held |= held
                self._parents |= parents
                await asyncio.sleep(PAUSE)
                self._wake.set()

    async def _reconsider(self, id: str) -> None:
        """Let a held job run, or end it, if that is clear now."""
        job = await self._keeper.claim(id)
        if job is None:
            return
        if not job.held:
            self._keeper.adopt(job)
            return
        states = await self._keeper.store.states(job.after)
        found = verdict(job.when, {other: states.get(other) for other in job.after})
        if found.next is Next.FAIL:
            await self._keeper.end_unowned(job, Happening.FAILED, problem=found.problem)
        elif found.next is Next.RUN:
            job.held = False
            self._keeper.adopt(job)
        else:
            await self._keeper.release(job)

    async def _settle(self, id: str) -> None:
        """End a parent whose children leave no doubt."""
        store = self._keeper.store
        parent = await store.get(id)
        if parent is None or parent.final:
            return
        if parent.kind == "any-first":
            first = await store.children(id, -1, 1, frozenset({JobState.DONE}))
            if first and (claimed := await self._keeper.claim(id)) is not None:
                claimed.agent = first[0].agent
                await self._keeper.end_unowned(claimed, Happening.DONE, first[0].value)
                await self.stop_children(id)
                return
        counts = await store.count_children(id)
        if not parent.closed or any(counts.get(state) for state in LIVE):
            return
        claimed = await self._keeper.claim(id)
        if claimed is not None:
            value, problem = await self._outcome(claimed, counts)
            happening = Happening.DONE if problem is None else Happening.FAILED
            await self._keeper.end_unowned(claimed, happening, value, problem)

    async def _outcome(self, parent: Job, counts: Any) -> tuple[Json, Problem | None]:
        store = self._keeper.store
        if parent.kind == "all":
            return await self._table(parent.id), None
        told: dict[str, Json] = {state.value: count for state, count in counts.items() if count}
        failed = sum(count for state, count in counts.items() if state is not JobState.DONE)
        if parent.kind == "any-first":
            worst = await store.children(parent.id, -1, PAGE, frozenset({JobState.ERROR}))
            return None, worst[-1].problem if worst else Problem("cancelled")
        if not failed:
            return told, None
        total = sum(counts.values())
        return told, Problem(
            "failed",
            f"{failed} of {total} inputs did not end well: "
            f"see `spinal jobs --parent {parent.id} --state error`",
        )

    async def _table(self, id: str) -> Json:
        """Give one row per agent, without values where all of them together are too large."""
        rows: list[dict[str, Json]] = []
        last = -1
        while page := await self._keeper.store.children(id, last, PAGE):
            for child in page:
                row: dict[str, Json] = {"agent": child.want.get("to"), "state": child.state.value}
                if child.problem is not None:
                    row["problem"] = child.problem.to_json()
                else:
                    row["value"] = child.value
                rows.append(row)
            last = page[-1].position or 0
        if len(dumps(rows)) <= ROOM:
            return rows
        for row in rows:
            row.pop("value", None)
        return rows if len(dumps(rows)) <= ROOM else {"agents": len(rows)}

    async def stop_children(self, id: str) -> None:
        """Cancel the children of a job that have not ended."""
        last = -1
        while page := await self._keeper.store.children(id, last, PAGE, LIVE):
            async with asyncio.TaskGroup() as group:
                for child in page:
                    group.create_task(self._keeper.cancel(child.id))
            last = page[-1].position or 0
