"""Finals that are kept until somebody has taken them."""

from __future__ import annotations

import asyncio
from typing import Final

from ..check import Chapter
from ..seat import SOON, Exchange
from ..trial import Trial
from ..verdict import Wrong

CHAPTER: Final = Chapter(7, "Kept finals", feature="finals")

#: Seconds of the answer window, and some for a busy machine.
WINDOW: Final = 0.25
SLACK: Final = 1.0


@CHAPTER.check("6.2", "what is not ready when the answer window closes is accepted, and ends later")
async def accepted(trial: Trial) -> None:
    exchange = trial.start("work", {"name": trial.id(), "seconds": 2})
    heard = await exchange.hear("accepted", "final", "error", within=WINDOW + SLACK)
    if heard.type != "accepted":
        raise Wrong("accepted", heard.stanza, exchange.asked)
    await trial.value(exchange, 2 + SOON)
    end = exchange.all("final")[0].stanza
    if end.type != "set":
        raise Wrong("the final in an IQ set of its own", end, exchange.asked)
    await _acknowledge(trial, exchange)


@CHAPTER.check("6.6", "a final is said again until it is acknowledged")
async def said_again(trial: Trial) -> None:
    exchange = trial.start("work", {"name": trial.id(), "seconds": 0.6})
    await trial.value(exchange)
    again = await exchange.hear("final", count=2, within=3 + SOON)
    if again.event.get("value") != 1:
        raise Wrong("the same final", again.stanza)
    await _acknowledge(trial, exchange)
    count = len(exchange.all("final"))
    # The pauses double: the next one would come in four seconds at the latest.
    await asyncio.sleep(5.0)
    if len(exchange.all("final")) > count:
        raise Wrong("no further final once it was acknowledged", exchange.heard[-1].stanza)


@CHAPTER.check("6.6", "an op that is sent again after its final was acknowledged is already-done")
async def already_done(trial: Trial) -> None:
    exchange = trial.start("echo", {"value": "one"})
    await trial.value(exchange)
    await _acknowledge(trial, exchange)
    exchange.again()
    end = await exchange.hear("final", "error", count=2)
    if end.type != "error" or end.reason != "already-done":
        raise Wrong("error with the reason already-done", end.stanza, exchange.asked)


@CHAPTER.check("6.6", "a caller that was away is told the final when it returns")
async def on_return(trial: Trial) -> None:
    name, id = trial.id(), trial.id()
    event = trial.event("work", {"name": name, "seconds": 1}, id=id)
    async with trial.seat("caller", "returns") as seat:
        taken = seat.start(event, trial.agent)
        await taken.hear("accepted")
    # It ends while nobody is there.
    await asyncio.sleep(1.5)
    async with trial.seat("caller", "returns") as seat:
        end = await seat.remember(taken).end(5.0)
        if end.event.get("value") != 1:
            raise Wrong("the final with the value 1", end.stanza)


async def _acknowledge(trial: Trial, exchange: Exchange) -> None:
    said = [{"type": "ack", "id": exchange.id, "attempt": exchange.attempt}]
    answer = await trial.caller.ask(said, trial.agent)
    if answer.type != "result":
        raise Wrong("an IQ result to an ack", answer)
