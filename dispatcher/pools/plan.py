"""What a pool is to rent: which machines, where, for how much, and how far from the least possible.

Pure: the same offers, machines and time give the same plan, whatever order they come in.  A plan has
a hash over what would be rented for which price and for which pool file, so that what was shown is
what is applied.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, inf, isinf
from typing import Final

from spinal.agents.provider.offer import Exchange, Offer
from spinal.protocols import Exit, Json, SpinalError

from .document import check_money, to_json
from .machine import Machine
from .packing import Job, Unplaceable, pack
from .packing.pack import SECONDS
from .packing.pack import room as room_of
from .ranking import Blocked, Ranked, Ranking, gib, money, nearest, rank
from .spec import PoolSpec

#: By which sums of prices may be off.
_CENT: Final = 1e-9


class Impossible(SpinalError):
    """There is no such plan; the text says in one line why, and what comes nearest."""

    exit_code = Exit.UNREACHED.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """See the module.  Money is of an hour, in the home's currency."""

    pool: str
    #: Of the pool file and what is to be rented; 64 hexadecimal digits.
    hash: str
    #: What to rent, machine by machine, in the order in which they are asked for.
    rent: Sequence[Ranked]
    #: Names of the machines that stay.
    keep: Sequence[str]
    #: What all of them cost, with those that stay.
    price: float
    currency: str
    #: Nothing that meets the pool file costs less; and by which share of it the plan is above.
    bound: float
    gap: float
    #: Machines that are wanted and not in the plan; the notes say why.
    missing: int = 0
    #: How it was found.
    method: str = "cheapest first"
    rejected: Sequence[Mapping[str, Json]] = ()
    notes: Sequence[str] = ()
    #: For a demand: what each machine of ``keep`` and then of ``rent`` carries, as a list of
    #: the place in the demand and how many of it.
    carries: Sequence[Sequence[tuple[int, int]]] = field(default=())

    @property
    def machines(self) -> list[dict[str, Json]]:
        """What to rent, by offer."""
        return _rows(self.rent)

    def row(self) -> dict[str, Json]:
        """Give it as JSON."""
        return {
            "pool": self.pool,
            "hash": self.hash,
            "machines": self.machines,
            "keep": list(self.keep),
            "price": self.price,
            "currency": self.currency,
            "bound": self.bound,
            "gap": self.gap,
            "missing": self.missing,
            "method": self.method,
            "rejected": [dict(each) for each in self.rejected],
            "notes": list(self.notes),
            "carries": [[list(pair) for pair in each] for each in self.carries],
        }


def plan(
    spec: PoolSpec,
    offers: Iterable[Offer],
    exchange: Exchange,
    machines: Iterable[Machine],
    wanted: int,
    now: int,
    *,
    blocked: Blocked | None = None,
    room: float = inf,
    limits: Mapping[str, int] | None = None,
    seconds: float = SECONDS,
) -> Plan:
    """Say what to rent so that a pool has a number of machines.

    Nothing is said about machines that are too many: which one goes is decided where it is known
    what they run.

    Args:
        spec: the pool.
        offers: of all vendors, in their own currencies.
        exchange: the home's money.
        machines: records of all pools: those of this pool stay, and what others have of an offer
            or at a vendor counts against its cap and limit.
        wanted: machines that the pool is to have in the end; a demand is packed instead.
        now: milliseconds since 1970 UTC.
        blocked: what is not asked for now.
        room: money of an hour that may still be spent, in the home's currency.
        limits: vendor -> machines that its account may have at once.
        seconds: that packing a demand may take, which should then not be done in the event loop.

    Raises:
        Impossible: not even ``size.min`` machines can be had for the money; no offer fits.
    """
    market = _Market(spec, offers, exchange, machines, now, blocked or {}, room, limits or {})
    return market.packed(seconds) if spec.demand else market.equal(wanted)


def choose_one(
    spec: PoolSpec,
    offers: Iterable[Offer],
    exchange: Exchange,
    machines: Iterable[Machine],
    now: int,
    *,
    wanted: int | None = None,
    blocked: Blocked | None = None,
    room: float = inf,
    limits: Mapping[str, int] | None = None,
) -> Ranked:
    """Give the offer to take for one more machine: the first that :func:`plan` would rent.

    Args:
        spec: as for :func:`plan`.
        offers: as for :func:`plan`.
        exchange: as for :func:`plan`.
        machines: as for :func:`plan`.
        now: as for :func:`plan`.
        wanted: machines that the pool is to have in the end, by which it is known how many of them
            may still be of one vendor; one more than there are if not said.
        blocked: as for :func:`plan`.
        room: as for :func:`plan`.
        limits: as for :func:`plan`.

    Raises:
        Impossible: none can be had, or be paid.
    """
    market = _Market(spec, offers, exchange, machines, now, blocked or {}, room, limits or {})
    return market.one(wanted)


class _Market:
    """What can be had for one pool now."""

    def __init__(
        self,
        spec: PoolSpec,
        offers: Iterable[Offer],
        exchange: Exchange,
        machines: Iterable[Machine],
        now: int,
        blocked: Blocked,
        room: float,
        limits: Mapping[str, int],
    ) -> None:
        if wrong := check_money(spec, exchange):
            raise Impossible(wrong)
        self.spec, self.offers, self.exchange = spec, list(offers), exchange
        self.now, self.blocked = now, blocked
        there = sorted((each for each in machines if each.state.costs), key=lambda m: m.name)
        own = [each for each in there if each.pool == spec.pool]
        self.keep = [each for each in own if each.state.counts]
        self.allowed = min(room, self._bound() - sum(each.hourly for each in own))
        self.ranking: Ranking = rank(self.offers, exchange, spec.server, now, blocked=blocked)
        #: Machines that can still be had: by offer, and by vendor.
        used = Counter((each.vendor, each.region, each.type) for each in there)
        vendors = Counter(each.vendor for each in there)
        self.caps: dict[_Key, float] = {
            each.offer.key: inf
            if each.offer.cap is None
            else max(0, each.offer.cap - used[each.offer.key])
            for each in self.ranking.offers
        }
        self.limits: dict[str, float] = {
            each.offer.vendor: max(0, limits[each.offer.vendor] - vendors[each.offer.vendor])
            if each.offer.vendor in limits
            else inf
            for each in self.ranking.offers
        }

    def _bound(self) -> float:
        most = self.spec.money.max_per_hour
        if most is None:
            return inf
        rate = self.exchange.rate(self.spec.money.currency or self.exchange.currency)
        assert rate is not None, "it has been checked"
        return most * rate

    # -- equal machines

    def equal(self, wanted: int) -> Plan:
        """Plan a number of them."""
        count = max(0, wanted - len(self.keep))
        least = min(count, max(0, self.spec.size.min - len(self.keep)))
        self.enough_vendors(wanted)
        if not self.keep and self.never():
            raise Impossible(self.nothing())
        rent, notes = self.chosen(count)
        if len(rent) < least:
            raise Impossible(self.why(least))
        missing = count - len(rent)
        if missing:
            notes.append(f"{missing} of {wanted} are not in it: {self.why(count)}")
        if len(self.keep) > wanted:
            notes.append(f"has {len(self.keep)} machines, {len(self.keep) - wanted} too many")
        cheapest = self.take(len(rent), _Spread(), spread_out=False)
        return self.made(rent, _price(cheapest), missing=missing, notes=notes)

    def one(self, wanted: int | None) -> Ranked:
        """Choose the next one."""
        wanted = max(len(self.keep) + 1, wanted or 0)
        self.enough_vendors(wanted)
        found, _ = self.chosen(wanted - len(self.keep))
        if not found:
            raise Impossible(self.why(1))
        return found[0]

    def enough_vendors(self, wanted: int) -> None:
        """See to it that there are the vendors that are asked for, be they blocked for now."""
        needed = min(self.spec.place.at_least_vendors, wanted)
        if needed <= 1 or wanted <= len(self.keep):
            return
        fitting = rank(self.offers, self.exchange, self.spec.server, self.now).offers
        vendors = {each.offer.vendor for each in fitting} | {each.vendor for each in self.keep}
        if fitting and len(vendors) < needed:
            raise Impossible(
                f"needs machines of {needed} vendors, and only {', '.join(sorted(vendors))} "
                f"{'has' if len(vendors) == 1 else 'have'} offers that fit: "
                f"place.at_least_vendors: {len(vendors)}"
            )

    def chosen(self, count: int) -> tuple[list[Ranked], list[str]]:
        """Choose as many as the money is enough for, spread as evenly as it allows."""
        best: list[Ranked] = []
        note = ""
        for spread in self.spreads():
            # More machines never cost less, so the most that can be paid is found by halving.
            most = bisect_right(
                range(1, count + 1),
                self.allowed + _CENT,
                key=lambda n: _price(self.take(n, spread)),
            )
            found = self.take(most, spread)
            if len(found) > len(best):
                best, note = found, spread.note
            if len(best) == count:
                break
        return best, [note] if note else []

    def spreads(self) -> list[_Spread]:
        """Give how they may be spread: over all groups, then without the dearest ones."""
        part = _PARTS[self.spec.place.spread]
        groups = list(
            dict.fromkeys(
                part(each.offer.key)
                for each in self.ranking.offers
                if self.caps[each.offer.key] > 0 and self.limits[each.offer.vendor] > 0
            )
        )
        return [
            _Spread(part, groups[:n], f"too dear for the budget: {_worded(groups[n:])}")
            if n < len(groups)
            else _Spread(part)
            for n in range(len(groups), 0, -1)
        ]

    def take(self, count: int, spread: _Spread, *, spread_out: bool = True) -> list[Ranked]:
        """Take machines one by one: of the groups with fewest the cheapest.

        Where as many vendors are still missing as machines, the next one is of another vendor.

        Args:
            count: how many.
            spread: over which groups.
            spread_out: whether several vendors are needed.

        Returns:
            Fewer where no more can be had.
        """
        caps, limits = dict(self.caps), dict(self.limits)
        keys = [(each.vendor, each.region, each.type) for each in self.keep]
        seen = {key[0] for key in keys}
        had = Counter(spread.part(key) for key in keys)
        vendors = min(self.spec.place.at_least_vendors, len(keys) + count) if spread_out else 0
        groups: dict[_Group, deque[Ranked]] = {}
        for each in self.ranking.offers:
            group = spread.part(each.offer.key)
            if spread.only is None or group in spread.only:
                groups.setdefault(group, deque()).append(each)
        taken: list[Ranked] = []
        while len(taken) < count:
            fresh = count - len(taken) <= vendors - len(seen)
            heads: list[tuple[int, int, Ranked]] = []
            for group, ranked in groups.items():
                while ranked and not (
                    caps[ranked[0].offer.key] > 0 and limits[ranked[0].offer.vendor] > 0
                ):
                    ranked.popleft()
                for each in ranked:
                    free = caps[each.offer.key] > 0 and limits[each.offer.vendor] > 0
                    if free and not (fresh and each.offer.vendor in seen):
                        heads.append((had[group], each.rank, each))
                        break
            if not heads:
                break
            best = min(heads, key=lambda head: head[:2])[2]
            caps[best.offer.key] -= 1
            limits[best.offer.vendor] -= 1
            seen.add(best.offer.vendor)
            had[spread.part(best.offer.key)] += 1
            taken.append(best)
        return taken

    def why(self, count: int) -> str:
        """Say why so many machines cannot be had."""
        least = min(
            (self.take(count, spread) for spread in self.spreads()),
            key=lambda found: (-len(found), _price(found)),
            default=list[Ranked](),
        )
        if not least:
            return self.nothing()
        if len(least) < count:
            lacking = self.spec.place.at_least_vendors - len(
                {each.offer.vendor for each in least} | {each.vendor for each in self.keep}
            )
            also = f" (another {lacking} of other vendors are needed)" if lacking > 0 else ""
            return (
                f"only {len(least)} of {count} can be had now{also}: the others are blocked, "
                f"or at the end of their caps and limits"
            )
        return self.too_dear(count, _price(least))

    def never(self) -> bool:
        """Whether no offer that there is can ever do, whatever becomes of blocks and budgets."""
        reasons = {each.reason for each in self.ranking.rejected}
        return bool(self.offers) and not self.ranking.offers and "blocked" not in reasons

    def nothing(self) -> str:
        """Say why not one machine can be had."""
        if self.ranking.offers:
            return "all that fits is at the end of its caps and limits"
        return nearest(self.offers, self.exchange, self.spec.server, self.now, blocked=self.blocked)

    def too_dear(self, count: int, least: float) -> str:
        """Say what is lacking."""
        currency = self.exchange.currency
        machines = f"{count} machine{'s' * (count != 1)}"
        kept = f" beside the {len(self.keep)} that stay" if self.keep else ""
        return (
            f"over budget: {machines}{kept} cost at least {money(least, currency)}/h, and "
            f"{money(max(0.0, self.allowed), currency)}/h may be spent"
        )

    # -- mixed work

    def packed(self, seconds: float) -> Plan:
        """Plan what carries the demand."""
        offers = [
            replace(each.offer, cap=None if isinf(cap) else int(cap))
            for each in self.ranking.offers
            if (cap := self.caps[each.offer.key]) > 0
        ]
        if not offers and not self.keep:
            raise Impossible(self.nothing())
        ranked = {each.offer.key: each for each in self.ranking.offers}
        arch = self.spec.server.arch
        jobs = [
            Job(cpu=each.cpu, ram=each.ram, count=each.count, arch=arch)
            for each in self.spec.demand
        ]
        try:
            found = pack(
                jobs,
                offers,
                running=[room_of(each.cpu, each.ram, each.arch) for each in self.keep],
                limits={vendor: int(n) for vendor, n in self.limits.items() if not isinf(n)},
                most=max(0, self.spec.size.max - len(self.keep)),
                seconds=seconds,
            )
        except Unplaceable as exc:
            raise Impossible(f"{exc}; {self.largest()}") from exc
        currency = self.exchange.currency
        if found.price > self.allowed + _CENT:
            raise Impossible(
                f"over budget: what carries the demand costs {money(found.price, currency)}/h, "
                f"by no way less than {money(found.bound, currency)}/h, and "
                f"{money(max(0.0, self.allowed), currency)}/h may be spent"
            )
        carries: list[Sequence[tuple[int, int]]] = [()] * len(self.keep)
        rent: list[Ranked] = []
        for carrier in found.carriers:
            if carrier.running is not None:
                carries[carrier.running] = carrier.jobs
            elif carrier.offer is not None:
                rent.append(ranked[offers[carrier.offer].key])
                carries.append(carrier.jobs)
        idle = [each.name for each, jobs in zip(self.keep, carries, strict=False) if not jobs]
        notes = [f"carries nothing: {', '.join(idle)}"] if idle else []
        place = self.spec.place
        if place.spread != "none" or place.at_least_vendors > 1:
            notes.append("a demand is packed for the least money, and not spread")
        return self.made(rent, found.bound, notes=notes, method=found.method, carries=carries)

    def largest(self) -> str:
        """Say what could be had."""
        if not self.ranking.offers:
            return self.nothing()
        large = max(self.ranking.offers, key=lambda each: (each.offer.cpu, each.offer.ram)).offer
        return (
            f"the largest is {large.type} at {large.vendor} with {large.cpu:g} cpu {gib(large.ram)}"
            f", and size.max is {self.spec.size.max}"
        )

    # -- the result

    def made(
        self,
        rent: Sequence[Ranked],
        bound: float,
        *,
        missing: int = 0,
        notes: Sequence[str] = (),
        method: str = "cheapest first",
        carries: Sequence[Sequence[tuple[int, int]]] = (),
    ) -> Plan:
        """Make the plan of what is to be rented, and the least that it could cost."""
        stay = sum(each.hourly for each in self.keep)
        price = stay + _price(rent)
        bound = min(price, stay + bound)
        return Plan(
            pool=self.spec.pool,
            hash=_hash(self.spec, rent),
            rent=tuple(rent),
            keep=tuple(each.name for each in self.keep),
            price=price,
            currency=self.exchange.currency,
            bound=bound,
            gap=0.0 if price - bound <= _CENT else price / bound - 1 if bound else inf,
            missing=missing,
            method=method,
            rejected=self.ranking.counted(),
            notes=(*notes, *self.warnings(rent)),
            carries=carries,
        )

    def warnings(self, rent: Sequence[Ranked]) -> list[str]:
        """Tell what somebody should know before it is applied."""
        notes: list[str] = []
        old = dict.fromkeys(
            f"{each.offer.type} at {each.offer.vendor}" for each in rent if each.stale
        )
        if old:
            notes.append(f"prices that were learned long ago: {', '.join(old)}")
        server = self.spec.server
        for each in self.keep:
            other = server.arch not in ("any", each.arch)
            if other or each.cpu < server.cpu or each.ram < server.ram:
                notes.append(
                    f"{each.name} stays with {each.cpu:g} cpu, {gib(each.ram)}, {each.arch}: "
                    f"less than the file says (spinal pool replace)"
                )
        return notes


_Key = tuple[str, str, str]
_Group = tuple[str, ...]

#: What machines are spread over -> the group of an offer.
_PARTS: Final[Mapping[str, Callable[[_Key], _Group]]] = {
    "none": lambda key: (),
    "vendor": lambda key: key[:1],
    "region": lambda key: key[:2],
}


@dataclass(frozen=True, slots=True)
class _Spread:
    """Groups that machines are spread over evenly."""

    part: Callable[[_Key], _Group] = _PARTS["none"]
    #: Only over these.
    only: Sequence[_Group] | None = None
    note: str = ""


def _price(ranked: Iterable[Ranked]) -> float:
    return fsum(each.offer.price for each in ranked)


def _worded(groups: Iterable[_Group]) -> str:
    return ", ".join(" ".join(group) for group in groups)


def _rows(rent: Iterable[Ranked]) -> list[dict[str, Json]]:
    counts = Counter(each.offer.key for each in rent)
    first = {each.offer.key: each for each in rent}
    return [
        {
            "vendor": each.offer.vendor,
            "region": each.offer.region,
            "type": each.offer.type,
            "arch": each.offer.arch,
            "cpu": each.offer.cpu,
            "ram": each.offer.ram,
            "price": each.offer.price,
            "currency": each.offer.currency,
            "listed": {"price": each.listed.price, "currency": each.listed.currency},
            "count": counts[key],
        }
        for key, each in sorted(first.items(), key=lambda pair: (pair[1].offer.price, pair[0]))
    ]


def _hash(spec: PoolSpec, rent: Iterable[Ranked]) -> str:
    """Hash what is shown and agreed to; the age of a price is no part of it."""
    said = {"pool": to_json(spec), "machines": _rows(rent)}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
