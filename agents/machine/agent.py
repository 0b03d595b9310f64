"""The agent of a machine: what it offers, and what goes on beside that."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from spinal.agents.agent import Agent
from spinal.agents.life import Life
from spinal.bus.tasks import Tasks

from . import disk, facts, files, health, logs, packages, power, processes, services
from .config import Config
from .health import Health
from .load import Load
from .services import Desk


def make(config: Path | None = None) -> Agent:
    """Make the agent of this machine, with the permissions that a YAML file gives it.

    Without a file it shows what the machine is and how it is, and changes nothing.

    Raises:
        BadDocument: the file has mistakes.
        AgentError: there is no such file.
    """
    return assemble(Config() if config is None else Config.load(config))


def assemble(config: Config) -> Agent:
    """Make an agent of what a file says."""
    load, well = Load(config.smooth), Health(config.health)
    lives: list[Life] = []

    def advertised() -> float:
        """Give the load; of a machine that is not well at least 1, so that others come first."""
        return max(load.value, 1.0) if well.ill else load.value

    @asynccontextmanager
    async def lifespan(life: Life) -> AsyncGenerator[None]:
        tasks = Tasks("machine")
        lives.append(life)
        try:
            tasks.spawn(load.watch(), "watch the load")
            tasks.spawn(well.watch(life), "watch the health")
            yield
        finally:
            lives.remove(life)
            await tasks.close()

    def alive() -> Life | None:
        return lives[0] if lives else None

    agent = Agent(
        config.name,
        place=config.place,
        tags=config.tags,
        cost=config.cost,
        slots=config.slots,
        load=advertised,
        lifespan=lifespan,
    )
    desk = Desk(config.services, services.manager(config.services))
    facts.offer(agent, config.facts)
    packages.offer(agent)
    health.offer(agent, well, advertised)
    processes.offer(agent, config.processes)
    services.offer(agent, config.services, desk)
    logs.offer(agent, config.logs, desk, alive)
    files.offer(agent, config.files)
    disk.offer(agent, config.rules)
    power.offer(agent, config, desk)
    return agent
