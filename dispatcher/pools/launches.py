"""Which offerings are not asked for now, and how many machines of one may be asked for at once.

A refusal blocks what it is about, for as long as its kind is likely to last, and longer each time:
that one vendor has no more machines of one type somewhere says nothing about its other types, but
that its key is wrong says all.  An offering that has not been tried is asked for one machine; each
one that is had doubles how many may be asked for at once, and a refusal makes that one again.

A :class:`Launches` is a value: each event makes another one.  Times are milliseconds since 1970 UTC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, NamedTuple

from spinal.protocols.retry import doubled

from .machine import Machine, State

#: Vendor, region and type.  In the key of a block, an empty one stands for all.
Offering = tuple[str, str, str]

#: Most machines of one offering that may be asked for at once.
MAX_AT_ONCE: Final = 16

#: Longest pause that a vendor may ask for, in seconds.
MAX_AFTER: Final = 3600.0

#: Seconds after a block in which a refusal is another one in a row.
IN_A_ROW: Final = 3600.0

#: Types of one vendor that do not take an image before the others are taken to be the same.
MAX_UNFIT: Final = 4

#: Blocks and offerings that are remembered, and characters of what a vendor said.
MAX_KEPT: Final = 4096
MAX_SAID: Final = 500


class _Kind(NamedTuple):
    """What a refusal blocks, as the parts of an offering; for how many seconds first, and at most."""

    parts: int
    first: float
    most: float


_VENDOR, _REGION, _TYPE = 1, 2, 3

#: Kind of a refusal -> what follows.
_KINDS: Final[Mapping[str, _Kind]] = {
    "capacity": _Kind(_TYPE, 180.0, 1800.0),
    "quota": _Kind(_REGION, 900.0, 7200.0),
    # Somebody has to look at it; the next try finds out whether somebody did.
    "auth": _Kind(_VENDOR, 600.0, 600.0),
    "rate": _Kind(_VENDOR, 10.0, 300.0),
    "invalid": _Kind(_TYPE, 3600.0, 3600.0),
    "transient": _Kind(_TYPE, 15.0, 300.0),
    "unknown": _Kind(_TYPE, 15.0, 300.0),
}


@dataclass(frozen=True, slots=True)
class Block:
    """Until when something is not asked for, and why."""

    until: int
    kind: str
    #: The vendor's words.
    said: str
    #: Blocks of this kind in a row before it.
    times: int = 0


@dataclass(frozen=True, slots=True)
class Launches:
    """See the module."""

    blocks: Mapping[Offering, Block] = field(default_factory=lambda: MappingProxyType({}))
    #: Machines that may be asked for at once; where nothing is noted, one.
    at_once: Mapping[Offering, int] = field(default_factory=lambda: MappingProxyType({}))
    #: By how much blocks last longer than usual.
    pauses: float = 1.0

    def refused(
        self, offering: Offering, kind: str, said: str, now: int, after: float | None = None
    ) -> Launches:
        """Note a refusal.  A block that is in force is never made shorter by another one.

        Args:
            offering: what was asked for.
            kind: as the provider agent says; one that nobody knows is taken as ``unknown``.
            said: the vendor's words, of which the first :data:`MAX_SAID` characters are kept.
            now: the time.
            after: seconds for which the vendor asked for a pause, which is kept up to
                :data:`MAX_AFTER`; none if it did not.
        """
        rule = _KINDS.get(kind, _KINDS["unknown"])
        key = _scope(offering, rule.parts)
        last = self.blocks.get(key)
        times = 0
        row = IN_A_ROW * self.pauses * 1000
        if last is not None and last.kind == kind and now < last.until + row:
            # Those that were asked for together are refused together, which is one refusal.
            times = last.times + (now >= last.until)
        pause = doubled(rule.first, times, rule.most) * self.pauses
        if after is not None:
            pause = max(1.0, min(after, MAX_AFTER))
        block = Block(now + round(pause * 1000), kind, said[:MAX_SAID], times)
        if last is not None and last.until > block.until:
            block = last
        kept = {each: n for each, n in self.at_once.items() if not _within(each, key)}
        return replace(self, blocks=_newest({**self.blocks, key: block}, now), at_once=kept)

    def unfit(self, offering: Offering, said: str, now: int) -> Launches:
        """Note that a vendor did not understand an order, for launches of one image alone.

        That several of its types do not take the image is taken to be so of all, so that a
        misspelt image is not asked for a hundred times.
        """
        found = self.refused(offering, "invalid", said, now)
        vendor = offering[0]
        types = {type for at, _, type in found.blocked(now) if at == vendor}
        if len(types) < MAX_UNFIT:
            return found
        return found.refused((vendor, "", ""), "invalid", said, now)

    def launched(self, offering: Offering, now: int) -> Launches:
        """Note that a vendor took an order.

        Blocks that are over are forgotten where it was had; one that is in force stays, for it may
        be newer than the order.
        """
        more = min(MAX_AT_ONCE, 2 * self.at_once.get(offering, 1))
        kept = {
            key: block
            for key, block in self.blocks.items()
            if block.until > now or not _within(offering, key)
        }
        at_once = {key: n for key, n in self.at_once.items() if key != offering}
        while len(at_once) >= MAX_KEPT:
            del at_once[next(iter(at_once))]
        return replace(self, blocks=kept, at_once={**at_once, offering: more})

    def block(self, offering: Offering, now: int) -> Block | None:
        """Give what keeps an offering from being asked for, the longest; none if nothing does."""
        found = (self.blocks.get(_scope(offering, parts)) for parts in (_VENDOR, _REGION, _TYPE))
        return max(
            (block for block in found if block is not None and block.until > now),
            key=lambda block: block.until,
            default=None,
        )

    def room(self, offering: Offering, asked: int, now: int) -> int:
        """Give how many machines of an offering may be asked for now.

        Args:
            offering: which.
            asked: machines of it that were asked for and have no answer yet; see :func:`asked`.
            now: the time.
        """
        if self.block(offering, now) is not None:
            return 0
        return max(0, self.at_once.get(offering, 1) - asked)

    def blocked(self, now: int) -> dict[Offering, Block]:
        """Give all blocks that are in force."""
        return {key: block for key, block in self.blocks.items() if block.until > now}


def asked(machines: Iterable[Machine]) -> Counter[Offering]:
    """Count the machines that a vendor was asked for, and that may or may not be, by offering."""
    return Counter(
        (machine.vendor, machine.region, machine.type)
        for machine in machines
        if machine.state in (State.ORDERED, State.UNKNOWN)
    )


def _scope(offering: Offering, parts: int) -> Offering:
    vendor, region, type = offering
    return vendor, region if parts > _VENDOR else "", type if parts > _REGION else ""


def _within(offering: Offering, key: Offering) -> bool:
    return all(part in ("", own) for part, own in zip(key, offering, strict=True))


def _newest(blocks: Mapping[Offering, Block], now: int) -> dict[Offering, Block]:
    """Leave out what is long over, and of too many those that end first."""
    kept = [(k, block) for k, block in blocks.items() if block.until + IN_A_ROW * 1000 > now]
    if len(kept) > MAX_KEPT:
        kept = sorted(kept, key=lambda each: each[1].until)[-MAX_KEPT:]
    return dict(kept)
