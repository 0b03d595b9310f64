"""The same id never runs twice, and different calls are never taken for the same."""

from __future__ import annotations

import asyncio
from typing import Final

from ..check import Chapter
from ..seat import SOON
from ..trial import Trial
from ..verdict import Wrong

CHAPTER: Final = Chapter(4, "Once")


@CHAPTER.check("3", "an op that is sent again after its end gets the same answer and does not run")
async def after_the_end(trial: Trial) -> None:
    name = trial.id()
    exchange = trial.start("work", {"name": name})
    await trial.value(exchange)
    for round in (2, 3):
        exchange.again()
        end = await exchange.hear("final", "error", count=round)
        if end.type != "final" or end.event.get("value") != 1:
            raise Wrong("the final that it gave before", end.stanza, exchange.asked)
    await _began(trial, name, 1)


@CHAPTER.check("3", "an op that is sent again while it runs is answered, and does not run twice")
async def while_it_runs(trial: Trial) -> None:
    name = trial.id()
    exchange = trial.start("work", {"name": name, "seconds": 1})
    first = exchange.asked
    await asyncio.sleep(0.5)
    exchange.again()
    await trial.value(exchange)
    await exchange.answer()
    try:
        await trial.caller.until(lambda: exchange.answers.get(first.id), SOON)
    except TimeoutError:
        raise Wrong("an answer to the first stanza as well", None, first) from None
    await _began(trial, name, 1)


@CHAPTER.check("6.1", "a refused op that is sent again is refused again")
async def refused_again(trial: Trial) -> None:
    exchange = trial.start("refuse", {"text": "no"})
    await trial.refused(exchange, "refused")
    exchange.again()
    end = await exchange.hear("final", "error", count=2)
    if end.reason != "refused":
        raise Wrong("error with the reason refused, as before", end.stanza, exchange.asked)


@CHAPTER.check("5", "another attempt of the same call is an exchange of its own")
async def attempts(trial: Trial) -> None:
    name, id = trial.id(), trial.id()
    for attempt in (1, 2):
        exchange = trial.start("work", {"name": name}, id=id, attempt=attempt)
        if await trial.value(exchange) != attempt:
            raise Wrong(f"that attempt {attempt} runs", exchange.heard[-1].stanza, exchange.asked)


@CHAPTER.check("5", "the same id of another account is another call", needs="other")
async def accounts(trial: Trial) -> None:
    assert trial.other is not None
    name, id = trial.id(), trial.id()
    first = trial.start("work", {"name": name}, id=id)
    await trial.value(first)
    second = trial.start("work", {"name": name}, id=id, seat=trial.other)
    if await trial.value(second) != 2:
        raise Wrong("that the call of another account runs", second.heard[-1].stanza, second.asked)


@CHAPTER.check(
    "6.6", "a caller that was away sends its op again, and gets the answer of the one run"
)
async def after_a_break(trial: Trial) -> None:
    name, id = trial.id(), trial.id()
    event = trial.event("work", {"name": name, "seconds": 1}, id=id)
    async with trial.seat("caller", "away") as seat:
        seat.start(event, trial.agent)
        await asyncio.sleep(0.3)
    async with trial.seat("caller", "away") as seat:
        again = seat.start(event, trial.agent)
        if await trial.value(again, 2 + SOON) != 1:
            raise Wrong("the value of the one run", again.heard[-1].stanza, again.asked)
    await _began(trial, name, 1)


@CHAPTER.check("14", "all resources of an account share its calls")
async def resources(trial: Trial) -> None:
    name = trial.id()
    first = trial.start("work", {"name": name})
    await trial.value(first)
    async with trial.seat("caller", "second") as seat:
        again = trial.start("work", {"name": name}, id=first.id, seat=seat)
        if await trial.value(again) != 1:
            raise Wrong("the answer of the one run", again.heard[-1].stanza, again.asked)


async def _began(trial: Trial, name: str, times: int) -> None:
    if (count := await trial.runs(name)) != times:
        raise Wrong(f"that it ran {times} times; it was begun {count} times", trial.caller.log[-1])
