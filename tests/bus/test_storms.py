"""Everything at once: cuts, restarts, hangs and a bad network, and what must hold all the same."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from structlog.testing import capture_logs

from spinal.bus.session import Request, Session
from spinal.protocols import Data, Json
from spinal.testing import Faults, ManualClock, MemoryBus

CALLERS, THUMBS = ("ann@memory.test/desk", "bob@memory.test/desk"), "thumbs@memory.test/agent"


class Storm:
    """Two callers, an agent that is restarted now and then, and bad luck of every kind."""

    def __init__(self, seed: int) -> None:
        self.luck = random.Random(seed)
        self.bus = MemoryBus(seed=seed)
        self.restarts = seed % 2 == 1
        self.faults = Faults(
            delay=(0.0, 0.02 * (seed % 2)),
            drop=0.02 * (seed % 3),
            duplicate=0.1 * (seed % 2),
            reorder=0.1 * (seed // 2 % 2),
            late=0.3,
        )
        self.epoch = 0
        self.runs: Counter[tuple[str, int]] = Counter()

    async def handle(self, request: Request) -> Json:
        self.runs[request.op.exchange] += 1
        for number in range(request.op.args["pieces"]):
            await request.data(number)
            await asyncio.sleep(request.op.args["wait"] / 4)
        await asyncio.sleep(request.op.args["wait"])
        return request.op.id

    async def agent(self) -> Session:
        self.epoch += 1
        connection = self.bus.connection(THUMBS)
        session = Session(connection, self.handle, role="agent", epoch=self.epoch)
        return await session.__aenter__()

    async def call(self, callers: list[Session]) -> None:
        await asyncio.sleep(self.luck.uniform(0, 40))
        pieces = self.luck.choice((0, 0, 0, 5))
        caller = self.luck.choice(callers)
        call = caller.call(
            THUMBS,
            "/work",
            {"wait": self.luck.choice((0, 0.1, 1, 8)), "pieces": pieces},
            timeout=self.luck.choice((10, 60)),
            window=2 if pieces else 0,
        )
        if self.luck.random() < 0.1:
            await asyncio.sleep(self.luck.uniform(0, 3))
            caller.abandon(call)
        found = [item.value async for item in call if isinstance(item, Data)] if pieces else []
        final = await call.wait()
        assert found == list(range(len(found)))
        if final.problem is None:
            assert final.value == call.id and len(found) == pieces
        else:
            assert final.problem.reason in (
                "cancelled",
                "deadline",
                "expired",
                "lost",
                "no-answer",
                "unreachable",
            )

    async def blow(self, agent: Session) -> Session:
        bus, luck = self.bus, self.luck
        for _ in range(12):
            await asyncio.sleep(luck.uniform(0, 5))
            match luck.randrange(6):
                case 0:
                    bus.cut(luck.choice(CALLERS))
                case 1:
                    bus.cut(THUMBS)
                case 2:
                    bus.restart()
                case 3:
                    bus.up = False
                    bus.restart()
                    await asyncio.sleep(luck.uniform(0, 8))
                    bus.up = True
                case 4:
                    bus.hang(THUMBS)
                    await asyncio.sleep(luck.uniform(0, 8))
                    bus.resume(THUMBS)
                case _ if self.restarts:
                    bus.kill(THUMBS)
                    await agent.close()
                    await asyncio.sleep(luck.uniform(0, 3))
                    agent = await self.agent()
                case _:
                    pass
        return agent

    async def story(self) -> None:
        loop: Any = asyncio.get_running_loop()
        unhandled: list[object] = []

        def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            unhandled.append(context)

        loop.set_exception_handler(note)
        agent = await self.agent()
        callers = [await Session(self.bus.connection(one)).__aenter__() for one in CALLERS]
        self.bus.faults = self.faults
        with capture_logs() as logs:
            async with asyncio.TaskGroup() as group:
                for _ in range(40):
                    group.create_task(self.call(callers))
                blowing = group.create_task(self.blow(agent))
            agent = blowing.result()
            self.bus.faults = Faults()
            await asyncio.sleep(120)
        assert max(self.runs.values()) == 1
        assert agent.running == agent.kept == 0
        for caller in callers:
            for peer in caller.peers.values():
                assert not peer.calls and not peer.outbox and not peer.acks
            await caller.close()
        await agent.close()
        assert {entry["event"] for entry in logs} <= {"stream_lost", "op_resent"}
        assert not unhandled
        assert asyncio.all_tasks() == {asyncio.current_task()}
        timers: list[asyncio.TimerHandle] = loop._scheduled
        assert all(timer.cancelled() for timer in timers)


@pytest.mark.parametrize("seed", range(60))
def test_every_call_ends_runs_at_most_once_and_leaves_nothing_behind(seed: int) -> None:
    ManualClock().run(Storm(seed).story())
