from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from tests.processes import alive

from spinal.agents import Agent, process
from spinal.agents.errors import RoleRefused
from spinal.agents.files import load_file
from spinal.agents.life import MAX_HOLDS, Life
from spinal.agents.load import WAITING
from spinal.bus.call import Call
from spinal.bus.errors import CallError, NotConnected
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryBus
from spinal.protocols import (
    Advertisement,
    BlobRef,
    Capabilities,
    Codec,
    Data,
    Describe,
    Description,
    Event,
    Hello,
    Log,
    Mirror,
    Problem,
    Seen,
    Stanza,
)
from spinal.testing import eventually

from .conftest import Shelf

AGENT = "mixed@memory.test/agent"
DISPATCHER = "dispatcher@memory.test/d"
CALLER = "ann@memory.test/a"


@dataclass
class Ear:
    """What a session hears beside its calls."""

    session: Session
    presences: list[tuple[str, bool, Sequence[Event]]] = field(
        default_factory=list[tuple[str, bool, Sequence[Event]]]
    )
    events: list[Event] = field(default_factory=list[Event])
    more: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.session.on_presence = self._presence
        self.session.on_event = self._event

    def _presence(self, address: str, available: bool, events: Sequence[Event]) -> None:
        self.presences.append((address, available, events))
        self.more.set()

    def _event(self, sender: str, event: Event) -> None:
        self.events.append(event)
        self.more.set()

    @property
    def advertisements(self) -> list[Advertisement]:
        return [
            e for _, _, events in self.presences for e in events if isinstance(e, Advertisement)
        ]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.more.clear()
                await self.more.wait()


@dataclass
class World:
    bus: MemoryBus
    life: Life
    dispatcher: Ear
    caller: Session
    shelf: Shelf

    async def busy(self, count: int) -> None:
        """Wait until the agent says that so many calls run or wait."""
        ear = self.dispatcher
        await ear.until(lambda: [said.busy for said in ear.advertisements[-1:]] == [count])

    def call(self, op: str, args: dict[str, Any] | None = None, **options: Any) -> Call:
        options.setdefault("timeout", 20.0)
        return self.caller.call(AGENT, op, args, **options)


@pytest.fixture
def agent(files: Path) -> Agent:
    return load_file(files / "mixed.py")


@pytest.fixture
async def world(agent: Agent, shelf: Shelf) -> AsyncIterator[World]:
    bus = MemoryBus()
    async with AsyncExitStack() as stack:
        session = Session(bus.connection(DISPATCHER), role="dispatcher", epoch=1)
        dispatcher = Ear(await stack.enter_async_context(session))
        caller = await stack.enter_async_context(Session(bus.connection(CALLER)))
        life = await stack.enter_async_context(
            Life(
                agent,
                bus.connection(AGENT),
                dispatchers=[DISPATCHER],
                store=shelf,
                heartbeat=0.2,
                pause=0.01,
            )
        )
        yield World(bus, life, dispatcher, caller, shelf)


async def problem_of(call: Call) -> tuple[str, str]:
    with pytest.raises(CallError) as caught:
        await call.result()
    return caught.value.reason, str(caught.value)


async def test_an_operation_is_answered(world: World) -> None:
    assert await world.call("/add", {"a": 2}).result() == 3
    assert await world.call("/who").result() == [CALLER, "/who", 1]


async def test_an_agent_asks_others_over_its_own_connection(world: World, shelf: Shelf) -> None:
    asker = Agent("asker")
    connection = world.bus.connection("asker@memory.test/agent")
    life = asker.start(connection, dispatchers=[DISPATCHER], store=shelf)
    with pytest.raises(NotConnected):
        await life.bus.options(to=AGENT).call("/add", a=1)
    async with life:
        assert life.bus.address == "asker@memory.test/agent"
        assert await life.bus.options(to=AGENT).call("/add", a=41) == 42
        blob = await life.bus.upload(b"bytes")
        assert blob.ref is not None and await blob.read() == b"bytes"
    with pytest.raises(NotConnected):
        await life.bus.options(to=AGENT).call("/add", a=1)


async def test_a_caller_that_a_dispatcher_names_is_believed(world: World) -> None:
    believed = world.dispatcher.session.call(AGENT, "/who", caller="bob@memory.test", attempt=3)
    claimed = world.call("/who", caller="bob@memory.test")

    assert await believed.result() == ["bob@memory.test", "/who", 3]
    assert await claimed.result() == [CALLER, "/who", 1]


@pytest.mark.parametrize(
    ("op", "args", "reason", "text"),
    [
        ("/ad", {}, "unknown-op", "mixed does not offer /ad (did you mean /add?)"),
        ("/zzzzzzz", {}, "unknown-op", "mixed does not offer /zzzzzzz"),
        ("/add", {"a": "x"}, "bad-arguments", "argument 'a': expected integer, got string"),
        ("/add", {}, "bad-arguments", "missing argument 'a'"),
        ("/fail", {}, "failed", "ValueError: no such photo"),
        ("/own-timeout", {}, "failed", "TimeoutError: the camera does not answer"),
        ("/refuse", {}, "refused", "the shop is closed"),
        ("/relay", {}, "failed", "NoAgent: nobody scales"),
        ("/give-up", {}, "failed", "the operation cancelled itself"),
        ("/brief", {}, "deadline", "ran longer than its timeout of 50ms"),
        ("/kill-worker", {}, "failed", "worker process died (signal 9)"),
        (
            "/big",
            {},
            "too-large",
            "the result takes 40002 bytes, and 32768 travel inline: give a Blob",
        ),
        (
            "/run",
            {"argv": ["sh", "-c", "exit 3"]},
            "failed",
            "CommandFailed: 'sh' ended with exit code 3: it said nothing",
        ),
        ("/run", {"argv": []}, "failed", "TypeError: run() takes a list"),
    ],
)
async def test_what_goes_wrong_is_said_in_one_line(
    world: World, op: str, args: dict[str, Any], reason: str, text: str
) -> None:
    found, words = await problem_of(world.call(op, args))

    assert found == reason
    assert words.startswith(text)


async def test_a_result_that_is_too_large_is_an_end_and_no_refusal(world: World) -> None:
    call = world.call("/big")
    await problem_of(call)

    assert call.final is not None


async def test_a_plain_function_runs_in_another_process(world: World, files: Path) -> None:
    import os

    assert await world.call("/pid").result() != os.getpid()
    assert await world.call("/folder").result() == [str(files / "mixed.py"), "mixed", "True"]


async def test_what_a_generator_yields_comes_as_data(world: World) -> None:
    call = world.call("/count", {"to": 3}, window=2)
    items = [item.value async for item in call if isinstance(item, Data)]

    assert items == [0, 1, 2]
    assert await call.result() is None


async def test_lines_of_a_program_come_as_log(world: World) -> None:
    call = world.call("/run", {"argv": ["printf", "one\\ntwo\\n"]}, window=1)
    lines = [item.text async for item in call if isinstance(item, Log)]

    assert lines == ["one", "two"]
    assert await call.result() == "one\ntwo"


async def test_blobs_are_read_stored_and_returned_by_a_coroutine(world: World) -> None:
    given = world.shelf.put(b"abc", "image/png")
    value = await world.call("/copy", {"photo": given.to_json()}).result()

    assert world.shelf.kept[value["stored"]["blob"]["url"]] == b"abcabc"
    assert world.shelf.kept[value["returned"]["blob"]["url"]] == b"abcabcabc"
    assert value["stored"]["blob"]["media"] == "text/x"


async def test_blobs_are_fetched_and_uploaded_for_a_plain_function(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = world.shelf.put(b"abc", "image/png")
    value = await world.call("/copy-plain", {"photo": given.to_json()}).result()

    assert world.shelf.kept[value["data"]["blob"]["url"]] == b"abcabc"
    assert value["file"]["blob"]["sha256"] == given.sha256
    assert value["file"]["blob"]["media"] == "image/png"
    assert [file for file in tmp_path.rglob("*") if not file.is_dir()] == [], "all cleaned up"


@pytest.mark.parametrize("op", ["/copy", "/copy-plain"])
async def test_a_blob_that_cannot_be_fetched_is_a_problem_of_its_own(world: World, op: str) -> None:
    lost = BlobRef("https://shelf.test/gone", "0" * 64, 3)

    assert await problem_of(world.call(op, {"photo": lost.to_json()})) == (
        "blob",
        "the blob is not there",
    )


async def test_a_cancelled_call_cancels_the_function(world: World) -> None:
    from sys import modules

    call = world.call("/wait")
    await world.busy(1)
    assert await call.cancel() == "cancelled"
    async with asyncio.timeout(10):
        await world.life.slots.idle()

    assert call.id in modules["mixed"].ended


async def test_a_passed_deadline_cancels_the_function(world: World) -> None:
    reason, _ = await problem_of(world.call("/wait", timeout=0.3))
    async with asyncio.timeout(10):
        await world.life.slots.idle()

    assert reason in ("deadline", "no-answer")


async def test_when_slots_and_waiting_room_are_full_the_next_is_refused(world: World) -> None:
    calls = [world.call("/wait") for _ in range(2 + WAITING)]
    await world.busy(2 + WAITING)

    assert await problem_of(world.call("/add", {"a": 1})) == ("busy", "all 2 slots are taken")
    assert world.life.slots.load == 1 + WAITING / 2
    for call in calls:
        await call.cancel()
    assert await world.call("/add", {"a": 1}).result() == 2


async def test_an_op_for_another_life_is_refused(world: World) -> None:
    assert await world.call("/add", {"a": 1}, epoch=world.life.epoch).result() == 2
    reason, _ = await problem_of(world.call("/add", {"a": 1}, epoch=7))

    assert reason == "stale-epoch"


async def test_ops_of_strangers_are_refused(world: World) -> None:
    async with Session(world.bus.connection("eve@elsewhere.test/x")) as stranger:
        reason, _ = await problem_of(stranger.call(AGENT, "/add", {"a": 1}))

    assert reason == "not-allowed"


async def test_the_advertisement_says_what_where_and_how_busy(world: World) -> None:
    await world.dispatcher.until(lambda: bool(world.dispatcher.advertisements))
    said = world.dispatcher.advertisements[0]

    assert said.hash == world.life.agent.capabilities.hash
    assert (said.epoch, said.state) == (world.life.epoch, "available")
    assert (said.slots, said.busy, said.load, said.cost) == (2, 0, 0.0, 0.5)
    assert (dict(said.place), list(said.tags)) == ({"site": "/eu/fra"}, ["gpu"])
    first = world.dispatcher.presences[0][2]
    assert isinstance(first[0], Hello) and first[0].role == "agent"


async def test_the_advertisement_is_repeated_and_follows_changes(world: World) -> None:
    ear = world.dispatcher
    await ear.until(lambda: len(ear.advertisements) >= 3)
    call = ear.session.call(AGENT, "/wait", id="job-1")
    await ear.until(lambda: ear.advertisements[-1].busy == 1)

    said = ear.advertisements[-1]
    assert said.load == 0.5
    assert said.held == {("job-1", 1)}
    assert world.life.advertisement("other@memory.test/d").held == frozenset()
    await call.cancel()
    await ear.until(lambda: ear.advertisements[-1].busy == 0)


async def test_a_metric_of_its_own_is_the_load_and_its_failure_is_survived(
    world: World, agent: Agent
) -> None:
    agent.load = lambda: 0.75
    assert world.life.advertisement(DISPATCHER).load == 0.75

    agent.load = lambda: 1 / 0
    assert world.life.advertisement(DISPATCHER).load == 0.0
    agent.load = None


async def test_the_description_is_given_for_its_hash_only(world: World) -> None:
    hash = world.life.agent.capabilities.hash
    answers = await world.dispatcher.session.ask(AGENT, Describe(hash))
    nothing = await world.dispatcher.session.ask(AGENT, Describe("0" * 64))

    assert isinstance(answers[0], Description)
    found = Capabilities.parse(answers[0].text, hash)
    assert found.operations["/add"].summary == "Add two numbers."
    assert nothing == []


async def test_a_new_dispatcher_that_a_known_one_names_gets_advertisements(world: World) -> None:
    other = "dispatcher@memory.test/e"
    async with Session(world.bus.connection(other), role="dispatcher", epoch=1) as session:
        ear = Ear(session)
        world.dispatcher.session.send_presence(
            AGENT, Hello(role="dispatcher", dispatchers=[DISPATCHER, other])
        )
        await ear.until(lambda: bool(ear.advertisements))


async def test_a_dispatcher_that_left_and_is_named_no_more_gets_no_advertisements(
    world: World,
) -> None:
    other, session = "dispatcher@memory.test/e", world.dispatcher.session

    def told(*dispatchers: str) -> None:
        session.send_presence(AGENT, Hello(role="dispatcher", dispatchers=dispatchers))

    async with Session(world.bus.connection(other), role="dispatcher", epoch=1) as second:
        ear = Ear(second)
        told(DISPATCHER, other)
        second.send_presence(AGENT, second.hello())
        await ear.until(lambda: bool(ear.advertisements))
        told(DISPATCHER)
        count = len(ear.advertisements)
        await ear.until(lambda: len(ear.advertisements) > count + 1)
        assert other in world.life.session.dispatchers, "it is still there"
    await eventually(lambda: set(world.life.session.dispatchers) == {DISPATCHER})

    told(other)
    await eventually(lambda: set(world.life.session.dispatchers) == {DISPATCHER, other})
    world.bus.kill(DISPATCHER)
    await eventually(lambda: not world.life.session.peers[DISPATCHER].present)
    world.life._drop_dispatchers()  # pyright: ignore[reportPrivateUsage]
    assert world.life.session.dispatchers == {DISPATCHER, other}, "our credentials name it"


async def test_an_advertisement_lists_what_fits_and_says_that_there_is_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def holding(ids: list[str]) -> Advertisement:
        held = [(id, 1) for id in ids]
        monkeypatch.setattr(world.life.session, "holds", Mock(return_value=held))
        said = world.life.advertisement(DISPATCHER)
        assert list(said.holds) == held[: len(said.holds)]
        return said

    jobs = [f"job{number:017}" for number in range(5000)]
    assert holding(jobs).more and 900 <= len(holding(jobs).holds) <= MAX_HOLDS
    assert not holding(jobs[:900]).more
    long = holding(["x" * 128] * 900)
    assert long.more and len(Codec().write([long])) < 40_000


async def test_an_end_says_what_it_cost(world: World) -> None:
    burn = [sys.executable, "-c", "sum(range(10**7))"]
    program = await world.call("/run", {"argv": burn}).wait()
    plain = await world.call("/pid").wait()
    coroutine = await world.call("/add", {"a": 1}).wait()

    assert program.cpu is not None and program.cpu >= 10
    assert program.memory is not None and program.memory > 1024 * 1024
    assert plain.cpu is not None and plain.memory is not None and plain.memory > 1024 * 1024
    assert (coroutine.cpu, coroutine.memory) == (None, None)


async def test_a_broken_stream_is_followed_by_an_advertisement(world: World) -> None:
    ear = world.dispatcher
    await ear.until(lambda: bool(ear.advertisements))
    world.bus.cut(AGENT)
    await ear.until(lambda: any(not available for _, available, _ in ear.presences))
    seen = len(ear.advertisements)
    await ear.until(lambda: len(ear.advertisements) > seen)

    assert await world.call("/add", {"a": 1}).result() == 2


async def test_one_dispatcher_of_two_that_refuses_the_role_is_tried_again(world: World) -> None:
    other = "second.memory.test"
    hello = Hello(role="dispatcher", dispatchers=[DISPATCHER, other])
    world.dispatcher.session.send_presence(AGENT, hello)
    async with Session(world.bus.connection(other), role="dispatcher") as second:
        told: list[str] = []
        second.on_presence = lambda address, available, events: told.append(address)
        await eventually(lambda: told)
        problem = Problem("not-allowed", "an account with role none may not offer operations")
        second.connection.send(Stanza("presence", "error", AGENT, other, problem=problem))
        await eventually(lambda: other in world.life._refused)  # pyright: ignore[reportPrivateUsage]
        told.clear()

        await eventually(lambda: told)

    assert await world.call("/add", {"a": 1}).result() == 2


async def test_a_dispatcher_that_refuses_the_role_ends_the_agent(world: World) -> None:
    refusal = Stanza(
        "presence",
        "error",
        AGENT,
        DISPATCHER,
        problem=Problem("not-allowed", "this account is a caller"),
    )
    world.dispatcher.session.connection.send(refusal)
    async with asyncio.timeout(10):
        error = await world.life.failed()

    assert isinstance(error, RoleRefused)
    assert error.exit_code == 5
    assert "this account is a caller" in str(error)


async def test_a_dispatcher_that_is_not_there_is_waited_for(world: World) -> None:
    absent = Stanza("presence", "error", AGENT, DISPATCHER, problem=Problem("unreachable"))
    world.dispatcher.session.connection.send(absent)
    seen = len(world.dispatcher.advertisements)
    await world.dispatcher.until(lambda: len(world.dispatcher.advertisements) > seen + 1)

    assert await world.call("/add", {"a": 1}).result() == 2


async def test_a_draining_agent_finishes_and_takes_nothing_new(world: World) -> None:
    ear = world.dispatcher
    running = world.call("/run", {"argv": ["sleep", "0.3"]})
    await world.busy(1)
    draining = asyncio.create_task(world.life.drain(10))
    await ear.until(lambda: bool(ear.advertisements) and ear.advertisements[-1].state == "draining")

    assert (await problem_of(world.call("/add", {"a": 1})))[0] == "draining"
    assert await running.result() == ""
    assert await draining is True


async def test_draining_gives_up_after_its_grace(world: World) -> None:
    call = world.call("/wait")
    await world.busy(1)

    assert await world.life.drain(0.05) is False
    assert not call.done


async def test_a_tap_sees_direct_calls_and_not_those_of_the_dispatcher(world: World) -> None:
    ear = world.dispatcher
    ear.session.say(AGENT, Mirror(60))
    await ear.session.ask(AGENT, Describe("0" * 64))
    await ear.session.call(AGENT, "/add", {"a": 1}).result()
    await world.call("/add", {"a": 1}, id="direct-1").result()
    await ear.until(lambda: len(ear.events) == 2)

    first, last = ear.events
    assert isinstance(first, Seen) and isinstance(last, Seen)
    assert (first.what, first.id, first.caller, first.agent) == ("op", "direct-1", CALLER, AGENT)
    assert (last.what, last.state, last.op) == ("final", "done", "/add")


async def test_leaving_the_life_stops_what_runs(agent: Agent) -> None:
    bus = MemoryBus()
    async with Session(bus.connection(CALLER)) as caller:
        async with Life(agent, bus.connection(AGENT)) as life:
            waiting = caller.call(AGENT, "/run", {"argv": ["sleep", "100"]})
            async with asyncio.timeout(10):
                while life.slots.busy == 0:
                    await asyncio.sleep(0)
        assert life.slots.busy == 0
        caller.abandon(waiting)


# -- what goes out of bounds


@pytest.mark.parametrize("op", ["/odd", "/odd-plain"])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("object", "the result cannot be sent: object is not a JSON value"),
        ("nan", "result: nan is not a JSON number; send null or a string instead"),
        ("large", "2^53"),
        ("half", "lone surrogate in a string"),
        ("key", "the result cannot be sent: "),
        ("self", "the result cannot be sent: "),
    ],
)
async def test_a_result_that_is_not_json_is_said_to_be_none(
    world: World, op: str, what: str, words: str
) -> None:
    reason, text = await problem_of(world.call(op, {"what": what}))

    assert reason == "failed"
    assert words in text and "\n" not in text
    assert await world.call("/add", {"a": 1}).result() == 2


@pytest.mark.parametrize("op", ["/kib", "/kib-plain"])
async def test_a_result_above_32_kib_is_refused_with_what_to_do(world: World, op: str) -> None:
    assert len(await world.call(op, {"count": 31}).result()) == 31 * 1024
    assert await problem_of(world.call(op, {"count": 33})) == (
        "too-large",
        "the result takes 33794 bytes, and 32768 travel inline: give a Blob",
    )


FLOOD = 100_000_000


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("/flood", {"argv": ["sh", "-c", f"yes {'x' * 99} | head -c {FLOOD}"]}),
        ("/flood", {"argv": ["sh", "-c", f"head -c {FLOOD} /dev/zero | tr '\\0' x"]}),
        ("/flood-plain", {"lines": FLOOD // 100, "length": 100}),
        ("/flood-plain", {"lines": 100, "length": FLOOD // 100}),
    ],
    ids=["lines", "no-newline", "plain", "plain-long"],
)
async def test_a_log_of_100_mb_is_cut_and_counted_and_holds_nobody_up(
    world: World, op: str, args: dict[str, Any]
) -> None:
    before = psutil.Process().memory_info().rss
    call = world.call(op, args, window=1, timeout=120.0)
    lines: list[str] = []
    slowest = 0.0

    async def others() -> None:
        nonlocal slowest
        while not call.done:
            asked = asyncio.get_running_loop().time()
            await world.call("/add", {"a": 1}).result()
            slowest = max(slowest, asyncio.get_running_loop().time() - asked)

    answered = asyncio.create_task(others())
    async for item in call:
        assert isinstance(item, Log)
        lines.append(item.text)
    await call.result()
    await answered

    assert slowest < 3.0
    assert psutil.Process().memory_info().rss - before < 64 * 1024 * 1024
    left_out = [line for line in lines if line.endswith("lines left out")]
    if args.get("lines") == 100:
        assert all("characters left out" in line for line in lines if line not in left_out)
    assert left_out and lines[-1] == left_out[-1]
    assert sum(map(len, lines)) < 2_000_000


async def test_what_does_not_end_when_it_is_asked_to_is_killed_with_its_group(
    world: World, tmp_path: Path
) -> None:
    calls: list[Call] = []
    pids: list[int] = []
    for op in ("/deaf", "/deaf-plain"):
        note = tmp_path / op[1:]
        calls.append(world.call(op, {"note": str(note)}, timeout=60.0))
        pids += await eventually(lambda: numbers_in(tmp_path), what=op)
        note.unlink()
    loop = asyncio.get_running_loop()
    asked = loop.time()

    assert [await call.cancel() for call in calls] == ["cancelled", "cancelled"]
    assert loop.time() - asked < 2, "the answer does not wait for the end"
    for call in calls:
        assert (await problem_of(call))[0] == "cancelled"
    assert loop.time() - asked < process.GRACE + 5
    assert not any(map(alive, pids))


KILLED = """
import asyncio, sys
from pathlib import Path
from spinal.agents import Agent, Job
from spinal.agents.life import Life
from spinal.bus.session import Session
from spinal.testing import MemoryBus

agent = Agent("killed")

@agent.op("/deaf")
async def deaf(job: Job) -> None:
    note = sys.argv[1]
    script = f"trap '' TERM; (trap '' TERM; sleep 1000) & echo $$ $! > {note}.new; mv {note}.new {note}; wait"
    running = asyncio.create_task(job.run(["sh", "-c", script]))
    while not Path(note).exists():
        await asyncio.sleep(0.01)
    # It runs, and so did all that our side does when it starts a program.
    Path(f"{note}.known").touch()
    await running

async def main() -> None:
    bus = MemoryBus()
    async with Session(bus.connection("ann@memory.test/a")) as caller:
        async with Life(agent, bus.connection("killed@memory.test/a")):
            await caller.call("killed@memory.test/a", "/deaf").result()

asyncio.run(main())
"""


async def test_a_killed_agent_leaves_nothing_running(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    killed = process.Process.start([sys.executable, "-c", KILLED, str(note)])
    await eventually(Path(f"{note}.known").exists, 30)
    pids = [int(pid) for pid in note.read_text().split()]
    assert all(map(alive, pids))

    os.kill(killed.pid, signal.SIGKILL)
    await eventually(lambda: not any(map(alive, pids)))
    await killed.wait()


def numbers_in(folder: Path) -> list[int]:
    """The two numbers in the files of a folder, once they are there."""
    found = [int(word) for note in folder.iterdir() for word in note.read_text().split()]
    return found if len(found) == 2 else []


async def test_a_lifespan_is_entered_before_the_log_in_and_left_after_the_log_out() -> None:
    story: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(life: Life) -> AsyncGenerator[None]:
        story.append(f"entered, {life.session.connected}")
        try:
            yield
        finally:
            story.append(f"left, {life.session.connected}")

    agent = Agent("spanned", lifespan=lifespan)
    async with Life(agent, MemoryBus().connection(AGENT)) as life:
        story.append(f"living, {life.session.connected}")

    assert story == ["entered, False", "living, True", "left, False"]


async def test_an_agent_that_is_not_well_says_so_and_takes_no_new_work(world: World) -> None:
    world.life.ail("the printer is on fire")
    ear = world.dispatcher
    await ear.until(lambda: [said.state for said in ear.advertisements[-1:]] == ["unhealthy"])

    assert await problem_of(world.call("/add", {"a": 2})) == (
        "busy",
        "it is unhealthy: the printer is on fire",
    )

    world.life.ail("")
    await ear.until(lambda: [said.state for said in ear.advertisements[-1:]] == ["available"])
    assert await world.call("/add", {"a": 2}).result() == 3
