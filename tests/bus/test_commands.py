"""Operations as ad-hoc commands, over the memory bus; time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.tool import Tool, asked_for, tool, value

from spinal.bus.commands import MAX_EACH, MAX_RUNNING, MAX_SECONDS
from spinal.bus.errors import CallError
from spinal.bus.requests import Request
from spinal.bus.session import GRACE, Session
from spinal.bus.transports.memory import MemoryBus
from spinal.bus.visible import Visible
from spinal.protocols import Json, Operation, Problem, Stanza
from spinal.testing import eventually, virtual_time

AGENT = "thumbs@memory.test/1"
DISPATCHER = "d@memory.test/1"
ANN = "ann@memory.test/phone"

OPERATIONS = [
    Operation("/now", "Tell the time."),
    Operation(
        "/say",
        "Say it again.",
        {
            "properties": {
                "text": {"type": "string"},
                "times": {"type": "integer", "default": 1},
            },
            "required": ["text"],
        },
    ),
    Operation("/photo", args={"properties": {"photo": {}}, "required": ["photo"]}),
]


class Stage:
    """An agent without the kit: what it was asked, and what it answers."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.requests: list[Request] = []
        self.behaviour: Callable[[Request], Awaitable[Json]] = self.echo
        self.stopped: list[str] = []
        self.session = Session(
            bus.connection(AGENT), self.handle, role="agent", dispatchers=[DISPATCHER]
        )
        offered = {operation.path: operation for operation in OPERATIONS}
        Visible(self.session, "client", "bot", paths=lambda: sorted(offered), operation=offered.get)

    async def handle(self, request: Request) -> Json:
        self.requests.append(request)
        return await self.behaviour(request)

    async def echo(self, request: Request) -> Json:
        return dict(request.op.args)

    async def hang(self, request: Request) -> Json:
        try:
            await asyncio.Event().wait()
        finally:
            assert request.stopping is not None
            self.stopped.append(request.stopping.text)

    async def busy(self, count: int) -> None:
        await eventually(lambda: len(self.requests) == count)


@asynccontextmanager
async def stage(sender: str = ANN) -> AsyncGenerator[tuple[Stage, Tool]]:
    bus = MemoryBus()
    made = Stage(bus)
    async with made.session, tool(bus, sender, AGENT) as program:
        yield made, program


def condition(refused: pytest.ExceptionInfo[CallError]) -> str:
    return refused.value.problem.condition


@virtual_time
async def test_a_command_has_a_form_and_what_is_filled_in_runs_the_operation() -> None:
    async with stage() as (made, ann):
        form = await ann.command("/say", action="execute")
        assert asked_for(form) == {"text": "text-single", "times": "text-single"}
        assert form[0].get("execute") == "complete" and [one.tag[-8:] for one in form[0]] == [
            "complete"
        ]
        name = form.get("sessionid", "")

        done = await ann.command("/say", {"text": ["hi"], "times": ["2"]}, sessionid=name)

        assert value(done) == '{"text":"hi","times":2}'
        assert done.findtext("{*}note") == '{"text":"hi","times":2}'
        assert (done.get("node"), done.get("sessionid")) == ("/say", name)
        (request,) = made.requests
        assert (request.sender, request.caller, request.op.op) == (ANN, ANN, "/say")
        assert request.op.window == 0 and 59_000 <= request.op.left <= 60_000


@virtual_time
async def test_an_operation_without_arguments_runs_at_once() -> None:
    async with stage() as (made, ann):
        done = await ann.command("/now")

        assert value(done) == "{}" and done.get("sessionid")
        assert made.session.kept == made.session.running == 0


@virtual_time
async def test_a_note_is_for_people_and_the_form_for_programs() -> None:
    async with stage() as (made, ann):
        for given, note, text in ((None, "done", "null"), ("it's", "it's", '"it\'s"')):

            async def give(request: Request, given: Json = given) -> Json:
                return given

            made.behaviour = give
            done = await ann.command("/now")
            assert (done.findtext("{*}note"), value(done)) == (note, text)


@virtual_time
async def test_nothing_but_the_answer_is_said_to_who_speaks_another_language() -> None:
    async def chatty(request: Request) -> Json:
        request.progress(1, 2, "half")
        request.log("a line")
        await request.data("a piece")
        await asyncio.sleep(5)
        return "end"

    async with stage() as (made, ann):
        made.behaviour = chatty

        assert value(await ann.command("/now")) == '"end"'
        await asyncio.sleep(100)

        assert not ann.received_stanzas
        assert made.session.kept == 0


@virtual_time
async def test_the_answer_comes_also_when_our_stream_was_another_one_meanwhile() -> None:
    async def slow(request: Request) -> Json:
        await asyncio.sleep(10)
        return 7

    async with stage() as (made, ann):
        made.behaviour = slow
        asking = asyncio.ensure_future(ann.command("/now"))
        await made.busy(1)
        made.bus.cut(AGENT)

        assert value(await asking) == "7"


# -- what is refused


@virtual_time
async def test_what_cannot_be_taken_is_refused_and_nothing_runs() -> None:
    async with stage() as (made, ann):
        cases: list[tuple[dict[str, Any], str]] = [
            ({"node": "/nothing"}, "item-not-found"),
            ({"node": ""}, "item-not-found"),
            ({"node": "/photo"}, "item-not-found"),
            ({"node": "/say", "action": "burn"}, "bad-request"),
            ({"node": "/say", "action": "prev"}, "bad-request"),
            ({"node": "/say", "action": "complete"}, "bad-request"),
            ({"node": "/say", "form": {}}, "bad-request"),
            ({"node": "/say", "form": {"text": ["a"], "times": ["x"]}}, "bad-request"),
            ({"node": "/say", "form": {"text": ["a"]}, "kind": "result"}, "bad-request"),
            ({"node": "/say", "sessionid": "x" * 1000}, "bad-request"),
        ]
        for said, expected in cases:
            with pytest.raises(CallError) as refused:
                await ann.command(**said)
            assert condition(refused) == expected, said
        assert not made.requests


@virtual_time
async def test_a_form_that_does_not_fit_is_a_bad_payload() -> None:
    sent: list[Stanza] = []

    def see(stanza: Stanza) -> bool:
        sent.append(stanza)
        return False

    async with stage() as (made, ann):
        made.bus.faults.applies = see
        with pytest.raises(CallError, match="'text' is required") as refused:
            await ann.command("/say", {"text": [""]})

        assert refused.value.problem.reason == "bad-arguments"
        (answer,) = (one for one in sent if one.sender == AGENT)
        assert answer.other == b"<bad-payload xmlns='http://jabber.org/protocol/commands'/>"


@virtual_time
async def test_a_problem_of_the_operation_is_the_answer() -> None:
    async def fail(request: Request) -> Json:
        raise CallError.of(Problem("refused", "not today"))

    async with stage() as (made, ann):
        made.behaviour = fail

        with pytest.raises(CallError, match="not today") as refused:
            await ann.command("/now")

        assert refused.value.problem.reason == "refused"
        assert made.session.running == 0


@virtual_time
async def test_a_value_that_is_too_large_for_a_result_fails_as_in_a_call() -> None:
    async def large(request: Request) -> Json:
        return "x" * 40_000

    async with stage() as (made, ann):
        made.behaviour = large

        with pytest.raises(CallError, match="give a blob"):
            await ann.command("/now")


@virtual_time
async def test_so_many_commands_run_for_one_account_and_for_all() -> None:
    async with stage() as (made, ann):
        made.behaviour = made.hang
        asking = [asyncio.ensure_future(ann.command("/now")) for _ in range(MAX_EACH)]
        await made.busy(MAX_EACH)
        with pytest.raises(CallError) as refused:
            await ann.command("/now")
        assert refused.value.problem.reason == "busy"

        for number in range(MAX_RUNNING // MAX_EACH - 1):
            async with tool(made.bus, f"b{number}@memory.test/1", AGENT) as other:
                asking += [asyncio.ensure_future(other.command("/now")) for _ in range(MAX_EACH)]
                await made.busy(len(asking))
        async with tool(made.bus, "carol@memory.test/1", AGENT) as carol:
            with pytest.raises(CallError) as refused:
                await carol.command("/now")
        assert refused.value.problem.reason == "busy"
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(end, CallError) for end in ends)
        made.behaviour = made.echo
        assert value(await ann.command("/now")) == "{}"


# -- what ends it


@virtual_time
async def test_it_is_given_up_when_whoever_asked_has_waited_long_enough() -> None:
    async with stage() as (made, ann):
        made.behaviour = made.hang
        began = made.session.now
        with pytest.raises(CallError) as refused:
            await ann.command("/now")
        assert refused.value.problem.reason == "deadline"
        assert made.session.now - began == pytest.approx(MAX_SECONDS, abs=0.1)
        assert len(made.stopped) == 1


@virtual_time
async def test_it_is_cancelled_by_who_has_its_session_and_by_nobody_else() -> None:
    async with stage() as (made, ann):
        made.behaviour = made.hang
        asking = asyncio.ensure_future(ann.command("/now", sessionid="mine"))
        await made.busy(1)
        async with tool(made.bus, "ann@memory.test/desk", AGENT) as other:
            assert (await other.command("/now", action="cancel", sessionid="mine")).get(
                "status"
            ) == "canceled"
        await asyncio.sleep(1)
        assert not made.stopped

        with pytest.raises(CallError, match="has not ended"):
            await ann.command("/now", sessionid="mine")
        answer = await ann.command("/now", action="cancel", sessionid="mine")

        assert answer.get("status") == "canceled"
        with pytest.raises(CallError) as refused:
            await asking
        assert refused.value.problem.reason == "cancelled" and made.stopped


@virtual_time
async def test_a_form_that_is_not_filled_in_is_cancelled() -> None:
    async with stage() as (made, ann):
        answer = await ann.command("/say", {}, kind="cancel", sessionid="s")

        assert (answer.get("status"), answer.get("sessionid")) == ("canceled", "s")
        assert not made.requests


@virtual_time
async def test_it_is_cancelled_when_its_caller_is_gone_for_the_grace() -> None:
    async with stage() as (made, ann):
        made.behaviour = made.hang
        ann.connection.send(Stanza("presence", "", AGENT))
        asking = asyncio.ensure_future(ann.command("/now"))
        await made.busy(1)
        began = made.session.now

        ann.connection.send(Stanza("presence", "unavailable", AGENT))
        await eventually(lambda: made.stopped, GRACE + 1)

        assert made.session.now - began == pytest.approx(GRACE, abs=0.2)
        assert made.stopped == ["its caller is gone"]
        with pytest.raises(CallError):
            await asking


@virtual_time
async def test_who_closes_says_so() -> None:
    async def hang(request: Request) -> Json:
        await asyncio.Event().wait()

    async with stage() as (made, ann):
        made.behaviour = hang
        asking = asyncio.ensure_future(ann.command("/now"))
        await made.busy(1)

        await made.session.close()

        with pytest.raises(CallError) as refused:
            await asking
        assert refused.value.problem.reason == "draining"


# -- beside calls


@virtual_time
async def test_a_command_of_a_dispatcher_is_no_exchange_of_the_dispatchers() -> None:
    async with stage(DISPATCHER) as (made, hub):
        made.behaviour = made.hang
        asking = asyncio.ensure_future(hub.command("/now"))
        await made.busy(1)

        assert made.session.holds(DISPATCHER) == []
        assert made.session.running == 1

        with pytest.raises(CallError):
            await asking


@virtual_time
async def test_who_may_not_send_an_op_may_not_have_it_run() -> None:
    async with stage() as (made, _):
        ends: list[Any] = []
        made.session.serve("eve@elsewhere.test/1", "/now", {}, 1.0, ends.append)

        assert [end.problem.reason for end in ends] == ["not-allowed"]
        assert not made.requests
