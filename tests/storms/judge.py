"""Whether a run went well, by what the vendors have seen.  Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Bought:
    """A machine as its vendor has it; times are milliseconds since 1970 UTC."""

    vendor: str
    id: str
    name: str
    region: str
    type: str
    created: int
    deleted: int | None
    #: Of an hour, in the home's currency.
    price: float

    @property
    def pool(self) -> str:
        """The pool that its name says."""
        return self.name.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a pool may cost in an hour from a time on."""

    pool: str
    since: int
    per_hour: float | None


@dataclass
class Verdict:
    """What is wrong."""

    leaked: list[str] = field(default_factory=list[str])
    twice: list[str] = field(default_factory=list[str])
    over: list[str] = field(default_factory=list[str])
    unconverged: list[str] = field(default_factory=list[str])

    @property
    def findings(self) -> list[str]:
        """All of it, in words."""
        return [
            f"{word}: {what}"
            for word, found in (
                ("leaked", self.leaked),
                ("bought twice", self.twice),
                ("over budget", self.over),
                ("not converged", self.unconverged),
            )
            for what in found
        ]


def bought(
    states: Mapping[str, Mapping[str, Any]], prices: Mapping[tuple[str, str, str], float]
) -> list[Bought]:
    """Read ``/__sim/state`` of each vendor.

    Args:
        states: by vendor.
        prices: of an hour, by vendor, region and type.
    """
    return [
        Bought(
            vendor,
            row["id"],
            row["name"],
            row["region"],
            row["type"],
            row["created"],
            row["deleted"],
            prices[vendor, row["region"], row["type"]],
        )
        for vendor, state in states.items()
        for row in state["machines"]
    ]


def judge(machines: Sequence[Bought], bounds: Iterable[Bound], late: Sequence[str]) -> Verdict:
    """Judge a run whose pools are down.

    Args:
        machines: all that there ever were.
        bounds: what each pool was allowed, in the order of time.
        late: what was not reached in time, in words.
    """
    verdict = Verdict(unconverged=list(late))
    verdict.leaked = [f"{_told(one)} still exists" for one in machines if one.deleted is None]
    names: defaultdict[str, list[Bought]] = defaultdict(list)
    for one in machines:
        names[one.name].append(one)
    verdict.twice = [
        f"{name}: {', '.join(map(_told, found))}"
        for name, found in sorted(names.items())
        if len(found) > 1
    ]
    of_pool: defaultdict[str, list[Bound]] = defaultdict(list)
    for bound in bounds:
        of_pool[bound.pool].append(bound)
    for pool, found in sorted(of_pool.items()):
        verdict.over += _over(pool, [one for one in machines if one.pool == pool], found)
    return verdict


def _over(pool: str, machines: Sequence[Bought], bounds: Sequence[Bound]) -> list[str]:
    """Say when the machines of a pool cost more than they may: the worst moment."""
    worst = 0.0, ""
    for one in machines:
        # The cost rises only when a machine comes to be.
        at = one.created
        there = [m for m in machines if m.created <= at and (m.deleted is None or at < m.deleted)]
        cost = sum(m.price for m in there)
        allowed = _allowed(bounds, at)
        if allowed is not None and cost - allowed > max(1e-6, worst[0]):
            names = ", ".join(sorted(f"{m.name} {m.price:.5f}" for m in there))
            worst = cost - allowed, f"{pool}: {cost:.5f} of {allowed:.5f} an hour at {at}: {names}"
    return [worst[1]] if worst[1] else []


def _allowed(bounds: Sequence[Bound], at: int) -> float | None:
    """Give what was allowed at a time; before the first bound, that one."""
    held = [bound for bound in bounds if bound.since <= at] or bounds[:1]
    return held[-1].per_hour


def _told(one: Bought) -> str:
    return f"{one.name} ({one.type} at {one.vendor} {one.region}, {one.id})"
