"""What happens in a run, drawn from its seed.  Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.clouds.faults import KINDS
from tests.clouds.vendors import VENDORS

#: Seconds that the storm lasts while a pool comes, one of these; and while it goes.
STORM: Final = (1.0, 3.0, 6.0, 9.0)
GOING: Final = 3.0

#: How old a stale list is at most, in seconds; must be less than the pace's `settle`.
STALE: Final = 2.5
#: Seconds after which our provider agents stop waiting for one answer.
TIMEOUT: Final = 2.0

#: What an hour of the cheapest machine costs at the dearest of the vendors, in EUR.
PRICE: Final = 0.0092 * 0.92

#: Vendors that show prices, so that these can vanish.
PRICED: Final = tuple(name for name, vendor in VENDORS.items() if vendor.prices)


@dataclass(frozen=True, slots=True)
class Act:
    """Something that is done so many seconds after the storm began."""

    at: float
    #: ``fault``, ``kill``, ``replace``, ``drain`` or ``apply``.
    what: str
    #: A vendor, ``dispatcher``, or a pool.
    whom: str
    how: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A pool, and the money that it may cost in an hour."""

    name: str
    size: Mapping[str, int]
    spread: str
    budget: float | None

    def to_json(self) -> dict[str, Any]:
        """Give it as a pool file has it."""
        money = {} if self.budget is None else {"max_per_hour": self.budget, "currency": "EUR"}
        return {
            "pool": self.name,
            "server": {"cpu": 1, "ram": "1G", "image": "debian-12"},
            "size": dict(self.size),
            "place": {"spread": self.spread},
            "money": money,
            "life": {"self_test": ["/machine/health"], "join": "9s", "drain": "2s", "ttl": "1h"},
        }


@dataclass(frozen=True, slots=True)
class Fates:
    """Shares of machines of which nothing good comes, while the storm lasts."""

    #: They never join; their self-test fails; they fall silent; their vendor takes them away.
    never: float = 0.06
    sick: float = 0.04
    dies: float = 0.06
    taken: float = 0.05


@dataclass(frozen=True, slots=True)
class Script:
    """A run."""

    seed: int
    pools: Sequence[PoolFile]
    #: While the pools come, and while they go.
    coming: Sequence[Act]
    going: Sequence[Act]
    #: Whether they are given time to be whole before they go.
    calm: bool
    fates: Fates = Fates()


def script(seed: int) -> Script:
    """Draw a run."""
    dice = random.Random(seed)
    pools = tuple(_pool(dice, f"s{seed}{letter}") for letter in "ab"[: dice.choice((1, 2))])
    kills, storm = dice.randint(1, 3), dice.choice(STORM)
    theme = dice.choice(_THEMES)
    coming = [
        *(act for _ in range(dice.randint(8, 20)) for act in _faults(dice, storm, theme)),
        *(_kill(dice, storm) for _ in range(kills)),
        *(_change(dice, pool, storm) for pool in pools for _ in range(dice.randint(0, 3))),
    ]
    going = [
        *(act for _ in range(dice.randint(1, 8)) for act in _faults(dice, GOING, _GOING)),
        *(_kill(dice, GOING) for _ in range(dice.randint(0, 2))),
    ]
    calm = dice.random() < 0.7
    return Script(seed, pools, _sorted(coming), _sorted(going), calm)


def _sorted(acts: Sequence[Act]) -> tuple[Act, ...]:
    return tuple(sorted(acts, key=lambda act: act.at))


def _pool(dice: random.Random, name: str) -> PoolFile:
    start = dice.randint(1, 6)
    size = {"min": dice.randint(0, start), "max": min(6, start + 1), "start": start}
    return PoolFile(name, size, dice.choice(("none", "vendor", "vendor")), _budget(dice, size))


def _budget(dice: random.Random, size: Mapping[str, int]) -> float | None:
    # Tight is enough for the machines wherever they are, and for not one more.
    share = dice.choice((1.0, 1.0, 1.3, 2.5, None))
    return None if share is None else round(_enough(size) * share, 4)


def _enough(size: Mapping[str, int]) -> float:
    """Give what all machines of a pool cost at the dearest vendor."""
    return round(size["max"] * PRICE + 0.00005, 4)


def _kill(dice: random.Random, within: float) -> Act:
    whom = "dispatcher" if dice.random() < 0.45 else dice.choice(list(VENDORS))
    # Soon after the beginning it meets what is just being ordered, or deleted.
    at = dice.uniform(0.0, 0.6) if dice.random() < 0.3 else dice.uniform(0.0, within)
    how: dict[str, Any] = {"pause": round(dice.uniform(0.0, 1.5), 2)}
    if dice.random() < 0.5:
        how["on"] = "create"
    return Act(at, "kill", whom, how)


def _change(dice: random.Random, pool: PoolFile, within: float) -> Act:
    at, what = dice.uniform(min(1.5, within), within), dice.choice(("replace", "drain", "apply"))
    if what != "apply":
        return Act(at, what, pool.name, {"all": what == "replace" and dice.random() < 0.5})
    changed = _pool(dice, pool.name)
    budget = pool.budget
    if budget is not None:
        # What is there is not sent away for a lower bound, so only a higher one can be judged.
        budget = max(budget, changed.budget or budget, _enough(changed.size))
    return Act(
        at, "apply", pool.name, {"pool": PoolFile(pool.name, changed.size, changed.spread, budget)}
    )


#: Kinds of fault while machines come, of which one run has some: all; those of orders; what hides
#: machines that exist; what makes a machine that does not run; what is refused.
_THEMES: Final = (
    tuple(KINDS),
    (*KINDS, *(kind for kind, on in KINDS.items() if on == "create")),
    ("created_error", "created_slow", "timeout", "stale", "stale"),
    ("error_state", "created_error", "delete_fails", "stale"),
    ("capacity", "quota", "rate", "auth", "server", "no_price"),
)

#: Kinds of fault while machines go.
_GOING: Final = ("delete_fails", "delete_fails", "stale", "timeout", "server", "auth", "rate")


def _faults(dice: random.Random, within: float, kinds: Sequence[str]) -> list[Act]:
    found = _fault(dice, within, kinds)
    if found.how["kind"] != "created_error" or dice.random() < 0.5:
        return [found]
    # Called refused, and not shown when it is looked for at once: an orphan.
    hidden = {"kind": "stale", "count": 8, "seconds": STALE}
    refused = replace(found, how={**found.how, "status": 429})
    return [Act(found.at, "fault", found.whom, hidden), refused]


def _fault(dice: random.Random, within: float, kinds: Sequence[str]) -> Act:
    kind = dice.choice(kinds)
    # Most orders are made at the beginning.
    at = round(dice.uniform(0.0, within * dice.choice((0.05, 0.1, 0.8))), 2)
    vendor = dice.choice(PRICED if kind == "no_price" else list(VENDORS))
    how: dict[str, Any] = {"kind": kind, "count": dice.randint(1, 3)}
    match kind:
        case "auth" | "server" | "timeout":
            how["on"] = dice.choice(("create", "create", "list", "delete", "any"))
            if kind == "timeout":
                how["seconds"] = TIMEOUT + 0.5
        case "rate":
            how["on"] = dice.choice(("create", "create", "list", "any"))
            how["after"] = dice.choice((None, 1, 2))
        case "created_slow":
            how["seconds"] = dice.choice((0.8, TIMEOUT + 1.0))
        case "stale":
            how["seconds"], how["count"] = round(dice.uniform(0.8, STALE), 2), dice.randint(2, 10)
        case "no_price":
            how["count"] = None
        case _:
            pass
    return Act(at, "fault", vendor, how)
