"""Offers of all vendors in one currency, cheapest first; and what is not taken, and why."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

from spinal.agents.provider import area
from spinal.agents.provider.offer import Exchange, Offer
from spinal.protocols import Json, duration

from .spec import Server

#: What is blocked: vendor, region and type, an empty one for all -> until when (milliseconds since
#: 1970 UTC), and why.
Blocked = Mapping[tuple[str, str, str], tuple[int, str]]

#: Seconds after which a price is marked as old.
STALE: Final = 30 * 86_400.0

#: Offers that :meth:`Ranking.counted` shows of each reason.
EXAMPLES: Final = 3

_G: Final = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """An offer that may be taken."""

    #: From 1, the cheapest first.
    rank: int
    #: In the currency that was asked for.
    offer: Offer
    #: As the vendor gave it: a machine is paid in that currency.
    listed: Offer
    #: Seconds since the price was learned, and whether that is too long ago to be relied on.
    age: float
    stale: bool

    def row(self) -> dict[str, Json]:
        """Give it as JSON."""
        offer = self.offer
        return {
            "rank": self.rank,
            "vendor": offer.vendor,
            "region": offer.region,
            "area": offer.area,
            "type": offer.type,
            "arch": offer.arch,
            "cpu": offer.cpu,
            "ram": offer.ram,
            "disk": offer.disk,
            "price": offer.price,
            "currency": offer.currency,
            "listed": {"price": self.listed.price, "currency": self.listed.currency},
            "source": offer.source,
            "age": self.age,
            "stale": self.stale,
            "cap": offer.cap,
        }


@dataclass(frozen=True, slots=True)
class Rejected:
    """An offer that is not taken."""

    offer: Offer
    #: In a word or two, by which they are counted: ``too small``, ``other region`` ...
    reason: str
    #: What it has instead.
    detail: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """All offers, sorted out."""

    offers: Sequence[Ranked]
    rejected: Sequence[Rejected]

    def counted(self) -> list[dict[str, Json]]:
        """Give how many were rejected for each reason, most first, with some of them."""
        return counted(self.rejected)


def counted(rejected: Iterable[Rejected]) -> list[dict[str, Json]]:
    """Count what was rejected by reason, most first; each with the cheapest of them."""
    found = list(rejected)
    times = Counter(each.reason for each in found)
    return [
        {
            "reason": reason,
            "count": count,
            "examples": [
                f"{_named(each.offer)}: {each.detail}" for each in found if each.reason == reason
            ][:EXAMPLES],
        }
        for reason, count in sorted(times.items(), key=lambda each: (-each[1], each[0]))
    ]


def rank(
    offers: Iterable[Offer],
    exchange: Exchange,
    server: Server,
    now: int,
    *,
    blocked: Blocked | None = None,
    most: float | None = None,
    stale: float = STALE,
) -> Ranking:
    """Sort offers out: what a server may be, cheapest first, and what it may not be.

    Args:
        offers: of all vendors, in their own currencies.
        exchange: the currency to compare them in.
        server: what each machine is at least, and where.
        now: milliseconds since 1970 UTC.
        blocked: what is not asked for now.
        most: an hour may cost so much in the currency of ``exchange``; none means any price.
        stale: seconds after which a price is marked as old; it is taken all the same.

    Returns:
        The same for offers in any order: equal prices are in the order of vendor, region and type.
    """
    kept: list[tuple[Offer, Offer]] = []
    rejected: list[Rejected] = []
    for offer in sorted(offers, key=lambda each: each.key):
        wrong = next((said for check in _CHECKS if (said := check(offer, server))), None)
        wrong = wrong or _unpriced(offer, exchange) or _block(offer, blocked or {}, now)
        priced = None if wrong else exchange.of(offer)
        if priced is not None and most is not None and priced.price > most:
            wrong = "over budget", f"{money(priced.price, priced.currency)} an hour"
        if wrong or priced is None:
            rejected.append(Rejected(offer, *(wrong or ("no price", "none is known"))))
        else:
            kept.append((priced, offer))
    kept.sort(key=lambda each: (each[0].price, each[0].key))
    rejected.sort(key=lambda each: (each.offer.price, each.offer.key))
    return Ranking(
        [
            Ranked(
                rank=place,
                offer=priced,
                listed=listed,
                age=(age := max(0.0, (now - listed.as_of) / 1000)),
                stale=age > stale,
            )
            for place, (priced, listed) in enumerate(kept, 1)
        ],
        rejected,
    )


def nearest(
    offers: Iterable[Offer],
    exchange: Exchange,
    server: Server,
    now: int,
    *,
    blocked: Blocked | None = None,
) -> str:
    """Say in one line why no offer carries a server, and what comes nearest.

    Args:
        offers: all of them, of which none may be taken.
        exchange: as for :func:`rank`.
        server: as for :func:`rank`.
        now: as for :func:`rank`.
        blocked: as for :func:`rank`.
    """
    found = list(offers)
    if not found:
        return "there are no offers: no provider agent has given any (spinal provider check)"
    if said := _nowhere(found, server):
        return said
    here = [each for each in found if not _other_region(each, server)]
    arch = [each for each in here if not _other_arch(each, server)]
    if not arch:
        return f"no offer in {_where(server)} is {server.arch}: write arch: any"
    where = f" in {_where(server)}" if server.region else ""
    for noun, wanted, size, shown in (
        ("cpu", server.cpu, _cpu, f"{server.cpu:g} cpu"),
        ("ram", server.ram, _ram, f"{gib(server.ram)} of ram"),
        ("disk", server.disk, _disk, f"{gib(server.disk)} of disk"),
    ):
        large = max(arch, key=lambda each: (size(each), -each.price))
        if noun == "disk" and any(each.disk == 0 for each in arch):
            continue
        if size(large) < wanted:
            return f"no offer{where} has {shown}; the largest is {_told(large, exchange)}"
    fits = [each for each in arch if not _too_small(each, server)]
    if not fits:
        near = min(arch, key=lambda each: (_lacking(each, server), each.price, each.key))
        return (
            f"no offer{where} has {server.cpu:g} cpu and {gib(server.ram)} of ram; "
            f"the nearest is {_told(near, exchange)}"
        )
    currencies = sorted({each.currency for each in fits if exchange.rate(each.currency) is None})
    priced = [each for each in fits if _unpriced(each, exchange) is None]
    if not priced:
        if currencies:
            return (
                f"no rate from {', '.join(currencies)} to {exchange.currency} for the offers that "
                f"fit: write it into providers.yaml: rates: {{{currencies[0]}: 0.92}}"
            )
        return f"no offer that fits has a price; the nearest is {_named(fits[0])}"
    cheapest = min(priced, key=lambda each: (_priced(each, exchange), each.key))
    blocks = [_block(each, blocked or {}, now) for each in priced]
    if all(blocks):
        # Without until when: what a pool lacks is told again whenever it is put another way.
        _, why = block_of(cheapest, blocked or {}, now) or (0, "")
        return f"every offer that fits is blocked; {_named(cheapest)}: {why}"
    free = [each for each, block in zip(priced, blocks, strict=True) if block is None]
    cheapest = min(free, key=lambda each: (_priced(each, exchange), each.key))
    return f"the cheapest offer that fits is {_told(cheapest, exchange)}"


def block_of(offer: Offer, blocked: Blocked, now: int) -> tuple[int, str] | None:
    """Give until when an offer is not asked for, and why; none if it may be."""
    vendor, region, type = offer.key
    found = [
        blocked[key]
        for key in ((vendor, "", ""), (vendor, region, ""), (vendor, "", type), offer.key)
        if key in blocked and blocked[key][0] > now
    ]
    return max(found, default=None)


def money(amount: float, currency: str) -> str:
    """Write an amount as people read it: ``0.0336 USD``, ``9.68 EUR``."""
    return f"{amount:.4f} {currency}" if amount < 1 else f"{amount:.2f} {currency}"


def gib(size: int) -> str:
    """Write a number of bytes as pool files have them: ``8G``, ``512M``."""
    return f"{size / _G:.4g}G" if size >= _G else f"{size / 1024**2:.4g}M"


# -- what an offer is rejected for: in a word or two, and what it has instead

_Wrong = tuple[str, str] | None


def _other_arch(offer: Offer, server: Server) -> _Wrong:
    if server.arch in ("any", offer.arch):
        return None
    return "other arch", f"is {offer.arch}"


def _other_region(offer: Offer, server: Server) -> _Wrong:
    if area.wanted(offer.region, offer.area, server.region):
        return None
    return "other region", f"is in {offer.region}"


def _too_small(offer: Offer, server: Server) -> _Wrong:
    # A disk of 0 is rented by itself, in the size that is asked for.
    disk = offer.disk or server.disk
    if offer.cpu >= server.cpu and offer.ram >= server.ram and disk >= server.disk:
        return None
    told = f"has {offer.cpu:g} cpu, {gib(offer.ram)}"
    return "too small", told if disk >= server.disk else f"{told}, {gib(disk)} of disk"


_CHECKS: Final[Sequence[Callable[[Offer, Server], _Wrong]]] = (
    _other_arch,
    _other_region,
    _too_small,
)


def _unpriced(offer: Offer, exchange: Exchange) -> _Wrong:
    if not (isfinite(offer.price) and offer.price > 0):
        return "no price", "its price is not known"
    rate = exchange.rate(offer.currency)
    if rate is None or not (isfinite(rate) and rate > 0):
        return "no rate", f"costs {money(offer.price, offer.currency)}, without a rate"
    return None


def _block(offer: Offer, blocked: Blocked, now: int) -> _Wrong:
    found = block_of(offer, blocked, now)
    if found is None:
        return None
    until, why = found
    return "blocked", f"for {duration.write(max(1, round((until - now) / 1000)))}: {why}"


# -- what is nearest


def _nowhere(offers: Sequence[Offer], server: Server) -> str:
    """Say which regions there are; empty if there is one of those that are wanted."""
    if not server.region or any(not _other_region(each, server) for each in offers):
        return ""
    areas = {each.area for each in offers if each.area}
    known = sorted(areas) + sorted({each.region for each in offers} - areas)
    wanted = server.region[0]
    near = difflib.get_close_matches(wanted.lower(), known, 3)
    did = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"no offer is in {_where(server)}{did}; there are {_listed(known)}"


def _listed(words: Sequence[str], most: int = 20) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _where(server: Server) -> str:
    return " or ".join(server.region) or "any region"


def _cpu(offer: Offer) -> float:
    return offer.cpu


def _ram(offer: Offer) -> float:
    return offer.ram


def _disk(offer: Offer) -> float:
    return offer.disk


def _lacking(offer: Offer, server: Server) -> float:
    """Give by how much an offer is too small, as a share of what is asked for."""
    pairs = (
        (offer.cpu, server.cpu),
        (offer.ram, server.ram),
        (offer.disk or server.disk, server.disk),
    )
    return sum(max(0.0, 1 - has / wanted) for has, wanted in pairs if wanted)


def _priced(offer: Offer, exchange: Exchange) -> float:
    found = exchange.of(offer)
    return offer.price if found is None else found.price


def _named(offer: Offer) -> str:
    return f"{offer.type} at {offer.vendor} in {offer.region}"


def _told(offer: Offer, exchange: Exchange) -> str:
    priced = exchange.of(offer) or offer
    price = f"for {money(priced.price, priced.currency)}/h" if priced.price > 0 else "with no price"
    return f"{_named(offer)} with {offer.cpu:g} cpu {gib(offer.ram)} {price}"
