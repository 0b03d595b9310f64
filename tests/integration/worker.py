"""The worker of the stories: it writes down what it begins, and ends it once a file says so."""

import asyncio
import json
import os
from pathlib import Path

from spinal.agents import Agent, Effects, Job

FOLDER = Path(os.environ["STORY_FOLDER"])

agent = Agent("story", slots=int(os.environ.get("STORY_SLOTS", "4")))


def note(job: Job, n: int, what: str) -> None:
    """Append one line; others append as well."""
    line = {"pid": os.getpid(), "op": job.op, "n": n, "what": what}
    descriptor = os.open(FOLDER / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, json.dumps(line).encode() + b"\n")
    os.close(descriptor)


async def work(job: Job, n: int = 0, gate: str = "") -> list[int]:
    """Do it, and give who did it and the number.

    Args:
        n: what to write down.
        gate: name of a file that has to be there before it ends.
    """
    note(job, n, "begun")
    try:
        while gate and not (FOLDER / gate).exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        note(job, n, "cancelled")
        raise
    note(job, n, "ended")
    return [os.getpid(), n]


for path in os.environ.get("STORY_OPS", "/story/read /story/write").split():
    effects: Effects = "writes" if path.endswith("/write") else "reads"
    agent.op(path, effects=effects, timeout="5m")(work)
