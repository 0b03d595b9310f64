"""Asking, and being answered: what a caller gets from every agent."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from spinal.protocols import Json

from ..check import Chapter
from ..seat import SOON, escaped, read
from ..trial import Trial, same
from ..vectors import cases, text_of
from ..verdict import Wrong

CHAPTER: Final = Chapter(2, "Answers")


@CHAPTER.check("3", "a call is answered with one final, under its id, in the answer to its stanza")
async def one_final(trial: Trial) -> None:
    exchange = trial.start("echo", {"value": "hi"})
    await trial.value(exchange)
    answer = await exchange.answer()
    if answer.type != "result" or answer.body is None:
        raise Wrong("the final in the IQ result of the op", answer, exchange.asked)


@CHAPTER.check("4", "values come back as they were sent")
async def values(trial: Trial) -> None:
    trial.need_page("echo")
    for case in cases("values.json"):
        # Those of section 11 are as large as an event may be, and so too large for an op.
        if "same" not in case or case["section"] != "4" or "needs" in case:
            continue
        exchange = trial.start("echo", {"value": json.loads(text_of(case["text"]))})
        if not same(json.loads(case["same"]), await trial.value(exchange)):
            raise Wrong(f"the value {case['same']}", exchange.heard[-1].stanza, exchange.asked)


@CHAPTER.check("2", "unknown events are left out, unknown members ignored, null counts as absent")
async def unknown(trial: Trial) -> None:
    event = trial.event("echo", {"value": "hi"})
    more = {"attempt": None, "epoch": None, "must": None, "shadow": [{"x": 1}], "window": None}
    exchange = trial.caller.start({**event, **more}, trial.agent)
    await trial.value(exchange)
    shadow: dict[str, Json] = {"type": "shadow", "id": trial.id(), "left": "soon"}
    event = trial.event("echo", {"value": "hi"})
    (exchange,) = trial.caller.start_all([event], trial.agent, beside=[shadow])
    await trial.value(exchange)
    answer = await trial.caller.ask([shadow], trial.agent, what="an empty IQ result")
    if answer.type != "result" or answer.body is not None:
        raise Wrong("an empty IQ result to a stanza of unknown events", answer)


@CHAPTER.check("2", "text is read with XML references in it, and JSON in every form")
async def forms(trial: Trial) -> None:
    op = trial.ops.event("repeat", {"text": "<&>"})
    for pattern in (
        '[{{"type":"op","id":"{id}","left":30000,"op":"{op}","args":{args}}}]',
        (
            ' [ {{ "left" : 30000 , "args" : {args} ,\n\t"op":"{op}", "id":"{id}",'
            '"type":"\\u006fp" }} ] '
        ),
    ):
        id = trial.id()
        args = escaped(json.dumps(op["args"]))
        text = pattern.format(id=id, op=op["op"], args=args)
        answer = await trial.caller.ask(text, trial.agent)
        found = read(answer)
        if not any(each.get("id") == id and each.get("value") == "<&>" for each in found):
            raise Wrong("the final with the value '<&>'", answer)


@CHAPTER.check("3", "a call that takes a second is answered when it has ended")
async def slow(trial: Trial) -> None:
    exchange = trial.start("work", {"name": trial.id(), "seconds": 1})
    began = asyncio.get_running_loop().time()
    if await trial.value(exchange, 1 + SOON) != 1:
        raise Wrong("the value 1: it was begun once", exchange.heard[-1].stanza, exchange.asked)
    if asyncio.get_running_loop().time() - began < 0.9:
        raise Wrong("an answer after a second, not before", exchange.heard[-1].stanza)


@CHAPTER.check("6.2", "an operation that was started and failed ends with a final")
async def fails(trial: Trial) -> None:
    exchange = trial.start("fail", {"text": "the lamp is out"})
    end = await trial.failed(exchange, "failed")
    if "the lamp is out" not in end.event["problem"].get("text", ""):
        raise Wrong("the operation's own words in the problem's text", end.stanza, exchange.asked)


@CHAPTER.check("6.2", "an operation that refuses is answered with an error")
async def refuses(trial: Trial) -> None:
    exchange = trial.start("refuse", {"text": "not on Sundays"})
    end = await trial.refused(exchange, "refused")
    if "not on Sundays" not in end.event["problem"].get("text", ""):
        raise Wrong("the operation's own words in the problem's text", end.stanza, exchange.asked)


@CHAPTER.check("2", "of many calls at once each gets its own answer")
async def many(trial: Trial) -> None:
    begun = [(n, trial.start("echo", {"value": f"call {n}"})) for n in range(64)]
    for n, exchange in begun:
        if await trial.value(exchange, 2 * SOON) != f"call {n}":
            raise Wrong(f"the value 'call {n}'", exchange.heard[-1].stanza, exchange.asked)
        if len(exchange.all("final")) != 1:
            raise Wrong("one final for each call", exchange.heard[-1].stanza, exchange.asked)


@CHAPTER.check("18", "calls do not wait for each other")
async def side_by_side(trial: Trial) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    begun = [trial.start("work", {"name": trial.id(), "seconds": 1}) for _ in range(4)]
    for exchange in begun:
        await trial.value(exchange, 4 + SOON)
    if (took := loop.time() - began) > 3.0:
        raise Wrong(
            f"four calls of a second each within two or so, not after {took:.1f} s",
            begun[-1].heard[-1].stanza,
        )


@CHAPTER.check("9.1", "more calls than it can take are refused as busy, and none is dropped")
async def busy(trial: Trial) -> None:
    begun = [
        trial.start("work", {"name": trial.id(), "seconds": 0.2}, left=8000) for _ in range(300)
    ]
    done = 0
    for exchange in begun:
        end = await exchange.end(8 + SOON)
        if end.event.get("problem") is None:
            done += 1
        elif end.reason not in ("busy", "expired", "deadline"):
            raise Wrong("a value, or busy, expired or deadline", end.stanza, exchange.asked)
    if not done:
        raise Wrong("that some of 300 calls are done", begun[-1].heard[-1].stanza)
    await trial.echoes()


@CHAPTER.check("6.4", "what has not ended when its time is over ends with the problem deadline")
async def deadline(trial: Trial) -> None:
    exchange = trial.start("work", {"name": trial.id(), "seconds": 30}, left=1000)
    began = asyncio.get_running_loop().time()
    end = await trial.failed(exchange, "deadline", within=1 + SOON)
    if end.at - began < 0.9:
        raise Wrong("the end when its time is over, not before", end.stanza, exchange.asked)


@CHAPTER.check(
    "11", "a result that is too large for a stanza ends with a problem, not with silence"
)
async def large_result(trial: Trial) -> None:
    exchange = trial.start("repeat", {"text": "0123456789" * 100, "times": 1000})
    await trial.failed(exchange, "too-large")
    await trial.echoes()
