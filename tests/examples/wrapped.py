"""What the tests of wrapped services share: one command of ``spinal wrap``, and an agent of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from spinal.testing import READY, Platform, eventually, platform

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "wrap"


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


async def wrap(*argv: str, environ: Mapping[str, str]) -> Said:
    """Run ``spinal wrap``."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spinal", "wrap", *argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environ},
    )
    try:
        async with asyncio.timeout(READY):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Said(process.returncode or 0, out.decode(), err.decode())


@asynccontextmanager
async def served(
    *argv: str, folder: Path, port: int, environ: Mapping[str, str], user: str | None = None
) -> AsyncGenerator[None]:
    """Run a service in a folder until the block ends; it is waited for until somebody listens."""
    log = folder / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=folder,
            env={**os.environ, **environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            user=user,
        )

    async def listens() -> bool:
        assert process.returncode is None, log.read_text()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    try:
        await eventually(listens, READY, f"somebody listens on {port}")
        yield
    finally:
        if process.returncode is None:
            # For PostgreSQL: now, and not once the last client has gone.
            process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def on_the_bus(file: Path, environ: Mapping[str, str]) -> AsyncGenerator[Platform]:
    """Run a whole platform, and the agent of a manifest on it."""
    async with platform() as running:
        agent = await running.start(
            *(sys.executable, "-m", "spinal", "wrap", "run", str(file), "--json"),
            environ={**running.environ, **environ},
        )
        await agent.line(lambda line: '"ready"' in line)
        await eventually(running.client.agents, READY, "the agent is known")
        yield running
