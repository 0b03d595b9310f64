from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from spinal.bus.call import Item
from spinal.bus.client import Client
from spinal.bus.errors import (
    BadCall,
    BusError,
    CallError,
    HomeError,
    NoAgent,
    NotAllowed,
    OperationFailed,
    Unreached,
)
from spinal.bus.session import Request, Session
from spinal.protocols import Exit, Json, Problem, Progress
from spinal.testing import MemoryBus, eventually, virtual_time

DISPATCHER = "dispatcher.memory.test"
ANN, THUMBS = "ann@memory.test/desk", "thumbs@memory.test/agent"


class Site:
    """A dispatcher of sorts: it runs everything itself, and counts."""

    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.running = 0
        self.most = 0
        self.asked: list[Mapping[str, Any]] = []
        self.wants: list[Any] = []

    async def handle(self, request: Request) -> Json:
        args = request.op.args
        self.asked.append(args)
        self.wants.append(request.op.want)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            match request.op.op:
                case "/square":
                    await asyncio.sleep(args.get("wait", 0))
                    if args["n"] == 3:
                        raise CallError.of(Problem("failed", "not three"))
                    return args["n"] ** 2
                case "/count":
                    for number in range(args["to"]):
                        request.progress(number)
                        await request.data(number)
                    if args.get("fail"):
                        raise CallError.of(Problem("failed", "in the end"))
                    return "end"
                case "/raise":
                    raise CallError.of(Problem(args["reason"]))
                case "/spinal/resolve":
                    if args["offset"]:
                        rejected = [{"agent": "b", "reason": "draining"}]
                        return {"candidates": [], "rejected": rejected, "more": False}
                    candidates = [{"agent": THUMBS, "reasons": ["idle"]}]
                    return {"candidates": candidates, "rejected": [], "more": True}
                case "/spinal/agents":
                    offset = args["offset"]
                    items = [{"agent": n} for n in range(offset, min(offset + 2, 5))]
                    return {"items": items, "more": offset + 2 < 5}
                case "/forever":
                    await asyncio.Event().wait()
                case _:
                    return dict(args)
        finally:
            self.running -= 1
        return None


@asynccontextmanager
async def site() -> AsyncGenerator[tuple[Site, Client]]:
    here = Site()
    connection = here.bus.connection
    async with (
        Session(connection(DISPATCHER), here.handle, role="dispatcher"),
        Session(connection(THUMBS), here.handle, role="agent"),
        Client(connection=connection(ANN), dispatchers=[DISPATCHER]) as client,
    ):
        yield here, client


@virtual_time
async def test_a_call_gives_its_value() -> None:
    async with site() as (here, client):
        assert client.address == ANN
        assert await client.call("/square", n=4) == 16
        assert await client.options(to="thumbs").call("/square", n=5) == 25
        assert await client.options(to=THUMBS).call("/square", n=6) == 36
        assert here.wants[0] is not None and here.wants[1] is None


@virtual_time
async def test_an_operation_may_have_arguments_with_the_names_of_options() -> None:
    async with site() as (_, client):
        arguments = {"op": 1, "to": 2, "timeout": 3, "self": 4}
        assert await client.call("/any", **arguments) == arguments


@virtual_time
async def test_options_hold_for_the_client_that_they_made_and_no_other() -> None:
    async with site() as (here, client):
        news: list[Item] = []
        special = client.options(policy="cheapest", place="/eu", tags="gpu", rerun=True)
        await special.options(news=news.append).call("/count", to=3)
        await special.call("/any")
        await client.call("/any")
        one, two, three = here.wants
        assert one == two != three
        assert one.policy == "cheapest" and one.tags == ("gpu",) and one.rerun
        assert three.policy == "least-loaded" and not three.place
        assert [item.done for item in news if isinstance(item, Progress)] == [0, 1, 2]


@virtual_time
async def test_options_that_cannot_be_are_refused_where_they_are_given() -> None:
    client = Client(connection=MemoryBus().connection(ANN))
    with pytest.raises(ValueError, match="soon"):
        client.options(timeout="soon")
    with pytest.raises(ValueError):
        client.options(place="not a path")


@virtual_time
async def test_clients_made_by_options_share_the_connection_and_its_end() -> None:
    here = Site()
    async with Session(here.bus.connection(DISPATCHER), here.handle):
        client = Client(connection=here.bus.connection(ANN), dispatchers=[DISPATCHER])
        quick = client.options(timeout="5s")
        async with client:
            assert await quick.call("/square", n=2) == 4
            with pytest.raises(BusError, match="open already"):
                await client.__aenter__()
        for closed in (client, quick):
            with pytest.raises(BusError, match="async with"):
                await closed.call("/square", n=2)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("failed", OperationFailed),
        ("bad-arguments", BadCall),
        ("no-agent", NoAgent),
        ("busy", Unreached),
        ("not-allowed", NotAllowed),
        ("never-heard-of", OperationFailed),
    ],
)
def test_errors_are_of_the_kind_of_their_exit_code(reason: str, kind: type[CallError]) -> None:
    @virtual_time
    async def story() -> None:
        async with site() as (_, client):
            with pytest.raises(kind) as raised:
                await client.call("/raise", reason=reason)
            assert type(raised.value) is kind
            assert raised.value.reason == reason
            assert raised.value.exit_code == raised.value.problem.meaning.exit.value
            assert raised.value.exit_code in {e.value for e in Exit}

    story()


@virtual_time
async def test_without_a_dispatcher_one_says_whom_to_ask() -> None:
    async with Client(connection=MemoryBus().connection(ANN)) as client:
        with pytest.raises(NoAgent, match="to="):
            await client.call("/x")
        with pytest.raises(NoAgent):
            await client.agents()
        with pytest.raises(CallError):
            await client.options(to="no good @ address").call("/x")


async def test_without_a_home_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPINAL_ADDRESS", "SPINAL_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPINAL_HOME", str(tmp_path / "none"))
    with pytest.raises(HomeError, match="spinal up") as refused:
        async with Client():
            pass
    assert "\n" not in str(refused.value)


@virtual_time
async def test_a_file_needs_an_upload_service() -> None:
    async with site() as (here, client):
        with pytest.raises(BusError, match="upload service"):
            await client.call("/any", photo=Path(__file__))
        with pytest.raises(BadCall, match="missing"):
            await client.call("/any", deep=[{"photo": Path("/missing")}])
        assert not here.asked


@virtual_time
async def test_a_stream_gives_its_pieces_and_then_its_failure() -> None:
    async with site() as (_, client):
        assert [n async for n in client.stream("/count", to=100)] == list(range(100))
        found: list[int] = []
        with pytest.raises(OperationFailed, match="in the end"):
            async for number in client.stream("/count", to=3, fail=True):
                found.append(number)
        assert found == [0, 1, 2]


@virtual_time
async def test_leaving_a_stream_early_cancels_it() -> None:
    async with site() as (here, client):
        async for _ in client.stream("/count", to=10_000):
            break
        await eventually(lambda: here.running == 0)


@virtual_time
async def test_news_that_raise_cancel_the_call() -> None:
    async with site() as (here, client):

        def broken(item: Item) -> None:
            raise KeyError("news")

        with pytest.raises(KeyError):
            await client.options(news=broken).call("/count", to=10_000)
        await eventually(lambda: here.running == 0)


@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_gives_each_result_with_its_input(ordered: bool) -> None:
    @virtual_time
    async def story() -> None:
        async with site() as (here, client):
            inputs = [{"n": n, "wait": (7 * n) % 5 / 10} for n in range(40)]
            found = [m async for m in client.map("/square", inputs, window=6, ordered=ordered)]
            assert here.most == 6
            indexes = [m.index for m in found]
            assert sorted(indexes) == list(range(40))
            assert (indexes == sorted(indexes)) is ordered
            for one in found:
                assert one.arguments == inputs[one.index]
                if one.index == 3:
                    assert isinstance(one.error, OperationFailed) and one.value is None
                else:
                    assert one.error is None and one.value == one.index**2
                    assert one.agent == DISPATCHER and one.ran is not None

    story()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_takes_from_an_endless_input_only_what_it_has_room_for(ordered: bool) -> None:
    @virtual_time
    async def story() -> None:
        taken: list[int] = []

        def endless() -> Iterator[Mapping[str, Any]]:
            for number in count(10):
                taken.append(number)
                yield {"n": number}

        async with site() as (here, client):
            async for one in client.map("/square", endless(), window=4, ordered=ordered):
                if one.index >= 20:
                    break
            assert len(taken) <= 20 + 2 * 4
            await eventually(lambda: here.running == 0)

    story()


@pytest.mark.parametrize("ordered", [True, False])
def test_a_map_whose_input_fails_fails_and_cancels_the_rest(ordered: bool) -> None:
    @virtual_time
    async def story() -> None:
        def broken() -> Iterator[Mapping[str, Any]]:
            yield {}
            yield {}
            raise LookupError("no more")

        async with site() as (here, client):
            with pytest.raises(LookupError):
                async for _ in client.map("/forever", broken(), ordered=ordered):
                    pass
            await eventually(lambda: here.running == 0)

    story()


@virtual_time
async def test_a_map_of_nothing_is_empty_and_a_window_of_nothing_is_refused() -> None:
    async with site() as (_, client):
        assert [m async for m in client.map("/square", [])] == []
        with pytest.raises(ValueError, match="window"):
            async for _ in client.map("/square", [{"n": 1}], window=0):
                pass


@virtual_time
async def test_leaving_a_map_early_cancels_what_is_under_way() -> None:
    async with site() as (here, client):
        inputs = [{"n": n, "wait": 0 if n == 0 else 60} for n in range(10)]
        async for one in client.map("/square", inputs):
            assert one.value == 0
            break
        await eventually(lambda: here.running == 0)


@virtual_time
async def test_who_could_do_it_and_lists_in_pages() -> None:
    async with site() as (_, client):
        found = await client.resolve("/square")
        assert [c.agent for c in found.candidates] == [THUMBS]
        assert found.candidates[0].reasons == ("idle",)
        assert found.rejected[0].reason == "draining"
        assert [a["agent"] for a in await client.agents()] == [0, 1, 2, 3, 4]


@virtual_time
async def test_closing_ends_the_calls_that_wait() -> None:
    async with site() as (here, client):
        waiting = asyncio.ensure_future(client.call("/forever"))
        await eventually(lambda: here.running == 1)
        await client.close()
        await client.close()
        with pytest.raises(OperationFailed, match="closed"):
            await waiting
