"""What a pool is to be: what a pool file says, with all defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: Seconds of a day.
DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What each machine is at least."""

    cpu: float
    #: Bytes.
    ram: int
    disk: int = 0
    #: ``x86_64``, ``arm64`` or ``any``.
    arch: str = "any"
    image: str = "debian-12"
    #: Regions as the vendors write them, or areas such as ``eu``; none means anywhere.
    region: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Work that is packed onto machines together with other work."""

    cpu: float
    #: Bytes.
    ram: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How many machines: within these bounds, and at first so many."""

    min: int = 0
    max: int = 1
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where they are taken from."""

    #: ``cheapest``; kept for further ones.
    prefer: str = "cheapest"
    #: Spread evenly over ``vendor`` or ``region``, or ``none``.
    spread: str = "none"
    #: From at least so many vendors, once there are as many machines.
    at_least_vendors: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A measure that has been beyond a bound for some time: ``> 20 for 30s``."""

    #: ``>`` or ``<``.
    sign: str
    #: Jobs, or seconds.
    bound: float
    #: Seconds.
    lasting: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A schedule: from each time of a cron line on, at least so many machines for a while."""

    cron: str
    zone: str = "UTC"
    #: Seconds.
    lasting: float
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """When the number of machines changes."""

    #: Operations whose jobs are counted.
    ops: Sequence[str] = ()
    #: Add machines when either holds.
    waiting: Rule | None = None
    p95: Rule | None = None
    #: Machines that are added at once.
    add: int = 1
    #: Remove one when all of them hold: measure (``waiting``, ``p95``, ``idle``) -> rule.
    remove_when: Mapping[str, Rule] = field(default_factory=dict[str, Rule])
    #: Seconds between two changes.
    cool: float = 300.0
    schedule: Sequence[Window] = ()
    #: Replace a machine by a cheaper offer when that saves at least this share; none means never.
    consolidate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """What may be spent; none means no bound of the pool's own."""

    max_per_hour: float | None = None
    max_per_month: float | None = None
    #: Of the bounds; of the home where empty.
    currency: str = ""
    #: What it is booked under besides the pool's name.
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What becomes of a machine."""

    #: Seconds after which it is replaced or returned, whatever it does.
    ttl: float = 30 * DAY
    #: ``destroy`` or ``freeze``: what ``down`` does.
    on_down: str = "destroy"
    #: Operations that each machine must answer before it counts.
    self_test: Sequence[str] = ()
    #: Name of an agent's file -> its content; none means the machine agent.
    agents: Mapping[str, str] = field(default_factory=dict[str, str])
    #: What pip installs for them.
    packages: Sequence[str] = ()
    #: Seconds that a machine may take from the order to its self-test.
    join: float = 900.0
    #: Seconds that a machine may take to finish what it runs when it is to go.
    drain: float = 600.0
    #: Seconds after which the pool itself goes down, counted from when it was made; none means never.
    ends: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """See the module."""

    pool: str
    server: Server
    #: Mixed work to be packed instead of equal machines; the machines are then whatever carries it
    #: for the least money, and ``server`` says what each is at least.
    demand: Sequence[Demand] = ()
    size: Size = Size()
    place: Place = Place()
    scale: Scale = Scale()
    money: Money = Money()
    life: Life = Life()
