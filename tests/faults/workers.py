"""The agent of the harness: `spinal agent run workers.py`.

Its operations write down what they do and are otherwise as an operation is: coroutines and plain
functions (which run in processes of their own), safe and not, short and long.
"""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

from tests.faults.ledger import Ledger, What

from spinal.agents import Agent, Job, PlainJob

#: Seconds that a long operation takes.
LONG = 1.0
#: Seconds that one takes which is only there to be stopped.
HOLD = 300.0


_LEDGER = Ledger(Path(os.environ.get("FAULTS_LEDGER", os.devnull)))
_WORKER = os.environ.get("FAULTS_WORKER", "")


def scan(job: PlainJob, key: str) -> str:
    """Safe and long, in a process of its own."""
    _LEDGER.add(_WORKER, job.id, job.attempt, job.op, key, "begun")
    # libfaketime (0.9.10) breaks time.sleep of Python 3.11 on, which sleeps until a time.
    threading.Event().wait(LONG)
    _LEDGER.add(_WORKER, job.id, job.attempt, job.op, key, "ended")
    return key


def make(ledger: Ledger, worker: str) -> Agent:
    """Give an agent that signs with a name."""
    agent = Agent("fault", slots=4)
    agent.op("/fault/scan", effects="reads")(scan)

    def note(job: Job, key: str, what: What) -> None:
        ledger.add(worker, job.id, job.attempt, job.op, key, what)

    @agent.op("/fault/read", effects="reads")
    async def read(job: Job, key: str) -> str:
        """Safe and short; gives the key."""
        note(job, key, "begun")
        await asyncio.sleep(0)
        note(job, key, "ended")
        return key

    @agent.op("/fault/write")
    async def write(job: Job, key: str) -> str:
        """Unsafe and short."""
        note(job, key, "begun")
        await asyncio.sleep(0)
        note(job, key, "ended")
        return key

    @agent.op("/fault/print")
    async def print_(job: Job, key: str) -> str:
        """Unsafe and long."""
        note(job, key, "begun")
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            note(job, key, "stopped")
            raise
        note(job, key, "ended")
        return key

    @agent.op("/fault/try")
    async def try_(job: Job, key: str, fails: int) -> str:
        """Unsafe, and fails so many times before it succeeds."""
        failed = sum(1 for line in ledger.read() if (line.key, line.what) == (key, "failed"))
        note(job, key, "begun")
        if failed < fails:
            note(job, key, "failed")
            raise RuntimeError(f"failure {failed + 1} of {fails}")
        note(job, key, "ended")
        return key

    @agent.op("/fault/hold", effects="reads", timeout="10m")
    async def hold(job: Job, key: str) -> str:
        """Safe, and does not end by itself."""
        note(job, key, "begun")
        try:
            await asyncio.sleep(HOLD)
        except asyncio.CancelledError:
            note(job, key, "stopped")
            raise
        note(job, key, "ended")
        return key

    return agent


agent = make(_LEDGER, _WORKER)
