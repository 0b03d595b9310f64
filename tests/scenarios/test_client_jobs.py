"""The client's jobs, maps and handles with the real dispatcher and its store behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from spinal.agents import Agent, Job, Refused
from spinal.agents.life import Life
from spinal.bus import BadCall, CallError, JobUpdate, NotEnded, OperationFailed
from spinal.bus.call import Item
from spinal.protocols import Data, Log, Progress
from spinal.testing import eventually

from .conftest import DISPATCHER, World, world


class Sums:
    """What an agent does here, and how often it did."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.held: set[int] = set()
        self.go = asyncio.Event()
        self.agent = Agent("agent1", slots=8)

        @self.agent.op("/sum/square", effects="reads")
        async def square(n: int) -> int:
            """Square a number."""
            self.done.append(n)
            return n**2

        @self.agent.op("/sum/hold", effects="reads")
        async def hold(n: int) -> int:
            """Square a number once it may."""
            self.held.add(n)
            await self.go.wait()
            self.done.append(n)
            return n**2

        @self.agent.op("/sum/tell", effects="reads")
        async def tell(job: Job) -> str:
            """Tell a lot before it may end."""
            for number in range(5):
                job.log(f"line {number}")
            job.progress(1, 2, "half of it")
            self.held.add(0)
            await self.go.wait()
            job.log("the last one")
            return "told"

        @self.agent.op("/sum/refuse", effects="reads")
        async def refuse() -> None:
            """Refuse."""
            raise Refused("not today")

        @self.agent.op("/sum/write", effects="reads")
        async def write(length: int) -> str:
            """Give a long text."""
            return "x" * length


@asynccontextmanager
async def site(folder: Path) -> AsyncGenerator[tuple[World, Sums]]:
    async with world(file=folder / "jobs.db") as here:
        sums = Sums()
        connection = here.bus.connection("agent1@memory.test/agent")
        async with Life(sums.agent, connection, dispatchers=[DISPATCHER], epoch=77):
            await eventually(lambda: here.dispatcher.registry.offering("/sum/square"))
            yield here, sums


async def restart(here: World) -> None:
    await here.dispatcher.close()
    await here.dispatch()


async def test_a_job_gives_its_value_and_is_kept_under_its_key(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, sums):
        keyed = here.client.options(key="four", label="sums", priority=5)
        job = await keyed.submit("/sum/square", n=4)
        assert await job.result(10) == 16
        await restart(here)
        assert (await keyed.submit("/sum/square", n=4)).id == job.id
        assert await here.client.job(job.id).result() == 16
        assert sums.done == [4]
        row = await job.info()
        assert row["args"] == {"n": 4} and row["labels"] == ["sums"] and row["priority"] == 5
        assert [each["id"] async for each in here.client.jobs(label="su*", state="done")] == [
            job.id
        ]
        assert any("agent1" in line for line in await job.why())


async def test_a_job_that_fails_is_retried_as_another_one(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, _):
        job = await here.client.submit("/sum/refuse")
        with pytest.raises(OperationFailed, match="not today") as caught:
            await job.result(10)
        assert caught.value.reason == "refused"
        again = await job.retry()
        assert again.id != job.id and (await again.info())["origin"] == f"retry:{job.id}"
        with pytest.raises(OperationFailed) as caught:
            await here.client.job("0" * 20).result()
        assert caught.value.reason == "unknown-job"


async def test_a_job_that_is_held_is_waited_for_over_a_restart(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, sums):
        job = await here.client.submit("/sum/hold", n=3)
        with pytest.raises(NotEnded, match="goes on"):
            await job.result(0.1)
        waiting = asyncio.ensure_future(job.result())
        await eventually(lambda: sums.held)
        await restart(here)
        sums.go.set()
        async with asyncio.timeout(30):
            assert await waiting == 9
        assert sums.done == [3]


async def test_a_cancelled_job_says_so(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, sums):
        job = await here.client.submit("/sum/hold", n=3)
        await eventually(lambda: sums.held)
        assert await job.cancel() == "killed"
        with pytest.raises(OperationFailed) as caught:
            await job.result(10)
        assert caught.value.reason == "cancelled"


async def test_a_value_too_large_for_a_row_comes_whole(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, _):
        durable = here.client.options(durable=True)
        # 32 KiB are the most that an agent may answer; a row has other members besides.
        for length in (20_000, 28_000, 32_000):
            job = await here.client.submit("/sum/write", length=length)
            assert len(await job.result(10)) == length
            assert len((await here.client.job(job.id).info())["value"]) == length
            assert len(await durable.call("/sum/write", length=length)) == length
        found = [m async for m in durable.map("/sum/write", [{"length": 31_000}] * 3)]
        assert [len(mapped.value) for mapped in found] == [31_000] * 3
        parent = (await here.client.job(found[0].job or "").info())["parent"]
        rows = [row async for row in here.client.job(parent).children()]
        assert [len(row["value"]) for row in rows] == [31_000] * 3


async def test_jobs_come_after_each_other(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, sums):
        bus = here.client
        first = await bus.submit("/sum/hold", n=1)
        plan = {
            "second": bus.options(after=first).planned("/sum/square", n=2),
            "third": bus.options(after=["second", first.id]).planned("/sum/square", n=3),
        }
        jobs = await bus.submit_all(plan)
        assert (await jobs["third"].info())["state"] == "waiting"
        sums.go.set()
        assert await jobs["third"].result(10) == 9
        assert sums.done == [1, 2, 3]
        ring = {
            "a": bus.options(after="b").planned("/sum/square", n=2),
            "b": bus.options(after="a").planned("/sum/square", n=2),
        }
        with pytest.raises(BadCall, match="-> b"):
            await bus.submit_all(ring)


async def test_a_watch_tells_everything_once_over_a_restart(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, sums):
        job = await here.client.submit("/sum/tell")
        found: list[JobUpdate] = []

        async def watch() -> None:
            async for update in job.watch():
                found.append(update)

        watching = asyncio.create_task(watch())
        await eventually(lambda: len([u for u in found if u.log]) == 5)
        await restart(here)
        await eventually(lambda: here.dispatcher.registry.offering("/sum/tell"))
        sums.go.set()
        async with asyncio.timeout(30):
            await watching
        lines = [update.log.text for update in found if update.log is not None]
        assert lines[:5] == [f"line {number}" for number in range(5)]
        assert len(set(lines)) == len(lines)
        assert any(u.progress is not None and u.progress.note == "half of it" for u in found)
        assert found[-1].row is not None and found[-1].row["value"] == "told"
        assert [line.text for line in await job.log()] == lines


async def test_a_durable_call_tells_its_news(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, sums):
        news: list[Item] = []
        durable = here.client.options(durable=True, news=news.append)
        call = asyncio.create_task(durable.call("/sum/tell"))
        await eventually(lambda: any(isinstance(item, Progress) for item in news))
        sums.go.set()
        assert await call == "told"
        assert [item.text for item in news if isinstance(item, Log)][:2] == ["line 0", "line 1"]


def inputs(number: int) -> Iterator[dict[str, Any]]:
    return ({"n": n} for n in range(number))


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_durable_map_gives_every_value(tmp_path: Path, ordered: bool) -> None:
    async with site(tmp_path) as (here, sums):
        durable = here.client.options(durable=True, label="album")
        begun = await durable.start_map("/sum/square", inputs(200), window=16, ordered=ordered)
        found = [mapped async for mapped in begun]
        assert {m.index: m.value for m in found} == {n: n**2 for n in range(200)}
        assert not ordered or [m.index for m in found] == list(range(200))
        assert sorted(sums.done) == list(range(200))
        row = await begun.job.wait(10)
        assert row["state"] == "done"
        assert (await begun.job.info())["children"] == {"done": 200}


async def test_the_ends_of_inputs_are_told_in_pieces_and_those_that_have_not_ended_at_last(
    tmp_path: Path,
) -> None:
    async with site(tmp_path) as (here, sums):
        begun = await here.client.options(durable=True).start_map("/sum/hold", [])
        sums.go.set()
        first = await pieces(here, begun.id, [[n, {"n": n}] for n in range(40)], wait=10)
        assert {row["position"]: row["value"] for row in first[:-1]} == {n: n**2 for n in range(40)}
        assert first[-1] == {"jobs": []}

        sums.go.clear()
        both = [[7, {"n": 7}], [40, {"n": 40}]]
        rows = await pieces(here, begun.id, both, wait=0.5)
        # The one that was there before is told again, and is not run again.
        assert [row["position"] for row in rows[:-1]] == [7]
        assert [job["position"] for job in rows[-1]["jobs"]] == [40]
        sums.go.set()
        assert (await here.client.job(rows[-1]["jobs"][0]["id"]).result(10)) == 1600
        assert sorted(sums.done) == list(range(41))


async def pieces(here: World, parent: str, inputs: list[Any], **more: Any) -> list[dict[str, Any]]:
    """Ask for a map's inputs; gives the rows of all pieces, and what the op gave."""
    call = here.client.line.begin(
        "/spinal/jobs/map",
        {"op": "/sum/hold", "parent": parent, "key": "k", "inputs": inputs, **more},
        20.0,
        4,
    )
    rows = [row async for item in call if isinstance(item, Data) for row in as_list(item.value)]
    return [*rows, as_list([await call.result()])[0]]


def as_list(value: Any) -> list[dict[str, Any]]:
    assert isinstance(value, list)
    found: list[dict[str, Any]] = value  # pyright: ignore[reportUnknownVariableType] - of Json
    return found


ODD: list[tuple[dict[str, Any], str]] = [
    ({"inputs": [[0]]}, "inputs"),
    ({"inputs": [["a", {}]]}, "inputs"),
    ({"inputs": [[0, {}]] * 1001}, "inputs"),
    ({"parent": None}, "parent"),
    ({"key": "k" * 250}, "key"),
    ({"retry": -1}, "retry.count"),
]


@pytest.mark.parametrize(("said", "argument"), ODD)
async def test_inputs_that_cannot_be_are_refused(
    tmp_path: Path, said: dict[str, Any], argument: str
) -> None:
    async with site(tmp_path) as (here, _):
        begun = await here.client.options(durable=True).start_map("/sum/square", [])
        asked = {"op": "/sum/square", "parent": begun.id, "inputs": [[0, {"n": 1}]], **said}
        with pytest.raises(CallError) as caught:
            await here.client.ask_dispatcher("/spinal/jobs/map", **asked)
        assert (caught.value.reason, caught.value.problem.argument) == ("bad-arguments", argument)


async def test_a_map_that_was_closed_or_is_another_ones_takes_no_inputs(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, _):
        begun = await here.client.options(durable=True).start_map("/sum/square", [])
        asked: dict[str, Any] = {"op": "/sum/square", "parent": begun.id, "inputs": [[0, {"n": 1}]]}
        other = await here.caller("owner")
        with pytest.raises(CallError) as caught:
            await other.ask_dispatcher("/spinal/jobs/map", **asked)
        assert caught.value.reason == "unknown-job"
        assert [mapped async for mapped in begun] == []
        with pytest.raises(CallError) as caught:
            await here.client.ask_dispatcher("/spinal/jobs/map", **asked)
        assert caught.value.reason == "refused"


async def test_leaving_a_map_cancels_it(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, sums):
        durable = here.client.options(durable=True, key="left")
        sums.go.set()
        begun = await durable.start_map("/sum/hold", inputs(1000), window=8)
        async with aclosing(aiter(begun)) as found:
            await anext(found)
            sums.go.clear()
        assert (await begun.job.info())["state"] == "killed"
        states = {row["state"] async for row in begun.job.children()}
        assert states <= {"done", "killed"}
        with pytest.raises(OperationFailed, match="another key"):
            await durable.start_map("/sum/square", inputs(3))


async def test_a_map_is_gone_on_with_by_its_key_and_runs_nothing_twice(tmp_path: Path) -> None:
    async with site(tmp_path) as (here, sums):
        dead = (await here.caller("caller")).options(durable=True, key="k")
        sums.go.set()
        begun = await dead.start_map("/sum/hold", inputs(60), window=6, ordered=True)
        found = aiter(begun)
        early = [await anext(found) for _ in range(20)]
        # Its program is gone, and says nothing more.
        here.bus.cut("caller@memory.test/web")
        await dead.close()
        await found.aclose()
        await restart(here)
        durable = (await here.caller("caller")).options(durable=True, key="k")
        again = await durable.start_map("/sum/hold", inputs(60), ordered=True)
        assert again.id == begun.id
        found_again = [mapped async for mapped in again]
        assert [mapped.value for mapped in found_again] == [n**2 for n in range(60)]
        assert [m.job for m in found_again[:20]] == [m.job for m in early]
        assert sorted(sums.done) == list(range(60))
        assert (await again.job.wait(10))["state"] == "done"
        # Once more, though it has ended: all of it is there.
        once_more = [m async for m in durable.map("/sum/hold", inputs(60), ordered=True)]
        assert [m.value for m in once_more] == [n**2 for n in range(60)]
        assert sorted(sums.done) == list(range(60))
