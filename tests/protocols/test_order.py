"""Plays order.json and dispatchers.json of protocols/vectors: against the table, and against ours."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Annotated, Any, cast
from xml.etree.ElementTree import Element

import pytest
from msgspec import Meta

from spinal.agents import Agent, Job, Refused
from spinal.agents.life import Life
from spinal.bus.call import Call
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryConnection
from spinal.dispatcher import Dispatcher
from spinal.protocols import (
    BOUNCES,
    Data,
    Exchange,
    Json,
    LocalProtocolError,
    Message,
    Problem,
    RemoteProtocolError,
    Speaker,
    Stanza,
)
from spinal.testing import ManualClock, MemoryBus

from .vectors import Case, each

Step = Mapping[str, Any]


# -- the table


@each("order.json", "table")
def test_states_follow_from_what_is_said_and_heard(case: Case) -> None:
    end = Exchange(Speaker(case["end"]))
    for how, event, state in case["steps"]:
        if state is None:
            before = end.state
            with pytest.raises(LocalProtocolError if how == "say" else RemoteProtocolError):
                (end.say if how == "say" else end.hear)(event)
            assert end.state is before
        else:
            (end.say if how == "say" else end.hear)(event)
            assert end.state.value == state


# -- stanzas on a bus


class Peer:
    """A program of the script: says what it says, and keeps what comes until it is looked for."""

    def __init__(self, connection: MemoryConnection) -> None:
        self.connection = connection
        self.came: list[Stanza] = []
        self._news = asyncio.Event()

    def opened(self) -> None: ...

    def closed(self, reason: str) -> None: ...

    def asked(self, kind: str, sender: str, id: str, payload: Element) -> bool:
        return False

    def said(self, message: Message) -> None: ...

    def received(self, stanza: Stanza) -> None:
        if stanza.kind != "presence":
            self.came.append(stanza)
            self._news.set()

    async def next(self, kind: str, types: Sequence[str], id: str | None, within: float) -> Stanza:
        """Take the first stanza of this sort out of what came."""
        async with asyncio.timeout(within):
            while True:
                for stanza in self.came:
                    if stanza.kind == kind and stanza.type in types and id in (None, stanza.id):
                        self.came.remove(stanza)
                        return stanza
                self._news.clear()
                await self._news.wait()

    @property
    def unheard(self) -> list[Stanza]:
        """IQs that no step looked for."""
        return [stanza for stanza in self.came if stanza.kind == "iq"]


def alike(expected: Json, found: Json, named: dict[str, Json]) -> bool:
    """Tell whether everything that is expected was found; what is not mentioned may be anything.

    Takes down what is to have a name.
    """
    match expected:
        case {"any": True}:
            return True
        case {"as": name}:
            return bool(named.setdefault(name, found) == found)
        case _:
            pass
    for kind in (dict, list, bool):
        if isinstance(expected, kind) and not isinstance(found, kind):
            return False
    if isinstance(expected, dict):
        had = cast("Mapping[str, Json]", found)
        members = cast("Mapping[str, Json]", expected)
        return all(n in had and alike(item, had[n], named) for n, item in members.items())
    if isinstance(expected, list):
        items, others = cast("Sequence[Json]", expected), cast("Sequence[Json]", found)
        return len(items) == len(others) and all(
            alike(one, other, named) for one, other in zip(items, others, strict=True)
        )
    return bool(expected == found)


def _filled(value: Json, named: Mapping[str, Json]) -> Json:
    """Put in what has a name."""
    match value:
        case {"as": name}:
            return named[name]
        case dict():
            members = cast("Mapping[str, Json]", value)
            return {name: _filled(item, named) for name, item in members.items()}
        case list():
            return [_filled(item, named) for item in cast("Sequence[Json]", value)]
        case _:
            return value


def _events(stanza: Stanza) -> list[Mapping[str, Json]]:
    found: list[Mapping[str, Json]] = json.loads(stanza.body) if stanza.body else []
    return found


class Script:
    """Plays the steps of a case."""

    #: Whom the script talks to and from whom it hears.
    SUBJECT: str

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.peers: dict[str, Peer] = {}
        self.stack = AsyncExitStack()
        #: The name that a step gave to an IQ which came -> its id.
        self.names: dict[tuple[str, str], str] = {}
        #: What was found where a step has ``{"as": NAME}``, by its name.
        self.named: dict[str, Json] = {}

    async def peer(self, address: str) -> Peer:
        if address not in self.peers:
            connection = self.bus.connection(address)
            self.peers[address] = Peer(connection)
            await connection.open(self.peers[address])
            self.stack.push_async_callback(connection.close)
        return self.peers[address]

    async def play(self, steps: Sequence[Step]) -> None:
        loop = asyncio.get_running_loop()
        for number, step in enumerate(steps, 1):
            began = loop.time()
            try:
                await self.step(step)
            except TimeoutError as exc:
                came = {
                    address: [(s.type, s.id, s.body) for s in peer.came]
                    for address, peer in self.peers.items()
                }
                raise AssertionError(f"step {number}, {step}: not in time; came: {came}") from exc
            assert loop.time() - began >= step.get("after", 0.0) - 1e-6, f"step {number}: too early"
        await asyncio.sleep(0)
        left = {address: peer.unheard for address, peer in self.peers.items() if peer.unheard}
        assert not left, "nobody expects these"

    async def step(self, step: Step) -> None:
        match step:
            case {"wait": seconds}:
                await asyncio.sleep(seconds)
            case {"silence": seconds}:
                await asyncio.sleep(seconds)
                assert not any(peer.unheard for peer in self.peers.values())
            case {"from": sender, "presence": "unavailable"}:
                # Its stream ends, and the server says so.
                await (await self.peer(sender)).connection.close()
            case {"from": sender}:
                peer = await self.peer(sender)
                if not peer.connection.connected:
                    await peer.connection.open(peer)
                self.say(peer, step)
            case {"to": address}:
                await self.hear(await self.peer(address), step)
            case _:
                raise AssertionError(f"no step: {step}")

    def say(self, peer: Peer, step: Step) -> None:
        body = None
        if "events" in step or "text" in step:
            events = _filled(step.get("events"), self.named)
            body = step.get("text", json.dumps(events)).encode()
        to, send = self.SUBJECT, peer.connection.send
        match step:
            case {"presence": "available"}:
                send(Stanza("presence", "", to, body=body))
            case {"message": kind}:
                send(Stanza("message", kind, to, body=body))
            case {"set": id}:
                send(Stanza("iq", "set", to, id=id, body=body))
            case {"result": name}:
                id = self.names.pop((peer.connection.address, name))
                send(Stanza("iq", "result", to, id=id, body=body))
            case {"error": name, "condition": condition}:
                id = self.names.pop((peer.connection.address, name))
                # A server gives no reason, and ours is how its condition is read.
                reason = step.get("reason", BOUNCES.get(condition, "unreachable"))
                problem = Problem(reason, condition=condition)
                send(Stanza("iq", "error", to, id=id, problem=problem))
            case _:
                raise AssertionError(f"nothing to say: {step}")

    async def hear(self, peer: Peer, step: Step) -> None:
        within = step.get("within", 1.0)
        match step:
            case {"result": id}:
                stanza = await peer.next("iq", ("result", "error"), id, within)
                assert stanza.type == "result", stanza
            case {"error": id}:
                stanza = await peer.next("iq", ("result", "error"), id, within)
                assert stanza.type == "error" and stanza.problem is not None
                assert stanza.problem.reason == step["reason"]
                return
            case {"set": name}:
                stanza = await peer.next("iq", ("set",), None, within)
                if step.get("answered", True):
                    to = self.SUBJECT
                    peer.connection.send(Stanza("iq", "result", to, id=stanza.id))
                else:
                    self.names[peer.connection.address, name] = stanza.id
            case {"message": _}:
                stanza = await peer.next("message", ("headline",), None, within)
            case _:
                raise AssertionError(f"nothing to hear: {step}")
        found, expected = _events(stanza), list(step.get("events", ()))
        assert len(found) == len(expected), f"{step}: found {found}"
        for event in found:
            # Answers may come in any order.
            for one in expected:
                named = dict(self.named)
                if alike(one, event, named):
                    self.named = named
                    expected.remove(one)
                    break
            else:
                raise AssertionError(f"{step}: found {event}")


# -- an agent


class AgentScript(Script):
    SUBJECT = "thumbs@example.org/1"


def offered() -> Agent:
    """Give an agent with the operations of section 18."""
    agent = Agent("thumbs", slots=20)
    counts: Counter[str] = Counter()

    @agent.op("/conform/echo", effects="reads")
    async def echo(value: Any) -> Any:
        return value

    @agent.op("/conform/repeat", effects="reads")
    async def repeat(text: str, times: int = 1) -> str:
        return text * times

    @agent.op("/conform/work", timeout=600)
    async def work(name: str, seconds: Annotated[float, Meta(ge=0, le=600)] = 0) -> int:
        counts[name] += 1
        begun = counts[name]
        await asyncio.sleep(seconds)
        return begun

    @agent.op("/conform/fail", effects="reads")
    async def fail(text: str) -> None:
        raise ValueError(text)

    @agent.op("/conform/refuse", effects="reads")
    async def refuse(text: str) -> None:
        raise Refused(text)

    @agent.op("/conform/stream", effects="reads")
    async def stream(job: Job, count: int) -> int:
        for number in range(count):
            await job.data(number)
        return count

    return agent


@each("order.json", "agent")
def test_an_agent_answers_as_the_page_says(case: Case) -> None:
    async def story() -> None:
        bus = MemoryBus("example.org")
        script = AgentScript(bus)
        dispatchers = ["dispatcher@example.org/a", "second@example.org/b"]
        life = Life(offered(), bus.connection(script.SUBJECT), dispatchers=dispatchers, epoch=17)
        async with script.stack, life:
            await script.play(case["steps"])

    ManualClock().run(story())


# -- a dispatcher


class DispatcherScript(Script):
    SUBJECT = "dispatcher@example.org/a"


@each("dispatchers.json")
def test_a_dispatcher_does_as_the_page_says(case: Case) -> None:
    async def story() -> None:
        bus = MemoryBus("example.org")
        script = DispatcherScript(bus)
        roles = {
            "ann@example.org": "caller",
            "bob@example.org": "caller",
            "dispatcher@example.org": "dispatcher",
            "thumbs@example.org": "agent",
        }
        async with script.stack, Dispatcher(bus.connection(script.SUBJECT), roles=roles):
            await script.play(case["steps"])

    ManualClock().run(story())


# -- a caller


class CallerScript(Script):
    SUBJECT = "ann@example.org/desk"

    def __init__(self, bus: MemoryBus, session: Session) -> None:
        super().__init__(bus)
        self._session = session
        self._calls: dict[str, Call] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._read: dict[str, list[Json]] = {}

    async def step(self, step: Step) -> None:
        match step:
            case {"call": asked}:
                call = self._session.call(
                    asked["to"],
                    asked["op"],
                    asked.get("args"),
                    id=asked["id"],
                    timeout=asked["left"] / 1000,
                    window=asked.get("window", 0),
                )
                self._calls[call.id] = call
                if call.op.window:
                    self._read[call.id] = []
                    self._readers[call.id] = asyncio.create_task(self._reads(call))
            case {"cancel": id}:
                self._calls[id].abandon()
            case {"reads": values, "of": id}:
                await asyncio.sleep(0.01)
                assert self._read[id] == values
            case {"ends": how, "of": id}:
                async with asyncio.timeout(step.get("within", 1.0)):
                    final = await self._calls[id].wait()
                if "reason" in how:
                    assert final.problem is not None, final
                    assert final.problem.reason == how["reason"], final.problem
                else:
                    assert final.problem is None, final.problem
                    assert final.value == how["value"]
            case _:
                await super().step(step)

    async def _reads(self, call: Call) -> None:
        async with aclosing(aiter(call)) as items:
            async for item in items:
                if isinstance(item, Data):
                    self._read[call.id].append(item.value)


@asynccontextmanager
async def _caller(bus: MemoryBus) -> AsyncGenerator[CallerScript]:
    async with Session(bus.connection(CallerScript.SUBJECT)) as session:
        script = CallerScript(bus, session)
        async with script.stack:
            yield script


@each("order.json", "caller")
def test_a_caller_does_as_the_page_says(case: Case) -> None:
    async def story() -> None:
        async with _caller(MemoryBus("example.org")) as script:
            await script.peer("thumbs@example.org/1")
            await script.play(case["steps"])

    ManualClock().run(story())
