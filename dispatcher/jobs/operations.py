"""The dispatcher's own operations for jobs: the face of the keeper on the bus.

Callers see and touch the jobs that they submitted, by their bare address; the owner sees all.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from spinal.bus.errors import CallError
from spinal.bus.jsontext import dumps
from spinal.bus.requests import Request
from spinal.protocols import Json, Problem, readers
from spinal.protocols.address import bare
from spinal.protocols.readers import Reader
from spinal.protocols.values import escape

from ..listing import ROOM, fitting
from ..many import RUNNERS, everybody, first_of, present
from ..own import Arguments, Own, needed
from ..policies import Context
from ..registry import Registry
from ..resolver import Demand
from ..roles import Right, RoleTable
from ..store.contract import Filter, Limit, Schedule
from . import cron, submission, why
from .job import LIVE, Job, JobState, mint_many
from .keeper import Keeper, want_of
from .rows import end_row, row, stamp

#: Members of a row that may be large, and bytes that all the others take together at most.
PARTS: Final = frozenset({"args", "value", "attempts"})
MAX_FACTS: Final = 12 * 1024

#: Most rows of a page, and the usual number.
MAX_ROWS: Final = 500
ROWS: Final = 50

#: Dead jobs that are retried or deleted at once; both ids of each have to fit into a final.
MAX_DEAD: Final = 400

#: Most schedules and limits of a home.
MAX_SCHEDULES: Final = 10_000
MAX_LIMITS: Final = 10_000


class JobOperations:
    """Answers them."""

    def __init__(
        self,
        keeper: Keeper,
        registry: Registry,
        roles: RoleTable,
        context: Callable[[str], Context],
    ) -> None:
        self._keeper = keeper
        self._registry = registry
        self._roles = roles
        self._context = context

    # -- submission

    async def submit(self, request: Request, args: Arguments) -> Json:
        """Accept one job."""
        keeper = self._keeper
        caller = bare(request.caller)
        job = submission.read(request.op.args, caller, keeper.clock.wall(), keeper.now())
        if job.parent is not None:
            await self._check_parent(job, caller)
        jobs = [job, *self._children(job, request.caller)]
        ids = await keeper.submit(*jobs)
        seconds = min(float(args.get("wait", 0.0)), request.remaining)
        if seconds > 0:
            found = await keeper.wait(ids[0], seconds)
        else:
            # It may have ended by now, and nobody is told of an end that is not on disk.
            mine = ids[0] == job.id and not job.final
            found = job if mine else await keeper.get(ids[0])
        if found is None:
            raise _unknown(ids[0])
        return await self._row(found, "value")

    async def submit_all(self, request: Request, args: Arguments) -> Json:
        """Accept several jobs together, or none."""
        keeper = self._keeper
        caller = bare(request.caller)
        jobs = submission.read_all(request.op.args, caller, keeper.clock.wall(), keeper.now())
        if any(job.kind or job.parent for job in jobs):
            raise CallError.of(
                Problem("bad-arguments", "kind and parent are for single jobs", "jobs")
            )
        ids = await keeper.submit(*jobs)
        names = [item["name"] for item in args["jobs"]]
        return {"jobs": [{"name": n, "id": id} for n, id in zip(names, ids, strict=True)]}

    async def map(self, request: Request, args: Arguments) -> Json:
        """Accept inputs of a map, stream what becomes of them, and give those that have not ended."""
        keeper = self._keeper
        caller = bare(request.caller)
        jobs = submission.read_inputs(request.op.args, caller, keeper.clock.wall(), keeper.now())
        if jobs:
            await self._check_parent(jobs[0], caller)
        ids = await keeper.submit(*jobs)
        positions = {id: job.position for id, job in zip(ids, jobs, strict=True)}
        seconds = min(float(args.get("wait", 30.0)), max(0.0, request.remaining - 0.5))
        async with aclosing(keeper.ends(ids, seconds)) as ends:
            async for ended in ends:
                rows: Sequence[Mapping[str, Json]] = [_fitting(end_row(job)) for job in ended]
                while rows:
                    piece = fitting(rows)
                    await request.data(piece)
                    rows = rows[len(piece) :]
                for job in ended:
                    del positions[job.id]
        return {"jobs": [{"id": id, "position": at} for id, at in positions.items()]}

    async def _check_parent(self, job: Job, caller: str) -> None:
        assert job.parent is not None
        parent = await self._keeper.get(job.parent)
        if parent is None or parent.caller != caller or parent.kind != "map":
            raise _unknown(job.parent)
        if parent.closed or parent.final:
            raise CallError.of(
                Problem("refused", f"job {parent.id} gets no more children: it was closed")
            )

    def _children(self, job: Job, caller: str) -> Sequence[Job]:
        """Give the children of a job that goes to several agents, and make it their parent.

        Raises:
            CallError: there is no target, or too many, or the operation may not run twice.
        """
        policy = job.want.get("policy")
        if policy not in ("all", "any-first"):
            return ()
        if job.state is not JobState.QUEUED:
            raise CallError.of(
                Problem(
                    "bad-arguments",
                    f"{policy} goes to the agents that are there now: "
                    "leave out delay, at and after",
                    "policy",
                )
            )
        demand = Demand.of(job.op, want_of(job))
        context = self._context(caller)
        if policy == "all":
            targets = everybody(self._registry, demand, context)
        else:
            targets = first_of(self._registry, demand, context)
            # If nobody is free, the children wait, each for one of those that are there.
            targets = targets or present(self._registry, demand, context)[:RUNNERS]
        ids = mint_many(self._keeper.clock.wall(), len(targets))
        children = [
            replace(
                job,
                id=id,
                key=None,
                want={"to": target} | ({"rerun": True} if job.want.get("rerun") else {}),
                parent=job.id,
                position=position,
                kind="",
                on_done=None,
                on_error=None,
                tries=[],
            )
            for position, (id, target) in enumerate(zip(ids, targets, strict=True))
        ]
        job.kind, job.state = str(policy), JobState.PROCESSING
        return children

    async def close(self, request: Request, args: Arguments) -> Json:
        """Say that a parent gets no more children."""
        job = await self._own(request, args)
        if job.kind != "map":
            raise CallError.of(Problem("refused", f"job {job.id} is no map"))
        return await self._row(await self._keeper.close_parent(job))

    # -- looking

    async def get(self, request: Request, args: Arguments) -> Json:
        """Give a job whole."""
        return await self._row(await self._own(request, args), "args", "value", "attempts")

    async def part(self, request: Request, args: Arguments) -> Json:
        """Give one member of a job that was too large for its row."""
        job = await self._own(request, args)
        found = row(job, whole=True)
        return found.get(needed(args, "part"))

    async def wait(self, request: Request, args: Arguments) -> Json:
        """Give a job once it has ended, or after so many seconds."""
        job = await self._own(request, args)
        seconds = min(float(args.get("seconds", 30.0)), max(0.0, request.remaining - 0.5))
        found = await self._keeper.wait(job.id, seconds)
        if found is None:
            raise _unknown(job.id)
        return await self._row(found, "value")

    async def watch(self, request: Request, args: Arguments) -> Json:
        """Stream what happens to a job until it ends, and give it then."""
        job = await self._own(request, args)
        async for kind, news in self._keeper.watch(job.id):
            if kind == "state":
                await request.data(await self._row(news))
            else:
                await request.data({kind: news})
        ended = await self._keeper.get(job.id)
        return await self._row(ended or job, "value")

    async def log(self, request: Request, args: Arguments) -> Json:
        """Give lines of a job's log."""
        job = await self._own(request, args)
        limit = min(args.get("limit", MAX_ROWS), MAX_ROWS)
        found = await self._keeper.store.log(job.id, args.get("after", 0), limit + 1)
        items = [
            {"seq": line.seq, "at": stamp(line.at), "level": line.level, "text": line.text}
            for line in found.lines
        ]
        return {**_page(items, limit), "dropped": found.dropped}

    async def list(self, request: Request, args: Arguments) -> Json:
        """List jobs, newest first."""
        return await self._list(request, args, Filter(states=_states(args.get("state", ()))))

    async def _list(self, request: Request, args: Arguments, which: Filter) -> dict[str, Json]:
        limit = min(args.get("limit", ROWS), MAX_ROWS)
        which = replace(
            which,
            caller=None if self._sees_all(request) else bare(request.caller),
            **{n: args[n] for n in ("label", "op", "key", "parent", "before") if n in args},
        )
        found = await self._keeper.find(which, limit + 1)
        rows = [row(job, whole=False, **self._live_facts(job)) for job in found]
        return _page(rows, limit)

    async def children(self, request: Request, args: Arguments) -> Json:
        """Give the children of a job, in the order of their positions."""
        job = await self._own(request, args)
        limit = min(args.get("limit", MAX_ROWS), MAX_ROWS)
        states = _states(args.get("states", ()))
        found = await self._keeper.store.children(job.id, args.get("after", -1), limit + 1, states)
        return _page([_fitting(row(child, whole=True)) for child in found], limit)

    async def why(self, request: Request, args: Arguments) -> Json:
        """Say in plain words why a job went where it went, or what it waits for."""
        job = await self._own(request, args)
        return {"id": job.id, "lines": [*await self.story(job)]}

    async def story(self, job: Job) -> Sequence[str]:
        """Tell the story of a job, one sentence a line."""
        blockers: Mapping[str, JobState] = {}
        if job.held:
            blockers = await self._keeper.store.states(job.after)
        return why.lines(
            job,
            now=self._keeper.now(),
            blockers={id: state.value for id, state in blockers.items()},
            waits_for=self._waits_for(job),
            agents=self._registry.count(job.op),
        )

    def waits(self, job: Job) -> str:
        """Say what a queued job waits for; empty for another one."""
        if job.state is not JobState.QUEUED:
            return ""
        return why.waiting(job, self._waits_for(job), self._registry.count(job.op))

    def _waits_for(self, job: Job) -> Mapping[str, int] | None:
        """Count, by rule, the agents that cannot take a queued job now."""
        if job.state is not JobState.QUEUED:
            return None
        demand = Demand.of(job.op, want_of(job))
        return self._registry.passed(demand, self._context(job.caller))

    # -- acting

    async def cancel(self, request: Request, args: Arguments) -> Json:
        """Stop a job."""
        job = await self._own(request, args)
        found = await self._keeper.cancel(job.id)
        if found is None:
            raise _unknown(job.id)
        return await self._row(found, "value")

    async def retry(self, request: Request, args: Arguments) -> Json:
        """Submit an ended job again."""
        job = await self._own(request, args)
        self._check_ended(job)
        again = await self._keeper.retry(await self._whole(job))
        found = await self._keeper.get(again.id)
        if found is None:
            raise _unknown(again.id)
        return await self._row(found, "value")

    def _check_ended(self, job: Job) -> None:
        if not job.final:
            raise CallError.of(
                Problem("refused", f"job {job.id} has not ended: it is {job.state.value}")
            )
        if job.kind:
            raise CallError.of(
                Problem(
                    "refused",
                    f"job {job.id} is a {job.kind} of several: retry those of its children that "
                    "failed, or submit it again",
                )
            )

    async def _whole(self, job: Job) -> Job:
        whole = await self._keeper.store.get(job.id)
        if whole is None:
            raise _unknown(job.id)
        return whole

    # -- the dead list

    async def dead(self, request: Request, args: Arguments) -> Json:
        """List the errors that nobody has looked at."""
        return await self._list(request, args, Filter(states=_ERRORS, dead=True))

    async def dead_retry(self, request: Request, args: Arguments) -> Json:
        """Submit dead jobs again."""
        done: list[Json] = []
        for job in await self._dead(request, args, lambda job: not job.kind):
            again = await self._keeper.retry(await self._whole(job))
            done.append({"id": job.id, "new": again.id})
        return {"jobs": done}

    async def dead_delete(self, request: Request, args: Arguments) -> Json:
        """Delete dead jobs."""
        dead = await self._dead(request, args, lambda job: True)
        gone = await self._keeper.forget([job.id for job in dead])
        return {"jobs": [{"id": id} for id in gone]}

    async def _dead(
        self, request: Request, args: Arguments, fits: Callable[[Job], bool]
    ) -> Sequence[Job]:
        """Give the dead jobs that were named, or up to one page of all that fit."""
        if not args.get("all"):
            jobs = [await self._find(request, id) for id in args.get("ids", ())]
            for job in jobs:
                if job.state is not JobState.ERROR or job.looked:
                    raise CallError.of(Problem("refused", f"job {job.id} is not on the dead list"))
            if not jobs:
                raise CallError.of(Problem("bad-arguments", "give 'ids', or 'all': true", "ids"))
            return jobs
        which = Filter(
            caller=None if self._sees_all(request) else bare(request.caller),
            states=_ERRORS,
            dead=True,
            label=args.get("label"),
            op=args.get("op"),
            before=args.get("before"),
        )
        found: list[Job] = []
        while page := await self._keeper.find(which, MAX_DEAD):
            found += filter(fits, page)
            if len(found) >= MAX_DEAD:
                break
            which = replace(which, before=page[-1].id)
        return found[:MAX_DEAD]

    # -- schedules

    async def schedule_add(self, request: Request, args: Arguments) -> Json:
        """Keep a schedule."""
        keeper = self._keeper
        zone = args.get("zone", "UTC")
        wall = keeper.clock.wall()
        try:
            following = cron.next_after(needed(args, "cron"), zone, wall)
        except ValueError as exc:
            raise CallError.of(Problem("bad-arguments", str(exc), "cron")) from exc
        asked = args.get("submission", {})
        caller = bare(request.caller)
        job = submission.read(asked, caller, wall, keeper.now())
        if job.kind or job.parent or job.after or job.key or "at" in asked:
            raise CallError.of(
                Problem(
                    "bad-arguments",
                    "a schedule's job has no kind, parent, after, key or at",
                    "submission",
                )
            )
        name = args.get("id") or secrets.token_hex(4)
        existing = await keeper.store.schedules()
        if any(schedule.id == name for schedule in existing):
            raise CallError.of(
                Problem("refused", f"there is a schedule {name} already: remove it first", "id")
            )
        if len(existing) >= MAX_SCHEDULES:
            raise CallError.of(Problem("refused", f"there are {MAX_SCHEDULES} schedules already"))
        schedule = Schedule(
            id=name,
            caller=caller,
            cron=args["cron"],
            zone=zone,
            submission=asked,
            created=wall,
            next=following,
        )
        await keeper.store.add_schedule(schedule)
        keeper.timetable.changed()
        return _schedule_row(schedule)

    async def schedule_list(self, request: Request, args: Arguments) -> Json:
        """List schedules by the time at which they are due."""
        found = await self._keeper.store.schedules()
        mine = [s for s in found if self._sees_all(request) or s.caller == bare(request.caller)]
        offset = args.get("offset", 0)
        return _page([_schedule_row(schedule) for schedule in mine[offset:]], MAX_ROWS)

    async def schedule_remove(self, request: Request, args: Arguments) -> Json:
        """Remove a schedule."""
        id = needed(args, "id")
        for schedule in await self._keeper.store.schedules():
            mine = self._sees_all(request) or schedule.caller == bare(request.caller)
            if schedule.id == id and mine and await self._keeper.store.remove_schedule(id):
                return {"id": id}
        raise CallError.of(Problem("unknown-job", f"there is no schedule {id}", "id"))

    # -- limits

    async def limit_set(self, request: Request, args: Arguments) -> Json:
        """Keep a limit."""
        op = needed(args, "op")
        if "rate" not in args and "concurrent" not in args:
            raise CallError.of(Problem("bad-arguments", "give 'rate' or 'concurrent'", "rate"))
        known = {limit.op for limit in await self._keeper.store.limits()}
        if op not in known and len(known) >= MAX_LIMITS:
            raise CallError.of(Problem("refused", f"there are {MAX_LIMITS} limits already"))
        limit = Limit(op, args.get("rate"), args.get("per", 1.0), args.get("concurrent"))
        await self._keeper.set_limit(limit)
        return _limit_row(limit)

    async def limit_list(self, request: Request, args: Arguments) -> Json:
        """List limits by operation."""
        found = await self._keeper.store.limits()
        return _page([_limit_row(limit) for limit in found[args.get("offset", 0) :]], MAX_ROWS)

    async def limit_remove(self, request: Request, args: Arguments) -> Json:
        """Remove a limit."""
        op = needed(args, "op")
        if not await self._keeper.remove_limit(op):
            raise CallError.of(Problem("unknown-job", f"there is no limit for {op}", "op"))
        return {"op": op}

    # -- helpers

    def _sees_all(self, request: Request) -> bool:
        return self._roles.may(request.caller, Right.WATCH)

    async def _own(self, request: Request, args: Arguments) -> Job:
        return await self._find(request, needed(args, "id"))

    async def _find(self, request: Request, id: str) -> Job:
        job = await self._keeper.get(id)
        if job is None or not (self._sees_all(request) or job.caller == bare(request.caller)):
            raise _unknown(id)
        return job

    def _live_facts(self, job: Job) -> dict[str, Any]:
        live = self._keeper.live.get(job.id)
        offered = None
        if not job.final and not job.kind and not self._registry.count(job.op):
            offered = False
        return {"progress": None if live is None else live.progress, "offered": offered}

    async def _row(self, job: Job, *parts: str) -> dict[str, Json]:
        counts = None
        if job.kind and parts:
            counts = await self._keeper.store.count_children(job.id)
        found = row(job, whole=bool(parts), children=counts, **self._live_facts(job))
        for part in PARTS.difference(parts):
            found.pop(part, None)
        return _fitting(found)


def _fitting(found: dict[str, Json]) -> dict[str, Json]:
    """Leave out what does not fit into a final, largest first, and name it in ``large``."""
    sizes = {part: len(escape(dumps(found[part]))) for part in PARTS if part in found}
    if sum(sizes.values()) <= ROOM - MAX_FACTS:
        return found
    room = ROOM - MAX_FACTS
    large: list[str] = []
    for part, size in sorted(sizes.items(), key=lambda item: item[1]):
        room -= size
        if room < 0:
            del found[part]
            large.append(part)
    return {**found, "large": sorted(large)}


def _unknown(id: str) -> CallError:
    return CallError.of(Problem("unknown-job", f"there is no job {id}"))


def _page(items: Sequence[Mapping[str, Json]], limit: int) -> dict[str, Json]:
    """Give as many rows as fit into a final, at least one, and whether there are more."""
    fits = fitting(items[:limit])
    return {"items": fits, "more": len(fits) < len(items)}


def _states(raw: str | Sequence[str]) -> frozenset[JobState]:
    names = [raw] if isinstance(raw, str) else raw
    states: set[JobState] = set()
    for name in names:
        if name == "live":
            states |= LIVE
            continue
        try:
            states.add(JobState(name))
        except ValueError as exc:
            known = ", ".join(state.value for state in JobState)
            raise CallError.of(
                Problem("bad-arguments", f"there is no state {name!r}: {known}", "state")
            ) from exc
    return frozenset(states)


def _schedule_row(schedule: Schedule) -> dict[str, Json]:
    return {
        "id": schedule.id,
        "cron": schedule.cron,
        "zone": schedule.zone,
        "next": stamp(schedule.next),
        "op": schedule.submission.get("op"),
        "caller": schedule.caller,
    }


def _limit_row(limit: Limit) -> dict[str, Json]:
    found: dict[str, Json] = {"op": limit.op}
    if limit.rate is not None:
        found |= {"rate": limit.rate, "per": limit.per}
    if limit.concurrent is not None:
        found["concurrent"] = limit.concurrent
    return found


_ERRORS: Final = frozenset({JobState.ERROR})


def _name_or_names(raw: Json, name: str) -> Any:
    return raw if isinstance(raw, str) else readers.list_of(readers.text(16), 16)(raw, name)


_ID: Mapping[str, Reader] = {"id": readers.text(64)}
_FILTER: Mapping[str, Reader] = {
    "state": _name_or_names,
    "label": readers.text(129),
    "op": readers.text(512),
    "key": readers.text(256),
    "parent": readers.text(64),
    "before": readers.text(64),
    "limit": readers.integer(1),
}
_SELECTED: Mapping[str, Reader] = {
    "ids": readers.list_of(readers.text(64), 1000),
    "all": readers.flag,
    "label": readers.text(129),
    "op": readers.text(512),
    "before": readers.text(64),
}
_OFFSET: Mapping[str, Reader] = {"offset": readers.integer()}
_Ops = JobOperations

#: Path -> what it needs and does.
JOB_OPERATIONS: Mapping[str, Own[JobOperations]] = {
    "/spinal/jobs/submit": Own(Right.CALL, {"wait": readers.number(0)}, _Ops.submit),
    "/spinal/jobs/submit-all": Own(
        Right.CALL, {"jobs": readers.list_of(readers.mapping, 1000)}, _Ops.submit_all
    ),
    "/spinal/jobs/map": Own(Right.CALL, {"wait": readers.number(0)}, _Ops.map),
    "/spinal/jobs/close": Own(Right.CALL, _ID, _Ops.close),
    "/spinal/jobs/get": Own(Right.CALL, _ID, _Ops.get),
    "/spinal/jobs/part": Own(
        Right.CALL, {**_ID, "part": readers.one_of("args", "value", "attempts")}, _Ops.part
    ),
    "/spinal/jobs/wait": Own(Right.CALL, {**_ID, "seconds": readers.number(0)}, _Ops.wait),
    "/spinal/jobs/watch": Own(Right.CALL, _ID, _Ops.watch),
    "/spinal/jobs/log": Own(
        Right.CALL, {**_ID, "after": readers.integer(), "limit": readers.integer(1)}, _Ops.log
    ),
    "/spinal/jobs/list": Own(Right.CALL, _FILTER, _Ops.list),
    "/spinal/jobs/children": Own(
        Right.CALL,
        {
            **_ID,
            "after": readers.integer(-1),
            "limit": readers.integer(1),
            "states": readers.list_of(readers.text(16), 16),
        },
        _Ops.children,
    ),
    "/spinal/jobs/cancel": Own(Right.CALL, _ID, _Ops.cancel),
    "/spinal/jobs/retry": Own(Right.CALL, _ID, _Ops.retry),
    "/spinal/jobs/why": Own(Right.CALL, _ID, _Ops.why),
    "/spinal/dead/list": Own(Right.CALL, _FILTER, _Ops.dead),
    "/spinal/dead/retry": Own(Right.CALL, _SELECTED, _Ops.dead_retry),
    "/spinal/dead/delete": Own(Right.CALL, _SELECTED, _Ops.dead_delete),
    "/spinal/schedules/add": Own(
        Right.CALL,
        {
            "cron": readers.text(256),
            "zone": readers.text(64),
            "submission": readers.mapping,
            "id": readers.identifier,
        },
        _Ops.schedule_add,
    ),
    "/spinal/schedules/list": Own(Right.CALL, _OFFSET, _Ops.schedule_list),
    "/spinal/schedules/remove": Own(Right.CALL, _ID, _Ops.schedule_remove),
    "/spinal/limits/set": Own(
        Right.WATCH,
        {
            "op": readers.operation,
            "rate": readers.number(0.001),
            "per": readers.number(0.001),
            "concurrent": readers.integer(1),
        },
        _Ops.limit_set,
    ),
    "/spinal/limits/list": Own(Right.CALL, _OFFSET, _Ops.limit_list),
    "/spinal/limits/remove": Own(Right.WATCH, {"op": readers.operation}, _Ops.limit_remove),
}
