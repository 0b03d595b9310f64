"""The broker of Celery and Dramatiq: redis-server, in memory alone."""

from __future__ import annotations

from spinal.bus.server import free_ports

from ..children import Child, Children
from . import environment


async def redis(children: Children) -> tuple[Child, str]:
    """Start a server without snapshots and log; gives it and its URL."""
    port = free_ports().c2s
    words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = await children.start(
        "redis-server",
        environment.program("redis-server") or "redis-server",
        *words,
        *("--dir", children.folder),
    )
    await children.port(server, port)
    return server, f"redis://127.0.0.1:{port}"
