"""What choosing an agent and taking in a load report may cost, in calls."""

from __future__ import annotations

import asyncio
import math
from random import Random
from typing import Any

import pytest

from spinal.dispatcher.policies import Context
from spinal.dispatcher.registry import Registry
from spinal.dispatcher.resolver import Demand, choose
from spinal.dispatcher.service import Dispatcher
from spinal.protocols import Advertisement, Capabilities, Operation
from spinal.testing import MemoryBus

from .counting import Cost, counted

OP = "/image/resize"
CAPABILITIES = Capabilities.of([Operation(OP)])
TAGS = {"gpu": 0.1, "arm": 0.25, "ssd": 0.5}

#: Calls that a resolve among 100 agents may take, with the start and the end of a call, and among
#: any number; a report that says nothing new, and one of another load.
RESOLVE, RESOLVE_ANY = 200, 260
REPORT, REPORT_OF_A_CHANGE = 54, 68


def site(draw: Random, height: int) -> str:
    names = (draw.choice(["eu", "us", "ap"]), f"z{draw.randrange(5)}", f"r{draw.randrange(50)}")
    return "/" + "/".join(names[:height])


def report(draw: Random) -> dict[str, Any]:
    said = Advertisement(
        hash=CAPABILITIES.hash,
        epoch=1,
        slots=4,
        load=draw.random(),
        place={"site": site(draw, 3), "role": draw.choice(["/web", "/db"])},
        tags=[tag for tag, share in TAGS.items() if draw.random() < share],
        features=["holds"],
    )
    return dict(said.to_json())


def demand(draw: Random) -> Demand:
    height = draw.randrange(4)
    place = (("site", site(draw, height)),) if height else ()
    return Demand(OP, place, frozenset(tag for tag in TAGS if draw.random() < 0.3))


def fill(registry: Registry, count: int, now: float = 0.0) -> None:
    draw = Random(1)
    for number in range(count):
        registry.advertised(f"w@x/{number}", Advertisement.parse(report(draw)), now)
    registry.described(CAPABILITIES)


def resolving(agents: int) -> Cost:
    """Count what it takes to choose one of so many agents, start a call there and end one."""
    registry = Registry()
    fill(registry, agents)
    draw = Random(2)
    asked = [demand(draw) for _ in range(2500)]
    flying: list[tuple[Any, tuple[str, int]]] = []

    def resolve(number: int) -> None:
        context = Context(1.0, Random(3), "c@x/1")
        agent = choose(registry, asked[number], context).agent
        if agent is not None:
            key = (f"c{number}", 1)
            registry.start(agent, key, OP, 1.0)
            flying.append((agent, key))
        if len(flying) > 32:
            agent, key = flying.pop(0)
            agent.ended(key, 1.0)

    return counted(f"a resolve among {agents} agents", resolve, 2000, warm=500)


def test_resolving_costs_a_bounded_number_of_calls_and_grows_no_faster_than_a_logarithm() -> None:
    few = resolving(100)

    few.at_most(RESOLVE)
    for agents in (10_000, 100_000):
        cost = resolving(agents)
        cost.at_most(1.1 * few.each * math.log(agents) / math.log(100))
        cost.at_most(RESOLVE_ANY)


@pytest.mark.parametrize(("changed", "bound"), [(False, REPORT), (True, REPORT_OF_A_CHANGE)])
async def test_a_load_report_costs_a_bounded_number_of_calls(changed: bool, bound: int) -> None:
    bus = MemoryBus()
    async with Dispatcher(bus.connection("d@x/1"), roles=lambda who: "agent") as dispatcher:
        registry = dispatcher.registry
        fill(registry, 1000, asyncio.get_running_loop().time())
        draw, other = Random(1), Random(4)
        said: list[Advertisement] = []
        for _ in registry:
            raw = report(draw)
            said.append(Advertisement.parse(raw | {"load": other.random()} if changed else raw))
        presence = dispatcher.session.on_presence

        def take(number: int) -> None:
            presence(f"w@x/{number}", True, [said[number]])

        counted("a load report at the dispatcher", take, 900).at_most(bound)
