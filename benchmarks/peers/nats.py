"""nats-py over nats-server: request and reply between two processes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from spinal.bus.server import certificates, free_ports

from ..children import Children
from ..contender import Contender
from . import environment

NEEDS = ("nats-py", "uvloop"), ("nats-server",)


@asynccontextmanager
async def nats(tls: bool = True) -> AsyncGenerator[Contender]:
    """Start the server, one process that replies and one that requests."""
    async with Children() as children:
        port = free_ports().c2s
        lines = [f"listen: 127.0.0.1:{port}"]
        url = f"nats://127.0.0.1:{port}"
        if tls:
            made = certificates.ensure(children.folder / "tls", "localhost")
            lines.append(f'tls {{ cert_file: "{made.certificate}", key_file: "{made.key}" }}')
            url = f"tls://127.0.0.1:{port}?{made.ca}"
        config = children.folder / "nats.conf"
        config.write_text("\n".join(lines) + "\n", "utf-8")
        server = await children.start(
            "nats-server", environment.program("nats-server") or "nats-server", "-c", config
        )
        await children.port(server, port)
        script = (environment.PYTHON, "-m", "benchmarks.peers.scripts.nats")
        replying = await children.asked("replying", *script, "reply", url)
        caller = await children.asked("caller", *script, "request", url)
        yield Contender(
            "nats-py",
            caller,
            {"server": [server.pid], "caller": [caller.pid], "answering": [replying.pid]},
            children.commands,
            f'{"TLS" if tls else "no TLS"}; uvloop on both sides; replies to {{"x":1}} with what '
            "came; nothing is kept on disk",
        )
