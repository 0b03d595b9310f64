from __future__ import annotations

from collections.abc import Callable

import pytest

from spinal.agents.news import LINE, LINES, LINES_A_SECOND, QUIET, Allowance, News

from .conftest import Recorder


async def test_the_first_progress_goes_at_once_and_of_a_burst_only_the_last(
    recorder: Callable[[], Recorder],
) -> None:
    channel = recorder()
    with News(channel) as news:
        for done in range(1000):
            news.progress(done, 1000)
        await channel.heard((999, 1000, ""))

    assert channel.said == [(0, 1000, ""), (999, 1000, "")]


async def test_a_progress_that_waits_is_dropped_with_the_end(
    recorder: Callable[[], Recorder],
) -> None:
    channel = recorder()
    with News(channel) as news:
        news.progress(1)
        news.progress(2)

    assert channel.said == [(1, None, "")]


async def test_a_flood_of_lines_is_cut_and_counted(recorder: Callable[[], Recorder]) -> None:
    channel = recorder()
    with News(channel) as news:
        for number in range(LINES * 2):
            news.log(str(number))

    assert channel.said[0] == "0"
    assert len(channel.said) < LINES * 1.5
    assert str(channel.said[-1]).endswith("lines left out")


def test_lines_that_did_not_pass_are_counted_once_and_others_pass_again_after_a_pause() -> None:
    now = 0.0
    lines = Allowance(lambda: now)
    passed = [lines.admits("x") for _ in range(LINES + 50)]

    assert passed == [True] * LINES + [False] * 50
    now += QUIET / 2
    assert not lines.admits("x")
    assert (lines.told(), lines.told()) == ("... 51 lines left out", "")
    now += QUIET
    assert sum(lines.admits("x") for _ in range(LINES)) == pytest.approx(
        1.5 * QUIET * LINES_A_SECOND, abs=1
    )


def test_a_long_line_counts_as_several() -> None:
    lines = Allowance(lambda: 0.0)

    assert sum(lines.admits("x" * (LINE * 10 - 1)) for _ in range(LINES)) == LINES / 10
