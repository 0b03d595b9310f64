"""Calls that their caller does not want any more."""

from __future__ import annotations

import asyncio
from typing import Final

from spinal.protocols import Stanza

from ..check import Chapter
from ..seat import Exchange, read
from ..trial import Trial
from ..verdict import Wrong

ANSWERED: Final = Chapter(5, "Cancels that are answered")
#: Seconds that a caller may be gone.
GRACE: Final = 10.0

CHAPTER: Final = Chapter(6, "Cancel", feature="cancel")


@ANSWERED.check("3", "a cancel is answered, and harms no other call")
async def answered(trial: Trial) -> None:
    said = [{"type": "cancel", "id": trial.id(), "left": 5000}]
    answer = await trial.caller.ask(said, trial.agent, what="an IQ result")
    if answer.type != "result":
        raise Wrong("an IQ result, empty or with cancelled", answer)
    if _state(answer) not in ("", "unknown"):
        raise Wrong("the state unknown for a call that never was", answer)
    await trial.echoes()


@CHAPTER.check("6.5", "a running call that is cancelled ends soon, with the problem cancelled")
async def in_time(trial: Trial) -> None:
    exchange = trial.start("work", {"name": trial.id(), "seconds": 30}, left=60_000)
    await asyncio.sleep(0.5)
    await _cancel(trial, exchange, "cancelled")
    await trial.failed(exchange, "cancelled", within=3.0)


@CHAPTER.check("6.5", "a cancel that comes after the end is answered with late")
async def too_late(trial: Trial) -> None:
    exchange = trial.start("echo", {"value": "one"})
    await trial.value(exchange)
    await _cancel(trial, exchange, "late")


@CHAPTER.check("6.5", "a cancel that overtakes its op keeps it from running")
async def tombstone(trial: Trial) -> None:
    name, id = trial.id(), trial.id()
    said = [{"type": "cancel", "id": id, "left": 20_000}]
    answer = await trial.caller.ask(said, trial.agent)
    if _state(answer) != "unknown":
        raise Wrong("cancelled with the state unknown", answer)
    exchange = trial.start("work", {"name": name}, id=id, left=19_000)
    await trial.refused(exchange, "cancelled")
    exchange.again()
    end = await exchange.hear("final", "error", count=2)
    if end.type != "error" or end.reason != "cancelled":
        raise Wrong("error with the reason cancelled each time", end.stanza, exchange.asked)
    if (count := await trial.runs(name)) != 0:
        raise Wrong(f"that it never ran; it was begun {count} times", trial.caller.log[-1])


@CHAPTER.check("7", "the calls of a caller that is gone for 10 s are cancelled")
async def vanished(trial: Trial) -> None:
    event = trial.event("work", {"name": trial.id(), "seconds": 40}, left=60_000)
    async with trial.sit("caller", "vanishes") as seat:
        seat.hello(trial.agent, "caller")
        seat.start(event, trial.agent)
        await asyncio.sleep(0.5)
    await asyncio.sleep(GRACE + 1.5)
    exchange = trial.caller.start(event, trial.agent)
    end = await exchange.hear("accepted", "final", "error")
    if end.type != "final" or end.reason != "cancelled":
        await trial.caller.ask([{"type": "cancel", "id": exchange.id}], trial.agent)
        raise Wrong("the final of a call that was cancelled", end.stanza, exchange.asked)


async def _cancel(trial: Trial, exchange: Exchange, state: str) -> None:
    said = [{"type": "cancel", "id": exchange.id, "left": 20_000}]
    answer = await trial.caller.ask(said, trial.agent)
    if _state(answer) != state:
        raise Wrong(f"cancelled with the state {state}", answer)


def _state(answer: Stanza) -> str:
    return next((each["state"] for each in read(answer) if each["type"] == "cancelled"), "")
