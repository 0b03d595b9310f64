"""One run of the benchmarks: what was asked for, and where the parts put what they found."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .children import ContenderError
from .contender import Ask, Contender, Round, in_turn
from .goals import ROWS
from .peers import environment
from .results import Results, Stamp, number, spread

#: Rounds of the contenders of a row, or why there are none.
Found = Mapping[str, Sequence[Round] | str]


@dataclass
class Bench:
    """What the parts are told, and what they tell."""

    results: Results
    stamp: Stamp
    #: Folder of the report.
    out: Path
    servers: Sequence[str]
    runs: int
    quick: bool = False
    #: What is being measured, for the progress.
    doing: str = field(default="", init=False)

    @property
    def seconds(self) -> float:
        """Length of a round that goes by the clock."""
        return 0.2 if self.quick else 2.0

    def say(self, text: str) -> None:
        """Print a line of progress."""
        print(f"{self.doing}: {text}" if self.doing else text, file=sys.stderr, flush=True)

    # -- contenders

    async def peer(
        self,
        stack: AsyncExitStack,
        name: str,
        needs: tuple[Sequence[str], Sequence[str]],
        contender: AbstractAsyncContextManager[Contender],
    ) -> Contender | str:
        """Set a peer up until the stack ends; gives why not, where that cannot be done."""
        why = environment.missing(*needs)
        if why is None:
            self.say(f"starting {name}")
            try:
                found = await stack.enter_async_context(contender)
            except ContenderError as exc:
                why = f"did not start: {exc}"
            else:
                self.results["missing"].pop(name, None)
                self.started(found)
                return found
        self.say(f"MISSING: {name}: {why}")
        self.results["missing"][name] = why
        return f"{name} is missing"

    def started(self, contender: Contender) -> None:
        """Keep how a contender was started."""
        self.results["contenders"][contender.name] = {
            "settings": contender.settings,
            "commands": list(contender.commands),
        }

    # -- what was found

    def rows(self, part: str) -> list[str]:
        """Give the keys of the rows that a part measures."""
        return [key for key, goal in ROWS.items() if goal.part == part]

    def ratio(self, key: str, found: Found, ours: str, theirs: str, note: str = "") -> None:
        """Record a row of ratios, round by round, of two contenders."""
        mine, other = found[ours], found[theirs]
        if isinstance(mine, str):
            self.missing(key, mine)
        elif isinstance(other, str):
            self.missing(key, other)
        else:
            pairs = [(one.value, two.value) for one, two in zip(mine, other, strict=True)]
            self.record(
                key,
                [one / two for one, two in pairs],
                [one for one, _ in pairs],
                [two for _, two in pairs],
                note=note,
            )

    def record(
        self,
        key: str,
        values: Sequence[float],
        ours: Sequence[float] = (),
        theirs: Sequence[float] = (),
        note: str = "",
    ) -> None:
        """Record the values of a row, one a run."""
        goal = ROWS[key]
        told = f"{spread(values)} {goal.unit}" + (f", goal {goal.bound}" if goal.bound else "")
        self.say(f"{goal.what}, against {goal.against}: {told}")
        self._row(key, values, ours, theirs, note)

    def missing(self, key: str, why: str) -> None:
        """Record why a row has no values."""
        self.say(f"{ROWS[key].what}, against {ROWS[key].against}: {why}")
        self._row(key, (), (), (), why)

    def _row(
        self,
        key: str,
        values: Sequence[float],
        ours: Sequence[float],
        theirs: Sequence[float],
        note: str,
    ) -> None:
        self.results["rows"][key] = {
            "values": list(values),
            "ours": list(ours),
            "theirs": list(theirs),
            "note": note,
            "stamp": self.stamp,
        }

    def table(
        self, title: str, text: str, header: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Record more figures."""
        self.results["tables"][title] = {
            "text": text,
            "header": list(header),
            "rows": [list(row) for row in rows],
            "stamp": self.stamp,
        }

    def figures(self, title: str, text: str, found: Found) -> None:
        """Record a table of what each contender took, by the clock and of the processors."""
        rounds = {name: made for name, made in found.items() if not isinstance(made, str)}
        processes = dict.fromkeys(name for made in rounds.values() for name in made[0].cpu)
        rows: list[list[str]] = []
        for name, made in rounds.items():
            cpu = {
                process: statistics.median(one.cpu.get(process, 0.0) for one in made)
                for process in made[0].cpu
            }
            rows.append(
                [name, spread([one.value for one in made]), number(sum(cpu.values()))]
                + [number(cpu[process]) if process in cpu else "-" for process in processes]
            )
        header = ["", "median (least - most)", "CPU us a trip", *processes]
        self.table(title, text, header, rows)


@dataclass
class Plan:
    """Rounds that are to take turns, and those that cannot be."""

    bench: Bench
    asks: dict[str, Ask] = field(default_factory=dict[str, Ask])
    absent: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, name: str, contender: Contender | str, measure: str, **question: Any) -> None:
        """Add a kind of round; a contender that is none says why."""
        if isinstance(contender, str):
            self.absent[name] = contender
        elif question.get("trip", "") in ("", *contender.caller.trips):
            self.asks[name] = Ask(contender, measure, question)
        else:
            self.absent[name] = f"not measurable: the caller makes no {question['trip']} calls"

    async def best(self, name: str, asks: Mapping[str, Ask | str], **short: Any) -> str:
        """Add the best of several, found by three short rounds of each; gives which it was."""
        able = {label: ask for label, ask in asks.items() if isinstance(ask, Ask)}
        if not able:
            self.absent[name] = "; ".join(dict.fromkeys(str(why) for why in asks.values()))
            return ""
        tries = {
            label: Ask(ask.contender, ask.measure, {**ask.question, **short})
            for label, ask in able.items()
        }
        found = await in_turn(tries, 1 if self.bench.quick else 3, self.bench.say)
        label = max(found, key=lambda label: statistics.median(made.value for made in found[label]))
        self.asks[name] = able[label]
        return label

    async def run(self, **warm: Any) -> dict[str, Sequence[Round] | str]:
        """Make all rounds in turn."""
        made = await in_turn(self.asks, self.bench.runs, self.bench.say, **warm)
        return {**self.absent, **made}
