"""What ordinary tools see of an agent of the kit, over the memory bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest
from tests.tool import COMMANDS, FORMS, INFO, ITEMS, Tool, asked_for, nodes, tool, value

from spinal.agents.files import load_file
from spinal.agents.life import Life
from spinal.bus.errors import CallError
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryBus
from spinal.protocols import FEATURES, Event, Mirror, Seen, Stanza
from spinal.testing import eventually

AGENT = "forms@memory.test/agent"
DISPATCHER = "dispatcher@memory.test/d"
ANN = "ann@memory.test/phone"

EVERY = {
    "colour": ["blue & green"],
    "text": ["5 < 6 & 'x'"],
    "whole": ["-7"],
    "real": ["0.5"],
    "flag": ["1"],
    "some": ["a", "c"],
    "lines": ["one", "", "three"],
    "size": ["4"],
    "maybe": [""],
    "word": [""],
}


@dataclass
class World:
    life: Life
    dispatcher: Session
    ann: Tool
    sent: list[Stanza]
    seen: list[Seen] = field(default_factory=list[Seen])


@pytest.fixture
async def world(files: Path) -> AsyncIterator[World]:
    sent: list[Stanza] = []
    bus = MemoryBus()

    def see(stanza: Stanza) -> bool:
        sent.append(stanza)
        return False

    bus.faults.applies = see
    life = Life(
        load_file(files / "forms.py"),
        bus.connection(AGENT),
        dispatchers=[DISPATCHER],
        heartbeat=0.2,
        pause=0.01,
    )
    async with AsyncExitStack() as stack:
        hub = Session(bus.connection(DISPATCHER), role="dispatcher", epoch=1)
        await stack.enter_async_context(hub)
        await stack.enter_async_context(life)
        ann = await stack.enter_async_context(tool(bus, ANN, AGENT))
        world = World(life, hub, ann, sent)

        def event(sender: str, event: Event) -> None:
            if isinstance(event, Seen):
                world.seen.append(event)

        hub.on_event = event
        yield world


async def problem_of(ann: Tool, path: str) -> tuple[str, str]:
    with pytest.raises(CallError) as refused:
        await ann.command(path)
    return refused.value.problem.reason, refused.value.problem.text


async def test_it_says_what_it_is(world: World) -> None:
    answer = await world.ann.ask(INFO)

    (identity,) = answer.findall(f"{{{INFO}}}identity")
    assert identity.attrib == {"category": "client", "type": "bot", "name": "forms"}
    fields = answer.findall(f"{{{FORMS}}}x/{{{FORMS}}}field")
    said = {one.get("var"): [v.text for v in one] for one in fields}
    assert said["hash"] == [world.life.agent.capabilities.hash]
    assert said["features"] == sorted(FEATURES)


async def test_its_operations_are_items_and_those_with_a_form_are_commands(world: World) -> None:
    listed = nodes(await world.ann.ask(ITEMS))
    commands = nodes(await world.ann.ask(ITEMS, COMMANDS))

    assert set(listed) == set(world.life.agent.operations)
    assert listed["/forms/who"] == "Say who asks."
    assert set(listed) - set(commands) == {"/forms/scale", "/forms/any"}


async def test_every_kind_of_argument_is_asked_for_and_read(world: World) -> None:
    form = await world.ann.command("/forms/every")
    assert asked_for(form) == {
        "colour": "list-single",
        "text": "text-single",
        "whole": "text-single",
        "real": "text-single",
        "flag": "boolean",
        "some": "list-multi",
        "lines": "text-multi",
        "size": "list-single",
        "maybe": "text-single",
        "word": "text-single",
    }
    defaults = {
        one.get("var"): one.findtext(f"{{{FORMS}}}value")
        for one in form.findall(f"{{{FORMS}}}x/{{{FORMS}}}field")
    }
    assert {var: text for var, text in defaults.items() if text} == {
        "flag": "0",
        "size": "2",
        "word": "it's <it>",
    }

    done = await world.ann.command("/forms/every", EVERY)

    assert json.loads(value(done)) == {
        "colour": "blue & green",
        "text": "5 < 6 & 'x'",
        "whole": -7,
        "real": 0.5,
        "flag": True,
        "some": ["a", "c"],
        "lines": ["one", "", "three"],
        "size": 4,
        "maybe": None,
        "word": "it's <it>",
        "photo": False,
    }


async def test_a_plain_function_runs_in_its_process(world: World) -> None:
    assert value(await world.ann.command("/forms/plain", {"text": ["hi"]})) == '"hi"'


async def test_the_operation_cannot_tell_it_from_a_call(world: World) -> None:
    called = await world.dispatcher.call(AGENT, "/forms/who").result()

    assert (called, json.loads(value(await world.ann.command("/forms/who")))) == (DISPATCHER, ANN)


@pytest.mark.parametrize(
    ("path", "reason", "text"),
    [
        ("/forms/refuse", "refused", "the shop is closed"),
        ("/forms/brief", "deadline", "ran longer than its timeout of 50ms"),
        ("/forms/nothing", "unknown-op", "there is no command /forms/nothing"),
        ("/forms/scale", "unknown-op", "there is no command /forms/scale"),
    ],
)
async def test_problems_are_those_of_a_call(
    world: World, path: str, reason: str, text: str
) -> None:
    assert await problem_of(world.ann, path) == (reason, text)


async def test_a_value_that_the_agent_does_not_take_is_named(world: World) -> None:
    said: dict[str, Sequence[str]] = {**EVERY, "whole": ["x"]}
    with pytest.raises(CallError, match="argument 'whole' must be an integer") as refused:
        await world.ann.command("/forms/every", said)
    assert refused.value.problem.condition == "bad-request"


async def test_it_passes_the_same_gates_and_takes_a_slot(world: World) -> None:
    asking = [asyncio.ensure_future(world.ann.command("/forms/wait")) for _ in range(2)]
    await eventually(lambda: world.life.slots.busy == 2)

    draining = asyncio.ensure_future(world.life.drain(grace=20))
    await eventually(lambda: world.life.state == "draining")
    assert (await problem_of(world.ann, "/forms/who"))[0] == "draining"
    world.ann.connection.send(Stanza("presence", "", AGENT))
    await world.ann.connection.close()
    for task in asking:
        with pytest.raises(CallError):
            await task
    assert not draining.done()
    draining.cancel()


async def test_its_last_word_is_said_before_it_has_drained(world: World) -> None:
    asking = asyncio.ensure_future(world.ann.command("/forms/plain", {"text": ["hi"]}))
    await eventually(lambda: world.life.slots.busy == 1)

    assert await world.life.drain()
    await world.life.session.close()

    assert value(await asking) == '"hi"'


async def test_a_tap_sees_it(world: World) -> None:
    world.dispatcher.say(AGENT, Mirror(60))
    await eventually(lambda: world.life._mirrors)  # pyright: ignore[reportPrivateUsage]

    await world.ann.command("/forms/who")

    await eventually(lambda: len(world.seen) == 2)
    assert [(one.what, one.caller, one.op, one.state) for one in world.seen] == [
        ("op", ANN, "/forms/who", ""),
        ("final", ANN, "/forms/who", "done"),
    ]


async def test_capabilities_go_with_the_hello_and_with_no_heartbeat(world: World) -> None:
    def advertised() -> list[Stanza]:
        return [s for s in world.sent if (s.sender, s.to) == (AGENT, DISPATCHER) and s.body]

    await eventually(lambda: len([s for s in advertised() if s.kind == "presence"]) > 3)

    first, *others = [s for s in advertised() if s.kind == "presence"]
    assert fromstring(first.other).get("ver") == world.life.visible.info.ver
    assert all(bool(s.other) == (b'"hello"' in (s.body or b"")) for s in (first, *others))
    assert not others[-1].other
