"""Many calls in one stanza, and many sets of arguments in one call."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ..check import Chapter
from ..seat import SOON
from ..trial import Trial
from ..verdict import NotOffered, Wrong
from .finals import SLACK, WINDOW

BATCHES: Final = Chapter(8, "Batches", feature="batch")
GROUPS: Final = Chapter(9, "Groups", feature="group")


@BATCHES.check("6.8", "a batch is not answered by its slowest member")
async def slowest(trial: Trial) -> None:
    events = [
        trial.event("echo", {"value": "quick"}),
        trial.event("work", {"name": trial.id(), "seconds": 3}),
        trial.event("echo", op="/conform/nothing"),
    ]
    began = asyncio.get_running_loop().time()
    quick, slow, unknown = trial.caller.start_all(events, trial.agent)
    if await trial.value(quick) != "quick":
        raise Wrong("the value 'quick'", quick.heard[-1].stanza, quick.asked)
    await trial.refused(unknown, "unknown-op")
    if quick.heard[-1].at - began > WINDOW + SLACK:
        raise Wrong(f"the quick answer within {WINDOW:g} s", quick.heard[-1].stanza, quick.asked)
    await trial.value(slow, 3 + SOON)


@BATCHES.check("6.8", "every op of a large batch is answered")
async def large(trial: Trial) -> None:
    events = [trial.event("echo", {"value": f"call {n}"}) for n in range(100)]
    for n, exchange in enumerate(trial.caller.start_all(events, trial.agent)):
        if await trial.value(exchange) != f"call {n}":
            raise Wrong(f"the value 'call {n}'", exchange.heard[-1].stanza, exchange.asked)


@BATCHES.check("5", "one ack acknowledges many")
async def acks(trial: Trial) -> None:
    if "finals" not in trial.features:
        raise NotOffered("it keeps no finals")
    begun = trial.caller.start_all(
        [trial.event("echo", {"value": f"call {n}"}) for n in range(3)], trial.agent
    )
    for exchange in begun:
        await trial.value(exchange)
    also = [[each.id, each.attempt] for each in begun[1:]]
    await trial.caller.ask([{"type": "ack", "id": begun[0].id, "also": also}], trial.agent)
    for exchange in begun:
        exchange.again()
        end = await exchange.hear("final", "error", count=2)
        if end.reason != "already-done":
            raise Wrong("error with the reason already-done", end.stanza, exchange.asked)


@GROUPS.check("6.9", "each set of arguments has an item in the value")
async def each(trial: Trial) -> None:
    trial.need_page("echo")
    given: list[dict[str, Any]] = [{"value": n} for n in range(20)]
    event = trial.event("echo", each=[*given, {"valeu": 1}], window=0, must=["group"])
    del event["args"]
    exchange = trial.caller.start(event, trial.agent)
    value = await trial.value(exchange)
    items: dict[int, list[Any]] = {item[0]: item for item in value}
    if sorted(items) != list(range(21)) or len(value) != 21:
        raise Wrong("an item for each of 21 sets", exchange.heard[-1].stanza, exchange.asked)
    for n in range(20):
        if items[n][2] != n or len(items[n]) != 3:
            raise Wrong(f"the value {n} at place {n}", exchange.heard[-1].stanza, exchange.asked)
    if len(items[20]) != 4 or items[20][3].get("reason") != "bad-arguments":
        raise Wrong("bad-arguments at place 20", exchange.heard[-1].stanza, exchange.asked)
