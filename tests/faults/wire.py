"""Stanzas that are lost, doubled, late and overtaken: everything real but the wire and the clock.

Dispatcher, store, agents and caller run in this process on the memory bus, in virtual time, so that
many seeds can be played.  Half of them cut streams as well.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Final

from spinal.agents.life import Life
from spinal.testing import Faults, ManualClock, eventually

from ..scenarios.conftest import DISPATCHER, World, world
from .judge import FINAL_WITHIN, Strike, Verdict, judge
from .ledger import Ledger
from .model import DEADLINE, KINDS, script
from .scene import WORKERS, Caller
from .table import Row
from .workers import make

NAME: Final = "stanzas"
WHAT: Final = "of a hundred stanzas 5 are lost, 5 doubled, 10 overtaken by up to 1 s; streams break"

#: Of a hundred stanzas a dozen suffer.
FAULTS: Final = Faults(delay=(0.0, 0.2), drop=0.05, duplicate=0.05, reorder=0.1, late=1.0)
#: Plain functions need processes, and processes need real time.
_KINDS: Final = KINDS.keys() - {"safe long"}
#: Jobs that are asked for in a virtual second.
RATE: Final = 5.0


def play(seeds: Iterable[int], jobs: int) -> Row:
    """Run each seed in turn, and give one row for all; not from within an event loop."""
    began = time.monotonic()
    row = Row(NAME, "memory", WHAT, Verdict(), {}, {})
    for seed in seeds:
        random.seed(seed)  # The jitter of heartbeats.
        with tempfile.TemporaryDirectory(prefix="spinal-faults-") as folder:
            found = ManualClock().run(_story(seed, jobs, Path(folder)))
        found.findings[:] = [f"seed {seed}: {finding}" for finding in found.findings]
        row.verdict = _sum(row.verdict, found)
    return replace(row, seconds=time.monotonic() - began)


async def _story(seed: int, jobs: int, folder: Path) -> Verdict:
    now = asyncio.get_running_loop().time
    asked = script(seed, jobs, _KINDS, name=f"stanzas-{seed}")
    ledger = Ledger(folder / "ledger", now)
    async with world(seed, file=folder / "jobs.db") as home, AsyncExitStack() as stack:
        for number in range(WORKERS):
            agent = make(ledger, f"w{number}")
            connection = home.bus.connection(f"agent{number}@memory.test/agent")
            life = Life(agent, connection, dispatchers=[DISPATCHER], epoch=100 + number)
            await stack.enter_async_context(life)
        await eventually(lambda: len(list(home.dispatcher.registry)) == WORKERS, 30.0)
        caller = Caller([home.client], asked, RATE, now)
        caller.allow(1.0)
        home.bus.faults = FAULTS
        strikes = await _wait(home, caller, seed)
        home.bus.faults = Faults()
        stored = await caller.audit()
    return judge(asked, caller.told, ledger.read(), strikes, stored=stored)


async def _wait(home: World, caller: Caller, seed: int) -> Sequence[Strike]:
    """Let all jobs end while stanzas suffer; every second seed breaks streams."""
    dice = random.Random(seed)
    now = asyncio.get_running_loop().time
    calling = asyncio.create_task(caller.run())
    strikes: list[Strike] = []
    everybody = [f"agent{n}@memory.test/agent" for n in range(WORKERS)]
    everybody += [home.client.address, home.dispatcher.session.address]
    for address in dice.sample(everybody, 3) if seed % 2 else ():
        await asyncio.wait([calling], timeout=dice.uniform(0.5, 3.0))
        home.bus.cut(address)
        strikes.append(Strike(now(), now()))
    await asyncio.wait([calling], timeout=2 * DEADLINE + FINAL_WITHIN)
    if calling.done():
        calling.result()
    calling.cancel()
    await asyncio.wait([calling])
    return strikes


def _sum(one: Verdict, other: Verdict) -> Verdict:
    """Add the counts of two runs, and take the longest of their times."""
    found = Verdict()
    for field in fields(Verdict):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        longest = field.name in ("late", "moved")
        both = max(ours or 0.0, theirs or 0.0) if longest else ours + theirs
        setattr(found, field.name, both)
    return found
