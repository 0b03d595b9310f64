"""What is done next about one machine: a table of its states, and pure functions behind it.

A machine's record is written before the vendor is asked for it, and is over only when the vendor
has shown that it is gone.  What a vendor answered or did not answer is never believed by itself:
an order without an answer is looked up until that is sure, and counts against the budgets until
then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from spinal.agents.provider.pace import Pace
from spinal.protocols import Json
from spinal.protocols.retry import doubled

from .machine import Machine, State

#: The longest pause before a delete that failed is tried again, in seconds; the first is 2.
MAX_PAUSE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What the vendor says of a machine."""

    #: ``starting``, ``running``, ``stopped``, ``error`` or ``ending``.
    state: str
    id: str = ""
    said: str = ""
    created: int | None = None
    region: str = ""
    type: str = ""
    pool: str = ""

    @staticmethod
    def of(row: Mapping[str, Any]) -> Sight:
        """Read what a provider agent says; what it does not say is empty."""
        texts = {name: str(row.get(name) or "") for name in Sight.__slots__ if name != "created"}
        return Sight(**texts, created=row.get("created"))

    def row(self) -> dict[str, Json]:
        """Give it as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Listing:
    """A vendor's list of our machines."""

    #: When it was asked for.
    asked: int
    machines: Mapping[str, Sight] = field(default_factory=dict[str, Sight])


@dataclass(frozen=True, slots=True)
class Seen:
    """What a decision about a machine is made by."""

    now: int
    listing: Listing | None = None
    #: Its agents that are on the bus, and calls that they run.
    agents: int = 0
    running: int = 0
    #: Since when none of them is there, if there was one.
    away: int | None = None
    #: Whether the self-test was passed; what it said if it was not.
    passed: bool | None = None
    test: str = ""


class Ask(Enum):
    """What somebody has to be asked to do."""

    NOTHING = "nothing"
    #: Run the self-test.
    TEST = "test"
    #: Delete it at the vendor.
    DESTROY = "destroy"


@dataclass(frozen=True, slots=True)
class Step:
    """The machine as it is now, and what is to be asked for; the event to remember, if any."""

    machine: Machine
    ask: Ask = Ask.NOTHING
    event: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a pool grants its machines, in seconds."""

    join: float = 900.0
    drain: float = 600.0


def moved(machine: Machine, state: State, now: int, **members: Any) -> Machine:
    """Give a machine in another state."""
    ended = now if state is State.GONE and machine.ended is None else machine.ended
    fresh: dict[str, Any] = {
        "tries": 0,
        "due": 0,
        "unseen": 0,
        "looked": 0,
        "ending": False,
        "ended": ended,
    }
    fresh |= members
    return replace(machine, state=state, since=now, **fresh)


def leaving(machine: Machine, now: int, why: str) -> Machine:
    """Give a machine that is to be deleted."""
    return moved(machine, State.LEAVING, now, why=why)


def draining(machine: Machine, now: int, why: str) -> Machine:
    """Give a machine that is to finish what it runs, and to go."""
    return moved(machine, State.DRAINING, now, why=why)


def existing(machine: Machine, sight: Sight | None, now: int) -> Machine:
    """Give a machine that its vendor has."""
    began = machine.created if sight is None or sight.created is None else sight.created
    # The vendor's clock is not ours: a machine cannot be older than its order.
    began = min(max(began, machine.created), now)
    id = machine.id if sight is None else sight.id
    return moved(machine, State.BOOTING, now, id=id, began=began)


def tend(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    """Say what is done about a machine."""
    machine = _looked(machine, seen)
    return _BY_STATE[machine.state](machine, seen, terms, pace)


def _looked(machine: Machine, seen: Seen) -> Machine:
    """Count the look-ups since its last change that do not show a machine."""
    listing = seen.listing
    if listing is None or listing.asked <= max(machine.since, machine.looked):
        return machine
    if machine.name not in listing.machines:
        return replace(machine, unseen=machine.unseen + 1, looked=listing.asked)
    return replace(machine, unseen=0) if machine.unseen else machine


def _sight(machine: Machine, seen: Seen) -> Sight | None:
    """Give what the vendor says of a machine, in a list from after its last change."""
    listing = seen.listing
    if listing is None or listing.asked < machine.since:
        return None
    return listing.machines.get(machine.name)


def _after(machine: Machine, seen: Seen, seconds: float) -> bool:
    return seen.now - machine.since >= seconds * 1000


def is_missing(machine: Machine, pace: Pace) -> bool:
    """Tell whether its vendor does not have it, as far as its lists can be relied on."""
    # A list that was asked for before that may be older than the machine, however long ago.
    settled = machine.looked - machine.since >= pace.settle * 1000
    return machine.unseen >= pace.unseen and settled


def _ordered(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    # Whoever ordered it writes down the answer; this is for when nobody does.
    sight = _sight(machine, seen)
    if sight is not None and _after(machine, seen, 2 * pace.look):
        return Step(existing(machine, sight, seen.now))
    if _after(machine, seen, pace.order):
        said = machine.said or "the order was not answered"
        return Step(moved(machine, State.UNKNOWN, seen.now, said=said), event="unknown", said=said)
    return Step(machine)


def _unknown(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    sight = _sight(machine, seen)
    if sight is not None:
        return Step(existing(machine, sight, seen.now), event="found", said=machine.said)
    if is_missing(machine, pace):
        return Step(moved(machine, State.NEVER, seen.now))
    return Step(machine)


def _refused(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    if _sight(machine, seen) is not None:
        # Others have been ordered in its place.
        why = "its vendor refused it, and has it"
        return Step(leaving(machine, seen.now, why), Ask.DESTROY, "orphan", machine.said)
    if is_missing(machine, pace):
        return Step(moved(machine, State.NEVER, seen.now))
    return Step(machine)


def _fate(machine: Machine, seen: Seen, pace: Pace) -> Step | None:
    """Say what the vendor has made of a machine that should be there."""
    if is_missing(machine, pace):
        return Step(moved(machine, State.GONE, seen.now, why="gone"), event="lost", said="gone")
    sight = _sight(machine, seen)
    if sight is not None and sight.state in ("error", "stopped", "ending"):
        said = sight.said or f"its vendor says that it is {sight.state}"
        gone = replace(leaving(machine, seen.now, said), said=said)
        return Step(gone, Ask.DESTROY, "lost" if machine.state is State.READY else "failed", said)
    return None


def _booting(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    if fate := _fate(machine, seen, pace):
        return fate
    if seen.agents:
        return Step(moved(machine, State.TESTING, seen.now), Ask.TEST)
    if seen.now - machine.created >= terms.join * 1000:
        why = f"it did not join within {terms.join:.0f} s"
        return Step(leaving(machine, seen.now, why), Ask.DESTROY, "never-joined", why)
    return Step(machine)


def _testing(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    if fate := _fate(machine, seen, pace):
        return fate
    if seen.passed:
        return Step(moved(machine, State.READY, seen.now), event="joined")
    if seen.now - machine.created >= terms.join * 1000:
        why = seen.test or "its self-test did not end"
        return Step(leaving(machine, seen.now, why), Ask.DESTROY, "never-joined", why)
    return Step(machine, Ask.TEST)


def _ready(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    if fate := _fate(machine, seen, pace):
        return fate
    if seen.away is not None and seen.now - seen.away >= pace.away * 1000:
        why = f"its agents were away for {pace.away:.0f} s"
        return Step(leaving(machine, seen.now, why), Ask.DESTROY, "lost", why)
    return Step(machine)


def _draining(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    if fate := _fate(machine, seen, pace):
        return replace(fate, event="")
    if _after(machine, seen, terms.drain):
        return Step(leaving(machine, seen.now, machine.why), Ask.DESTROY)
    if seen.away is not None and seen.now - seen.away < pace.away * 1000:
        # Of an agent that is away, nobody knows whether it runs something.
        return Step(machine)
    if not seen.running:
        return Step(leaving(machine, seen.now, machine.why), Ask.DESTROY)
    return Step(machine)


def _leaving(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    return Step(machine, Ask.DESTROY if seen.now >= machine.due else Ask.NOTHING)


def _final(machine: Machine, seen: Seen, terms: Terms, pace: Pace) -> Step:
    return Step(machine)


_BY_STATE: Final[Mapping[State, Callable[[Machine, Seen, Terms, Pace], Step]]] = {
    State.ORDERED: _ordered,
    State.UNKNOWN: _unknown,
    State.REFUSED: _refused,
    State.BOOTING: _booting,
    State.TESTING: _testing,
    State.READY: _ready,
    State.DRAINING: _draining,
    State.LEAVING: _leaving,
    State.GONE: _final,
    State.NEVER: _final,
}


def answered(machine: Machine, outcome: Mapping[str, Any], now: int) -> Machine:
    """Give a machine after its vendor has answered the order."""
    said = str(outcome.get("said", ""))
    match outcome.get("outcome"):
        case "created":
            row: Mapping[str, Any] = outcome.get("machine") or {}
            return existing(machine, Sight.of(row), now)
        case "refused":
            return moved(machine, State.REFUSED, now, said=said)
        case _:
            return moved(machine, State.UNKNOWN, now, said=said)


def deleted(machine: Machine, outcome: Mapping[str, Any], now: int, pace: Pace) -> Machine:
    """Give a machine after its vendor was asked to delete it.

    That it is not there is believed of one whose delete was accepted; else it may be missing from
    the list by which it was looked for, because that is old.
    """
    said = str(outcome.get("said", "")) or machine.said
    tries, pause = machine.tries + 1, 1.0
    match outcome.get("outcome"):
        case "gone" if machine.ending or now - machine.since >= pace.settle * 1000:
            return moved(machine, State.GONE, now)
        case "gone":
            pause = pace.look
        case "ending":
            machine = replace(machine, ending=True)
        case _:
            pause = doubled(2.0, tries - 1, MAX_PAUSE) * pace.pauses
    return replace(machine, tries=tries, due=now + int(pause * 1000), said=said)


def unfrozen(machine: Machine, outcome: Mapping[str, Any], now: int, pace: Pace) -> Machine:
    """Give a machine whose disk could not be kept: that is tried again before it is deleted."""
    return deleted(machine, {"outcome": "failed", "said": outcome.get("said", "")}, now, pace)


def victims(machines: Sequence[Machine], surplus: int) -> list[Machine]:
    """Choose who goes when a pool has too many: first who is not of use yet, then the dearest."""
    order = {State.BOOTING: 0, State.TESTING: 1, State.READY: 2}
    found = [one for one in machines if one.state in order]
    found.sort(key=lambda one: (order[one.state], -one.hourly, -one.created, one.name))
    return found[: max(0, surplus)]
