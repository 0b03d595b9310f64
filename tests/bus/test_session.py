from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from spinal.bus.errors import BadCall, CallError, NotConnected, OperationFailed, Unreached
from spinal.bus.session import Handler, Request, Session
from spinal.protocols import (
    Accepted,
    Ack,
    Advertisement,
    Codec,
    Data,
    Describe,
    Description,
    Event,
    Final,
    Hello,
    Json,
    Log,
    Op,
    Problem,
    Progress,
    Stanza,
)
from spinal.testing import Faults, MemoryBus, eventually, virtual_time

ANN, THUMBS = "ann@memory.test/desk", "thumbs@memory.test/agent"


@asynccontextmanager
async def pair(
    handler: Handler | None, bus: MemoryBus | None = None
) -> AsyncGenerator[tuple[MemoryBus, Session, Session]]:
    """A caller and an agent on one bus, which know each other already."""
    bus = bus or MemoryBus()
    async with (
        Session(bus.connection(THUMBS), handler, role="agent", epoch=1) as agent,
        Session(bus.connection(ANN)) as caller,
    ):
        caller.send_presence(THUMBS, caller.hello())
        await eventually(lambda: THUMBS in caller.peers and caller.peers[THUMBS].present)
        yield bus, caller, agent


def watch(bus: MemoryBus) -> list[Stanza]:
    """Note every stanza but presence."""
    seen: list[Stanza] = []

    def applies(stanza: Stanza) -> bool:
        if stanza.kind != "presence":
            seen.append(stanza)
        return False

    bus.faults = Faults(applies=applies)
    return seen


def events(stanza: Stanza) -> list[str]:
    return [event.type for event in Codec().read(stanza.body)] if stanza.body else []


async def echo(request: Request) -> Json:
    return request.op.args.get("text")


@virtual_time
async def test_a_short_call_takes_two_stanzas() -> None:
    async with pair(echo) as (bus, caller, _):
        seen = watch(bus)
        assert await caller.call(THUMBS, "/echo", {"text": "hi"}).result() == "hi"
        assert [(s.type, events(s)) for s in seen] == [("set", ["op"]), ("result", ["final"])]


@virtual_time
async def test_an_ack_rides_on_the_next_op_else_goes_alone_within_a_second() -> None:
    async with pair(echo) as (bus, caller, agent):
        seen = watch(bus)
        await caller.call(THUMBS, "/echo").result()
        await caller.call(THUMBS, "/echo").result()
        assert [events(s) for s in seen] == [["op"], ["final"], ["ack", "op"], ["final"]]
        assert agent.kept == 1
        await asyncio.sleep(0.99)
        assert [events(s) for s in seen[4:]] == [["ack"], []]
        assert agent.kept == 0


@virtual_time
async def test_a_long_call_is_accepted_and_ends_in_a_stanza_of_its_own() -> None:
    async def slow(request: Request) -> Json:
        await asyncio.sleep(3)
        return 7

    async with pair(slow) as (bus, caller, _):
        seen = watch(bus)
        call = caller.call(THUMBS, "/slow")
        assert await call.result() == 7
        assert call.final is not None and call.final.agent == THUMBS and call.final.ran == 3000
        assert [(s.type, events(s)) for s in seen[:4]] == [
            ("set", ["op"]),
            ("result", ["accepted"]),
            ("set", ["final"]),
            ("result", []),
        ]


@virtual_time
async def test_a_batch_is_not_held_up_by_its_slowest_member() -> None:
    async def some(request: Request) -> Json:
        await asyncio.sleep(request.op.args["seconds"])
        return None

    async with pair(some) as (bus, caller, _):
        seen = watch(bus)
        began = asyncio.get_running_loop().time()
        slow = caller.call(THUMBS, "/sleep", {"seconds": 5})
        quick = caller.call(THUMBS, "/sleep", {"seconds": 0.001})
        await quick.result()
        assert asyncio.get_running_loop().time() - began < 0.01
        assert [events(s) for s in seen] == [["op", "op"], ["final", "accepted"]]
        await slow.result()


@virtual_time
async def test_a_stanza_of_ops_stays_within_what_the_peer_reads() -> None:
    async with pair(echo) as (bus, caller, _):
        seen = watch(bus)
        text = "x" * 20_000
        calls = [caller.call(THUMBS, "/echo", {"text": text}) for _ in range(10)]
        assert [await call.result() for call in calls] == [text] * 10
        sizes = [len(s.body) for s in seen if s.body is not None]
        assert max(sizes) <= 60 * 1024
        assert len(sizes) < 12


@virtual_time
async def test_who_has_not_named_batch_gets_one_op_in_a_stanza() -> None:
    async with pair(echo) as (bus, caller, _):
        caller.peers[THUMBS].batch = False
        seen = watch(bus)
        calls = [caller.call(THUMBS, "/echo") for _ in range(3)]
        for call in calls:
            await call.result()
        assert [events(s) for s in seen if s.type == "set"][:3] == [["op"]] * 3


@virtual_time
async def test_refused_failed_no_answer_and_done_already_are_four_things() -> None:
    async def handler(request: Request) -> Json:
        match request.op.op:
            case "/refuse":
                raise CallError.of(Problem("bad-arguments", "no"))
            case "/fail":
                raise CallError.of(Problem("failed", "broke"))
            case _:
                return 1

    async with pair(handler) as (bus, caller, agent):
        with pytest.raises(BadCall, match="no"):
            await caller.call(THUMBS, "/refuse").result()
        assert agent.kept == 0
        with pytest.raises(OperationFailed, match="broke") as failed:
            await caller.call(THUMBS, "/fail").result()
        assert failed.value.agent == THUMBS
        assert agent.kept == 1
        bus.hang(THUMBS)
        with pytest.raises(Unreached) as unanswered:
            await caller.call(THUMBS, "/any", timeout=20).result()
        assert unanswered.value.reason == "no-answer"
        bus.resume(THUMBS)
        await caller.call(THUMBS, "/any", id="once").result()
        await eventually(lambda: agent.kept == 0)
        with pytest.raises(OperationFailed) as done:
            await caller.call(THUMBS, "/any", id="once").result()
        assert done.value.reason == "already-done"


@virtual_time
async def test_nobody_at_the_address_is_told_at_once() -> None:
    async with pair(echo) as (_, caller, _):
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(Unreached) as refused:
            await caller.call("nobody@memory.test/agent", "/echo").result()
        assert refused.value.reason == "unreachable"
        assert loop.time() - began < 0.1


@virtual_time
async def test_who_is_not_trusted_may_not_ask() -> None:
    async with (
        pair(echo) as (bus, _, agent),
        Session(bus.connection("eve@elsewhere.test/x"), trust=lambda _: True) as eve,
    ):
        with pytest.raises(CallError) as refused:
            await eve.call(THUMBS, "/echo").result()
        assert refused.value.reason == "not-allowed"
        assert agent.running == agent.kept == 0


@virtual_time
async def test_a_component_trusts_its_own_site() -> None:
    bus = MemoryBus()
    async with (
        Session(bus.connection("disp.memory.test"), echo),
        Session(bus.connection(ANN)) as caller,
    ):
        assert await caller.call("disp.memory.test", "/echo", {"text": 1}).result() == 1


@virtual_time
async def test_answers_count_only_from_whom_was_called() -> None:
    async def slow(request: Request) -> Json:
        await asyncio.sleep(2)
        return "honest"

    async with pair(slow) as (bus, caller, agent):
        forger = bus.connection("eve@memory.test/x")
        async with Session(forger) as eve:
            call = caller.call(THUMBS, "/slow")
            await eventually(lambda: call.heard)
            forged = Final(call.id, value="forged")
            eve.say(ANN, forged)
            eve.whisper(ANN, forged)
            body = Codec().write([forged])
            for number in range(1, 20):
                eve.connection.send(Stanza("iq", "result", ANN, id=f"x.{number:x}", body=body))
            assert await call.result() == "honest"
            await eventually(lambda: agent.kept == 0)


@virtual_time
async def test_the_first_word_to_a_new_dispatcher_list_counts() -> None:
    async def who(request: Request) -> Json:
        return request.caller

    async with pair(who) as (_, caller, agent):
        assert await caller.call(THUMBS, "/who", caller="zoe@memory.test").result() == ANN
        agent.dispatchers |= {ANN}
        assert (
            await caller.call(THUMBS, "/who", caller="zoe@memory.test").result()
            == "zoe@memory.test"
        )
        assert agent.dispatchers == {ANN}


@virtual_time
async def test_arguments_and_results_that_cannot_travel_are_refused_before_they_leave() -> None:
    async def big(request: Request) -> Json:
        match request.op.op:
            case "/big":
                return "x" * 40_000
            case "/odd":
                return {1: object()}
            case _:
                return float("nan")

    async with pair(big) as (bus, caller, _):
        seen = watch(bus)
        with pytest.raises(BadCall, match="blob") as large:
            caller.call(THUMBS, "/echo", {"text": "x" * 33_000})
        assert large.value.reason == "too-large"
        with pytest.raises(BadCall):
            caller.call(THUMBS, "/echo", {"text": object()})
        with pytest.raises(CallError):
            caller.call("not an address", "/echo")
        assert not seen
        with pytest.raises(BadCall, match="blob"):
            await caller.call(THUMBS, "/big").result()
        for op in ("/odd", "/nan"):
            with pytest.raises(OperationFailed):
                await caller.call(THUMBS, op).result()


@virtual_time
async def test_a_value_of_exactly_the_inline_limit_travels() -> None:
    async with pair(echo) as (_, caller, _):
        text = "x" * (32 * 1024 - len('{"text":""}'))
        assert await caller.call(THUMBS, "/echo", {"text": text}).result() == text
        with pytest.raises(BadCall):
            caller.call(THUMBS, "/echo", {"text": text + "x"})


@virtual_time
async def test_a_peer_that_reads_less_is_sent_less() -> None:
    async with pair(echo) as (_, caller, agent):
        caller.peers[THUMBS].stanza = 4096
        with pytest.raises(BadCall, match="4096"):
            caller.call(THUMBS, "/echo", {"text": "x" * 5000})
        agent.peers[ANN].stanza = 4096
        caller.peers[THUMBS].stanza = 60_000
        with pytest.raises(BadCall, match="blob"):
            await caller.call(THUMBS, "/echo", {"text": "x" * 5000}).result()


@virtual_time
async def test_a_stanza_that_cannot_be_read_is_refused_as_a_whole() -> None:
    ran: list[str] = []

    async def handler(request: Request) -> Json:
        ran.append(request.op.id)
        return None

    async with pair(handler) as (bus, caller, _):
        answers: list[Stanza] = []

        def applies(stanza: Stanza) -> bool:
            if stanza.id == "odd":
                answers.append(stanza)
            return False

        bus.faults = Faults(applies=applies)
        good = Codec().write_event(Op("a-1", op="/x", left=1000)).decode()
        body = f'[{good},{{"type":"op","id":"a-2","op":"/x"}}]'.encode()
        caller.connection.send(Stanza("iq", "set", THUMBS, id="odd", body=body))
        await eventually(lambda: len(answers) == 2)
        problem = answers[1].problem
        assert problem is not None and problem.reason == "malformed" and "left" in problem.text
        assert not ran


@virtual_time
async def test_what_comes_before_the_end_comes_in_order() -> None:
    async def work(request: Request) -> Json:
        await asyncio.sleep(1)
        for number in range(3):
            request.progress(number, 3)
            request.log(f"line {number}")
            await request.data(number)
            await asyncio.sleep(1)
        return "end"

    async with pair(work) as (_, caller, _):
        call = caller.call(THUMBS, "/work", window=4)
        items = [item async for item in call]
        assert [item.value for item in items if isinstance(item, Data)] == [0, 1, 2]
        assert [item.done for item in items if isinstance(item, Progress)] == [0, 1, 2]
        assert [item.text for item in items if isinstance(item, Log)] == [
            "line 0",
            "line 1",
            "line 2",
        ]
        assert await call.result() == "end"


@virtual_time
async def test_descriptions_and_events_that_belong_to_no_call_are_passed_on() -> None:
    async with pair(echo) as (_, caller, agent):
        agent.describe = lambda hash: "{}" if hash == "h" else None
        assert await caller.ask(THUMBS, Describe("h")) == [Description("h", "{}")]
        assert await caller.ask(THUMBS, Describe("other")) == []
        heard: list[tuple[str, Event]] = []
        agent.on_event = lambda sender, event: heard.append((sender, event))
        caller.say(THUMBS, Advertisement(hash="h", epoch=1))
        await eventually(lambda: heard)
        assert heard == [(ANN, Advertisement(hash="h", epoch=1))]


@virtual_time
async def test_closing_while_calls_run_leaves_nothing() -> None:
    stopped: list[str] = []

    async def forever(request: Request) -> Json:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(request.op.id)
        return None

    async with pair(forever) as (_, caller, agent):
        calls = [caller.call(THUMBS, "/wait") for _ in range(5)]
        await eventually(lambda: agent.running == 5)
        await caller.close()
        await caller.close()
        for call in calls:
            with pytest.raises(OperationFailed) as ended:
                await call.result()
            assert ended.value.reason == "cancelled"
        with pytest.raises(NotConnected):
            caller.call(THUMBS, "/wait")
        await eventually(lambda: len(stopped) == 5)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@virtual_time
async def test_closing_an_agent_stops_its_handlers() -> None:
    async def forever(request: Request) -> Json:
        await asyncio.Event().wait()
        return None

    async with pair(forever) as (_, caller, agent):
        call = caller.call(THUMBS, "/wait", patience=2)
        await eventually(lambda: agent.running == 1)
        await agent.close()
        assert agent.running == 0
        with pytest.raises(Unreached) as lost:
            await call.result()
        assert lost.value.reason == "lost"


@virtual_time
async def test_a_thousand_calls_both_ways_leave_empty_tables() -> None:
    async def work(request: Request) -> Json:
        await asyncio.sleep(request.op.args["n"] % 7 / 10)
        return request.op.args["n"]

    bus = MemoryBus()
    async with (
        Session(bus.connection(THUMBS), work) as one,
        Session(bus.connection(ANN), work) as two,
    ):
        forth = [one.call(ANN, "/n", {"n": n}) for n in range(500)]
        back = [two.call(THUMBS, "/n", {"n": n}) for n in range(500)]
        assert [await call.result() for call in forth] == list(range(500))
        assert [await call.result() for call in back] == list(range(500))
        await eventually(lambda: one.kept == two.kept == 0)
        assert one.running == two.running == 0
        for session, peer in ((one, ANN), (two, THUMBS)):
            found = session.peers[peer]
            assert not found.calls and not found.outbox and not found.acks
            assert session.holds(peer) == []


@virtual_time
async def test_a_stranger_can_be_asked_and_answers_and_no_more() -> None:
    bus = MemoryBus()
    asked: list[str] = []

    async def handler(request: Request) -> Json:
        asked.append(request.sender)
        return 1

    far = "far@elsewhere.test/agent"
    async with (
        Session(bus.connection(far), handler, trust=lambda _: True) as other,
        Session(bus.connection(ANN), handler) as caller,
    ):
        assert await caller.call(far, "/echo").result() == 1
        with pytest.raises(CallError) as refused:
            await other.call(ANN, "/echo").result()
        assert refused.value.reason == "not-allowed"
        assert asked == [ANN]


@virtual_time
async def test_accepted_then_refused_ends_with_a_final() -> None:
    async def late(request: Request) -> Json:
        await asyncio.sleep(1)
        raise CallError.of(Problem("busy"))

    async with pair(late) as (bus, caller, _):
        seen = watch(bus)
        with pytest.raises(Unreached) as busy:
            await caller.call(THUMBS, "/late").result()
        assert busy.value.reason == "busy"
        assert [events(s) for s in seen][1:3] == [[Accepted.type], [Final.type]]


@virtual_time
async def test_a_stanza_takes_half_of_the_calls_that_are_under_way_and_a_lone_one_is_not_held_up() -> (
    None
):
    async with pair(echo) as (bus, caller, _):
        await caller.call(THUMBS, "/echo").result()
        seen = watch(bus)
        calls = [caller.call(THUMBS, "/echo") for _ in range(64)]
        await asyncio.gather(*(call.result() for call in calls))
        shares = [events(s).count("op") for s in seen if s.type == "set"]
        # The first leave while few are under way, the rest by halves.
        assert sum(shares) == 64
        assert 2 <= len(shares) <= 4
        assert max(shares) <= 32
        del seen[:]
        began = asyncio.get_running_loop().time()
        await caller.call(THUMBS, "/echo").result()
        assert asyncio.get_running_loop().time() == began
        assert [events(s)[-1] for s in seen] == ["op", "final"]


@virtual_time
async def test_finals_are_acknowledged_together() -> None:
    async with pair(echo) as (bus, caller, agent):
        seen = watch(bus)
        await asyncio.gather(*(caller.call(THUMBS, "/echo").result() for _ in range(300)))
        await asyncio.sleep(1)
        acks = [
            event
            for s in seen
            if s.body
            for event in Codec().read(s.body)
            if isinstance(event, Ack)
        ]
        assert sum(len(ack.exchanges) for ack in acks) == 300
        assert len(acks) <= 12
        assert agent.kept == 0


@virtual_time
async def test_an_agent_that_takes_no_batches_gets_an_ack_for_each_final() -> None:
    async with pair(echo) as (bus, caller, agent):
        agent.send_presence(ANN, Hello(role="agent", features=["finals"], epoch=1))
        await eventually(lambda: not caller.peers[THUMBS].batch)
        seen = watch(bus)
        await asyncio.gather(*(caller.call(THUMBS, "/echo").result() for _ in range(3)))
        await asyncio.sleep(1)
        asked = [events(s) for s in seen if s.type == "set"]
        assert [names.count("op") for names in asked] == [1, 1, 1, 0]
        assert asked[-1] == ["ack", "ack", "ack"]
        assert agent.kept == 0


@virtual_time
async def test_without_batching_each_op_has_a_stanza_of_its_own() -> None:
    bus = MemoryBus()
    async with (
        Session(bus.connection(THUMBS), echo, role="agent", epoch=1),
        Session(bus.connection(ANN), batching=False) as caller,
    ):
        caller.send_presence(THUMBS, caller.hello())
        await eventually(lambda: THUMBS in caller.peers and caller.peers[THUMBS].batch)
        seen = watch(bus)
        await asyncio.gather(*(caller.call(THUMBS, "/echo").result() for _ in range(10)))
        assert [events(s).count("op") for s in seen if s.type == "set"] == [1] * 10
