from __future__ import annotations

from dataclasses import replace

from spinal.bus.jsontext import dumps, loads
from spinal.dispatcher.pools import record
from spinal.dispatcher.pools.machine import Machine, State
from spinal.dispatcher.pools.pool import MAX_EVENTS, Event, Phase, Pool
from spinal.dispatcher.pools.scaling import Memory
from spinal.dispatcher.pools.spec import (
    Demand,
    Life,
    Money,
    Place,
    PoolSpec,
    Rule,
    Scale,
    Server,
    Size,
    Window,
)
from spinal.dispatcher.store.contract import Record

SPEC = PoolSpec(
    pool="web",
    server=Server(cpu=2, ram=2**30, disk=2**34, arch="arm64", region=("eu", "us-east-1")),
    size=Size(min=1, max=5, start=2),
    place=Place(spread="vendor", at_least_vendors=2),
    scale=Scale(
        ops=("/image/resize",),
        waiting=Rule(sign=">", bound=20, lasting=30),
        p95=Rule(sign=">", bound=0.4, lasting=180),
        add=2,
        remove_when={"p95": Rule(sign="<", bound=0.15, lasting=900)},
        cool=60,
        schedule=(Window(cron="0 8 * * *", zone="Europe/Berlin", lasting=3600, size=3),),
    ),
    money=Money(max_per_hour=0.6, max_per_month=80, currency="EUR", label="shop"),
    life=Life(
        ttl=86_400,
        self_test=("/machine/health",),
        agents={"worker.py": "print()\n"},
        packages=("pillow",),
    ),
)


def kept(one: Record) -> Record:
    """Give a record as it comes back from a store."""
    return Record(one.kind, one.name, one.version, loads(dumps(one.body)))


def test_a_pool_comes_back_as_it_was() -> None:
    pool = Pool(
        spec=SPEC,
        caller="owner@home.test",
        created=5,
        phase=Phase.FROZEN,
        wanted=3,
        why="applied",
        memory=Memory(wanted=3, since={"waiting": 7}, changed=9),
        hash="ab" * 32,
        short="over budget",
        events=(Event(at=1, what="refused", about="web-1", said="sold out"),),
        joined=4,
        refused=3,
        never_joined=2,
        lost=1,
        failures=2,
        pause=11,
        version=6,
    )
    record_of_it = record.of_pool(pool)
    assert (record_of_it.kind, record_of_it.name, record_of_it.version) == ("pool", "web", 6)
    assert record.pool(kept(record_of_it)) == pool


def test_a_pool_of_mixed_work_comes_back_as_it_was() -> None:
    spec = PoolSpec(
        pool="mix",
        server=Server(cpu=1, ram=2**30),
        demand=(Demand(cpu=1, ram=2**30, count=3), Demand(cpu=0.5, ram=2**29, count=9)),
        size=Size(max=9),
    )
    pool = Pool(spec=spec, caller="a@b", created=1)
    assert record.pool(kept(record.of_pool(pool))) == pool


def test_a_machine_comes_back_as_it_was_and_goes_into_the_ledger_when_it_is_over() -> None:
    machine = Machine(
        name="web-1",
        pool="web",
        label="shop",
        state=State.DRAINING,
        since=7,
        vendor="aws",
        region="eu-west-1",
        type="m6i.large",
        arch="x86_64",
        cpu=2,
        ram=8 * 2**30,
        price=0.1,
        currency="USD",
        rate=0.92,
        created=3,
        began=4,
        expires=99,
        id="i-1",
        said="words",
        why="fewer",
        tries=1,
        due=2,
        unseen=3,
        looked=4,
        retiring=True,
        image="ami-1",
        version=8,
    )
    assert record.of_machine(machine).kind == "machine"
    assert record.machine(kept(record.of_machine(machine))) == machine
    for state in (State.GONE, State.NEVER):
        over = replace(machine, state=state, ended=50)
        assert record.of_machine(over).kind == "ledger"
        assert record.machine(kept(record.of_machine(over))) == over


def test_only_so_many_events_are_remembered_and_the_newest_stay() -> None:
    pool = Pool(spec=SPEC, caller="a@b", created=1)
    for at in range(MAX_EVENTS + 5):
        pool = pool.noting(Event(at=at, what="scaled", about=str(at)))
    assert [one.at for one in pool.events] == list(range(5, MAX_EVENTS + 5))
