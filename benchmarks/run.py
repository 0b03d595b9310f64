"""What a call costs, as a ratio to a bare IQ round trip through the same server in the same run.

    python benchmarks/run.py [--server embedded --server prosody ...] [--runs 5] [--calls 2000]

Real processes over TLS on loopback: server, dispatcher (inside the embedded server's process where
that is the server), agent, and this one as the caller.  The three kinds of round trip take turns,
so that what else the machine does meets them alike.  CPU is the operating system's account of each
process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform as machine
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil

from spinal.bus import Client, Credentials
from spinal.bus.connection import ID_PREFIX
from spinal.bus.server import KINDS, available
from spinal.bus.transports.slixmpp import ClientConnection
from spinal.protocols import Codec, Op, Stanza
from spinal.testing import Platform, platform

HERE = Path(__file__).resolve().parent
#: Round trips under way at once in the rate runs.
OUTSTANDING = 64
OP = "/bench/nothing"

#: One round trip.
Trip = Callable[[], Awaitable[object]]


class Asking:
    """The asking end of the bare IQ round trip: a future per id, nothing else."""

    def __init__(self, connection: ClientConnection, to: str) -> None:
        self._connection = connection
        self._to = to
        self._waiting: dict[str, asyncio.Future[Stanza]] = {}
        self._number = 0
        # The bytes of a real op, so that both kinds move the same.
        self._body = Codec().write([Op("0123456789-1", op=OP, left=60_000, args={"x": 1})])

    def opened(self) -> None:
        """Nothing to do."""

    def closed(self, reason: str) -> None:
        """A benchmark whose stream breaks is void."""

    def received(self, stanza: Stanza) -> None:
        """Settle the future."""
        waiting = self._waiting.pop(stanza.id, None)
        if waiting is not None:
            waiting.set_result(stanza)

    async def trip(self) -> None:
        """Ask once."""
        self._number += 1
        id = f"{ID_PREFIX}{self._number}"
        answer = self._waiting[id] = asyncio.get_running_loop().create_future()
        self._connection.send(Stanza("iq", "set", self._to, id=id, body=self._body))
        await answer


@dataclass
class Figures:
    """What was measured of one kind of round trip; one entry a run."""

    p50_ms: list[float] = field(default_factory=list[float])
    rate: list[float] = field(default_factory=list[float])
    #: Microseconds of CPU per round trip, by process.
    cpu: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


async def sequential(trip: Trip, calls: int) -> float:
    """Give the median time of a round trip alone, in milliseconds."""
    times: list[float] = []
    for _ in range(calls):
        began = time.perf_counter()
        await trip()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


async def outstanding(trip: Trip, calls: int) -> float:
    """Give the rate with :data:`OUTSTANDING` under way."""
    left = calls

    async def lane() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await trip()

    began = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(OUTSTANDING)))
    return calls / (time.perf_counter() - began)


def used(processes: dict[str, list[psutil.Process]]) -> dict[str, float]:
    """Give the CPU seconds of each process so far."""
    found: dict[str, float] = {}
    for name, group in processes.items():
        times = [process.cpu_times() for process in group]
        found[name] = sum(item.user + item.system for item in times)
    return found


def parts(up: psutil.Process) -> dict[str, list[psutil.Process]]:
    """Name the processes of a platform."""
    found: dict[str, list[psutil.Process]] = {}
    for child in up.children(recursive=True):
        line = " ".join(child.cmdline())
        if "spinal.dispatcher" in line:
            name = "dispatcher"
        elif "lua" in line or "prosody" in line or "beam" in line or "erl" in line:
            name = "server"
        else:
            continue
        found.setdefault(name, []).append(child)
    if "server" not in found:
        # The embedded server lives in the dispatcher's process.
        found = {"server": found.pop("dispatcher")}
    return found


async def measure(server: str, runs: int, calls: int) -> dict[str, Figures]:
    """Measure bare, direct and brokered round trips in turn through one server."""
    async with AsyncExitStack() as stack:
        here: Platform = await stack.enter_async_context(platform(server))
        await (await here.spinal("account", "add", "bare", "--role", "agent")).wait()
        await (await here.spinal("account", "add", "asker", "--role", "caller")).wait()
        environ = {**here.environ, **here.home.environment("bare")}
        answering = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "bare.py"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environ,
        )
        assert answering.stdin is not None and answering.stdout is not None
        stack.push_async_callback(answering.wait)
        stack.callback(answering.stdin.close)
        await answering.stdout.readline()
        agent = await here.agent(HERE / "worker.py", "--name", "bench")

        found = here.home.credentials("asker")
        connection = ClientConnection(
            f"{found.address}/bare", found.password, found.host, found.port, found.ca
        )
        asking = Asking(connection, f"bare@{found.domain}/bare")
        await connection.open(asking)
        stack.push_async_callback(connection.close)
        client = await stack.enter_async_context(
            Client(credentials=Credentials.find(home=here.home))
        )
        direct = client.options(to="bench")
        durable = client.options(durable=True)
        trips: dict[str, Trip] = {
            "bare IQ": asking.trip,
            "direct call": lambda: direct.call(OP, x=1),
            "brokered call": lambda: client.call(OP, x=1),
            "durable call": lambda: durable.call(OP, x=1),
        }
        up = psutil.Process(here.up.pid)
        processes = {
            **parts(up),
            "caller": [psutil.Process()],
            "answering": [psutil.Process(agent.pid)],
        }
        bare = {**processes, "answering": [psutil.Process(answering.pid)]}
        figures = {name: Figures() for name in trips}
        for trip in trips.values():
            await outstanding(trip, calls // 4)
        for _ in range(runs):
            for name, trip in trips.items():
                of = bare if name == "bare IQ" else processes
                result = figures[name]
                result.p50_ms.append(await sequential(trip, max(200, calls // 10)))
                before = used(of)
                result.rate.append(await outstanding(trip, calls))
                after = used(of)
                for part in of:
                    spent = (after[part] - before[part]) / calls * 1e6
                    result.cpu.setdefault(part, []).append(spent)
        return figures


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: list[float], form: str) -> str:
    """Median with the least and the most."""
    return f"{middle(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def table(server: str, figures: dict[str, Figures]) -> list[str]:
    """Write one server's figures as Markdown."""
    bare = figures["bare IQ"]
    names = list(figures["direct call"].cpu)
    bare_cpu = sum(middle(values) for values in bare.cpu.values())
    lines = [
        f"### {server}",
        "",
        f"| round trip | p50 alone, ms | ratio | per second, {OUTSTANDING} outstanding "
        + f"| ratio | CPU, us | ratio | {' | '.join(f'{name}, us' for name in names)} |",
        "|---|---|---|---|---|---|---|" + "---|" * len(names),
    ]
    for name, of in figures.items():
        cpu = sum(middle(values) for values in of.cpu.values())
        parts = [f"{middle(of.cpu[part]):.0f}" if part in of.cpu else "-" for part in names]
        lines.append(
            f"| {name} | {spread(of.p50_ms, '.2f')} | {middle(of.p50_ms) / middle(bare.p50_ms):.2f} "
            f"| {spread(of.rate, '.0f')} | {middle(of.rate) / middle(bare.rate):.2f} "
            f"| {cpu:.0f} | {cpu / bare_cpu:.2f} | {' | '.join(parts)} |"
        )
    return [*lines, ""]


async def main() -> None:
    """Run and print a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", action="append", choices=sorted(KINDS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3000)
    options = parser.parse_args()
    print(
        f"{machine.python_implementation()} {machine.python_version()}, "
        f"{os.cpu_count()} processors, slixmpp {version('slixmpp')}; median (least-most) of "
        f"{options.runs} interleaved runs of {options.calls} round trips\n"
    )
    for server in options.server or sorted(KINDS):
        missing = available(server)
        if missing is not None:
            print(f"### {server}\n\nMISSING: {missing}\n")
            continue
        figures = await measure(server, options.runs, options.calls)
        print("\n".join(table(server, figures)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
