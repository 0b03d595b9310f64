"""What is measured, and what was aimed at: one row of ``RESULTS.md`` each.

A ratio is ours over theirs, in the unit that the row names: of times, or of rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

SERVERS: Final = ("embedded", "ejabberd", "prosody")


@dataclass(frozen=True, slots=True)
class Goal:
    """A row: what, against what, and how far it shall go."""

    key: str
    #: The part that measures it.
    part: str
    what: str
    against: str
    #: Unit of the values; ``x`` for ratios.
    unit: str = "x"
    #: Bounds of the median; a row without them is there to be seen.
    most: float | None = None
    least: float | None = None
    durable: bool = False
    #: How many calls share a stanza.
    batched: str = "adaptive"
    tls: str = "yes"
    server: str = "embedded"
    #: Where it is not met: what the limit is, and what would lift it.
    limit: str = ""

    @property
    def bound(self) -> str:
        """The bound in words; empty without one."""
        if self.most is not None:
            return f"<= {self.most:g} {self.unit}"
        return f">= {self.least:g} {self.unit}" if self.least is not None else ""

    def met(self, median: float) -> bool | None:
        """Whether that is within the bound; None without one."""
        if self.most is not None:
            return median <= self.most
        return median >= self.least if self.least is not None else None


#: Why goals are not met, by the beginning of their keys, and what would lift it.
LIMITS: Final = {
    "direct-p50": (
        "The way itself, a bare IQ without session, codec or operation, takes as long as nats-py's "
        "whole request (table below); above it stand the Python of our session at both ends, which "
        "the table of microseconds counts. A codec and a session in C would lift it, and tasks that "
        "start at once (Python 3.12)."
    ),
    "direct-rate": (
        "A call takes less CPU than nats-py's (38 us of all processes against 45 on the embedded "
        "server), but three processes share two cores, and with 64 outstanding they wait for each "
        "other. The goal was set beside 16,350 requests a second; nats-py does twice that here. "
        "More outstanding lifts it, as `map` shows."
    ),
    "unbatched": (
        "Each call pays for a stanza, a task and its books of its own: 145 us of CPU, of which the "
        "bare IQ is 48 (embedded). On ejabberd and Prosody the bare IQ alone is below this goal. A "
        "session in C would lift it; batching does."
    ),
    "map-rate": (
        "The caller is one Python process that is busy: 10 us an input. The goal was set beside "
        "18,400 requests a second; nats-py at its best window does more than twice that here."
    ),
    "jobs-rate": (
        "One process is busy, the server with its dispatcher: 370 us a job for routing, two calls, "
        "the choice, three states of a job and two writes to the disk. A job of Celery's takes 3 ms "
        "of CPU, in four processes and in memory. More dispatchers, or less Python a job, would lift "
        "it."
    ),
    "jobs-p50": (
        "A job waits for two commits with fsync, and for hand-overs between threads and processes "
        "of which each wakes a processor that sleeps: of the CPU of a job alone the dispatcher has "
        "2.4 ms, of one of many 0.4. Celery keeps its jobs in memory."
    ),
    "durable-map": (
        "The server with its dispatcher takes 192 us an input, for a row, a choice, an attempt, a "
        "call and an end each; forty times Dask's rate leaves 84 us of two processors for all. "
        "Attempts of several inputs in one exchange, as direct maps have them, would lift it."
    ),
    "brokered": (
        "A dispatcher is a second call, with a choice: with a server of its own four passes of it "
        "instead of two. Only the embedded server saves the two between them."
    ),
    "reports-p99": (
        "The time counts from the moment at which a call falls due, so also what stands before it: "
        "reports that come in bursts, and collections of the young."
    ),
}


def _goals() -> Iterator[Goal]:
    nats = "nats-py request/reply, TLS, uvloop on both sides"
    p50 = "direct call alone, p50 time"
    rate = "direct calls/s, 64 outstanding"
    yield Goal("direct-p50-embedded", "direct", p50, nats, most=1.0)
    for server, least in zip(SERVERS, (1.2, 0.8, 0.5), strict=True):
        yield Goal(f"direct-rate-{server}", "direct", rate, nats, least=least, server=server)
    for server, least in zip(SERVERS, (0.7, 0.45, 0.4), strict=True):
        yield Goal(
            f"unbatched-rate-{server}",
            "direct",
            f"{rate}, batching off",
            nats,
            least=least,
            server=server,
            batched="no",
        )
    yield Goal(
        "map-rate-embedded",
        "direct",
        "direct calls/s through `map`",
        "nats-py, TLS, at its best window",
        least=4.0,
        batched="yes",
    )
    celery = "Celery + Redis, `acks_late`, 2 worker processes"
    yield Goal(
        "jobs-rate",
        "jobs",
        "durable jobs/s, least-loaded, result back, 256 outstanding",
        celery,
        least=10.0,
        durable=True,
    )
    yield Goal(
        "jobs-p50",
        "jobs",
        "durable job alone, result back, p50 time",
        celery,
        most=0.5,
        durable=True,
    )
    yield Goal(
        "durable-map",
        "maps",
        "durable `map` of 10,000 no-op inputs, inputs/s",
        "Dask `map` + `gather`",
        least=40.0,
        durable=True,
        batched="yes",
    )
    for server in SERVERS:
        yield Goal(
            f"brokered-{server}",
            "direct",
            "brokered call alone, p50 time",
            "a direct one",
            most=1.8,
            server=server,
        )
    yield _alone(
        Goal(
            "resolve-p50",
            "resolve",
            "resolve, one of 100,000 agents with tags and places, p50",
            "-",
            unit="us",
            most=50.0,
        )
    )
    yield _alone(
        Goal(
            "resolve-growth",
            "resolve",
            "resolve, growth from 100 to 100,000 agents",
            "log 100,000 / log 100",
            most=2.5,
        )
    )
    yield _alone(
        Goal(
            "reports-rate",
            "resolve",
            "load reports taken in by one dispatcher",
            "-",
            unit="/s",
            least=5000.0,
        )
    )
    yield _alone(
        Goal(
            "reports-p99", "resolve", "resolve while reports come in, p99", "-", unit="ms", most=1.0
        )
    )
    for server in ("embedded", "ejabberd"):
        yield Goal(
            f"agents-{server}",
            "scale",
            "live agents, real connections, with the dispatcher",
            "Kestrel's 1,600",
            unit="agents",
            least=5000.0,
            batched="-",
            server=server,
        )
        for count, seconds in ((1000, 10.0), (5000, 45.0)):
            yield Goal(
                f"back-{count}-{server}",
                "scale",
                f"{count:,} agents back after a server restart",
                "-",
                unit="s",
                most=seconds,
                batched="-",
                server=server,
            )
    for way in ("upload", "download"):
        what = f"50 MB blob, {way}, MB/s"
        yield Goal(f"blob-{way}", "blob", what, "curl to the same server", least=0.7, batched="-")
    yield Goal(
        "wrap-cpu",
        "wrap",
        "CPU that a wrapped `units` costs more",
        "the command bare",
        unit="ms",
        most=5.0,
        batched="no",
    )
    for word, seconds in (("--help", 0.25), ("agents", 0.5)):
        yield Goal(
            f"start-{word.lstrip('-')}",
            "start",
            f"`spinal {word}`, wall time",
            "-",
            unit="s",
            most=seconds,
            batched="-",
            tls="-" if word == "--help" else "yes",
            server="none" if word == "--help" else "embedded",
        )


def _beside() -> Iterator[Goal]:
    for server in SERVERS:
        nats = "nats-py, TLS"
        if server != "embedded":
            p50 = "direct call alone, p50 time"
            yield Goal(f"direct-p50-{server}", "direct", p50, nats, server=server)
            over = "direct calls/s through `map`"
            against = "nats-py, TLS, at its best window"
            yield Goal(f"map-rate-{server}", "direct", over, against, batched="yes", server=server)
        what = "direct call alone, p50 time"
        yield Goal(f"bare-p50-{server}", "direct", what, "a bare IQ", server=server)
        what = "direct calls/s, 64 outstanding"
        yield Goal(f"bare-rate-{server}", "direct", what, "bare IQs", server=server)
        what = "brokered calls/s, 64 outstanding"
        yield Goal(f"brokered-rate-{server}", "direct", what, "direct ones", server=server)
    yield Goal(
        "plain-rate",
        "direct",
        "direct calls/s, 64 outstanding",
        "nats-py without TLS, which has it easier",
    )
    spade = "SPADE, a message and its reply"
    what = "direct call alone, p50 time"
    yield Goal("spade-p50", "direct", what, spade, server="prosody")
    what = "direct calls/s, 64 outstanding"
    yield Goal("spade-rate", "direct", what, spade, server="prosody")
    dramatiq = "Dramatiq + Redis, 2 worker processes"
    what = "durable jobs/s, result back, 256 outstanding"
    yield Goal("dramatiq-rate", "jobs", what, dramatiq, durable=True)
    what = "durable job alone, result back, p50 time"
    yield Goal("dramatiq-p50", "jobs", what, dramatiq, durable=True)
    what = "submissions/s to a store of 50,000 finished jobs, 32 outstanding"
    yield Goal("store-full", "store", what, "an empty store", durable=True)


def _alone(goal: Goal) -> Goal:
    """Make it a row of a dispatcher without a bus."""
    return replace(goal, batched="-", tls="-", server="none")


def _limited(goal: Goal) -> Goal:
    """Say what keeps it, if that is known."""
    found = (text for key, text in LIMITS.items() if goal.key.startswith(key))
    return replace(goal, limit=next(found, ""))


#: What was aimed at, in the order in which it is told.
GOALS: Final = tuple(map(_limited, _goals()))
#: What else is worth knowing.
BESIDE: Final = tuple(_beside())
#: Both, by key.
ROWS: Final = {goal.key: goal for goal in (*GOALS, *BESIDE)}
