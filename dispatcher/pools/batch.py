"""How many machines finish a batch by a deadline for the least money.  Pure.

Every machine is paid while it starts, and the cheapest are taken first; so the fewest machines that
meet the deadline cost least, and each further one only makes it quicker.

Times are seconds; money is in one currency, prices are of an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, fsum, inf

from spinal.protocols import Exit, SpinalError, duration

#: Share of the work that is reckoned on top if nobody says otherwise: inputs differ, and so do
#: machines.
SPARE = 0.25

#: By which sums of prices may be off.
_CENT = 1e-9


class TooMuch(SpinalError):
    """The batch cannot be done by the deadline for the money; the text says what it would take."""

    exit_code = Exit.UNREACHED.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is to be done.

    Raises:
        ValueError: a member is not above 0.
    """

    #: Inputs that are left.
    inputs: int
    #: Seconds that one of them takes.
    each: float
    #: Seconds until the deadline.
    left: float
    #: How many of them one machine does at once.
    slots: int = 1
    #: Seconds from the order of a machine until it works.
    start: float = 0.0
    #: Share of the work that is reckoned on top.
    spare: float = SPARE

    def __post_init__(self) -> None:
        if min(self.inputs, self.each, self.left, self.slots) <= 0 or self.start < 0:
            raise ValueError(f"a batch takes more than nothing: {self}")


@dataclass(frozen=True, slots=True)
class Choice:
    """So many machines, the cheapest ones."""

    machines: int
    #: Of an hour, of all of them.
    price: float
    #: Seconds until the last input is done.
    seconds: float
    #: Money for all of them until then.
    cost: float


def choose(
    batch: Batch, prices: Iterable[float], *, there: int = 0, most: int, per_hour: float = inf
) -> Choice:
    """Say how many machines do a batch by its deadline for the least money.

    Args:
        batch: what is to be done.
        prices: of every machine that could be had, with those that are there already.
        there: how many are there already, and do not have to start.
        most: at most so many machines.
        per_hour: at most so much money of an hour for all of them.

    Raises:
        TooMuch: no number of machines meets the deadline within the bounds.
    """
    cheapest = sorted(prices)[:most]
    spent = list(accumulate(cheapest))
    affordable = sum(sum_ <= per_hour + _CENT for sum_ in spent)
    for machines in range(1, affordable + 1):
        seconds = finished(batch, machines, there)
        if seconds <= batch.left:
            price = fsum(cheapest[:machines])
            return Choice(machines, price, seconds, price * seconds / 3600)
    raise TooMuch(_why(batch, cheapest, affordable, there, most, per_hour))


def finished(batch: Batch, machines: int, there: int = 0) -> float:
    """Give the seconds until so many machines have done a batch.

    Those that are there begin at once, and the others when they have started; inputs are not
    divided, so the last ones may keep few slots busy.
    """
    work = batch.inputs * batch.each * (1 + batch.spare)
    early = min(there, machines)
    alone = early * batch.slots * batch.start
    if work <= alone:
        return _whole(batch, work / (early * batch.slots))
    return _whole(batch, batch.start + (work - alone) / (machines * batch.slots))


def _whole(batch: Batch, seconds: float) -> float:
    return max(seconds, batch.each * (1 + batch.spare))


def _why(
    batch: Batch,
    cheapest: Sequence[float],
    affordable: int,
    there: int,
    most: int,
    per_hour: float,
) -> str:
    what = f"{batch.inputs} inputs of {_time(batch.each)} each are not done in {_time(batch.left)}"
    if not affordable:
        if not cheapest:
            return f"{what}: no machine is to be had"
        return f"{what}: the cheapest machine costs {cheapest[0]:g} an hour, and the most is {per_hour:g}"
    best = finished(batch, affordable, there)
    bound = (
        f"more than {affordable} would cost more than {per_hour:g} an hour"
        if affordable < len(cheapest)
        else f"there are no more than {affordable}"
        if affordable < most
        else f"{most} is the most that were allowed"
    )
    machines = "1 machine takes" if affordable == 1 else f"{affordable} machines take"
    return f"{what}: {machines} {_time(ceil(best))}, and {bound}"


def _time(seconds: float) -> str:
    return duration.write(round(seconds, 3) if seconds < 10 else round(seconds))
