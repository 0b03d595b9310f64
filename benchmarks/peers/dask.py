"""Dask distributed: ``map`` and ``gather`` of no-ops, in one process of two threads or two of one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from spinal.bus.server import free_ports

from ..children import Children
from ..contender import Contender
from . import environment

NEEDS = ("distributed",), ()


@asynccontextmanager
async def dask(workers: int) -> AsyncGenerator[Contender]:
    """Start a scheduler, so many workers that have two threads among them, and a client."""
    async with Children() as children:
        port = free_ports().c2s
        run = (environment.PYTHON, "-m", "distributed.cli.dask_scheduler")
        scheduler = await children.start(
            "scheduler",
            *(*run, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"),
        )
        await children.port(scheduler, port)
        address = f"tcp://127.0.0.1:{port}"
        worker = await children.start(
            "worker",
            *(environment.PYTHON, "-m", "distributed.cli.dask_worker", address),
            *("--nworkers", str(workers), "--nthreads", str(2 // workers), "--no-dashboard"),
            *("--local-directory", children.folder),
        )
        caller = await children.asked(
            "caller",
            *(environment.PYTHON, "-m", "benchmarks.peers.scripts.dask", address, str(workers)),
        )
        yield Contender(
            f"Dask, {workers} x {2 // workers}",
            caller,
            {"server": [scheduler.pid], "caller": [caller.pid], "answering": [worker.pid]},
            children.commands,
            f"{workers} worker process(es) of {2 // workers} thread(s), no dashboard, pure=False; "
            "nothing is kept on disk, no TLS",
        )
