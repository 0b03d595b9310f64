"""The agent: its operations, as callers see them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, TypeVar

from msgspec import Meta

from spinal.bus.jsontext import dumps
from spinal.protocols import Json
from spinal.protocols.values import escape

from ..agent import Agent
from ..job import Job
from . import config
from .deployment import Deployment
from .kinds import Tell
from .spec import Spec

T = TypeVar("T")

#: Most lines of a log that are told at once, and the bytes of them that fit into an answer.
MAX_LINES: Final = 1000
ROOM: Final = 24 * 1024

Name = Annotated[str, Meta(max_length=63)]
Lines = Annotated[int, Meta(ge=0, le=MAX_LINES)]
Generation = Annotated[int, Meta(ge=0)]
Values = dict[str, object]


def make(file: Path | None = None) -> Agent:
    """Make the deployment agent.

    Raises:
        AgentError: its file is not there, or has mistakes.
    """
    return agent_of(config.load(file))


def agent_of(found: config.Config) -> Agent:
    """Make the agent of a configuration."""
    deployment = Deployment(found)
    agent = Agent(
        "deployment",
        place=found.place,
        tags=found.tags,
        slots=found.slots,
        load=deployment.load,
        lifespan=deployment.live,
    )
    offer(agent, deployment)
    return agent


def offer(agent: Agent, deployment: Deployment) -> None:
    """Give an agent the operations."""

    # Idempotent, so a lost one may run again here or elsewhere.
    @agent.op("/deployment/deploy", timeout="30m", effects="writes", safe=True)
    async def deploy(
        job: Job,
        service: Name,
        release: Values,
        start: list[str] = [],  # noqa: B006 - the signature is what callers see
        port: int | str | None = None,
        env: Values = {},  # noqa: B006
        health: Values = {},  # noqa: B006
        keep: int = 3,
        restart: Values = {},  # noqa: B006
        generation: Generation = 0,
    ) -> dict[str, Json]:
        """Have a release of a service run here, in place of the one that does.

        It is fetched, checked and unpacked beside the others, started, and must become well; until
        it is, everything can be taken back, and is when it fails or is cancelled.  The same again
        does nothing, and says how it goes.

        Args:
            service: Its name.
            release: Where it is, as {"url", "sha256", "kind": "archive", "wheel" or "image"}.
            start: The program and its arguments, with {port}, {release} and {data}.
            port: The port it listens on, or "auto" for one that is free.
            env: Its variables; secrets as {"env": NAME}, {"file": PATH} or {"credential": NAME}.
            health: How it is seen that it is well.
            keep: Releases that stay on disk.
            restart: How soon it is started again when it has ended.
            generation: Grows with each placement; one that is lower than the one here is refused.
        """
        given: dict[str, Json] = {
            "service": service,
            "release": release,
            "start": start,
            "port": port,
            "env": env,
            "health": health,
            "keep": keep,
            "restart": restart,
        }
        arguments = {name: value for name, value in given.items() if value is not None}
        spec = Spec.of(arguments)
        deployment.admit(service)
        with deployment.at(service) as found:
            changed = await found.deploy(spec, arguments, generation, _tell(job))
            return {**found.row(), "changed": changed}

    @agent.op("/deployment/undeploy", timeout="2m", effects="deletes", safe=True)
    async def undeploy(
        job: Job, service: Name, below: Generation | None = None, purge: bool = False
    ) -> dict[str, Json]:
        """End a service and remove its releases; its data stays.

        Args:
            service: Its name.
            below: Only if its generation here is lower; such ones are refused from then on.
            purge: Remove its data as well.
        """
        with deployment.at(service) as found:
            done = await found.undeploy(below, purge, _tell(job))
            return {"service": service, "undeployed": done, "generation": found.generation}

    @agent.op("/deployment/rollback", timeout="10m", effects="writes", safe=False)
    async def rollback(job: Job, service: Name, to: str | None = None) -> dict[str, Json]:
        """Have an earlier release run again, as it was deployed.

        Args:
            service: Its name.
            to: The release, as `show` lists them; by default the one before the present one.
        """
        with deployment.at(service) as found:
            await found.roll_back(to, _tell(job))
            return found.row()

    @agent.op("/deployment/restart", timeout="10m", effects="writes", safe=True)
    async def restart_it(job: Job, service: Name) -> dict[str, Json]:
        """Stop a service and start it again.

        Args:
            service: Its name.
        """
        with deployment.at(service) as found:
            await found.restart(_tell(job))
            return found.row()

    @agent.op("/deployment/list", timeout="10s", effects="reads")
    async def services(offset: Annotated[int, Meta(ge=0)] = 0) -> dict[str, Json]:
        """List the services of this machine, and how each goes, in pages.

        Args:
            offset: How many to leave out; while there are `more`, ask on.
        """
        rows = [service.row() for service in deployment.all()]
        fit = _first(rows[offset:])
        return {"items": [*fit], "more": offset + len(fit) < len(rows), "total": len(rows)}

    @agent.op("/deployment/show", timeout="10s", effects="reads")
    async def show(service: Name) -> dict[str, Json]:
        """Give all that is known of a service: its releases, how it goes, and why it was restarted.

        Args:
            service: Its name.
        """
        return deployment.find(service).page()

    # Few, because one who follows may keep a slot for an hour.
    @agent.op("/deployment/log", timeout="1h", effects="reads", slots=4)
    async def log(
        job: Job,
        service: Name,
        lines: Lines = 100,
        follow: bool = False,
        release: str | None = None,
    ) -> dict[str, Json]:
        """Give the last lines that a service wrote.

        Args:
            service: Its name.
            lines: How many.
            follow: Send them, and then new ones as they come, as data, until cancelled or the
                agent ends.
            release: Of which release; by default the present one.
        """
        file = deployment.find(service).log_of(release)
        if not follow:
            found = await asyncio.to_thread(file.tail, lines)
            fit = _last(found)
            return {"service": service, "lines": fit, "cut": len(fit) < len(found)}
        news = file.follow()
        try:
            for part in _parts(await asyncio.to_thread(file.tail, lines)):
                await job.data(part)
            async for more in news:
                for part in _parts(more):
                    await job.data(part)
                if deployment.draining:
                    # Else the agent would wait for whoever follows before it ends.
                    break
        finally:
            await news.aclose()
        return {"service": service, "lines": [], "cut": False}


def _tell(job: Job) -> Tell:
    """Tell a caller what is done: each step as a line, and how far it is as progress."""
    last = ""

    def tell(step: str, done: float | None, total: float | None) -> None:
        nonlocal last
        if step != last:
            job.log(step)
            last = step
        job.progress(done, total, step)

    return tell


def _last(lines: Sequence[str]) -> list[str]:
    """Give the last lines that fit into one answer."""
    return _first(lines[::-1])[::-1]


def _first(items: Sequence[T]) -> list[T]:
    """Give the first items that fit into one answer."""
    parts = _parts(items)
    return parts[0] if parts else []


def _parts(items: Sequence[T]) -> list[list[T]]:
    """Divide items into parts that each fit into one answer, or piece of data."""
    parts: list[list[T]] = []
    room = 0
    for item in items:
        size = len(escape(dumps(item))) + 1
        if size > room:
            parts.append([])
            room = ROOM
        parts[-1].append(item)
        room -= size
    return parts
