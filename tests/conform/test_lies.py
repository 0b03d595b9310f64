"""Each check fails for an agent that is wrong in what it looks at, and for no other."""

from __future__ import annotations

import pytest

from spinal.conform import CHECKS, Report, run
from spinal.testing import ManualClock

from .lies import CARELESS, LIES, PREPARED
from .stage import Shelf, failed, of, stage


async def tried(number: str) -> Report:
    async with stage(LIES[number](), CARELESS.get(number, Shelf)()) as (trial, control):
        if number in PREPARED:
            PREPARED[number](control)
        return await run(trial)


def test_there_is_an_agent_for_each_check() -> None:
    assert list(LIES) == [check.number for check in CHECKS]


@pytest.mark.parametrize("number", list(LIES))
def test_an_agent_that_is_wrong_in_one_thing_fails_that_check_and_no_other(number: str) -> None:
    report = ManualClock().run(tried(number))

    assert failed(report) == [number], [of(report, each) for each in failed(report)]
    assert of(report, number).text
