"""Everything at once on a wire that loses, doubles, delays and reorders: every call still ends.

Each seed is one run; what a failure prints is enough to run it again.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from spinal.protocols import Problem, Ran
from spinal.testing import Faults, eventually, virtual_time

from .conftest import QUICK, READ, WRITE, Effect, World, counted, ends, world

#: Moderate: of a hundred stanzas a dozen suffer.
FAULTS = Faults(delay=(0.0, 0.2), drop=0.05, duplicate=0.05, reorder=0.1, late=1.0)

#: How a call may end when workers die: it was lost, or nobody was there in time.
BY_DEATH = {"lost", "deadline", "expired", "no-agent", "no-answer"}

CALLS = 20


async def _calls(home: World, deadly: bool, dice: random.Random) -> None:
    workers = [await home.worker(f"agent{n}", slots=2) for n in range(3)]
    asked = [(dice.choice((READ, WRITE, QUICK)), n) for n in range(CALLS)]
    dying, cut, hanging = dice.sample(workers, 3)
    fates = {
        4: lambda: home.bus.kill(dying.address),
        7: lambda: home.bus.cut(cut.address),
        10: lambda: home.bus.cut(home.client.address),
        13: lambda: home.bus.cut(home.dispatcher.address),
        15: lambda: home.bus.hang(hanging.address),
        19: lambda: home.bus.resume(hanging.address),
    }
    home.bus.faults = FAULTS
    calls: list[asyncio.Task[Any]] = []
    for op, n in asked:
        calls.append(asyncio.create_task(ends(home.ask(op, timeout=120.0)(n=n))))
        await asyncio.sleep(dice.uniform(0.0, 1.0))
        for worker in workers:
            if dice.random() < 0.5:
                # What runs now may end; what comes next waits for the next round.
                worker.free.set()
                worker.free = asyncio.Event()
        if deadly and n in fates:
            fates[n]()
    for worker in workers:
        worker.free.set()
    answers = await asyncio.gather(*calls)

    assert home.dispatcher.broker.waiting == 0
    begun = counted(home.ledger, lambda e: (e.op, e.n))
    for (op, n), answer in zip(asked, answers, strict=True):
        if op == WRITE:
            assert begun.get((op, n), 0) <= 1, f"{op} {n} ran twice"
        if isinstance(answer, Problem):
            assert deadly and answer.reason in BY_DEATH, f"{op} {n}: {answer}"
            if answer.meaning.ran is Ran.NO:
                assert (op, n) not in begun, f"{op} {n} ran, but: {answer}"
        else:
            name, echoed = answer
            assert echoed == n
            assert Effect(name, op, n) in home.ledger
    # Nobody keeps anything for ever, neither calls nor their ends.
    home.bus.faults = Faults()
    await eventually(lambda: home.dispatcher.broker.in_flight == 0, 150)
    await eventually(lambda: home.dispatcher.session.kept == 0, 150, "the dispatcher keeps nothing")
    alive = [worker for worker in workers if not (deadly and worker is dying)]
    await eventually(lambda: all(home.knows(worker) for worker in alive), 60)
    await eventually(
        lambda: not any(worker.life.session.kept for worker in alive), 150, "nor do the workers"
    )
    assert not any(worker.life.session.running for worker in alive)


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("deadly", [False, True], ids=["wire", "wire and deaths"])
@virtual_time
async def test_every_call_ends_and_nothing_unsafe_runs_twice(deadly: bool, seed: int) -> None:
    random.seed(seed)  # The jitter of heartbeats.
    async with world(seed) as home:
        await _calls(home, deadly, random.Random(seed))
