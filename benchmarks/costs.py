"""Where the microseconds of one direct call go, end to end: CPU by process and module."""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import signal
import statistics
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from .bench import Bench
from .children import ROOT, ContenderError
from .contender import Ask
from .ours import ours
from .results import number

PROFILED = Path(__file__).resolve().parent / "profiled"
#: Modules with less than this many microseconds in every column are told together.
LEAST = 1.0
REST = "event loop in C, TLS, kernel"
ALL = "**all**"
#: Folder of the standard library.
STANDARD = Path(sysconfig.get_path("stdlib")).resolve()

HOW = (
    "Through the embedded server, over TLS. Rounds that nobody looks at give what each process "
    "takes, by the operating system's account. A round under cProfile, whose clock is the thread's "
    "time on a processor, says how that is shared: by the functions' own times, less what looking "
    "at them costs, as measured on this machine for the function that is called and for the one "
    "that calls; and by what the process took and no function did, which is the event loop in C, "
    "TLS and the kernel. Built-ins and generated code count for the modules that called them."
)

#: Process and module.
_Key = tuple[str, str]
#: File, line and name of a function, as ``pstats`` has it.
_Function = tuple[str, int, str]
_Stats = Mapping[_Function, tuple[int, int, float, float, Mapping[_Function, tuple[int, ...]]]]


@dataclass(frozen=True)
class Cost:
    """What a module takes of one call."""

    us: float = 0.0
    #: Function calls, those of built-ins included.
    calls: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.us + other.us, self.calls + other.calls)


@dataclass(frozen=True)
class Looking:
    """What looking costs: seconds a call, in the function that is called and in the one that calls."""

    inside: float
    outside: float

    @staticmethod
    def measured(calls: int = 200_000) -> Looking:
        """Measure it."""

        def nothing() -> None:
            pass

        def loop() -> None:
            for _ in range(calls):
                nothing()

        began = time.thread_time()
        loop()
        plain = time.thread_time() - began
        profile = cProfile.Profile(time.thread_time)
        profile.runcall(loop)
        stats = _stats(pstats.Stats(profile))
        own = {name: of[2] for (_, _, name), of in stats.items()}
        inside = own["nothing"] / calls
        return Looking(inside, max(0.0, (own["loop"] - plain) / calls))


async def measure(bench: Bench) -> None:
    """Measure on the embedded server."""
    bench.say("starting Spinal")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spinal-profiles-")))
        path = os.pathsep.join(filter(None, (str(PROFILED), os.environ.get("PYTHONPATH", ""))))
        environ = {"BENCH_PROFILES": str(folder), "PYTHONPATH": path}
        here = (await stack.enter_async_context(ours("embedded", environ=environ))).spinal
        looking = Looking.measured()
        seconds = bench.seconds
        many = {"trip": "direct", "seconds": seconds, "outstanding": 64}
        columns: dict[str, dict[_Key, Cost]] = {}
        for title, ask in {
            "alone": Ask(here, "alone", {"trip": "direct", "seconds": seconds}),
            "64 outstanding": Ask(here, "together", many),
        }.items():
            bench.say(f"{title}: rounds that nobody looks at")
            await ask.round()
            rounds = [await ask.round() for _ in range(bench.runs)]
            account = {
                name: statistics.median(made.cpu[name] for made in rounds)
                for name in here.processes
            }
            bench.say(f"{title}: a round under cProfile")
            columns[title] = await _look(ask, folder, account, looking)
    bench.table(
        "Where the microseconds of one direct call go",
        HOW,
        [
            "process",
            "module",
            *(f"{title}: {what}" for title in columns for what in ("us", "calls")),
        ],
        _table(columns),
    )


async def _look(
    ask: Ask, folder: Path, account: Mapping[str, float], looking: Looking
) -> dict[_Key, Cost]:
    """Profile one round in all processes; gives the cost of a call by process and module."""
    processes = ask.contender.processes
    pids = [pid for group in processes.values() for pid in group]
    _signal(pids, signal.SIGUSR1)
    made = await ask.round()
    _signal(pids, signal.SIGUSR2)
    found: dict[_Key, Cost] = {}
    for process, group in processes.items():
        modules: dict[str, Cost] = defaultdict(Cost)
        seen = 0.0
        for pid in group:
            file = await _written(folder / str(pid))
            seen += _add(modules, _stats(pstats.Stats(str(file))), looking, made.trips)
            file.unlink()
        modules[REST] = Cost(made.cpu[process] - seen)
        total = sum(max(0.0, cost.us) for cost in modules.values())
        for module, cost in modules.items():
            share = max(0.0, cost.us) / total if total else 0.0
            found[process, module] = Cost(share * account[process], cost.calls)
        found[process, ALL] = Cost(account[process], sum(of.calls for of in modules.values()))
    return found


def _signal(pids: list[int], how: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, how)


async def _written(file: Path) -> Path:
    """Wait for the profile of a process."""
    for _ in range(1000):
        if file.exists():
            return file
        await asyncio.sleep(0.02)
    raise ContenderError(f"no profile of process {file.name}")


def _stats(stats: pstats.Stats) -> _Stats:
    found: Any = vars(stats)["stats"]
    return found  # type: ignore[no-any-return]


def _add(modules: dict[str, Cost], stats: _Stats, looking: Looking, trips: int) -> float:
    """Add a profile to the modules of its functions; gives all that was seen, looking included.

    Microseconds and calls are those of one trip.
    """
    seen = 0.0
    for function, (_, calls, own, _, callers) in stats.items():
        seen += own
        for module, share in _modules(function, stats).items():
            spent = own - calls * looking.inside
            modules[module] += Cost(spent * share / trips * 1e6, calls * share / trips)
        for caller, of in callers.items():
            for module, share in _modules(caller, stats).items():
                modules[module] += Cost(-of[1] * looking.outside * share / trips * 1e6)
    return seen / trips * 1e6


def _modules(function: _Function, stats: _Stats) -> Mapping[str, float]:
    """Give the modules that a function counts for, with their shares."""
    if not function[0].startswith(("~", "<")):
        return {_module(function): 1.0}
    callers: Mapping[_Function, tuple[int, ...]] = stats[function][4] if function in stats else {}
    named = {of: counts[1] for of, counts in callers.items() if not of[0].startswith(("~", "<"))}
    shares = defaultdict[str, float](float)
    for caller, calls in named.items():
        shares[_module(caller)] += calls / sum(named.values())
    return shares or {"built-ins": 1.0}


def _module(function: _Function) -> str:
    """Name the module of a function."""
    file = Path(function[0])
    for base in (ROOT / "src" / "spinal", ROOT):
        if file.is_relative_to(base):
            return str(file.relative_to(base))
    if "site-packages" in file.parts:
        return file.parts[file.parts.index("site-packages") + 1]
    return file.relative_to(STANDARD).parts[0] if file.is_relative_to(STANDARD) else file.name


def _table(columns: Mapping[str, Mapping[_Key, Cost]]) -> list[list[str]]:
    """Order by process and cost; small ones are told together."""
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    processes = dict.fromkeys(process for process, _ in keys)

    def costs(*wanted: _Key) -> list[Cost]:
        """Give the sum in each column."""
        return [
            sum((column.get(key, Cost()) for key in wanted), Cost()) for column in columns.values()
        ]

    def line(process: str, module: str, *wanted: _Key) -> list[str]:
        cells = ((number(cost.us), f"{cost.calls:.1f}") for cost in costs(*wanted))
        return [process, module, *chain.from_iterable(cells)]

    rows: list[list[str]] = []
    for process in processes:
        own = [key for key in keys if key[0] == process and key[1] not in (REST, ALL)]
        own.sort(key=lambda key: -costs(key)[-1].us)
        many = [key for key in own if any(cost.us >= LEAST for cost in costs(key))]
        few = [key for key in own if key not in many]
        rows += [line(*key, key) for key in many]
        rows.append(line(process, f"{len(few)} more", *few))
        rows += [line(process, last, (process, last)) for last in (REST, ALL)]
    rows.append(line("**end to end**", "", *((process, ALL) for process in processes)))
    return rows
