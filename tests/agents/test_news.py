from __future__ import annotations

from collections.abc import Callable

from spinal.agents.news import LINES, News

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
