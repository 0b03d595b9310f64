"""The store against a dictionary: whatever two lives do, in whatever order, both agree."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from spinal.dispatcher.jobs.job import FINAL, Job, JobState
from spinal.dispatcher.store import store_for
from spinal.dispatcher.store.contract import (
    FENCED,
    SAVED,
    Change,
    Filter,
    Forget,
    Look,
    New,
    Result,
    Save,
    Store,
)

_T = TypeVar("_T")

SMALL = st.integers(0, 3)
STATES = st.sampled_from(list(JobState))


@dataclass
class Model:
    """What the store should have."""

    jobs: dict[str, Job] = field(default_factory=dict[str, Job])

    def write(self, life: int, changes: Sequence[Change]) -> list[Result]:
        before = dict(self.jobs)
        results: list[Result] = []
        for change in changes:
            result = self._change(life, change)
            if isinstance(change, Save) and result is FENCED:
                self.jobs = before
                return [FENCED] * len(changes)
            results.append(result)
        return results

    def _change(self, life: int, change: Change) -> Result:
        match change:
            case New(job):
                if job.id in self.jobs:
                    return job.id
                for other in self.jobs.values():
                    if job.key is not None and (job.caller, job.key) == (other.caller, other.key):
                        return other.id
                self.jobs[job.id] = job
                return job.id
            case Save(job):
                there = self.jobs.get(job.id)
                if there is None:
                    return FENCED
                if there.final:
                    return (job.state, job.ended) == (there.state, there.ended)
                if there.owner != life:
                    return FENCED
                self.jobs[job.id] = job
                return SAVED
            case Forget(id):
                if id in self.jobs and self.jobs[id].final:
                    del self.jobs[id]
                    return True
                return False
            case Look(id):
                there = self.jobs.get(id)
                if there is None or there.state is not JobState.ERROR or there.looked:
                    return False
                self.jobs[id] = replace(there, looked=True)
                return True
            case _:
                raise AssertionError(change)

    def claim(self, life: int, now: int, limit: int) -> list[str]:
        def due(job: Job) -> bool:
            if job.final or job.owner is not None:
                return False
            waits = job.state is JobState.WAITING and not job.held
            ready = job.due <= now and job.at <= now
            over = job.ends is not None and job.ends <= now
            return ((waits or job.state is JobState.QUEUED) and ready) or over

        found = sorted(filter(due, self.jobs.values()), key=lambda job: (-job.priority, job.id))
        return self._own(life, found[:limit])

    def take_over(self, life: int, dead: set[int]) -> list[str]:
        found = [job for job in self.jobs.values() if not job.final and job.owner in dead]
        return self._own(life, sorted(found, key=lambda job: (-job.priority, job.id)))

    def _own(self, life: int, found: Sequence[Job]) -> list[str]:
        for job in found:
            self.jobs[job.id] = replace(job, owner=life)
        return [job.id for job in found]


class TwoLives(RuleBasedStateMachine):
    """Two dispatchers on one file."""

    ids = Bundle("ids")

    @initialize()
    def start(self) -> None:
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        url = f"sqlite:///{Path(self.folder.name)}/jobs.db"
        self.stores: list[Store] = [store_for(url), store_for(url)]
        self.lives = [self.run(s.open(f"{n}@x/d", 1e6)) for n, s in enumerate(self.stores)]
        self.dead: set[int] = set()
        self.model = Model()
        self.count = 0

    def run(self, what: Coroutine[Any, Any, _T]) -> _T:
        return self.runner.run(what)

    def job(self, id: str, who: int | None, state: JobState, draw: dict[str, Any]) -> Job:
        final = state in FINAL
        return Job(
            id=id,
            caller="a",
            op="/a",
            created=1,
            state=state,
            owner=None if who is None else self.lives[who],
            ended=draw["due"] if final else None,
            **draw,
        )

    DRAW = st.fixed_dictionaries(
        {
            "due": SMALL,
            "at": SMALL,
            "held": st.booleans(),
            "priority": SMALL,
            "ends": st.none() | SMALL,
            "value": st.none() | SMALL,
        }
    )
    OWNER = st.none() | st.integers(0, 1)
    WHO = st.integers(0, 1)

    @rule(target=ids, who=WHO, owner=OWNER, state=STATES, draw=DRAW, key=st.none() | SMALL)
    def new(
        self, who: int, owner: int | None, state: JobState, draw: dict[str, Any], key: int | None
    ) -> str:
        self.count += 1
        job = self.job(f"{self.count:05}", owner, state, draw)
        job.key = None if key is None else str(key)
        self.write(who, New(job))
        return job.id

    @rule(who=WHO, owner=OWNER, some=st.lists(ids, min_size=1, max_size=3), state=STATES, draw=DRAW)
    def save(
        self,
        who: int,
        owner: int | None,
        some: list[str],
        state: JobState,
        draw: dict[str, Any],
    ) -> None:
        changes = [Save(self.saved(id, owner, state, draw)) for id in some]
        self.write(who, *changes)

    @rule(who=WHO, id=ids, state=STATES, draw=DRAW)
    def save_and_new(self, who: int, id: str, state: JobState, draw: dict[str, Any]) -> None:
        self.count += 1
        told = self.job(f"{self.count:05}", None, JobState.QUEUED, draw)
        self.write(who, New(told), Save(self.saved(id, who, state, draw)))

    def saved(self, id: str, owner: int | None, state: JobState, draw: dict[str, Any]) -> Job:
        job = self.job(id, owner, state, draw)
        there = self.model.jobs.get(id)
        if there is not None:
            # These never change.
            job.key, job.priority = there.key, there.priority
        return job

    @rule(who=WHO, id=ids)
    def forget(self, who: int, id: str) -> None:
        self.write(who, Forget(id), Forget(id))

    @rule(who=WHO, id=ids)
    def look(self, who: int, id: str) -> None:
        self.write(who, Look(id), Look(id))

    def write(self, who: int, *changes: Change) -> None:
        expected = self.model.write(self.lives[who], changes)
        assert list(self.run(self.stores[who].write(*changes))) == expected

    @rule(who=WHO, now=SMALL, limit=st.integers(1, 5))
    def claim(self, who: int, now: int, limit: int) -> None:
        claimed = self.run(self.stores[who].claim(now, now, limit))
        assert [job.id for job in claimed] == self.model.claim(self.lives[who], now, limit)

    @rule(who=WHO)
    def restart(self, who: int) -> None:
        self.run(self.stores[who].close())
        self.dead.add(self.lives[who])
        self.lives[who] = self.run(self.stores[who].open(f"{who}@x/d", 1e6))

    @rule(who=WHO)
    def take_over(self, who: int) -> None:
        taken = self.run(self.stores[who].take_over())
        expected = self.model.take_over(self.lives[who], self.dead)
        assert [job.id for job in taken] == expected
        self.dead.clear()

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "stores"):
            return
        found = self.run(self.stores[0].find(Filter(), 1000))
        assert [job.id for job in found] == sorted(self.model.jobs, reverse=True)
        for id, job in self.model.jobs.items():
            there = self.run(self.stores[0].get(id))
            assert there is not None
            for name in Job.__slots__:
                assert getattr(there, name) == getattr(job, name), (id, name)
        dead = [id for id, job in self.model.jobs.items() if job.state is JobState.ERROR]
        looked = [id for id in dead if self.model.jobs[id].looked]
        assert self.run(self.stores[0].overview()).dead == len(dead) - len(looked)

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for store in self.stores:
                self.run(store.close())
            self.runner.close()
            self.folder.cleanup()


TestTwoLives = TwoLives.TestCase
TestTwoLives.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
