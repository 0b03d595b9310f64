"""Calls that go to several agents: ``all`` of them, or ``any-first`` of a few."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from spinal.bus.errors import CallError
from spinal.bus.jsontext import dumps
from spinal.bus.requests import Relayed, Request
from spinal.protocols import Final, Json, Problem

from .broker import Broker, Errand
from .policies import Context
from .refusal import no_agent
from .registry import Registry
from .resolver import Demand, ranked, rejection

#: Most agents that one ``all`` goes to.
MAX_TARGETS = 1000

#: Agents that ``any-first`` asks at once.
RUNNERS = 3

#: ``all`` gives what it has so long before its caller gives up: this part of the whole time, and at
#: most so many seconds.
MARGIN = 0.1
MAX_MARGIN = 0.5

#: Bytes of JSON text that the list of results may take; a final may take 32 KiB.
ROOM = 30 * 1024

#: Rules that do not keep an agent from being a target of ``all``: it is there, and may answer yet.
PRESENT = frozenset({"busy", "full", "suspect"})


def present(registry: Registry, demand: Demand, context: Context) -> list[str]:
    """Give who could do it and is there, also if it is busy, by address.

    Raises:
        CallError: nobody is.
    """
    suited = list(registry.suited(demand))
    rules = [rejection(agent, demand, context) for agent in suited]
    found = [
        agent.address
        for agent, rule in zip(suited, rules, strict=True)
        if rule is None or rule.name in PRESENT
    ]
    if not found:
        passed = registry.passed(demand, context)
        raise CallError.of(no_agent(demand.op, passed, registry.operations()))
    return sorted(found)


def everybody(registry: Registry, demand: Demand, context: Context) -> list[str]:
    """Give the agents that ``all`` goes to.

    Raises:
        CallError: there is no target, or too many.
    """
    targets = present(registry, demand, context)
    if len(targets) > MAX_TARGETS:
        raise CallError.of(
            Problem(
                "too-large",
                f"{len(targets)} agents offer {demand.op}, and `all` goes to at most "
                f"{MAX_TARGETS}: narrow it by place or tags",
            )
        )
    return targets


def first_of(registry: Registry, demand: Demand, context: Context) -> list[str]:
    """Give the agents that ``any-first`` asks at once, best first; none if nobody is free.

    Raises:
        CallError: the operation is not safe.
    """
    if not all(operation.safe for operation in registry.offers(demand.op)):
        raise CallError.of(
            Problem(
                "refused",
                f"any-first runs an operation several times, and {demand.op} is not safe for that",
            )
        )
    return [agent.address for agent in islice(ranked(registry, demand, context), RUNNERS)]


async def ask_all(broker: Broker, registry: Registry, request: Request, demand: Demand) -> Json:
    """Call every agent that is there, and give a list of ``{agent, state, value | problem}``.

    The targets are fixed now.  Who has not answered shortly before the deadline is in the list with
    a problem.  A caller with a window above one (one is for progress) gets each row as data too,
    as it comes; so it has them all even if the list does not fit into a final.

    Raises:
        CallError: there is no target, or too many.
    """
    loop = asyncio.get_running_loop()
    targets = everybody(registry, demand, broker.context(request.caller))
    end = request.deadline - min(MAX_MARGIN, MARGIN * (request.deadline - loop.time()))
    rows: dict[str, dict[str, Any]] = {}
    saying = asyncio.Lock()

    async def one(target: str) -> None:
        rows[target] = row = await _row(
            broker, broker.errand(request, _only(demand, target), end), target, end
        )
        if request.op.window:
            request.progress(len(rows), len(targets))
        if request.op.window > 1:
            async with saying:
                await request.data(row)

    async with asyncio.TaskGroup() as group:
        for target in targets:
            group.create_task(one(target))
    found = [rows[target] for target in targets]
    size = len(dumps(found))
    if size <= ROOM:
        return found
    if request.op.window > 1:
        return []
    raise CallError.of(
        Problem(
            "failed",
            f"the {len(found)} results take {size} bytes and do not fit into one answer: ask for a "
            f"stream; {sum(row['state'] == 'done' for row in found)} of them are done",
        )
    )


async def _row(broker: Broker, errand: Errand, target: str, end: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout_at(end):
            final = await broker.run(errand)
    except CallError as exc:
        return {"agent": target, "state": "error", "problem": exc.problem.to_json()}
    except TimeoutError:
        problem = Problem("deadline", "it did not answer before the deadline")
        return {"agent": target, "state": "error", "problem": problem.to_json()}
    return {"agent": target, "state": "done", "value": final.value}


async def ask_any(broker: Broker, registry: Registry, request: Request, demand: Demand) -> Relayed:
    """Call a few agents at once, give the first value, and cancel the others.

    When nobody is free it waits for one agent like any other call.

    Raises:
        CallError: the operation is not safe, or nobody did it; then with the last problem.
    """
    runners = first_of(registry, demand, broker.context(request.caller))
    targets: Sequence[Demand] = [_only(demand, target) for target in runners] or [demand]
    running = {
        asyncio.get_running_loop().create_task(broker.run(broker.errand(request, target)))
        for target in targets
    }
    error: CallError | None = None
    try:
        while running:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                try:
                    final: Final = task.result()
                except CallError as exc:
                    error = exc
                else:
                    return Relayed(final)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert error is not None
    raise error


def _only(demand: Demand, target: str) -> Demand:
    return replace(demand, policy="least-loaded", only=target)
