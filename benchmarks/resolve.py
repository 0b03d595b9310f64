"""What choosing an agent costs among so many, and how many load reports a dispatcher takes in.

    python -m benchmarks.resolve [--agents 100 --agents 100000 ...] [--rate 5000] [--json]

One dispatcher in this process, on a connection that goes nowhere.  Its agents are known by their
reports alone: each at one of 1,000 racks, in one of three roles, with up to three tags and a load
of its own.  Requests ask for places at every height, roles and tags in all combinations.

*Resolves* follow each other; each that finds an agent starts a call there, and one of the last 64
ends, so that agents are taken and left as in life.

*Reports* are stanzas given to the session, each with another load than the last, from as many
agents as send one every 5 seconds.  First as many as go; then at a fixed rate, while resolves fall
due at random moments.  Theirs is the time from that moment to the answer, so that all is in it that
a call would wait for: other reports, housekeeping, the garbage collector.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import multiprocessing
import random
import resource
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from spinal import logs
from spinal.bus.connection import Connection, Listener
from spinal.dispatcher import Dispatcher
from spinal.dispatcher.agent import AttemptKey, KnownAgent
from spinal.dispatcher.garbage import seldom_collected
from spinal.dispatcher.resolver import Demand, choose
from spinal.protocols import Advertisement, Capabilities, Codec, Operation, Stanza

OP = "/bench/resize"
CAPABILITIES = Capabilities.of([Operation(OP), Operation("/bench/info")])
ADDRESS = "dispatcher@bench/1"
REGIONS = ("ap", "eu", "sa", "us")
ROLES = ("/batch", "/db", "/web")
TAGS = {"gpu": 0.1, "arm": 0.25, "ssd": 0.5}
#: Calls that are at agents while resolves are measured.
FLYING = 64
#: Seconds between two reports of one agent.
HEARTBEAT = 5
#: Seconds between two resolves while reports come in, on average.
PAUSE = 0.002


class Nowhere(Connection):
    """Says that it is connected, and drops what is sent."""

    def __init__(self) -> None:
        self._failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    @property
    def address(self) -> str:
        """Ours."""
        return ADDRESS

    @property
    def connected(self) -> bool:
        """Always."""
        return True

    async def open(self, listener: Listener) -> None:
        """Be open at once."""
        listener.opened()

    async def failed(self) -> Exception:
        """Never."""
        return await self._failed

    def send(self, stanza: Stanza) -> None:
        """Drop it."""

    async def drain(self) -> None:
        """Return at once."""

    async def ask(
        self, kind: str, to: str, payload: Element, timeout: float = 10.0
    ) -> Element | None:
        """Give nothing."""
        return None

    async def close(self) -> None:
        """Do nothing."""


def address(number: int) -> str:
    """Give the address of an agent."""
    return f"worker{number}@bench/agent"


def site(random: random.Random, height: int = 3) -> str:
    """Give one of the places: a region, a zone in it, or a rack there."""
    names = (random.choice(REGIONS), f"z{random.randrange(5)}", f"rack{random.randrange(50)}")
    return "/" + "/".join(names[:height])


def reports(count: int) -> Iterator[Advertisement]:
    """Give a report of each of so many agents."""
    draw = random.Random(1)
    for _ in range(count):
        yield Advertisement(
            hash=CAPABILITIES.hash,
            epoch=1,
            slots=4,
            load=round(draw.random(), 3),
            place={"site": site(draw), "role": draw.choice(ROLES)},
            tags=[tag for tag, share in TAGS.items() if draw.random() < share],
            features=["batch", "cancel", "finals", "holds", "mirror", "stream"],
        )


def demands(count: int, seed: int) -> Iterator[Demand]:
    """Give what so many calls ask for."""
    draw = random.Random(seed)
    for _ in range(count):
        place: dict[str, str] = {}
        if height := draw.randrange(4):
            place["site"] = site(draw, height)
        if draw.random() < 0.3:
            place["role"] = draw.choice(ROLES)
        tags = frozenset(tag for tag in TAGS if draw.random() < 0.3)
        yield Demand(OP, tuple(sorted(place.items())), tags)


class Bench:
    """A dispatcher that knows so many agents."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self._flying: deque[tuple[KnownAgent, AttemptKey]] = deque()
        self._numbers = itertools.count()

    def fill(self, count: int) -> None:
        """Let that many agents report."""
        for stanza in stanzas(reports(count)):
            self.dispatcher.session.received(stanza)
        self.dispatcher.registry.described(CAPABILITIES)

    def resolve(self, demand: Demand) -> KnownAgent | None:
        """Choose an agent as a call would."""
        return choose(self.dispatcher.registry, demand, self.dispatcher.broker.context()).agent

    def use(self, agent: KnownAgent | None) -> None:
        """Start a call at an agent, and end an old one."""
        now = time.monotonic()
        if agent is not None:
            key = (f"bench{next(self._numbers)}", 1)
            self.dispatcher.registry.start(agent, key, OP, now)
            self._flying.append((agent, key))
        if len(self._flying) > FLYING:
            agent, key = self._flying.popleft()
            agent.ended(key, now)


def stanzas(said: Iterator[Advertisement]) -> Iterator[Stanza]:
    """Give the presence of each agent."""
    codec = Codec()
    for number, report in enumerate(said):
        yield Stanza("presence", "", ADDRESS, address(number), body=codec.write([report]))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Give the percentiles that count, in microseconds."""
    ordered = sorted(values)
    at: Callable[[float], float] = lambda part: ordered[int(part * (len(ordered) - 1))]
    found = {"p50_us": at(0.5), "p99_us": at(0.99), "max_us": ordered[-1]}
    return {name: round(value * 1e6, 1) for name, value in found.items()}


def resident() -> int:
    """Give the bytes of memory that this process has, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def resolves(count: int, runs: int) -> dict[str, Any]:
    """Measure resolves among so many agents."""
    async with (
        seldom_collected(),
        Dispatcher(Nowhere(), roles=lambda who: "agent") as dispatcher,
    ):
        bench, before = Bench(dispatcher), resident()
        bench.fill(count)
        memory = resident() - before
        times: list[float] = []
        for demand in demands(runs // 10, 2):
            bench.use(bench.resolve(demand))
        busy = time.process_time()
        for demand in demands(runs, 3):
            began = time.perf_counter()
            agent = bench.resolve(demand)
            times.append(time.perf_counter() - began)
            bench.use(agent)
        busy = time.process_time() - busy
        return {
            "agents": count,
            **spread(times),
            "cpu_us_with_start_and_end": round(busy / runs * 1e6, 1),
            "memory_bytes_an_agent": round(memory / count),
        }


async def intake(count: int, runs: int, rate: float, seconds: float) -> dict[str, Any]:
    """Measure how many reports go in, and resolves while so many a second do."""
    async with (
        seldom_collected(),
        Dispatcher(Nowhere(), roles=lambda who: "agent") as dispatcher,
    ):
        bench = Bench(dispatcher)
        bench.fill(count)
        draw, codec = random.Random(5), Codec()
        said = [
            Stanza(
                "presence",
                "",
                ADDRESS,
                address(number % count),
                body=codec.write([_replaced(report, draw)]),
            )
            for number, report in zip(range(max(runs, count)), itertools.cycle(reports(count)))
        ]
        received = dispatcher.session.received
        began, busy = time.perf_counter(), time.process_time()
        for stanza in said:
            received(stanza)
        busy = time.process_time() - busy
        flat_out = len(said) / (time.perf_counter() - began)
        times = await _meanwhile(bench, said, rate, seconds)
        return {
            "agents": count,
            "reports_a_second": round(flat_out),
            "cpu_us_a_report": round(busy / len(said) * 1e6, 1),
            "rate": rate,
            **{f"resolve_{name}": value for name, value in spread(times).items()},
        }


def _replaced(report: Advertisement, draw: random.Random) -> Advertisement:
    raw = {**report.to_json(), "load": round(draw.random(), 3)}
    return Advertisement.parse(raw)


async def _meanwhile(
    bench: Bench, said: Sequence[Stanza], rate: float, seconds: float
) -> list[float]:
    """Let reports come at a rate, and give the times of the resolves meanwhile."""
    loop = asyncio.get_running_loop()
    times: list[float] = []
    coming = itertools.cycle(said)
    asked = demands(int(2 * seconds / PAUSE) + 1000, 7)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ended: asyncio.Future[None] = loop.create_future()
    rest = b""

    def read() -> None:
        nonlocal rest
        found = ours.recv(65_536)
        if not found:
            loop.remove_reader(ours)
            ended.set_result(None)
        found = rest + found
        whole = len(found) - len(found) % _EVENT.size
        rest = found[whole:]
        for resolves, sent in _EVENT.iter_unpack(found[:whole]):
            if resolves:
                agent = bench.resolve(next(asked))
                times.append(time.monotonic() - sent)
                bench.use(agent)
            else:
                bench.dispatcher.session.received(next(coming))

    pacer = multiprocessing.get_context("spawn").Process(
        target=pace, args=(theirs, rate, seconds), daemon=True
    )
    pacer.start()
    theirs.close()
    loop.add_reader(ours, read)
    await ended
    ours.close()
    pacer.join()
    return times


#: Whether an agent is asked for (else a report comes), and the time at which that was sent.
_EVENT = struct.Struct("<?d")


def pace(to: socket.socket, rate: float, seconds: float) -> None:
    """Send what comes, when it comes; in a process of its own, as timers of a loop are too coarse."""
    draw = random.Random(6)
    report = resolve = time.monotonic()
    end = report + seconds
    while (due := min(report, resolve)) < end:
        time.sleep(max(0.0, due - time.monotonic()))
        to.sendall(_EVENT.pack(resolve < report, time.monotonic()))
        if resolve < report:
            resolve += draw.expovariate(1 / PAUSE)
        else:
            report += 1 / rate
    to.close()


async def measure(
    agents: Sequence[int] = (100, 1000, 10_000, 100_000),
    *,
    resolutions: int = 5000,
    taken: int = 20_000,
    rate: float = 5000.0,
    seconds: float = 10.0,
) -> dict[str, Any]:
    """Measure, and give what was found.

    Args:
        agents: how many are known.
        resolutions: resolves that are measured with each.
        taken: reports that are measured one after the other.
        rate: reports a second during which resolves are measured, from as many agents as report
            so often.
        seconds: for how long.
    """
    rows: list[dict[str, Any]] = []
    for count in agents:
        rows.append(await resolves(count, resolutions))
        gc.collect()
    live = int(rate * HEARTBEAT)
    return {"resolve": rows, "reports": await intake(live, taken, rate, seconds)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, action="append")
    parser.add_argument("--rate", type=float, default=5000.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logs.configure("warning")
    agents = options.agents or (100, 1000, 10_000, 100_000)
    found = asyncio.run(measure(agents, rate=options.rate, seconds=options.seconds))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for row in (*found["resolve"], found["reports"]):
        print(", ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
