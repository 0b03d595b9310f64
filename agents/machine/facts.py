"""What the machine is: processors, memory, disks, networks, system, and the cloud it is in."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psutil

from spinal.agents.agent import Agent
from spinal.agents.errors import CommandFailed, Retry
from spinal.agents.load import cpu_count
from spinal.agents.process import run
from spinal.agents.results import fitting

from .cloud import Cloud, hardware
from .config import FactsConfig
from .files import when
from .glance import Glance
from .texts import readable

#: Bytes that the disks and the networks may take each.
ROOM: Final = 10 * 1024

#: Most disks whose use is asked for.
MAX_DISKS: Final = 64


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processors."""

    model: str
    #: As the system counts them, and as many as this agent may use.
    count: int
    usable: int
    #: Cores, without their threads; none if unknown.
    cores: int | None
    #: Mean number of processes that run or want to: 1, 5 and 15 minutes.
    load: list[float]


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes."""

    total: int
    available: int
    swap: int
    swap_used: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system, in bytes."""

    device: str
    folder: str
    kind: str
    total: int | None
    free: int | None


@dataclass(frozen=True, slots=True)
class Network:
    """A network interface."""

    name: str
    up: bool
    mtu: int
    addresses: list[str]
    mac: str


@dataclass(frozen=True, slots=True)
class System:
    """What runs on it."""

    host: str
    #: Such as Debian GNU/Linux 12 (bookworm).
    name: str
    kernel: str
    arch: str
    python: str


@dataclass(frozen=True, slots=True)
class Here:
    """All that is known without asking anybody else."""

    cpu: Cpu
    memory: Memory
    disks: list[Disk]
    networks: list[Network]
    system: System
    started: datetime
    #: Seconds.
    uptime: int


@dataclass(frozen=True, slots=True)
class Facts(Here):
    """What the machine is."""

    #: Such as kvm or docker; ``none`` for bare metal, empty if unknown.
    virtualisation: str
    #: What the hardware says it is.
    hardware: str
    #: What the cloud says; empty if the machine is in none, or it is not to be asked.
    cloud: dict[str, str]


def look() -> Here:
    """Look around; may take long where a disk hangs."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    started = psutil.boot_time()
    return Here(
        _cpu(),
        Memory(memory.total, memory.available, swap.total, swap.used),
        _disks(),
        _networks(),
        _system(),
        when(started),
        max(0, int(time.time() - started)),
    )


def _cpu() -> Cpu:
    model = platform.processor()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        names = (line.partition(":")[2] for line in file if line.startswith("model name"))
        model = next(names, model)
    count = psutil.cpu_count() or cpu_count()
    cores = psutil.cpu_count(logical=False)
    load = [round(mean, 2) for mean in os.getloadavg()]
    return Cpu(readable(model.strip(), 200), count, cpu_count(), cores, load)


def _disks() -> list[Disk]:
    found: list[Disk] = []
    for part in psutil.disk_partitions()[:MAX_DISKS]:
        total = free = None
        with suppress(OSError):  # A drive without a disk in it.
            usage = psutil.disk_usage(part.mountpoint)
            total, free = usage.total, usage.free
        found.append(
            Disk(
                readable(part.device, 300),
                readable(part.mountpoint, 300),
                readable(part.fstype, 50),
                total,
                free,
            )
        )
    return fitting(found, MAX_DISKS, ROOM)[0]


def _networks() -> list[Network]:
    stats = psutil.net_if_stats()
    found: list[Network] = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        stat = stats.get(name)
        own = [one.address for one in addresses if one.family in (socket.AF_INET, socket.AF_INET6)]
        macs = [one.address for one in addresses if one.family == psutil.AF_LINK]
        found.append(
            Network(
                readable(name, 100),
                stat is not None and stat.isup,
                0 if stat is None else stat.mtu,
                own[:16],
                macs[0] if macs else "",
            )
        )
    return fitting(found, 256, ROOM)[0]


def _system() -> System:
    name = f"{platform.system()} {platform.release()}"
    with suppress(OSError):
        name = platform.freedesktop_os_release().get("PRETTY_NAME", name)
    return System(
        readable(platform.node(), 300),
        readable(name, 200),
        readable(platform.release(), 200),
        platform.machine(),
        sys.version.partition(" ")[0],
    )


async def virtualisation() -> str:
    """Say what the machine runs in, as systemd-detect-virt(1) calls it; empty if that is missing."""
    if shutil.which("systemd-detect-virt") is None:
        return ""
    with suppress(CommandFailed, TimeoutError):
        # Not 0 means none, which it says as well.
        return readable((await run(["systemd-detect-virt"], timeout=5)).text.strip(), 100)
    return ""


def offer(agent: Agent, config: FactsConfig) -> None:
    """Offer the look around."""
    glance = Glance(look, "looks around")
    cloud = Cloud(config)

    @agent.op("/machine/facts", effects="reads", slots=4)
    async def facts() -> Facts:
        """Tell what the machine is: processors, memory, disks, networks, system and cloud."""
        try:
            here = await glance.ask()
        except TimeoutError as exc:
            raise Retry("a disk of this machine does not answer: ask again later") from exc
        virtual, words, said = await asyncio.gather(
            virtualisation(), asyncio.to_thread(hardware), cloud.facts()
        )
        return Facts(
            here.cpu,
            here.memory,
            here.disks,
            here.networks,
            here.system,
            here.started,
            here.uptime,
            virtual,
            readable(words, 300),
            said,
        )
