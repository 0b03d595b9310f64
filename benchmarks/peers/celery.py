"""Celery over Redis: a no-op task, acknowledged late, in two worker processes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ..children import Children, plain
from ..contender import Contender
from . import environment
from .redis import redis

NEEDS = ("celery", "redis"), ("redis-server",)
APP = "benchmarks.peers.scripts.celery"


@asynccontextmanager
async def celery() -> AsyncGenerator[Contender]:
    """Start Redis, a worker with two processes, and a program that submits and gets results."""
    async with Children() as children:
        server, url = await redis(children)
        known = {**plain(), "REDIS": url}
        worker = await children.start(
            "worker",
            *(environment.PYTHON, "-m", "celery", "-A", APP, "worker"),
            *("--pool", "prefork", "--concurrency", "2", "--loglevel", "warning"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            environ=known,
        )
        caller = await children.asked("caller", environment.PYTHON, "-m", APP, environ=known)
        yield Contender(
            "Celery",
            caller,
            {"server": [server.pid], "caller": [caller.pid], "answering": [worker.pid]},
            [f"export REDIS={url}", *children.commands],
            "Redis 7 as broker and result backend, without snapshots or append-only file: nothing "
            "is on disk; acks_late, 2 prefork processes, prefetch multiplier 64, no gossip, mingle, "
            "heartbeat or events, JSON; results are got in the order of submission",
        )
