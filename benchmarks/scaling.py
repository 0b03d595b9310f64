"""The rules by which a pool grows and shrinks, on real workloads, in simulated time.

``python -m benchmarks.scaling`` replays two traces (``traces/``) with the decision that pools use and
with the choices beside it, and writes ``SCALING.md`` and ``scaling.svg``.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import heapq
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from spinal.dispatcher.pools.responses import Responses, quantile
from spinal.dispatcher.pools.scaling import Have, Measures, Memory, decide
from spinal.dispatcher.pools.spec import PoolSpec, Rule, Scale, Server, Size

HERE: Final = Path(__file__).resolve().parent

DAY: Final = 86_400.0

#: Seconds that a machine takes from the order until it counts.
BOOT: Final = 90.0
#: Seconds between two looks.
TICK: Final = 15.0
#: Money of an hour of one machine, and the seconds that are paid at least.
PRICE: Final = 0.40
LEAST: Final = 60.0

#: MHz of a core, and seconds of one that a job of the second trace takes.
CORE: Final = 2600.0
PIECE: Final = 60.0


#: Name of the strategy that this is about.
RULES: Final = "the pool's rules"


class Job(NamedTuple):
    """One that takes a slot."""

    submitted: float
    runs: float


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Jobs in the order in which they are submitted, and the pool that is to do them."""

    name: str
    jobs: Sequence[Job]
    #: Of one machine.
    slots: int
    spec: PoolSpec
    rules: str


# -- the traces


def lisa(days: float = inf) -> Workload:
    """Jobs of a cluster: few, long, in bursts.  Each fills a machine of 16 CPUs."""
    jobs = [Job(float(row[0]), float(row[1])) for row in _rows("surf-lisa-tenth.csv.gz")]
    jobs = [job for job in jobs if job.submitted < days * DAY]
    scale = Scale(
        ops=("/lisa/job",),
        waiting=Rule(sign=">", bound=0, lasting=30),
        add=4,
        remove_when={"idle": Rule(sign=">", bound=0, lasting=600)},
        cool=60,
    )
    return Workload(
        name="SURF Lisa",
        jobs=jobs,
        slots=1,
        spec=_spec("lisa", 16, scale),
        rules='waiting: "> 0 for 30s", add: 4, remove_when: {idle: "> 0 for 10m"}, cool: 1m',
    )


def bitbrains(days: float = inf) -> Workload:
    """The CPU that virtual machines used, as jobs of one core for a minute: many, short, steady."""
    jobs: list[Job] = []
    clocks, owed = defaultdict[str, float](float), defaultdict[str, float](float)
    for id, duration, used in _rows("bitbrains-week.csv.gz"):
        length = float(duration)
        if clocks[id] >= days * DAY:
            continue
        work = owed[id] + float(used) / CORE * length
        count = int(work // PIECE)
        owed[id] = work - count * PIECE
        jobs += [Job(clocks[id] + length * (n + 0.5) / count, PIECE) for n in range(count)]
        clocks[id] += length
    scale = Scale(
        ops=("/bitbrains/piece",),
        waiting=Rule(sign=">", bound=8, lasting=30),
        p95=Rule(sign=">", bound=90, lasting=60),
        add=2,
        remove_when={
            "waiting": Rule(sign="<", bound=1, lasting=300),
            "idle": Rule(sign=">", bound=0, lasting=300),
        },
        cool=60,
    )
    return Workload(
        name="Bitbrains",
        jobs=sorted(jobs),
        slots=4,
        spec=_spec("bitbrains", 4, scale),
        rules='waiting: "> 8 for 30s", p95: "> 90s for 1m", add: 2, '
        'remove_when: {waiting: "< 1 for 5m", idle: "> 0 for 5m"}, cool: 1m',
    )


def _rows(name: str) -> list[list[str]]:
    with gzip.open(HERE / "traces" / name, "rt", newline="") as file:
        return list(csv.reader(file))[1:]


def _spec(name: str, cpu: float, scale: Scale) -> PoolSpec:
    size = Size(min=0, max=10_000, start=0)
    return PoolSpec(pool=name, server=Server(cpu=cpu, ram=16 << 30), size=size, scale=scale)


# -- one run


@dataclass
class _Machine:
    free: int
    ordered: float
    ready: bool = False
    draining: bool = False


class Seen(NamedTuple):
    """What a strategy is told."""

    measures: Measures
    have: Have
    now: float


#: Says how many machines there shall be.
Strategy = Callable[[Seen], int]


@dataclass(kw_only=True)
class Outcome:
    """What a strategy came to."""

    name: str
    #: Seconds that each machine was there.
    lives: list[float]
    #: Seconds of each job from its submission to its start, and to its end.
    waits: list[float]
    responses: list[float]
    #: Machines that were ordered, and returned, on the way.
    ordered: int
    returned: int
    #: Time -> machines that are there.
    course: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])

    @property
    def cost(self) -> float:
        """Money, paid by the second."""
        return sum(max(LEAST, life) for life in self.lives) / 3600 * PRICE

    @property
    def hourly(self) -> float:
        """Money, where each hour that has begun is paid."""
        return sum(ceil(life / 3600) for life in self.lives) * PRICE

    @property
    def wait(self) -> float:
        """Mean seconds of a job from its submission to its start."""
        return sum(self.waits) / len(self.waits)

    def p95(self, times: list[float]) -> float:
        """Give the p95 of some times."""
        return quantile(times, 0.95) or 0.0


class Replay:
    """A pool and its queue: first come, first served, by the oldest machine that has a free slot.

    Args:
        work: what is to be done.
        strategy: is asked every :data:`TICK` seconds; none keeps the machines of the start.
        start: machines that are there, booted, when the first job comes.
    """

    def __init__(self, work: Workload, strategy: Strategy | None, start: int = 0) -> None:
        self._work = work
        self._strategy = strategy
        self._machines: dict[int, _Machine] = {}
        self._booting: deque[tuple[float, int]] = deque()
        self._running: list[tuple[float, int, float]] = []
        #: Machines that have a free slot, and such that had one.
        self._free: list[int] = []
        self._queue: deque[Job] = deque()
        self._latest = Responses()
        self._number = 0
        self._lives: list[float] = []
        self._waits: list[float] = []
        self._responses: list[float] = []
        self._course: list[tuple[float, int]] = []
        for _ in range(start):
            self._order(-BOOT)

    def run(self, name: str) -> Outcome:
        """Replay all jobs until the last one has ended."""
        jobs, next, now = self._work.jobs, 0, 0.0
        began = len(self._machines)
        while next < len(jobs) or self._queue or self._running:
            next = self._until(now, next)
            if self._strategy is not None:
                self._look(now, self._strategy)
            now += TICK
        returned = len(self._lives)
        for machine in self._machines.values():
            self._lives.append(now - max(0.0, machine.ordered))
        return Outcome(
            name=name,
            lives=self._lives,
            waits=self._waits,
            responses=self._responses,
            ordered=self._number - began,
            returned=returned,
            course=self._course,
        )

    def _until(self, now: float, next: int) -> int:
        """Let everything happen up to a time, in its order."""
        jobs = self._work.jobs
        while True:
            ends = self._running[0][0] if self._running else now + 1
            boots = self._booting[0][0] if self._booting else now + 1
            comes = jobs[next].submitted if next < len(jobs) else now + 1
            first = min(ends, boots, comes)
            if first > now:
                return next
            if first == ends:
                _, id, submitted = heapq.heappop(self._running)
                self._responses.append(ends - submitted)
                self._latest.add(ends - submitted, round(ends * 1000))
                machine = self._machines[id]
                machine.free += 1
                if machine.draining:
                    self._leave_if_idle(id, ends)
                else:
                    heapq.heappush(self._free, id)
            elif first == boots:
                _, id = self._booting.popleft()
                if id in self._machines:
                    self._machines[id].ready = True
                    heapq.heappush(self._free, id)
            else:
                self._queue.append(jobs[next])
                next += 1
            self._start(first)

    def _start(self, now: float) -> None:
        while self._queue and self._free:
            id = self._free[0]
            machine = self._machines.get(id)
            if machine is None or machine.draining or not machine.free:
                heapq.heappop(self._free)
                continue
            job = self._queue.popleft()
            machine.free -= 1
            self._waits.append(now - job.submitted)
            heapq.heappush(self._running, (now + job.runs, id, job.submitted))

    def _look(self, now: float, strategy: Strategy) -> None:
        slots = self._work.slots
        there = {id: each for id, each in self._machines.items() if not each.draining}
        ready = [each for each in there.values() if each.ready]
        measures = Measures(
            waiting=len(self._queue),
            slots=slots * len(ready),
            busy=sum(slots - each.free for each in ready),
            p95=self._latest.p95(round(now * 1000)),
            idle=sum(each.free == slots for each in ready),
        )
        have = Have(ready=len(ready), joining=len(there) - len(ready))
        wanted = strategy(Seen(measures, have, now))
        for _ in range(wanted - len(there)):
            self._order(now)
        if wanted < len(there):
            # What has not joined, then what runs least, then the newest.
            least = sorted(there, key=lambda id: (there[id].ready, -there[id].free, -id))
            for id in least[: len(there) - wanted]:
                there[id].draining = True
                self._leave_if_idle(id, now)
        if not self._course or self._course[-1][1] != len(self._machines):
            self._course.append((now, len(self._machines)))

    def _order(self, now: float) -> None:
        self._machines[self._number] = _Machine(self._work.slots, now)
        self._booting.append((now + BOOT, self._number))
        self._number += 1

    def _leave_if_idle(self, id: int, now: float) -> None:
        machine = self._machines[id]
        if machine.free == self._work.slots:
            self._lives.append(now - machine.ordered)
            del self._machines[id]


# -- the strategies


def ours(spec: PoolSpec) -> Strategy:
    """The decision of pools."""
    memory = Memory()

    def strategy(seen: Seen) -> int:
        nonlocal memory
        decision = decide(spec, memory, seen.measures, seen.have, round(seen.now * 1000))
        memory = decision.memory
        return decision.wanted

    return strategy


def reacting(work: Workload) -> Strategy:
    """As many machines as would carry what runs and waits right now, at once."""
    return lambda seen: ceil((seen.measures.busy + seen.measures.waiting) / work.slots)


def demand(work: Workload) -> list[tuple[float, int]]:
    """Give the machines that are needed so that no job waits, from each time on."""
    steps = Counter[float]()
    for job in work.jobs:
        steps[job.submitted] += 1
        steps[job.submitted + job.runs] -= 1
    found, jobs = list[tuple[float, int]](), 0
    for at in sorted(steps):
        jobs += steps[at]
        found.append((at, ceil(jobs / work.slots)))
    return found


def foreseeing(work: Workload) -> Outcome:
    """Machines that are there, booted, when a job comes, and gone when it ends.

    Who lets no job wait cannot have it for less: each machine is used to the second, and booting is
    free.
    """
    needed = demand(work)
    spans = zip(needed, [at for at, _ in needed[1:]], strict=False)
    seconds = sum((until - at) * machines for (at, machines), until in spans)
    steps = [0, *(machines for _, machines in needed)]
    ups = sum(max(0, later - earlier) for earlier, later in pairwise(steps))
    return Outcome(
        name="knowing the future",
        lives=[seconds],
        waits=[0.0 for _ in work.jobs],
        responses=[job.runs for job in work.jobs],
        ordered=ups,
        returned=ups,
        course=needed,
    )


def compare(work: Workload) -> list[Outcome]:
    """Replay a workload with each strategy."""
    peak = max(machines for _, machines in demand(work))
    begin, end = work.jobs[0].submitted, max(job.submitted + job.runs for job in work.jobs)
    mean = ceil(sum(job.runs for job in work.jobs) / (end - begin) / work.slots)
    shy = replace(work.spec, scale=replace(work.spec.scale, cool=300.0, add=1))
    return [
        Replay(work, None, peak).run(f"static, at the peak: {peak}"),
        Replay(work, None, mean).run(f"static, at the mean: {mean}"),
        Replay(work, reacting(work)).run("reacting without hysteresis"),
        Replay(work, ours(work.spec)).run(RULES),
        Replay(work, ours(shy)).run("the same with add: 1, cool: 5m"),
        foreseeing(work),
    ]


# -- the report

_REPORT: Final = """# Scaling

Made by `python -m benchmarks.scaling` (with `PYTHONPATH=src`), which takes less than a minute and always gives the
same figures: the time is simulated.
What is measured is the decision that pools use, `decide` in `dispatcher/pools/scaling.py`, and nothing else.

![Machines of three days, and what each strategy costs](scaling.svg)

{tables}
## How it was measured

- **Traces**: [traces/](traces/README.md), slices of real ones.
  A job of SURF Lisa has the run time of the trace and fills a machine of 16 CPUs; it is every tenth job of the month.
  Bitbrains says how much CPU virtual machines used; that is cut into jobs of one core ({core:g} MHz) for a minute,
  which come evenly over the piece of the trace they are from, and four of which share a machine.
- **Machines** take {boot:g} s to boot, are paid from the order until they are gone, at {price:.2f} an hour, at least
  {least:g} s each.
  "By the hour" is the same run where each hour that has begun is paid.
  No vendor runs out, no machine fails, and how many there may be is not bounded.
- **Jobs** are served as they come, by the oldest machine with a free slot.
  A machine that is to go finishes what it runs.
- **Each strategy** is asked every {tick:g} s.
  Those with rules and the one that reacts begin with no machine; static ones with all of theirs, booted.
- **Static** pools have as many machines as the busiest moment needs, or as the mean needs, rounded up; both know that
  from the whole trace, which nobody does.
- **Reacting** wants at each look as many machines as would carry what runs and waits.
- **Knowing the future** has each machine booted when it is needed and pays it to the second: a lower bound, which nobody
  reaches, of what it costs to let no job wait.
- **Changes** are machines that were ordered or returned on the way.
- The rules were chosen by hand, with the traces at hand; they are those that somebody would write who knows how long a
  machine boots.

## Where the rules do worse

{worse}"""


_HEAD: Final = (
    "| strategy | cost | to the bound | by the hour | p95 of the wait | mean wait "
    "| p95 of wait and run | changes |"
)


def table(work: Workload, outcomes: Sequence[Outcome]) -> str:
    """Give a workload's outcomes as a table in Markdown."""
    bound = outcomes[-1]
    full = sum(job.runs for job in work.jobs) / work.slots / 3600 * PRICE
    lines = [
        f"## {work.name}",
        "",
        f"{len(work.jobs):,} jobs, {work.slots} at once on a machine.",
        f"Their work alone, on machines that are full all the time, costs {full:,.0f}.",
        f"The pool's rules: `{work.rules}`.",
        "",
        _HEAD,
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        known = each is not bound
        cells = (
            each.name,
            f"{each.cost:,.0f}",
            f"{each.cost / bound.cost - 1:+.0%}" if known else "",
            f"{each.hourly:,.0f}" if known else "",
            f"{each.p95(each.waits):,.0f} s",
            f"{each.wait:,.1f} s",
            f"{each.p95(each.responses):,.0f} s",
            f"{each.ordered + each.returned:,}" if known else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def worse(work: Workload, outcomes: Sequence[Outcome]) -> str:
    """Say where others are better than the rules."""
    (rules,) = (each for each in outcomes if each.name == RULES)
    measures: tuple[tuple[str, Callable[[Outcome], float]], ...] = (
        ("cost", lambda each: each.cost),
        ("cost by the hour", lambda each: each.hourly),
        ("p95 of the wait", lambda each: each.p95(each.waits)),
        ("mean wait", lambda each: each.wait),
        ("changes", lambda each: each.ordered + each.returned),
    )
    lines: list[str] = []
    for each in outcomes[:-1]:
        better = [
            f"{what} {of(each):,.0f} against {of(rules):,.0f}"
            for what, of in measures
            if round(of(each)) < round(of(rules))
        ]
        if better and each is not rules:
            lines.append(f"- {work.name}, {each.name}: {'; '.join(better)}.\n")
    return "".join(lines)


def write(found: Sequence[tuple[Workload, list[Outcome]]], out: Path) -> None:
    """Write the report and its chart into a folder."""
    report = _REPORT.format(
        tables="\n".join(table(*each) for each in found),
        worse="".join(worse(*each) for each in found),
        core=CORE,
        boot=BOOT,
        price=PRICE,
        least=LEAST,
        tick=TICK,
    )
    (out / "SCALING.md").write_text(report)
    draw(found, out / "scaling.svg")


#: Read well on white and on black; the strategies as they are shown, and the rules.
INK: Final = "#808080"
OURS: Final = "#3b8fd1"
OTHERS: Final = "#e08a3c"

#: The days of the chart.
SHOWN: Final = (3, 6)


def draw(found: Sequence[tuple[Workload, list[Outcome]]], file: Path) -> None:
    """Draw for each workload the machines of some days, and what each strategy costs."""
    # Its stubs leave most keyword arguments unknown.
    library: Any = matplotlib
    settings = {
        # Text stays text, and two runs give the same file.
        "svg.fonttype": "none",
        "svg.hashsalt": "spinal",
        "font.family": "sans-serif",
        "font.size": 8,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with library.rc_context(settings):
        figure: Any = Figure(figsize=(10.0, 3.2 * len(found)), layout="constrained")
        rows = figure.subplots(len(found), 2, squeeze=False, width_ratios=(3, 2))
        for (work, outcomes), (course, costs) in zip(found, rows, strict=True):
            (rules,) = (each for each in outcomes if each.name == RULES)
            for outcome, colour, width in ((outcomes[-1], OTHERS, 0.6), (rules, OURS, 1.0)):
                days, machines = _days(outcome.course)
                course.step(days, machines, where="post", color=colour, linewidth=width)
            course.set_title(f"{work.name}: machines that are needed, and that the rules have")
            course.set_xlabel("day")
            course.set_xlim(*SHOWN)
            course.set_ylim(bottom=0)
            places = range(len(outcomes))
            costs.barh(
                places,
                [each.cost for each in outcomes],
                height=0.6,
                color=[OURS if each is rules else OTHERS for each in outcomes],
            )
            for place, each in zip(places, outcomes, strict=True):
                costs.annotate(
                    f"{each.cost:,.0f}, p95 {each.p95(each.waits):,.0f} s",
                    (each.cost, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
            costs.set_yticks(places, [each.name for each in outcomes])
            costs.tick_params(axis="y", length=0)
            costs.set_xlim(0, 1.4 * max(each.cost for each in outcomes))
            costs.invert_yaxis()
            costs.set_title("cost, and p95 of the wait")
            for axes in (course, costs):
                for side in ("top", "right"):
                    axes.spines[side].set_visible(False)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})


def _days(course: Sequence[tuple[float, int]]) -> tuple[list[float], list[int]]:
    """Give the part of a course that is shown; at most one point for each 15 minutes."""
    begin, end = (day * DAY for day in SHOWN)
    shown = dict[float, int]()
    for at, machines in course:
        if at <= end:
            place = max(begin, at // 900 * 900) / DAY
            # Of what is before, the last; of 15 minutes, the most.
            shown[place] = machines if at < begin else max(machines, shown.get(place, 0))
    return list(shown), list(shown.values())


def main(words: Iterable[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the report")
    parser.add_argument("--days", type=float, default=inf, help="only the first days of each trace")
    asked = parser.parse_args(None if words is None else list(words))
    began = time.perf_counter()
    found: list[tuple[Workload, list[Outcome]]] = []
    for make in (lisa, bitbrains):
        work = make(asked.days)
        found.append((work, compare(work)))
        print(table(*found[-1]), flush=True)
    write(found, asked.out)
    took = time.perf_counter() - began
    print(f"{asked.out / 'SCALING.md'}: {took:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
