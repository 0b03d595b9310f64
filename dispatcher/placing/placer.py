"""Keeps services placed: looks at each of them again and again, and carries out what is decided.

Theory of operation.  What a service is stands in the store alone, so that any dispatcher may go on
with it, and nothing is lost by a restart.  Each looks every second at what has changed, at its jobs,
and at who is there; :func:`~.service.decide` says what to do.  A new placement and the new version of
its service are one write, which only the first of several dispatchers succeeds with.

While our stream is gone, or our server passes nothing on, nothing is decided: then silence says
nothing about machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final, cast

import structlog

from spinal.bus.errors import CallError
from spinal.bus.jsontext import dumps
from spinal.protocols import Json, LocalProtocolError, Problem

from ..agent import AgentState, KnownAgent
from ..broker import Broker
from ..jobs.job import Job, mint
from ..jobs.keeper import Keeper, want_of
from ..registry import Registry
from ..resolver import Demand, rejection
from ..store.contract import FENCED, Change, Keep, Look, New, StoreError
from . import record
from . import service as services
from .service import Act, Seen, Service, State

log = structlog.get_logger()

#: What deployment agents offer.
DEPLOY: Final = "/deployment/deploy"
UNDEPLOY: Final = "/deployment/undeploy"
SHOW: Final = "/deployment/show"

#: Seconds between two looks, and while a job places something.
LOOK: Final = 1.0
SOON: Final = 0.25

#: Seconds between two looks from which it may be us who were stopped, and not the machines.
STOPPED: Final = 4.0

#: Seconds that an agent may take to end a service, and to say how one goes.
ENDING: Final = 60.0
SAYING: Final = 10.0
#: The same while somebody waits for it.
SAYING_NOW: Final = 2.0

#: Seconds after which an agent is told again, and asked again.
AGAIN: Final = 10.0
SOON_AGAIN: Final = 2.0

#: Most services, and most bytes of what one is deployed with, and of what its agent says of it.
MAX_SERVICES: Final = 1000
MAX_ARGUMENTS: Final = 12 * 1024
MAX_RESULT: Final = 4 * 1024

#: Times that a change is tried which somebody else was faster with.
TRIES: Final = 8

#: What is to become of a service, or nothing; with the job of its last placement.
_Change = Callable[[Service | None, Job | None], Awaitable[Service | None]]


class Placer:
    """See the module.

    Args:
        keeper: has the store, and sees the jobs through.
        registry: who is there.
        broker: carries what agents are told.
    """

    def __init__(self, keeper: Keeper, registry: Registry, broker: Broker) -> None:
        self._keeper = keeper
        self._registry = registry
        self._broker = broker
        self._services: dict[str, Service] = {}
        self._changed = asyncio.Event()
        #: When an agent was heard last, and when it went offline, if it did.
        self._sights: dict[str, tuple[float, float | None]] = {}
        #: Jobs that are being cancelled.
        self._stopping: set[str] = set()
        #: By service and agent: until when nothing is said to it.
        self._quiet: dict[tuple[str, str], float] = {}

    # -- the loop

    async def run(self) -> None:
        """Look after the services, for ever."""
        looked = self._time()
        while True:
            self._changed.clear()
            before, looked = looked, self._time()
            # Whoever was stopped first lets the registry find that out.
            awake = looked - before < STOPPED
            if awake and self._registry.runs and not self._keeper.draining:
                try:
                    await self._look()
                except StoreError as exc:
                    log.warning("services_not_looked_at", error=str(exc))
            else:
                # By the time we look again others may have dropped one, and made another of its name.
                self._services.clear()
            placing = any(service.state is State.PLACING for service in self._services.values())
            try:
                async with asyncio.timeout(SOON if placing else LOOK):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        await self._refresh()
        for service in list(self._services.values()):
            job = await self._job_of(service)
            if not self._registry.runs:
                return
            seen = self._seen(service, job)
            try:
                await self._carry_out(service, services.decide(service, seen), seen)
            except LocalProtocolError as exc:
                # What the store does not take of one must not keep the others waiting.
                log.error("service_not_kept", service=service.name, error=str(exc))
            for agent, below in services.to_tell(service, seen).items():
                self._tell(service, agent, below)

    async def _refresh(self) -> None:
        """Learn what others made of the services."""
        versions = await self._keeper.store.versions(record.KIND)
        self._services = {n: one for n, one in self._services.items() if n in versions}
        known = {name: one.version for name, one in self._services.items()}
        if stale := [n for n, version in versions.items() if known.get(n) != version]:
            for one in await self._keeper.store.records(record.KIND, stale):
                self._services[one.name] = record.read(one)
        wanted = {agent for one in self._services.values() for agent in _agents(one)}
        self._sights = {agent: sight for agent, sight in self._sights.items() if agent in wanted}
        self._quiet = {key: until for key, until in self._quiet.items() if key[0] in versions}

    async def _job_of(self, service: Service) -> Job | None:
        """Give the job of a placement that is not over, as far as we know."""
        last = service.last
        if last is None or last.ended is not None:
            return None
        return await self._keeper.get(last.job)

    def _seen(self, service: Service, job: Job | None) -> Seen:
        agents = set(_agents(service))
        if job is not None and (target := job.want.get("to")):
            agents.add(str(target))
        return Seen(
            self._keeper.now(),
            job,
            frozenset(agent for agent in agents if self.is_lost(agent)),
            frozenset(agent for agent in service.left if self._offers(agent, UNDEPLOY)),
            self._epoch(service),
        )

    def _epoch(self, service: Service) -> int | None:
        agent = self._registry.get(service.agent or "")
        return agent.epoch if agent is not None and self._offers(agent.address, SHOW) else None

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()

    # -- who is there

    def is_lost(self, address: str) -> bool:
        """Tell whether nobody waits any more for an agent."""
        now = self._time()
        agent = self._registry.get(address)
        if agent is not None:
            self._sights[address] = agent.heard_at, agent.gone_at
            if agent.state(now) is AgentState.AVAILABLE:
                return False
        if not self._registry.runs:
            return False
        heard, left = self._sights.get(address, (None, None))
        return now >= services.lost_at(heard, left, self._registry.resumed_at)

    def _offers(self, address: str, op: str) -> bool:
        agent = self._registry.get(address)
        return agent is not None and self._is_here(agent) and op in agent.operations

    def _is_here(self, agent: KnownAgent) -> bool:
        return agent.state(self._time()) is AgentState.AVAILABLE

    def others(self, service: Service, avoid: frozenset[str]) -> bool:
        """Tell whether somebody is here who can take a service, other than these."""
        demand = Demand.of(DEPLOY, want_of(_job(service, "", {})))
        return any(
            agent.address not in avoid and self._is_here(agent)
            for agent in self._registry.suited(demand)
        )

    def _keeps(self, service: Service) -> bool:
        """Tell whether the agent that has a service can take a new generation of it."""
        if service.agent is None or self.is_lost(service.agent):
            return False
        agent = self._registry.get(service.agent)
        if agent is None:
            return True
        demand = Demand.of(DEPLOY, want_of(_job(service, "", {})))
        rule = rejection(agent, demand, self._broker.context(service.caller))
        return rule is None or rule.later

    # -- carrying out

    async def _carry_out(self, service: Service, act: Act, seen: Seen) -> None:
        now, job = seen.now, seen.job
        match act:
            case Act.NOTHING:
                return
            case Act.SETTLE if job is not None:
                placed = services.settled(service, job, now, _bounded(job.value))
                if await self._write(placed):
                    log.info("service_placed", service=service.name, agent=placed.agent)
            case Act.FAIL:
                failed = services.failed(service, job, now)
                looked = () if job is None else (Look(job.id),)
                if await self._write(failed, *looked):
                    assert failed.last is not None
                    log.warning(
                        "service_not_placed", service=service.name, problem=failed.last.problem
                    )
            case Act.MOVE:
                lost = service.agent if job is None else job.want.get("to")
                await self._place(service, f"{lost} was lost", job)
            case Act.RETRY:
                why = "nobody else took it" if job is not None else "tried again"
                failed_at = service.failed_at
                avoid = failed_at if self.others(service, failed_at) else frozenset[str]()
                await self._place(service, why, job, avoid=avoid)
            case Act.CHECK if service.agent is not None and seen.epoch is not None:
                self._check(service, service.agent, seen.epoch)
            case Act.STOP if job is not None:
                self._stop(job.id)
            case Act.CLOSE:
                await self._write(services.closed_at(service, job, now, "removed"))
            case Act.DROP:
                if await self._write(service, drop=True):
                    log.info("service_removed", service=service.name)
            case _:
                raise AssertionError(f"{act} without a job")

    async def _write(
        self, service: Service, *changes: Change, drop: bool = False
    ) -> Service | None:
        """Keep a service as it is now, and give it; nothing if somebody else was first."""
        result = (await self._keeper.store.write(Keep(record.written(service), drop), *changes))[0]
        if result is FENCED:
            return None
        kept = replace(service, version=service.version + 1)
        if drop:
            self._services.pop(service.name, None)
        else:
            self._services[service.name] = kept
        self._changed.set()
        return kept

    async def _know(self, name: str) -> Service | None:
        """Learn how a service is now."""
        found = await self._keeper.store.records(record.KIND, [name])
        if found:
            known = self._services[name] = record.read(found[0])
            return known
        self._services.pop(name, None)
        return None

    async def _place(
        self,
        service: Service,
        why: str,
        last: Job | None,
        *,
        to: str | None = None,
        avoid: frozenset[str] = frozenset(),
    ) -> Service | None:
        """Submit the job of a new placement; gives nothing if somebody else was first."""
        keeper = self._keeper
        how: dict[str, Json] = {}
        if to is not None:
            how["to"] = to
        elif avoid:
            how["avoid"] = sorted(avoid)
        now = keeper.now()
        id = mint(keeper.clock.wall())
        placed = services.placed_anew(service, id, now, why, last)
        job = _job(placed, id, how)
        job.created = job.runnable = now
        job.ends = now + int(job.allowed * 1000)
        keeper.take(job)
        kept = await self._write(placed, New(job))
        if kept is None:
            return None
        log.info("service_being_placed", service=service.name, job=id, why=why, **how)
        keeper.accepted(job)
        if last is not None and not last.final:
            self._stop(last.id)
        return kept

    def _stop(self, job: str) -> None:
        """Cancel a job, once, without waiting for it."""
        if job in self._stopping:
            return

        async def stop() -> None:
            try:
                await self._keeper.cancel(job)
            except (CallError, StoreError) as exc:
                log.warning("placement_not_stopped", job=job, error=str(exc))
            finally:
                self._stopping.discard(job)

        self._stopping.add(job)
        self._keeper.spawn("stopping", stop)

    # -- what agents are told, and asked

    def _tell(self, service: Service, agent: str, below: int) -> None:
        """Tell an agent to end what it has of a service."""

        async def tell() -> float:
            args: dict[str, Json] = {"service": service.name, "below": below}
            await self._call(service, agent, UNDEPLOY, args, ENDING)
            while (known := await self._know(service.name)) is not None and not (
                await self._write(services.told(known, agent, below))
            ):
                pass
            log.info("service_ended", service=service.name, agent=agent, below=below)
            return 0.0

        self._say(service, agent, ENDING, tell)

    def _check(self, service: Service, agent: str, epoch: int) -> None:
        """See whether an agent that was restarted has a service, and where it answers now."""

        async def check() -> float:
            try:
                said = await self._call(service, agent, SHOW, {"service": service.name}, SAYING)
            except CallError as exc:
                if exc.reason != "refused":
                    raise
                said = None
            row = _members(said)
            if row.get("generation") != service.running or row.get("state") == "undeployed":
                await self._place(service, f"{agent} came back without it", None, to=agent)
            elif row.get("state") == "running":
                await self._write(services.confirmed(service, epoch, _bounded(_in_short(row))))
            else:
                # It is about to be started, or will not run; its agent sees to that.
                return SOON_AGAIN
            return 0.0

        self._say(service, agent, SAYING, check)

    def _say(
        self, service: Service, agent: str, within: float, work: Callable[[], Awaitable[float]]
    ) -> None:
        """Have something done at an agent, unless something is; the work says when it may be again."""
        key = service.name, agent
        if self._quiet.get(key, 0.0) > self._time():
            return

        async def say() -> None:
            pause = AGAIN
            try:
                pause = await work()
            except (CallError, StoreError) as exc:
                log.warning("agent_not_told", service=service.name, agent=agent, error=str(exc))
            finally:
                if pause:
                    self._quiet[key] = self._time() + pause
                else:
                    self._quiet.pop(key, None)

        self._quiet[key] = self._time() + 2 * within
        self._keeper.spawn("saying", say)

    async def _call(
        self, service: Service, agent: str, op: str, args: Mapping[str, Json], within: float
    ) -> Json:
        return await self._broker.ask(op, args, Demand(op, only=agent), service.caller, within)

    # -- what callers ask

    async def get(self, name: str) -> Service | None:
        """Give a service as it is now."""
        return await self._know(name)

    async def result(self, service: Service) -> Json:
        """Give what the agent of a service says of it now, if it says so soon; else what it said."""
        if service.agent is None or not self._offers(service.agent, SHOW):
            return service.result
        args: dict[str, Json] = {"service": service.name}
        try:
            said = await self._call(service, service.agent, SHOW, args, SAYING_NOW)
        except CallError:
            return service.result
        return _bounded(_in_short(_members(said))) or service.result

    async def all(self) -> list[Service]:
        """Give all services, by name."""
        await self._refresh()
        return [self._services[name] for name in sorted(self._services)]

    async def deploy(
        self,
        name: str,
        caller: str,
        arguments: Mapping[str, Json],
        want: Mapping[str, Json],
        again: bool,
        may: Callable[[Service], None],
    ) -> Service:
        """Place a new service, or a known one anew if something of it is new.

        Where it runs it is replaced, as long as that agent is there and will do.

        Args:
            name: what it is called.
            caller: bare address of whoever deploys it.
            arguments: what it is deployed with.
            want: which machines come into question.
            again: place it anew in any case.
            may: is asked about a known one; raises CallError.
        """

        async def change(known: Service | None, last: Job | None) -> Service | None:
            now = self._keeper.now()
            if known is None:
                if len(await self._keeper.store.versions(record.KIND)) >= MAX_SERVICES:
                    raise CallError.of(
                        Problem("full", f"there are {MAX_SERVICES} services already")
                    )
                known = services.new(name, caller, now)
            else:
                may(known)
                same = known.arguments == arguments and known.want == want
                if same and not again and known.state is not State.REMOVING:
                    return known
            asked = services.asked_for(known, caller, arguments, want)
            return await self._place_as_asked(asked, f"deployed by {caller}", last)

        return await self._make(name, change)

    async def _place_as_asked(self, asked: Service, why: str, last: Job | None) -> Service | None:
        """Place a service that was changed where it is, if that is there and fits still."""
        to = asked.agent if self._keeps(asked) else None
        return await self._place(asked, why, last, to=to)

    async def roll_back(self, name: str, caller: str, may: Callable[[Service], None]) -> Service:
        """Place a service as it ran before it was changed.

        Raises:
            CallError: it was not changed since it was first placed; or there is no such service.
        """

        async def change(known: Service | None, last: Job | None) -> Service | None:
            known = _known(known, name)
            may(known)
            earlier = known.earlier
            if earlier is None or known.state is State.REMOVING:
                raise CallError.of(
                    Problem("refused", f"service {name} did not run with anything else before")
                )
            asked = services.asked_for(known, known.caller, earlier.arguments, earlier.want)
            return await self._place_as_asked(asked, f"rolled back by {caller}", last)

        return await self._make(name, change)

    async def move(self, name: str, caller: str, may: Callable[[Service], None]) -> Service:
        """Place a service at another agent than the one that has it.

        Raises:
            CallError: nobody else is here who can take it; or there is no such service.
        """

        async def change(known: Service | None, last: Job | None) -> Service | None:
            known = _known(known, name)
            may(known)
            if known.state is State.REMOVING:
                raise CallError.of(Problem("refused", f"service {name} is being removed"))
            avoid = frozenset(() if known.agent is None else (known.agent,))
            if not self.others(known, avoid):
                raise CallError.of(
                    Problem("no-agent", f"no other agent is here that can take service {name}")
                )
            return await self._place(known, f"moved by {caller}", last, avoid=avoid)

        return await self._make(name, change)

    async def remove(self, name: str, forget: bool, may: Callable[[Service], None]) -> Service:
        """End a service everywhere; with ``forget`` those who are away are not waited for.

        Raises:
            CallError: there is no such service.
        """

        async def change(known: Service | None, last: Job | None) -> Service | None:
            known = _known(known, name)
            may(known)
            going = known
            if known.state is not State.REMOVING:
                going = services.removed(known, self._keeper.now())
            if forget:
                here = {agent: g for agent, g in going.left.items() if not self.is_lost(agent)}
                going = services.forgotten(going, here)
            return known if going is known else await self._write(going)

        return await self._make(name, change)

    async def _make(self, name: str, change: _Change) -> Service:
        """Change a service, also when whoever asked for it does not wait."""

        async def work() -> Service:
            for _ in range(TRIES):
                known = await self._know(name)
                last = None if known is None else await self._job_of(known)
                made = await change(known, last)
                if made is not None:
                    return made
            raise CallError.of(Problem("busy", f"service {name} changes all the time", after=LOOK))

        if self._keeper.draining:
            raise CallError.of(Problem("draining", "this dispatcher is shutting down"))
        return await self._keeper.whole(work())


def _known(service: Service | None, name: str) -> Service:
    if service is None:
        raise unknown(name)
    return service


def unknown(name: str) -> CallError:
    """Give the error for a service that there is not."""
    return CallError.of(Problem("refused", f"there is no service {name}", "name"))


def _agents(service: Service) -> list[str]:
    return [] if service.agent is None else [service.agent]


def _bounded(result: Json) -> Json:
    return result if len(dumps(result)) <= MAX_RESULT else None


def _members(said: Json) -> Mapping[str, Json]:
    """Give the members of an object, and none of anything else."""
    return cast("Mapping[str, Json]", said) if isinstance(said, dict) else dict[str, Json]()


def _in_short(row: Mapping[str, Json]) -> dict[str, Json]:
    """Leave out the long members of what an agent says of a service."""
    return {name: value for name, value in row.items() if not isinstance(value, dict | list)}


def _job(service: Service, id: str, how: Mapping[str, Json]) -> Job:
    """Make the job that places a service."""
    return Job(
        id=id,
        caller=service.caller,
        op=DEPLOY,
        created=0,
        args={**service.arguments, "service": service.name, "generation": service.generation},
        want={**service.want, **how},
        labels=(f"service:{service.name}",),
        allowed=services.ALLOWED,
        origin=f"service:{service.name}",
    )
