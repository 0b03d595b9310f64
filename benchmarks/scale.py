"""How many live agents fit on this machine, what each costs, and how soon all are back.

    python -m benchmarks.scale [--server embedded] [--agents 1000] [--json]

A platform is started and so many agents come onto the bus, over TLS, from a few processes
(:mod:`benchmarks.swarm`).  Then the server is killed, and from that moment on it is watched until the
dispatcher lists all of them as available and random ones answer calls.  ``spinal up`` starts the server
again by itself.  The embedded server dies, and comes back, together with the dispatcher whose
process it shares.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from benchmarks.swarm import name_of

from spinal import logs
from spinal.bus import Client, Credentials
from spinal.bus.server import KINDS, add_accounts
from spinal.protocols import SpinalError
from spinal.testing import Platform, Process, platform

HERE = Path(__file__).resolve().parent
#: Processes that hold the agents.
SWARMS = 4
#: Agents that are called at the end, chosen at random.
CALLED = 200
#: Longest time in seconds to wait for everybody.
PATIENCE = 300.0
#: Between two looks, in seconds.
LOOK = 0.2


@dataclass
class Parts:
    """The processes of a platform, whatever their numbers are now."""

    server: str
    up: psutil.Process
    swarms: Sequence[psutil.Process]

    def find(self) -> dict[str, list[psutil.Process]]:
        """Name those that run; the embedded server and its dispatcher are one."""
        found: dict[str, list[psutil.Process]] = {"server": [], "dispatcher": []}
        children: list[psutil.Process] = []
        with suppress(psutil.Error):
            children = self.up.children(recursive=True)
        for child in children:
            with suppress(psutil.Error):
                own = "spinal.dispatcher" in child.cmdline()
                found["dispatcher" if own else "server"].append(child)
        if self.server == "embedded":
            found["server"] = found.pop("dispatcher")
        return {**found, "swarm": list(self.swarms)}

    def measure(self, of: Callable[[psutil.Process], float]) -> dict[str, float]:
        """Give the sum of a figure over the processes of each part."""
        sums: dict[str, float] = {}
        for part, processes in self.find().items():
            for process in processes:
                with suppress(psutil.Error):
                    sums[part] = sums.get(part, 0.0) + of(process)
        return sums

    def memory(self) -> dict[str, float]:
        """Give the resident bytes of each part."""
        return self.measure(lambda process: process.memory_info().rss)

    def cpu(self) -> dict[str, float]:
        """Give the CPU seconds of each part so far."""
        return self.measure(lambda process: sum(process.cpu_times()[:2]))


@dataclass
class Curve:
    """CPU of each part, in cores, second by second."""

    parts: Parts
    seconds: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    async def draw(self) -> None:
        """Go on until cancelled."""
        last, then = self.parts.cpu(), time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now, at = self.parts.cpu(), time.monotonic()
            # A process that was started anew counts from nothing.
            spent = {
                part: (used - last[part] if used >= last.get(part, used + 1) else used)
                for part, used in now.items()
            }
            self.seconds.append(
                {part: round(used / (at - then), 2) for part, used in spent.items()}
            )
            last, then = now, at


async def event(process: Process, what: str, after: float = 0.0) -> dict[str, Any]:
    """Wait for an event of a swarm that happened after that time."""

    def holds(line: str) -> bool:
        found = json.loads(line)
        return bool(found["event"] == what and found["at"] > after)

    return dict(json.loads(await process.line(holds, PATIENCE)))


async def listed(here: Platform, agents: int) -> None:
    """Wait until the dispatcher lists so many agents as available."""
    while True:
        with suppress(SpinalError):
            async with Client(credentials=Credentials.find(home=here.home)) as client:
                while True:
                    status = await client.options(timeout=5).ask_dispatcher("/spinal/status")
                    if status["agents"] >= agents:
                        rows = await client.options(timeout=30).agents()
                        if sum(row["state"] == "available" for row in rows) >= agents:
                            return
                    await asyncio.sleep(LOOK)
        await asyncio.sleep(LOOK)


async def answered(here: Platform, agents: int) -> int:
    """Call random agents; gives how many answered with their own name."""
    numbers = random.sample(range(agents), min(agents, CALLED))
    async with Client(credentials=Credentials.find(home=here.home)) as client:
        names = await asyncio.gather(
            *(client.options(to=name_of(each)).call("/swarm/name") for each in numbers),
            return_exceptions=True,
        )
    return sum(name == name_of(number) for name, number in zip(names, numbers, strict=True))


async def measure(server: str, agents: int) -> dict[str, Any]:
    """Bring so many agents up, and up again after the server was killed."""
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(platform(server))
        names = [name_of(number) for number in range(agents)]
        began = time.monotonic()
        here.home.add_accounts(names, "agent")
        passwords = {name: here.home.password(name) for name in names}
        await add_accounts(server, here.home.server_config(), passwords)
        accounts = time.monotonic() - began

        up = psutil.Process(here.up.pid)
        alone = Parts(server, up, ())
        empty, used = alone.memory(), alone.cpu()
        began = time.monotonic()
        swarms: list[Process] = []
        for number in range(SWARMS):
            first, last = (agents * each // SWARMS for each in (number, number + 1))
            mine = ("--first", str(first), "--count", str(last - first))
            argv = ("-m", "benchmarks.swarm", "--home", str(here.home.path), *mine)
            swarms.append(await here.start(sys.executable, *argv, environ=_environ(here)))
        ups = [await event(each, "up") for each in swarms]
        await listed(here, agents)
        took = time.monotonic() - began
        parts = Parts(server, up, [psutil.Process(each.pid) for each in swarms])
        full = parts.memory()
        spent = {part: value - used.get(part, 0.0) for part, value in parts.cpu().items()}
        result: dict[str, Any] = {
            "server": server,
            "agents": agents,
            "accounts_s": round(accounts, 1),
            "up_s": round(took, 1),
            "logins_per_s": round(agents / took),
            "cpu_ms_per_login": {
                part: round(value * 1000 / agents, 2) for part, value in spent.items()
            },
            "kb_per_agent": {
                **{
                    part: round((full[part] - value) / agents / 1000, 1)
                    for part, value in empty.items()
                },
                "swarm": round(sum(each["bytes"] for each in ups) / agents / 1000, 1),
            },
            "answered": await answered(here, agents),
        }
        before = parts.cpu()
        await asyncio.sleep(10.0)
        result["cores_at_rest"] = {
            part: round((value - before[part]) / 10.0, 3) for part, value in parts.cpu().items()
        }

        curve = Curve(parts)
        drawing = asyncio.create_task(curve.draw())
        killed, began = time.time(), time.monotonic()
        for process in parts.find()["server"]:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        backs = [await event(each, "back", after=killed) for each in swarms]
        await listed(here, agents)
        took = time.monotonic() - began
        drawing.cancel()
        spent = {part: sum(each.get(part, 0.0) for each in curve.seconds) for part in full}
        return {
            **result,
            "cpu_ms_per_return": {
                part: round(value * 1000 / agents, 2) for part, value in spent.items()
            },
            "streams_back_s": round(max(each["at"] for each in backs) - killed, 1),
            "back_s": round(took, 1),
            "answered_after": await answered(here, agents),
            "asked": min(agents, CALLED),
            "cores_by_second": curve.seconds,
        }


def _environ(here: Platform) -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent), here.environ.get("PYTHONPATH", "")])
    return {**here.environ, "PYTHONPATH": path}


def report(found: dict[str, Any]) -> str:
    """Write it for people."""
    lines = [f"{key}: {value}" for key, value in found.items() if key != "cores_by_second"]
    lines.append("CPU in cores, second by second after the server was killed:")
    lines += [f"  {number + 1:3} s  {each}" for number, each in enumerate(found["cores_by_second"])]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="embedded", choices=sorted(KINDS))
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logs.configure("error")
    found = asyncio.run(measure(options.server, options.agents))
    print(json.dumps(found) if options.json else report(found))


if __name__ == "__main__":
    main()
