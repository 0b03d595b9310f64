"""SPADE: a message to another agent and its reply, between two processes, over Prosody."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from spinal.bus.server import ServerConfig, free_ports, launch

from ..children import Children
from ..contender import Contender
from . import environment

NEEDS = ("spade",), ("prosody",)


@asynccontextmanager
async def spade() -> AsyncGenerator[Contender]:
    """Start Prosody as Spinal does, an agent that replies and one that asks."""
    async with Children() as children:
        ports = free_ports()
        config = ServerConfig(children.folder / "prosody", "localhost", ports)
        server = await launch("prosody", config)
        try:
            for name in ("asking", "replying"):
                await server.add_account(name, name)
            script = (environment.PYTHON, "-m", "benchmarks.peers.scripts.spade")
            replying = await children.asked("replying", *script, "replying", str(ports.c2s))
            caller = await children.asked("caller", *script, "asking", str(ports.c2s))
            yield Contender(
                "SPADE",
                caller,
                {"server": [server.pid], "caller": [caller.pid], "answering": [replying.pid]},
                ["prosody, configured as Spinal's own", *children.commands],
                "Prosody as Spinal starts it, TLS; cyclic behaviours that wait for messages",
            )
        finally:
            await server.stop()
