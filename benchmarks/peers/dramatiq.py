"""Dramatiq over Redis: a no-op actor with results, in two worker processes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ..children import Children, plain
from ..contender import Contender
from . import environment
from .redis import redis

NEEDS = ("dramatiq", "redis"), ("redis-server",)
APP = "benchmarks.peers.scripts.dramatiq"


@asynccontextmanager
async def dramatiq() -> AsyncGenerator[Contender]:
    """Start Redis, two worker processes, and a program that submits and gets results."""
    async with Children() as children:
        server, url = await redis(children)
        known = {**plain(), "REDIS": url}
        worker = await children.start(
            "worker",
            *(environment.PYTHON, "-m", "dramatiq", APP, "--processes", "2", "--threads", "8"),
            environ=known,
        )
        caller = await children.asked("caller", environment.PYTHON, "-m", APP, environ=known)
        yield Contender(
            "Dramatiq",
            caller,
            {"server": [server.pid], "caller": [caller.pid], "answering": [worker.pid]},
            [f"export REDIS={url}", *children.commands],
            "Redis 7 as broker and result backend, without snapshots or append-only file: nothing "
            "is on disk; 2 processes of 8 threads, acknowledged after the actor ran (as always)",
        )
