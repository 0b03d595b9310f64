"""How many machines a pool wants: rules that last, what keeps it from flapping, its bounds."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinal.agents.provider.offer import Offer
from spinal.dispatcher.pools import scaling
from spinal.dispatcher.pools.machine import Machine, State
from spinal.dispatcher.pools.scaling import Decision, Have, Measures, Memory, consolidate, decide
from spinal.dispatcher.pools.spec import PoolSpec, Rule, Scale, Server, Size, Window

#: Slots of a machine.
EACH = 4
#: A Saturday.
NOW = 1_795_870_800_000


def rule(text: str, lasting: float = 0.0) -> Rule:
    sign, bound = text.split()
    return Rule(sign=sign, bound=float(bound), lasting=lasting)


def pool(size: Size | None = None, **scale: object) -> PoolSpec:
    settings: dict[str, object] = {"ops": ("/image/resize",), "cool": 60.0} | scale
    return PoolSpec(
        pool="web",
        server=Server(cpu=float(EACH), ram=8 << 30),
        size=size or Size(min=0, max=12),
        scale=Scale(**settings),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    )


@dataclass
class Run:
    """A pool whose machines come as soon as they are wanted, second by second."""

    spec: PoolSpec
    now: int = NOW
    memory: Memory = field(default_factory=Memory)
    ready: int = 0
    #: Second -> what was wanted from then on, and why.
    changes: list[tuple[int, int, str]] = field(default_factory=list[tuple[int, int, str]])

    def ask(self, measures: Measures, joining: int = 0) -> Decision:
        decision = decide(
            self.spec, self.memory, measures, Have(ready=self.ready, joining=joining), self.now
        )
        if decision.wanted != self.memory.wanted:
            self.changes.append(((self.now - NOW) // 1000, decision.wanted, decision.why))
        self.memory = decision.memory
        return decision

    def go(self, seconds: int, measures: Measures) -> list[int]:
        """Let a time pass in which always the same is measured; gives the seconds of changes."""
        known = len(self.changes)
        for _ in range(seconds):
            self.ready = self.ask(measures).wanted
            self.now += 1000
        return [second for second, _, _ in self.changes[known:]]


def at(ready: int, spec: PoolSpec) -> Run:
    return Run(spec, memory=Memory(wanted=ready), ready=ready)


def full(ready: int, waiting: int = 0, p95: float | None = None) -> Measures:
    return Measures(waiting=waiting, slots=ready * EACH, busy=ready * EACH, p95=p95)


# -- growing


def test_a_pool_grows_when_its_rule_has_held_for_its_time_and_not_before() -> None:
    run = at(2, pool(waiting=rule("> 20", 30), add=3))

    assert run.go(30, full(2, waiting=21)) == []
    assert run.ask(full(2, waiting=21)) == Decision(5, "waiting > 20 for 30s", run.memory)


def test_an_interruption_of_a_rule_begins_its_time_anew() -> None:
    run = at(2, pool(waiting=rule("> 20", 30)))

    assert run.go(29, full(2, waiting=21)) == []
    assert run.go(1, full(2, waiting=20)) == []
    assert run.go(30, full(2, waiting=21)) == []
    assert run.go(1, full(2, waiting=21)) == [60]


def test_a_slow_p95_alone_makes_a_pool_grow() -> None:
    run = at(2, pool(waiting=rule("> 20", 30), p95=rule("> 0.4", 180)))

    assert run.go(200, full(2, p95=0.5)) == [180]
    assert run.changes[-1][2] == "p95 > 0.4s for 180s"


def test_two_changes_are_the_pause_apart() -> None:
    run = at(1, pool(waiting=rule("> 0", 5), cool=300.0))

    assert run.go(700, full(1, waiting=9)) == [5, 305, 605]


def test_a_burst_is_answered_once_while_machines_join_that_will_take_it() -> None:
    run = at(1, pool(waiting=rule("> 0", 5), cool=10.0))

    run.go(6, full(1, waiting=EACH))
    run.ready = 1
    for _ in range(200):
        assert run.ask(full(1, waiting=EACH), joining=1).wanted == 2
        run.now += 1000


def test_what_waits_beyond_what_joins_is_answered_while_that_joins() -> None:
    run = at(1, pool(waiting=rule("> 0", 5), cool=10.0))
    run.ready = 1
    run.memory = Memory(wanted=2)

    for _ in range(5):
        assert run.ask(full(1, waiting=EACH + 1), joining=1).wanted == 2
        run.now += 1000
    assert run.ask(full(1, waiting=EACH + 1), joining=1).wanted == 3


def test_p95_says_nothing_while_machines_join() -> None:
    run = at(1, pool(p95=rule("> 0.4", 5)))
    run.memory = Memory(wanted=2)

    for _ in range(60):
        assert run.ask(full(1, p95=9.0), joining=1).wanted == 2
        run.now += 1000


def test_a_slow_p95_adds_nothing_while_a_machine_is_idle() -> None:
    run = at(2, pool(p95=rule("> 0.4", 5)))
    busy = Measures(slots=2 * EACH, busy=3, p95=9.0)

    assert run.go(60, replace(busy, idle=1)) == []
    assert run.go(10, busy) == [65]


def test_a_p95_that_more_machines_do_not_make_lower_does_not_make_a_pool_flap() -> None:
    spec = pool(p95=rule("> 0.4", 5), add=3, remove_when={"idle": rule("> 0", 60)})
    run = at(2, spec)
    for _ in range(3600):
        idle = max(0, run.ready - 2)
        run.ready = run.ask(
            Measures(slots=run.ready * EACH, busy=2 * EACH, p95=1.0, idle=idle)
        ).wanted
        run.now += 1000

    assert [wanted for _, wanted, _ in run.changes] == [5]


def test_nothing_is_added_to_what_could_not_be_had() -> None:
    run = at(2, pool(waiting=rule("> 0", 5)))
    run.memory = Memory(wanted=5)

    for _ in range(600):
        assert run.ask(full(2, waiting=99)).wanted == 5
        run.now += 1000


def test_a_lost_machine_is_still_wanted() -> None:
    run = at(3, pool(waiting=rule("> 20", 30)))
    run.ready = 2

    assert run.ask(full(2)).wanted == 3


# -- zero


def test_work_wakes_a_pool_of_no_machines_at_once_even_right_after_a_change() -> None:
    run = at(0, pool(waiting=rule("> 20", 30), cool=3600.0))
    run.memory = replace(run.memory, changed=NOW)

    assert run.ask(Measures(waiting=1)).wanted == 1


def test_a_pool_that_was_woken_grows_by_its_rule_without_a_pause() -> None:
    run = at(0, pool(waiting=rule("> 20", 30), cool=3600.0, add=4))

    assert run.go(60, Measures(waiting=300, slots=EACH, busy=EACH)) == [0, 30]
    assert run.memory.wanted == 5


def test_a_pool_without_rules_grows_while_work_waits_and_returns_to_zero_when_idle() -> None:
    run = at(0, pool())

    run.go(200, Measures(waiting=50, slots=EACH, busy=EACH))
    assert run.memory.wanted == 5
    seconds = run.go(3000, Measures(idle=1))
    assert run.memory.wanted == 0
    assert seconds[0] == 500, "idle for 300 s"


def test_the_last_machine_stays_while_it_runs_something() -> None:
    run = at(1, pool(remove_when={"p95": rule("< 0.15", 60)}))

    assert run.go(3600, Measures(slots=EACH, busy=1, p95=0.01)) == []
    assert run.go(120, Measures(slots=EACH, p95=0.01)) == [3600]


# -- shrinking


def test_a_machine_goes_when_all_of_its_rules_hold() -> None:
    run = at(3, pool(remove_when={"p95": rule("< 0.15", 60), "idle": rule("> 1", 30)}))
    calm = Measures(slots=12, busy=2, p95=0.1, idle=1)

    assert run.go(300, calm) == []
    assert run.go(60, replace(calm, idle=2)) == [330]


def test_none_goes_whose_jobs_the_others_could_not_carry() -> None:
    run = at(3, pool(remove_when={"p95": rule("< 0.15", 60)}))

    assert run.go(300, Measures(slots=12, busy=9, p95=0.1)) == []
    assert run.go(1, Measures(slots=12, busy=8, p95=0.1)) == [300]


def test_where_nothing_ends_while_something_runs_the_p95_is_not_low() -> None:
    run = at(3, pool(remove_when={"p95": rule("< 0.15", 60)}))

    assert run.go(300, Measures(slots=12, busy=1)) == []
    assert run.go(61, Measures(slots=12)) == [360]


def test_a_removal_that_had_to_be_undone_makes_the_next_wait_twice_as_long() -> None:
    # Two machines are too slow, three are quicker than they need to be: no number suits the rules.
    spec = pool(p95=rule("> 0.4", 60), remove_when={"p95": rule("< 0.15", 300)})
    run = at(3, spec)
    for _ in range(6 * 3600):
        run.ready = run.ask(
            Measures(slots=run.ready * EACH, busy=2, p95=0.5 if run.ready < 3 else 0.1)
        ).wanted
        run.now += 1000

    removals = [second for second, wanted, _ in run.changes if wanted == 2]
    gaps = [later - earlier for earlier, later in pairwise(removals)]
    assert gaps[:3] == sorted(gaps[:3]) and gaps[2] > 6 * gaps[0] / 2
    assert max(gaps) < 300 * 2**scaling.MAX_REGRETS + 120


def test_what_is_missing_is_given_up_when_nothing_waits_for_it() -> None:
    run = at(1, pool())
    run.memory = Memory(wanted=5)

    while run.ask(Measures(slots=EACH)).wanted == 5:
        run.now += 1000
    assert run.changes == [(300, 1, "what is missing is not needed any more")]


# -- bounds and schedules


def test_a_pool_begins_with_its_start() -> None:
    assert Run(pool(Size(min=2, max=12, start=3))).ask(Measures()).wanted == 3
    assert Run(pool(Size(min=2, max=12))).ask(Measures()).wanted == 2


def test_new_bounds_hold_at_once() -> None:
    run = at(9, pool(Size(min=0, max=4)))
    assert run.ask(full(9, waiting=99)).wanted == 4

    run = at(1, pool(Size(min=3, max=4)))
    assert run.ask(Measures()).wanted == 3


def test_a_schedule_is_a_floor_from_each_of_its_times_for_its_while() -> None:
    window = Window(cron="0 8 * * mon-fri", zone="Europe/Berlin", lasting=3600.0, size=5)
    spec = pool(Size(min=1, max=12), schedule=(window,))

    def wanted(time: str) -> int:
        now = round(datetime.fromisoformat(time).timestamp() * 1000)
        return decide(spec, Memory(wanted=1), Measures(), Have(ready=1), now).wanted

    assert [
        wanted(time)
        for time in (
            "2026-11-27T07:59:59+01:00",
            "2026-11-27T08:00:00+01:00",
            "2026-11-27T08:59:59+01:00",
            "2026-11-27T09:00:00+01:00",
            "2026-11-28T08:30:00+01:00",
        )
    ] == [1, 5, 5, 1, 1]


def test_a_schedule_holds_no_more_than_the_maximum_and_the_largest_of_several_counts() -> None:
    windows = [Window(cron="* * * * *", lasting=120.0, size=size) for size in (2, 7, 5)]

    assert at(1, pool(schedule=windows)).ask(Measures()).wanted == 7
    assert at(1, pool(Size(max=4), schedule=windows)).ask(Measures()).wanted == 4


def test_a_pool_without_operations_follows_its_size_and_schedule_alone() -> None:
    window = Window(cron="0 12 * * *", lasting=60.0, size=5)
    run = at(2, pool(Size(min=1, max=9, start=2), ops=(), schedule=(window,)))

    run.now = round(datetime.fromisoformat("2026-11-28T11:59:50Z").timestamp() * 1000)
    run.go(120, Measures(waiting=99))
    assert [wanted for _, wanted, _ in run.changes] == [5, 2]


# -- what is remembered


def test_a_rule_goes_on_holding_when_a_dispatcher_is_started_again() -> None:
    run = at(2, pool(waiting=rule("> 20", 30)))
    run.go(25, full(2, waiting=21))

    run.memory = Memory.of(json.loads(json.dumps(run.memory.row())))
    assert run.go(10, full(2, waiting=21)) == [30]


def test_what_is_remembered_changes_only_when_something_does() -> None:
    run = at(2, pool(waiting=rule("> 20", 30)))
    run.ask(full(2, waiting=21))
    before = run.memory
    run.now += 5000

    run.ask(full(2, waiting=25))
    assert run.memory == before


# -- always


@st.composite
def specs(draw: st.DrawFn) -> PoolSpec:
    most = draw(st.integers(0, 20))
    least = draw(st.integers(0, most))
    lasting = st.sampled_from([0.0, 10.0, 60.0])
    return pool(
        Size(min=least, max=most, start=draw(st.integers(least, most))),
        waiting=draw(st.none() | st.builds(rule, st.sampled_from(["> 0", "> 10"]), lasting)),
        p95=draw(st.none() | st.builds(rule, st.just("> 0.4"), lasting)),
        add=draw(st.integers(1, 5)),
        remove_when=draw(
            st.dictionaries(
                st.sampled_from(["waiting", "p95", "idle"]),
                st.builds(rule, st.sampled_from(["> 0", "< 5", "< 0.3"]), lasting),
            )
        ),
        cool=draw(st.sampled_from([0.0, 30.0, 300.0])),
    )


measured = st.builds(
    Measures,
    waiting=st.integers(0, 100),
    slots=st.integers(0, 80),
    busy=st.integers(0, 80),
    p95=st.none() | st.floats(0, 10),
    idle=st.integers(0, 20),
)


@settings(deadline=None)
@given(specs(), st.lists(st.tuples(measured, st.integers(0, 9), st.integers(0, 120)), max_size=60))
def test_what_is_wanted_is_within_bounds_and_changes_only_after_the_pause(
    spec: PoolSpec, steps: list[tuple[Measures, int, int]]
) -> None:
    memory, now, changed = Memory(), NOW, None
    for measures, joining, seconds in steps:
        now += seconds * 1000
        last = memory.wanted
        have = Have(ready=max(0, (last or 0) - joining), joining=joining)
        memory = Memory.of(
            json.loads(json.dumps(decide(spec, memory, measures, have, now).memory.row()))
        )
        assert memory.wanted is not None
        assert spec.size.min <= memory.wanted <= spec.size.max
        if last is not None and memory.wanted != last and (last, memory.wanted) != (0, 1):
            assert changed is None or now - changed >= spec.scale.cool * 1000
            assert memory.wanted <= last + spec.scale.add
            changed = now


@settings(max_examples=60, deadline=None)
@given(specs(), st.integers(0, 100), st.integers(0, 120))
def test_under_constant_load_a_pool_that_shrank_never_grows_again(
    spec: PoolSpec, load: int, boot: int
) -> None:
    memory, ready, booting = Memory(), 0, list[int]()
    numbers = list[int]()
    for second in range(0, 5000, 5):
        now = NOW + second * 1000
        ready += sum(since + boot <= second for since in booting)
        booting = [since for since in booting if since + boot > second]
        busy = min(load, ready * EACH)
        measures = Measures(
            waiting=load - busy,
            slots=ready * EACH,
            busy=busy,
            p95=1.0 if busy else None,
            idle=max(0, ready - -(-busy // EACH)),
        )
        have = Have(ready=ready, joining=len(booting))
        memory = decide(spec, memory, measures, have, now).memory
        assert memory.wanted is not None
        numbers.append(memory.wanted)
        while ready + len(booting) < memory.wanted:
            booting.append(second)
        while booting and ready + len(booting) > memory.wanted:
            booting.pop()
        ready = min(ready, memory.wanted)

    shrank = False
    for earlier, later in pairwise(numbers):
        shrank |= later < earlier
        assert not (shrank and later > earlier)


# -- cheaper ones

HOUR = 3_600_000


def machine(name: str = "web-1", price: float = 1.0, hours: float = 100, **more: object) -> Machine:
    known: dict[str, object] = {
        "name": name,
        "pool": "web",
        "state": State.READY,
        "since": NOW,
        "vendor": "one",
        "region": "eu",
        "type": "big",
        "price": price,
        "currency": "EUR",
        "created": NOW,
        "expires": NOW + round(hours * HOUR),
    }
    return Machine(**(known | more))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def offer(price: float) -> Offer:
    return Offer(
        vendor="two",
        region="eu",
        type="small",
        cpu=4.0,
        ram=8 << 30,
        price=price,
        currency="EUR",
        source="api",
        as_of=NOW,
    )


CHEAPER = pool(consolidate=0.2)


def test_the_machine_that_saves_most_is_replaced_and_one_at_a_time() -> None:
    machines = [machine("web-1", 1.0), machine("web-2", 2.0)]

    swap = consolidate(CHEAPER, machines, [offer(0.9), offer(0.5)], NOW)
    assert swap is not None
    assert (swap.machine.name, swap.offer.price) == ("web-2", 0.5)
    assert swap.saved == pytest.approx(200 - 50 - 0.5 * scaling.OVERLAP / 3600)

    for state in State:
        others = [*machines, machine("web-3", state=state)]
        quiet = state is State.READY or state.final
        assert (consolidate(CHEAPER, others, [offer(0.5)], NOW) is not None) is quiet


@pytest.mark.parametrize(
    ("price", "hours", "worth"), [(0.79, 100, True), (0.81, 100, False), (0.5, 0.3, False)]
)
def test_a_machine_is_replaced_only_above_the_stated_saving_over_what_remains_of_its_life(
    price: float, hours: float, worth: bool
) -> None:
    found = consolidate(CHEAPER, [machine(hours=hours)], [offer(price)], NOW)
    assert (found is not None) is worth


def test_without_a_stated_saving_or_an_offer_none_is_replaced() -> None:
    assert consolidate(pool(), [machine()], [offer(0.01)], NOW) is None
    assert consolidate(CHEAPER, [machine()], [], NOW) is None
    assert consolidate(CHEAPER, [], [offer(0.01)], NOW) is None


def test_a_price_in_another_currency_is_compared_in_that_of_the_home() -> None:
    assert consolidate(CHEAPER, [machine(price=1.0, rate=0.5)], [offer(0.45)], NOW) is None
    assert consolidate(CHEAPER, [machine(price=1.0, rate=2.0)], [offer(0.45)], NOW) is not None
