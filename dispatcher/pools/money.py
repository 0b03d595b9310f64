"""What machines cost, and how much may still be spent.

A machine is paid from the time at which its vendor began to count until it is gone, by the second
with a least time; vendors that count started hours are a :class:`Billing` with a step of an hour.
Where that time is not known it is that of the order; and for budgets, what may exist is paid.

Budgets are hard.  A machine is rented only if everything that is there, and it, could be paid for a
while longer (:func:`room`); and machines are returned before the money for what they still take to
go is used up (:func:`overdue`).  Both look into the next month, so that a month does not begin with
more than its budget allows.  Months are of UTC; times are milliseconds since 1970 UTC; money is in
the currency of the home.

What is not in here is what a vendor charges besides the hours of its machines: traffic, disks that
stay, addresses, taxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import ceil, fsum, inf
from typing import Final

from spinal.agents.provider.offer import Exchange

from .machine import Machine, State
from .spec import Money

#: Seconds for which a machine must be affordable when it is rented.
LEAST: Final = 3600.0

#: Seconds of work that must be affordable, besides the time to go, for a machine to stay.
NOTICE: Final = 900.0

#: Seconds that a vendor may take to delete a machine.
DELETING: Final = 120.0

#: What costs can be told apart by.
BY: Final[Mapping[str, Callable[[Machine], str]]] = {
    "vendor": lambda machine: machine.vendor,
    "region": lambda machine: machine.region,
    "type": lambda machine: machine.type,
    "label": lambda machine: machine.label or machine.pool,
    "pool": lambda machine: machine.pool,
    "machine": lambda machine: machine.name,
}

_HOUR: Final = 3_600_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """How a vendor counts: at least so many seconds, and in steps of so many."""

    minimum: float = 60.0
    step: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A bound on what is spent, which holds for all machines, or those of a pool or label."""

    #: A label of a pool file, or the name of a pool, which is a label as well; empty means all.
    label: str = ""
    per_month: float | None = None
    per_hour: float | None = None
    #: Empty means that of the home.
    currency: str = ""

    def covers(self, pool: str, label: str) -> bool:
        """Tell whether it holds for the machines of a pool."""
        return self.label in ("", pool, label)

    def converted(self, exchange: Exchange) -> Budget:
        """Give it in the currency of the home.

        Raises:
            ValueError: there is no rate for its currency; the text says what to do.
        """
        rate = exchange.rate(self.currency or exchange.currency)
        if rate is None:
            raise ValueError(
                f"nobody knows what {self.currency} is in {exchange.currency}: "
                f"write 'rates: {{{self.currency}: ...}}' into providers.yaml"
            )
        return replace(
            self,
            per_month=None if self.per_month is None else self.per_month * rate,
            per_hour=None if self.per_hour is None else self.per_hour * rate,
            currency=exchange.currency,
        )

    @staticmethod
    def of(pool: str, money: Money) -> Budget:
        """Give the bounds of a pool's own."""
        return Budget(
            label=pool,
            per_month=money.max_per_month,
            per_hour=money.max_per_hour,
            currency=money.currency,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What some machines cost over a span."""

    #: What these machines have in common, in the order in which it was asked for.
    key: tuple[str, ...]
    #: Machines of them that were paid in the span.
    machines: int
    #: Hours that were paid.
    hours: float
    #: Money that they cost.
    spent: float
    #: Money of an hour that they cost now.
    hourly: float
    #: What they will have cost at the end of this month since its beginning, if it goes on as now.
    forecast: float


def month(now: int) -> tuple[int, int]:
    """Give the beginning of the month of a time, and its end, which is the next one's beginning."""
    first = datetime.fromtimestamp(now / 1000, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    year, month = (first.year + 1, 1) if first.month == 12 else (first.year, first.month + 1)
    return _ms(first), _ms(first.replace(year=year, month=month))


def cost(
    machines: Iterable[Machine],
    since: int,
    until: int,
    now: int,
    by: Sequence[str] = ("vendor",),
    billing: Billing = Billing(),
) -> list[Cost]:
    """Say what machines cost from one time up to another, dearest first.

    Costs of spans that follow each other add up to that of the whole.  What has not come about at
    ``now`` is not in ``spent``; see ``forecast``.

    Args:
        machines: records, also of those that are gone.
        since: where the span begins.
        until: where it ends.
        now: the time.
        by: what tells costs apart, names of :data:`BY`; none gives one sum.
        billing: how vendors count.

    Raises:
        ValueError: costs cannot be told apart by that.
    """
    for name in by:
        if name not in BY:
            raise ValueError(f"costs cannot be told apart by {name!r}: take {', '.join(BY)}")
    begin, end = month(now)
    found: dict[tuple[str, ...], Cost] = {}
    for machine in machines:
        span = _paid(machine, since, until, now, billing)
        hourly = machine.hourly if machine.state.costs and _began(machine) is not None else 0.0
        this_month = _paid(machine, begin, end, now, billing) / _HOUR * machine.hourly
        if not (span or hourly or this_month):
            continue
        key = tuple(BY[name](machine) for name in by)
        sum = found.get(key) or Cost(key=key, machines=0, hours=0, spent=0, hourly=0, forecast=0)
        found[key] = Cost(
            key=key,
            machines=sum.machines + (span > 0),
            hours=sum.hours + span / _HOUR,
            spent=sum.spent + span / _HOUR * machine.hourly,
            hourly=sum.hourly + hourly,
            forecast=sum.forecast + this_month + (end - now) / _HOUR * hourly,
        )
    return sorted(found.values(), key=lambda each: (-each.spent, each.key))


def spent(
    machines: Iterable[Machine],
    since: int,
    until: int,
    now: int,
    billing: Billing = Billing(),
    *,
    cautious: bool = False,
) -> float:
    """Give the money that machines cost in a span; ``cautious`` counts what only may exist."""
    return sum(
        _paid(machine, since, until, now, billing, cautious=cautious) / _HOUR * machine.hourly
        for machine in machines
    )


def room(
    budgets: Iterable[Budget],
    machines: Sequence[Machine],
    now: int,
    pool: str,
    label: str = "",
    *,
    billing: Billing = Billing(),
    drain: float = 600.0,
    least: float = LEAST,
) -> float:
    """Give the money of an hour that a pool's further machines may cost, so that every budget holds.

    Everything that costs, or may, counts in full: also what is ordered, unknown, draining or
    leaving.

    Args:
        budgets: in the currency of the home; see :meth:`Budget.converted`.
        machines: all records of all pools, of this month at least.
        now: the time.
        pool: for which.
        label: of that pool.
        billing: how vendors count.
        drain: seconds that a machine may take to finish what it runs.
        least: seconds for which a machine must be affordable; it is rented for longer in any case
            than it would take to return it at once.

    Returns:
        Nothing less than 0; infinity where no budget holds for the pool.
    """
    ahead = max(least, drain + DELETING + 2 * NOTICE)
    found = inf
    for budget in budgets:
        if not budget.covers(pool, label):
            continue
        own = _covered(budget, machines)
        if budget.per_hour is not None:
            hourly = sum(machine.hourly for machine in own if machine.state.costs)
            found = min(found, budget.per_hour - hourly)
        if budget.per_month is not None:
            months = _Months(budget.per_month, own, now, billing, drain, ahead)
            for left, hours in months.left(each for each in own if each.state.costs):
                found = min(found, left / hours)
    # Sums of prices are not exact, and what fits exactly is to fit.
    return max(0.0, found + 1e-9)


def overdue(
    budgets: Iterable[Budget],
    machines: Sequence[Machine],
    now: int,
    *,
    billing: Billing = Billing(),
    drain: float = 600.0,
    harm: Callable[[Machine], float] = lambda machine: 0.0,
) -> list[tuple[Machine, str]]:
    """Say which machines must be drained now, and why, so that no budget is exceeded.

    One of an hour can only be exceeded once it was made smaller than what runs.

    What is not to go could be paid for :data:`NOTICE` more and still be returned; so this is to be
    asked more often than that.  A vendor that takes longer to delete a machine than
    :data:`DELETING` can still make a budget be exceeded, and nothing else can.

    Those go first that do least harm: that are not ready, that ``harm`` says least of, and of these
    the dearest.

    Args:
        budgets: in the currency of the home.
        machines: all records of all pools, of this month at least.
        now: the time.
        billing: how vendors count.
        drain: seconds that a machine may take to finish what it runs.
        harm: how bad it is to lose one, such as the jobs that it runs.
    """
    ahead = drain + DELETING + NOTICE
    going: dict[str, tuple[Machine, str]] = {}

    def order(machine: Machine) -> tuple[bool, float, float]:
        return machine.state is State.READY, harm(machine), -machine.hourly

    for budget in budgets:
        own = _covered(budget, machines)
        if budget.per_hour is not None:
            staying = [one for one in own if one.state.counts and one.name not in going]
            hourly = sum(one.hourly for one in staying)
            for machine in sorted(staying, key=order):
                if hourly <= budget.per_hour + 1e-9:
                    break
                why = f"the budget of {budget.label or 'all'} for an hour is exceeded"
                going[machine.name] = machine, why
                hourly -= machine.hourly
        if budget.per_month is None:
            continue
        months = _Months(budget.per_month, own, now, billing, drain, ahead)
        living = [
            replace(each, state=State.DRAINING, since=now) if each.name in going else each
            for each in own
            if each.state.costs
        ]
        this, following = months.taken(living)
        for machine in sorted((each for each in living if each.state.counts), key=order):
            if all(left >= -1e-9 for left, _ in months.rest(this, following)):
                break
            why = f"the budget of {budget.label or 'all'} for this month would be exceeded"
            going[machine.name] = machine, why
            before = months.takes(machine)
            after = months.takes(replace(machine, state=State.DRAINING, since=now))
            this += after[0] - before[0]
            following += after[1] - before[1]
    return list(going.values())


class _Months:
    """What a monthly budget leaves in this month and in the next one."""

    def __init__(
        self,
        per_month: float,
        own: Sequence[Machine],
        now: int,
        billing: Billing,
        drain: float,
        ahead: float,
    ) -> None:
        begin, end = month(now)
        self._now, self._drain, self._ahead = now, drain, ahead
        self._rest = (end - now) / 1000
        #: A step that has begun is paid whole, in the month in which it begins.
        self._longer = max(billing.minimum, billing.step)
        self._this = per_month - spent(own, begin, end, now, billing, cautious=True)
        self._following = per_month

    def left(self, living: Iterable[Machine]) -> list[tuple[float, float]]:
        """Give, for each month, what is left, and the hours of it that are looked at.

        What is there already is taken off: each machine until it could be gone.
        """
        return self.rest(*self.taken(living))

    def takes(self, machine: Machine) -> tuple[float, float]:
        """Give the money of each month that a machine takes until it could be gone."""
        now, next = self._parts(_until_gone(machine, self._now, self._drain, self._ahead))
        return machine.hourly * now, machine.hourly * next

    def taken(self, living: Iterable[Machine]) -> tuple[float, float]:
        """Give the money of each month that machines take together."""
        parts = [self.takes(machine) for machine in living]
        return fsum(now for now, _ in parts), fsum(next for _, next in parts)

    def rest(self, this: float, following: float) -> list[tuple[float, float]]:
        """Give what is left of each month when so much is taken, and its hours; see :meth:`left`."""
        now, next = self._parts(self._ahead)
        left = (self._this - this, now), (self._following - following, next)
        return [(money, hours) for money, hours in left if hours]

    def _parts(self, seconds: float) -> tuple[float, float]:
        """Give the hours from now on that fall into each month, with a step that has begun."""
        seconds += self._longer
        this = min(seconds, self._rest + self._longer)
        return this / 3600, max(0.0, seconds - self._rest) / 3600


def _until_gone(machine: Machine, now: int, drain: float, ahead: float) -> float:
    """Give the seconds after which a machine is gone, if it is to go as soon as need be."""
    match machine.state:
        case State.DRAINING:
            return max(0.0, drain - (now - machine.since) / 1000) + DELETING
        case State.LEAVING:
            return DELETING
        case _:
            return ahead


def _covered(budget: Budget, machines: Iterable[Machine]) -> list[Machine]:
    return [each for each in machines if budget.covers(each.pool, each.label)]


def _began(machine: Machine, *, cautious: bool = False) -> int | None:
    """Give when a machine began to cost; none if it does not, as far as we know."""
    if machine.state is State.NEVER:
        return None
    if machine.began is not None:
        return machine.began
    return machine.created if cautious or not machine.state.in_doubt else None


def _paid(
    machine: Machine, since: int, until: int, now: int, billing: Billing, *, cautious: bool = False
) -> float:
    """Give the milliseconds that are paid for a machine in a span."""
    began = _began(machine, cautious=cautious)
    if began is None:
        return 0.0
    ended = machine.ended
    if ended is None:
        ended = machine.since if machine.state is State.GONE else now

    def up_to(time: int) -> float:
        lived = min(time, ended, now) - began
        if lived <= 0:
            return 0.0
        step = billing.step * 1000
        return max(billing.minimum * 1000, ceil(lived / step) * step)

    return max(0.0, up_to(until) - up_to(since))


def _ms(time: datetime) -> int:
    return round(time.timestamp() * 1000)
