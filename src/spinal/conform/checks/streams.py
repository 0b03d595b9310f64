"""What comes before the end: pieces of data, progress and log lines."""

from __future__ import annotations

import asyncio
from typing import Final

from ..check import Chapter
from ..seat import SOON, Exchange
from ..trial import Trial
from ..verdict import Wrong

CHAPTER: Final = Chapter(10, "Streams and progress")


def _numbers(exchange: Exchange) -> list[int]:
    return [int(heard.event["seq"]) for heard in exchange.all("data")]


@CHAPTER.check(
    "6.3", "data is numbered from 0 without gaps, and comes before the final", feature="stream"
)
async def numbered(trial: Trial) -> None:
    await trial.need("stream")
    exchange = trial.start("stream", {"count": 40}, window=4)
    if await trial.value(exchange, 2 * SOON) != 40:
        raise Wrong("the value 40", exchange.heard[-1].stanza, exchange.asked)
    pieces = sorted(
        (heard.event["seq"], heard.event.get("value")) for heard in exchange.all("data")
    )
    if pieces != [(n, n) for n in range(40)]:
        raise Wrong("40 pieces of data, numbered from 0", exchange.heard[-1].stanza)


@CHAPTER.check("6.3", "no more data is unanswered than the window allows", feature="stream")
async def window(trial: Trial) -> None:
    await trial.need("stream")
    async with trial.seat("caller", "reader") as seat:
        seat.withholds = lambda events: any(event["type"] == "data" for event in events)
        exchange = trial.start("stream", {"count": 5}, seat=seat, window=2)
        await exchange.hear("data", count=2)
        await asyncio.sleep(1.0)
        if len(exchange.all("data")) > 2:
            raise Wrong("two pieces of data while none is answered", exchange.heard[-1].stanza)
        if exchange.all("final"):
            raise Wrong("the final after all data was answered", exchange.heard[-1].stanza)
        seat.withholds = lambda events: False
        for stanza in seat.withheld:
            seat.reply(stanza)
        if await trial.value(exchange) != 5 or sorted(set(_numbers(exchange))) != list(range(5)):
            raise Wrong("five pieces of data, and the value 5", exchange.heard[-1].stanza)


@CHAPTER.check("6.3", "a caller that gives no window gets no data", feature="stream")
async def no_window(trial: Trial) -> None:
    await trial.need("stream")
    exchange = trial.start("stream", {"count": 3})
    await trial.value(exchange)
    if exchange.all("data"):
        raise Wrong("no data with window 0", exchange.all("data")[0].stanza, exchange.asked)


@CHAPTER.check("6.6", "a stream goes on at the address that asks for it again", feature="stream")
async def elsewhere(trial: Trial) -> None:
    await trial.need("stream")
    event = trial.event("stream", {"count": 6}, window=2)
    async with trial.seat("caller", "left") as seat:
        seat.withholds = lambda events: any((each.get("seq") or 0) >= 3 for each in events)
        exchange = seat.start(event, trial.agent)
        await exchange.hear("data", count=4)
    async with trial.seat("caller", "right") as seat:
        again = seat.start(event, trial.agent)
        taken = await again.hear("accepted", "final", "error")
        seq = taken.event.get("seq") or 0
        if taken.type != "accepted" or not 1 <= seq <= 3:
            raise Wrong("accepted, with the seq of the first piece not taken", taken.stanza)
        if await trial.value(again) != 6:
            raise Wrong("the value 6", again.heard[-1].stanza)
        if sorted(set(_numbers(again))) != list(range(seq, 6)):
            raise Wrong(
                f"the pieces from {seq} to 5, not {_numbers(again)}", again.heard[-1].stanza
            )


@CHAPTER.check("6.3", "progress and log lines are headline messages", offer="/conform/report")
async def progress(trial: Trial) -> None:
    await trial.need("report")
    exchange = trial.start("report", {"steps": 3})
    if await trial.value(exchange) != 3:
        raise Wrong("the value 3", exchange.heard[-1].stanza, exchange.asked)
    last = await exchange.hear("progress")
    told = exchange.all("progress", "log")
    wrong = next(
        (each.stanza for each in told if (each.stanza.kind, each.stanza.type) != _HEADLINE), None
    )
    if wrong is not None:
        raise Wrong("a message of type headline", wrong, exchange.asked)
    if last.event.get("total") != 3 or last.event.get("done") not in (1, 2, 3):
        raise Wrong("progress with done up to 3 and total 3", last.stanza, exchange.asked)
    if not any(each.event.get("text", "").startswith("step ") for each in exchange.all("log")):
        raise Wrong("a log line 'step N'", last.stanza, exchange.asked)


_HEADLINE: Final = ("message", "headline")
