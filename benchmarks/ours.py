"""Spinal as a contender: a platform of real processes, its agents, and a caller of its own."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from spinal.testing import Platform, eventually, platform

from . import bare
from .caller import AGENT
from .children import READY, ROOT, Children
from .contender import Contender

WORKER = Path(__file__).resolve().parent / "worker.py"


@dataclass(frozen=True)
class Ours:
    """Spinal through one server."""

    platform: Platform
    spinal: Contender
    #: The same caller with the end that answers bare IQs.
    bare: Contender


@asynccontextmanager
async def ours(
    server: str, agents: int = 1, environ: Mapping[str, str] = {}
) -> AsyncGenerator[Ours]:
    """Start Spinal on a server, with so many equal agents, and a caller.

    Raises:
        AssertionError: something was not ready in time.
        ContenderError: the same, of the caller.
    """
    async with platform(server, environ=environ) as here, Children() as children:
        await (await here.spinal("account", "add", bare.NAME, "--role", "agent")).wait()
        known = {**here.environ, "PYTHONPATH": f"{here.environ['PYTHONPATH']}:{ROOT}"}
        spinal = (sys.executable, "-m", "spinal")
        working = [
            await children.start(
                f"agent{number}",
                *(*spinal, "agent", "run", WORKER, "--name", f"{AGENT}{number or ''}"),
                environ=known,
            )
            for number in range(agents)
        ]

        async def there() -> bool:
            return len(await here.client.agents()) == agents

        await eventually(there, READY, f"the dispatcher knows {agents} agents")
        answering = await children.asked(
            "bare",
            *(sys.executable, "-m", "benchmarks.bare"),
            environ={**known, **here.home.environment(bare.NAME)},
        )
        caller = await children.asked(
            "caller", *(sys.executable, "-m", "benchmarks.caller"), environ=known
        )
        processes = {**serving(here.up.pid), "caller": [caller.pid]}
        yield Ours(
            here,
            Contender(
                f"Spinal, {server}, {agents} agent{'s' * (agents > 1)}",
                caller,
                {**processes, "answering": [agent.pid for agent in working]},
                [f"spinal up --server {server}", *children.commands],
                "TLS and SCRAM on every client stream; slots that do not bind; jobs in SQLite, on "
                "disk before they are accepted",
            ),
            Contender("bare IQ", caller, {**processes, "answering": [answering.pid]}),
        )


def serving(up: int) -> dict[str, Sequence[int]]:
    """Give the processes of a platform by what they are; ``up`` is that of ``spinal up``."""
    found: dict[str, list[int]] = {}
    for child in psutil.Process(up).children():
        dispatcher = "spinal.dispatcher" in child.cmdline()
        found.setdefault("dispatcher" if dispatcher else "server", []).append(child.pid)
    if "server" not in found:
        # The embedded server lives in the dispatcher's process.
        return {"server": found["dispatcher"]}
    return {**found}
