"""How many machines a pool wants: what its rules say of what was measured.

Pure: :func:`decide` is given the time, and what it said last; it is asked about once a second.  What
it has to remember between two questions is a :class:`Memory`, which is small, changes only when a
rule begins or ceases to hold or the pool changes, and can be kept as JSON; so a dispatcher that is
started again goes on where the last one was.  Times are milliseconds since 1970 UTC.

A pool grows by ``add`` machines when jobs wait or the p95 is too high, and shrinks by one when all
of ``remove_when`` holds.  Against flapping:

- a rule has to hold without interruption for its time, and ``cool`` passes between two changes;
- machines that are joining are counted as having taken the jobs that they will have slots for; and
  a high p95 adds none while some join, as what they do to it cannot be seen yet, or one is idle;
- none is removed while one joins or a rule to grow holds, however short; none whose jobs the others
  could not carry; and the last one only when nothing runs;
- a removal that had to be undone makes the next one wait twice as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Any, Final

from spinal.agents.provider.offer import Offer
from spinal.protocols import Json
from spinal.protocols.retry import doubled

from ..jobs.cron import next_after
from .machine import Machine, State
from .spec import PoolSpec, Rule, Scale, Window

#: What makes a pool grow that names operations and no rule.
WAITING: Final = Rule(sign=">", bound=0.0, lasting=10.0)

#: What makes a pool shrink that names operations and no rule for that.
IDLE: Final = Rule(sign=">", bound=0.0, lasting=300.0)

#: Most times that the wait before a removal is doubled.
MAX_REGRETS: Final = 3

#: Seconds for which an old and a new machine are both paid when one replaces the other.
OVERLAP: Final = 900.0

#: Name of the streak in which machines are missing that nothing waits for.
_MISSING: Final = "-missing"

_HOUR: Final = 3_600_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What is so now."""

    #: Jobs of the pool's operations that are queued and not begun.
    waiting: int = 0
    #: Slots of the machines that are ready, and how many of them run something.
    slots: int = 0
    busy: int = 0
    #: 95 of 100 jobs that ended lately took at most so many seconds; none if no job ended.
    p95: float | None = None
    #: Machines that are ready and run nothing.
    idle: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Have:
    """How many machines a pool has, or is about to have."""

    ready: int = 0
    #: From the order to the self-test.
    joining: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.ready + self.joining

    @staticmethod
    def of(machines: Iterable[Machine]) -> Have:
        """Count the machines of a pool; those that drain or leave are none any more."""
        states = [machine.state for machine in machines if machine.state.counts]
        ready = states.count(State.READY)
        return Have(ready=ready, joining=len(states) - ready)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one decision has to know of those before it."""

    #: Machines that were wanted last; none before the first decision.
    wanted: int | None = None
    #: Rule -> since when it holds without interruption.
    since: Mapping[str, int] = field(default_factory=dict[str, int])
    #: When a rule changed the number last; when it was last raised from zero, and lowered.
    changed: int | None = None
    woken: int | None = None
    removed: int | None = None
    #: Removals in a row that had to be undone.
    regrets: int = 0

    def row(self) -> dict[str, Json]:
        """Give it as JSON."""
        return {
            name: dict(self.since) if name == "since" else getattr(self, name)
            for name in self.__slots__
        }

    @staticmethod
    def of(row: Mapping[str, Any]) -> Memory:
        """Read :meth:`row`.

        Raises:
            TypeError: something is in it that does not belong there.
        """
        return Memory(**row)


@dataclass(frozen=True, slots=True)
class Decision:
    """How many machines are wanted, why in one line, and what the next decision is given."""

    wanted: int
    why: str
    memory: Memory


def decide(spec: PoolSpec, memory: Memory, measures: Measures, have: Have, now: int) -> Decision:
    """Say how many machines a pool wants.

    What is wanted is within ``size.min`` and ``size.max`` always, and at least what the schedule
    says, as far as the maximum allows; neither waits for ``cool``.  A pool without operations is as
    large as ``size.start`` and its schedule say.  Jobs that wait for a pool without any machine wake
    it at once, with one machine.

    A machine that was lost changes nothing of what is wanted; so it is replaced.

    Raises:
        ValueError: a cron line of the schedule is wrong.
    """
    size, scale = spec.size, spec.scale
    floor, said = _floor(scale.schedule, now)
    least = min(size.max, max(size.min, floor))
    last = memory.wanted
    if last is None or not scale.ops:
        wanted = min(size.max, max(least, size.start))
        own = "as many as at first" if scale.ops else "its size; it follows no operations"
        why = said if said and wanted == floor else own
        return Decision(wanted, why, replace(memory, wanted=wanted))

    each = _slots_of_one(spec, measures, have)
    # What is joining will take these.
    unmet = max(0, measures.waiting - have.joining * each)
    values = {"waiting": float(unmet), "idle": float(measures.idle), "p95": _p95(measures)}
    # Those that ended waited for what joins, or did, or another machine would not make them quicker.
    seen = dict(values, p95=None if have.joining or measures.idle else values["p95"])
    growing, shrinking = _growing(scale), _shrinking(scale)
    held = {f"+{name}": _holds(rule, seen[name]) for name, rule in growing.items()}
    held |= {f"-{name}": _holds(rule, values[name]) for name, rule in shrinking.items()}
    # What cannot be had is not waited for when there is nothing to do.
    idle = not measures.waiting and not measures.busy
    held[_MISSING] = idle and have.total < last
    since = {name: min(now, memory.since.get(name, now)) for name, holds in held.items() if holds}
    memory = replace(memory, since=since)

    def result(wanted: int, why: str, **changes: Any) -> Decision:
        return Decision(wanted, why, replace(memory, wanted=wanted, **changes))

    if not least <= last <= size.max:
        return result(min(size.max, max(least, last)), said if last < floor else "its bounds")
    if measures.waiting and last == 0 < size.max:
        return result(1, f"{_jobs(measures.waiting)} for a pool without machines", woken=now)

    due = [name for name, rule in growing.items() if _lasts(since.get(f"+{name}"), rule, 1.0, now)]
    if due and last < size.max:
        if have.total < last:
            return result(last, f"{last - have.total} of {last} machines are still to be ordered")
        if left := _left(memory.changed, scale.cool, now):
            return result(last, f"{_worded(due, growing)}, but it changed {left}")
        return result(
            min(size.max, last + scale.add),
            _worded(due, growing),
            since={},
            changed=now,
            removed=None,
            regrets=_regrets(memory, scale, shrinking, now),
        )

    missing = _lasts(since.get(_MISSING), IDLE, 1.0, now) and last > least
    if missing and not _left(memory.changed, scale.cool, now):
        return result(max(least, have.total), "what is missing is not needed any more", changed=now)

    there = min(last, have.total)
    strained = any(_holds(rule, values[name]) for name, rule in growing.items())
    if not (have.joining or strained) and there > least and _removable(measures, have, each, there):
        longer = doubled(1.0, memory.regrets, 2.0**MAX_REGRETS)
        if all(
            _lasts(since.get(f"-{name}"), rule, longer, now) for name, rule in shrinking.items()
        ):
            if left := _left(_later(memory.changed, memory.woken), scale.cool, now):
                return result(last, f"{_worded(shrinking, shrinking)}, but it changed {left}")
            # One that stood for its time was no mistake.
            regrets = memory.regrets if memory.removed is None else max(0, memory.regrets - 1)
            return result(
                there - 1,
                _worded(shrinking, shrinking),
                since={},
                changed=now,
                removed=now,
                regrets=regrets,
            )
    return result(last, "as many as before")


def _floor(schedule: Sequence[Window], now: int) -> tuple[int, str]:
    """Give what a schedule asks for now, and which line of it that is."""
    found = 0, ""
    for window in schedule:
        began = next_after(window.cron, window.zone, now - round(window.lasting * 1000))
        if began <= now and window.size > found[0]:
            found = window.size, f"at least {window.size} since '{window.cron}'"
    return found


def _slots_of_one(spec: PoolSpec, measures: Measures, have: Have) -> int:
    """Give the slots of one machine: as those that are ready have them, else one for each CPU."""
    if have.ready and measures.slots:
        return max(1, measures.slots // have.ready)
    return max(1, ceil(spec.server.cpu))


def _p95(measures: Measures) -> float | None:
    """Give the p95; where nothing ended because there is nothing to do, that is as quick as can be."""
    if measures.p95 is None and not measures.waiting and not measures.busy:
        return 0.0
    return measures.p95


def _growing(scale: Scale) -> dict[str, Rule]:
    rules = {"waiting": scale.waiting, "p95": scale.p95}
    return {name: rule for name, rule in rules.items() if rule} or {"waiting": WAITING}


def _shrinking(scale: Scale) -> Mapping[str, Rule]:
    return scale.remove_when or {"idle": IDLE}


def _holds(rule: Rule, value: float | None) -> bool:
    if value is None:
        return False
    return value > rule.bound if rule.sign == ">" else value < rule.bound


def _lasts(since: int | None, rule: Rule, times: float, now: int) -> bool:
    return since is not None and now - since >= rule.lasting * times * 1000


def _removable(measures: Measures, have: Have, each: int, there: int) -> bool:
    """Tell whether the others would carry what runs."""
    if measures.waiting and there == 1:
        return False
    return measures.busy <= max(0, min(there, have.ready) - 1) * each


def _regrets(memory: Memory, scale: Scale, shrinking: Mapping[str, Rule], now: int) -> int:
    """Count the removals in a row that had to be undone, when machines are added."""
    if memory.removed is None:
        return memory.regrets
    patience = 2 * max(scale.cool, *(rule.lasting for rule in shrinking.values()))
    soon = now - memory.removed <= doubled(patience, memory.regrets, inf) * 1000
    return min(MAX_REGRETS, memory.regrets + 1) if soon else 0


def _later(one: int | None, other: int | None) -> int | None:
    return max((time for time in (one, other) if time is not None), default=None)


def _left(changed: int | None, cool: float, now: int) -> str:
    """Say how long ago it changed, if that is too short a time."""
    if changed is None or now - changed >= cool * 1000:
        return ""
    return f"{max(0, now - changed) // 1000} s ago"


def _jobs(count: int) -> str:
    return "1 job waits" if count == 1 else f"{count} jobs wait"


def _worded(names: Iterable[str], rules: Mapping[str, Rule]) -> str:
    return " and ".join(
        f"{name} {rule.sign} {rule.bound:g}"
        + ("s" if name == "p95" else "")
        + (f" for {rule.lasting:g}s" if rule.lasting else "")
        for name in names
        for rule in (rules[name],)
    )


# -- cheaper ones


@dataclass(frozen=True, slots=True)
class Swap:
    """One machine that is worth replacing."""

    machine: Machine
    offer: Offer
    #: Money that is saved over what remains of its life, in the home's currency, and the share.
    saved: float
    share: float


def consolidate(
    spec: PoolSpec, machines: Iterable[Machine], offers: Iterable[Offer], now: int
) -> Swap | None:
    """Say which machine to replace by a cheaper one, if any.

    What is saved is counted over what remains of the machine's life, less what the new one costs
    while the old one is still there (:data:`OVERLAP`); so one that is soon to go anyway stays.

    Args:
        spec: says from which share on (``scale.consolidate``).
        machines: all of the pool; while one of them joins, drains or leaves, none is replaced.
        offers: those that the pool may take, in the home's currency.
        now: the time.
    """
    least = spec.scale.consolidate
    there = [machine for machine in machines if not machine.state.final]
    cheapest = min(offers, key=lambda offer: offer.price, default=None)
    if least is None or cheapest is None or any(each.state is not State.READY for each in there):
        return None
    best: Swap | None = None
    for machine in there:
        hours = (machine.expires - now) / _HOUR
        stays = machine.hourly * hours
        if stays <= 0:
            continue
        saved = stays - cheapest.price * (hours + OVERLAP / 3600)
        if saved > 0 and saved / stays >= least and (best is None or saved > best.saved):
            best = Swap(machine, cheapest, saved, saved / stays)
    return best
