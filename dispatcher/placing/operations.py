"""The dispatcher's own operations for services: the face of the placer on the bus.

Everybody who may call can see where a service is, as it would in DNS.  Who deployed it and the owner
change it, and see what it was deployed with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from spinal.bus.errors import CallError
from spinal.bus.jsontext import dumps
from spinal.bus.requests import Request
from spinal.protocols import Json, Problem, RemoteProtocolError, readers
from spinal.protocols.address import bare
from spinal.protocols.readers import Reader

from ..jobs.job import Job
from ..jobs.keeper import Keeper
from ..jobs.operations import JobOperations
from ..jobs.rows import stamp
from ..listing import page
from ..own import Arguments, Own, needed
from ..roles import Right, RoleTable
from .placer import MAX_ARGUMENTS, Placer, unknown
from .service import Placement, Service, State

#: What a service may be called; its agent has a folder of that name.
NAME: Final = re.compile("[a-z][a-z0-9-]{0,62}")

#: How machines may be ranked, of which one is taken.
POLICIES: Final = ("least-loaded", "cheapest", "round-robin", "random")

#: Lines of the story of a placement that are told.
MAX_LINES: Final = 20


class ServiceOperations:
    """Answers them."""

    def __init__(
        self, placer: Placer, keeper: Keeper, jobs: JobOperations, roles: RoleTable
    ) -> None:
        self._placer = placer
        self._keeper = keeper
        self._jobs = jobs
        self._roles = roles

    async def deploy(self, request: Request, args: Arguments) -> Json:
        """Place a service, or place it anew with what was changed."""
        arguments = args.get("arguments", {})
        if len(dumps(arguments)) > MAX_ARGUMENTS:
            text = f"more than {MAX_ARGUMENTS} bytes"
            raise CallError.of(Problem("bad-arguments", text, "arguments"))
        want = {name: args[name] for name in _WANT if args.get(name)}
        if "tags" in want:
            want["tags"] = list(want["tags"])
        service = await self._placer.deploy(
            needed(args, "name"),
            bare(request.caller),
            arguments,
            want,
            args.get("again", False),
            lambda known: self._check(request, known),
        )
        return await self._row(service)

    async def move(self, request: Request, args: Arguments) -> Json:
        """Place a service at another agent."""
        caller = bare(request.caller)
        name = needed(args, "name")
        service = await self._placer.move(name, caller, lambda known: self._check(request, known))
        return await self._row(service)

    async def rollback(self, request: Request, args: Arguments) -> Json:
        """Place a service as it ran before it was changed."""
        caller = bare(request.caller)
        name = needed(args, "name")
        service = await self._placer.roll_back(
            name, caller, lambda known: self._check(request, known)
        )
        return await self._row(service)

    async def remove(self, request: Request, args: Arguments) -> Json:
        """End a service everywhere."""
        service = await self._placer.remove(
            needed(args, "name"),
            args.get("forget", False),
            lambda known: self._check(request, known),
        )
        return await self._row(service)

    async def list(self, request: Request, args: Arguments) -> Json:
        """List the services by name."""
        rows = [await self._row(service) for service in await self._placer.all()]
        return page(rows, args.get("offset", 0), len(rows), lambda row: row)

    async def show(self, request: Request, args: Arguments) -> Json:
        """Give all that is known of a service, and why it is where it is."""
        service = await self._find(args)
        service = replace(service, result=await self._placer.result(service))
        found = await self._row(service)
        found["history"] = [placement_row(one) for one in service.history]
        found["why"] = [*await self._why(service)]
        if self._is_theirs(request, service):
            found["arguments"] = dict(service.arguments)
        return found

    async def where(self, request: Request, args: Arguments) -> Json:
        """Say where a service answers: its agent, and what that said of it."""
        service = await self._find(args)
        if service.agent is None:
            text = f"service {service.name} is {service.state.value} now"
            raise CallError.of(Problem("busy", text, after=1.0))
        if self._placer.is_lost(service.agent):
            text = f"service {service.name} was at {service.agent}, which is lost"
            raise CallError.of(Problem("busy", text, after=1.0))
        return {"name": service.name, "agent": service.agent, "result": service.result}

    # -- helpers

    async def _find(self, args: Arguments) -> Service:
        name = needed(args, "name")
        service = await self._placer.get(name)
        if service is None:
            raise unknown(name)
        return service

    def _is_theirs(self, request: Request, service: Service) -> bool:
        owner = self._roles.may(request.caller, Right.WATCH)
        return owner or service.caller == bare(request.caller)

    def _check(self, request: Request, service: Service) -> None:
        if not self._is_theirs(request, service):
            text = f"service {service.name} is {service.caller}'s"
            raise CallError.of(Problem("not-allowed", text))

    async def _job(self, service: Service) -> Job | None:
        return None if service.job is None else await self._keeper.get(service.job)

    async def _why(self, service: Service) -> Sequence[str]:
        job = await self._job(service)
        if job is None:
            return ["the job that placed it is not kept any more"]
        return (await self._jobs.story(job))[:MAX_LINES]

    async def _row(self, service: Service) -> dict[str, Json]:
        note = ""
        if service.state is State.UNPLACED and service.last is not None:
            note = service.last.problem
        elif service.state is State.PLACING:
            job = await self._job(service)
            note = "" if job is None else self._jobs.waits(job)
        return row(service, note)


def row(service: Service, note: str = "") -> dict[str, Json]:
    """Give a service as JSON, without members that would say nothing."""
    unplaced = service.state is State.UNPLACED
    out: dict[str, Any] = {
        "name": service.name,
        "state": service.state.value,
        "since": stamp(service.since),
        "caller": service.caller,
        "created": stamp(service.created),
        "generation": service.generation,
        "running": service.running,
        "agent": service.agent,
        "result": service.result,
        "job": service.job,
        "note": note or None,
        "due": stamp(service.due) if unplaced else None,
        "left": sorted(service.left) or None,
        **service.want,
    }
    return {name: item for name, item in out.items() if item is not None}


def placement_row(one: Placement) -> dict[str, Json]:
    """Give a placement as JSON, without members that would say nothing."""
    out: dict[str, Json] = {
        "generation": one.generation,
        "why": one.why,
        "job": one.job,
        "began": stamp(one.began),
        "ended": None if one.ended is None else stamp(one.ended),
        "agent": one.agent,
        "problem": one.problem or None,
    }
    return {name: item for name, item in out.items() if item is not None}


def _name(raw: Json, name: str) -> str:
    if not isinstance(raw, str) or not NAME.fullmatch(raw):
        wanted = "small letters, digits and '-', at most 63, and a letter first"
        raise RemoteProtocolError(f"'{name}' must be {wanted}", "bad-arguments", name)
    return raw


_NAME: Mapping[str, Reader] = {"name": _name}
_WANT: Mapping[str, Reader] = {
    "place": readers.places,
    "tags": readers.list_of(readers.text(64), 64),
    "policy": readers.one_of(*POLICIES),
}
_Ops = ServiceOperations

#: Path -> what it needs and does.
SERVICE_OPERATIONS: Mapping[str, Own[ServiceOperations]] = {
    "/spinal/services/deploy": Own(
        Right.CALL,
        {**_NAME, "arguments": readers.mapping, **_WANT, "again": readers.flag},
        _Ops.deploy,
    ),
    "/spinal/services/list": Own(Right.CALL, {"offset": readers.integer()}, _Ops.list),
    "/spinal/services/show": Own(Right.CALL, _NAME, _Ops.show),
    "/spinal/services/where": Own(Right.CALL, _NAME, _Ops.where),
    "/spinal/services/move": Own(Right.CALL, _NAME, _Ops.move),
    "/spinal/services/rollback": Own(Right.CALL, _NAME, _Ops.rollback),
    "/spinal/services/remove": Own(Right.CALL, {**_NAME, "forget": readers.flag}, _Ops.remove),
}
