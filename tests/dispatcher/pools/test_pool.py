from dataclasses import replace

from spinal.dispatcher.pools.document import of_json, to_json
from spinal.dispatcher.pools.pool import Phase, Pool
from spinal.dispatcher.pools.spec import Life, PoolSpec, Server

SPEC = PoolSpec(pool="batch", server=Server(cpu=1, ram=2**30))
POOL = Pool(spec=SPEC, caller="owner@x.test", created=1000)


def test_a_pool_without_an_end_is_never_over() -> None:
    assert not POOL.over(10**15)


def test_a_pool_is_over_so_long_after_it_was_made_and_once() -> None:
    ending = replace(POOL, spec=replace(SPEC, life=Life(ends=60.0)))
    assert not ending.over(60_999)
    assert ending.over(61_000)
    assert not replace(ending, phase=Phase.DOWN).over(61_000)
    assert replace(ending, phase=Phase.DRAINED).over(61_000)


def test_its_end_is_sent_with_it() -> None:
    ending = replace(SPEC, life=Life(ends=60.0))
    assert of_json(to_json(ending)) == ending
    assert "ends" not in to_json(SPEC)["life"]  # pyright: ignore[reportOperatorIssue, reportArgumentType]


def test_disks_are_kept_when_that_is_asked_for_now_or_stands_in_the_file() -> None:
    keeping = replace(POOL, spec=replace(SPEC, life=Life(on_down="freeze")))
    assert {phase for phase in Phase if replace(POOL, phase=phase).freezes} == {Phase.FROZEN}
    assert {phase for phase in Phase if replace(keeping, phase=phase).freezes} == {
        Phase.FROZEN,
        Phase.DOWN,
    }
