"""Runs are drawn from their seeds, and all of them together have everything."""

from __future__ import annotations

from collections import Counter

from tests.clouds.faults import KINDS, Fault
from tests.clouds.vendors import VENDORS

from spinal.agents.provider.pace import Pace
from spinal.dispatcher.pools.document import of_json

from .run import SEEDS
from .script import PRICED, STALE, script

ALL = [script(seed) for seed in range(1, SEEDS + 1)]


def test_a_seed_gives_the_same_run_each_time() -> None:
    assert script(7) == ALL[6] != ALL[7]


def test_every_fault_is_done_to_every_vendor_that_can_have_it() -> None:
    done = {
        (act.whom, act.how["kind"])
        for one in ALL
        for act in (*one.coming, *one.going)
        if act.what == "fault"
    }
    wanted = {(vendor, kind) for vendor in VENDORS for kind in KINDS}
    assert wanted - done == {(v, "no_price") for v in VENDORS if v not in PRICED}


def test_everything_is_killed_and_every_change_is_made() -> None:
    acts = Counter((act.what, act.whom) for one in ALL for act in (*one.coming, *one.going))
    assert all(acts["kill", whom] > 10 for whom in ("dispatcher", *VENDORS))
    whats = Counter(what for what, _ in acts.elements())
    assert all(whats[what] > 50 for what in ("apply", "replace", "drain"))


def test_faults_and_pools_are_what_vendors_and_dispatcher_take() -> None:
    for one in ALL:
        for pool in one.pools:
            of_json({**pool.to_json(), "server": {"cpu": 1, "ram": "1G"}})
        for act in (*one.coming, *one.going):
            if act.what == "fault":
                Fault(**act.how)


def test_no_list_is_older_than_may_be_told_from_the_truth() -> None:
    ages = [
        act.how["seconds"]
        for one in ALL
        for act in (*one.coming, *one.going)
        if act.how.get("kind") == "stale"
    ]
    assert ages and max(ages) <= STALE < Pace().settle
