from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spinal.agents import Agent
from spinal.agents.life import Life
from spinal.agents.machine import make
from spinal.bus.call import Call
from spinal.bus.errors import CallError
from spinal.bus.session import Session
from spinal.bus.transports.memory import MemoryBus

from ..conftest import Shelf

AGENT = "machine@memory.test/agent"
CALLER = "ann@memory.test/a"
OTHER = "ben@memory.test/b"


def needs(*programs: str) -> pytest.MarkDecorator:
    """Leave a test out, by name, where a program is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"MISSING: {', '.join(missing)}")


@dataclass
class World:
    """An agent of this machine on a bus, and two who call it."""

    agent: Agent
    life: Life
    caller: Session
    other: Session
    shelf: Shelf

    def call(self, op: str, _by: Session | None = None, **args: Any) -> Call:
        caller = _by or self.caller
        return caller.call(AGENT, f"/machine{op}", args, timeout=30.0, window=16)

    async def ask(self, op: str, **args: Any) -> Any:
        return await self.call(op, **args).result()

    async def problem(self, op: str, **args: Any) -> tuple[str, str]:
        """Give the reason and the words of an error."""
        with pytest.raises(CallError) as caught:
            await self.ask(op, **args)
        return caught.value.reason, str(caught.value)

    def blob(self, data: bytes) -> Any:
        """Give an argument that refers to these bytes."""
        return self.shelf.put(data).to_json()

    def content(self, answer: Any) -> bytes:
        """Give the bytes that an answer refers to."""
        return self.shelf.kept[answer["blob"]["url"]]


#: Starts an agent with what a YAML file says.
Start = Callable[[str], AbstractAsyncContextManager[World]]


@pytest.fixture
def start(tmp_path: Path, shelf: Shelf) -> Start:
    @asynccontextmanager
    async def world(text: str) -> AsyncGenerator[World]:
        file = tmp_path / "machine.yaml"
        file.write_text(text)
        agent = make(file)
        bus = MemoryBus()
        async with AsyncExitStack() as stack:
            caller, other = [
                await stack.enter_async_context(Session(bus.connection(address)))
                for address in (CALLER, OTHER)
            ]
            life = Life(agent, bus.connection(AGENT), store=shelf)
            yield World(agent, await stack.enter_async_context(life), caller, other, shelf)

    return world
